"""Reasons against the kernels that are seen when a program is lowered: which GPUs there are."""

import jax

OLDEST_CAPABILITY = (8, 0)
"""Compute capability of the oldest of NVIDIA's GPUs that Triton compiles for in XLA."""


def device_failure(platform: str) -> str | None:
    """Why the GPUs of this machine can't run the kernels; None if they can, or if there are none."""
    if platform != "cuda":
        return None
    try:
        devices = jax.local_devices(backend=platform)
    except RuntimeError:  # a program for another machine
        return None
    for device in devices:
        capability = tuple(map(int, device.compute_capability.split(".")))
        if capability < OLDEST_CAPABILITY:
            needed = ".".join(map(str, OLDEST_CAPABILITY))
            return (
                f"needs compute capability {needed}, and {device.device_kind} has "
                f"{device.compute_capability}"
            )
    return None
