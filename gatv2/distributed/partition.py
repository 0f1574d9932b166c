"""Partition: one process's part of a graph, and what it exchanges with the others."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gatv2.distributed.agreement import of_all_ranks, place_in
from gatv2.distributed.halo import Exchange
from gatv2.graph import Flow, Graph, check_flow


class Loops(NamedTuple):
    """A part with one self-loop at each own node; as `gatv2.graph.SelfLoops` has it of a graph."""

    graph: "Partition"
    kept: Tensor
    """Positions of the edges that are no self-loops, ascending."""
    query: Tensor
    """Own rows of the queries of those edges."""


@dataclass(frozen=True, eq=False, repr=False)
class Partition:
    """One process's part of a graph: a block of nodes, and all edges by which they attend to others.

    Nodes are split into contiguous blocks, one a process ("rank"), with equal numbers of edges: no
    part has more than an n-th of all edges and the largest degree together. Edges to keys of the
    same block are `local`. The other keys, the `halo`, belong to other ranks, which send their rows
    to every layer: an edge to one of them is `remote`.

    A layer takes a part in the place of the graph, and the features of the part's own nodes in the
    place of all: `layer(h[partition.own], partition)` are the rows `partition.own` of `layer(h, graph)`,
    in training too, as dropout knows the nodes by their numbers in the whole graph. All ranks call it
    together.

    A part's edges are in the order of the caller's numbers, `edge_id`: features of edges come in that
    order, `edge_features[partition.edge_id]`, and attention weights go out in it.

    Attributes:
        rank: which part it is.
        bounds: `n_parts + 1` ints; the nodes of rank r are `bounds[r]` to `bounds[r + 1] - 1`.
        edge_id: `[n_edges]`, the caller's numbers of the part's edges, ascending; -1 for self-loops
            that were added.
        is_local: `[n_edges]`, bool, whether the key is an own node.
        local: the edges among own nodes, which are numbered from the block's start.
        remote: the edges to nodes of other ranks, which are numbered by their place in `halo`.
        halo: `[n_halo]`, int64, the nodes whose rows are fetched, ascending and so grouped by rank.
        halo_counts: how many of them each rank sends.
        sent: `[n_sent]`, int64, own rows that others fetch, grouped by who does.
        sent_counts: how many of them each rank fetches.
        split_id: the same for all parts of one split, and another one for another.
        group: the processes; None for the default group of `torch.distributed`.

    Example:
        A ring of six nodes, each of which attends to the next one:

        >>> node = torch.arange(6)
        >>> graph = Graph.from_edge_index(torch.stack((node, (node + 1) % 6)), n_nodes=6)
        >>> first, second = Partition.split(graph, n_parts=2)
        >>> first
        Partition(rank=0, n_parts=2, n_nodes=6, n_own=3, n_edges=3, n_halo=1, n_sent=1)
        >>> first.halo, second.sent  # node 2 attends to node 3, which is row 0 of rank 1
        (tensor([3]), tensor([0]))
    """

    rank: int
    bounds: tuple[int, ...]
    edge_id: Tensor
    is_local: Tensor
    local: Graph
    remote: Graph
    halo: Tensor
    halo_counts: tuple[int, ...]
    sent: Tensor
    sent_counts: tuple[int, ...]
    split_id: str
    group: "dist.ProcessGroup | None" = None

    @classmethod
    def split(cls, graph: Graph, n_parts: int) -> list["Partition"]:
        """All parts of a graph, in one process and without `torch.distributed`.

        Args:
            graph: one graph (no batch) of nodes that attend to one another.
            n_parts: number of parts. With more parts than nodes, some are empty.

        Raises:
            ValueError: the graph is bipartite or a batch, or `n_parts` is not positive.
        """
        if n_parts < 1:
            raise ValueError(f"`n_parts` must be positive; got {n_parts}")
        bounds = _equal_edges(graph, n_parts)
        parts = [_part_of(graph, bounds, rank) for rank in range(n_parts)]
        requests = [part.halo.split(part.halo_counts) for part in parts]
        split_id = _join([_digest(part) for part in parts])
        return [
            part._connected_to([request[part.rank] for request in requests], split_id)
            for part in parts
        ]

    @classmethod
    def from_graph(cls, graph: Graph, group: "dist.ProcessGroup | None" = None) -> "Partition":
        """This process's part of a graph, which every process of the group passes.

        Args:
            graph: as for :meth:`split`. It may be memory-mapped: of the edges only own ones are read.
            group: a group of `torch.distributed`, of any backend; None for the default one.

        Raises:
            RuntimeError: there is no group, or another process raised.
            ValueError: as for :meth:`split`; or the processes have different graphs.
        """
        rank, n_parts = place_in(group)
        return _agreed(
            lambda: _part_of(graph, _equal_edges(graph, n_parts), rank), graph.n_edges, group
        )

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        bounds: Sequence[int],
        group: "dist.ProcessGroup | None" = None,
        *,
        flow: Flow = "target_to_source",
    ) -> "Partition":
        """This process's part, made of the edges of its own queries: no process needs them all.

        Args:
            edge_index: `[2, n_edges]`, integer, in the whole graph's numbers of nodes; `edge_id` are
                positions in it. Every query is a node of this rank.
            bounds: the nodes of rank r are `bounds[r]` to `bounds[r + 1] - 1`; the same everywhere.
            group: a group of `torch.distributed`, of any backend; None for the default one.
            flow: what row 0 holds, as in :meth:`gatv2.Graph.from_edge_index`.

        Raises:
            RuntimeError: there is no group, or another process raised.
            TypeError: `edge_index` is not an integer tensor.
            ValueError: `edge_index` or `bounds` are of another form, or the processes' bounds differ.
            IndexError: a query is not this rank's, or there is no such key.
        """
        rank, n_parts = place_in(group)

        def part() -> Partition:
            check_flow(flow)
            limits = _checked_bounds(bounds, n_parts)
            query, key = edge_index if flow == "target_to_source" else edge_index.flip(0)
            start, end = limits[rank : rank + 2]
            _check_nodes(query, "query", start, end, f"the nodes of rank {rank}")
            _check_nodes(key, "key", 0, limits[-1], "the nodes of all ranks")
            edge_id = torch.arange(edge_index.shape[1], device=edge_index.device)
            return _part(query, key, edge_id, limits, rank)

        return _agreed(part, None, group)

    @property
    def n_parts(self) -> int:
        """Number of parts, and of processes."""
        return len(self.bounds) - 1

    @property
    def n_nodes(self) -> int:
        """Number of nodes of the whole graph."""
        return self.bounds[-1]

    @property
    def own(self) -> slice:
        """The part's own nodes."""
        return slice(*self.bounds[self.rank : self.rank + 2])

    @property
    def n_own(self) -> int:
        """Number of own nodes."""
        return self.local.n_queries

    @property
    def n_edges(self) -> int:
        """Number of edges of the part: those of own queries."""
        return self.edge_id.shape[0]

    @property
    def self_loops(self) -> Loops:
        """The part with self-loops, and which edges it has of this one; made when first asked for."""
        if "_self_loops" not in self.__dict__:
            self.__dict__["_self_loops"] = _add_self_loops(self)
        loops: Loops = self.__dict__["_self_loops"]
        return loops

    def to(self, device: torch.device | str) -> "Partition":
        """The part on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, Graph))
        }
        return replace(self, **moved)

    def __repr__(self) -> str:
        return (
            f"Partition(rank={self.rank}, n_parts={self.n_parts}, n_nodes={self.n_nodes}, "
            f"n_own={self.n_own}, n_edges={self.n_edges}, n_halo={len(self.halo)}, "
            f"n_sent={len(self.sent)})"
        )

    def _connected_to(self, requests: Sequence[Tensor], split_id: str) -> "Partition":
        """The part with what others fetch of it: their numbers of its nodes, by rank."""
        sent = torch.cat(list(requests)) - self.bounds[self.rank]
        return replace(self, sent=sent, sent_counts=tuple(map(len, requests)), split_id=split_id)


def _equal_edges(graph: Graph, n_parts: int) -> tuple[int, ...]:
    """Bounds of contiguous blocks of nodes with equal numbers of edges.

    Where nodes without edges leave a choice, it is the one nearest to equal numbers of nodes.
    """
    if graph.n_queries != graph.n_keys or graph.n_blocks != 1:
        raise ValueError(
            "only one graph of nodes that attend to one another is split over processes: its queries "
            f"are its keys, and n_blocks=1; got {graph.n_queries} queries, {graph.n_keys} keys and "
            f"n_blocks={graph.n_blocks}"
        )
    ptr = graph.query_ptr
    part = torch.arange(n_parts + 1, device=ptr.device)
    first = torch.searchsorted(ptr, (part * graph.n_edges // n_parts).to(ptr))
    last = torch.searchsorted(ptr, ptr[first], right=True) - 1
    return tuple((part * graph.n_queries // n_parts).clamp(first, last).tolist())


def _part_of(graph: Graph, bounds: tuple[int, ...], rank: int) -> Partition:
    """A rank's part of a graph; what others fetch of it is still to come."""
    start, end = bounds[rank : rank + 2]
    edges = slice(*graph.query_ptr[[start, end]].tolist())
    edge_id, order = graph.edge_id[edges].sort()
    head_mask = None if graph.head_mask is None else graph.head_mask[edges][order]
    query, key = (x[edges][order] for x in (graph.query_index, graph.key_index))
    return _part(query, key, edge_id, bounds, rank, head_mask, graph.query_id, graph.key_id)


