"""Packages that not everybody needs, imported when they are needed. Imports nothing of gatv2."""

import sys
from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str, needed_for: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its full name.
        extra: the extra of `gatv2-layers` that installs it.
        needed_for: what the user asked for.

    Raises:
        ImportError: it can't be imported; the text says what installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{needed_for} needs {module.partition('.')[0]}, which can't be imported ({error}): "
            f"pip install 'gatv2-layers[{extra}]'"
        ) from error


def is_from(module_name: str, name: str, candidate: object) -> bool:
    """Whether a module that the user has imported recognises an object; imports nothing."""
    recognise = getattr(sys.modules.get(module_name), name, None)
    if isinstance(recognise, type):
        return isinstance(candidate, recognise)
    return recognise is not None and bool(recognise(candidate))
