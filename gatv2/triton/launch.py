"""From the arguments of an operator to launches of the kernels: what both backends share.

Everything is sized by shapes and made on the device, so that no launch waits for another: nothing here
reads a tensor's value.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from gatv2.precision import computed_in
from gatv2.triton import arguments as of_kernel
from gatv2.triton.shape import Tile, padded_hidden, power_of_two, row_tile

if TYPE_CHECKING:  # their fields are all that is read
    from gatv2.operator.arguments import Arguments

SPLIT = 1024
"""Rows with more edges than this are worked on in parts."""
CHUNKS = 4096
"""Shares of d_attn, at most; more than programs that run at once on any GPU."""
EDGE_SHARES = 1 << 22
"""Numbers in the shares of the gradient of the projection of edges, at most, in one feature set."""
ONE_ROW, TWO_ROWS = 32, 16
"""Registers of each thread for a row of features an edge, in passes that hold one of them or two."""


class Lists(NamedTuple):
    """The edges in one order; all three None if they are the entries of a mask."""

    ptr: Tensor | None
    other: Tensor | None
    number: Tensor | None


class Layout(NamedTuple):
    """A graph, as both backends give it to the kernels."""

    n_edges: int
    by_query: Lists
    by_key: Callable[[], Lists]
    """Called by the backward pass alone."""
    query: Callable[[], Tensor | None]
    """Query of each edge, called if coefficients or gradients of edges are wanted; None for a mask."""
    mask: Tensor | None
    """`[*batch, n_edges, 1 or n_heads]`, bool, with or without the batch of the features."""
    feature_row: Tensor | None
    query_id: Tensor | None
    key_id: Tensor | None


class Call:
    """The arguments of an operator, as the kernels read them."""

    def __init__(self, arguments: "Arguments", layout: Layout) -> None:
        self.arguments, self.layout = arguments, layout
        query, key = arguments.query, arguments.key
        self.n_queries, self.n_heads, self.n_hidden = query.shape[-3:]
        self.n_keys = key.shape[-3]
        self.n_copies = query.shape[:-3].numel()
        self.n_unmapped = query.shape[arguments.n_mapped : -3].numel()
        self.dtype = computed_in(query.dtype)
        self.padded_hidden = padded_hidden(self.n_heads, self.n_hidden, query.dtype)
        self.features = self._features()
        self.bias = self._once(arguments.score_bias)

    def pad(self, rows: Tensor) -> Tensor:
        """Rows of features, each of whole 16 bytes."""
        if self.padded_hidden != self.n_hidden:
            rows = pad(rows, (0, self.padded_hidden - self.n_hidden))
        return rows.contiguous()

    def crop(self, rows: Tensor) -> Tensor:
        """Rows of features without their padding, in the dtype of the features."""
        rows = rows[..., : self.n_hidden]
        return rows.to(self.arguments.query.dtype).contiguous()

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised, on the device; of the dtype that is computed in if none is given."""
        device = self.arguments.query.device
        return torch.empty(shape, dtype=dtype or self.dtype, device=device)

    def empty_rows(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised rows of features."""
        return self.empty(*shape, self.n_heads, self.padded_hidden, dtype=dtype)

    def empty_results(self, *shape: int) -> Tensor:
        """Uninitialised rows of features, in the dtype of the features."""
        return self.empty_rows(*shape, dtype=self.arguments.query.dtype)

    def _features(self) -> of_kernel.Features:
        query, key, attn = (self.pad(x) for x in self.arguments[:3])
        x, projection = self.arguments.edge_features, self.arguments.edge_projection
        if x is None or projection is None:
            return of_kernel.Features(query, key, attn, None, None)
        projection = self.pad(projection.movedim(-1, 0))
        return of_kernel.Features(query, key, attn, self._once(x), projection)

    def _once(self, rows: Tensor | None) -> Tensor | None:
        """Rows of edges, without the batch if all feature sets share them."""
        if rows is None:
            return None
        n_batch = self.arguments.query.ndim - 3
        if self.n_copies > 1 and not any(rows.stride()[:n_batch]):
            rows = rows[(0,) * n_batch]
        return rows.contiguous()

    def _step(self, rows: Tensor | None) -> int:
        """Rows of edges between those of two feature sets; 0 if they share them."""
        n_edges = self.layout.n_edges
        if rows is None or rows.numel() < self.n_copies * n_edges * rows.shape[-1]:
            return 0
        return n_edges

    def shape(self, tile: Tile, *, is_by_key: bool = False) -> of_kernel.Shape:
        """What a pass is compiled for."""
        mask = self.layout.mask
        mask_heads = 0 if mask is None else mask.shape[-1]
        bias_heads = 0 if self.bias is None else self.bias.shape[-1]
        return of_kernel.Shape(
            n_heads=self.n_heads,
            n_hidden=self.padded_hidden,
            heads=power_of_two(self.n_heads),
            hidden=power_of_two(self.padded_hidden),
            rows=tile.rows,
            edges=tile.edges,
            warps=tile.warps,
            accumulator=tl.float64 if self.dtype == torch.float64 else tl.float32,
            has_edge_features=self.features.of_edges is not None,
            mask_heads=mask_heads,
            bias_heads=bias_heads,
            has_unused=mask_heads > 0 or bias_heads > 0,
            is_by_key=is_by_key,
            split=SPLIT,
        )

    def row_shape(self, registers: int, *, is_by_key: bool = False) -> of_kernel.Shape:
        """What a pass over rows is compiled for."""
        dtype = self.arguments.query.dtype
        tile = row_tile(self.n_heads, self.padded_hidden, dtype, registers)
        return self.shape(tile, is_by_key=is_by_key)

    def graph(self, shape: of_kernel.Shape) -> of_kernel.Graph:
        """What a pass reads beside features."""
        layout, arguments, x = self.layout, self.arguments, self.features.of_edges
        n_rows, n_others = self.n_queries, self.n_keys
        lists = layout.by_query
        if shape.is_by_key:
            lists, n_rows, n_others = layout.by_key(), n_others, n_rows
        windows = None
        if layout.n_edges > SPLIT:  # else no row can have more
            windows = self._windows(lists.ptr, n_rows, n_others, shape.rows)
        mask_step = 0
        mask = layout.mask
        if mask is not None and mask.ndim > 2:
            mask_step = layout.n_edges * mask.shape[-1]
        n_blocks = max(arguments.n_blocks, 1)
        return of_kernel.Graph(
            of_kernel.Order(
                *lists, windows, n_rows, n_others, 0 if windows is None else len(windows)
            ),
            of_kernel.Edges(mask, self.bias, layout.feature_row, None),
            of_kernel.Dropout(arguments.seed, layout.query_id, layout.key_id),
            of_kernel.Sizes(
                self.n_queries,
                self.n_keys,
                layout.n_edges,
                max(self.n_unmapped, 1),
                self.n_queries // n_blocks,
                self.n_keys // n_blocks,
                mask_step,
                0 if x is None else x.shape[-1],
                self._step(x),
                self._step(self.bias),
            ),
        )

    def _windows(self, ptr: Tensor | None, n_rows: int, n_others: int, multiple: int) -> Tensor:
        """Rows of the first and the last edge of each window, filled up to a multiple."""
        n_edges, device = self.layout.n_edges, self.arguments.query.device
        first = torch.arange(0, n_edges, SPLIT, device=device)
        last = (first + SPLIT - 1).clamp_(max=n_edges - 1)
        edge = torch.stack((first, last), dim=1).flatten()
        if ptr is None:
            rows = edge // n_others
        else:
            rows = torch.searchsorted(ptr, edge.to(ptr.dtype), right=True) - 1
        return pad(rows.int(), (0, -rows.shape[0] % multiple), value=n_rows)

    @property
    def scalars(self) -> tuple[float, int, float]:
        """Slope, the least random word that is kept, and the factor of what is kept."""
        dropout = self.arguments.dropout
        return self.arguments.negative_slope, int(dropout * 2**32), 1 / (1 - dropout)


def run(
    kernel: "triton.JITFunction[..., None]",
    n_programs: int,
    arguments: tuple[object, ...],
    shape: of_kernel.Shape,
) -> None:
    """Launch a kernel; one of no programs is none."""
    if n_programs > 0:
        # what products and sums are contracted is part of the result: not left to Triton's default
        kernel[(n_programs,)](*arguments, shape, num_warps=shape.warps, enable_fp_fusion=True)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """A launch goes to the current stream of the current device, which is to be that of the tensors."""
    return torch.cuda.device_of(tensor)


def count_blocks(graph: of_kernel.Graph, shape: of_kernel.Shape) -> int:
    """Blocks of rows, and of slots, of a feature set; as `gatv2.triton.rows.count_blocks`."""
    return int(graph.order.n_slots // shape.rows + triton.cdiv(graph.order.n_rows, shape.rows))
