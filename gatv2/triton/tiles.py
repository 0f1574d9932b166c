"""Loads and stores of tiles `[edges, rows, heads, hidden]`, and the score, which all passes share.

A load is of two dimensions, one a row of features in memory, and is only then brought to four: of
several contiguous dimensions a compiler would give the lanes to any. Reductions keep their dimensions
for the same reason, and what is one number a head is loaded ahead of the rows of features: the last load
decides how registers are laid out.
"""

import triton
import triton.language as tl

from gatv2.triton.arguments import Problem
from gatv2.triton.rows import Tile, feature_rows, in_mask


@triton.jit
def columns(shape: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Where the features of a tile's row stand in memory, and which of them are there."""
    column = tl.arange(0, shape.heads * shape.hidden)
    head, feature = column // shape.hidden, column % shape.hidden
    is_there = (head < shape.n_heads) & (feature < shape.n_hidden)
    return head * shape.n_hidden + feature, is_there


@triton.jit
def load_rows(
    pointer: tl.tensor, row: tl.tensor, is_used: tl.tensor, shape: tl.constexpr
) -> tl.tensor:
    """Rows of features, `[n * rows]` of them, as a tile of n edges; zero where they are not used."""
    column, is_there = columns(shape)
    at = row.to(tl.int64)[:, None] * (shape.n_heads * shape.n_hidden) + column[None, :]
    values = tl.load(pointer + at, mask=is_used[:, None] & is_there[None, :], other=0.0)
    n_edges: tl.constexpr = row.shape[0] // shape.rows
    return tl.reshape(
        values.to(shape.accumulator), [n_edges, shape.rows, shape.heads, shape.hidden]
    )


@triton.jit
def store_rows(
    pointer: tl.tensor, row: tl.tensor, is_used: tl.tensor, tile: tl.tensor, shape: tl.constexpr
) -> None:
    """Store a tile of one edge, a row of features for each of its rows."""
    column, is_there = columns(shape)
    at = row.to(tl.int64)[:, None] * (shape.n_heads * shape.n_hidden) + column[None, :]
    values = tl.reshape(tile, [shape.rows, shape.heads * shape.hidden])
    tl.store(pointer + at, values, mask=is_used[:, None] & is_there[None, :])


@triton.jit
def load_heads(
    pointer: tl.tensor, row: tl.tensor, is_used: tl.tensor, other: tl.constexpr, shape: tl.constexpr
) -> tl.tensor:
    """One number for each head of `[n * rows]` rows, as `[n, rows, heads, 1]`."""
    head = tl.arange(0, shape.heads)
    at = row.to(tl.int64)[:, None] * shape.n_heads + head[None, :]
    is_there = is_used[:, None] & (head < shape.n_heads)[None, :]
    values = tl.load(pointer + at, mask=is_there, other=other)
    n_edges: tl.constexpr = row.shape[0] // shape.rows
    return tl.reshape(values.to(shape.accumulator), [n_edges, shape.rows, shape.heads, 1])


@triton.jit
def store_heads(
    pointer: tl.tensor, row: tl.tensor, is_used: tl.tensor, tile: tl.tensor, shape: tl.constexpr
) -> None:
    """Store a tile `[n, rows, heads, 1]`, one number for each head of `[n * rows]` rows."""
    head = tl.arange(0, shape.heads)
    at = row.to(tl.int64)[:, None] * shape.n_heads + head[None, :]
    is_there = is_used[:, None] & (head < shape.n_heads)[None, :]
    tl.store(pointer + at, tl.reshape(tile, [row.shape[0], shape.heads]), mask=is_there)


@triton.jit
def load_vector(pointer: tl.tensor, shape: tl.constexpr) -> tl.tensor:
    """One row of features, the same for all rows of a tile, as `[1, rows, heads, hidden]`."""
    # each row of the tile loads it, so that it lies in registers as the tile does
    row = tl.full([shape.rows], 0, tl.int32)
    return load_rows(pointer, row, row == 0, shape)


@triton.jit
def empty_heads(value: tl.constexpr, shape: tl.constexpr) -> tl.tensor:
    """A number for each row and head, as `[1, rows, heads, 1]`."""
    return tl.full([1, shape.rows, shape.heads, 1], value, shape.accumulator)


@triton.jit
def empty_rows(shape: tl.constexpr) -> tl.tensor:
    """Zeros, as a tile of one edge."""
    return tl.full([1, shape.rows, shape.heads, shape.hidden], 0.0, shape.accumulator)


@triton.jit
def heads_of(
    tile: Tile, problem: Problem, shape: tl.constexpr
) -> tuple[tl.tensor, tl.tensor | None]:
    """Which heads use an edge, and what is added to its scores, as `[edges, rows, 1 or heads, 1]`."""
    is_used, bias = in_mask(tile, problem, shape), None
    if shape.bias_heads > 0:
        pointer, step = problem.graph.edges.bias, problem.graph.sizes.bias_step
        row = feature_rows(tile.number, tile.is_used, step, problem)
        if shape.bias_heads == 1:
            values = tl.load(pointer + row, mask=tile.is_used, other=0.0).to(shape.accumulator)
            bias = tl.reshape(values, [shape.edges, shape.rows, 1, 1])
        else:
            bias = load_heads(pointer, row, tile.is_used, 0.0, shape)
        is_used = is_used & (bias != float("-inf"))
    return is_used, bias


@triton.jit
def store_d_bias(
    pointer: tl.tensor, tile: Tile, de: tl.tensor, problem: Problem, shape: tl.constexpr
) -> None:
    """Store the gradient of a tile's bias: de `[edges, rows, heads, 1]`, or its sum over heads."""
    row = feature_rows(tile.number, tile.is_used, problem.graph.sizes.n_edges, problem)
    if shape.bias_heads == 1:
        is_there = tl.arange(0, shape.heads) < shape.n_heads
        of_heads = tl.where(tl.reshape(is_there, [1, 1, shape.heads, 1]), de, 0.0)
        total = tl.reshape(tl.sum(of_heads, axis=2), [row.shape[0]])
        tl.store(pointer + row, total, mask=tile.is_used)
    else:
        store_heads(pointer, row, tile.is_used, de, shape)


@triton.jit
def score(
    pair: tl.tensor,
    is_used: tl.tensor,
    bias: tl.tensor | None,
    attn: tl.tensor,
    slope: tl.tensor,
) -> tl.tensor:
    """The scores `[edges, rows, heads, 1]` of pairs, query + key; -inf where a head has no edge."""
    scores = tl.sum(leaky_relu(pair, slope) * attn, axis=3, keep_dims=True)
    if bias is not None:
        scores += bias
    return tl.where(is_used, scores, float("-inf"))


@triton.jit
def leaky_relu(pair: tl.tensor, slope: tl.tensor) -> tl.tensor:
    """LeakyReLU, of any slope."""
    return tl.where(pair > 0, pair, pair * slope)


@triton.jit
def pair_of(
    query: tl.tensor, key: tl.tensor, tile: Tile, problem: Problem, shape: tl.constexpr
) -> tl.tensor:
    """Query + key, and W_e x of edges with features, before LeakyReLU."""
    pair = query + key
    if shape.has_edge_features:
        n_features = problem.graph.sizes.n_features
        step = problem.graph.sizes.feature_step
        row = feature_rows(tile.number, tile.is_used, step, problem)
        x = problem.features.of_edges + row * n_features
        w = problem.features.projection
        for d in range(n_features):
            w_d = load_vector(w + d * (shape.n_heads * shape.n_hidden), shape)
            x_d = tl.load(x + d, mask=tile.is_used, other=0.0).to(shape.accumulator)
            pair += tl.reshape(x_d, [shape.edges, shape.rows, 1, 1]) * w_d
    return pair
