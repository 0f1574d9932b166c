"""One call of the kernels: the arguments as arrays, and as compiled kernels read them."""

from math import prod
from typing import Any, NamedTuple

import numpy as np

from gatv2.numba.arguments import EdgeFeatures, Plain, ScoreBias
from gatv2.numba.edge_order import is_identity, moved
from gatv2.numba.memory import Array, aligned, empty
from gatv2.numba.threads import count_chunks
from gatv2.numba.tiles import tiles_of
from gatv2.philox import WORDS_PER_COUNTER

_ROW_COST = 16
"""What a row or an edge takes beside its features, in elements of these."""
_KEEPS_ALL: Plain = 0, 1.0, 0, 0
"""The elements of `gatv2.numba.arguments.Dropout` without dropout."""


class ArrayArguments(NamedTuple):
    """What `gatv2.operator.arguments.Arguments` holds, as arrays and numbers.

    Floating-point arrays are of any dtype, but what is not float64 is computed in float32, and results
    have the dtype that is computed in.
    """

    query: Array
    """[*mapped, *batch, queries, heads, features]."""
    key: Array
    """[*mapped, *batch, keys, heads, features]."""
    attn: Array
    """[heads, features]."""
    edge_features: Array | None
    """[*mapped, *batch, edges or (queries, keys), D], or None."""
    edge_projection: Array | None
    """[heads, features, D], or None."""
    adjacency: Any
    """The `Adjacency` of the backend."""
    seed: int | None
    """An int64; None without dropout."""
    n_blocks: int
    """Blocks of a block-diagonal graph."""
    n_mapped: int
    """Leading dimensions that dropout does not tell apart, and over which the gradients of attn and
    edge_projection are not summed."""
    negative_slope: float
    dropout: float
    wants_rows: bool
    """Whether the result with a row for each edge is wanted: forward alpha, backward the gradient of
    edge_features."""
    n_threads: int
    score_bias: Array | None = None
    """[*mapped, *batch, edges or (queries, keys), 1 or heads], or None; no head mask comes with it."""
    wants_bias_rows: bool = False
    """Whether backward's gradient of score_bias is wanted."""
    memory: tuple[Array | None, ...] = (None,) * 6
    """Memory for the results, in their order, contiguous: what fits is written to, and returned.

    The gradients of query and key may be given the memory of these."""


class ArrayCotangents(NamedTuple):
    """What `gatv2.operator.arguments.Cotangents` holds, as arrays; None, or an empty one, is zero."""

    d_out: Array
    d_lse: Array | None
    d_alpha: Array | None
    lse: Array
    """The log-sum-exp that forward gave."""


