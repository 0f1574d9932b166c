"""New memory holds NaN, for the package's own calls: what is read before it is written shows.

`torch.empty`, `numpy.empty` and their like give whatever was there, often zeros, so a kernel that reads
it may pass its tests for years. Here all bits of new memory are set: NaN, -1 or True.

Only what the package's Python calls is seen; kernels make no memory.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

PACKAGE = "gatv2"


class Poisoned(ModuleType):
    """A module some of whose functions are others: all else is read from the module itself."""

    def __init__(self, module: ModuleType, functions: dict[str, Callable[..., Any]]) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(functions, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def poison_tensor(tensor: Tensor) -> Tensor:
    """Fill a tensor with NaN, -1 or True, whatever its strides; a fake or meta tensor stays as it is."""
    if type(tensor) is Tensor and tensor.device.type != "meta":
        can_be_nan = tensor.is_floating_point() or tensor.is_complex()
        with torch.no_grad():
            tensor.fill_(torch.nan if can_be_nan else -1 if tensor.dtype.is_signed else 255)
    return tensor


def poison_array(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Fill an array with NaN, -1 or True; bytes with 255, which are NaN or -1 as other numbers."""
    can_be_nan = array.dtype.kind in "fc"
    is_unsigned = array.dtype.kind == "u"
    array.fill(np.nan if can_be_nan else np.iinfo(array.dtype).max if is_unsigned else -1)
    return array


def _then(make: Callable[..., Any], poison: Callable[[Any], Any]) -> Callable[..., Any]:
    @wraps(make)
    def poisoned(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():  # it would become a part of the program
            return make(*arguments, **options)
        return poison(make(*arguments, **options))

    return poisoned


_NAMES = ("empty", "empty_like")
_TORCH = {name: _then(getattr(torch, name), poison_tensor) for name in _NAMES}
_NUMPY = {name: _then(getattr(np, name), poison_array) for name in _NAMES}
_REPLACED: list[tuple[Any, Any]] = [
    (torch, Poisoned(torch, _TORCH)),
    (np, Poisoned(np, _NUMPY)),
    *((getattr(torch, name), function) for name, function in _TORCH.items()),
    *((getattr(np, name), function) for name, function in _NUMPY.items()),
]
with suppress(ImportError):
    from numba.core.registry import cpu_target

    # to a kernel that is compiled meanwhile, they are what they stand for
    cpu_target.target_context.refresh()  # which reads in what Numba knows of NumPy
    _context = cpu_target.typing_context
    _context.refresh()
    for _name, _function in _NUMPY.items():
        _context.insert_global(_function, _context.resolve_value_type(getattr(np, _name)))


def _is_ours(module: str) -> bool:
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


def _new_empty(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(make)
    def new_empty(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return make(self, *arguments, **options)
        result = make(self, *arguments, **options)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return poison_tensor(result) if _is_ours(caller) else result

    return new_empty


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what the package allocates; not what a module does that is first imported inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", _new_empty(torch.Tensor.new_empty))
        for name, module in list(sys.modules.items()):
            if not _is_ours(name):
                continue
            for alias, value in list(vars(module).items()):
                for original, replacement in _REPLACED:
                    if value is original:
                        patch.setattr(module, alias, replacement)
        yield
