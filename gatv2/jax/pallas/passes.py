"""What a program does with a row of edges: forward, backward over queries, backward over keys.

With x = query_i + key_j, and W_e x_ij of edges with features, s_ij = 1 where x is positive, else the
negative slope, and p before it is divided by its sum,

    p_ij = exp(e_ij - lse_i),   dp_ij = keep_ij * (d_out_i . key_j) + d_alpha_ij
    delta_i = sum_j p dp / sum_j p - d_lse_i
    d_query_i = a * (sum_j p dp s - delta_i sum_j p s) / sum_j p
    de_ij = p_ij (dp_ij - delta_i) / sum_j p
    d_key_j = sum_i keep_ij p_ij d_out_i / sum_j p + a * sum_i de_ij s_ij
    d_attn = sum_ij de_ij LeakyReLU(x_ij)

A program works on a row, or on a part of one, and nothing of an edge is written: what is, has the pass
over edges, `gatv2.jax.pallas.edge_pass`. `lse` is rounded: that p is divided by its own sum makes up for
it. The same passes in Triton are in `gatv2.triton`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gatv2.jax.pallas import tiles
from gatv2.jax.pallas.rows import Order, Part, Reference, Sums, part_in, whole, with_parts
from gatv2.jax.pallas.tiles import Dropout, Features, Shape, Tile
from gatv2.jax.sparse.reference import leaky_relu


class Forward(NamedTuple):
    """Of a query, or of some of its edges: p is exp(score - largest)."""

    values: jax.Array
    """The sum of p times value, `[heads, hidden]`."""
    largest: jax.Array
    """The largest score, `[heads]`."""
    total: jax.Array
    """The sum of p."""


class OverQuery(NamedTuple):
    """Sums over the edges of a query, or some of them."""

    slopes: jax.Array
    """Of p s, `[heads, hidden]`."""
    d_slopes: jax.Array
    """Of p dp s."""
    total: jax.Array
    """Of p, `[heads]`."""
    total_d: jax.Array
    """Of p dp."""


class OverKey(NamedTuple):
    """Sums over the edges of a key, or some of them, `[heads, hidden]`."""

    d_key: jax.Array
    d_attn: jax.Array


class Cotangents(NamedTuple):
    """What the backward passes are given; all but the first are None if they are zero."""

    d_out: Reference
    d_lse: Reference
    """`[n_queries, heads]`."""
    d_alpha: Reference
    """`[n_edges, n_heads]`, by query."""


class Statistics(NamedTuple):
    """Of queries, `[n_queries, heads]` each: p is exp(score - lse) * inverse."""

    lse: Reference
    """The log-sum-exp, or any number near it."""
    inverse: Reference = None
    """1 / the sum of p without it; None before there is one."""
    delta: Reference = None
    """None, as `inverse`, and where only p is asked for."""


class Arguments(NamedTuple):
    """What every program reads; the forward pass has no cotangents and no statistics."""

    features: Features
    order: Order
    dropout: Dropout
    cotangents: Cotangents
    statistics: Statistics


class Pass(NamedTuple):
    """A way over the edges of each row."""

    sweep: Callable[[Part, Arguments, Shape], Any]
    """The sums over the edges of a row, or of a part of it."""
    nothing: Callable[[Shape], Any]
    """The sums over no edges."""
    join: Callable[[Any, Any], Any]
    """The sums over the edges of both."""


def sum_rows(way: Pass, row: jax.Array, arguments: Arguments, slots: Any, shape: Shape) -> Any:
    """The sums over all edges of a row, of whose parts `slots` has the sums."""
    part = whole(row, arguments.order, shape.split)

    def join(sums: Any, slot: jax.Array) -> Any:
        loaded = (tiles.load(of, slot, *x.shape) for of, x in zip(slots, sums, strict=True))
        return way.join(sums, type(sums)(*loaded))

    sums = way.sweep(part, arguments, shape)
    return with_parts(part, arguments.order, sums, join, shape.split)


def sum_part(way: Pass, slot: jax.Array, arguments: Arguments, shape: Shape) -> Any:
    """The sums over the edges of the part of a row that belongs to a slot."""
    return way.sweep(part_in(slot, arguments.order, shape.split), arguments, shape)


def forward(part: Part, arguments: Arguments, shape: Shape) -> Forward:
    """Scores, an online softmax over tiles of edges, and the weighted sum: a key is also the value."""
    features, order, dropout, *_ = arguments
    query = tiles.load_row(features.query, part.row, shape)
    attn = tiles.load_vector(features.attn, shape)

    def step(i: jax.Array, sums: Forward) -> Forward:
        tile = tiles.tile_of(part, i, order, features.key.shape[0], shape)
        key = tiles.load_rows(features.key, tile.key, tile.is_used, shape)
        pair = tiles.pair_of(query[None], key, tile, features, order, shape)
        scores = tiles.score(pair, attn, tile, features, order, shape)
        largest = jnp.maximum(sums.largest, jnp.max(scores, axis=0))
        p = jnp.exp(scores - finite(largest)[None])
        total = jnp.sum(p, axis=0)
        kept = p * tiles.keep_of(tile, order, dropout, shape)
        values = jnp.sum(kept[:, :, None] * tiles.only_used(key, scores), axis=0)
        return join_forward(sums, Forward(values, largest, total))

    return looped(part, step, empty_forward(shape), shape)


def empty_forward(shape: Shape) -> Forward:
    """Of no edges."""
    values, total = empty(shape)
    return Forward(values, jnp.full_like(total, -jnp.inf), total)


def join_forward(first: Forward, second: Forward) -> Forward:
    """Of the edges of both."""
    largest = jnp.maximum(first.largest, second.largest)
    rescale, weight = (jnp.exp(one.largest - finite(largest)) for one in (first, second))
    return Forward(
        first.values * rescale[:, None] + second.values * weight[:, None],
        largest,
        first.total * rescale + second.total * weight,
    )


def over_query(part: Part, arguments: Arguments, shape: Shape) -> OverQuery:
    """All sums are made before delta is known, in one sweep."""
    features, order, dropout, cotangents, statistics = arguments
    query = tiles.load_row(features.query, part.row, shape)
    d_out = tiles.load_row(cotangents.d_out, part.row, shape)
    lse = finite(tiles.load(statistics.lse, part.row, shape.heads))
    attn = tiles.load_vector(features.attn, shape)

    def step(i: jax.Array, sums: OverQuery) -> OverQuery:
        tile = tiles.tile_of(part, i, order, features.key.shape[0], shape)
        key = tiles.load_rows(features.key, tile.key, tile.is_used, shape)
        pair = tiles.pair_of(query[None], key, tile, features, order, shape)
        scores = tiles.score(pair, attn, tile, features, order, shape)
        p = jnp.exp(scores - lse[None])
        keep = tiles.keep_of(tile, order, dropout, shape)
        d = d_alpha_of(keep * jnp.sum(d_out[None] * key, axis=2), tile, scores, cotangents, shape)
        weight = p[:, :, None] * slope_of(pair, shape)
        own = (weight, weight * d[:, :, None], p, p * d)
        return add(sums, OverQuery(*(x.sum(axis=0) for x in own)))

    return looped(part, step, over_no_edges(shape), shape)


def d_alpha_of(
    d: jax.Array, tile: Tile, scores: jax.Array, cotangents: Cotangents, shape: Shape
) -> jax.Array:
    """The gradient of each coefficient, dp, of d_out . key; zero where a head has no edge."""
    if cotangents.d_alpha is not None:
        d = d + tiles.load_heads(cotangents.d_alpha, tile.number, tile.is_used, shape)
    return tiles.only_used(d, scores)


def over_no_edges(shape: Shape) -> OverQuery:
    """The sums of a query without edges."""
    rows, heads = empty(shape)
    return OverQuery(rows, rows, heads, heads)


def over_key(part: Part, arguments: Arguments, shape: Shape) -> OverKey:
    """All that needs de itself; scores are computed again."""
    features, order, *_ = arguments
    key = tiles.load_row(features.key, part.row, shape)
    attn = tiles.load_vector(features.attn, shape)

    def step(i: jax.Array, sums: OverKey) -> OverKey:
        tile = tiles.tile_of(part, i, order, features.query.shape[0], shape)
        query = tiles.load_rows(features.query, tile.query, tile.is_used, shape)
        pair = tiles.pair_of(query, key[None], tile, features, order, shape)
        scores = tiles.score(pair, attn, tile, features, order, shape)
        d_out, kept, de = weights_of(key[None], tile, scores, arguments, shape)
        de, pair = de[:, :, None], tiles.only_used(pair, scores)
        d_key = kept[:, :, None] * d_out + attn[None] * (de * slope_of(pair, shape))
        d_attn = de * leaky_relu(pair, shape.negative_slope)
        return add(sums, OverKey(d_key.sum(axis=0), d_attn.sum(axis=0)))

    return looped(part, step, of_no_edges(shape), shape)


def weights_of(
    key: jax.Array, tile: Tile, scores: jax.Array, arguments: Arguments, shape: Shape
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of edges: d_out of their queries, keep * p, and de."""
    _, order, dropout, cotangents, statistics = arguments
    d_out = tiles.load_rows(cotangents.d_out, tile.query, tile.is_used, shape)
    keep = tiles.keep_of(tile, order, dropout, shape)
    d = d_alpha_of(keep * jnp.sum(d_out * key, axis=2), tile, scores, cotangents, shape)
    delta = tiles.load_heads(statistics.delta, tile.query, tile.is_used, shape)
    p = coefficients_of(tile, scores, statistics, shape)
    de = tiles.only_used(p * (d - delta), scores)
    return tiles.only_used(d_out, scores), p * keep, de


