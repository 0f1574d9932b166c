"""The kernels for GPUs: what they compute, interpreted on the CPU, and what they are lowered to."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
from gatv2.jax.fused import Options  # noqa: E402
from gatv2.jax.pallas import kernels, rows  # noqa: E402
from gatv2.jax.sparse import pallas_kernel, reference  # noqa: E402
from gatv2.jax.sparse.tangent import Features  # noqa: E402

N, M, E = 6, 5, 40
SLOPE = -0.3


class Case(NamedTuple):
    """Sizes, no powers of two, and options; few, since JAX compiles for each."""

    n_heads: int
    n_hidden: int
    batch_shape: tuple[int, ...] = ()
    dropout: float = 0.0
    kind: str = "padded"
    split: int = 1024


WITH_GRADIENTS = (
    Case(3, 5, kind="numbered", dropout=0.4, split=4),
    Case(5, 3, batch_shape=(2,)),
)
VALUES = (Case(1, 7, batch_shape=(2,), dropout=0.4), Case(6, 1, kind="blocks", dropout=0.4))


def draw_graph(kind: str) -> Any:
    """A graph in which a node has most of the edges, and others have none."""
    rng = np.random.default_rng(0)
    edge_index = np.stack((rng.integers(0, N - 1, E), rng.integers(0, M, E)))
    edge_index[0, : E // 2], edge_index[1, E // 4 : E // 2] = 1, 2  # many parallel ones
    if kind == "blocks":
        return gat.Graph.from_mask(rng.random((2, N // 2, M, 1)) < 0.5)
    graph = gat.Graph.from_edge_index(edge_index, (N, M))
    if kind == "numbered":
        return jax.tree.map(lambda x: x[0], graph.split(2))
    return graph.padded(E + 3)


def draw(case: Case, graph: Any, dtype: Any) -> tuple[Features, Any, Any]:
    """Features, and cotangents of the result and of its log-sum-exp."""
    rng = np.random.default_rng(1)
    heads = (case.n_heads, case.n_hidden)
    nodes = (*case.batch_shape, graph.n_queries, *heads)
    shapes = (nodes, (*case.batch_shape, graph.n_keys, *heads), heads, nodes, nodes[:-1])
    query, key, attn, d_out, d_lse = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    return Features(query, key, attn, None, None), d_out, d_lse


def by_reference(case: Case, seed: Any) -> list[Any]:
    """Result, log-sum-exp, and gradients, in float64."""
    graph = draw_graph(case.kind)
    features, d_out, d_lse = draw(case, graph, "float64")

    def attend(query: Any, key: Any, attn: Any) -> Any:
        out, lse, _ = reference.gatv2_attention(
            query,
            key,
            attn,
            graph,
            None,
            negative_slope=SLOPE,
            dropout=case.dropout,
            seed=seed if case.dropout else None,
            return_attention=False,
        )
        return out, jnp.where(jnp.isfinite(lse), lse, 0)

    def both(*features: Any) -> Any:
        results, pullback = jax.vjp(attend, *features)
        return *results, *pullback((d_out, d_lse))

    return list(jax.jit(both)(*features[:3]))


def by_pallas(case: Case, seed: Any, dtype: Any, *, with_gradients: bool) -> list[Any]:
    """The same interpreted, with or without gradients."""
    graph = draw_graph(case.kind)
    features, d_out, d_lse = draw(case, graph, dtype)
    options = Options(SLOPE, case.dropout, False)

    def both(features: Features) -> Any:
        call = (features, seed, graph, options)
        out, lse = pallas_kernel.forward(*call, interpret=True)
        results = [out, jnp.where(jnp.isfinite(lse), lse, 0)]
        if with_gradients:
            given = (d_out, jnp.where(jnp.isfinite(lse), d_lse, 0), lse)
            results += pallas_kernel.backward(given, *call, interpret=True)
        return results

    results: list[Any] = jax.jit(both)(features)
    assert {x.dtype for x in results} == {jnp.dtype(dtype)}
    return results


def largest_error(actual: list[Any], exact: list[Any]) -> float:
    """Of all results, each in units of its largest number, or of one."""
    pairs = [(np.asarray(a), np.asarray(e)) for a, e in zip(actual, exact, strict=True)]
    return max(float(abs(a - e).max() / max(abs(e).max(), 1)) for a, e in pairs)


@pytest.mark.parametrize(
    "case", [*WITH_GRADIENTS, *VALUES], ids=lambda case: f"{case[0]}x{case[1]}"
)
def test_interpreted(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hubs in parts, and the dropout that every kernel has, also of batches and blocks."""
    monkeypatch.setattr(rows, "SPLIT", case.split)
    monkeypatch.setattr(kernels, "CHUNKS", 2)
    seed = gat.random.as_seed(2**40 + 7)
    actual = by_pallas(case, seed, "float32", with_gradients=case in WITH_GRADIENTS)
    with jax.enable_x64(True):
        exact = by_reference(case, seed)
        assert largest_error(actual, exact[: len(actual)]) < 1e-6
        if case == VALUES[0]:
            assert (
                largest_error(by_pallas(case, seed, "float64", with_gradients=False), exact[:2])
                < 1e-10
            )
            # what the comparison must reject
            other = by_reference(case, gat.random.as_seed(2**40 + 8))
            assert largest_error(actual, other[:2]) > 1e-2


