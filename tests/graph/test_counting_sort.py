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
