"""Runs pytest in a PyTorch that has moved a private name: PyTorch's own code finds it, gatv2 does not.

    python without_name.py torch.autograd.function _SingleLevelFunction tests/laws/test_transforms.py

Deleting the name would take it from PyTorch's own code, which has it everywhere.
"""

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def hidden(module: str, name: str) -> Iterator[None]:
    """Have `from module import name` fail in gatv2.

    Raises:
        AttributeError: there is no such name.
    """
    getattr(import_module(module), name)
    import_as_ever: Any = builtins.__import__

    def import_without(
        path: str, namespace: Any = None, local: Any = None, names: Any = (), level: int = 0
    ) -> Any:
        importer = (namespace or {}).get("__name__", "")
        if path == module and name in (names or ()) and importer.startswith("gatv2"):
            raise ImportError(f"cannot import name {name!r} from {module!r}")
        return import_as_ever(path, namespace, local, names, level)

    builtins.__import__ = import_without  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.__import__ = import_as_ever


if __name__ == "__main__":
    import pytest

    with hidden(*sys.argv[1:3]):  # the operators look once, and the compiler bears no such import
        import gatv2.dispatch  # noqa: F401
    sys.exit(pytest.main(sys.argv[3:]))
