"""Graph: how it is made, what is made of it, and how JAX carries and exports it."""

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import ArrayLike, NumPyArray, is_concrete, on_device
from gatv2.jax.graph import loops, padding, parts
from gatv2.jax.graph.edge_index import (
    NumberOfNodes,
    check_edge_index,
    read_sizes,
    sort_edge_index,
)
from gatv2.jax.graph.edges import (
    SortedEdges,
    as_numpy,
    is_known,
    of_sorted,
    repeated_edges,
    require_concrete,
    require_unpadded,
    with_nodes_of,
)
from gatv2.jax.graph.sort import KeyOrder, sort_edges
from gatv2.jax.interop import as_jax
from gatv2.options import Flow, by_role, check_flow

if TYPE_CHECKING:
    from torch import Tensor

    from gatv2.graph import Graph as TorchGraph


class GraphsTuple(Protocol):
    """What is read of jraph's class of that name."""

    @property
    def nodes(self) -> object: ...  # noqa: D102
    @property
    def n_node(self) -> ArrayLike | None: ...  # noqa: D102
    @property
    def senders(self) -> ArrayLike | None: ...  # noqa: D102
    @property
    def receivers(self) -> ArrayLike | None: ...  # noqa: D102


class SelfLoops(NamedTuple):
    """A graph with self-loops, and what it has of the graph it was made of."""

    graph: "Graph"
    kept: jax.Array
    """The caller's numbers of the edges that come first, ascending."""
    is_other: jax.Array
    """Which of them are edges, and no self-loops."""
    query: jax.Array
    """Queries of those edges."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Graph(SortedEdges[jax.Array]):
    """A graph's edges, sorted by query: query i attends to the keys of its edges.

    Build it once, outside of `jit`, with `from_edge_index` or one of the other constructors, and pass it
    to compiled functions as an argument: its arrays are traced, its sizes are static.

    Attributes:
        query_ptr: `[n_queries + 1]`, CSR: the edges of query i are `query_ptr[i]:query_ptr[i + 1]`.
        key_index: `[n_edges]`, key of each edge.
        query_index: `[n_edges]`, query of each edge, ascending.
        edge_id: `[n_edges]`, the caller's number of each edge.
        by_key: the edges sorted by (key, query).
        n_keys: number of keys, static.
        head_mask: `[n_edges, n_heads]` bool, the heads that use an edge; None if all do.
        n_blocks: B if the graph is the block-diagonal union of B graphs of one size, else 1; static.
        query_id: `[n_queries]`, the numbers by which dropout knows the queries: those of a whole graph
            that this one is a part of, so that both drop the same. None: their positions.
        key_id: `[n_keys]`, the same of the keys.
        query_mask: `[n_queries]` bool, False for queries that are padding; None if none is.
        flow: how rows of the edge index were read that the graph was made of; a layer of
            flow="source_to_target" takes no graph that was made otherwise; static.
        is_bipartite: whether queries and keys are other nodes even if there are as many of them: those
            of a batch of graphs that are bipartite; static.
        batch_shape: the batch dimensions of the masks that the graph was made of; None if it was not, or
            of one mask; static.

    Example:
        Query 0 attends to keys 2 and 1, and query 2 to key 0; query 1 has no keys.

        >>> graph = Graph.from_edge_index(np.array([[0, 2, 0], [2, 0, 1]]), n_nodes=3)
        >>> graph
        Graph(n_queries=3, n_keys=3, n_edges=3, dtype=int32)
        >>> graph.padded(5).key_index
        Array([1, 2, 0, 3, 3], dtype=int32)
    """

    @classmethod
    def from_edge_index(
        cls, edge_index: ArrayLike, n_nodes: NumberOfNodes, *, flow: Flow = "target_to_source"
    ) -> "Graph":
        """Prepare an edge index; inside `jit` too, where an edge with a bad index is dropped.

        Args:
            edge_index: `[2, n_edges]`, integer. Row 0 holds queries, row 1 holds keys: an edge (i, j)
                lets i attend to j.
            n_nodes: number of nodes, or the pair (number of queries, number of keys).
            flow: "source_to_target", PyTorch Geometric's default, reads row 0 as keys and row 1
                as queries.

        Raises:
            TypeError: `edge_index` does not hold integers, or `n_nodes` is no number.
            ValueError: `edge_index` is not `[2, n_edges]`, `n_nodes` is negative, or `flow` is unknown.
            IndexError: an index is negative or past the end, outside of `jit`.
        """
        check_flow(flow)
        check_edge_index(edge_index)
        n_queries, n_keys = read_sizes(n_nodes)
        sorted_edges = sort_edge_index(edge_index, n_queries, n_keys, flow)
        return of_sorted(cls, sorted_edges, n_keys, flow=flow)

    @classmethod
    def from_mask(cls, mask: ArrayLike, *, flow: Flow = "target_to_source") -> "Graph":
        """Prepare a mask; edges are numbered as in `np.argwhere(mask.any(-1))`.

        Args:
            mask: `[*batch, n_queries, n_keys, 1 or n_heads]`, bool. A batch becomes one
                block-diagonal graph, which remembers its dimensions.
            flow: with "source_to_target", `mask` is `[*batch, n_keys, n_queries, 1 or n_heads]`.

        Raises:
            TypeError: `mask` is traced: the number of its edges has to be known.
            ValueError: `mask` is not bool or has fewer than three dimensions, or `flow` is unknown.
        """
        check_flow(flow)
        if not is_concrete(mask):
            raise TypeError(
                "a mask becomes a Graph only outside of `jit` and `vmap`, where the number of its "
                "edges is known: prepare `Graph.from_mask(mask)` there, or use backend='dense'"
            )
        values = np.asarray(mask)
        if values.dtype != bool or values.ndim < 3:
            raise ValueError(
                "`mask` must be bool with shape (*batch, n_queries, n_keys, 1 or n_heads); "
                f"got {values.dtype} with shape {values.shape}"
            )
        batch_shape, (n_rows, n_columns, n_heads) = values.shape[:-3], values.shape[-3:]
        n_blocks = math.prod(batch_shape)
        blocks = values.reshape(n_blocks, n_rows, n_columns, n_heads)
        block, row, column = np.nonzero(blocks.any(-1))
        edge_index = np.stack((row + block * n_rows, column + block * n_columns))
        sizes = n_blocks * n_rows, n_blocks * n_columns
        n_queries, n_keys = by_role(sizes, flow)
        sorted_edges = sort_edge_index(edge_index, n_queries, n_keys, flow)
        order = np.asarray(sorted_edges[0].edge_id)
        head_mask = blocks[block, row, column][order] if n_heads > 1 else None
        return of_sorted(
            cls,
            sorted_edges,
            n_keys,
            head_mask=head_mask,
            n_blocks=n_blocks,
            flow=flow,
            batch_shape=batch_shape or None,
        )

    @classmethod
    def from_torch(cls, graph: "TorchGraph") -> "Graph":
        """Take over a PyTorch graph, without a copy where the memory allows.

        Raises:
            TypeError: it is no graph of PyTorch, or needs 64-bit indices, and JAX does not have them
                enabled.
        """
        from gatv2.graph.check import check_once

        check_once(graph)
        ids = [
            None if own is None else on_device(parts.narrow(own.numpy()))
            for own in (graph.query_id, graph.key_id)
        ]
        return cls(
            query_ptr=as_jax(graph.query_ptr),
            key_index=as_jax(graph.key_index),
            query_index=as_jax(graph.query_index),
            edge_id=as_jax(graph.edge_id),
            by_key=KeyOrder(*map(as_jax, graph.by_key)),
            n_keys=graph.n_keys,
            head_mask=None if graph.head_mask is None else as_jax(graph.head_mask),
            n_blocks=graph.n_blocks,
            query_id=ids[0],
            key_id=ids[1],
            flow=graph.flow,
            is_bipartite=graph.is_bipartite,
            batch_shape=graph.batch_shape,
        )

    @classmethod
    def from_graphs_tuple(cls, graphs: GraphsTuple) -> "Graph":
        """Prepare jraph's `GraphsTuple`, padded or not; inside `jit` too.

        Its receivers are our queries, and its senders our keys: a node attends to those that send to it,
        so the flow is "source_to_target". Nodes and edges keep their numbers, so `graphs.nodes` are
        features, and `graphs.edges` features of edges, as they are.

        Example:
            >>> from types import SimpleNamespace
            >>> edges = {"senders": np.array([1, 2]), "receivers": np.array([0, 0])}
            >>> graphs = SimpleNamespace(nodes=np.ones((3, 4)), n_node=np.array([3]), **edges)
            >>> Graph.from_graphs_tuple(graphs).edge_index
            Array([[0, 0],
                   [1, 2]], dtype=int32)
        """
        nodes = jax.tree.leaves(graphs.nodes)
        if not nodes and not is_concrete(graphs.n_node):
            raise TypeError(
                "a GraphsTuple without features of nodes is prepared outside of `jit`, where `n_node` "
                "is known"
            )
        n_nodes = nodes[0].shape[0] if nodes else int(np.sum(np.asarray(graphs.n_node)))
        is_known = is_concrete(graphs.senders) and is_concrete(graphs.receivers)
        xp: ModuleType = np if is_known else jnp
        edge_index = xp.stack((graphs.senders, graphs.receivers))
        return cls.from_edge_index(edge_index, n_nodes, flow="source_to_target")

    @classmethod
    def batch(cls, graphs: Iterable["Graph"]) -> "Graph":
        """Many graphs of any sizes as one, block-diagonal: nodes and edges are theirs, in turn.

        Features are concatenated alike, and results come apart by `jnp.split`. Padded to fixed numbers
        of edges and nodes, batches of any graphs share one compilation. Nothing is sorted again.

        Raises:
            TypeError: one is no graph, or traced.
            ValueError: there are no graphs, one is padded, their masks are for different numbers of
                heads, or they were made with different flows.

        Example:
            >>> one = Graph.from_edge_index(np.array([[0, 1], [1, 0]]), n_nodes=2)
            >>> other = Graph.from_edge_index(np.array([[2], [0]]), n_nodes=3)
            >>> Graph.batch([one, other]).edge_index
            Array([[0, 1, 4],
                   [1, 0, 2]], dtype=int32)
        """
        return parts.batch(cls, graphs)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Graph":
        """Load a graph that `save` has written, here or in PyTorch, after checking every byte of it.

        Raises:
            ImportError: PyTorch or safetensors is missing.
            OSError: there is no such file, or it can't be read.
            ValueError: the file is not one of a graph, or has been truncated or changed.
        """
        from gatv2.graph import Graph as TorchGraph

        return cls.from_torch(TorchGraph.load(path))

    def save(self, path: str | PathLike[str]) -> None:
        """Save the graph to a file that PyTorch's `gatv2.Graph` reads too; one of that name is replaced.

        Raises:
            ImportError: PyTorch or safetensors is missing.
            TypeError: the graph is traced.
            ValueError: the graph is padded.

        Example:
            >>> from tempfile import mkdtemp
            >>> path = mkdtemp() + "/graph.safetensors"
            >>> Graph.from_edge_index(np.array([[0, 1], [1, 0]]), n_nodes=2).save(path)
            >>> Graph.load(path)
            Graph(n_queries=2, n_keys=2, n_edges=2, dtype=int32)
        """
        self.to_torch().save(path)

    def to_torch(self) -> "TorchGraph":
        """The graph for PyTorch.

        Raises:
            TypeError: the graph is traced.
            ValueError: the graph is padded.
        """
        import torch

        from gatv2.graph import Graph as TorchGraph

        require_concrete(self, "carry over")
        require_unpadded(self, "a graph of PyTorch", "carry over the graph that was padded")
        host = as_numpy(self)

        def copied(array: NumPyArray) -> "Tensor":
            return torch.from_numpy(np.array(array))

        query_id, key_id = (
            None if own is None else torch.from_numpy(own.astype(np.int64))
            for own in (host.query_id, host.key_id)
        )
        return TorchGraph(
            copied(host.query_ptr),
            copied(host.key_index),
            copied(host.query_index),
            copied(host.edge_id),
            self.n_keys,
            head_mask=None if host.head_mask is None else copied(host.head_mask),
            n_blocks=self.n_blocks,
            query_id=query_id,
            key_id=key_id,
            flow=self.flow,
            is_bipartite=self.is_bipartite,
            batch_shape=self.batch_shape,
        )

    def padded(self, n_edges: int, n_nodes: NumberOfNodes | None = None) -> "Graph":
        """The graph with padding behind its edges, `n_edges` together, and behind its nodes.

        Attention weights of padding are zero, and come behind those of the caller's edges; results of
        queries that are padding are zero. Features of padding may be anything, NaN too.

        Args:
            n_edges: number of edges with padding.
            n_nodes: number of nodes with padding, or the pair (queries, keys); None for no padding.

        Raises:
            TypeError: a number is no integer.
            ValueError: the graph has more edges or nodes, or it is a batch of graphs of one size, whose
                nodes can't be padded.

        Example:
            >>> graph = Graph.from_edge_index(np.array([[0, 1], [1, 0]]), n_nodes=2).padded(3, 4)
            >>> graph.query_ptr, graph.query_index
            (Array([0, 1, 2, 2, 2], dtype=int32), Array([0, 1, 4], dtype=int32))
            >>> graph.query_mask
            Array([ True,  True, False, False], dtype=bool)
        """
        return padding.padded(self, n_edges, n_nodes)

    def split(self, n_parts: int, side: parts.Side = "queries") -> "Graph":
        """Split the queries evenly, or the keys, for as many devices: parts stacked in each array.

        A part has the edges of its queries (or keys), sorted by (query, key), which is also the order of
        its attention weights, and as much padding as makes the parts equally large. Parts of the queries
        attend to all keys. Parts of the keys have all queries, which attend to some of their keys in
        each: :func:`gatv2.jax.join_parts` joins the results. Under `jax.shard_map`, `jax.vmap` or
        `jax.tree.map(lambda x: x[part], ...)` a part is a `Graph` like any other.

        Raises:
            TypeError: the graph is traced, or `n_parts` is no integer.
            ValueError: the nodes do not divide evenly, the graph is a batch of graphs, or `side` is
                neither.

        Example:
            >>> graph = Graph.from_edge_index(np.array([[0, 2, 0], [2, 0, 1]]), n_nodes=(4, 3))
            >>> parts = graph.split(2)
            >>> parts.query_index
            Array([[0, 0],
                   [0, 2]], dtype=int32)
            >>> parts.query_id
            Array([[0, 1],
                   [2, 3]], dtype=int32)
        """
        return parts.split(self, n_parts, side)

    def split_edges(
        self, values: ArrayLike, n_parts: int, side: parts.Side = "queries"
    ) -> jax.Array:
        """What edges have, such as their features, split as :meth:`split` splits the graph.

        Args:
            values: `[*batch, n_edges, D]`, in the caller's order of the edges.
            n_parts: number of parts.
            side: whose nodes are split.

        Returns:
            `[n_parts, *batch, n_edges of a part, D]`, zero for padding.

        Raises:
            TypeError: the graph is traced; `values` may be.
            ValueError: as :meth:`split`.

        Example:
            >>> graph = Graph.from_edge_index(np.array([[0, 2, 0], [2, 0, 1]]), n_nodes=(4, 3))
            >>> graph.split_edges(jnp.array([[1.0], [2.0], [3.0]]), 2).squeeze(-1)
            Array([[3., 1.],
                   [2., 0.]], dtype=float32)
        """
        return parts.split_edges(self, jnp.asarray(values), n_parts, side)

    def coalesce(self) -> "Graph":
        """The graph with each set of parallel edges replaced by one edge, numbered by (query, key).

        Raises:
            TypeError: the graph is traced.
        """
        require_concrete(self, "coalesce")
        host = as_numpy(self)
        is_first = host.is_edge & ~repeated_edges(self)
        head_mask = None if host.head_mask is None else host.head_mask[is_first]
        edges = sort_edges(
            host.query_index[is_first], host.key_index[is_first], self.n_queries, self.n_keys
        )
        return with_nodes_of(self, of_sorted(Graph, edges, self.n_keys, head_mask=head_mask))

    def add_self_loops(self) -> "Graph":
        """The graph with one self-loop at each node; those that there are give way to it.

        In the caller's order the edges that are no self-loops come first, as they were, and then the
        self-loops of node 0, 1, and so on. If the graph is traced, all its edges come first, and its
        self-loops become padding.

        Raises:
            ValueError: there are not as many queries as keys.

        Example:
            >>> graph = Graph.from_edge_index(np.array([[0, 1, 1], [1, 1, 0]]), n_nodes=2)
            >>> graph.add_self_loops().edge_index
            Array([[0, 1, 0, 1],
                   [1, 0, 0, 1]], dtype=int32)
        """
        return self.self_loops().graph

    def self_loops(self) -> SelfLoops:
        """The graph with self-loops, and which edges it has of this one."""
        return SelfLoops(*loops.with_self_loops(self))

    def to_mask(self) -> jax.Array:
        """The graph as a mask: `[*batch, n_queries, n_keys, 1 or n_heads]`, bool.

        Raises:
            TypeError: the graph is traced: parallel edges are not seen there.
            ValueError: the graph has parallel edges, or numbers of its own for nodes, which a mask
                cannot hold.
        """
        if not is_known(replace(self, head_mask=None)):
            raise TypeError(
                "backend='dense' needs a mask where the graph is traced: parallel edges, which a mask "
                "can't hold, are not seen there. Pass the mask, or use backend='sparse'"
            )
        if self.query_id is not None or self.key_id is not None:
            raise ValueError(
                "the graph numbers its nodes for dropout (`query_id`, `key_id`), which a dense mask "
                "cannot hold: use backend='sparse'"
            )
        if repeated_edges(self).any():
            raise ValueError(
                "the graph has parallel edges, which a dense mask cannot hold: use backend='sparse', "
                "or merge them with `graph.coalesce()`"
            )
        block_queries, block_keys = self.block_shape
        n_heads = 1 if self.head_mask is None else self.head_mask.shape[1]
        cell = jnp.zeros((self.n_blocks, block_queries, block_keys, n_heads), bool).at[
            self.query_index // max(block_queries, 1),
            self.query_index % max(block_queries, 1),
            self.key_index % max(block_keys, 1),
        ]
        mask = cell.set(True if self.head_mask is None else self.head_mask, mode="drop")
        return mask.reshape(*self.batch_dims, *mask.shape[1:])


with suppress(ValueError):  # the names are taken if this module is loaded again
    jax.export.register_namedtuple_serialization(KeyOrder, serialized_name="gatv2.jax.KeyOrder")
    jax.export.register_pytree_node_serialization(
        Graph,
        serialized_name="gatv2.jax.Graph",
        serialize_auxdata=lambda static: json.dumps(static).encode(),
        deserialize_auxdata=lambda text: tuple(
            tuple(static) if isinstance(static, list) else static for static in json.loads(text)
        ),
    )