class Sizes:
    """What calls of one kind have in common: their sizes, and how rows are cut.

    Attributes:
        tiles: how a row of features is cut.
        n_copies: feature sets that share one graph.
        n_batches: of them, those that dropout tells apart.
        n_queries: queries of a feature set.
        n_keys: keys of a feature set.
        n_blocks: blocks of a block-diagonal graph.
        n_edge_rows: rows of edge features, or of score_bias, of a feature set; 0 if there are none.

    Args:
        arguments: of such a call.
        folds_batch: read a batch of feature sets as one, of a block-diagonal graph.
    """

    def __init__(self, arguments: ArrayArguments, *, folds_batch: bool = False) -> None:
        *batch, self.n_queries, n_heads, n_hidden = arguments.query.shape
        self.n_keys = arguments.key.shape[-3]
        self.n_copies, self.n_batches = prod(batch), prod(batch[arguments.n_mapped :])
        self.n_blocks = arguments.n_blocks
        x = arguments.edge_features if arguments.score_bias is None else arguments.score_bias
        self.n_edge_rows = 0 if x is None else prod(x.shape[len(batch) : -1])
        self.tiles = tiles_of(n_heads, n_hidden, arguments.query.dtype == np.float64)
        if folds_batch:
            self._fold_batch()
        self.layout = self.tiles.n_groups, self.tiles.span
        self.counts = self._counts()

    def count_chunks(self, n_edges: int) -> int:
        """Chunks of a loop over the edges of a feature set and its queries, or its keys."""
        n_rows = n_edges + max(self.n_queries, self.n_keys)
        return count_chunks(n_rows * (self.tiles.length + _ROW_COST))

    def _fold_batch(self) -> None:
        self.n_blocks, self.n_batches = self.n_batches, 1
        self.n_copies //= self.n_blocks
        self.n_queries *= self.n_blocks
        self.n_keys *= self.n_blocks
        self.n_edge_rows *= self.n_blocks

    def _counts(self) -> Plain:
        """The elements of `gatv2.numba.arguments.Problem` between attn and the slope."""
        n_blocks = max(self.n_blocks, 1)
        return (
            self.n_queries,
            self.n_keys,
            max(self.n_batches, 1),
            self.n_queries // n_blocks,
            self.n_keys // n_blocks,
            -(-self.tiles.n_heads // WORDS_PER_COUNTER),
            self.n_edge_rows,
        )


class Launch:
    """A call's arrays as the kernels read them.

    Attributes:
        arguments: of the call.
        sizes: of the call.
        tiles: those of the sizes.
        attn: attn, padded.
        problem: the elements of `gatv2.numba.arguments.Problem`.
        edges: edge features, as the kernels read them; None if there are none.
        plain_edges: the same as a plain tuple.
        bias: score_bias, without a gradient, as the kernels read it; None if there is none.
        plain_bias: the same as a plain tuple.
        bias_order: the argument `edge_id`, if score_bias was brought to the order of the list of edges.

    Args:
        arguments: of the call.
        sizes: of the call.
        edge_id: the caller's number of each edge, of one list for the whole call; None if kernels
            make the lists.
    """

    def __init__(
        self, arguments: ArrayArguments, sizes: Sizes, *, edge_id: Array | None = None
    ) -> None:
        self.arguments, self.sizes, n_threads = arguments, sizes, arguments.n_threads
        self.tiles = tiles = sizes.tiles
        self.attn = tiles.pad(arguments.attn, n_threads)
        self.problem: Plain = (
            _KEEPS_ALL if arguments.seed is None else self._dropout(arguments.seed),
            sizes.layout,
            tiles.pad(arguments.query, n_threads),
            tiles.pad(arguments.key, n_threads),
            self.attn,
            *sizes.counts,
            arguments.negative_slope,
        )
        x, projection = arguments.edge_features, arguments.edge_projection
        self.edges: EdgeFeatures | None = None
        if x is not None and projection is not None:
            self.edges = self._edge_features(x, projection)
        self.plain_edges: Plain | None = None if self.edges is None else tuple(self.edges)
        self.bias_order: Array | None = None
        bias = arguments.score_bias
        self.bias = None if bias is None else self._score_bias(bias, edge_id)
        self.plain_bias: Plain | None = None if self.bias is None else tuple(self.bias)

    def _dropout(self, seed: int) -> Plain:
        dropout = self.arguments.dropout
        return int(dropout * 2**32), 1 / (1 - dropout), seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF

    def _edge_features(self, x: Array, projection: Array) -> EdgeFeatures:
        x, tiles = self._once(x), self.tiles
        padded = aligned((x.shape[-1], *tiles.padded), tiles.dtype)
        if tiles.is_padded:
            padded.fill(0)
        padded[:, : tiles.n_heads, : tiles.n_hidden] = projection.transpose(2, 0, 1)
        return EdgeFeatures(
            x.astype(tiles.dtype, copy=False).ravel(),
            padded.ravel(),
            x.shape[-1],
            max(prod(x.shape[:-1]), 1),
        )

    def _score_bias(self, bias: Array, edge_id: Array | None) -> ScoreBias:
        bias, tiles = self._once(bias), self.tiles
        is_for_all = bias.shape[-1] == 1
        values = (
            bias.astype(tiles.dtype, copy=False).ravel()
            if is_for_all
            else tiles.pad_heads(bias, self.arguments.n_threads)
        )
        # unlike min, fmin passes over NaN
        removes = bool(np.fmin.reduce(values, initial=0) == -np.inf)
        is_listed = edge_id is not None and bool(is_identity(edge_id))
        if is_for_all and edge_id is not None and not is_listed:
            n_threads, is_listed, self.bias_order = self.arguments.n_threads, True, edge_id
            values = moved(values, edge_id, n_threads, goes_back=False)
        return ScoreBias(
            values,
            is_listed,
            1 if is_for_all else tiles.padded[0],
            max(prod(bias.shape[:-1]), 1),
            removes,
            np.empty(0, tiles.dtype),
        )

    def _once(self, rows: Array) -> Array:
        """Rows of edges without the batch, if all feature sets share them."""
        n_batch = self.arguments.query.ndim - 3
        if n_batch == 0:
            return rows
        is_folded = prod(rows.shape[n_batch:-1]) < self.sizes.n_edge_rows
        is_shared = self.sizes.n_copies > 0 and not any(rows.strides[:n_batch])
        return rows[(0,) * n_batch] if is_shared and not is_folded else rows

    def empty_results(self, rows: tuple[int, ...], of_alpha: tuple[int, ...]) -> tuple[Array, ...]:
        """The elements of `gatv2.numba.arguments.Results`, for rows and edges of these shapes."""
        (n_heads, n_hidden), dtype = self.tiles.padded, self.tiles.dtype
        out, lse, alpha, *_ = self.arguments.memory
        return (
            empty((*rows, n_heads, n_hidden), dtype, out),
            empty((*rows, n_heads), dtype, lse),
            empty((*rows, n_heads), dtype),
            empty((*of_alpha, n_heads), dtype, alpha)
            if self.arguments.wants_rows
            else self.tiles.nothing,
        )

    def results(self, padded: tuple[Array, ...]) -> tuple[Array, Array, Array | None]:
        """(out, log-sum-exp, alpha) of what `empty_results` made; alpha is None unless it is wanted."""
        out, lse, _, of_edges = padded
        tiles, alpha = self.tiles, of_edges if self.arguments.wants_rows else None
        if not tiles.is_padded:
            return out, lse, alpha
        n_threads, memory = self.arguments.n_threads, self.arguments.memory
        return (
            tiles.crop(out, n_threads, memory[0]),
            tiles.crop_heads(lse, n_threads, memory[1]),
            None if alpha is None else tiles.crop_heads(alpha, n_threads, memory[2]),
        )
