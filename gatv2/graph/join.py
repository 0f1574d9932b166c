"""Many graphs as one: their edges are read where they are, or copied into one tensor first.

Of small graphs there are many, and what Python does for each of them takes longer than all else. So a
graph that has been in a batch has a record, a few bytes, and compiled code does the rest. It asks each
tensor anew where its memory is: the record says which tensors they are and keeps them, but it holds
nothing of what is in them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gatv2.graph.check import check_once
from gatv2.graph.edges import Edges, SortedEdges, changed, is_trusted, of_sorted, trusted
from gatv2.graph.sort import pointers, serves
from gatv2.numba.memory import Array as NumPyArray
from gatv2.numba.support import import_failure
from gatv2.options import FLOWS, Flow, common_flow
from gatv2.torch_internals import without_transforms

_RECORD = Struct("7q")
"""Addresses of three tensors; numbers of queries, of keys and of edges; the kind, in bits."""
_IS_TURNED, _IS_BIPARTITE, _HAS_MORE = 1, 2, 4
"""Bits of a kind: it is of the second flow, or bipartite, or has a mask of heads or numbers of nodes."""


class _Record(bytes):
    """Of one object, in one process: whatever is pickled with it, there is nothing left of it."""

    def __reduce__(self) -> tuple[type[bytes], tuple[()]]:
        return bytes, ()


_Edges: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""query_ptr, key_index, query_index and edge_id."""


class _Joined(NamedTuple):
    """What all graphs have, as one has it."""

    edges: _Edges
    n_keys: int
    flow: Flow
    is_bipartite: bool
    has_more: bool
    """Whether a graph has a mask of heads or numbers of nodes."""


def join(make: type[Edges], graphs: Sequence[Edges]) -> Edges:
    """What `gatv2.Graph.batch` gives, made by a class of graphs.

    Raises:
        ValueError: their masks are for different numbers of heads, or they were made with different
            flows.
        IndexError: a graph has been written to, so that a node or an edge is none of its own.
    """
    joined = None if torch.compiler.is_compiling() else _joined_in_place(graphs)
    edges, n_keys, flow, is_bipartite, has_more = joined or _joined_by_copies(graphs)
    if joined is None:
        batch = trusted(make(*edges, n_keys=n_keys, flow=flow, is_bipartite=is_bipartite))
    else:
        batch = of_sorted(make, edges, n_keys=n_keys, flow=flow, is_bipartite=is_bipartite)
    if not has_more:
        return batch
    return changed(
        batch,
        head_mask=_join_head_masks(graphs),
        query_id=_join_ids([(graph.query_id, graph.n_queries) for graph in graphs]),
        key_id=_join_ids([(graph.key_id, graph.n_keys) for graph in graphs]),
    )


def _joined_in_place(graphs: Sequence[SortedEdges]) -> _Joined | None:
    """Join graphs of int32 on the CPU; None if one is no such, or not as its record says."""
    kernels = _kernels()
    if kernels is None:
        return None
    try:
        records = [graph._gatv2_record for graph in graphs]
    except AttributeError:  # of graphs that are in a batch for the first time
        if not all(map(_has_record, graphs)):
            return None
        records = [graph._gatv2_record for graph in graphs]
    table = np.frombuffer(bytearray().join(records), np.int64)
    if table.nbytes != _RECORD.size * len(graphs):
        return None
    is_found, n_queries, n_keys, n_edges, some, each = kernels.find(table)
    if not is_found or (some ^ each) & _IS_TURNED or max(n_queries, n_keys, n_edges) >= 2**31:
        return None
    with without_transforms():  # which would wrap every new tensor
        edges = _tensors(kernels.join(table, n_queries, n_edges, np.int32))
    flow = FLOWS[some & _IS_TURNED]
    return _Joined(edges, n_keys, flow, bool(some & _IS_BIPARTITE), bool(some & _HAS_MORE))


class _Kernels(NamedTuple):
    """Functions of `gatv2.numba.joined`."""

    find: Callable[[NumPyArray], tuple[Any, ...]]
    join: Callable[..., tuple[NumPyArray, ...]]


@lru_cache(maxsize=1)
def _kernels() -> _Kernels | None:
    """What reads tensors where they are, if there is such: to import it each time takes a µs."""
    if import_failure() is not None:
        return None
    from gatv2.numba.dlpack import asker
    from gatv2.numba.joined import find_edges, join_edges

    function = asker(Tensor)
    return _Kernels(partial(find_edges, function), join_edges) if function else None


