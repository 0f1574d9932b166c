"""Prepared: features and a graph in the form that kernels read, and results as the caller sees them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gatv2.jax.adjacency import (
    Adjacency,
    Sizes,
    common_batch_shape,
    read_adjacency,
    to_backend,
)
from gatv2.jax.arrays import ArrayLike
from gatv2.jax.edge_features import (
    EdgeInputs,
    as_backend_reads,
    as_edge_inputs,
    broadcast_batch,
)
from gatv2.jax.graph import Graph
from gatv2.options import Backend, Flow, check_backend


class Prepared(NamedTuple):
    """Features and a graph, in the form that kernels read."""

    query: jax.Array
    key: jax.Array
    adjacency: Adjacency
    edges: EdgeInputs | None
    out_shape: tuple[int, ...]

    @classmethod
    def of(
        cls,
        query: jax.Array,
        key: jax.Array,
        graph: object,
        edge_features: ArrayLike | None = None,
        edge_projection: ArrayLike | None = None,
        *,
        flow: Flow,
        backend: Backend,
    ) -> "Prepared":
        """Bring a caller's graph to the form of a backend, and all the rest to its layout."""
        edges = as_edge_inputs(edge_features, edge_projection, query)
        batch_shape = common_batch_shape(graph, query.shape[:-3])
        if edges is not None:
            batch_shape = broadcast_batch(edges.features, graph, batch_shape)
        n_queries, n_heads, n_hidden = query.shape[-3:]
        sizes = Sizes(n_queries, key.shape[-3], n_heads, batch_shape)
        check_backend(backend)
        read = read_adjacency(graph, sizes, flow=flow)
        listed = read if isinstance(read, Graph) else graph
        adjacency = to_backend(read, sizes, backend)
        if edges is not None:
            rows = as_backend_reads(edges.features, listed, adjacency, sizes, flow)
            edges = EdgeInputs(rows, edges.projection)
        query = jnp.broadcast_to(query, (*batch_shape, *query.shape[-3:]))
        key = jnp.broadcast_to(key, (*batch_shape, *key.shape[-3:]))
        out_shape = query.shape
        if isinstance(adjacency, Graph) and adjacency.n_blocks != 1:
            query, key = (
                x.reshape(math.prod(x.shape[:-2]), n_heads, n_hidden) for x in (query, key)
            )
        return cls(query, key, adjacency, edges, out_shape)

    def results(
        self, out: jax.Array, lse: jax.Array | None, alpha: jax.Array | None
    ) -> jax.Array | tuple[jax.Array, ...]:
        """What the caller asked for, as the caller sees it: (out, coefficients, log-sum-exp)."""
        results = [out.reshape(self.out_shape)]
        if alpha is not None:
            if isinstance(self.adjacency, Graph):
                alpha = self.adjacency.in_callers_order(alpha, axis=-2)
            results.append(alpha)
        if lse is not None:
            results.append(lse.reshape(self.out_shape[:-1]))
        return results[0] if len(results) == 1 else tuple(results)

    def scores(self, scores: jax.Array) -> jax.Array:
        """Scores of edges or pairs as the caller sees them."""
        dtype = self.query.dtype
        if not isinstance(self.adjacency, Graph):
            return jnp.where(self.adjacency, scores, -math.inf).astype(dtype)
        if self.adjacency.head_mask is not None:
            scores = jnp.where(self.adjacency.head_mask, scores, -math.inf)
        return self.adjacency.in_callers_order(scores, axis=-2).astype(dtype)
