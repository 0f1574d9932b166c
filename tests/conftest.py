"""Settings of every test: what is drawn is the same in every run."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from gatv2.dispatch import KERNELS, Kernel

settings.register_profile(
    "default",
    max_examples=25,
    deadline=None,
    derandomize=True,
    # `kernel` and `dtype` are function-scoped fixtures without state
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _name(kernel: Kernel) -> str:
    return f"{kernel.backend}-{kernel.name}"


@pytest.fixture(params=KERNELS, ids=_name)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every kernel of the ordered tuple in turn."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Single and double precision in turn."""
    return request.param  # type: ignore[no-any-return]
