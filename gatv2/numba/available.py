"""Whether Numba can be imported. Found out when this file is imported, which is done inside functions.

The compiler runs an import for real and reads a module's constants, where it could not trace the
question.
"""

import importlib

FAILURE: str | None = None
"""Why Numba can't be imported; None if it can, and then it has been."""

try:
    importlib.import_module("numba")
except ImportError as error:
    FAILURE = str(error)
