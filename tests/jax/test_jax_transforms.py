"""Every transformation of JAX has an answer, dense and sparse, and compiles once for one size."""

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gatv2
from gatv2.testing import assert_agrees

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
from gatv2.jax.blocks import count_blocks  # noqa: E402

N, M, H, F = 5, 7, 2, 3


@pytest.fixture(autouse=True)
def _64_bits() -> Any:
    with jax.enable_x64(True):
        yield


def features(*batch_shape: int, dtype: Any = None) -> tuple[Any, Any, Any]:
    """Query, key and attn; they vary with the dtype only by rounding."""
    rng = np.random.default_rng(0)
    shapes = ((*batch_shape, N, H, F), (*batch_shape, M, H, F), (H, F))
    query, key, attn = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return query, key, attn


def mask() -> Any:
    """A mask with a query without keys and a key without queries."""
    mask = np.random.default_rng(1).random((N, M, 1)) < 0.5
    mask[2], mask[:, 3] = False, False
    return mask


@pytest.fixture(params=["dense", "sparse"])
def graph(request: pytest.FixtureRequest) -> Any:
    """A mask, and a padded graph with the same edges."""
    return (
        jnp.asarray(mask()) if request.param == "dense" else gat.Graph.from_mask(mask()).padded(40)
    )


@pytest.fixture
def attend(graph: Any) -> Any:
    """Attention as a function of the features, with dropout from a fixed seed."""
    return jax.jit(partial(gat.gatv2_attention, graph=graph, dropout=0.3, seed=11))


def in_torch(query: Tensor, key: Tensor, attn: Tensor) -> Tensor:
    """The same function in PyTorch."""
    out: Tensor = gatv2.gatv2_attention(
        query, key, attn, torch.from_numpy(mask()), dropout=0.3, seed=11, kernel="torch"
    )
    return out


def cotangent(out: Any) -> Any:
    return jnp.asarray(np.random.default_rng(2).normal(size=out.shape))


def loss(attend: Any, *inputs: Any) -> Any:
    out = attend(*inputs)
    return (out * cotangent(out)).sum()


