"""What half precision may be off by."""

import torch
from torch import Tensor


def assert_rounded_once(actual: Tensor, exact: Tensor) -> None:
    """Assert that a result is off by at most twice the largest error of the exact one, rounded.

    Beside it 64 roundings in float32 are allowed of terms of order one, of which a result may be the
    difference.
    """
    assert actual.shape == exact.shape
    rounded = exact.to(actual.dtype).double()
    in_float32 = 64 * torch.finfo(torch.float32).eps * max(1.0, float(exact.abs().max()))
    allowed = 2 * float((rounded - exact).abs().max()) + in_float32
    error = float((actual.double() - exact).abs().max())
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
