"""An order of keys is cut as NumPy would cut it, or refused if it is that of other edges."""

from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

parts = pytest.importorskip("gatv2.numba.parts", reason="needs Numba")

Array: TypeAlias = np.ndarray[Any, Any]

LENGTHS = (0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 40)
"""Of the edges of a key in a part: around how many are looked at together, and twice that."""
N_PARTS = 4
DTYPES = (np.int32, np.int64)


def graph(lengths: Array, dtype: Any) -> tuple[Array, list[Array]]:
    """`query_ptr` and the order of keys of a graph.

    Args:
        lengths: `[blocks of 8 queries, keys]`, edges of each key.
        dtype: of the indices.
    """
    rng, n_keys = np.random.default_rng(0), lengths.shape[1]
    of_block = [np.repeat(np.arange(n_keys), n) for n in lengths]
    key = np.concatenate([rng.permutation(x) for x in of_block])
    query = np.concatenate(
        [8 * i + np.arange(x.size) * 8 // max(x.size, 1) for i, x in enumerate(of_block)]
    )
    edge = np.lexsort((query, key))
    query_ptr = np.searchsorted(query, np.arange(8 * len(lengths) + 1))
    key_ptr = np.searchsorted(key[edge], np.arange(n_keys + 1))
    return query_ptr.astype(dtype), [x.astype(dtype) for x in (key_ptr, edge, query[edge])]


def equal_blocks(dtype: Any) -> tuple[Array, list[Array]]:
    """A graph that is cut where its blocks end: each has a key, or many, for each of `LENGTHS`."""
    rng = np.random.default_rng(1)
    return graph(np.stack([rng.permutation(LENGTHS * 5) for _ in range(N_PARTS)]), dtype)


def assert_is_cut(found: Any, query_ptr: Array, order: list[Array]) -> None:
    """Parts follow one another, each of whole queries, with the edges of each key as they were."""
    key_ptr, edges, queries = order
    key = np.repeat(np.arange(key_ptr.size - 1), np.diff(key_ptr))
    end = 0
    for part in found:
        assert part.first_edge == end
        end += part.n_edges
        assert end in query_ptr
        is_in = (part.first_edge <= edges) & (edges < end)
        starts = np.searchsorted(key[is_in], np.arange(key_ptr.size))
        expected = starts, edges[is_in] - part.first_edge, queries[is_in]
        for actual, e in zip(part.key_order, expected, strict=True):
            assert actual.dtype == key_ptr.dtype
            np.testing.assert_array_equal(actual, e)
    assert end == edges.size


def test_a_wrong_cut_is_noticed() -> None:
    query_ptr, order = equal_blocks(np.int32)
    first, *rest = parts.cut(N_PARTS, N_PARTS, query_ptr, tuple(order), 1)
    assert_is_cut([first, *rest], query_ptr, order)
    ptr, edges, queries = first.key_order
    for wrong in (
        [first, *rest[:-1]],
        [*rest, first],
        [first._replace(n_edges=first.n_edges - 1), *rest],
        [first._replace(key_order=(ptr, edges[::-1], queries)), *rest],
        [first._replace(key_order=(ptr, edges.astype(np.int64), queries)), *rest],
    ):
        with pytest.raises(AssertionError):
            assert_is_cut(wrong, query_ptr, order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks_of_a_part", [1, 3, 40])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_all_lengths(dtype: Any, chunks_of_a_part: int, n_threads: int) -> None:
    query_ptr, order = equal_blocks(dtype)
    found = parts.cut(N_PARTS, N_PARTS * chunks_of_a_part, query_ptr, tuple(order), n_threads)
    assert_is_cut(found, query_ptr, order)
    assert len(found) == N_PARTS
    assert {int(n) for part in found for n in np.diff(part.key_order[0])} == set(LENGTHS)


@given(
    lengths=st.lists(
        st.lists(st.sampled_from((*LENGTHS, 100)), min_size=5, max_size=5), min_size=1, max_size=6
    ),
    dtype=st.sampled_from(DTYPES),
    n_parts=st.integers(1, 5),
    n_chunks=st.integers(5, 30),
)
def test_any_graph(lengths: list[list[int]], dtype: Any, n_parts: int, n_chunks: int) -> None:
    query_ptr, order = graph(np.array(lengths), dtype)
    results = [parts.cut(n_parts, n_chunks, query_ptr, tuple(order), n) for n in (1, 2)]
    for found in results:
        assert_is_cut(found, query_ptr, order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("array", [1, 2])
@pytest.mark.parametrize("value", ["negative", "size", "far", "least", "of another part"])
def test_one_wrong_number_is_found_anywhere(dtype: Any, array: int, value: str) -> None:
    query_ptr, order = equal_blocks(dtype)
    size = (query_ptr[-1], query_ptr.size - 1)[array - 1]
    # far is 0 in its lower half
    far, least = (1 << 32 if dtype == np.int64 else 1 << 30), np.iinfo(dtype).min
    for at in (*range(0, 200, 7), *range(order[1].size - 20, order[1].size)):
        is_in_first = order[1][at] < order[1].size // N_PARTS
        wrong = {"negative": -1, "size": size, "far": far, "least": least}
        wrong["of another part"] = size - 1 if is_in_first else 0
        written = [x.copy() for x in order]
        written[array][at] = wrong[value]
        with pytest.raises(ValueError, match="by_key"):
            parts.cut(N_PARTS, 2 * N_PARTS, query_ptr, tuple(written), 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_edge_of_another_part_is_found_anywhere(dtype: Any) -> None:
    """Also where there are as many of each part as there should be."""
    query_ptr, order = equal_blocks(dtype)
    for at in np.flatnonzero(order[1] >= order[1].size // N_PARTS)[::17]:
        written = [x.copy() for x in order]
        written[1][at] = 0
        with pytest.raises(ValueError, match="by_key"):
            parts.cut(N_PARTS, 2 * N_PARTS, query_ptr, tuple(written), 2)


@given(data=st.data(), dtype=st.sampled_from(DTYPES), n_chunks=st.integers(N_PARTS, 30))
def test_what_is_not_refused_is_in_range(data: st.DataObject, dtype: Any, n_chunks: int) -> None:
    """Whatever has been written to an order of keys."""
    query_ptr, order = equal_blocks(dtype)
    written = [x.copy() for x in order]
    for _ in range(data.draw(st.integers(1, 4))):
        array = data.draw(st.sampled_from(written))
        at = data.draw(st.integers(0, array.size - 1))
        limits = np.iinfo(dtype)
        near, far = st.integers(-2, int(query_ptr[-1]) + 2), st.integers(limits.min, limits.max)
        array[at] = data.draw(near | far)
    if data.draw(st.booleans()):
        written[1] = written[1][::-1].copy()
    try:
        found = parts.cut(N_PARTS, n_chunks, query_ptr, tuple(written), 2)
    except ValueError:
        found = []
    for part in found:
        ptr, edges, queries = part.key_order
        assert (ptr[0], ptr[-1]) == (0, part.n_edges)
        assert (np.diff(ptr) >= 0).all()
        assert edges.size == queries.size == part.n_edges
        for numbers, size in ((edges, part.n_edges), (queries, query_ptr.size - 1)):
            assert ((numbers >= 0) & (numbers < size)).all()
