"""Half precision is computed in float32 and rounded once, of a hub with thousands of edges.

What the laws of all kernels do not ask: the static control, scores, and forward mode of plain JAX.
Single precision is summed as carefully, of a query with 100,000 edges.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from rounding import assert_rounded_once

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")

from gatv2.jax.sparse import reference  # noqa: E402

H, F, DEGREE = 2, 4, 3000
GIVEN = ["float16", "bfloat16"]


@pytest.fixture(autouse=True)
def _64_bits() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["sparse", "dense"])
def backend(request: pytest.FixtureRequest) -> Any:
    """Both backends in turn."""
    return request.param


def inputs(n_vectors: int, given: str, dtype: str) -> list[Any]:
    """Query, keys and vectors of heads, rounded; of one sign, so that nothing cancels."""
    rng = np.random.default_rng(0)
    shapes = ((1, H, F), (DEGREE, H, F), *((H, F),) * n_vectors)
    return [jnp.asarray(rng.random(shape), given).astype(dtype) for shape in shapes]


def star(backend: str) -> Any:
    """A query that attends to every key."""
    mask = np.ones((1, DEGREE, 1), bool)
    return mask if backend == "dense" else gat.Graph.from_mask(mask)


def assert_as_rounded(function: Callable[..., Any], n_vectors: int, given: str) -> None:
    """Assert that results in half precision are those in float64, rounded."""
    run = jax.jit(function)
    actual, exact = (run(*inputs(n_vectors, given, dtype)) for dtype in (given, "float64"))
    for a, e in zip(actual, exact, strict=True):
        assert a.dtype == given
        assert_rounded_once(gat.as_torch(a), gat.as_torch(e))


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_off_or_of_another_dtype_is_rejected(given: str) -> None:
    def off(query: Any, *_: Any) -> Any:
        return (query * (1 if query.dtype == "float64" else 1.1),)

    def wide(query: Any, *_: Any) -> Any:
        return (query.astype("float32"),)

    for function in (off, wide):
        with pytest.raises(AssertionError):
            assert_as_rounded(function, 1, given)


def with_gradients(function: Callable[..., Any], *features: Any) -> Any:
    """Results, and the gradients of random cotangents of theirs."""
    results, pullback = jax.vjp(function, *features)
    rng = np.random.default_rng(1)
    cotangents = [jnp.asarray(rng.random(x.shape), "bfloat16").astype(x.dtype) for x in results]
    return *results, *pullback(tuple(cotangents))


@pytest.mark.parametrize("given", GIVEN)
def test_of_the_static_control(backend: Any, given: str) -> None:
    attend = partial(gat.gat_attention, graph=star(backend), return_attention=True)
    assert_as_rounded(partial(with_gradients, attend), 2, given)


@pytest.mark.parametrize("given", GIVEN)
def test_of_scores(backend: Any, given: str) -> None:
    for function, n_vectors in ((gat.gatv2_scores, 1), (gat.gat_scores, 2)):

        def scores(*features: Any, function: Any = function) -> Any:
            return (function(*features, star(backend)),)

        assert_as_rounded(partial(with_gradients, scores), n_vectors, given)


@pytest.mark.parametrize("given", GIVEN)
def test_of_forward_mode(backend: Any, given: str) -> None:
    def along(*features: Any) -> Any:
        def attend(*features: Any) -> Any:
            return gat.gatv2_attention(
                *features, star(backend), kernel="jax", return_attention=True
            )

        return jax.jvp(attend, features, features)[1]

    assert_as_rounded(along, 1, given)


def long_row(of_attention: bool) -> tuple[list[Any], list[Any]]:
    """What a query with 100,000 edges has in float32, and in float64.

    Results, gradients of random cotangents, derivatives along a direction; of attention, or of the
    static control. Keys have one of four values, so that terms of a sum are rounded alike.
    """
    n = 100_000
    edge_index = np.stack((np.zeros(n, int), np.arange(n)))
    graph = gat.Graph.from_edge_index(edge_index, (1, n)).padded(n + 9)

    def attend(graph: Any, *features: Any) -> Any:
        if of_attention:
            options = {"return_attention": True, "return_lse": True, "kernel": "jax"}
            return gat.gatv2_attention(*features, graph, **options)
        return gat.gat_attention(*features, graph, return_attention=True)

    def run(graph: Any, *features: Any) -> Any:
        direction = tuple(x / 8 for x in features)  # of scores of order one
        along = jax.jvp(partial(attend, graph), features, direction)[1]
        return *with_gradients(partial(attend, graph), *features), *along

    rng = np.random.default_rng(0)
    vectors = [rng.random((H, F)) for _ in range(1 if of_attention else 2)]
    features = rng.random((1, H, F)), rng.random((4, H, F))[np.arange(n) % 4], *vectors
    single = [jnp.asarray(x, "float32") for x in features]
    compiled = jax.jit(run)
    return compiled(graph, *single), compiled(graph, *(x.astype("float64") for x in single))


def assert_summed_with_care(actual: list[Any], exact: list[Any]) -> None:
    """Assert that results in single precision are those in float64, but for a few roundings."""
    for a, e in zip(actual, exact, strict=True):
        assert a.dtype == "float32"
        assert_rounded_once(gat.as_torch(a), gat.as_torch(e))


@pytest.mark.parametrize("of_attention", [True, False])
def test_single_precision_of_a_long_row(of_attention: bool) -> None:
    assert_summed_with_care(*long_row(of_attention))


@pytest.mark.parametrize("of_attention", [True, False])
def test_one_term_after_another_is_rejected(
    of_attention: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_PIECE", 1 << 20)
    jax.clear_caches()  # of programs with short rows
    results = long_row(of_attention)
    jax.clear_caches()
    with pytest.raises(AssertionError, match="allowed"):
        assert_summed_with_care(*results)


def rows_and_plain(n_queries: int, n_edges: int) -> Any:
    """Rows of a random graph, some edges of it padding, and rows that are its queries."""
    query = np.random.default_rng(n_edges).integers(n_queries + 1, size=n_edges)
    edge_index = jnp.asarray(np.stack((query, query * 0)))
    graph = jax.jit(lambda edges: gat.Graph.from_edge_index(edges, (n_queries, 1)))(edge_index)
    index = graph.query_index
    return reference.rows_of_queries(graph), reference.Rows(index, index[:0])


@pytest.mark.parametrize("n_edges", [0, 1, 512, 513, 5000])
@pytest.mark.parametrize("n_queries", [0, 1, 3, 700])
def test_rows_are_short_and_sum_to_queries(n_queries: int, n_edges: int) -> None:
    both = rows_and_plain(n_queries, n_edges)
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.integers(9, size=(2, n_edges, 1)), "float32")  # sums are exact
    of_queries = jnp.asarray(rng.integers(9, size=(2, n_queries, 1)), "float32")

    def total(rows: Any) -> Any:
        nothing = rows.spread(of_queries * 0, -2)
        return rows.joined(reference.add_to_rows(nothing, rows.of_edge, values, -2), -2)

    def read(rows: Any) -> Any:
        return jax.vjp(lambda x: rows.read(x, -2, 7), of_queries)

    sums, expected = map(total, both)
    assert sums.shape == of_queries.shape
    assert (sums == expected).all()
    (at_edges, pullback), (expected, plain) = map(read, both)
    assert (at_edges == expected).all()
    assert (pullback(values)[0] == plain(values)[0]).all()
    assert longest(both[0], n_queries) <= 512
    assert (longest(both[1], n_queries) > 512) == (n_edges == 5000 and n_queries in (1, 3))


def longest(rows: Any, n_queries: int) -> int:
    """Number of edges of the row that has most; what is padding has no row."""
    is_edge = rows.read(jnp.ones((n_queries, 1)), -2)[:, 0] > 0
    return int(np.bincount(rows.of_edge[is_edge], minlength=1).max())
