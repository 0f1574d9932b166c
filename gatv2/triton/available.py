"""Whether Triton can be imported. Found out when this file is imported, which is done inside functions.

The compiler runs an import for real and reads a module's constants, where it could not trace the
question.
"""

import importlib

OLDEST = (3, 7, 1)
"""The oldest version whose compiler takes our kernels: earlier ones choose other layouts, and spill."""

FAILURE: str | None = None
"""Why Triton can't be used; None if it can, and then it has been imported."""

try:
    _version = importlib.import_module("triton").__version__
except ImportError as error:
    FAILURE = f"Triton can't be imported: {error}"
else:
    if tuple(map(int, _version.split("+")[0].split(".")[:3])) < OLDEST:
        _needed = ".".join(map(str, OLDEST))
        FAILURE = f"Triton must be of version {_needed} or newer; it is {_version}"
