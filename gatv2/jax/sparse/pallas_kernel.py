"""The kernels for GPUs, over edges: forward and backward of a call; `gatv2.jax.primitives` binds them.

Nothing of an edge is written, in no pass, but for how often it is repeated, with dropout.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.fused import Options
from gatv2.jax.graph import Graph
from gatv2.jax.pallas import kernels, rows
from gatv2.jax.pallas.passes import Arguments, Cotangents
from gatv2.jax.pallas.rows import Order, order_of
from gatv2.jax.pallas.tiles import Dropout, Nodes, Shape
from gatv2.jax.precision import computed_in
from gatv2.jax.sparse.tangent import Features

Arrays = tuple[jax.Array, ...]

ELEMENTS = 1024
"""Features of a tile for each warp of a program."""
MAX_WARPS = 16


def unsupported(features: Features, adjacency: Adjacency, *, with_alpha: bool) -> list[str]:
    """The reasons why the kernels can't serve a call; empty if they can."""
    reasons = []
    if not isinstance(adjacency, Graph):
        reasons.append("it reads edges, and not a mask (backend='dense')")
    elif adjacency.head_mask is not None:
        reasons.append("it does not read which heads use an edge")
    if features.edges is not None:
        reasons.append("it does not read edge features")
    if features.score_bias is not None:
        reasons.append("it does not read a bias of the scores")
    if with_alpha:
        reasons.append("it does not return coefficients")
    if features.query.dtype not in ("float16", "bfloat16", "float32", "float64"):
        reasons.append(f"it does not compute in {features.query.dtype}")
    return reasons


def forward(
    features: Features, seed: jax.Array, graph: Graph, options: Options, *, interpret: bool = False
) -> Arrays:
    """(out, log-sum-exp)."""
    call = _Call(features, graph, options, interpret)

    def of_one(query: jax.Array, key: jax.Array, batch: jax.Array) -> Arrays:
        nodes = Nodes(query, key, call.padded(features.attn))
        arguments = Arguments(nodes, call.by_query(), call.dropout(seed, batch), None)
        return kernels.attend(arguments, call.shape(), call.run)

    if 0 in features.query.shape:
        return features.query, jnp.full(features.query.shape[:-1], -math.inf, call.dtype)
    out, lse = call.of_each(of_one)(call.padded(features.query), call.padded(features.key))
    return call.cropped(out), lse[..., : call.n_heads]


def backward(
    cotangents: Arrays,
    features: Features,
    seed: jax.Array,
    graph: Graph,
    options: Options,
    *,
    interpret: bool = False,
) -> Arrays:
    """Gradients of query, key and attn; cotangents are of (out, lse), then the log-sum-exp itself."""
    d_out, d_lse, lse = cotangents
    call = _Call(features, graph, options, interpret)
    has_d_lse = d_lse.size > 0

    def of_one(query: jax.Array, key: jax.Array, d_out: jax.Array, *of_heads: jax.Array) -> Arrays:
        lse, batch = of_heads[0], of_heads[-1]
        nodes, dropout = Nodes(query, key, call.padded(features.attn)), call.dropout(seed, batch)
        given = Cotangents(d_out, of_heads[1] if has_d_lse else None, lse, None, None)
        arguments = Arguments(nodes, call.by_query(), dropout, given)
        d_query, *statistics = kernels.differentiate_queries(arguments, call.shape(), call.run)
        given = Cotangents(d_out, None, *statistics)
        arguments = Arguments(nodes, call.by_key(), dropout, given)
        shape = call.shape()._replace(is_by_key=True)
        d_key, shares = kernels.differentiate_keys(arguments, shape, call.run)
        return d_query, d_key, shares.sum(0)

    if 0 in features.query.shape or 0 in features.key.shape:
        return tuple(jnp.zeros_like(x) for x in features[:3])
    rows_in = [call.padded(x) for x in (features.query, features.key, d_out)]
    of_heads = [call.padded_heads(x) for x in (lse, *((d_lse,) if has_d_lse else ()))]
    d_query, d_key, d_attn = call.of_each(of_one)(*rows_in, *of_heads)
    d_attn = d_attn.reshape(-1, d_attn.shape[-1]).sum(0)
    return call.cropped(d_query), call.cropped(d_key), call.cropped(d_attn)


class _Call:
    """What the passes of a call share."""

    def __init__(self, features: Features, graph: Graph, options: Options, interpret: bool) -> None:
        self.graph, self.options = graph, options
        *self.batch_shape, _, self.n_heads, self.n_hidden = features.query.shape
        self.heads, self.hidden = (_power_of_two(n) for n in (self.n_heads, self.n_hidden))
        self.dtype = computed_in(features.query.dtype)
        self.feature_dtype = features.query.dtype
        length = self.heads * self.hidden
        self.n_warps = min(max(length // ELEMENTS, 1), MAX_WARPS)
        self.n_edges = max(self.n_warps * ELEMENTS // length, 1)
        self.run = partial(kernels.run_by_triton, n_warps=self.n_warps, interpret=interpret)

    def shape(self) -> Shape:
        """What the passes over queries are compiled for."""
        return Shape(
            self.n_heads,
            self.heads,
            self.hidden,
            self.n_edges,
            rows.SPLIT,
            self.dtype,
            self.options.negative_slope,
            self.options.dropout,
            *self.graph.block_shape,
            is_by_key=False,
        )

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

    def multiplicity(self) -> jax.Array | None:
        """In the order by query."""
        return self.graph.multiplicity() if self.options.dropout > 0 else None

    def by_query(self) -> Order:
        """The edges of each query."""
        graph = self.graph
        return order_of(graph.query_ptr, graph.key_index, self.multiplicity(), rows.SPLIT)

    def by_key(self) -> Order:
        """The edges of each key."""
        by_key, multiplicity = self.graph.by_key, self.multiplicity()
        if multiplicity is not None:
            multiplicity = jnp.take(multiplicity, by_key.edge, mode="clip")
        return order_of(by_key.ptr, by_key.query, multiplicity, rows.SPLIT)

    def dropout(self, seed: jax.Array, batch: jax.Array) -> Dropout:
        """What the dropout mask is a function of."""
        if self.options.dropout == 0:
            return Dropout(None, None, None, None)
        return Dropout(seed, batch, self.graph.query_id, self.graph.key_id)

    def of_each(self, function: Callable[..., Arrays]) -> Callable[..., Arrays]:
        """A function of the arrays of one feature set, and its number, for those of all of them."""
        if not self.batch_shape:
            return lambda *arrays: function(*arrays, jnp.zeros(1, jnp.int32))

        def of_all(*arrays: jax.Array) -> Arrays:
            n = math.prod(self.batch_shape)
            flat = [x.reshape(n, *x.shape[len(self.batch_shape) :]) for x in arrays]
            results = jax.vmap(function)(*flat, jnp.arange(n, dtype=jnp.int32)[:, None])
            return tuple(x.reshape(*self.batch_shape, *x.shape[1:]) for x in results)

        return of_all


def _power_of_two(number: int) -> int:
    """The least power of two from `number` on."""
    return 1 << max(number - 1, 0).bit_length()
