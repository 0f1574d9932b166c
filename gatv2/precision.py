"""Which dtypes are computed in. Imports nothing of gatv2."""

import torch

FLOATING_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""The dtypes that every kernel takes."""


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a kernel computes in: half precision is brought to float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
