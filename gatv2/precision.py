"""Which dtypes are computed in. Imports nothing of gatv2."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

FLOATING_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""The dtypes that every kernel takes."""


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a kernel computes in: half precision is brought to float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def largest_in(dtype: torch.dtype) -> float:
    """The largest number of the dtype that a kernel computes in."""
    return torch.finfo(computed_in(dtype)).max


def summed_in(tensor: Tensor) -> torch.dtype:
    """The dtype in which values like those of `tensor` are summed over the edges of a row.

    A row may have a million edges. One after another in float32, their sum is off by a percent; in
    float64 it is not, and is rounded once. A device without float64 sums in what it computes in.
    """
    return computed_in(tensor.dtype) if tensor.device.type == "mps" else torch.float64


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for a device; PyTorch refuses to tell of meta, where there is none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def lowered(tensor: Tensor) -> torch.dtype:
    """The dtype in which a product takes a tensor, which autocast may convert."""
    if not is_autocast(tensor.device) or not is_convertible(tensor):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def is_convertible(tensor: Tensor) -> bool:
    """Whether autocast converts a tensor where it is enabled."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A block in which autocast lowers nothing to half precision."""
    if not is_autocast(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
