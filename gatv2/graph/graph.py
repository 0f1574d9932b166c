"""Graph: the prepared form of a graph, sorted once and used by every layer and every epoch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from gatv2.graph.check import check_graph, check_once
from gatv2.graph.edge_index import read_edge_index
from gatv2.graph.edges import (
    KeyOrder,
    SortedEdges,
    changed,
    forget,
    is_trusted,
    of_sorted,
    trusted,
)
from gatv2.graph.file import load_graph, save_graph
from gatv2.graph.join import join
from gatv2.graph.sort import merge_loops, sort_both_ways, sort_edges
from gatv2.numba.memory import Array as NumPyArray
from gatv2.options import Flow, by_role, check_flow, check_has_self_loops
from gatv2.torch_internals import made_once, outlives_inference_mode, refuse_mapped


@dataclass(frozen=True, eq=False, repr=False)
class Graph(SortedEdges):
    """A graph's edges, sorted by query: query i attends to the keys of its edges.

    Build it with `from_edge_index` or `from_mask`. One that is made otherwise, by the class itself or by
    `dataclasses.replace`, is checked when it is first used. Preparation takes O(edges), once; a layer
    that is given a raw edge index prepares a `Graph` for itself. Edges are sorted by (query, key), so
    the order in which they came does not change the result, but what belongs to an edge (attention
    weights) still comes out in the caller's order. Parallel edges are kept and count separately.

    All index tensors have one dtype: int32 where every index and count fits, else int64.

    Attributes:
        query_ptr: `[n_queries + 1]`, CSR: the edges of query i are `query_ptr[i]:query_ptr[i + 1]`.
        key_index: `[n_edges]`, key of each edge.
        query_index: `[n_edges]`, query of each edge, ascending.
        edge_id: `[n_edges]`, the caller's number of each edge.
        n_keys: number of keys.
        head_mask: `[n_edges, n_heads]` bool, the heads that use an edge; None if all do.
        n_blocks: B if the graph is the block-diagonal union of B graphs of one size, else 1.
        query_id: `[n_queries]`, int64, the numbers by which dropout knows the queries: those of a whole
            graph that this one is a part of, so that both drop the same. None: their positions.
        key_id: `[n_keys]`, int64, the same of the keys.
        flow: how rows of the edge index were read that the graph was made of; a layer of
            flow="source_to_target" takes no graph that was made otherwise.
        is_bipartite: whether queries and keys are other nodes even if there are as many of them: those
            of a batch of bipartite graphs. Where their numbers differ, they are anyway.
        batch_shape: batch dimensions of the masks that a batch of graphs was made of; None for
            `(n_blocks,)`, or for one graph.

    Example:
        Query 0 attends to keys 2 and 1, and query 2 to key 0; query 1 has no keys.

        >>> graph = Graph.from_edge_index(torch.tensor([[0, 2, 0], [2, 0, 1]]), n_nodes=3)
        >>> graph
        Graph(n_queries=3, n_keys=3, n_edges=3, dtype=torch.int32, device=cpu)
        >>> graph.key_index
        tensor([1, 2, 0], dtype=torch.int32)
        >>> graph.edge_index
        tensor([[0, 2, 0],
                [2, 0, 1]])
    """

    @classmethod
    @outlives_inference_mode
    def from_edge_index(
        cls,
        edge_index: Tensor | NumPyArray,
        n_nodes: SupportsIndex | tuple[SupportsIndex, SupportsIndex],
        *,
        flow: Flow = "target_to_source",
    ) -> "Graph":
        """Prepare an edge index.

        Args:
            edge_index: `[2, n_edges]`, integer. Row 0 holds queries, row 1 holds keys: an edge (i, j)
                lets i attend to j. A NumPy array is read where it lies, which may be a file:
                `numpy.load(path, mmap_mode="r")`.
            n_nodes: number of nodes, or the pair (number of queries, number of keys).
            flow: "source_to_target", PyTorch Geometric's default, reads row 0 as keys and row 1
                as queries.

        Raises:
            TypeError: `edge_index` is not an integer tensor or array, or `n_nodes` no number.
            ValueError: `edge_index` is not `[2, n_edges]`, `n_nodes` is negative, or `flow` is unknown.
            IndexError: an index is negative or past the end.
        """
        edge_index, n_queries, n_keys = read_edge_index(edge_index, n_nodes, flow)
        edges = sort_edges(edge_index, n_queries, n_keys, flow)
        return trusted(cls(*edges, n_keys=n_keys, flow=flow))

    @classmethod
    @outlives_inference_mode
    def from_mask(cls, mask: Tensor, *, flow: Flow = "target_to_source") -> "Graph":
        """Prepare a mask; edges are numbered as in `mask.any(-1).nonzero()`.

        Args:
            mask: `[*batch, n_queries, n_keys, 1 or n_heads]`, bool. A batch becomes one
                block-diagonal graph, which remembers its dimensions.
            flow: with "source_to_target", `mask` is `[*batch, n_keys, n_queries, 1 or n_heads]`.

        Raises:
            TypeError: `mask` is no tensor, or sparse.
            ValueError: `mask` is not bool or has fewer than three dimensions, or `flow` is unknown.
        """
        check_flow(flow)
        if not isinstance(mask, Tensor):
            raise TypeError(
                f"`mask` must be a torch.Tensor; got {type(mask).__name__}: convert it with "
                "`torch.as_tensor(mask)`"
            )
        if mask.layout is not torch.strided:
            raise TypeError(
                f"`mask` must be a dense tensor; got one of layout {mask.layout}: convert it with "
                "`mask.to_dense()`"
            )
        if mask.dtype != torch.bool or mask.ndim < 3:
            raise ValueError(
                "`mask` must be bool with shape (*batch, n_queries, n_keys, 1 or n_heads); "
                f"got {mask.dtype} with shape {tuple(mask.shape)}"
            )
        refuse_mapped(mask, "use backend='dense', or pass all masks in one batch and without vmap")
        batch_shape, (n_rows, n_columns, n_heads) = mask.shape[:-3], mask.shape[-3:]
        n_blocks = batch_shape.numel()
        blocks = mask.reshape(n_blocks, n_rows, n_columns, n_heads)
        block, row, column = blocks.any(-1).nonzero().unbind(1)
        sizes = n_blocks * n_rows, n_blocks * n_columns
        graph = cls.from_edge_index(
            torch.stack((row + block * n_rows, column + block * n_columns)),
            by_role(sizes, flow),
            flow=flow,
        )
        head_mask = None
        if n_heads > 1:
            head_mask = blocks[block, row, column]
            if flow == "source_to_target":  # else edges are numbered as they are sorted
                head_mask = head_mask[graph.edge_id.long()]
        batch = tuple(batch_shape) if batch_shape else None
        return changed(graph, head_mask=head_mask, n_blocks=n_blocks, batch_shape=batch)

    @classmethod
    @outlives_inference_mode
    def batch(cls, graphs: Iterable["Graph"]) -> "Graph":
        """Many graphs of any sizes as one, block-diagonal: nodes and edges are theirs, in turn.

        Features are concatenated alike, `torch.cat(features)`, and results come apart by
        `out.split([graph.n_queries for graph in graphs])`. PyTorch Geometric's `Batch` numbers nodes and
        edges the same way: its `edge_index` is that of the batch. Nothing is sorted again. A batch with
        bipartite graphs is bipartite, though it may have as many queries as keys.

        Raises:
            TypeError: one of them is no graph.
            ValueError: there are no graphs, their masks are for different numbers of heads, or they were
                made with different flows.

        Example:
            >>> one = Graph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), n_nodes=2)
            >>> other = Graph.from_edge_index(torch.tensor([[2], [0]]), n_nodes=3)
            >>> Graph.batch([one, other]).edge_index
            tensor([[0, 1, 4],
                    [1, 0, 2]])
        """
        graphs = tuple(graphs)  # which are looked at more than once, and must live as long
        if not graphs:
            raise ValueError("a batch needs at least one graph; got none")
        return join(cls, graphs)

    @outlives_inference_mode
    def coalesce(self) -> "Graph":
        """The graph with each set of parallel edges replaced by one edge, numbered by (query, key)."""
        refuse_mapped(self.key_index, "coalesce the graphs before vmap")
        is_first = self.multiplicity == 0
        head_mask = None if self.head_mask is None else self.head_mask[is_first]
        edge_index = torch.stack((self.query_index[is_first], self.key_index[is_first]))
        graph = Graph.from_edge_index(edge_index, (self.n_queries, self.n_keys))
        return _with_nodes_of(self, changed(graph, head_mask=head_mask))

    def add_self_loops(self) -> "Graph":
        """The graph with one self-loop at each node; those that there are give way to it.

        As in PyTorch Geometric. In the caller's order the edges that are no self-loops come first, as
        they were, and then the self-loops of node 0, 1, and so on. Made when first asked for, and kept
        with the graph.

        Raises:
            ValueError: queries and keys are not the same nodes.

        Example:
            >>> graph = Graph.from_edge_index(torch.tensor([[0, 1, 1], [1, 1, 0]]), n_nodes=2)
            >>> graph.add_self_loops().edge_index
            tensor([[0, 1, 0, 1],
                    [1, 0, 0, 1]])
        """
        return self.self_loops.graph

    @made_once
    def self_loops(self) -> "SelfLoops":
        """The graph with self-loops, and which edges it has of this one; made when first asked for."""
        return _add_self_loops(self)

    def to_mask(self) -> Tensor:
        """The graph as a mask: `[n_queries, n_keys, 1 or n_heads]`, bool; blocks as a batch in front.

        Raises:
            ValueError: the graph has parallel edges or numbers of its own for nodes, which a mask cannot
                hold.
        """
        if self.query_id is not None or self.key_id is not None:
            raise ValueError(
                "the graph numbers its nodes for dropout (`query_id`, `key_id`), which a dense mask "
                "cannot hold: use backend='sparse'"
            )
        refuse_mapped(self.key_index, "use backend='sparse', or pass masks")
        if bool((self.multiplicity > 0).any()):
            raise ValueError(
                "the graph has parallel edges, which a dense mask cannot hold: use backend='sparse', "
                "or merge them with `graph.coalesce()`"
            )
        block_queries, block_keys = self.block_shape
        n_heads = 1 if self.head_mask is None else self.head_mask.shape[1]
        mask = torch.zeros(
            self.n_blocks, block_queries, block_keys, n_heads, dtype=torch.bool, device=self.device
        )
        if self.n_edges:
            query, key = self.query_index.long(), self.key_index.long()
            heads = True if self.head_mask is None else self.head_mask
            mask[query // block_queries, query % block_queries, key % block_keys] = heads
        return mask.reshape(*self.batch_dims, *mask.shape[1:])

    @outlives_inference_mode
    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Graph":
        """The graph on another device.

        Args:
            device: where it goes.
            non_blocking: return before the copy has ended, which needs pinned memory on the CPU's side.
        """
        device = torch.device(device)  # and not a dtype
        return _with_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    @outlives_inference_mode
    def pin_memory(self) -> "Graph":
        """The graph in pinned memory, from which a GPU copies while the CPU goes on.

        A `torch.utils.data.DataLoader` with `pin_memory=True` calls it for each graph of a batch.

        Raises:
            RuntimeError: there is no accelerator to pin memory for.
        """
        return _with_tensors(self, Tensor.pin_memory)

    def check(self) -> None:
        """Raise a ValueError unless this is a graph that kernels can run on.

        A graph that was made by hand, by the class itself or by `dataclasses.replace`, is checked when
        it is first used, and again when operations of PyTorch have written to its tensors. What writes
        past these, NumPy or `.data`, is seen only here. What was made of the tensors is made again.

        Example:
            >>> from dataclasses import replace
            >>> graph = Graph.from_edge_index(torch.tensor([[0, 0], [0, 1]]), n_nodes=2)
            >>> graph.check()
            >>> replace(graph, n_keys=1).check()
            Traceback (most recent call last):
            ...
            ValueError: not a graph: `key_index` must lie in [0, 1); edge 1 has 1
        """
        check_graph(self)
        forget(self)  # what was made of what they were
        trusted(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Save the graph to a file, in the safetensors format; one of that name is replaced.

        Stopped on the way, it leaves what there was. What the backward pass reads is not saved but made
        when it is needed.

        Raises:
            ImportError: safetensors is missing.
        """
        save_graph(self, path)

    @classmethod
    @outlives_inference_mode
    def load(cls, path: str | PathLike[str], *, mmap: bool = True) -> "Graph":
        """Load a graph that `save` has written, on the CPU.

        Its tensors are mapped: they are read from the file when they are needed, by all processes that
        load it together. Before, every byte is checked, and that it is a graph. The file must not be
        written to or cut as long as it is mapped, which would end the process; `save` replaces it and
        does neither. `mmap=False` reads it into memory.

        Raises:
            ImportError: safetensors is missing.
            OSError: there is no such file, or it can't be read.
            ValueError: the file is not one of a graph, or has been truncated or changed.

        Example:
            >>> from tempfile import mkdtemp
            >>> path = mkdtemp() + "/graph.safetensors"
            >>> Graph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), n_nodes=2).save(path)
            >>> Graph.load(path)
            Graph(n_queries=2, n_keys=2, n_edges=2, dtype=torch.int32, device=cpu)
        """
        return load_graph(path, cls, mmap=mmap)

    def __repr__(self) -> str:
        blocks = f", n_blocks={self.n_blocks}" if self.n_blocks != 1 else ""
        if self.batch_shape not in (None, (self.n_blocks,)) or self.batch_shape == (1,):
            blocks += f", batch_shape={self.batch_shape}"
        blocks += ", is_bipartite=True" if self.is_bipartite else ""
        blocks += f", flow={self.flow!r}" if self.flow != "target_to_source" else ""
        return (
            f"Graph(n_queries={self.n_queries}, n_keys={self.n_keys}, n_edges={self.n_edges}{blocks}, "
            f"dtype={self.key_index.dtype}, device={self.device})"
        )


