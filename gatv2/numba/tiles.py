"""How the [heads, features] of a row are cut into tiles of SIMD lanes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gatv2.numba.compile import Vectors
from gatv2.numba.philox import LANES
from gatv2.precision import computed_in

Array = np.ndarray[Any, Any]

_LINE_BYTES = 64  # a cache line: the smallest tile
_HUGE_PAGE_BYTES = 1 << 21
_TILE_BYTES = 256  # the largest: query, attn and sums of a row should all stay in registers
_TILE_COST = 8  # of one more tile a row, in lanes
MASK_LANES = 64
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
    dtype: torch.dtype

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
        return _LINE_BYTES // self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, int]:
        """Groups of heads, and tiles a head spans."""
        return self.n_groups, self.span

    @cached_property
    def vectors(self) -> Vectors:
        """Vectors: a tile, its heads, coefficients, a cache line, random words, a part of a mask."""
        scalar = np.float64 if self.dtype == torch.float64 else np.float32
        return Vectors(
            tile=(scalar, self.lanes),
            heads=(scalar, self.group),
            flat=(scalar, max(self.group, self.line)),
            line=(scalar, self.line),
            words=(np.uint32, LANES),
            word=(np.uint32, MASK_LANES),
        )

    def pad(self, features: Tensor) -> Array:
        """`[..., heads, features]` padded to whole tiles, flat."""
        heads, hidden = self.padded
        if features.dtype != self.dtype:
            features = features.to(self.dtype)
        if self.is_padded:
            features = pad(features, (0, hidden - self.n_hidden, 0, heads - self.n_heads))
        return as_array(features)

    def pad_heads(self, values: Tensor) -> Array:
        """`[..., heads]`, or nothing, padded to whole groups, flat; bool stays bool."""
        if values.dtype not in (torch.bool, self.dtype):
            values = values.to(self.dtype)
        if self.is_padded and values.numel():
            values = pad(values, (0, self.padded[0] - self.n_heads))
        return as_array(values)

    def empty(self, *batch: int) -> Tensor:
        """`[*batch, heads, features]` with padding, not initialised."""
        return empty((*batch, *self.padded), self.dtype)

    def empty_heads(self, *batch: int) -> Tensor:
        """`[*batch, heads]` with padding, not initialised."""
        return empty((*batch, self.padded[0]), self.dtype)

    def crop(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """The caller's part of padded `[..., heads, features]`, in the caller's dtype."""
        if self.is_padded:
            # not `contiguous`, which leaves the strides of a single head
            features = features[..., : self.n_heads, : self.n_hidden]
            features = features.clone(memory_format=torch.contiguous_format)
        return features if features.dtype == dtype else features.to(dtype)

    def crop_heads(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The caller's part of padded `[..., heads]`, in the caller's dtype."""
        if self.is_padded:
            values = values[..., : self.n_heads].contiguous()
        return values if values.dtype == dtype else values.to(dtype)


@lru_cache
def tiles_of(n_heads: int, n_hidden: int, dtype: torch.dtype) -> Tiles:
    """The tiling of least cost, in lanes that are read; half precision is computed in float32."""
    dtype = computed_in(dtype)
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
    lanes = _LINE_BYTES // itemsize
    while lanes <= _TILE_BYTES // itemsize:
        hidden = _LEAST_FEATURES
        while hidden < min(n_hidden, lanes):
            hidden *= 2
        yield lanes // hidden, -(-n_hidden // lanes), lanes
        lanes *= 2


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`torch.empty`, but a large tensor lies in NumPy's huge pages, which are got in less time."""
    n_bytes = dtype.itemsize * prod(shape)
    if n_bytes < _HUGE_PAGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    memory = np.empty(n_bytes + _LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % _LINE_BYTES
    return torch.from_numpy(memory[start : start + n_bytes]).view(dtype).view(shape)


def as_array(tensor: Tensor) -> Array:
    """A tensor's elements as a flat array, without a copy if it is contiguous."""
    array: Array = tensor.detach().numpy()
    return array.ravel()
