"""What this process and this moment allow: Numba, and looking at a tensor's values."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack


def is_inspectable(tensor: Tensor) -> bool:
    """True if `tensor` holds values of its own that Python may branch on.

    False under `torch.compile` and `torch.export`, for tensors wrapped by a `torch.func` transform,
    and for meta tensors: checks of values are left out there.
    """
    return not (
        torch.compiler.is_compiling()
        or tensor.is_meta
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def made_to_last(tensor: Tensor) -> AbstractContextManager[None]:
    """For what is made of `tensor` and kept: it outlives the active transforms and inference mode."""
    return _beneath_transforms() if is_inspectable(tensor) else nullcontext()


@contextmanager
def _beneath_transforms() -> Iterator[None]:
    with temporarily_clear_interpreter_stack(), torch.inference_mode(False):
        yield


if TYPE_CHECKING:
    from functools import cached_property

    made_once = cached_property
else:

    def made_once(make: Callable[[Any], Any]) -> property:
        """A property of sorted edges that is made when first asked for, and kept with them.

        It outlives transforms, and takes no lock, which torch.compile can't trace.
        """
        name = f"_{make.__name__}"

        @wraps(make)
        def read(owner: Any) -> Any:
            if name not in owner.__dict__:
                with made_to_last(owner.edge_id):
                    owner.__dict__[name] = make(owner)
            return owner.__dict__[name]

        return property(read)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@lru_cache
def numba_import_failure() -> str | None:
    """Why Numba can't be imported; None if it can, and then it has been."""
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return str(error)
    return None
