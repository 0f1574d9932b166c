"""What a process would wait for on a GPU, seen on the CPU: operations whose result Python reads."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

READ_BY_PYTHON = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
"""A number that Python wants, or a size that it does not know."""

MADE_OF_NUMBERS = "aten::lift_fresh"
"""What `torch.tensor` gives: numbers of Python, which are copied to a device."""


class Waits(TorchDispatchMode):
    """Collects the names of operations for which a process would wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = function._schema.name, kwargs or {}
        is_moved = kwargs.get("device") not in (None, torch.device("cpu"))
        if name in READ_BY_PYTHON or name == MADE_OF_NUMBERS or is_moved or _has_bool_index(args):
            self.seen.append(name)
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self.seen.append(name)
        return function(*args, **kwargs)


def _has_bool_index(args: tuple[Any, ...]) -> bool:
    """Whether an operation is an index with a mask, which says how many entries there are."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list) else []
    return any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in indices)


def watch(waits: Waits, launchers: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Have a mode see into the launchers of kernels, which an operator hides from modes."""

    def watched(launcher: Callable[..., Any]) -> Callable[..., Any]:
        def launch(*arguments: Any) -> Any:
            with waits:
                return launcher(*arguments)

        return launch

    for name in ("forward", "backward"):
        patch.setattr(launchers, name, watched(getattr(launchers, name)))