# `torch.load(weights_only=True)` reads graphs: loaded ones are checked when they are first used
torch.serialization.add_safe_globals([Graph])


def graph_for_gradients(edge_index: Tensor, n_queries: int, n_keys: int, flow: Flow) -> Graph:
    """As `Graph.from_edge_index`, with what the backward pass reads: both at once are made faster.

    The edge index is inspectable, and has been checked but for the range of its indices.
    """
    orders = sort_both_ways(edge_index, n_queries, n_keys, flow)
    if orders is None:
        return Graph.from_edge_index(edge_index, (n_queries, n_keys), flow=flow)
    edges, by_key = orders
    return of_sorted(Graph, edges, n_keys=n_keys, flow=flow, _by_key=KeyOrder(*by_key))


class SelfLoops(NamedTuple):
    """A graph with one self-loop at each node, and what it has of the graph it was made of."""

    graph: Graph
    kept: Tensor
    """The caller's numbers of the edges that are no self-loops, ascending."""
    query: Tensor
    """Queries of those edges."""


def _with_tensors(graph: Graph, change: Callable[[Tensor], Tensor]) -> Graph:
    """The graph with each of its tensors replaced by the same one elsewhere."""
    tensors = {
        field.name: change(value)
        for field in fields(graph)
        if isinstance(value := getattr(graph, field.name), Tensor)
    }
    return changed(graph, **tensors)


