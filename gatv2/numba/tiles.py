"""How the [heads, features] of a row are cut into tiles of SIMD lanes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numba.core.registry import cpu_target

from gatv2.numba.memory import LINE_BYTES, Array
from gatv2.numba.padding import reshaped
from gatv2.numba.philox import LANES
from gatv2.numba.vectors import Vectors

_TILE_BYTES = 256  # the largest: query, attn and sums of a row should all stay in registers
_TILE_COST = 8  # of one more tile a row, in lanes
MASK_LANES = 64  # of a mask that are looked at at once
_MAX_LINES = 8  # more would be waste where a strip has fewer edges
_LEAST_FEATURES = 4  # so that there are fewer kinds of tile to compile


@dataclass(frozen=True)
class Tiles:
    """Tiles that hold `group` heads, or `span` of which hold a head.

    Attributes:
        n_heads: heads, as the caller has them.
        n_hidden: features a head, as the caller has them.
        n_groups: groups of heads.
        group: heads in a group, a power of two; 1 if `span` is not 1.
        span: tiles that a head spans.
        lanes: lanes of a tile.
        dtype: float32 or float64, what is computed in.
    """

    n_heads: int
    n_hidden: int
    n_groups: int
    group: int
    span: int
    lanes: int
    dtype: np.dtype[np.floating]

    @cached_property
    def padded(self) -> tuple[int, int]:
        """Heads and features a head, with padding."""
        return self.n_groups * self.group, self.lanes * self.span // self.group

    @cached_property
    def is_padded(self) -> bool:
        """Whether a row has padding."""
        return self.padded != (self.n_heads, self.n_hidden)

    @cached_property
    def length(self) -> int:
        """Elements of a padded row."""
        return self.n_groups * self.span * self.lanes

    @property
    def line(self) -> int:
        """Lanes of a cache line."""
        return LINE_BYTES // self.dtype.itemsize

    @cached_property
    def vectors(self) -> Vectors:
        """Vectors: a tile, its heads, coefficients, random words, a part of a mask, and others.

        A cache line (`line`), as many as may be summed at once (`lines`), and what of a tile may be
        summed four times at once (`piece`).
        """
        scalar, n_sums = self.dtype.type, sum_bytes() // self.dtype.itemsize
        return Vectors(
            tile=(scalar, self.lanes),
            heads=(scalar, self.group),
            flat=(scalar, max(self.group, self.line)),
            line=(scalar, self.line),
            piece=(scalar, min(self.lanes, n_sums // 4)),
            lines=(scalar, min(n_sums, _MAX_LINES * self.line)),
            words=(np.uint32, LANES),
            word=(np.uint32, MASK_LANES),
        )

    @cached_property
    def nothing(self) -> Array:
        """No numbers."""
        return np.empty(0, self.dtype)

    def pad(self, features: Array, n_threads: int) -> Array:
        """`[..., heads, features]` padded to whole tiles, flat."""
        if features.dtype != self.dtype:
            features = features.astype(self.dtype)
        if self.is_padded:
            features = reshaped(np.ascontiguousarray(features), *self.padded, n_threads=n_threads)
        return features.ravel()

    def pad_heads(self, values: Array | None, n_threads: int, filling: float = 0) -> Array:
        """`[..., heads]`, or nothing, padded to whole groups, flat; bool stays bool."""
        if values is None:
            return self.nothing
        dtype = values.dtype if values.dtype == np.bool_ else self.dtype
        if values.dtype != dtype:
            values = values.astype(dtype)
        if self.padded[0] != self.n_heads and values.size > 0:
            rows = np.ascontiguousarray(values)[..., None, :]
            values = reshaped(rows, 1, self.padded[0], filling=filling, n_threads=n_threads)
        return values.ravel()

    def crop(self, features: Array, n_threads: int, memory: Array | None = None) -> Array:
        """The caller's part of padded `[..., heads, features]`; in `memory`, if it fits."""
        if not self.is_padded:
            return features
        shape = self.n_heads, self.n_hidden
        return reshaped(features, *shape, memory=memory, n_threads=n_threads)

    def crop_heads(self, values: Array, n_threads: int, memory: Array | None = None) -> Array:
        """The caller's part of padded `[..., heads]`; in `memory`, if it fits."""
        if self.padded[0] == self.n_heads:
            return values
        rows, shape = values[..., None, :], (1, self.n_heads)
        return reshaped(rows, *shape, memory=memory, n_threads=n_threads)[..., 0, :]


@lru_cache(maxsize=1)
def sum_bytes() -> int:
    """Bytes of registers that sums may take: half of those of AVX-512, of AVX or of NEON."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return 1024 if "+avx512f" in features else 256


@lru_cache
def tiles_of(n_heads: int, n_hidden: int, is_double: bool) -> Tiles:
    """The tiling of least cost, in lanes that are read: in float64, or else in float32."""
    dtype: np.dtype[np.floating] = np.dtype(np.float64 if is_double else np.float32)
    candidates = [
        Tiles(n_heads, n_hidden, -(-n_heads // group), group, span, lanes, dtype)
        for group, span, lanes in _candidates(n_hidden, dtype.itemsize)
    ]

    def cost(tiles: Tiles) -> tuple[int, int]:
        n_tiles = tiles.n_groups * tiles.span
        return tiles.length + _TILE_COST * n_tiles, n_tiles

    return min(candidates, key=cost)


def _candidates(n_hidden: int, itemsize: int) -> Iterator[tuple[int, int, int]]:
    """(heads a group, tiles a head, lanes a tile)."""
    lanes = LINE_BYTES // itemsize
    while lanes <= _TILE_BYTES // itemsize:
        hidden = _LEAST_FEATURES
        while hidden < min(n_hidden, lanes):
            hidden *= 2
        yield lanes // hidden, -(-n_hidden // lanes), lanes
        lanes *= 2
