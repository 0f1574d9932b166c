"""The fused CPU kernels under JAX: transformations, and errors that say what to do."""

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


def test_forward_mode_is_an_error(graph: Any) -> None:
    query, key, attn, _ = features()
    attend = partial(gat.gatv2_attention, graph=graph, kernel="numba")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(attend, (query, key, attn), (query, key, attn))


def test_what_it_can_not_do_names_what_can() -> None:
    query, key, attn, _ = features()
    with pytest.raises(ValueError, match=r"one of \('jax', 'numba'\); got 'cuda'"):
        gat.gatv2_attention(query, key, attn, np.ones((N, N), bool), kernel="cuda")


def test_an_error_in_a_target_is_reported() -> None:
    def fail(*_: Any) -> None:
        raise KeyError("what went wrong")

    xla_ffi.register("gatv2_test_fail", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="KeyError: 'what went wrong'"):
        jax.ffi.ffi_call("gatv2_test_fail", jax.ShapeDtypeStruct((1,), "f4"))().block_until_ready()
