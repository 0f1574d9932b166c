"""SortedEdges: what a graph holds, and what follows from that alone."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import ArrayLike, NumPyArray, is_concrete, on_device
from gatv2.jax.graph.sort import Array, KeyOrder, Sorted
from gatv2.options import Flow

Traced = TypeVar("Traced", bound="SortedEdges[jax.Array]")


@dataclass(frozen=True, eq=False, repr=False)
class SortedEdges(Generic[Array]):
    """Edges sorted by (query, key), and the way back to the caller's order of them.

    Attributes are those of :class:`gatv2.jax.Graph`, of arrays of one kind, NumPy's or JAX's.
    """

    query_ptr: Array
    key_index: Array
    query_index: Array
    edge_id: Array
    by_key: KeyOrder[Array]
    n_keys: int = field(metadata={"static": True})
    head_mask: Array | None = None
    n_blocks: int = field(default=1, metadata={"static": True})
    query_id: Array | None = None
    key_id: Array | None = None
    query_mask: Array | None = None
    flow: Flow = field(default="target_to_source", metadata={"static": True})
    is_bipartite: bool = field(default=False, metadata={"static": True})
    batch_shape: tuple[int, ...] | None = field(default=None, metadata={"static": True})

    @property
    def n_queries(self) -> int:
        """Number of queries, with padding."""
        n_queries: int = self.query_ptr.shape[-1] - 1
        return n_queries

    @property
    def n_edges(self) -> int:
        """Number of edges, with padding."""
        n_edges: int = self.key_index.shape[-1]
        return n_edges

    @property
    def stacked(self) -> tuple[int, ...]:
        """Axes in front of each array, where graphs of one size are stacked; () for a graph alone."""
        axes: tuple[int, ...] = self.query_ptr.shape[:-1]
        return axes

    @property
    def block_shape(self) -> tuple[int, int]:
        """Number of queries and of keys in one block; the whole graph's if there is one block."""
        n_blocks = max(self.n_blocks, 1)
        return self.n_queries // n_blocks, self.n_keys // n_blocks

    @property
    def batch_dims(self) -> tuple[int, ...]:
        """Batch dimensions of a batch of graphs, also of one or of none; () for a graph alone."""
        if self.batch_shape is not None:
            return self.batch_shape
        return () if self.n_blocks == 1 else (self.n_blocks,)

    @property
    def edge_index(self) -> jax.Array:
        """`[2, n_edges]`: queries and keys in the caller's order, then padding."""
        pairs = jnp.stack((self.query_index, self.key_index), axis=1)
        return self.in_callers_order(pairs, axis=0).T

    @property
    def is_edge(self) -> Array:
        """`[n_edges]` bool, in the graph's own order: False for padding."""
        return self.query_index < self.n_queries

    def multiplicity(self) -> jax.Array:
        """`[n_edges]`: 0 for the first of parallel edges, 1 for the second, and so on."""
        position = jnp.arange(self.n_edges, dtype=self.key_index.dtype)
        is_repeated = (self.query_index[1:] == self.query_index[:-1]) & (
            self.key_index[1:] == self.key_index[:-1]
        )
        first = position.at[1:].set(jnp.where(is_repeated, 0, position[1:]))
        return position - jax.lax.cummax(first)

    def in_callers_order(self, values: jax.Array, axis: int) -> jax.Array:
        """Bring values of the sorted edges, along `axis`, to the order in which the caller gave them."""
        numbers = jnp.arange(self.n_edges, dtype=self.edge_id.dtype)
        position = jnp.zeros_like(self.edge_id).at[self.edge_id].set(numbers)
        return jnp.take(values, position, axis=axis)

    def __repr__(self) -> str:
        if not (getattr(self.query_ptr, "ndim", 0) and getattr(self.key_index, "ndim", 0)):
            # axes, specifications or None, which transformations of JAX have in the place of arrays
            named = (f"{own.name}={getattr(self, own.name)!r}" for own in fields(self))
            return f"Graph({', '.join(named)})"
        blocks = f", n_blocks={self.n_blocks}" if self.n_blocks != 1 else ""
        if self.batch_shape not in (None, (self.n_blocks,)) or self.batch_shape == (1,):
            blocks += f", batch_shape={self.batch_shape}"
        blocks += f", stacked={self.stacked}" if self.stacked else ""
        blocks += ", is_bipartite=True" if self.is_bipartite else ""
        blocks += f", flow={self.flow!r}" if self.flow != "target_to_source" else ""
        return (
            f"Graph(n_queries={self.n_queries}, n_keys={self.n_keys}, n_edges={self.n_edges}{blocks}, "
            f"dtype={self.key_index.dtype})"
        )


