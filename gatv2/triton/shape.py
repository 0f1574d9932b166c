"""Which tile suits which features, by a rule: no autotuning, so that results never depend on a clock."""

from typing import NamedTuple

import torch

from gatv2.precision import computed_in

LANES = 32
"""Threads of a warp."""
BYTES_A_LANE = 16
"""What a thread loads at once: a row of features is read in such pieces."""
MAX_WARPS = 16


class Tile(NamedTuple):
    """Rows, and edges of each row, that a program of some warps works on at once."""

    rows: int
    edges: int
    warps: int


def power_of_two(number: int) -> int:
    """The least power of two from `number` on."""
    return 1 << max(number - 1, 0).bit_length()


def padded_hidden(n_heads: int, n_hidden: int, dtype: torch.dtype) -> int:
    """Features of a head in memory, such that each row is read in whole pieces."""
    lane = BYTES_A_LANE // dtype.itemsize
    is_whole = power_of_two(n_heads) == n_heads and power_of_two(n_hidden) == n_hidden
    if is_whole and n_heads * n_hidden % lane == 0:
        return n_hidden
    return -(-n_hidden // lane) * lane


def row_tile(n_heads: int, n_hidden: int, dtype: torch.dtype, registers: int) -> Tile:
    """For a pass over rows: as many rows as one load reads, and edges of each as registers hold.

    Args:
        n_heads: heads of a row in memory.
        n_hidden: features of a head in memory.
        dtype: dtype of the features.
        registers: 32-bit registers of each thread for one row of features an edge.
    """
    length = power_of_two(n_heads) * power_of_two(n_hidden)
    load = LANES * BYTES_A_LANE // dtype.itemsize
    warps = min(max(length // load, 1), MAX_WARPS)
    rows = max(load * warps // length, 1)
    registers_an_edge = rows * length * (computed_in(dtype).itemsize // 4) // (LANES * warps)
    return Tile(rows, max(registers // registers_an_edge, 1), warps)


def edge_tile(n_heads: int, n_hidden: int, dtype: torch.dtype, registers: int) -> Tile:
    """For the pass over edges, each of which is a row: the least that a product of matrices takes."""
    rows, length = 16, power_of_two(n_heads) * power_of_two(n_hidden)
    values = rows * length * (computed_in(dtype).itemsize // 4)
    return Tile(rows, 1, min(max(values // (LANES * registers), 1), MAX_WARPS))
