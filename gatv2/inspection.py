"""Whether a tensor's values can be looked at: not while a program is traced or transformed."""

import torch
from torch import Tensor


def is_inspectable(tensor: Tensor) -> bool:
    """True if `tensor` holds values of its own that Python may branch on.

    False under `torch.compile` and `torch.export`, for tensors wrapped by a `torch.func` transform,
    and for meta tensors: checks of values are left out there.
    """
    return not (
        torch.compiler.is_compiling()
        or tensor.is_meta
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )
