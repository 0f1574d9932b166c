"""Whether Numba can be used. Found out when this file is imported, which is done inside functions.

The compiler runs an import for real and reads a module's constants, where it could not trace the
question.
"""

import importlib

FAILURE: str | None = None
"""Why Numba can't be used; None if it can, and then it has been imported."""

try:
    if importlib.import_module("numba").config.DISABLE_JIT:
        FAILURE = "NUMBA_DISABLE_JIT is set"
except ImportError as error:
    FAILURE = str(error)
