"""Prepared: features and a graph in the form that kernels read, and results as the caller sees them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gatv2.jax.adjacency import (
    Adjacency,
    Sizes,
    all_pairs,
    common_batch_shape,
    read_adjacency,
    to_backend,
)
from gatv2.jax.arrays import ArrayLike
from gatv2.jax.dense import reference as dense
from gatv2.jax.edge_features import (
    EdgeInputs,
    as_backend_reads,
    as_edge_inputs,
    as_score_bias,
    broadcast_batch,
)
from gatv2.jax.graph import Graph
from gatv2.jax.sparse import reference as sparse
from gatv2.options import Backend, Flow, check_backend


class Prepared(NamedTuple):
    """Features and a graph, in the form that kernels read."""

    query: jax.Array
    key: jax.Array
    adjacency: Adjacency
    edges: EdgeInputs | None
    score_bias: jax.Array | None
    out_shape: tuple[int, ...]

    @classmethod
    def of(
        cls,
        query: jax.Array,
        key: jax.Array,
        graph: object,
        edge_features: ArrayLike | None = None,
        edge_projection: ArrayLike | None = None,
        score_bias: ArrayLike | None = None,
        *,
        flow: Flow,
        backend: Backend,
    ) -> "Prepared":
        """Bring a caller's graph to the form of a backend, and all the rest to its layout."""
        edges = as_edge_inputs(edge_features, edge_projection, query)
        bias = as_score_bias(score_bias, query, query.shape[-2])
        if graph is None:
            graph = all_pairs((query.shape[-3], key.shape[-3]), bias, flow)
        batch_shape = common_batch_shape(graph, query.shape[:-3])
        if edges is not None:
            batch_shape = broadcast_batch(edges.features, graph, batch_shape)
        if bias is not None:
            batch_shape = broadcast_batch(bias, graph, batch_shape, "score_bias")
        n_queries, n_heads, n_hidden = query.shape[-3:]
        sizes = Sizes(n_queries, key.shape[-3], n_heads, batch_shape)
        check_backend(backend)
        read = read_adjacency(graph, sizes, flow=flow)
        listed = read if isinstance(read, Graph) else graph
        adjacency = to_backend(read, sizes, backend)
        if edges is not None:
            rows = as_backend_reads(edges.features, listed, adjacency, sizes, flow)
            edges = EdgeInputs(rows, edges.projection)
        if bias is not None:
            bias = as_backend_reads(bias, listed, adjacency, sizes, flow, "score_bias")
        query = jnp.broadcast_to(query, (*batch_shape, *query.shape[-3:]))
        key = jnp.broadcast_to(key, (*batch_shape, *key.shape[-3:]))
        out_shape = query.shape
        if isinstance(adjacency, Graph) and adjacency.batch_dims:
            query, key = (
                x.reshape(math.prod(x.shape[:-2]), n_heads, n_hidden) for x in (query, key)
            )
        return cls(query, key, adjacency, edges, bias, out_shape)

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
        """Scores of edges or pairs, with their bias, as the caller sees them."""
        dtype, adjacency = self.query.dtype, self.adjacency
        scores = self.add_bias(scores)
        if not isinstance(adjacency, Graph):
            return jnp.where(adjacency, scores, -math.inf).astype(dtype)
        if adjacency.head_mask is not None:
            scores = jnp.where(adjacency.head_mask, scores, -math.inf)
        return adjacency.in_callers_order(scores, axis=-2).astype(dtype)

    def without_removed(self) -> "Prepared":
        """The same without the edges that a bias of -inf takes from a head; for the references."""
        adjacency = self.adjacency
        if isinstance(adjacency, Graph):
            return self._replace(adjacency=sparse.without_removed(adjacency, self.score_bias))
        return self._replace(adjacency=dense.without_removed(adjacency, self.score_bias))

    def add_bias(self, scores: jax.Array) -> jax.Array:
        """Scores and their bias; what that removes is taken out before, by `without_removed`."""
        if isinstance(self.adjacency, Graph):
            return sparse.add_bias(scores, self.score_bias, self.adjacency)
        return dense.add_bias(scores, self.score_bias, self.adjacency)