def _add_self_loops(graph: Graph) -> SelfLoops:
    check_has_self_loops(*graph.block_shape, is_bipartite=graph.is_bipartite)
    refuse_mapped(graph.key_index, "add the self-loops before vmap, or pass masks")
    result, kept, query = loops_at_first(graph, graph.n_queries)
    head_mask = graph.head_mask
    if head_mask is not None:
        kept_mask = graph.in_callers_order(head_mask, dim=0)[kept]
        loop_mask = head_mask.new_ones(graph.n_queries, head_mask.shape[1])
        head_mask = torch.cat((kept_mask, loop_mask))[result.edge_id.long()]
    return SelfLoops(_with_nodes_of(graph, changed(result, head_mask=head_mask)), kept, query)


def loops_at_first(graph: Graph, n_loops: int) -> SelfLoops:
    """A graph of the same edges, but for self-loops, and of one at each of the first `n_loops` nodes."""
    check_once(graph)
    n_nodes = graph.n_queries, graph.n_keys
    merged = merge_loops(graph.query_ptr, graph.key_index, graph.edge_id, graph.n_keys, n_loops)
    if merged is not None:
        ptr, key_index, query_index, edge_id, kept, query = merged
        result = trusted(Graph(ptr, key_index, query_index, edge_id, graph.n_keys))
        return SelfLoops(result, kept, query)
    edge_index = graph.edge_index
    kept = (edge_index[0] != edge_index[1]).nonzero().squeeze(1)
    edge_index = edge_index[:, kept]
    loop = torch.arange(n_loops, device=graph.device).expand(2, -1)
    result = Graph.from_edge_index(torch.cat((edge_index, loop), dim=1), n_nodes)
    return SelfLoops(result, kept, edge_index[0])


def _with_nodes_of(graph: Graph, other: Graph) -> Graph:
    """`other`, with what `graph` has beside its edges."""
    names = ("n_blocks", "query_id", "key_id", "flow", "is_bipartite", "batch_shape")
    result = replace(other, **{name: getattr(graph, name) for name in names})
    return trusted(result) if is_trusted(graph) else result
