"""Reasons against the kernels compiled by Triton, which is not imported before a device fits."""

import os

import torch
from torch import Tensor

from gatv2.precision import computed_in
from gatv2.triton.shape import power_of_two

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels on the CPU, to show what they compute; read when it is imported."""

OLDEST_CAPABILITY = (8, 0)
"""Compute capability of the oldest of NVIDIA's GPUs that the kernels are compiled for."""

LONGEST_WITH_EDGE_FEATURES = 2048
"""Bytes of a row of heads and features, at most, of nodes whose edges have features.

The gradient of their projection is a product of matrices, which has both of them in shared memory. There
GPUs have 99 KiB or more.
"""


def unsupported(device: torch.device) -> list[str]:
    """The reasons why Triton's kernels can't serve a device; empty if they can."""
    reasons = []
    if IS_INTERPRETED and device.type != "cpu":
        reasons.append(
            f"Triton is interpreted here (TRITON_INTERPRET=1), on the CPU only, and the features are on "
            f"{device.type}"
        )
    elif not IS_INTERPRETED and device.type != "cuda":
        reasons.append(f"it runs on GPUs only, and the features are on {device.type}")
    elif not IS_INTERPRETED and torch.version.hip is None:
        properties = torch.cuda.get_device_properties(device)
        capability = properties.major, properties.minor
        if capability < OLDEST_CAPABILITY:
            needed, found = (".".join(map(str, x)) for x in (OLDEST_CAPABILITY, capability))
            reasons.append(
                f"it needs compute capability {needed}, and {properties.name} has {found}"
            )
    if not reasons and (failure := import_failure()):
        reasons.append(failure)
    return reasons


def too_wide(query: Tensor) -> list[str]:
    """The reason why rows are too long for edges with features; empty if they are not."""
    n_heads, n_hidden = query.shape[-2:]
    longest = LONGEST_WITH_EDGE_FEATURES // computed_in(query.dtype).itemsize
    if power_of_two(n_heads) * power_of_two(n_hidden) <= longest:
        return []
    return [
        f"with edge features it takes rows of {longest} features in {query.dtype}, heads and "
        f"features of a head each rounded up to a power of two, and these have {n_heads} x {n_hidden}"
    ]


def import_failure() -> str | None:
    """Why Triton can't be used; None if it can, and then it has been imported."""
    from gatv2.triton.available import FAILURE

    return FAILURE
