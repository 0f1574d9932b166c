"""The product of a projection, and its gradients: by our kernel where that is faster than PyTorch's.

For plain tensors in the CPU's memory, where no transform is at work.
"""

import ctypes
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gatv2.numba.memory import Array
from gatv2.numba.support import import_failure

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def project(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`h @ weight.T + bias`."""
    kernels = _kernels()
    if (
        kernels is not None
        and kernels.can_multiply(*h.shape, weight.shape[0], h.itemsize)
        and _is_readable(h)
        and _is_readable(weight)
        and (bias is None or (_is_readable(bias) and bias.shape == weight.shape[:1]))
    ):
        added = None if bias is None else _memory_of(bias)
        product = kernels.project(_memory_of(h), _memory_of(weight), added, torch.get_num_threads())
        return torch.from_numpy(product)
    return functional.linear(h, weight, bias)


def gradient_of_h(d_out: Tensor, weight: Tensor) -> Tensor:
    """`d_out @ weight`."""
    kernels = _kernels()
    if (
        kernels is not None
        and kernels.can_multiply(*d_out.shape, weight.shape[1], weight.itemsize)
        and _is_readable(d_out)
        and _is_readable(weight)
    ):
        factors = _memory_of(d_out), _memory_of(weight)
        return torch.from_numpy(kernels.gradient_of_h(*factors, torch.get_num_threads()))
    return d_out.mm(weight)


def gradient_of_weight(d_out: Tensor, h: Tensor) -> Tensor:
    """`d_out.T @ h`."""
    kernels = _kernels()
    if (
        kernels is not None
        and kernels.can_multiply_columns(*d_out.shape, h.shape[1], h.itemsize)
        and _is_readable(d_out)
        and _is_readable(h)
    ):
        factors = _memory_of(d_out), _memory_of(h)
        return torch.from_numpy(kernels.gradient_of_weight(*factors, torch.get_num_threads()))
    return d_out.t().mm(h)


@lru_cache(maxsize=1)
def _kernels() -> ModuleType | None:
    """Our kernels, if they are faster than what PyTorch multiplies by."""
    if import_failure() is not None or not torch.backends.mkl.is_available():
        return None
    from gatv2.numba import dense_product

    return dense_product if dense_product.is_faster() else None


def _is_readable(factor: Tensor) -> bool:
    """Whether a tensor's memory holds its numbers, row by row, in a dtype that the kernels know."""
    return (
        factor.dtype in _DTYPES
        and factor.is_contiguous()
        and not factor.is_neg()
        and factor.data_ptr() != 0  # a tensor of nothing but zeros may have no memory
    )


def _memory_of(tensor: Tensor) -> Array:
    """The memory of a tensor, for as long as that lives; `Tensor.numpy` would fix its size for good."""
    memory = memoryview((ctypes.c_byte * tensor.nbytes).from_address(tensor.data_ptr()))
    return np.frombuffer(memory, _DTYPES[tensor.dtype]).reshape(tensor.shape)
