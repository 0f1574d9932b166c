"""Reasons against every fused kernel, whatever toolchain compiles it."""

from torch import Tensor

from gatv2.precision import FLOATING_DTYPES
from gatv2.torch_internals import is_exported_to_onnx, is_forward_mode


def unsupported(query: Tensor, *features: Tensor) -> list[str]:
    """The reasons why no fused operator can serve these features; empty if one can."""
    reasons = []
    if query.dtype not in FLOATING_DTYPES:
        known = ", ".join(str(dtype) for dtype in FLOATING_DTYPES)
        reasons.append(f"it computes in {known}, and the features are {query.dtype}")
    if is_forward_mode(query, *features):
        reasons.append("it has no forward-mode derivative (jvp, jacfwd, dual tensors)")
    if is_exported_to_onnx():
        reasons.append("ONNX has no such operator")
    return reasons
