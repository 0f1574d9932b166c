"""The counting sort gives the arrays that PyTorch's stable sort gives."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2.testing import SIZES, edge_indices

counting_sort = pytest.importorskip("gatv2.numba.counting_sort", reason="needs Numba")


def sorted_by_torch(query: Tensor, key: Tensor, n_queries: int) -> list[Tensor]:
    """`query_ptr`, `key_index`, `query_index` and `edge_id` by two stable sorts."""
    by_key = torch.argsort(key, stable=True)
    edge_id = by_key[torch.argsort(query[by_key], stable=True)]
    ptr = torch.bincount(query.long(), minlength=n_queries).cumsum(0)
    ptr = torch.cat((torch.zeros(1, dtype=torch.int64), ptr))
    return [x.int() for x in (ptr, key[edge_id], query[edge_id], edge_id)]


@given(data=st.data())
def test_sorts_as_torch_does(data: Any) -> None:
    n_queries, n_keys = (data.draw(st.sampled_from((0, *SIZES))) for _ in range(2))
    dtype = data.draw(st.sampled_from((torch.int64, torch.int32, torch.int16, torch.uint8)))
    query, key = data.draw(edge_indices(n_queries, n_keys)).to(dtype)
    result = counting_sort.sort_edges(query, key, n_queries, n_keys)
    for actual, expected in zip(result, sorted_by_torch(query, key, n_queries), strict=True):
        assert actual.dtype == torch.int32
        assert torch.equal(actual, expected)
    query_ptr, key_index, query_index, _ = result
    by_key = counting_sort.transpose(query_ptr, key_index, n_keys)
    ptr, _, keys_query, edge = sorted_by_torch(key_index, query_index, n_keys)
    del keys_query
    for actual, expected in zip(by_key, (ptr, edge, query_index[edge.long()]), strict=True):
        assert actual.dtype == torch.int32
        assert torch.equal(actual, expected)


def test_rows_of_a_larger_tensor() -> None:
    edge_index = torch.tensor([[1, 0, 0], [0, 1, 0]]).T.contiguous().T  # strided rows
    ptr, key_index, _, edge_id = counting_sort.sort_edges(*edge_index, 2, 2)
    assert ptr.tolist() == [0, 2, 3]
    assert key_index.tolist() == [0, 1, 0]
    assert edge_id.tolist() == [2, 1, 0]
