"""Partition: one process's part of a graph, and what it exchanges with the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, Unpack

import torch.distributed as dist
from torch import Tensor

from gatv2.distributed import cut, part_file
from gatv2.distributed.attention import attend
from gatv2.distributed.part import PartData
from gatv2.graph import Graph
from gatv2.graph.part import AttendOptions, Part
from gatv2.numba.memory import Array as NumPyArray
from gatv2.options import Flow
from gatv2.tensor_file import PathLike
from gatv2.torch_internals import outlives_inference_mode


@dataclass(frozen=True, eq=False, repr=False)
class Partition(PartData, Part):
    """One process's part of a graph: a block of nodes, and all edges by which they attend to others.

    Nodes are split into contiguous blocks, one a process ("rank"), with equal numbers of edges: no
    part has more than an n-th of all edges and the largest degree together. Edges to keys of the
    same block are `local`. The other keys, the `halo`, belong to other ranks, which send their rows
    to every layer: an edge to one of them is `remote`.

    A layer takes a part in the place of the graph, and the features of the part's own nodes in the
    place of all: `layer(h[partition.own], partition)` are the rows `partition.own` of `layer(h, graph)`,
    in training too, as dropout knows the nodes by their numbers in the whole graph. All ranks call it
    together.

    A part's edges are in the order of the caller's numbers, `edge_id`: edge features come in that
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

        >>> import torch
        >>> node = torch.arange(6)
        >>> graph = Graph.from_edge_index(torch.stack((node, (node + 1) % 6)), n_nodes=6)
        >>> first, second = Partition.split(graph, n_parts=2)
        >>> first
        Partition(rank=0, n_parts=2, n_nodes=6, n_own=3, n_edges=3, n_halo=1, n_sent=1)
        >>> first.halo, second.sent  # node 2 attends to node 3, which is row 0 of rank 1
        (tensor([3]), tensor([0]))
    """

    @classmethod
    @outlives_inference_mode
    def split(cls, graph: Graph, n_parts: int) -> list[Self]:
        """All parts of a graph, in one process and without `torch.distributed`.

        Args:
            graph: one graph (no batch) of nodes that attend to one another.
            n_parts: number of parts. With more parts than nodes, some are empty.

        Raises:
            TypeError: `graph` is no graph, or `n_parts` no int.
            ValueError: the graph is bipartite or a batch, or `n_parts` is not positive.
        """
        return cut.split(graph, n_parts, cls)

    @classmethod
    @outlives_inference_mode
    def from_graph(cls, graph: Graph, group: "dist.ProcessGroup | None" = None) -> Self:
        """This process's part of a graph, which every process of the group passes.

        Args:
            graph: as for :meth:`split`. It may be memory-mapped: all of it is read once, a piece at a
                time, to be compared with the other processes' graphs, and own edges are kept.
            group: a group of `torch.distributed`, of any backend; None for the default one.

        Raises:
            RuntimeError: there is no group, or another process raised.
            ValueError: as for :meth:`split`; or the processes' graphs differ.
        """
        return cut.from_graph(graph, group, cls)

    @classmethod
    @outlives_inference_mode
    def from_edge_index(
        cls,
        edge_index: Tensor | NumPyArray,
        bounds: Sequence[int],
        group: "dist.ProcessGroup | None" = None,
        *,
        flow: Flow = "target_to_source",
    ) -> Self:
        """This process's part, made of the edges of its own queries: no process needs them all.

        Args:
            edge_index: `[2, n_edges]`, integer (NumPy's too), in the whole graph's numbers of nodes;
                `edge_id` are positions in it. Every query is a node of this rank.
            bounds: the nodes of rank r are `bounds[r]` to `bounds[r + 1] - 1`; the same everywhere.
            group: a group of `torch.distributed`, of any backend; None for the default one.
            flow: what row 0 holds, as in :meth:`gatv2.Graph.from_edge_index`.

        Raises:
            RuntimeError: there is no group, or another process raised.
            TypeError: `edge_index` is not an integer tensor or array.
            ValueError: `edge_index` or `bounds` are of another form, or the processes' bounds differ.
            IndexError: a query is not this rank's, or there is no such key.
        """
        return cut.from_edge_index(edge_index, bounds, group, flow, cls)

    def save(self, directory: PathLike) -> None:
        """Write the part to a file of its own, which :meth:`Partition.load` reads.

        Args:
            directory: where to; it is made if there is none. The same for all parts, but for those whose
                processes have a disk each.

        Raises:
            ImportError: safetensors is missing.
            OSError: the file can't be written.
        """
        part_file.save(self, directory)

    @classmethod
    @outlives_inference_mode
    def load(
        cls, directory: PathLike, group: "dist.ProcessGroup | None" = None, *, mmap: bool = True
    ) -> Self:
        """This process's part, from the one file that :meth:`Partition.save` has written for its rank.

        The tensors are mapped, and all of them are checked.

        Args:
            directory: where the parts are; this process needs its own only.
            group: a group of `torch.distributed`, of any backend, of as many processes as there are
                parts; None for the default one.
            mmap: False reads the file into memory, for one that may be written to or cut meanwhile.

        Raises:
            ImportError: safetensors is missing.
            OSError: there is no file for this rank, or it can't be read.
            RuntimeError: there is no group, or another process raised.
            ValueError: the file is damaged or no part of a graph, or the processes have loaded parts of
                different splits.
        """
        return part_file.load(directory, group, cls, mmap=mmap)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        attn: Tensor,
        **options: Unpack[AttendOptions],
    ) -> tuple[Tensor, Tensor | None]:
        """See :func:`gatv2.distributed.gatv2_attention`, which returns what was asked for of this."""
        return attend(query, key, attn, self, **options)
