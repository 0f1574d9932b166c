"""How a graph is cut into parts, and how processes make them together."""

import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gatv2.distributed.agreement import gather_from_ranks, place_in
from gatv2.distributed.halo import Exchange
from gatv2.distributed.part import Data, PartData
from gatv2.graph import Graph
from gatv2.graph.check import check_once
from gatv2.graph.edge_index import check_ranges, queries_and_keys, read_edge_index
from gatv2.graph.edges import changed
from gatv2.numba.memory import Array as NumPyArray
from gatv2.options import Flow, check_sizes

_CHUNK = 1 << 22  # edges that are digested in one go


def split(graph: Graph, n_parts: int, build: type[Data]) -> list[Data]:
    """See `Partition.split`."""
    check_sizes(n_parts=n_parts)
    bounds = _equal_edges(graph, n_parts)
    parts = [_part_of(graph, bounds, rank, build) for rank in range(n_parts)]
    requests = [part.halo.split(part.halo_counts) for part in parts]
    split_id = _join([_digest(part) for part in parts])
    return [
        _connected(part, [request[part.rank] for request in requests], split_id) for part in parts
    ]


def from_graph(graph: Graph, group: "dist.ProcessGroup | None", build: type[Data]) -> Data:
    """See `Partition.from_graph`."""
    rank, n_parts = place_in(group)
    return _agreed(
        lambda: _part_of(graph, _equal_edges(graph, n_parts), rank, build),
        lambda: _tell_whole(graph),
        group,
    )


def from_edge_index(
    edge_index: Tensor | NumPyArray,
    bounds: Sequence[int],
    group: "dist.ProcessGroup | None",
    flow: Flow,
    build: type[Data],
) -> Data:
    """See `Partition.from_edge_index`."""
    rank, n_parts = place_in(group)

    def part() -> Data:
        limits = _checked_bounds(bounds, n_parts)
        whole, *n_nodes = read_edge_index(edge_index, limits[-1], flow)
        query, key = queries_and_keys(whole, flow)
        check_ranges(query, key, *n_nodes)
        if query.dtype not in (torch.int32, torch.int64):
            query, key = query.long(), key.long()
        start, end = limits[rank : rank + 2]
        _check_own(query, start, end, rank)
        edge_id = torch.arange(len(query), device=query.device)
        return _part(_Edges(query, key, edge_id, flow=flow), limits, rank, build)

    return _agreed(part, lambda: f", flow={flow!r}", group)


