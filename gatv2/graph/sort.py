"""A graph's edges sorted by query and by key: with our counting sort, or as PyTorch sorts."""

import torch
from torch import Tensor

from gatv2.graph.edge_index import check_ranges
from gatv2.numba.support import import_failure
from gatv2.torch_internals import (
    fits_int32,
    is_exported_to_onnx,
    is_inspectable,
    without_transforms,
)


def sort_edges(
    query: Tensor, key: Tensor, n_queries: int, n_keys: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort by (query, key), stably: query_ptr, key_index, query_index, edge_id.

    Raises:
        IndexError: an index is negative or past the end.
    """
    if _has_counting_sort(query):
        from gatv2.numba import counting_sort

        with without_transforms():  # which would wrap every new tensor
            try:
                arrays = counting_sort.sort_edges(
                    query.detach().numpy(), key.detach().numpy(), n_queries, n_keys
                )
            except IndexError:
                check_ranges(query, key, n_queries, n_keys)  # which says more
                raise
            ptr, key_index, query_index, edge_id = map(torch.from_numpy, arrays)
        return ptr, key_index, query_index, edge_id
    if is_inspectable(query):
        check_ranges(query, key, n_queries, n_keys)
    counts = query.shape[0], n_queries, n_keys
    dtype = torch.int32 if all(map(fits_int32, counts)) else torch.int64
    query, key = query.to(dtype), key.to(dtype)
    _, by_key = _stable_sort(key)
    query_index, by_query = _stable_sort(query[by_key])
    edge_id = by_key[by_query]
    return pointers(query_index, n_queries), key[edge_id], query_index, edge_id.to(dtype)


def sort_by_key(
    query_ptr: Tensor, key_index: Tensor, query_index: Tensor, n_keys: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort what is sorted by (query, key) by (key, query): what `gatv2.graph.KeyOrder` has."""
    if _has_counting_sort(key_index):
        from gatv2.numba import counting_sort

        with without_transforms():
            order = counting_sort.transpose(
                query_ptr.detach().numpy(), key_index.detach().numpy(), n_keys
            )
            ptr, edge, query = map(torch.from_numpy, order)
        return ptr, edge, query
    sorted_keys, edge = _stable_sort(key_index)
    ptr = pointers(sorted_keys, n_keys)
    return ptr, edge.to(ptr.dtype), query_index[edge]


def _has_counting_sort(index: Tensor) -> bool:
    """Ours is compiled for the CPU; elsewhere, and under a transform, PyTorch sorts."""
    return index.device.type == "cpu" and is_inspectable(index) and import_failure() is None


def _stable_sort(values: Tensor) -> tuple[Tensor, Tensor]:
    # ONNX has no other sort than TopK, which is stable: of equal values it takes the first one first
    in_onnx = is_exported_to_onnx()
    ordered, position = torch.sort(values) if in_onnx else torch.sort(values, stable=True)
    return ordered, position


def pointers(sorted_index: Tensor, n_nodes: int) -> Tensor:
    """Where the indices of each node start among indices that ascend: `[n_nodes + 1]`."""
    # not searchsorted, which ONNX has not
    ones = torch.ones_like(sorted_index)
    counts = sorted_index.new_zeros(n_nodes + 1).index_add(0, sorted_index + 1, ones)
    return counts.cumsum(0).to(sorted_index.dtype)
