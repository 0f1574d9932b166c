"""The kernels over edges: what is written of each edge, and the gradient of the projection of features.

With the names of `gatv2.jax.pallas.passes`, and g_ij = a * de_ij s_ij, a row of heads and features,

    alpha_ij = p_ij,   d_b_ij = de_ij,   d_x_ij = W_e^T g_ij,   d_W_e = sum_ij g_ij x_ij^T

the last two products of matrices, once g of a tile of edges is known. Edges are taken in their order by
query, as many in each program: nothing is summed over a row, so that hubs are nothing special here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton

from gatv2.jax.pallas import tiles
from gatv2.jax.pallas.launch import CHUNKS, Arrays, Run, like
from gatv2.jax.pallas.passes import Arguments, coefficients_of, slope_of, weights_of
from gatv2.jax.pallas.tiles import Shape, Tile

WIDTH = 16
"""Features of edges whose gradients a program makes; the least that a product of matrices takes."""
ELEMENTS = 512
"""Features of a tile for each warp: few, as those of edges and of sums are in registers too."""
LONGEST = {"float32": 512, "float64": 128}
"""Numbers of a row of heads * hidden, at most, of nodes whose edges have features, by dtype.

A product has both of its matrices in shared memory, of which GPUs have 99 KiB and more.
"""
SHARES = 1 << 22
"""Numbers in the shares of the gradient of the projection, at most, in one feature set."""

Query = Any
"""A reference, `[n_edges]`: the query of each edge."""


def weigh(
    arguments: Arguments, query: jax.Array, n_heads: int, shape: Shape, run: Run
) -> jax.Array:
    """Alpha, `[n_edges, n_heads]` by query; zero for padding."""

    def program(i: jax.Array, arguments: Arguments, query: Query, results: Any) -> None:
        tile = tile_of_edges(i, query, arguments, shape)
        _, _, scores = scores_of(tile, arguments, shape)
        alpha = coefficients_of(tile, scores, arguments.statistics, shape)
        head = tiles.whole_axis(shape.heads)
        tiles.store_block(results[0], tile.number, tile.is_there, head, alpha)

    alpha = jax.ShapeDtypeStruct((query.shape[0], n_heads), arguments.features.query.dtype)
    return run(program, count_tiles(query, shape), (arguments, query), [alpha])[0]


def differentiate_bias(arguments: Arguments, query: jax.Array, shape: Shape, run: Run) -> jax.Array:
    """The gradient of the bias, laid out as the bias."""

    def program(i: jax.Array, arguments: Arguments, query: Query, results: Any) -> None:
        tile = tile_of_edges(i, query, arguments, shape)
        key, _, scores = scores_of(tile, arguments, shape)
        _, _, de = weights_of(key, tile, scores, arguments, shape)
        row = tiles.feature_rows(tile, arguments.order)
        of_all = results[0].shape[1] == 1
        de, n = (jnp.sum(de, axis=1)[:, None], 1) if of_all else (de, shape.heads)
        tiles.store_block(results[0], row, tile.is_there, tiles.whole_axis(n), de)

    d_bias = like(arguments.features.bias)
    return run(program, count_tiles(query, shape), (arguments, query), [d_bias])[0]


def differentiate_features(
    arguments: Arguments, query: jax.Array, shape: Shape, run: Run, *, wants_rows: bool
) -> Arrays:
    """Shares of the projection's gradient, `[chunks, D, heads * hidden]`, and d_x if it is wanted."""
    n_features, length = arguments.features.projection.shape
    n_slices, n_tiles = -(-n_features // WIDTH), count_tiles(query, shape)
    n_chunks = max(min(n_tiles, CHUNKS, SHARES // (n_features * length)), 1)

    def program(number: jax.Array, arguments: Arguments, query: Query, results: Any) -> None:
        features, chunk = arguments.features, number // n_slices
        feature = number % n_slices * WIDTH + tiles.whole_axis(WIDTH)
        is_feature, column = feature < n_features, tiles.whole_axis(length)
        attn = tiles.load_vector(features.attn, shape)
        w = tiles.load_block(features.projection, feature, is_feature, column)
        w = w.astype(shape.dtype)

        def add_tile(i: jax.Array, total: jax.Array) -> jax.Array:
            tile = tile_of_edges(chunk + i * n_chunks, query, arguments, shape)
            key, pair, scores = scores_of(tile, arguments, shape)
            _, _, de = weights_of(key, tile, scores, arguments, shape)
            g = (attn[None] * (de[:, :, None] * slope_of(pair, shape))).reshape(-1, length)
            row = tiles.feature_rows(tile, arguments.order)
            x = tiles.load_block(features.of_edges, row, tile.is_used, feature)
            x = x.astype(shape.dtype)
            if features.bias is not None:  # 0 * NaN is not 0; where a head does use it, g is NaN
                x = jnp.where(x - x == 0, x, 0)
            if wants_rows:
                tiles.store_block(results[1], row, tile.is_there, feature, product(g, w, (1, 1)))
            return total + product(x, g, (0, 0))

        n_own = (n_tiles - chunk + n_chunks - 1) // n_chunks
        nothing = jnp.zeros((WIDTH, length), shape.dtype)
        total = jax.lax.fori_loop(0, n_own, add_tile, nothing)
        tiles.store_block(results[0], chunk * n_features + feature, is_feature, column, total)

    shares = jax.ShapeDtypeStruct((n_chunks * n_features, length), shape.dtype)
    rows = [like(arguments.features.of_edges)] if wants_rows else []
    results = run(program, n_chunks * n_slices, (arguments, query), [shares, *rows])
    return results[0].reshape(n_chunks, n_features, length), *results[1:]


def product(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """The product of two matrices over an axis of each."""
    axes = (contracted[:1], contracted[1:])
    full = jax.lax.Precision.HIGHEST
    product: jax.Array = jax.lax.dot_general(a, b, (axes, ((), ())), precision=full)
    return product


def count_tiles(query: jax.Array, shape: Shape) -> int:
    """Number of tiles of all edges."""
    return -(-query.shape[0] // shape.edges)


def tile_of_edges(i: jax.Array, query: Query, arguments: Arguments, shape: Shape) -> Tile:
    """The i-th tile of all edges; padding is none."""
    features, order = arguments.features, arguments.order
    at = i * shape.edges + tiles.whole_axis(shape.edges)
    is_there = at < query.shape[0]
    of_query, of_key = (triton.load(x.at[at], mask=is_there, other=0) for x in (query, order.other))
    is_used = tiles.is_index(of_query, features.query.shape[0])
    is_used = is_there & is_used & tiles.is_index(of_key, features.key.shape[0])
    return Tile(at, at, of_query, of_key, is_there, is_used)


def scores_of(
    tile: Tile, arguments: Arguments, shape: Shape
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys, pairs and scores of a tile's edges."""
    features, order = arguments.features, arguments.order
    query = tiles.load_rows(features.query, tile.query, tile.is_used, shape)
    key = tiles.load_rows(features.key, tile.key, tile.is_used, shape)
    pair = tiles.pair_of(query, key, tile, features, order, shape)
    attn = tiles.load_vector(features.attn, shape)
    return key, pair, tiles.score(pair, attn, tile, features, order, shape)
