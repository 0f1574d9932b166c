"""Graph: the prepared form of a graph, as a pytree whose sizes are static.

Fields, order of edges and rules are those of :class:`gatv2.Graph`. What is new is padding: an edge
from query `n_queries`, which does not exist, to key `n_keys`, sorted behind all others. Gathering reads
zeros there and scattering drops what it is given, so padding changes nothing, and graphs of several
sizes share one compilation. Nodes are padded by nodes without edges.
"""

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from gatv2.jax.interop import as_jax, on_device
from gatv2.jax.sort import Edges, KeyOrder, sort_edges, sort_traced
from gatv2.options import Flow, check_flow

if TYPE_CHECKING:
    from gatv2.graph import Graph as TorchGraph

__all__ = ["ArrayLike", "Graph", "KeyOrder", "SelfLoops", "is_concrete"]

Array = jax.Array
ArrayLike = jax.Array | np.ndarray[Any, Any]
NumberOfNodes = SupportsIndex | tuple[SupportsIndex, SupportsIndex]


class SelfLoops(NamedTuple):
    """A graph with self-loops, and what it has of the graph it was made of."""

    graph: "Graph"
    kept: Any
    """The caller's numbers of the edges that come first, ascending."""
    is_other: Any
    """Which of them are edges, and no self-loops."""
    query: Any
    """Queries of those edges."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Graph:
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

    Example:
        Query 0 attends to keys 2 and 1, and query 2 to key 0; query 1 has no keys.

        >>> graph = Graph.from_edge_index(np.array([[0, 2, 0], [2, 0, 1]]), n_nodes=3)
        >>> graph
        Graph(n_queries=3, n_keys=3, n_edges=3, dtype=int32)
        >>> graph.padded(5).key_index
        Array([1, 2, 0, 3, 3], dtype=int32)
    """

    query_ptr: Array
    key_index: Array
    query_index: Array
    edge_id: Array
    by_key: KeyOrder
    n_keys: int = field(metadata={"static": True})
    head_mask: Array | None = None
    n_blocks: int = field(default=1, metadata={"static": True})
    query_id: Array | None = None
    key_id: Array | None = None
    query_mask: Array | None = None

    @classmethod
    def from_edge_index(
        cls, edge_index: ArrayLike, n_nodes: NumberOfNodes, *, flow: Flow = "target_to_source"
    ) -> "Graph":
        """Prepare an edge index; inside of `jit` too, where an edge with a bad index is dropped.

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
        n_queries, n_keys = _read_sizes(n_nodes)
        if is_concrete(edge_index):
            values = np.asarray(edge_index)
            query, key = values if flow == "target_to_source" else values[::-1]
            return cls._of(*sort_edges(query, key, n_queries, n_keys), n_keys)
        query, key = edge_index if flow == "target_to_source" else edge_index[::-1]
        return cls._of(*sort_traced(query, key, n_queries, n_keys), n_keys)

    @classmethod
    def from_mask(cls, mask: ArrayLike) -> "Graph":
        """Prepare a mask; edges are numbered as in `np.argwhere(mask.any(-1))`.

        Args:
            mask: `[*batch, n_queries, n_keys, 1 or n_heads]`, bool. Batches become one
                block-diagonal graph.

        Raises:
            TypeError: `mask` is traced: the number of its edges has to be known.
            ValueError: `mask` is not bool or has fewer than three dimensions.
        """
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
        n_queries, n_keys, n_heads = values.shape[-3:]
        n_blocks = int(np.prod(values.shape[:-3]))
        blocks = values.reshape(n_blocks, n_queries, n_keys, n_heads)
        block, query, key = np.nonzero(blocks.any(-1))
        size = n_blocks * n_keys
        sorted_edges = sort_edges(
            query + block * n_queries, key + block * n_keys, n_blocks * n_queries, size
        )
        head_mask = blocks[block, query, key] if n_heads > 1 else None
        return cls._of(*sorted_edges, size, head_mask=head_mask, n_blocks=n_blocks)

    @classmethod
    def from_torch(cls, graph: "TorchGraph") -> "Graph":
        """Take over a PyTorch graph, without a copy where the memory allows.

        Raises:
            TypeError: the graph needs 64-bit indices, and JAX does not have them enabled.
        """
        ids = [
            None if own is None else on_device(_narrow(own.numpy()))
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
        )

    @classmethod
    def from_graphs_tuple(cls, graphs: Any) -> "Graph":
        """Prepare jraph's `GraphsTuple`, padded or not; inside of `jit` too.

        Its receivers are our queries, and its senders our keys: a node attends to those that send to it.
        Nodes and edges keep their numbers, so `graphs.nodes` are features, and `graphs.edges` features
        of edges, as they are.

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
        n_nodes = nodes[0].shape[0] if nodes else int(np.sum(graphs.n_node))
        xp: Any = np if is_concrete(graphs.senders) and is_concrete(graphs.receivers) else jnp
        return cls.from_edge_index(xp.stack((graphs.receivers, graphs.senders)), n_nodes)

    @classmethod
    def batch(cls, graphs: Sequence["Graph"]) -> "Graph":
        """Many graphs of any sizes as one, block-diagonal: nodes and edges are theirs, in turn.

        Features are concatenated alike, and results come apart by `jnp.split`. Padded to fixed numbers
        of edges and nodes, batches of any graphs share one compilation. Nothing is sorted again.

        Raises:
            TypeError: a graph is traced.
            ValueError: there are no graphs, one is padded, or their masks are for different numbers of
                heads.

        Example:
            >>> one = Graph.from_edge_index(np.array([[0, 1], [1, 0]]), n_nodes=2)
            >>> other = Graph.from_edge_index(np.array([[2], [0]]), n_nodes=3)
            >>> Graph.batch([one, other]).edge_index
            Array([[0, 1, 4],
                   [1, 0, 2]], dtype=int32)
        """
        if not graphs:
            raise ValueError("a batch needs at least one graph; got none")
        hosts = []
        for graph in graphs:
            require_concrete(graph, "batch")
            require_unpadded(graph, "a batch", "pad the batch")
            hosts.append(as_numpy(graph))
        counts = [(graph.n_queries, graph.n_keys, graph.n_edges) for graph in hosts]
        offsets = np.cumsum([(0, 0, 0), *counts], axis=0)
        dtype = np.int32 if offsets[-1].max() < 2**31 else np.int64

        def joined(arrays: Sequence[Any], by: int) -> Any:
            return np.concatenate(
                [
                    array.astype(dtype) + offset[by]
                    for array, offset in zip(arrays, offsets, strict=False)
                ]
            ).astype(dtype)

        end = offsets[-1:, 2].astype(dtype)
        query_ptr = np.append(joined([host.query_ptr[:-1] for host in hosts], 2), end)
        key_ptr = np.append(joined([host.by_key.ptr[:-1] for host in hosts], 2), end)
        return cls._of(
            Edges(
                query_ptr,
                joined([host.key_index for host in hosts], 1),
                joined([host.query_index for host in hosts], 0),
                joined([host.edge_id for host in hosts], 2),
            ),
            KeyOrder(
                key_ptr,
                joined([host.by_key.edge for host in hosts], 2),
                joined([host.by_key.query for host in hosts], 0),
            ),
            int(offsets[-1, 1]),
            head_mask=_join_head_masks(hosts),
            query_id=_join_ids([host.query_id for host in hosts], offsets[:, 0]),
            key_id=_join_ids([host.key_id for host in hosts], offsets[:, 1]),
        )

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
        arrays: dict[str, Any] = {
            name: torch.from_numpy(np.array(array))
            for name in ("query_ptr", "key_index", "query_index", "edge_id", "head_mask")
            if (array := getattr(host, name)) is not None
        }
        for name in ("query_id", "key_id"):
            if (own := getattr(host, name)) is not None:
                arrays[name] = torch.from_numpy(own.astype(np.int64))
        return TorchGraph(**arrays, n_keys=self.n_keys, n_blocks=self.n_blocks)

    @classmethod
    def _of(cls, edges: Edges, by_key: KeyOrder, n_keys: int, **others: Any) -> "Graph":
        """A graph of arrays of NumPy, or of traced ones."""
        arrays = {name: value for name, value in others.items() if name != "n_blocks"}
        edges, by_key, arrays = jax.tree.map(on_device, (edges, by_key, arrays))
        blocks = {"n_blocks": others["n_blocks"]} if "n_blocks" in others else {}
        return cls(
            query_ptr=edges.query_ptr,
            key_index=edges.key_index,
            query_index=edges.query_index,
            edge_id=edges.edge_id,
            by_key=by_key,
            n_keys=n_keys,
            **blocks,
            **arrays,
        )

    @property
    def n_queries(self) -> int:
        """Number of queries, with padding."""
        return self.query_ptr.shape[0] - 1

    @property
    def n_edges(self) -> int:
        """Number of edges, with padding."""
        return self.key_index.shape[0]

    @property
    def block_shape(self) -> tuple[int, int]:
        """Number of queries and of keys in one block; the whole graph's if there is one block."""
        n_blocks = max(self.n_blocks, 1)
        return self.n_queries // n_blocks, self.n_keys // n_blocks

    @property
    def edge_index(self) -> Array:
        """`[2, n_edges]`: queries and keys in the caller's order, then padding."""
        pairs = jnp.stack((self.query_index, self.key_index), axis=1)
        return self.in_callers_order(pairs, axis=0).T

    @property
    def is_edge(self) -> Array:
        """`[n_edges]` bool, in the graph's own order: False for padding."""
        return self.query_index < self.n_queries

    def multiplicity(self) -> Array:
        """`[n_edges]`: 0 for the first of parallel edges, 1 for the second, and so on."""
        position = jnp.arange(self.n_edges, dtype=self.key_index.dtype)
        is_repeated = (self.query_index[1:] == self.query_index[:-1]) & (
            self.key_index[1:] == self.key_index[:-1]
        )
        first = position.at[1:].set(jnp.where(is_repeated, 0, position[1:]))
        return position - jax.lax.cummax(first)

    def in_callers_order(self, values: Array, axis: int) -> Array:
        """Bring values of the sorted edges, along `axis`, to the order in which the caller gave them."""
        numbers = jnp.arange(self.n_edges, dtype=self.edge_id.dtype)
        position = jnp.zeros_like(self.edge_id).at[self.edge_id].set(numbers)
        return jnp.take(values, position, axis=axis)

    def padded(self, n_edges: int, n_nodes: NumberOfNodes | None = None) -> "Graph":
        """The graph with padding behind its edges, `n_edges` together, and behind its nodes.

        Attention weights of padding are zero, and come behind those of the caller's edges; results of
        queries that are padding are zero. Features of padding may be anything, NaN too.

        Args:
            n_edges: number of edges with padding.
            n_nodes: number of nodes with padding, or the pair (queries, keys); None for no padding.

        Raises:
            ValueError: the graph has more edges or nodes, or it is a batch of graphs of one size, whose
                nodes can't be padded.

        Example:
            >>> graph = Graph.from_edge_index(np.array([[0, 1], [1, 0]]), n_nodes=2).padded(3, 4)
            >>> graph.query_ptr, graph.query_index
            (Array([0, 1, 2, 2, 2], dtype=int32), Array([0, 1, 4], dtype=int32))
            >>> graph.query_mask
            Array([ True,  True, False, False], dtype=bool)
        """
        extra = n_edges - self.n_edges
        if extra < 0:
            raise ValueError(f"the graph has {self.n_edges} edges: it can't be padded to {n_edges}")
        graph = self if n_nodes is None else _with_nodes(self, *_read_sizes(n_nodes))
        numbers = np.arange(self.n_edges, n_edges)
        no_query, no_key = np.full(extra, graph.n_queries), np.full(extra, graph.n_keys)
        head_mask = graph.head_mask
        if head_mask is not None:
            head_mask = _extended(head_mask, np.zeros((extra, head_mask.shape[1])))
        by_key = graph.by_key
        return replace(
            graph,
            key_index=_extended(graph.key_index, no_key),
            query_index=_extended(graph.query_index, no_query),
            edge_id=_extended(graph.edge_id, numbers),
            by_key=KeyOrder(
                by_key.ptr, _extended(by_key.edge, numbers), _extended(by_key.query, no_query)
            ),
            head_mask=head_mask,
        )

    def split(self, n_parts: int) -> "Graph":
        """Split the queries evenly, for as many devices: parts stacked on the first axis of each array.

        A part has the edges of its queries, sorted by (query, key), which is also the order of its
        attention weights, and as much padding as makes the parts equally large; each part attends to
        all keys. Under `jax.shard_map`, `jax.vmap` or `jax.tree.map(lambda x: x[part], ...)` a part is a
        `Graph` like any other.

        Raises:
            TypeError: the graph is traced.
            ValueError: the queries do not divide evenly, or the graph is a batch of graphs.

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
        require_concrete(self, "split")
        if self.n_blocks != 1 or self.n_queries % n_parts:
            raise ValueError(
                f"only one graph whose queries divide by {n_parts} can be split so; got {self}"
            )
        size, host = self.n_queries // n_parts, as_numpy(self)
        bounds = host.query_ptr[:: max(size, 1)] if size else np.zeros(n_parts + 1, int)
        largest = int(np.diff(bounds).max())
        query_id = np.arange(self.n_queries) if host.query_id is None else host.query_id
        parts = []
        for part, (begin, end) in enumerate(pairwise(bounds)):
            queries = slice(part * size, (part + 1) * size)
            graph = Graph._of(
                *sort_edges(
                    host.query_index[begin:end] - part * size,
                    host.key_index[begin:end],
                    size,
                    self.n_keys,
                ),
                self.n_keys,
                head_mask=None if host.head_mask is None else host.head_mask[begin:end],
                query_id=_narrow(query_id[queries]),
                key_id=host.key_id,
                query_mask=None if host.query_mask is None else host.query_mask[queries],
            )
            parts.append(graph.padded(largest))
        stacked: Graph = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        return stacked

    def coalesce(self) -> "Graph":
        """The graph with each set of parallel edges replaced by one edge, numbered by (query, key).

        Raises:
            TypeError: the graph is traced.
        """
        require_concrete(self, "coalesce")
        host = as_numpy(self)
        is_first = np.asarray((self.multiplicity() == 0) & self.is_edge)
        head_mask = None if host.head_mask is None else host.head_mask[is_first]
        edges = sort_edges(
            host.query_index[is_first], host.key_index[is_first], self.n_queries, self.n_keys
        )
        return Graph._of(
            *edges,
            self.n_keys,
            head_mask=head_mask,
            n_blocks=self.n_blocks,
            query_id=self.query_id,
            key_id=self.key_id,
            query_mask=self.query_mask,
        )

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
        check_has_self_loops(*self.block_shape)
        return _with_self_loops(self)

    def to_mask(self) -> Array:
        """The graph as a mask: `[n_queries, n_keys, 1 or n_heads]`, bool; blocks as a batch in front.

        Raises:
            TypeError: the graph is traced: parallel edges are not seen there.
            ValueError: the graph has parallel edges, or numbers of its own for nodes, which a mask
                cannot hold.
        """
        if not is_concrete(self.query_ptr):
            raise TypeError(
                "backend='dense' needs a mask where the graph is traced: parallel edges, which a mask "
                "can't hold, are not seen there. Pass the mask, or use backend='sparse'"
            )
        if self.query_id is not None or self.key_id is not None:
            raise ValueError(
                "the graph numbers its nodes for dropout (`query_id`, `key_id`), which a dense mask "
                "cannot hold: use backend='sparse'"
            )
        if ((self.multiplicity() > 0) & self.is_edge).any():
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
        return mask if self.n_blocks > 1 else mask[0]

    def __repr__(self) -> str:
        blocks = f", n_blocks={self.n_blocks}" if self.n_blocks > 1 else ""
        return (
            f"Graph(n_queries={self.n_queries}, n_keys={self.n_keys}, n_edges={self.n_edges}{blocks}, "
            f"dtype={self.key_index.dtype})"
        )


jax.export.register_namedtuple_serialization(KeyOrder, serialized_name="gatv2.jax.KeyOrder")
jax.export.register_pytree_node_serialization(
    Graph,
    serialized_name="gatv2.jax.Graph",
    serialize_auxdata=lambda static: json.dumps(static).encode(),
    deserialize_auxdata=lambda text: tuple(json.loads(text)),
)


def is_concrete(array: object) -> bool:
    """Whether an array holds values of its own, and is not traced by a transformation."""
    return not isinstance(array, jax.core.Tracer)


def require_concrete(graph: Graph, verb: str) -> None:
    """Raise a TypeError if the edges of a graph are traced."""
    if not is_concrete(graph.query_ptr):
        raise TypeError(f"to {verb} a graph its edges must be known: do it outside of `jit`")


def require_unpadded(graph: Graph, what: str, remedy: str) -> None:
    """Raise a ValueError if edges or nodes of a graph are padding."""
    if graph.query_mask is not None or int(graph.query_ptr[-1]) != graph.n_edges:
        raise ValueError(f"{what} has no padding, and this graph has: {remedy}")


def as_numpy(graph: Graph) -> Any:
    """The graph with arrays of NumPy."""
    return jax.tree.map(np.asarray, graph)


def check_edge_index(edge_index: Any) -> None:
    """Raise a TypeError or ValueError unless an array has an edge index's dtype and shape."""
    if not isinstance(edge_index, jax.Array | np.ndarray):
        raise TypeError(
            "an edge index must be an array of JAX or NumPy; "
            f"got {type(edge_index).__name__}: convert it with `np.asarray(edge_index)`"
        )
    if not jnp.issubdtype(edge_index.dtype, jnp.integer):
        raise TypeError(
            f"an edge index must hold integers; got {edge_index.dtype}: "
            "convert it with `edge_index.astype(int)`"
        )
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(
            f"an edge index must have shape (2, n_edges); got {tuple(edge_index.shape)}"
        )


