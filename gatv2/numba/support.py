"""Reasons against the kernels compiled by Numba. Imports neither Numba nor PyTorch."""

import os

PROCESS = os.getpid()
"""The process that imported this; a forked child is another one, without its threads."""


def unsupported(device_type: str) -> list[str]:
    """The reasons why Numba's kernels can't serve a device ("cpu", "cuda"); empty if they can."""
    reasons = []
    if device_type != "cpu":
        reasons.append(f"it runs on the CPU only, and the features are on {device_type}")
    if failure := import_failure():
        reasons.append(f"Numba can't be used: {failure}")
    return reasons


def import_failure() -> str | None:
    """Why Numba can't be used; None if it can, and then it has been imported."""
    from gatv2.numba.available import FAILURE

    return FAILURE