def assert_close(actual: Any, expected: Any) -> None:
    """Every leaf, in the tolerance of its dtype."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_agrees(gat.as_torch(a), e if isinstance(e, Tensor) else gat.as_torch(e))


def test_derivatives_of_both_modes_and_orders(attend: Any) -> None:
    """jvp, jacfwd, jacrev and hessian are those of PyTorch."""
    inputs = features()
    primals = tuple(gat.as_torch(x) for x in inputs)
    jacobians = torch.func.jacrev(in_torch, argnums=(0, 1, 2))(*primals)
    for mode in (jax.jacfwd, jax.jacrev):
        assert_close(jax.jit(mode(attend, argnums=(0, 1, 2)))(*inputs), jacobians)
    out, tangent = jax.jvp(attend, inputs, inputs)
    assert_close((out, tangent), torch.func.jvp(in_torch, primals, primals))

    def torch_loss(*inputs: Tensor) -> Tensor:
        weights: Tensor = gat.as_torch(cotangent(inputs[0]))
        return (in_torch(*inputs) * weights).sum()

    hessian = jax.jit(jax.hessian(partial(loss, attend), argnums=(0, 2)))(*inputs)
    expected = torch.func.hessian(torch_loss, argnums=(0, 2))(*primals)
    assert_close(hessian, expected)
    assert abs(hessian[1][1]).max() > 1e-3


def test_vmap_over_features(attend: Any) -> None:
    """As a loop, with one dropout mask for all: under vmap a function does not see its batch."""
    query, key, attn = features(3)
    batched = jax.jit(jax.vmap(attend, in_axes=(0, 0, None)))(query, key, attn)
    assert_close(batched, jnp.stack([attend(q, k, attn) for q, k in zip(query, key, strict=True)]))


def test_vmap_is_a_batch_dimension(graph: Any) -> None:
    query, key, attn = features(3)
    attend = jax.jit(partial(gat.gatv2_attention, graph=graph))
    batched = jax.jit(jax.vmap(attend, in_axes=(0, 0, None)))(query, key, attn)
    assert_close(batched, attend(query, key, attn))


def test_vmap_over_attn_seeds_and_gradients(graph: Any) -> None:
    """An ensemble: other parameters and other dropout for each member, and their gradients."""
    query, key, attn = features()
    attns, seeds = jnp.stack((attn, 2 * attn)), jnp.array([3, 2**40])

    def of_member(attn: Any, seed: Any) -> Any:
        attend = partial(gat.gatv2_attention, graph=graph, dropout=0.3, seed=seed)
        return jax.grad(partial(loss, attend), argnums=(0, 1, 2))(query, key, attn)

    gradient = jax.jit(of_member)
    batched = jax.vmap(gradient)(attns, seeds)
    members = [gradient(attn, seed) for attn, seed in zip(attns, seeds, strict=True)]
    assert_close(batched, jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))


def test_vmap_over_graphs() -> None:
    """Graphs of several sizes, padded and stacked, are a batch."""
    query, key, attn = features()
    generator = np.random.default_rng(3)
    graphs = [
        gat.Graph.from_edge_index(generator.integers(0, N, (2, n_edges)), (N, M)).padded(20)
        for n_edges in (0, 7, 20)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)

    attend = jax.jit(partial(gat.gatv2_attention, query, key, attn, dropout=0.2, seed=5))
    assert_close(jax.vmap(attend)(stacked), jnp.stack([attend(graph) for graph in graphs]))


def test_checkpoint(attend: Any) -> None:
    expected = jax.jit(jax.grad(partial(loss, attend)))(*features())
    assert_close(jax.jit(jax.grad(partial(loss, jax.checkpoint(attend))))(*features()), expected)


def test_raw_edge_index_under_jit() -> None:
    """An edge index may be traced too: it is sorted in the compiled function."""
    edge_index = np.random.default_rng(4).integers(0, N, (2, 30))  # many parallel edges

    def attend(edge_index: Any) -> Any:
        return gat.gatv2_attention(
            *features(), edge_index, dropout=0.5, seed=1, return_attention=True
        )

    query, key, attn = (gat.as_torch(x) for x in features())
    expected = gatv2.gatv2_attention(
        query,
        key,
        attn,
        torch.from_numpy(edge_index),
        dropout=0.5,
        seed=1,
        return_attention=True,
    )
    for a, e in zip(jax.jit(attend)(jnp.asarray(edge_index)), expected, strict=True):
        assert_agrees(gat.as_torch(a), e)


@pytest.mark.parametrize("x64", [False, True], ids=["", "x64"])
def test_dtype_of_the_result_is_that_of_the_features(graph: Any, x64: bool) -> None:
    for dtype in ("float32", "bfloat16", "float16", *(("float64",) if x64 else ())):
        with jax.enable_x64(x64):
            out, alpha = jax.eval_shape(
                partial(gat.gatv2_attention, dropout=0.5, return_attention=True),
                *features(dtype=dtype),
                graph,
                seed=jnp.zeros(2, jnp.uint32),
            )
        assert out.dtype == alpha.dtype == dtype


def test_x64_does_not_change_dropout(graph: Any) -> None:
    """32-bit arithmetic gives the mask that 64-bit arithmetic gives, and PyTorch."""
    query, key, attn = (gat.as_torch(x) for x in features(dtype="float32"))
    expected = gatv2.gatv2_attention(
        query,
        key,
        attn,
        torch.from_numpy(mask()),
        dropout=0.5,
        seed=-(2**62) + 7,
    )
    for x64 in (False, True):
        with jax.enable_x64(x64):
            attend = jax.jit(partial(gat.gatv2_attention, dropout=0.5, seed=-(2**62) + 7))
            out = attend(*features(dtype="float32"), graph)
            assert_agrees(gat.as_torch(out), expected.double(), expected)


def test_one_compilation_for_one_size() -> None:
    """Other features, another seed, another graph, padded to one size: nothing is compiled again."""
    traces = 0

    def counted(query: Any, key: Any, attn: Any, graph: Any, seed: Any) -> Any:
        nonlocal traces
        traces += 1
        return gat.gatv2_attention(query, key, attn, graph, dropout=0.5, seed=seed)

    attend = jax.jit(counted)
    generator = np.random.default_rng(5)
    for n_edges in (3, 17, 40):
        edge_index = generator.integers(0, N, (2, n_edges))
        graph = gat.Graph.from_edge_index(edge_index, (N, M)).padded(40)
        attend(*features(), graph, gat.seed_from_key(jax.random.key(n_edges)))
    assert traces == 1
    attend(*features(), gat.Graph.from_edge_index(edge_index, (N, M)).padded(41), jnp.int32(0))
    assert traces == 2


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_a_call_outside_of_jit_compiles_nothing_twice(
    backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of plain JAX in several blocks, too: values, scores, gradients, and the control."""
    mask = np.random.default_rng(0).random((40, 40, 1)) < 0.9
    h, a = jnp.ones((40, 2, 512), "float32"), jnp.ones((2, 512), "float32")
    graph = mask if backend == "dense" else gat.Graph.from_mask(mask)
    assert count_blocks(int(mask.sum()), a.size) > 1

    def call(h: Any) -> Any:
        attend = partial(gat.gatv2_attention, h, h, graph=graph, kernel="jax")
        gradient = jax.grad(lambda a: attend(attn=a).sum())(a)
        scores = gat.gatv2_scores(h, h, a, graph)
        return gradient, scores, gat.gat_attention(h, h, a, a, graph)

    def compilations(h: Any) -> int:
        caplog.clear()
        with jax.log_compiles():
            jax.block_until_ready(call(h))
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    assert compilations(h) > 0
    assert compilations(2 * h) == 0


def test_no_large_constants() -> None:
    """A graph is an argument of a compiled function: nothing of the size of its edges is baked in."""
    n_edges = 5003
    graph = gat.Graph.from_edge_index(np.random.default_rng(6).integers(0, N, (2, n_edges)), (N, M))

    def step(graph: Any, *features: Any) -> Any:
        attend = partial(gat.gatv2_attention, graph=graph, dropout=0.5, seed=1)
        return jax.value_and_grad(partial(loss, attend), argnums=(0, 1, 2))(*features)

    assert largest_constant(step, graph, *features()) < n_edges
    assert largest_constant(partial(step, graph), *features()) >= n_edges  # what must not happen


def largest_constant(function: Any, *inputs: Any) -> int:
    """The number of elements of the largest constant of a compiled program."""
    program = jax.jit(function).lower(*inputs).compile().as_text()
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* constant\(", program)
    return max(math.prod(int(size) for size in shape.split(",") if size) for shape in shapes)