def _read_sizes(n_nodes: NumberOfNodes) -> tuple[int, int]:
    pair: Sequence[Any] = n_nodes if isinstance(n_nodes, Sequence) else (n_nodes, n_nodes)
    try:
        sizes: list[Any] = [n if jax.export.is_symbolic_dim(n) else operator.index(n) for n in pair]
        n_queries, n_keys = sizes
    except (TypeError, ValueError):
        raise TypeError(
            "the number of nodes must be an integer, or a pair of them, (number of queries, number of "
            f"keys); got {n_nodes!r}"
        ) from None
    if n_queries < 0 or n_keys < 0:
        raise ValueError(f"numbers of nodes must not be negative; got {(n_queries, n_keys)}")
    return n_queries, n_keys


def _with_nodes(graph: Graph, n_queries: int, n_keys: int) -> Graph:
    """The graph with nodes that are padding; edges that are padding point past them."""
    more_queries, more_keys = n_queries - graph.n_queries, n_keys - graph.n_keys
    if more_queries < 0 or more_keys < 0 or graph.n_blocks != 1:
        raise ValueError(
            f"{graph} can't be padded to {n_queries} queries and {n_keys} keys: it has more, or is a "
            "batch of graphs of one size"
        )
    query_mask = np.ones(graph.n_queries, bool) if graph.query_mask is None else graph.query_mask
    is_padding = graph.query_index == graph.n_queries
    by_key, n_edges = graph.by_key, graph.query_ptr[-1:]
    return replace(
        graph,
        query_ptr=jnp.concatenate((graph.query_ptr, jnp.repeat(n_edges, more_queries))),
        key_index=jnp.where(is_padding, n_keys, graph.key_index),
        query_index=jnp.where(is_padding, n_queries, graph.query_index),
        by_key=KeyOrder(
            jnp.concatenate((by_key.ptr, jnp.repeat(n_edges, more_keys))),
            by_key.edge,
            jnp.where(by_key.query == graph.n_queries, n_queries, by_key.query),
        ),
        n_keys=n_keys,
        query_id=_extended_ids(graph.query_id, n_queries),
        key_id=_extended_ids(graph.key_id, n_keys),
        query_mask=_extended(jnp.asarray(query_mask), np.zeros(more_queries)),
    )


