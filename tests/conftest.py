"""Settings of every test: what is drawn is the same in every run, and new memory holds NaN."""

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from poison import poisoned_memory
from runnable import RUNNABLE

from gatv2.dispatch import Kernel

# hundreds of programs are compiled that run once
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)

# threads of PyTorch that wait sleep, in pytest-xdist's workers and in what tests start; they would spin
# on cores on which other workers have work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# modules that a first call imports, loaded now: poison is put into what is loaded
_modules = ["dense.numba_kernel", "sparse.numba_kernel", "numba.counting_sort"]
_modules += ["numba.self_loops", "numba.joined", "numba.sparse_product"]
_modules += ["numba.dense_product"]
if any(kernel.name == "triton" for kernel in RUNNABLE):
    _modules += ["dense.triton_kernel", "sparse.triton_kernel"]
for _module in _modules:
    with suppress(ImportError):
        import_module(f"gatv2.{_module}")

settings.register_profile(
    "default",
    max_examples=25,
    deadline=None,
    derandomize=True,
    # `kernel` and `dtype` are function-scoped fixtures without state
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1000)
settings.register_profile("few", parent=settings.get_profile("default"), max_examples=3)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned_memory():
        yield


def _name(kernel: Kernel) -> str:
    return f"{kernel.backend}-{kernel.name}"


@pytest.fixture(params=RUNNABLE, ids=_name)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every kernel of the ordered tuple in turn."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Single and double precision in turn."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=list(dict.fromkeys(kernel.backend for kernel in RUNNABLE)))
def backend(request: pytest.FixtureRequest) -> Any:
    """Every backend in turn."""
    return request.param


@pytest.fixture
def seed() -> torch.Tensor:
    """A seed of dropout, in the form that kernels are given."""
    return torch.tensor(3)
