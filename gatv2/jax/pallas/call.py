"""What the passes of a call share: its arrays as kernels read them, and the sizes of tiles."""

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from gatv2.jax.fused import Options
from gatv2.jax.graph import Graph
from gatv2.jax.pallas import rows
from gatv2.jax.pallas.edge_pass import WIDTH
from gatv2.jax.pallas.launch import Run, run_by_triton
from gatv2.jax.pallas.passes import Arguments, Cotangents, Statistics
from gatv2.jax.pallas.rows import Order
from gatv2.jax.pallas.tiles import Dropout, Shape
from gatv2.jax.pallas.tiles import Features as FeaturesOfKernel
from gatv2.jax.precision import computed_in
from gatv2.jax.sparse.tangent import Features

ELEMENTS = 1024
"""Features of a tile for each warp of a program."""
MAX_WARPS = 16

Results = TypeVar("Results")


class Inputs(NamedTuple):
    """What feature sets have of their own, `[*batch, n, m]` each; None for what there is not."""

    query: jax.Array
    key: jax.Array
    of_edges: jax.Array | None
    bias: jax.Array | None
    d_out: jax.Array | None = None
    d_lse: jax.Array | None = None
    d_alpha: jax.Array | None = None
    lse: jax.Array | None = None


class Call:
    """What the passes of a call share."""

    def __init__(
        self,
        features: Features,
        seed: jax.Array,
        graph: Graph,
        options: Options,
        interpret: bool,
    ) -> None:
        self.features, self.seed, self.graph, self.options = features, seed, graph, options
        self.interpret = interpret
        *self.batch_shape, _, self.n_heads, self.n_hidden = features.query.shape
        edges = features.edges
        self.edges = None if edges is None or edges.projection.shape[-1] == 0 else edges
        self.heads, self.hidden = padded_sizes(features.query)
        if self.edges is not None:  # a product of matrices takes rows of no less
            self.hidden = max(self.hidden, WIDTH // self.heads)
        self.feature_dtype = features.query.dtype
        self.dtype = computed_in(self.feature_dtype)
        self.is_empty = 0 in (*features.query.shape, features.key.shape[-3], graph.n_edges)

    def tile(self, n_edges: int = 1, elements: int = ELEMENTS) -> tuple[Shape, Run]:
        """What passes are compiled for, and what runs them.

        Args:
            n_edges: edges of a tile, at least.
            elements: features of a tile for each warp.
        """
        length = self.heads * self.hidden
        n_warps = min(max(n_edges * length // elements, 1), MAX_WARPS)
        shape = Shape(
            self.n_heads,
            self.heads,
            self.hidden,
            max(n_warps * elements // length, n_edges),
            rows.SPLIT,
            self.dtype,
            self.options.negative_slope,
            self.options.dropout,
            *self.graph.block_shape,
            is_by_key=False,
        )
        return shape, partial(run_by_triton, n_warps=n_warps, interpret=self.interpret)

    def inputs(self) -> Inputs:
        """What the forward pass reads of feature sets."""
        query, key = (self.padded(x) for x in self.features[:2])
        of_edges = None if self.edges is None else self.edges.features
        return Inputs(query, key, of_edges, self.bias())

    def bias(self) -> jax.Array | None:
        """What is added to scores: -inf where a head does not use an edge."""
        used, bias = self.graph.head_mask, self.features.score_bias
        if used is None:
            return bias
        assert bias is None, "a mask of heads is part of a bias"
        used = self.graph.in_callers_order(used, axis=0)
        return jnp.where(used, 0, -math.inf).astype(self.feature_dtype)

    def arguments(self, inputs: Inputs, batch: jax.Array) -> Arguments:
        """What the passes over queries read; `batch` `[1]` is the number of the feature set."""
        projection = None
        if self.edges is not None:
            projection = self.padded(jnp.moveaxis(self.edges.projection, -1, 0))
        attn = self.padded(self.features.attn)
        dropout, graph = Dropout(None, None, None, None), self.graph
        if self.options.dropout > 0:
            dropout = Dropout(self.seed, batch, graph.query_id, graph.key_id)
        features = FeaturesOfKernel(
            inputs.query, inputs.key, attn, inputs.of_edges, projection, inputs.bias
        )
        cotangents = Cotangents(inputs.d_out, inputs.d_lse, inputs.d_alpha)
        statistics = Statistics(inputs.lse)
        return Arguments(features, self.by_query(inputs), dropout, cotangents, statistics)

    @cached_property
    def multiplicity(self) -> jax.Array | None:
        """How often edges are repeated, by query; None without dropout."""
        return self.graph.multiplicity() if self.options.dropout > 0 else None

    def by_query(self, inputs: Inputs) -> Order:
        """The edges of each query."""
        graph = self.graph
        windows = rows.window_rows_of(graph.query_ptr, graph.n_edges, rows.SPLIT)
        has_rows = inputs.of_edges is not None or inputs.bias is not None
        feature_row = graph.edge_id if has_rows else None
        return Order(
            graph.query_ptr, graph.key_index, None, feature_row, self.multiplicity, windows
        )

    def by_key(self, inputs: Inputs) -> Order:
        """The edges of each key."""
        ptr, number, query = self.graph.by_key
        order = self.by_query(inputs)
        feature_row, multiplicity = (
            None if x is None else jnp.take(x, number, mode="clip")
            for x in (order.feature_row, order.multiplicity)
        )
        windows = rows.window_rows_of(ptr, self.graph.n_edges, rows.SPLIT)
        if inputs.d_alpha is None:  # all else that edges have is in this order
            return Order(ptr, query, None, feature_row, multiplicity, windows)
        return Order(ptr, query, number, feature_row, multiplicity, windows)

    def of_each(self, function: Callable[[Inputs, jax.Array], Results], inputs: Inputs) -> Results:
        """`function(inputs, number)` of each feature set, stacked."""
        if not self.batch_shape:
            alone = function(inputs, jnp.zeros(1, jnp.int32))
            stacked: Results = jax.tree.map(lambda x: x[None], alone)
            return stacked
        n = math.prod(self.batch_shape)
        numbers = jnp.arange(n, dtype=jnp.int32)[:, None]
        flat = jax.tree.map(lambda x: x if x.ndim == 2 else x.reshape(n, *x.shape[-2:]), inputs)
        axes = jax.tree.map(lambda x: None if x.ndim == 2 else 0, flat)
        results: Results = jax.vmap(function, in_axes=(axes, 0))(flat, numbers)
        return results

    def batched(self, stacked: jax.Array) -> jax.Array:
        """A result of `of_each` with the batch of the features."""
        return stacked.reshape(*self.batch_shape, *stacked.shape[1:])

    def padded(self, features: jax.Array) -> jax.Array:
        """`[..., n_heads, n_hidden]` as rows `[..., heads * hidden]`."""
        extra = (self.heads - self.n_heads, self.hidden - self.n_hidden)
        padding = [(0, 0)] * (features.ndim - 2) + [(0, n) for n in extra]
        return jnp.pad(features, padding).reshape(*features.shape[:-2], self.heads * self.hidden)

    def padded_heads(self, numbers: jax.Array) -> jax.Array:
        """`[..., n_heads]` as `[..., heads]`."""
        padding = [(0, 0)] * (numbers.ndim - 1) + [(0, self.heads - self.n_heads)]
        return jnp.pad(numbers, padding)

    def cropped(self, values: jax.Array) -> jax.Array:
        """Undo `padded`, in the dtype of the features."""
        values = values.reshape(*values.shape[:-1], self.heads, self.hidden)
        return values[..., : self.n_heads, : self.n_hidden].astype(self.feature_dtype)


def summed_like(array: jax.Array, stacked: jax.Array | None) -> jax.Array:
    """The gradient of what edges have, of those of each feature set; zeros if there are none."""
    if stacked is None:
        return jnp.zeros_like(array)
    return stacked.sum(0) if array.ndim == 2 else stacked.reshape(array.shape)


def padded_sizes(query: jax.Array) -> tuple[int, int]:
    """Heads and hidden as kernels have them: each the least power of two that is not less."""
    heads, hidden = (1 << max(n - 1, 0).bit_length() for n in query.shape[-2:])
    return heads, hidden
