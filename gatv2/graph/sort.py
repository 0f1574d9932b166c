"""A graph's edges sorted by query and by key: with our counting sort, or as PyTorch sorts."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gatv2.graph.edge_index import check_ranges, queries_and_keys
from gatv2.numba.memory import Array
from gatv2.numba.support import import_failure
from gatv2.options import Flow, Reduction, by_role
from gatv2.torch_internals import (
    fits_int32,
    is_exported_to_onnx,
    is_inspectable,
    is_watched,
    without_transforms,
)

Arrays = TypeVar("Arrays")


def sort_edges(
    edge_index: Tensor, n_queries: int, n_keys: int, flow: Flow
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort by (query, key), stably: query_ptr, key_index, query_index, edge_id.

    Raises:
        IndexError: an index is negative or past the end.
    """
    if serves(edge_index):
        with without_transforms():
            sort = _counting_sort().sort_edges
            ptr, key_index, query_index, edge_id = map(
                torch.from_numpy, _counted(sort, edge_index, n_queries, n_keys, flow)
            )
        return ptr, key_index, query_index, edge_id
    query, key = queries_and_keys(edge_index, flow)
    if is_inspectable(query):
        check_ranges(query, key, n_queries, n_keys)
    counts = query.shape[0], n_queries, n_keys
    dtype = torch.int32 if all(map(fits_int32, counts)) else torch.int64
    query, key = query.to(dtype), key.to(dtype)
    _, by_key = _stable_sort(key)
    query_index, by_query = _stable_sort(query[by_key])
    edge_id = by_key[by_query]
    return pointers(query_index, n_queries), key[edge_id], query_index, edge_id.to(dtype)


def sort_both_ways(
    edge_index: Tensor, n_queries: int, n_keys: int, flow: Flow
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None:
    """What `sort_edges` gives, and what `sort_by_key` makes of it; None where that is not faster.

    Of an edge index that is inspectable.

    Raises:
        IndexError: an index is negative or past the end.
    """
    counting_sort = _counting_sort() if edge_index.is_cpu else None
    if counting_sort is None:
        return None
    sort = counting_sort.sort_both_ways
    with without_transforms():
        edges, by_key = _counted(sort, edge_index, n_queries, n_keys, flow, torch.get_num_threads())
        return tuple(map(torch.from_numpy, edges)), tuple(map(torch.from_numpy, by_key))


def sort_by_key(
    query_ptr: Tensor, key_index: Tensor, query_index: Tensor, n_keys: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort what is sorted by (query, key) by (key, query): what `gatv2.graph.KeyOrder` has."""
    if serves(key_index):
        with without_transforms():
            order = _counting_sort().transpose(query_ptr.numpy(), key_index.numpy(), n_keys)
            ptr, edge, query = map(torch.from_numpy, order)
        return ptr, edge, query
    sorted_keys, edge = _stable_sort(key_index)
    ptr = pointers(sorted_keys, n_keys)
    return ptr, edge.to(ptr.dtype), query_index[edge]


def merge_loops(
    query_ptr: Tensor, key_index: Tensor, edge_id: Tensor, n_keys: int, n_loops: int
) -> tuple[Tensor, ...] | None:
    """What `gatv2.numba.self_loops.add_self_loops` makes of a graph; None where it can't."""
    if not serves(key_index):
        return None
    from gatv2.numba.self_loops import add_self_loops

    with without_transforms():
        merged = add_self_loops(
            query_ptr.numpy(), key_index.numpy(), edge_id.numpy(), n_keys, n_loops
        )
        return tuple(map(torch.from_numpy, merged))


def fill_features(
    features: Tensor,
    kept: Tensor,
    query_ptr: Tensor,
    edge_id: Tensor,
    n_loops: int,
    filling: Tensor | Reduction,
) -> Tensor | None:
    """What `gatv2.numba.self_loops.fill_features` makes of edge features; None where it can't."""
    tensors = [x for x in (features, filling) if isinstance(x, Tensor)]
    if (
        features.ndim != 2
        or not features.is_cpu
        or features.layout is not torch.strided
        or features.dtype not in (torch.float32, torch.float64)
        or any(type(x) is not Tensor or x.requires_grad for x in tensors)
        or is_watched()
        or not serves(edge_id)
    ):
        return None
    given: Array | Literal["mean", "sum"]
    if isinstance(filling, Tensor):
        given = filling.numpy(force=True)  # of one that is to be negated, too
    elif filling == "mean" or filling == "sum":
        given = filling
    else:
        return None
    from gatv2.numba import self_loops

    arrays = features.numpy(force=True), kept.numpy(), query_ptr.numpy(), edge_id.numpy()
    filled = self_loops.fill_features(*arrays, n_loops, given, torch.get_num_threads())
    return None if filled is None else torch.from_numpy(filled)


def serves(index: Tensor) -> bool:
    """Whether what is compiled for the CPU can read a graph: not elsewhere, nor under a transform."""
    return index.is_cpu and is_inspectable(index) and _counting_sort() is not None


@cache
def _counting_sort() -> Any:
    """The module, None without Numba; to import it each time takes a µs."""
    if import_failure() is not None:
        return None
    from gatv2.numba import counting_sort

    return counting_sort


def _counted(
    sort: Callable[..., Arrays],
    edge_index: Tensor,
    n_queries: int,
    n_keys: int,
    flow: Flow,
    *options: int,
) -> Arrays:
    """What one of our sorts gives; to be called without transforms, which would wrap new tensors."""
    query, key = by_role(edge_index.numpy(), flow)
    try:
        return sort(query, key, n_queries, n_keys, *options)
    except IndexError:
        check_ranges(*queries_and_keys(edge_index, flow), n_queries, n_keys)  # which says more
        raise


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
