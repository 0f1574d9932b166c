"""The arguments of an operator, in the form that compiled kernels read."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatv2.random import WORDS_PER_COUNTER
from gatv2.tiles import Array, as_array, tiles_of


class Call:
    """The arguments of an operator; see `gatv2.operator.define`.

    Attributes:
        n_copies: feature sets that share one graph.
        n_queries: queries of a feature set.
        n_keys: keys of a feature set.
        tiles: how a row of features is cut.
    """

    def __init__(self, query: Tensor, key: Tensor, attn: Tensor, *arguments: Any) -> None:
        self.query, self.key, self.attn = query, key, attn
        *self.adjacency, self.seed, self.n_blocks, self.n_mapped = arguments[:-3]
        self.negative_slope, self.dropout, self.with_alpha = arguments[-3:]
        self.n_queries, n_heads, n_hidden = query.shape[-3:]
        self.n_copies, self.n_keys = query.shape[:-3].numel(), key.shape[-3]
        self.n_batches = query.shape[self.n_mapped : -3].numel()
        self.tiles = tiles_of(n_heads, n_hidden, query.dtype)

    def fold_batch(self) -> None:
        """Read a batch of feature sets as one, of a block-diagonal graph."""
        self.n_blocks, self.n_batches = self.n_batches, 1
        self.n_copies //= self.n_blocks
        self.n_queries *= self.n_blocks
        self.n_keys *= self.n_blocks

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
            tiles.crop_heads(alpha, dtype) if self.with_alpha else out.new_empty(0, dtype=dtype),
        )

    def gradients(
        self, d_query: Tensor, d_key: Tensor, d_attn: Array
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and attn; `d_attn` is `[copies, chunks, features]`, padded."""
        tiles, dtype, mapped = self.tiles, self.query.dtype, self.query.shape[: self.n_mapped]
        shares = d_attn.sum(1).reshape(*mapped, self.n_batches, *tiles.padded).sum(-3)
        return (
            tiles.crop(d_query, dtype),
            tiles.crop(d_key, dtype),
            tiles.crop(torch.from_numpy(shares), dtype),
        )