def coefficients_of(
    tile: Tile, scores: jax.Array, statistics: Statistics, shape: Shape
) -> jax.Array:
    """P of edges, `[edges, heads]`: after the softmax, before dropout."""
    lse, inverse = (
        tiles.load_heads(x, tile.query, tile.is_used, shape)
        for x in (statistics.lse, statistics.inverse)
    )
    return tiles.only_used(jnp.exp(scores - lse) * inverse, scores)


def of_no_edges(shape: Shape) -> OverKey:
    """The sums of a key without edges."""
    rows, _ = empty(shape)
    return OverKey(rows, rows)


def add(first: Sums, second: Sums) -> Sums:
    """Sums over the edges of both, of whatever is summed."""
    both: Sums = jax.tree.map(jnp.add, first, second)
    return both


def looped(part: Part, step: Callable[[jax.Array, Sums], Sums], sums: Sums, shape: Shape) -> Sums:
    """`step` for one tile of a row's edges after another."""
    total: Sums = jax.lax.fori_loop(0, tiles.count_tiles(part, shape), step, sums)
    return total


def empty(shape: Shape) -> tuple[jax.Array, jax.Array]:
    """Zeros, `[heads, hidden]` and `[heads]`."""
    return (
        jnp.zeros((shape.heads, shape.hidden), shape.dtype),
        jnp.zeros((shape.heads,), shape.dtype),
    )


def finite(values: jax.Array) -> jax.Array:
    """Zero where there are no edges yet: no NaN."""
    return jnp.where(values > -jnp.inf, values, 0)


def slope_of(pair: jax.Array, shape: Shape) -> jax.Array:
    """The derivative of LeakyReLU."""
    return jnp.where(pair > 0, 1.0, shape.negative_slope).astype(shape.dtype)


FORWARD = Pass(forward, empty_forward, join_forward)
OVER_QUERIES = Pass(over_query, over_no_edges, add)
OVER_KEYS = Pass(over_key, of_no_edges, add)
