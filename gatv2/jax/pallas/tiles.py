"""Tiles of edges, `[edges, heads, hidden]`: loads, scores, and which coefficients dropout keeps.

Heads and hidden are powers of two, as every size of a program is: features are padded with zeros in
memory. A load is of two dimensions, one a row of features, and is only then brought to three.

Where a score is -inf a head has no edge, and what belongs to it may be NaN: nothing of it reaches a sum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

from gatv2.jax.pallas.rows import Order, Part, Reference
from gatv2.jax.random import philox_4x32_10
from gatv2.jax.sparse.reference import leaky_relu
from gatv2.philox import WORDS_PER_COUNTER


class Shape(NamedTuple):
    """What a kernel is compiled for."""

    n_heads: int
    """Of the features, without padding."""
    heads: int
    hidden: int
    edges: int
    """Edges of a row that are worked on at once."""
    split: int
    """A row with more edges than this is worked on in parts."""
    dtype: DTypeLike
    """That is computed in."""
    negative_slope: float
    dropout: float
    block_queries: int
    """Queries of a graph of a block-diagonal union."""
    block_keys: int
    is_by_key: bool
    """Whether rows are keys, and not queries."""


class Features(NamedTuple):
    """The features of nodes, in rows of heads * hidden, and those of edges."""

    query: Reference
    """`[n_queries, heads * hidden]`."""
    key: Reference
    """`[n_keys, heads * hidden]`."""
    attn: Reference
    """`[heads * hidden]`."""
    of_edges: Reference
    """`[rows, D]`; None, as the next, if edges have no features."""
    projection: Reference
    """`[D, heads * hidden]`."""
    bias: Reference
    """`[rows, 1 or n_heads]`: what is added to scores; None if nothing is."""


class Dropout(NamedTuple):
    """What the dropout mask is a function of; all None without dropout."""

    seed: Reference
    """uint32 `[2]`."""
    batch: Reference
    """`[1]`: number of the feature set."""
    query_id: Reference
    key_id: Reference


class Tile(NamedTuple):
    """Some edges, `[edges]` each."""

    at: jax.Array
    """Where the edge stands in this order."""
    number: jax.Array
    """Where it stands by query."""
    query: jax.Array
    key: jax.Array
    is_there: jax.Array
    """Whether it has a place in this order: rows are of different lengths."""
    is_used: jax.Array
    """Whether it is there and no padding."""


def tile_of(part: Part, i: jax.Array, order: Order, n_others: int, shape: Shape) -> Tile:
    """The i-th tile of a row's edges; an index that points nowhere is no edge."""
    at = part.start + i * shape.edges + jnp.arange(shape.edges, dtype=part.start.dtype)
    is_there = at < part.stop
    other = triton.load(order.other.at[at], mask=is_there, other=0)
    number = at
    if order.number is not None:
        number = triton.load(order.number.at[at], mask=is_there, other=0)
    row = jnp.broadcast_to(part.row, (shape.edges,)).astype(other.dtype)
    query, key = (other, row) if shape.is_by_key else (row, other)
    return Tile(at, number, query, key, is_there, is_there & is_index(other, n_others))


def is_index(index: jax.Array, n: int) -> jax.Array:
    """Whether an index points to one of n nodes."""
    return (index >= 0) & (index < n)


def count_tiles(part: Part, shape: Shape) -> jax.Array:
    """Number of tiles of a row's edges."""
    return (part.stop - part.start + shape.edges - 1) // shape.edges


def load_vector(reference: Reference, shape: Shape) -> jax.Array:
    """The attention vectors, `[heads, hidden]`."""
    values = triton.load(reference.at[whole_axis(shape.heads * shape.hidden)])
    return values.astype(shape.dtype).reshape(shape.heads, shape.hidden)


def load_row(reference: Reference, row: jax.Array, shape: Shape) -> jax.Array:
    """One row of features, `[heads, hidden]`."""
    values = triton.load(reference.at[row, whole_axis(shape.heads * shape.hidden)])
    return values.astype(shape.dtype).reshape(shape.heads, shape.hidden)


def load_rows(reference: Reference, row: jax.Array, mask: jax.Array, shape: Shape) -> jax.Array:
    """A row of features for each edge of a tile, `[edges, heads, hidden]`; zero without an edge."""
    values = load_block(reference, row, mask, whole_axis(shape.heads * shape.hidden))
    return values.astype(shape.dtype).reshape(shape.edges, shape.heads, shape.hidden)


def load_heads(reference: Reference, row: jax.Array, mask: jax.Array, shape: Shape) -> jax.Array:
    """A number for each edge of a tile and each head, `[edges, heads]`; zero without an edge.

    `reference` is `[n, 1]`, the same for all heads, or has one for each, with or without padding.
    """
    head = whole_axis(1 if reference.shape[1] == 1 else shape.heads)
    return load_block(reference, row, mask, head).astype(shape.dtype)


def load_block(
    reference: Reference, row: jax.Array, mask: jax.Array, column: jax.Array
) -> jax.Array:
    """Columns of rows, as a block; zero where it is not in memory."""
    is_there = mask[:, None] & (column < reference.shape[1])[None, :]
    return triton.load(reference.at[row[:, None], column[None, :]], mask=is_there, other=0)