def _with_self_loops(graph: Graph) -> SelfLoops:
    n_nodes = graph.n_queries
    xp: Any = np if is_concrete(graph.query_ptr) else jnp
    query, key = xp.asarray(graph.edge_index)
    is_edge = xp.asarray(graph.in_callers_order(graph.is_edge, axis=0))
    is_other = is_edge & (query != key)
    kept: Any = xp.arange(graph.n_edges, dtype=graph.edge_id.dtype)
    if xp is np:
        kept = kept[is_other]
        query, key, is_other = query[kept], key[kept], is_other[kept]
    query = xp.where(is_other, query, -1)  # a traced edge that is no other one is dropped
    node = xp.arange(n_nodes, dtype=query.dtype)
    if graph.query_mask is not None:
        is_node = xp.asarray(graph.query_mask)
        node = node[is_node] if xp is np else xp.where(is_node, node, -1)
    edge_index = xp.stack((xp.concatenate((query, node)), xp.concatenate((key, node))))
    result = Graph.from_edge_index(edge_index, (n_nodes, n_nodes))
    head_mask = graph.head_mask
    if head_mask is not None:
        of_kept = graph.in_callers_order(head_mask, axis=0)[kept]
        of_loops = jnp.ones((node.shape[0], head_mask.shape[1]), bool)
        head_mask = jnp.concatenate((of_kept, of_loops))[result.edge_id]
    result = replace(
        result,
        head_mask=head_mask,
        n_blocks=graph.n_blocks,
        query_id=graph.query_id,
        key_id=graph.key_id,
        query_mask=graph.query_mask,
    )
    return SelfLoops(result, on_device(kept), on_device(is_other), on_device(query))


