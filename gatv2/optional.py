"""Packages that not everybody needs, imported when they are needed. Imports nothing of gatv2."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


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


def remedy_for_networkx(graph: object, name: str) -> str | None:
    """What to pass in the place of a graph of NetworkX that is called `name`; None for any other."""
    if type(graph).__module__.partition(".")[0] != "networkx":
        return None
    return (
        f"pass `networkx.to_scipy_sparse_array({name}, weight=None)` with flow='source_to_target'; "
        "its node i is the i-th of `nodes`"
    )


def check_scipy_matrix(matrix: Any, name: str) -> None:
    """Raise a ValueError for a matrix of SciPy with entries outside, where SciPy would read and write.

    Its own check, `check_format`, changes the matrix, and does not look at one that ends empty.
    """
    shape = matrix.shape
    if matrix.format == "coo":
        n_stored = matrix.data.shape[0]
        is_whole = all(map(_lie_in, (matrix.row, matrix.col), (n_stored, n_stored), shape))
    elif matrix.format in ("csr", "csc", "bsr"):
        if matrix.format == "bsr":
            shape = [n // n_of_block for n, n_of_block in zip(shape, matrix.blocksize, strict=True)]
        n_major, n_minor = shape[::-1] if matrix.format == "csc" else shape
        ptr, index = matrix.indptr, matrix.indices
        is_whole = (
            ptr.shape == (n_major + 1,)
            and ptr[0] == 0
            and bool((ptr[1:] >= ptr[:-1]).all())
            and ptr[-1] == matrix.data.shape[0]  # room behind, SciPy makes entries of
            and _lie_in(index, ptr[-1], n_minor)
        )
    else:
        return
    if not is_whole:
        raise ValueError(
            f"a sparse `{name}` must have its entries inside, and pointers that ascend to their number; "
            f"it has not, in format {matrix.format!r}: make it of arrays that "
            "fit, and call its `prune()` where they have room for more"
        )


def _lie_in(index: Any, n: int, end: int) -> bool:
    """Whether there are so many indices, all of them in [0, end)."""
    return index.shape == (n,) and bool(((index >= 0) & (index < end)).all())
