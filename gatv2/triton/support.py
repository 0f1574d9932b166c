"""Reasons against the kernels compiled by Triton, which is not imported before a device fits."""

import os

import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels on the CPU, to show what they compute; read when it is imported."""

OLDEST_CAPABILITY = (8, 0)
"""Compute capability of the oldest of NVIDIA's GPUs that the kernels are compiled for."""


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


def import_failure() -> str | None:
    """Why Triton can't be used; None if it can, and then it has been imported."""
    from gatv2.triton.available import FAILURE

    return FAILURE
