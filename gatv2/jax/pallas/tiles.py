"""Tiles of edges, `[edges, heads, hidden]`: loads, scores, and which coefficients dropout keeps.

Heads and hidden are powers of two, as every size of a program is: features are padded with zeros in
memory. A load is of two dimensions, one a row of features, and is only then brought to three.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton

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
    dtype: Any
    """That is computed in."""
    negative_slope: float
    dropout: float
    block_queries: int
    """Queries of a graph of a block-diagonal union."""
    block_keys: int
    is_by_key: bool
    """Whether rows are keys, and not queries."""


class Nodes(NamedTuple):
    """What is read of nodes; rows are `[n, heads * hidden]`, numbers of heads `[n, heads]`."""

    query: Reference
    key: Reference
    attn: Reference
    """`[heads * hidden]`."""


class Dropout(NamedTuple):
    """What the dropout mask is a function of; all None without dropout."""

    seed: Reference
    """uint32 `[2]`."""
    batch: Reference
    """`[1]`: number of the feature set."""
    query_id: Reference
    key_id: Reference


class Tile(NamedTuple):
    """Some edges of a row, `[edges]` each."""

    at: jax.Array
    other: jax.Array
    is_used: jax.Array
    """Whether the edge is there: rows are of different lengths."""


def tile_of(part: Part, i: jax.Array, order: Order, n_others: int, shape: Shape) -> Tile:
    """The i-th tile of a row's edges; an index that points nowhere is no edge."""
    at = part.start + i * shape.edges + jnp.arange(shape.edges, dtype=part.start.dtype)
    is_there = at < part.stop
    other = triton.load(order.other.at[at], mask=is_there, other=0)
    return Tile(at, other, is_there & (other >= 0) & (other < n_others))


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


def load_rows(reference: Reference, tile: Tile, shape: Shape) -> jax.Array:
    """The rows of features of a tile's other nodes; zero where there is no edge."""
    column = whole_axis(shape.heads * shape.hidden)
    mask = jnp.broadcast_to(tile.is_used[:, None], (shape.edges, column.shape[0]))
    at = reference.at[tile.other[:, None], column[None, :]]
    values = triton.load(at, mask=mask, other=0)
    return values.astype(shape.dtype).reshape(shape.edges, shape.heads, shape.hidden)


def load_heads(reference: Reference, tile: Tile, shape: Shape) -> jax.Array:
    """One number for each head of a tile's other nodes, `[edges, heads]`; zero without an edge."""
    head = whole_axis(shape.heads)
    mask = jnp.broadcast_to(tile.is_used[:, None], (shape.edges, shape.heads))
    at = reference.at[tile.other[:, None], head[None, :]]
    return triton.load(at, mask=mask, other=0).astype(shape.dtype)


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


def score(pair: jax.Array, attn: jax.Array, tile: Tile, shape: Shape) -> jax.Array:
    """The scores `[edges, heads]` of pairs, query + key; -inf without an edge."""
    scores = jnp.sum(leaky_relu(pair, shape.negative_slope) * attn[None], axis=2)
    return jnp.where(tile.is_used[:, None], scores, -jnp.inf)


def keep_of(part: Part, tile: Tile, order: Order, dropout: Dropout, shape: Shape) -> jax.Array:
    """The factor of each coefficient, `[edges, heads]`: that of `gatv2.jax.random.keep_mask`."""
    row = jnp.broadcast_to(part.row, (shape.edges,)).astype(jnp.int32)
    query, key = (tile.other, row) if shape.is_by_key else (row, tile.other)
    block = query // max(shape.block_queries, 1)
    numbers = []
    for node, ids, size in (
        (query, dropout.query_id, shape.block_queries),
        (key, dropout.key_id, shape.block_keys),
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
