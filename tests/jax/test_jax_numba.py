"""The fused CPU kernels under JAX: transformations, and errors that say what to do."""

import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest

from gatv2.testing import assert_agrees

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
xla_ffi = pytest.importorskip("gatv2.jax.numba.xla_ffi")

N, H, F = 5, 3, 4


@pytest.fixture(autouse=True)
def _64_bits() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["dense", "sparse"])
def graph(request: pytest.FixtureRequest) -> Any:
    mask = np.random.default_rng(1).random((N, N, 1)) < 0.5
    mask[2] = False
    return jnp.asarray(mask) if request.param == "dense" else gat.Graph.from_mask(mask).padded(30)


def features(*batch_shape: int) -> tuple[Any, Any, Any, Any]:
    """Query, key, attn and a cotangent."""
    rng = np.random.default_rng(0)
    nodes = (*batch_shape, N, H, F)
    shapes = (nodes, nodes, (*batch_shape, H, F), nodes)
    query, key, attn, cotangent = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    return query, key, attn, cotangent


def loss(
    query: Any, key: Any, attn: Any, cotangent: Any, graph: Any, seed: Any, kernel: str
) -> Any:
    out = gat.gatv2_attention(query, key, attn, graph, dropout=0.3, seed=seed, kernel=kernel)
    return (out * cotangent).sum()


def value_and_gradients(kernel: str) -> Any:
    return jax.value_and_grad(partial(loss, kernel=kernel), argnums=(0, 1, 2, 3))


def assert_same(make: Any, *inputs: Any) -> None:
    """`make(kernel)` gives one function, whichever the kernel."""
    results = [jax.tree.leaves(jax.jit(make(kernel))(*inputs)) for kernel in ("numba", "jax")]
    for fused, plain in zip(*results, strict=True):
        assert_agrees(gat.as_torch(fused), gat.as_torch(plain))


def test_vmap_over_everything(graph: Any) -> None:
    """Features, parameters and seeds at once, twice, with a graph that is not mapped over."""
    inputs = (*features(2, 3), graph, jnp.arange(6).reshape(2, 3))
    axes = (0, 0, 0, 0, None, 0)
    assert_same(lambda kernel: jax.vmap(jax.vmap(value_and_gradients(kernel), axes), axes), *inputs)


def test_vmap_over_graphs() -> None:
    generator = np.random.default_rng(3)
    graphs = [
        gat.Graph.from_edge_index(generator.integers(0, N, (2, n_edges)), N).padded(20)
        for n_edges in (0, 7, 20)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)
    axes = (None, None, None, None, 0, None)
    assert_same(lambda kernel: jax.vmap(value_and_gradients(kernel), axes), *features(), stacked, 7)


def test_jacobian_and_second_order_in_reverse_mode(graph: Any) -> None:
    """A vmap of the backward pass, and the derivative of the gradient to all that it depends on."""

    def jacobian(kernel: str) -> Any:
        return jax.jacrev(
            partial(gat.gatv2_attention, graph=graph, dropout=0.3, seed=1, kernel=kernel), argnums=2
        )

    def of_gradient(kernel: str) -> Any:
        def norm(*inputs: Any) -> Any:
            gradients = value_and_gradients(kernel)(*inputs, graph, 5)[1]
            return sum((weight * g**2).sum() for weight, g in enumerate(gradients, start=1))

        return jax.grad(norm, argnums=(0, 1, 2, 3))

    assert_same(jacobian, *features()[:3])
    assert_same(of_gradient, *features())


def test_checkpoint(graph: Any) -> None:
    def make(kernel: str) -> Any:
        return jax.grad(jax.checkpoint(partial(loss, kernel=kernel)), argnums=(0, 1, 2))

    assert_same(make, *features(), graph, 3)


def test_forward_mode(graph: Any) -> None:
    """Alone, in a Hessian, and differentiated backward; of the coefficients and log-sum-exp too."""

    def everything(kernel: str) -> Any:
        def attend(*inputs: Any) -> Any:
            out, alpha, lse = gat.gatv2_attention(
                *inputs, graph, kernel=kernel, return_attention=True, return_lse=True
            )
            return out, alpha, jnp.where(jnp.isfinite(lse), lse, 0)

        return attend

    def of_loss(kernel: str) -> Any:
        return partial(loss, graph=graph, seed=5, kernel=kernel)

    def backward_of_forward(kernel: str) -> Any:
        return jax.grad(lambda *inputs: jax.jvp(of_loss(kernel), inputs, inputs)[1], (0, 1, 2, 3))

    query, key, attn, cotangent = features()
    assert_same(
        lambda kernel: lambda *inputs: jax.jvp(everything(kernel), inputs, inputs), query, key, attn
    )
    assert_same(lambda kernel: jax.hessian(of_loss(kernel), (0, 2)), query, key, attn, cotangent)
    assert_same(backward_of_forward, query, key, attn, cotangent)