def _part(
    query: Tensor,
    key: Tensor,
    edge_id: Tensor,
    bounds: tuple[int, ...],
    rank: int,
    head_mask: Tensor | None = None,
    query_id: Tensor | None = None,
    key_id: Tensor | None = None,
) -> Partition:
    """A rank's part, of its edges in the caller's order; what others fetch of it is still to come."""
    (start, end), n_nodes = bounds[rank : rank + 2], bounds[-1]
    is_local = (key >= start) & (key < end)
    halo, place = _numbered(key[~is_local], n_nodes)
    own = torch.arange(start, end, device=key.device)

    def names(ids: Tensor | None, nodes: Tensor) -> Tensor:
        return nodes if ids is None else ids[nodes]

    def graph(chosen: Tensor, key: Tensor, keys: Tensor) -> Graph:
        edge_index = torch.stack((query[chosen] - start, key))
        graph = Graph.from_edge_index(edge_index, (end - start, len(keys)))
        return replace(
            graph,
            head_mask=None if head_mask is None else head_mask[chosen][graph.edge_id],
            query_id=names(query_id, own),
            key_id=names(key_id, keys),
        )

    cuts = torch.searchsorted(halo, torch.tensor(bounds, device=halo.device))
    return Partition(
        rank=rank,
        bounds=bounds,
        edge_id=edge_id,
        is_local=is_local,
        local=graph(is_local, key[is_local] - start, own),
        remote=graph(~is_local, place, halo),
        halo=halo,
        halo_counts=tuple(cuts.diff().tolist()),
        sent=halo[:0],
        sent_counts=(0,) * (len(bounds) - 1),
        split_id="",
    )