def of_sorted(
    kind: type[Traced],
    sorted_edges: Sorted[jax.Array] | Sorted[NumPyArray],
    n_keys: int,
    *,
    n_blocks: int = 1,
    head_mask: ArrayLike | None = None,
    query_id: ArrayLike | None = None,
    key_id: ArrayLike | None = None,
    query_mask: ArrayLike | None = None,
    flow: Flow = "target_to_source",
    is_bipartite: bool = False,
    batch_shape: tuple[int, ...] | None = None,
) -> Traced:
    """A graph of arrays of NumPy, or of traced ones."""
    placed: Sorted[jax.Array] = jax.tree.map(on_device, sorted_edges)
    edges, by_key = placed
    return kind(
        *edges,
        by_key,
        n_keys,
        head_mask=_placed(head_mask),
        n_blocks=n_blocks,
        query_id=_placed(query_id),
        key_id=_placed(key_id),
        query_mask=_placed(query_mask),
        flow=flow,
        is_bipartite=is_bipartite,
        batch_shape=batch_shape,
    )


def with_nodes_of(graph: SortedEdges[jax.Array], other: Traced) -> Traced:
    """`other`, with what `graph` has beside its edges."""
    names = ("n_blocks", "query_id", "key_id", "query_mask", "flow", "is_bipartite", "batch_shape")
    return replace(other, **{name: getattr(graph, name) for name in names})


def _placed(array: ArrayLike | None) -> jax.Array | None:
    return None if array is None else on_device(array)


def as_numpy(graph: SortedEdges[jax.Array]) -> SortedEdges[NumPyArray]:
    """The graph with arrays of NumPy."""
    host: SortedEdges[NumPyArray] = jax.tree.map(np.asarray, graph)
    return host


def is_known(graph: SortedEdges[jax.Array]) -> bool:
    """Whether no array of a graph is traced; one may be of which the others are known."""
    return all(map(is_concrete, jax.tree.leaves(graph)))


def require_concrete(graph: SortedEdges[jax.Array], verb: str) -> None:
    """Raise unless `graph` is one graph, whose edges are known."""
    if not isinstance(graph, SortedEdges):
        raise TypeError(
            f"a gatv2.jax.Graph was expected; got {type(graph).__name__}: make one with "
            "`Graph.from_edge_index(edge_index, n_nodes)`, or of one of PyTorch with `Graph.from_torch`"
        )
    require_unstacked(graph)
    if not is_known(graph):
        raise TypeError(f"to {verb} a graph its edges must be known: do it outside of `jit`")


def require_unstacked(graph: SortedEdges[jax.Array]) -> None:
    """Raise a ValueError if several graphs are stacked in the arrays of one."""
    if graph.stacked:
        raise ValueError(
            f"the graph is {math.prod(graph.stacked)} graphs, stacked: map over them with `jax.vmap`, "
            "`jax.lax.scan` or `jax.shard_map`, or join graphs with `Graph.batch` instead"
        )


def repeated_edges(graph: SortedEdges[jax.Array]) -> NumPyArray:
    """`[n_edges]` bool, of edges that are known: True for all but the first of parallel edges."""
    with jax.ensure_compile_time_eval():  # also where a program around the graph is traced
        return np.asarray((graph.multiplicity() > 0) & graph.is_edge)


def require_unpadded(graph: SortedEdges[jax.Array], what: str, remedy: str) -> None:
    """Raise a ValueError if edges or nodes of a graph are padding."""
    if graph.query_mask is not None or np.asarray(graph.query_ptr)[-1] != graph.n_edges:
        raise ValueError(f"{what} has no padding, and this graph has: {remedy}")
