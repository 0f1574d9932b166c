"""PartData: what one process's part of a graph holds, and what follows from that alone."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gatv2.distributed.agreement import told
from gatv2.graph import Graph
from gatv2.graph.part import Loops
from gatv2.options import Flow
from gatv2.torch_internals import made_once

T = TypeVar("T")
Data = TypeVar("Data", bound="PartData")


@dataclass(frozen=True, eq=False, repr=False)
class PartData:
    """One process's part of a graph; :class:`gatv2.distributed.Partition` makes it and attends over it.

    Attributes are those of that class.
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

    def __getstate__(self) -> dict[str, object]:
        """The fields alone, without what was made of them."""
        if self.group is not None:
            raise TypeError(
                "a Partition with a `group` can't be pickled or copied, as a group of processes can't: "
                "save it with `partition.save(directory)`, or take "
                "`dataclasses.replace(partition, group=None)`"
            )
        return {field.name: getattr(self, field.name) for field in fields(self)}

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
        """Number of edges of the part, which are those of own queries."""
        return self.edge_id.shape[0]

    @property
    def flow(self) -> Flow:
        """How rows of the edge index were read that the part was made of."""
        return self.local.flow

    @made_once
    def self_loops(self) -> Loops[Self]:
        """The part with self-loops, and which edges it has of this one; made when first asked for."""
        return _add_self_loops(self)

    def told(self, call: Callable[[], T]) -> T:
        """What `call` returns; if it raises before it has met the other processes, they are told why."""
        if self.n_parts == 1 or not (dist.is_available() and dist.is_initialized()):
            return call()
        # of an error while a call is traced, nobody could be told; called and not a decorator, which
        # would load the compiler whenever this file is imported
        is_traced = torch.compiler.is_compiling()
        uncompiled = torch.compiler.disable(_told) if is_traced else _told
        return uncompiled(call, self)

    def to(self, device: torch.device | str) -> Self:
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


def _told(call: Callable[[], T], part: PartData) -> T:
    is_group = dist.get_rank(part.group) >= 0 and dist.get_world_size(part.group) == part.n_parts
    return told(call, part.group) if is_group else call()


def _add_self_loops(part: Data) -> Loops[Data]:
    local_edges, remote_edges = part.local.edge_index, part.remote.edge_index
    query = local_edges.new_empty(part.n_edges)
    query[part.is_local], query[~part.is_local] = local_edges[0], remote_edges[0]
    is_loop = torch.zeros_like(part.is_local)
    is_loop[part.is_local] = local_edges[0] == local_edges[1]
    kept = (~is_loop).nonzero().squeeze(1)
    added = part.edge_id.new_full((part.n_own,), -1)
    looped = replace(
        part,
        edge_id=torch.cat((part.edge_id[kept], added)),
        is_local=torch.cat((part.is_local[kept], torch.ones_like(added, dtype=torch.bool))),
        local=part.local.add_self_loops(),
        split_id=f"{part.split_id} with self-loops",
    )
    return Loops(looped, kept, query[kept])