def _has_record(graph: SortedEdges) -> bool:
    """Make the record of a graph that has none; False where the graph can't be checked."""
    check_once(graph)
    if not is_trusted(graph):
        return False
    tensors = graph.query_index, graph.key_index, graph.edge_id
    # a subclass may have a mind of its own: zeros, with which `find_edges` fails; the rest it asks later
    is_plain = set(map(type, tensors)) == {Tensor} and not any(x.is_neg() for x in tensors)
    n_queries, n_keys = graph.n_queries, graph.n_keys
    kind = _HAS_MORE if _has_more(graph) else 0
    kind |= _IS_BIPARTITE if graph.is_bipartite or n_queries != n_keys else 0
    kind |= FLOWS.index(graph.flow) * _IS_TURNED
    addresses = map(id, tensors) if is_plain else (0, 0, 0)
    words = _RECORD.pack(*addresses, n_queries, n_keys, graph.n_edges, kind)
    if not hasattr(graph, "_gatv2_record"):
        # with the tensors whose addresses are in it
        graph.__dict__.update(_recorded=tensors, _gatv2_record=_Record(words))
    return True


def _has_more(graph: SortedEdges) -> bool:
    return not (graph.head_mask is graph.query_id is graph.key_id is None)


def _joined_by_copies(graphs: Sequence[SortedEdges]) -> _Joined:
    for graph in graphs:
        check_once(graph)
    flow = common_flow(graph.flow for graph in graphs)
    counts = [(graph.n_queries, graph.n_keys, graph.n_edges) for graph in graphs]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    parts = [graph.query_index for graph in graphs]
    parts += [graph.key_index for graph in graphs]
    parts += [graph.edge_id for graph in graphs]
    return _Joined(
        _join_parts(torch.cat(parts), np.array(counts), totals),
        totals[1],
        flow,
        any(graph.is_bipartite for graph in graphs) or any(q != k for q, k, _ in counts),
        any(map(_has_more, graphs)),
    )


def _join_parts(parts: Tensor, counts: NumPyArray, totals: Sequence[int]) -> _Edges:
    """Join edges that are in one tensor.

    Args:
        parts: query_index of one graph after another, then key_index, then edge_id, flat.
        counts: `[n_graphs, 3]`, numbers of queries, keys and edges of each.
        totals: the sums of each.
    """
    is_small = max(totals) < 2**31
    if serves(parts):
        from gatv2.numba.joined import join_edges, table_of

        dtype, n_queries, n_edges = np.int32 if is_small else np.int64, totals[0], totals[2]
        with without_transforms():
            array = parts.numpy()
            table = table_of(array, counts)
            return _tensors(join_edges(table, n_queries, n_edges, dtype, like=array))
    whole = parts.to(torch.int32 if is_small else torch.int64).view(3, -1)
    first = torch.from_numpy((counts.cumsum(0) - counts).T.repeat(counts[:, 2], 1)).to(whole)
    # each in memory of its own
    query_index, key_index, edge_id = (
        part + begin for part, begin in zip(whole, first, strict=True)
    )
    return pointers(query_index, totals[0]), key_index, query_index, edge_id


def _tensors(arrays: tuple[NumPyArray, ...]) -> _Edges:
    return tuple(map(torch.from_numpy, arrays))  # type: ignore[return-value]


def _join_head_masks(graphs: Sequence[SortedEdges]) -> Tensor | None:
    masks = [graph.head_mask for graph in graphs if graph.head_mask is not None]
    if not masks:
        return None
    heads = {mask.shape[1] for mask in masks}
    if len(heads) > 1:
        raise ValueError(f"masks in a batch must be for one number of heads; got {sorted(heads)}")
    return torch.cat(
        [
            masks[0].new_ones(graph.n_edges, *heads) if graph.head_mask is None else graph.head_mask
            for graph in graphs
        ]
    )


def _join_ids(ids: Sequence[tuple[Tensor | None, int]]) -> Tensor | None:
    """Numbers of the nodes of a batch: those that a graph gives them, else their positions.

    Args:
        ids: of each graph, with the number of its nodes.
    """
    given = [own for own, _ in ids if own is not None]
    if not given:
        return None
    n_nodes = [n for _, n in ids]
    positions = torch.arange(sum(n_nodes), device=given[0].device).split(n_nodes)
    return torch.cat(
        [
            position if own is None else own
            for position, (own, _) in zip(positions, ids, strict=True)
        ]
    )
