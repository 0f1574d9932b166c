"""Prepared: features and a graph in the form that kernels read, and results as the caller sees them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

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
from gatv2.jax.mesh import on_auto_axes
from gatv2.jax.sparse import reference as sparse
from gatv2.options import Backend, Flow, check_backend

Results = TypeVar("Results")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prepared:
    """Features and a graph, in the form that kernels read, but for the batch; see `batched`."""

    query: jax.Array
    key: jax.Array
    adjacency: Adjacency
    edges: EdgeInputs | None
    score_bias: jax.Array | None
    out_shape: tuple[int, ...] = field(metadata={"static": True})

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
        sizes = Sizes(query.shape[-3], key.shape[-3], query.shape[-2], batch_shape)
        check_backend(backend)
        read = read_adjacency(graph, sizes, flow=flow)
        listed = read if isinstance(read, Graph) else graph
        adjacency = to_backend(read, sizes, backend)
        if edges is not None:
            rows = as_backend_reads(edges.features, listed, adjacency, sizes, flow)
            edges = EdgeInputs(rows, edges.projection)
        if bias is not None:
            bias = as_backend_reads(bias, listed, adjacency, sizes, flow, "score_bias")
        return cls(query, key, adjacency, edges, bias, (*batch_shape, *query.shape[-3:]))

    def batched(self) -> "Prepared":
        """The same with the batch of the result in each array, and graphs of a batch as one."""
        *batch_shape, _, n_heads, n_hidden = self.out_shape
        adjacency = self.adjacency

        def batched(values: jax.Array, n_own: int) -> jax.Array:
            return jnp.broadcast_to(values, (*batch_shape, *values.shape[-n_own:]))

        query, key = batched(self.query, 3), batched(self.key, 3)
        edges, bias = self.edges, self.score_bias
        if isinstance(adjacency, Graph) and adjacency.batch_dims:
            query, key = (
                x.reshape(math.prod(x.shape[:-2]), n_heads, n_hidden) for x in (query, key)
            )
        else:
            n_own = 2 if isinstance(adjacency, Graph) else 3
            if edges is not None:
                edges = edges._replace(features=batched(edges.features, n_own))
            bias = None if bias is None else batched(bias, n_own)
        return replace(self, query=query, key=key, edges=edges, score_bias=bias)

    def on_auto_axes(
        self, function: Callable[..., Results], wanted: tuple[str, ...]
    ) -> Callable[..., Results]:
        """A function of this and other arrays, computed as `gatv2.jax.mesh.on_auto_axes` does.

        Args:
            function: returns what `wanted` names, a tuple unless that is one.
            wanted: of "out", "alpha" and "lse", as the caller sees them; alpha stands for scores too.
        """

        def specs(of_query: PartitionSpec) -> object:
            n_new, n_behind = len(self.out_shape) - self.query.ndim, self.query.ndim - len(of_query)
            axes: list[object] = [*[None] * n_new, *of_query, *[None] * n_behind]
            *batch, node, head, feature = axes
            pairs = [*batch, node, None]
            if isinstance(self.adjacency, Graph):
                pairs = [None] if self.adjacency.batch_dims else [*batch, None]
            by_name = {
                "out": PartitionSpec(*batch, node, head, feature),
                "alpha": PartitionSpec(*pairs, head),
                "lse": PartitionSpec(*batch, node, head),
            }
            of_results = tuple(by_name[name] for name in wanted)
            return of_results[0] if len(wanted) == 1 else of_results

        return on_auto_axes(function, self.query, specs)

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
        adjacency, scores = self.adjacency, self.add_bias(scores)
        if not isinstance(adjacency, Graph):
            return jnp.where(adjacency, scores, -math.inf)
        if adjacency.head_mask is not None:
            scores = jnp.where(adjacency.head_mask, scores, -math.inf)
        return adjacency.in_callers_order(scores, axis=-2)

    def without_removed(self) -> "Prepared":
        """The same without the edges that a bias of -inf takes from a head; for the references."""
        adjacency = self.adjacency
        if isinstance(adjacency, Graph):
            return replace(self, adjacency=sparse.without_removed(adjacency, self.score_bias))
        return replace(self, adjacency=dense.without_removed(adjacency, self.score_bias))

    def add_bias(self, scores: jax.Array) -> jax.Array:
        """Scores and their bias; what that removes is taken out before, by `without_removed`."""
        if isinstance(self.adjacency, Graph):
            return sparse.add_bias(scores, self.score_bias, self.adjacency)
        return dense.add_bias(scores, self.score_bias, self.adjacency)