def loss(graph: Any, *features: Any, dropout: float) -> Any:
    out, lse = gat.gatv2_attention(
        *features, graph, kernel="pallas", dropout=dropout, seed=3, return_lse=True
    )
    return (out.astype("float32") ** 2).sum() + lse.max()


def count_kernels(function: Any, *inputs: Any, platform: str) -> int:
    """How many of Triton's kernels a program for a platform has."""
    program = jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,))
    return int(program.as_text().count("__gpu$xla.gpu.triton"))


@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float32"), ("rocm", "bfloat16")])
def test_lowered_without_a_gpu(platform: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward is a kernel, backward two more; with rows in parts, each has one before it."""
    graph = draw_graph("padded")
    features = draw(WITH_GRADIENTS[0], graph, dtype)[0][:3]
    count = partial(count_kernels, platform=platform)
    value, gradients = (
        partial(loss, dropout=0.4),
        jax.grad(partial(loss, dropout=0.0), argnums=(1, 2, 3)),
    )
    assert count(value, graph, *features) == 1
    assert count(gradients, graph, *features) == 3
    monkeypatch.setattr(rows, "SPLIT", 4)
    jax.clear_caches()
    assert count(value, graph, *features) == 2
    assert count(gradients, graph, *features) == 6


def test_other_transformations_are_lowered() -> None:
    """`vmap` is one kernel still; forward mode and second order go on in plain JAX."""
    graph = draw_graph("padded")
    features = draw(WITH_GRADIENTS[0], graph, "float32")[0][:3]
    value = partial(loss, graph, dropout=0.4)
    count = partial(count_kernels, platform="cuda")
    stacked = [jnp.stack((x, x)) for x in features]
    assert count(jax.vmap(value), *stacked) == 1
    assert count(lambda *x: jax.jvp(value, x, x), *features) == 1
    assert count(jax.jacfwd(jax.grad(value)), *features) == 1


def test_what_it_can_not_do_names_what_can() -> None:
    graph = draw_graph("padded")
    query, key, attn = draw(WITH_GRADIENTS[0], graph, "float32")[0][:3]
    attend = partial(gat.gatv2_attention, query, key, attn, kernel="pallas")
    with pytest.raises(ValueError, match=r"runs on GPUs only, .* for cpu: kernel='auto' and"):
        attend(graph)
    with pytest.raises(ValueError, match=r"it does not return coefficients. kernel='jax' serves"):
        attend(graph, return_attention=True)
    with pytest.raises(ValueError, match=r"it does not read a bias of the scores"):
        attend(graph, score_bias=jnp.ones((graph.n_edges, 1)))
    edges = {"edge_features": jnp.ones((graph.n_edges, 2)), "edge_projection": jnp.ones((3, 5, 2))}
    with pytest.raises(ValueError, match=r"it does not read edge features"):
        attend(graph, **edges)
    with pytest.raises(ValueError, match=r"it does not read which heads use an edge"):
        attend(gat.Graph.from_mask(np.ones((N, M, 3), bool)))
    with pytest.raises(ValueError, match=r"one of \('auto', 'jax', 'numba'\); got 'pallas'"):
        attend(np.ones((N, M, 1), bool))
    none = gat.Graph.from_edge_index(np.zeros((2, 0), int), (0, M))
    empty = pallas_kernel.forward(
        Features(query[:0], key, attn, None, None),
        gat.random.as_seed(0),
        none,
        Options(SLOPE, 0.0, False),
    )
    assert [x.shape for x in empty] == [(0, 3, 5), (0, 3)]