def test_parts_of_a_graph() -> None:
    """Numbers of queries tell dropout where a part stands."""
    edge_index = np.random.default_rng(2).integers(0, N, (2, 12))
    parts = gat.Graph.from_edge_index(edge_index, N).split(N)
    query, key, attn, cotangent = features()
    axes = (0, None, None, 0, 0, None)
    assert_same(
        lambda kernel: jax.vmap(value_and_gradients(kernel), axes),
        *(query[:, None], key, attn, cotangent[:, None], parts, 7),
    )


def programs(function: Any, *inputs: Any) -> dict[str, bool]:
    """For which platforms a program calls a fused kernel."""
    traced = jax.jit(function).trace(*inputs)
    programs = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    kernels = ("@gatv2_sparse_", "@gatv2_dense_", "@__gpu$xla.gpu.triton")
    return {name: any(x in program for x in kernels) for name, program in programs.items()}


def test_the_kernel_is_chosen_when_a_program_is_lowered(graph: Any) -> None:
    """Under every transformation: fused on the CPU and, over edges, on GPUs, from one trace."""
    query, key, attn, cotangent = features()
    inputs = (query, key, attn, cotangent, graph, 3)
    value, gradients = partial(loss, kernel="auto"), value_and_gradients("auto")
    fused = {"cpu": True, "cuda": isinstance(graph, gat.Graph), "tpu": False}
    assert programs(value, *inputs) == fused
    assert programs(gradients, *inputs) == fused
    ensemble = jax.vmap(gradients, (None, None, 0, None, None, None))
    assert programs(ensemble, query, key, jnp.stack((attn, attn)), *inputs[3:]) == fused

    def along(query: Any, *rest: Any) -> Any:
        return jax.jvp(lambda query: value(query, *rest), (query,), (query,))

    assert programs(along, *inputs) == fused
    assert not any(programs(partial(loss, kernel="jax"), *inputs).values())


def test_what_it_can_not_do_names_what_can(graph: Any) -> None:
    query, key, attn, cotangent = features()
    traced = jax.jit(partial(loss, kernel="numba")).trace(query, key, attn, cotangent, graph, 3)
    with pytest.raises(
        ValueError, match=r"kernel='numba' runs on the CPU only.*cuda: kernel='auto'"
    ):
        traced.lower(lowering_platforms=("cuda",))
    with pytest.raises(ValueError, match=r"one of \('auto', 'jax', 'numba'.*; got 'cuda'"):
        gat.gatv2_attention(query, key, attn, graph, kernel="cuda")
    odd = [x.astype("float8_e4m3fn") for x in (query, key, attn)]
    with pytest.raises(ValueError, match=r"does not compute in float8_e4m3fn. kernel='jax'"):
        gat.gatv2_attention(*odd, graph, kernel="numba")
    assert gat.select_kernel(*odd, graph).name == "jax"


LOADED_TWICE = """
import gc, sys
import jax.numpy as jnp

x, a, mask = jnp.ones((3, 2, 4)), jnp.ones((2, 4)), jnp.ones((3, 3, 1), bool)
for n_nodes in (3, 2, 1):  # each compiled anew
    import gatv2.jax as gat

    out = gat.gatv2_attention(x[:n_nodes], x, a, mask[:n_nodes], kernel="numba")
    assert jnp.allclose(out, 1)
    for name in [name for name in sys.modules if name.startswith("gatv2")]:
        del sys.modules[name]
    del gat
    gc.collect()
"""


def test_kernels_serve_modules_that_are_loaded_again() -> None:
    """The first that XLA knows by a name stays, and is there as long as the process."""
    result = subprocess.run(
        [sys.executable, "-c", LOADED_TWICE], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_an_error_in_a_target_is_reported() -> None:
    def fail(*_: Any) -> None:
        raise KeyError("what went wrong")

    for function in (fail, print):  # of one name the first stays, as of threads that begin together
        xla_ffi.register("gatv2_test_fail", function)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"KeyError: 'what went wrong'"):
        jax.ffi.ffi_call("gatv2_test_fail", jax.ShapeDtypeStruct((1,), "f4"))().block_until_ready()
