"""The counting sort gives the arrays that PyTorch's stable sort gives."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2.testing import SIZES, edge_indices

counting_sort = pytest.importorskip("gatv2.numba.counting_sort", reason="needs Numba")
team = pytest.importorskip("gatv2.numba.team", reason="needs Numba")

Array = np.ndarray[Any, Any]


def sorted_by_torch(query: Tensor, key: Tensor, n_queries: int) -> list[Tensor]:
    """`query_ptr`, `key_index`, `query_index` and `edge_id` by two stable sorts."""
    by_key = torch.argsort(key, stable=True)
    edge_id = by_key[torch.argsort(query[by_key], stable=True)]
    ptr = torch.bincount(query.long(), minlength=n_queries).cumsum(0)
    ptr = torch.cat((torch.zeros(1, dtype=torch.int64), ptr))
    return [x.int() for x in (ptr, key[edge_id], query[edge_id], edge_id)]


def assert_same(actual: Array, expected: Tensor) -> None:
    """Assert that an array has the elements of a tensor, in the smaller integers."""
    assert actual.dtype == np.int32
    assert torch.equal(torch.from_numpy(actual), expected)


def test_assert_same_rejects() -> None:
    assert_same(np.arange(3, dtype=np.int32), torch.arange(3, dtype=torch.int32))
    for actual in (np.zeros(3, np.int32), np.arange(3, dtype=np.int64)):
        with pytest.raises(AssertionError):
            assert_same(actual, torch.arange(3, dtype=torch.int32))


@given(data=st.data())
def test_sorts_as_torch_does(data: Any) -> None:
    n_queries, n_keys = (data.draw(st.sampled_from((0, *SIZES))) for _ in range(2))
    dtype = data.draw(st.sampled_from((torch.int64, torch.int32, torch.int16, torch.uint8)))
    query, key = data.draw(edge_indices(n_queries, n_keys)).to(dtype)
    result = counting_sort.sort_edges(query.numpy(), key.numpy(), n_queries, n_keys)
    for actual, expected in zip(result, sorted_by_torch(query, key, n_queries), strict=True):
        assert_same(actual, expected)
    query_ptr, key_index, query_index, _ = result
    by_key = counting_sort.transpose(query_ptr, key_index, n_keys)
    keys, queries = torch.from_numpy(key_index), torch.from_numpy(query_index)
    ptr, _, _, edge = sorted_by_torch(keys, queries, n_keys)
    query_by_key = queries[edge.long()]
    for actual, expected in zip(by_key, (ptr, edge, query_by_key), strict=True):
        assert_same(actual, expected)
    both = counting_sort.sort_both_ways(query.numpy(), key.numpy(), n_queries, n_keys)
    for actual, array in zip(itertools.chain(*both), (*result, *by_key), strict=True):
        assert_same(actual, torch.from_numpy(array))


def test_rows_of_a_larger_array() -> None:
    edge_index = np.array([[1, 0, 0], [0, 1, 0]]).T.copy().T  # strided rows
    ptr, key_index, _, edge_id = counting_sort.sort_edges(*edge_index, 2, 2)
    assert ptr.tolist() == [0, 2, 3]
    assert key_index.tolist() == [0, 1, 0]
    assert edge_id.tolist() == [2, 1, 0]


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Both orders are made side by side however small the graph is; the numbers of threads that were."""
    monkeypatch.setattr(counting_sort, "LARGE", 0)
    original, seen = counting_sort._sort_side_by_side, []

    def spy(*arguments: Any) -> int:
        seen.append(arguments[-1])
        return int(original(*arguments))

    monkeypatch.setattr(counting_sort, "_sort_side_by_side", spy)
    # if there is none at the moment, one thread makes both
    monkeypatch.setattr(counting_sort, "runtime", lambda: team.Runtime(1, 1))
    return seen


@pytest.mark.parametrize("sizes", [(0, 0, 0), (1, 1, 5), (7, 300, 900), (300, 7, 900), (50, 40, 3)])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_side_by_side_the_same(
    side_by_side: list[int], sizes: tuple[int, int, int], dtype: str
) -> None:
    n_queries, n_keys, n_edges = sizes
    generator = np.random.default_rng(0)
    edge_index = [
        (generator.integers(max(n, 1), size=n_edges) % 256).astype(dtype)
        for n in (n_queries, n_keys)
    ]
    expected = counting_sort.sort_both_ways(*edge_index, n_queries, n_keys, n_threads=1)
    for n_threads in (2, 3):
        actual = counting_sort.sort_both_ways(*edge_index, n_queries, n_keys, n_threads)
        for one, other in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
            assert_same(one, torch.from_numpy(other))
    assert side_by_side == [2, 3]


@pytest.mark.parametrize(
    ("query", "key", "first"),
    [([0, 2], [0, 0], 1), ([0, 0], [-1, 0], 0), ([0, 9], [3, 0], 0), ([-1, 0], [0, 3], 0)],
)
def test_side_by_side_the_same_edge_is_out_of_range(
    side_by_side: list[int], query: list[int], key: list[int], first: int
) -> None:
    for n_threads in (1, 2):
        with pytest.raises(IndexError, match=rf"edge {first} is out of range"):
            counting_sort.sort_both_ways(np.array(query), np.array(key), 2, 3, n_threads)
    assert side_by_side == [2]
