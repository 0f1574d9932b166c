"""The product of a projection, and its gradients: by our kernel where that is faster than PyTorch's.

For plain tensors in the CPU's memory, where no transform is at work.
"""

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gatv2.numba.memory import Array
from gatv2.numba.support import import_failure

_DTYPES = {torch.float32: np.dtype("f4").str, torch.float64: np.dtype("f8").str}


def project(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`h @ weight.T + bias`."""
    kernels = _kernels()
    if (
        kernels is not None
        and kernels.can_multiply(*h.shape, weight.shape[0], h.itemsize)
        and (bias is None or bias.shape == weight.shape[:1])
        and _are_readable(h, weight, bias)
    ):
        return _product(kernels.project, h, weight, bias)
    return functional.linear(h, weight, bias)


def gradient_of_h(d_out: Tensor, weight: Tensor) -> Tensor:
    """`d_out @ weight`."""
    kernels = _kernels()
    if (
        kernels is not None
        and kernels.can_multiply(*d_out.shape, weight.shape[1], weight.itemsize)
        and _are_readable(d_out, weight)
    ):
        return _product(kernels.gradient_of_h, d_out, weight)
    return d_out.mm(weight)


def gradient_of_weight(d_out: Tensor, h: Tensor) -> Tensor:
    """`d_out.T @ h`."""
    kernels = _kernels()
    if (
        kernels is not None
        and kernels.can_multiply_columns(*d_out.shape, h.shape[1], h.itemsize)
        and _are_readable(d_out, h)
    ):
        return _product(kernels.gradient_of_weight, d_out, h)
    return d_out.t().mm(h)


@lru_cache(maxsize=1)
def _kernels() -> ModuleType | None:
    """Our kernels, if they are faster than what PyTorch multiplies by."""
    if import_failure() is not None or not torch.backends.mkl.is_available():
        return None
    from gatv2.numba import dense_product

    return dense_product if dense_product.is_faster() else None


def _are_readable(*tensors: Tensor | None) -> bool:
    """Whether the CPU's memory holds their numbers, row by row, in one dtype that the kernels know."""
    given = [x for x in tensors if x is not None]
    dtype = given[0].dtype
    return dtype in _DTYPES and all(
        x.dtype is dtype
        and x.is_cpu
        and x.layout is torch.strided
        and x.is_contiguous()
        and not x.is_neg()
        and x.data_ptr() != 0  # a tensor of nothing but zeros may have no memory
        for x in given
    )


def _product(kernel: Callable[..., Array], *factors: Tensor | None) -> Tensor:
    """What one of our kernels makes of tensors that it can read."""
    arrays = [None if x is None else _memory_of(x) for x in factors]
    return torch.from_numpy(kernel(*arrays, torch.get_num_threads()))


def _memory_of(tensor: Tensor) -> Array:
    """The memory of a tensor, for as long as that lives; `Tensor.numpy` would fix its size for good."""
    interface = {
        "shape": tensor.shape,
        "typestr": _DTYPES[tensor.dtype],
        "data": (tensor.data_ptr(), False),
        "version": 3,
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))