def _equal_edges(graph: Graph, n_parts: int) -> tuple[int, ...]:
    """Bounds of contiguous blocks of nodes with equal numbers of edges.

    Where nodes without edges leave a choice, it is the one nearest to equal numbers of nodes.
    """
    check_once(graph)
    if graph.n_queries != graph.n_keys or graph.n_blocks != 1 or graph.is_bipartite:
        raise ValueError(
            "only one graph of nodes that attend to one another is split over processes: its queries "
            f"are its keys, and n_blocks=1; got {graph.n_queries} queries, {graph.n_keys} keys, "
            f"n_blocks={graph.n_blocks} and is_bipartite={graph.is_bipartite}"
        )
    ptr = graph.query_ptr
    part = torch.arange(n_parts + 1, device=ptr.device)
    first = torch.searchsorted(ptr, (part * graph.n_edges // n_parts).to(ptr))
    last = torch.searchsorted(ptr, ptr[first], right=True) - 1
    return tuple((part * graph.n_queries // n_parts).clamp(first, last).tolist())


def _part_of(graph: Graph, bounds: tuple[int, ...], rank: int, build: type[Data]) -> Data:
    """A rank's part of a graph; what others fetch of it is still to come."""
    start, end = bounds[rank : rank + 2]
    own = slice(*graph.query_ptr[[start, end]].tolist())
    edge_id, order = graph.edge_id[own].sort()
    head_mask = None if graph.head_mask is None else graph.head_mask[own][order]
    query, key = (x[own][order] for x in (graph.query_index, graph.key_index))
    edges = _Edges(query, key, edge_id, head_mask, graph.query_id, graph.key_id, graph.flow)
    return _part(edges, bounds, rank, build)


class _Edges(NamedTuple):
    """The edges of own queries, in the caller's order, and the numbers of all nodes for dropout."""

    query: Tensor
    key: Tensor
    edge_id: Tensor
    head_mask: Tensor | None = None
    query_id: Tensor | None = None
    key_id: Tensor | None = None
    flow: Flow = "target_to_source"


def _part(edges: _Edges, bounds: tuple[int, ...], rank: int, build: type[Data]) -> Data:
    """A rank's part; what others fetch of it is still to come."""
    query, key, edge_id, head_mask, query_id, key_id, flow = edges
    (start, end), n_nodes = bounds[rank : rank + 2], bounds[-1]
    is_local = (key >= start) & (key < end)
    halo, place = _numbered(key[~is_local], n_nodes)
    own = torch.arange(start, end, device=key.device)

    def names(ids: Tensor | None, nodes: Tensor) -> Tensor:
        return nodes if ids is None else ids[nodes]

    def graph(chosen: Tensor, key: Tensor, keys: Tensor) -> Graph:
        edge_index = torch.stack((query[chosen] - start, key))
        graph = Graph.from_edge_index(edge_index, (end - start, len(keys)))
        return changed(
            graph,
            head_mask=None if head_mask is None else head_mask[chosen][graph.edge_id],
            query_id=names(query_id, own),
            key_id=names(key_id, keys),
            flow=flow,
        )

    return build(
        rank=rank,
        bounds=bounds,
        edge_id=edge_id,
        is_local=is_local,
        local=graph(is_local, key[is_local] - start, own),
        remote=graph(~is_local, place, halo),
        halo=halo,
        halo_counts=halo_counts_of(halo, bounds),
        sent=halo[:0],
        sent_counts=(0,) * (len(bounds) - 1),
        split_id="",
    )


def halo_counts_of(halo: Tensor, bounds: tuple[int, ...]) -> tuple[int, ...]:
    """How many of the nodes `halo`, which ascend, each rank has."""
    starts = torch.searchsorted(halo, torch.tensor(bounds, dtype=halo.dtype, device=halo.device))
    return tuple(starts.diff().tolist())


def _numbered(nodes: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """The different ones among some nodes, ascending, and the place of each node among them."""
    is_there = torch.zeros(n_nodes, dtype=torch.bool, device=nodes.device)
    is_there[nodes] = True
    different = is_there.nonzero().squeeze(1)
    place = torch.empty(n_nodes, dtype=nodes.dtype, device=nodes.device)
    place[different] = torch.arange(len(different), dtype=nodes.dtype, device=nodes.device)
    return different, place[nodes]


def _connected(part: Data, requests: Sequence[Tensor], split_id: str) -> Data:
    """A part with what others fetch of it: their numbers of its nodes, by rank."""
    sent = torch.cat(list(requests)) - part.bounds[part.rank]
    return replace(part, sent=sent, sent_counts=tuple(map(len, requests)), split_id=split_id)


class _Summary(NamedTuple):
    """What the others need to know of a part."""

    bounds: tuple[int, ...]
    whole: str
    halo_counts: tuple[int, ...]
    digest: bytes


def _agreed(
    make: Callable[[], Data], whole: Callable[[], str], group: "dist.ProcessGroup | None"
) -> Data:
    """The part that `make` returns, connected to those of the other processes."""
    made: list[Data] = []

    def summary() -> _Summary:
        part = make()
        made.append(part)
        return _Summary(part.bounds, whole(), part.halo_counts, _digest(part))

    summaries = gather_from_ranks(summary, group)
    (part,) = made
    if len({summary[:2] for summary in summaries}) > 1:
        of_ranks = (f"rank {rank}: bounds={s.bounds}{s.whole}" for rank, s in enumerate(summaries))
        raise ValueError(f"the processes split different graphs; {'; '.join(of_ranks)}")
    sent_counts = tuple(summary.halo_counts[part.rank] for summary in summaries)
    exchange = Exchange(part.halo_counts, sent_counts, group)
    exchange.begin(part.halo)
    requests = exchange.end().split(sent_counts)
    split_id = _join([summary.digest for summary in summaries])
    return _connected(replace(part, group=group), requests, split_id)


def _tell_whole(graph: Graph) -> str:
    """What processes compare of a whole graph: everything, as each uses but its own edges of it."""
    mask = graph.head_mask
    digest = hashlib.sha256(repr((graph.flow, None if mask is None else mask.shape)).encode())
    for tensor in (
        graph.query_ptr,
        graph.key_index,
        graph.edge_id,
        mask,
        graph.query_id,
        graph.key_id,
    ):
        digest.update(b"none" if tensor is None else str(tensor.dtype).encode())
        _add(tensor, digest)
    return f", edges={graph.n_edges}, flow={graph.flow!r}, digest={digest.hexdigest()[:16]}"


def _add(tensor: Tensor | None, digest: "hashlib._Hash") -> None:
    """Digest a tensor, which may be mapped, a piece at a time."""
    for piece in () if tensor is None else tensor.split(_CHUNK):
        digest.update(piece.cpu().contiguous().numpy().data)


def _digest(part: PartData) -> bytes:
    """What tells a part from any other one, but for the caller's numbers of its edges."""
    digest = hashlib.sha256(repr((part.rank, part.bounds)).encode())
    for graph in (part.local, part.remote):
        for tensor in (graph.query_ptr, graph.key_index, graph.key_id, graph.head_mask):
            _add(tensor, digest)
    return digest.digest()


def _join(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _checked_bounds(bounds: Sequence[int], n_parts: int) -> tuple[int, ...]:
    try:
        limits = tuple(map(operator.index, bounds))
    except TypeError as error:
        raise TypeError(
            f"`bounds` must be n_parts + 1 = {n_parts + 1} integers; got {bounds!r}: {error}"
        ) from None
    if len(limits) != n_parts + 1 or limits[0] != 0 or list(limits) != sorted(limits):
        raise ValueError(
            f"`bounds` must be n_parts + 1 = {n_parts + 1} numbers of nodes that do not descend, the "
            f"first of which is 0; got {limits}"
        )
    return limits


def _check_own(query: Tensor, start: int, end: int, rank: int) -> None:
    is_outside = (query < start) | (query >= end)
    if bool(is_outside.any()):
        edge = int(is_outside.nonzero()[0])
        raise IndexError(
            f"edge {edge} has query {int(query[edge])}, but the nodes of rank {rank} are those in "
            f"[{start}, {end}): pass the edges of its own queries"
        )