def _numbered(nodes: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """The different ones among some nodes, ascending, and the place of each node among them."""
    is_there = torch.zeros(n_nodes, dtype=torch.bool, device=nodes.device)
    is_there[nodes] = True
    different = is_there.nonzero().squeeze(1)
    place = torch.empty(n_nodes, dtype=nodes.dtype, device=nodes.device)
    place[different] = torch.arange(len(different), dtype=nodes.dtype, device=nodes.device)
    return different, place[nodes]


def _add_self_loops(part: Partition) -> Loops:
    of_local, of_remote = part.local.edge_index, part.remote.edge_index
    query = of_local.new_empty(part.n_edges)
    query[part.is_local], query[~part.is_local] = of_local[0], of_remote[0]
    is_loop = torch.zeros_like(part.is_local)
    is_loop[part.is_local] = of_local[0] == of_local[1]
    kept = (~is_loop).nonzero().squeeze(1)
    added = part.edge_id.new_full((part.n_own,), -1)
    looped = replace(
        part,
        edge_id=torch.cat((part.edge_id[kept], added)),
        is_local=torch.cat((part.is_local[kept], torch.ones_like(added, dtype=torch.bool))),
        local=part.local.add_self_loops(),
    )
    return Loops(looped, kept, query[kept])


def _checked_bounds(bounds: Sequence[int], n_parts: int) -> tuple[int, ...]:
    limits = tuple(int(bound) for bound in bounds)
    if len(limits) != n_parts + 1 or limits[0] != 0 or list(limits) != sorted(limits):
        raise ValueError(
            f"`bounds` must be n_parts + 1 = {n_parts + 1} numbers of nodes that do not descend, the "
            f"first of which is 0; got {limits}"
        )
    return limits


def _check_nodes(index: Tensor, role: str, start: int, end: int, whose: str) -> None:
    is_outside = (index < start) | (index >= end)
    if bool(is_outside.any()):
        edge = int(is_outside.nonzero()[0])
        raise IndexError(
            f"edge {edge} has {role} {int(index[edge])}, but {whose} are those in [{start}, {end})"
        )


def _digest(part: Partition) -> bytes:
    """What tells a part from any other one, but for the caller's numbers of its edges."""
    digest = hashlib.sha256(repr((part.rank, part.bounds)).encode())
    for graph in (part.local, part.remote):
        for tensor in (graph.query_ptr, graph.key_index, graph.key_id, graph.head_mask):
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.digest()


def _join(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


class _Summary(NamedTuple):
    """What the others need to know of a part."""

    bounds: tuple[int, ...]
    n_all_edges: int | None
    halo_counts: tuple[int, ...]
    digest: bytes


def _agreed(
    make: Callable[[], Partition], n_all_edges: int | None, group: "dist.ProcessGroup | None"
) -> Partition:
    """The part that `make` returns, connected to those of the other processes."""
    part: Any = None

    def summary() -> _Summary:
        nonlocal part
        part = make()
        return _Summary(part.bounds, n_all_edges, part.halo_counts, _digest(part))

    summaries = of_all_ranks(summary, group)
    if len({summary[:2] for summary in summaries}) > 1:
        of_ranks = (
            f"rank {rank}: bounds={s.bounds}, edges={s.n_all_edges}"
            for rank, s in enumerate(summaries)
        )
        raise ValueError(f"the processes split different graphs; {'; '.join(of_ranks)}")
    sent_counts = tuple(summary.halo_counts[part.rank] for summary in summaries)
    exchange = Exchange(part.halo_counts, sent_counts, group)
    exchange.begin(part.halo)
    requests = exchange.end().split(sent_counts)
    split_id = _join([summary.digest for summary in summaries])
    mine: Partition = replace(part, group=group)
    return mine._connected_to(requests, split_id)
