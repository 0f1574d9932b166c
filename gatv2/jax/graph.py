"""Graph: the prepared form of a graph, as a pytree whose sizes are static.

Fields, order of edges and rules are those of :class:`gatv2.graph.Graph`, and so is the code that
prepares a graph whose values are known. What is new is padding: an edge from query `n_queries`, which
does not exist, to key `n_keys`, sorted behind all others. Gathering reads zeros there and scattering
drops what it is given, so padding changes nothing, and graphs of several sizes share one compilation.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from gatv2 import graph as torch_graph
from gatv2.jax.interop import as_jax
from gatv2.options import Flow, check_flow

Array = jax.Array
ArrayLike = jax.Array | np.ndarray[Any, Any]


class KeyOrder(NamedTuple):
    """The edges of a graph in the order (key, query): CSC, which the backward pass reads."""

    ptr: Array
    """`[n_keys + 1]`: the edges of key j are `ptr[j]:ptr[j + 1]`."""
    edge: Array
    """`[n_edges]`: position of the edge in the graph's own order, by query."""
    query: Array
    """`[n_edges]`: query of the edge."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A graph's edges, sorted by query: query i attends to the keys of its edges.

    Build it once, outside of `jit`, with `from_edge_index`, `from_mask` or `from_torch`, and pass it to
    compiled functions as an argument: its arrays are traced, its sizes are static.

    Attributes:
        query_ptr: `[n_queries + 1]`, CSR: the edges of query i are `query_ptr[i]:query_ptr[i + 1]`.
        key_index: `[n_edges]`, key of each edge.
        query_index: `[n_edges]`, query of each edge, ascending.
        edge_id: `[n_edges]`, the caller's number of each edge.
        by_key: the edges sorted by (key, query).
        n_keys: number of keys, static.
        head_mask: `[n_edges, n_heads]` bool, the heads that use an edge; None if all do.
        first_query: number of query 0 in the graph that this one is a part of; None for 0.
        n_blocks: B if the graph is the block-diagonal union of B graphs of one size, else 1; static.

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
    first_query: Array | None = None
    n_blocks: int = field(default=1, metadata={"static": True})

    @classmethod
    def from_edge_index(
        cls,
        edge_index: ArrayLike,
        n_nodes: int | tuple[int, int],
        *,
        flow: Flow = "target_to_source",
    ) -> "Graph":
        """Prepare an edge index; inside of `jit` too, where indices are not checked.

        Args:
            edge_index: `[2, n_edges]`, integer. Row 0 holds queries, row 1 holds keys: an edge (i, j)
                lets i attend to j.
            n_nodes: number of nodes, or the pair (number of queries, number of keys).
            flow: "source_to_target", PyTorch Geometric's default, reads row 0 as keys and row 1
                as queries.

        Raises:
            TypeError: `edge_index` does not hold integers.
            ValueError: `edge_index` is not `[2, n_edges]`, or `flow` is unknown.
            IndexError: an index is negative or past the end.
        """
        check_flow(flow)
        if not jnp.issubdtype(edge_index.dtype, jnp.integer):
            raise TypeError(
                f"an edge index must hold integers; got {edge_index.dtype}: "
                "convert it with `edge_index.astype(int)`"
            )
        if edge_index.ndim != 2 or edge_index.shape[0] != 2:
            raise ValueError(
                f"an edge index must have shape (2, n_edges); got {tuple(edge_index.shape)}"
            )
        if is_concrete(edge_index):
            values = torch.from_numpy(np.array(edge_index))
            return cls.from_torch(torch_graph.Graph.from_edge_index(values, n_nodes, flow=flow))
        query, key = edge_index if flow == "target_to_source" else edge_index[::-1]
        n_queries, n_keys = (n_nodes, n_nodes) if isinstance(n_nodes, int) else n_nodes
        return cls._from_traced(jnp.asarray(query), jnp.asarray(key), n_queries, n_keys)

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
        return cls.from_torch(torch_graph.Graph.from_mask(torch.from_numpy(np.array(mask))))

    @classmethod
    def from_torch(cls, graph: torch_graph.Graph) -> "Graph":
        """Take over a PyTorch graph, without a copy where the memory allows.

        Raises:
            TypeError: the graph needs 64-bit indices, and JAX does not have them enabled.
            ValueError: the graph numbers its nodes for dropout, which this one does not.
        """
        if graph.query_id is not None or graph.key_id is not None:
            raise ValueError(
                "a JAX graph has no `query_id` and `key_id`: take over the graph without them, "
                "`dataclasses.replace(graph, query_id=None, key_id=None)`"
            )
        return cls(
            query_ptr=as_jax(graph.query_ptr),
            key_index=as_jax(graph.key_index),
            query_index=as_jax(graph.query_index),
            edge_id=as_jax(graph.edge_id),
            by_key=KeyOrder(*map(as_jax, graph.by_key)),
            n_keys=graph.n_keys,
            head_mask=None if graph.head_mask is None else as_jax(graph.head_mask),
            n_blocks=graph.n_blocks,
        )

    @classmethod
    def _from_traced(cls, query: Array, key: Array, n_queries: int, n_keys: int) -> "Graph":
        query, key = query.astype(jnp.int32), key.astype(jnp.int32)
        edge_id = jnp.lexsort((key, query)).astype(jnp.int32)
        query_index, key_index = query[edge_id], key[edge_id]
        edge = jnp.argsort(key_index, stable=True).astype(jnp.int32)
        return cls(
            query_ptr=_pointers(query_index, n_queries),
            key_index=key_index,
            query_index=query_index,
            edge_id=edge_id,
            by_key=KeyOrder(_pointers(key_index[edge], n_keys), edge, query_index[edge]),
            n_keys=n_keys,
        )

    @property
    def n_queries(self) -> int:
        """Number of queries."""
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

    def padded(self, n_edges: int) -> "Graph":
        """The graph with padding behind its edges, `n_edges` together.

        Attention weights of padding are zero, and come behind those of the caller's edges.

        Raises:
            ValueError: the graph has more edges.
        """
        extra = n_edges - self.n_edges
        if extra < 0:
            raise ValueError(f"the graph has {self.n_edges} edges: it can't be padded to {n_edges}")
        numbers = np.arange(self.n_edges, n_edges)
        return replace(
            self,
            key_index=_extended(self.key_index, np.full(extra, self.n_keys)),
            query_index=_extended(self.query_index, np.full(extra, self.n_queries)),
            edge_id=_extended(self.edge_id, numbers),
            by_key=KeyOrder(
                self.by_key.ptr,
                _extended(self.by_key.edge, numbers),
                _extended(self.by_key.query, np.full(extra, self.n_queries)),
            ),
            head_mask=None
            if self.head_mask is None
            else _extended(self.head_mask, np.zeros((extra, self.head_mask.shape[1]))),
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
            >>> parts.first_query
            Array([0, 2], dtype=int32)
        """
        if not is_concrete(self.query_ptr):
            raise TypeError("a graph is split outside of `jit`, where its edges are known")
        if self.n_blocks != 1 or self.first_query is not None or self.n_queries % n_parts:
            raise ValueError(
                f"only one graph whose queries divide by {n_parts} can be split so; got {self}"
            )
        size = self.n_queries // n_parts
        ptr = np.asarray(self.query_ptr)
        bounds = ptr[:: max(size, 1)] if size else np.zeros(n_parts + 1, ptr.dtype)
        largest = int(np.diff(bounds).max())
        edges = np.stack((self.query_index, self.key_index))
        parts = []
        for part, (begin, end) in enumerate(pairwise(bounds)):
            shift = np.array([[part * size], [0]], edges.dtype)
            graph = Graph.from_edge_index(edges[:, begin:end] - shift, (size, self.n_keys))
            if self.head_mask is not None:
                head_mask = np.asarray(self.head_mask)[begin:end]
                graph = replace(graph, head_mask=jnp.asarray(head_mask))
            graph = replace(graph, first_query=jnp.int32(part * size))
            parts.append(graph.padded(largest))
        stacked: Graph = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        return stacked

    def __repr__(self) -> str:
        blocks = f", n_blocks={self.n_blocks}" if self.n_blocks > 1 else ""
        return (
            f"Graph(n_queries={self.n_queries}, n_keys={self.n_keys}, n_edges={self.n_edges}{blocks}, "
            f"dtype={self.key_index.dtype})"
        )


def is_concrete(array: object) -> bool:
    """Whether an array holds values of its own, and is not traced by a transformation."""
    return not isinstance(array, jax.core.Tracer)


def _pointers(sorted_index: Array, n_nodes: int) -> Array:
    nodes = jnp.arange(n_nodes + 1, dtype=sorted_index.dtype)
    return jnp.searchsorted(sorted_index, nodes).astype(jnp.int32)


def _extended(array: Array, tail: np.ndarray[Any, Any]) -> Array:
    # with NumPy where the values are known: nothing is compiled for the size of each graph
    concatenate = np.concatenate if is_concrete(array) else jnp.concatenate
    return jnp.asarray(concatenate((array, tail.astype(array.dtype))))