def store_block(
    reference: Reference, row: jax.Array, mask: jax.Array, column: jax.Array, values: jax.Array
) -> None:
    """Store what `load_block` loads."""
    is_there = mask[:, None] & (column < reference.shape[1])[None, :]
    at = reference.at[row[:, None], column[None, :]]
    triton.store(at, values.astype(reference.dtype), mask=is_there)


def store(reference: Reference, row: jax.Array, values: jax.Array) -> None:
    """Store what a program has of a row: all of its last axes, as one."""
    flat = values.reshape(values.size)
    triton.store(reference.at[row, whole_axis(values.size)], flat.astype(reference.dtype))


def load(reference: Reference, row: jax.Array, *sizes: int) -> jax.Array:
    """Load what `store` has stored."""
    return triton.load(reference.at[row, whole_axis(int(np.prod(sizes)))]).reshape(sizes)


def whole_axis(size: int) -> jax.Array:
    """Indices of a whole axis."""
    return jnp.arange(size, dtype=jnp.int32)


def feature_rows(tile: Tile, order: Order) -> jax.Array:
    """The row of each edge in what edges have; one past the end where there is no edge."""
    n_rows = order.feature_row.shape[0]
    return triton.load(order.feature_row.at[tile.at], mask=tile.is_there, other=n_rows)


def pair_of(
    query: jax.Array, key: jax.Array, tile: Tile, features: Features, order: Order, shape: Shape
) -> jax.Array:
    """Query + key, and W_e x of edges with features, before LeakyReLU: `[edges, heads, hidden]`."""
    pair = query + key
    if features.of_edges is None:
        return pair
    row = feature_rows(tile, order)

    def add_feature(d: jax.Array, pair: jax.Array) -> jax.Array:
        x = triton.load(features.of_edges.at[row, d], mask=tile.is_used, other=0)
        w = load_row(features.projection, d, shape)
        return pair + x.astype(shape.dtype)[:, None, None] * w[None]

    projected: jax.Array = jax.lax.fori_loop(0, features.of_edges.shape[1], add_feature, pair)
    return projected


def score(
    pair: jax.Array,
    attn: jax.Array,
    tile: Tile,
    features: Features,
    order: Order,
    shape: Shape,
) -> jax.Array:
    """The scores of pairs, with their bias, `[edges, heads]`; -inf where a head has no edge."""
    scores = jnp.sum(leaky_relu(pair, shape.negative_slope) * attn[None], axis=2)
    is_edge = tile.is_used[:, None]
    if features.bias is not None:
        bias = load_heads(features.bias, feature_rows(tile, order), tile.is_used, shape)
        scores, is_edge = scores + bias, is_edge & (bias != -jnp.inf)
    return jnp.where(is_edge, scores, -jnp.inf)


def only_used(values: jax.Array, scores: jax.Array) -> jax.Array:
    """Values `[edges, heads, ...]`, zero where a head has no edge."""
    is_edge = (scores != -jnp.inf).reshape(*scores.shape, *[1] * (values.ndim - 2))
    return jnp.where(is_edge, values, 0)


def keep_of(tile: Tile, order: Order, dropout: Dropout, shape: Shape) -> jax.Array | float:
    """The factor of each coefficient, `[edges, heads]`: that of `gatv2.jax.random.keep_mask`."""
    if dropout.seed is None:
        return 1.0
    block = tile.query // max(shape.block_queries, 1)
    numbers = []
    for node, ids, size in (
        (tile.query, dropout.query_id, shape.block_queries),
        (tile.key, dropout.key_id, shape.block_keys),
    ):
        if ids is None:
            numbers.append(node - block * size)
        else:
            numbers.append(triton.load(ids.at[node], mask=tile.is_used, other=0))
    multiplicity = triton.load(order.multiplicity.at[tile.at], mask=tile.is_used, other=0)
    batch = dropout.batch[0] + block  # one of the two is zero
    # a counter gives four words, which serve four heads
    n_words = min(shape.heads, WORDS_PER_COUNTER)
    n_counters = shape.heads // n_words
    n_groups = -(-shape.n_heads // WORDS_PER_COUNTER)
    group = batch[:, None] * n_groups + jnp.arange(n_counters)[None, :]
    counter = (*(x[:, None] for x in (*numbers, multiplicity)), group)
    seed = (dropout.seed[0], dropout.seed[1])
    shape_of_words = (shape.edges, n_counters)
    words = philox_4x32_10(
        tuple(jnp.broadcast_to(x.astype(jnp.uint32), shape_of_words) for x in counter),  # type: ignore[arg-type]
        seed,
    )
    place = jnp.arange(n_words)[None, None, :]
    chosen = jnp.zeros((*shape_of_words, n_words), jnp.uint32)
    for i, word in enumerate(words[:n_words]):
        chosen = jnp.where(place == i, word[:, :, None], chosen)
    is_kept = chosen.reshape(shape.edges, shape.heads) >= np.uint32(int(shape.dropout * 2**32))
    return jnp.where(is_kept, 1 / (1 - shape.dropout), 0).astype(shape.dtype)
