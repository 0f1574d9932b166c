"""The arguments of an operator, in the form that compiled kernels read."""

from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gatv2.numba.tiles import Array, as_array, tiles_of
from gatv2.philox import WORDS_PER_COUNTER


class Call:
    """The arguments of an operator; see `gatv2.operator.define.define`.

    Attributes:
        n_copies: feature sets that share one graph.
        n_queries: queries of a feature set.
        n_keys: keys of a feature set.
        n_edge_rows: rows of features of edges, of a feature set; 0 if there are none.
        wants_rows: whether the result with a row for each edge is wanted: forward alpha, backward
            the gradient of the features of edges.
        tiles: how a row of features is cut.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        attn: Tensor,
        edge_features: Tensor | None,
        edge_projection: Tensor | None,
        *arguments: Any,
    ) -> None:
        self.query, self.key, self.attn = query, key, attn
        self.edge_features, self.edge_projection = edge_features, edge_projection
        *self.adjacency, self.seed, self.n_blocks, self.n_mapped = arguments[:-3]
        self.negative_slope, self.dropout, self.wants_rows = arguments[-3:]
        self.n_queries, n_heads, n_hidden = query.shape[-3:]
        self.n_copies, self.n_keys = query.shape[:-3].numel(), key.shape[-3]
        self.n_batches = query.shape[self.n_mapped : -3].numel()
        shape = () if edge_features is None else edge_features.shape[query.ndim - 3 : -1]
        self.n_edge_rows = prod(shape) if shape else 0
        self.tiles = tiles_of(n_heads, n_hidden, query.dtype)

    def fold_batch(self) -> None:
        """Read a batch of feature sets as one, of a block-diagonal graph."""
        self.n_blocks, self.n_batches = self.n_batches, 1
        self.n_copies //= self.n_blocks
        self.n_queries *= self.n_blocks
        self.n_keys *= self.n_blocks
        self.n_edge_rows *= self.n_blocks

    @cached_property
    def arguments(self) -> tuple[Any, ...]:
        """Vectors, shape, sizes, features, slope and dropout, as the kernels read them."""
        tiles, n_blocks = self.tiles, max(self.n_blocks, 1)
        sizes = (
            self.n_queries,
            self.n_keys,
            max(self.n_batches, 1),
            self.n_queries // n_blocks,
            self.n_keys // n_blocks,
            -(-tiles.n_heads // WORDS_PER_COUNTER),
            self.n_edge_rows,
        )
        seed = 0 if self.seed is None else int(self.seed)
        dropout = (
            0 if self.seed is None else int(self.dropout * 2**32),
            1 / (1 - self.dropout),
            seed & 0xFFFFFFFF,
            seed >> 32 & 0xFFFFFFFF,
        )
        features = tuple(tiles.pad(x) for x in (self.query, self.key, self.attn))
        return tiles.vectors, tiles.shape, sizes, features, self.negative_slope, dropout

    @cached_property
    def edges(self) -> tuple[Any, ...] | None:
        """Features of edges, their projection, their number D and that of their rows; or None."""
        if self.edge_features is None or self.edge_projection is None:
            return None
        x, n_batch = self.edge_features, self.query.ndim - 3
        is_folded = x.shape[n_batch:-1].numel() < self.n_edge_rows
        is_shared = self.n_copies > 0 and not any(x.stride()[:n_batch])  # by all feature sets
        if is_shared and not is_folded:
            x = x[(0,) * n_batch]
        rows = as_array(x.to(self.tiles.dtype))
        n_features = x.shape[-1]
        projection = self.tiles.pad(self.edge_projection.movedim(-1, 0))
        return rows, projection, n_features, max(x.shape[:-1].numel(), 1)

    @cached_property
    def projection_by_lane(self) -> Tensor:
        """The projection of edges times attn, padded `[heads * features, D]`, D to whole cache lines."""
        assert self.edges is not None
        tiles, (_, projection, n_features, _) = self.tiles, self.edges
        attn = torch.from_numpy(tiles.pad(self.attn))
        by_lane = (attn * torch.from_numpy(projection).view(n_features, tiles.length)).T
        return pad(by_lane, (0, -n_features % tiles.line)).contiguous()

    def results(
        self, out: Tensor, largest: Tensor, total: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(out, log-sum-exp, alpha) of padded results."""
        tiles, dtype, lse = self.tiles, self.query.dtype, as_array(largest)
        with np.errstate(divide="ignore"):  # a head without edges: the logarithm of zero
            lse += np.log(as_array(total))
        return (
            tiles.crop(out, dtype),
            tiles.crop_heads(largest, tiles.dtype),
            tiles.crop_heads(alpha, dtype) if self.wants_rows else out.new_empty(0, dtype=dtype),
        )

    def gradients(
        self,
        d_query: Tensor,
        d_key: Tensor,
        d_attn: Array,
        d_edge_features: Tensor | None,
        d_edge_projection: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Gradients of the operator's features, empty where there are none or nobody wants them.

        Args:
            d_query: padded.
            d_key: padded.
            d_attn: shares, `[copies, chunks, features]`, padded.
            d_edge_features: `[copies * rows, D]`; None if edges have no features.
            d_edge_projection: shares of G, see `gatv2.numba.edge_features`,
                `[copies, chunks, D, *padded]`.
        """
        tiles, dtype = self.tiles, self.query.dtype
        to_attn = self._total(d_attn)
        to_features, to_projection = (d_query.new_empty(0, dtype=dtype) for _ in range(2))
        if d_edge_features is not None and d_edge_projection is not None:
            assert self.edges is not None
            assert self.edge_features is not None
            summed = self._total(d_edge_projection.numpy())  # [*mapped, D, *padded]
            projection = torch.from_numpy(self.edges[1]).view(summed.shape[-3:])
            to_attn = to_attn + (projection * summed).sum(-3)
            attn = torch.from_numpy(tiles.pad(self.attn)).view(tiles.padded)
            to_projection = tiles.crop(attn * summed, dtype).movedim(-3, -1).contiguous()
            if self.wants_rows:
                to_features = d_edge_features.view(self.edge_features.shape).to(dtype)
        return (
            tiles.crop(d_query, dtype),
            tiles.crop(d_key, dtype),
            tiles.crop(to_attn, dtype),
            to_features,
            to_projection,
        )

    def _total(self, shares: Array) -> Tensor:
        """The sum of `[copies, chunks, ...]` over both, in order, as `[*mapped, ..., *padded]`."""
        mapped, rows = self.query.shape[: self.n_mapped], shares.shape[2:3] * (shares.ndim > 3)
        total = shares.sum(1).reshape(*mapped, self.n_batches, *rows, *self.tiles.padded)
        return torch.from_numpy(total.sum(len(mapped)))