def check_has_self_loops(n_queries: int, n_keys: int) -> None:
    """Raise a ValueError unless queries and keys can be the same nodes."""
    if n_queries != n_keys:
        raise ValueError(
            f"a graph of {n_queries} queries and {n_keys} keys has no self-loops to add: with "
            "add_self_loops=False pass the edges that you want"
        )


def _join_head_masks(graphs: Sequence[Any]) -> Any:
    masks = [graph.head_mask for graph in graphs if graph.head_mask is not None]
    if not masks:
        return None
    heads = {mask.shape[1] for mask in masks}
    if len(heads) > 1:
        raise ValueError(f"masks in a batch must be for one number of heads; got {sorted(heads)}")
    return np.concatenate(
        [
            np.ones((graph.n_edges, *heads), bool) if graph.head_mask is None else graph.head_mask
            for graph in graphs
        ]
    )


def _join_ids(ids: Sequence[Any], offsets: Any) -> Any:
    """Numbers of the nodes of a batch: those that a graph gives them, else their positions."""
    if all(own is None for own in ids):
        return None
    bounds = pairwise(offsets)
    return _narrow(
        np.concatenate(
            [
                np.arange(*bound) if own is None else own
                for own, bound in zip(ids, bounds, strict=True)
            ]
        )
    )


def _extended_ids(ids: Array | None, n_nodes: int) -> Array | None:
    return None if ids is None else _extended(ids, np.arange(ids.shape[0], n_nodes))


def _extended(array: Array, tail: np.ndarray[Any, Any]) -> Array:
    # with NumPy where the values are known: nothing is compiled for the size of each graph
    concatenate = np.concatenate if is_concrete(array) else jnp.concatenate
    return jnp.asarray(concatenate((array, tail.astype(array.dtype))))


def _narrow(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers of nodes as int32, if they fit."""
    fits = ids.size == 0 or (ids.min() >= -(2**31) and ids.max() < 2**31)
    return ids.astype(np.int32) if fits else ids
