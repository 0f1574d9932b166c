"""The kernels that this process can run: Triton's need a GPU, or a process that interprets them."""

import torch

from gatv2.dispatch import KERNELS, Kernel


def can_run(kernel: Kernel) -> bool:
    """Whether a kernel's toolchain serves the device that tests run on."""
    return kernel.name != "triton" or not kernel.unsupported(torch.empty(0))


RUNNABLE = tuple(kernel for kernel in KERNELS if can_run(kernel))
