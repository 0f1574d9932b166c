"""What the package allocates holds NaN in every test, and a kernel that reads it is caught."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from poison import poison_array, poison_tensor, poisoned_memory

from gatv2.testing import assert_agrees

# the first row is never written
KERNEL = """
import numpy as np
import torch
def make(x):
    return x.new_empty(3)
def with_torch(x):
    out = torch.empty(x.shape, dtype=x.dtype)
    out[1:] = x[1:]
    return out
def like_torch(x):
    out = torch.empty_like(x)
    out[1:] = x[1:]
    return out
def new_torch(x):
    out = x.new_empty(x.shape)
    out[1:] = x[1:]
    return out
def with_numpy(x):
    out = np.empty(x.shape, x.numpy().dtype)
    out[1:] = x[1:]
    return torch.from_numpy(out)
def like_numpy(x):
    out = np.empty_like(x.numpy())
    out[1:] = x[1:]
    return torch.from_numpy(out)
"""
NAMES = ["with_torch", "like_torch", "new_torch", "with_numpy", "like_numpy"]


def module_of(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of that name which holds the forgetful kernels."""
    module = ModuleType(name)
    exec(KERNEL, vars(module))
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.mark.parametrize("function", NAMES)
def test_a_kernel_that_reads_new_memory_is_caught(
    function: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_of("gatv2.forgetful", monkeypatch)
    x = torch.zeros(3, 4, dtype=dtype)  # as new memory may be too
    with poisoned_memory():
        result = getattr(module, function)(x)
    assert result[0].isnan().all()
    with pytest.raises(AssertionError):
        assert_agrees(result, x.double(), x)


@pytest.mark.parametrize(("name", "expected"), [("gatv2.forgetful", 1), ("elsewhere", 0)])
def test_the_memory_of_others_is_left_alone(
    name: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_of(name, monkeypatch)
    seen: list[object] = []
    monkeypatch.setattr("poison.poison_tensor", seen.append)
    with poisoned_memory():
        module.make(torch.zeros(3, 4))
        assert (module.torch is torch) == (module.np is np) == (expected == 0)
    assert len(seen) == expected


def test_it_holds_in_every_test() -> None:
    """The fixture is on: what modules of ours call `torch` is not the module itself."""
    ours = [module for name, module in sys.modules.items() if name.startswith("gatv2.")]
    theirs = [vars(module)["torch"] for module in ours if "torch" in vars(module)]
    assert len(theirs) > 5
    for seen in theirs:
        assert seen.empty(3).isnan().all()
        assert seen.nn is torch.nn


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.complex64]
)
def test_tensors_of_every_dtype(dtype: torch.dtype) -> None:
    filled = poison_tensor(torch.zeros(6, dtype=dtype)[::2])
    wrong = {torch.bool: True, torch.uint8: 255, torch.int32: -1, torch.int64: -1}
    assert (filled == wrong[dtype]).all() if dtype in wrong else filled.isnan().all()


def test_bytes_are_wrong_as_any_number() -> None:
    filled = poison_array(np.zeros(16, np.uint8))
    assert np.isnan(filled.view(np.float64)).all()
    assert np.isnan(filled.view(np.float32)).all()
    assert (filled.view(np.int32) == -1).all()


def test_kernels_that_are_compiled_meanwhile_know_numpy() -> None:
    numba = pytest.importorskip("numba")

    with poisoned_memory():
        from gatv2.numba import tiles

        scope = {"np": vars(tiles)["np"]}
        exec("def zeros(n):\n    x = np.empty(n, np.float32)\n    x[:] = 0\n    return x", scope)
        assert scope["np"] is not np
        assert numba.njit(scope["zeros"])(3).sum() == 0
