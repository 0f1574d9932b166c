"""How kernels are compiled and kept: Numba's decorators, and a cache that knows every source.

Numba's cache asks for the age of the file of the function that it compiled, and of no other. Kernels
are made of many files, so the version of their cache carries a digest of all of them.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from llvmlite import ir
from numba import njit
from numba.core import base, extending, typing

Function = TypeVar("Function", bound=Callable[..., object])
Decorator = Callable[[Callable[..., object]], Any]

# what an intrinsic is written with
Typing: TypeAlias = typing.BaseContext
Context: TypeAlias = base.BaseContext
Builder: TypeAlias = ir.IRBuilder
Signature: TypeAlias = typing.Signature
Value: TypeAlias = ir.Value
Values: TypeAlias = Sequence[Value]

# Numba has no types
intrinsic: Decorator = extending.intrinsic
infer_getattr: Decorator = extending.infer_getattr
lower_builtin: Callable[..., Decorator] = extending.lower_builtin
lower_getattr_generic: Callable[..., Decorator] = extending.lower_getattr_generic
overload: Callable[..., Decorator] = extending.overload
register_model: Callable[..., Decorator] = extending.register_model
type_callable: Callable[..., Decorator] = extending.type_callable
unbox: Callable[..., Decorator] = extending.unbox

_PACKAGE = Path(__file__).parent.parent
_PATTERNS = ("numba/*.py", "dense/numba_*.py", "sparse/numba_*.py", "philox.py")


def _sources() -> list[Path]:
    """The files of which something ends up in a compiled kernel."""
    return sorted(path for pattern in _PATTERNS for path in _PACKAGE.glob(pattern))


_DIGEST = hashlib.blake2b(
    b"".join(path.read_bytes() for path in _sources()), digest_size=8
).hexdigest()


def kernel(function: Function) -> Function:
    """`numba.njit` for kernels: without the GIL, cached on disk where a directory can be written."""
    try:
        compiled = njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache directory
        return _not_cached(function)
    try:
        index = compiled._cache._cache_file  # private, but there is no public way to a version
        index._version = f"{index._version} {_DIGEST}"
    except AttributeError:  # of another Numba: slower to start is better than stale
        return _not_cached(function)
    return compiled  # type: ignore[no-any-return]


def inline(function: Function) -> Function:
    """`numba.njit` for the parts of a kernel: LLVM always inlines them, Python can't call them."""
    return njit(  # type: ignore[no-any-return]
        nogil=True,
        error_model="numpy",
        forceinline=True,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )(function)


def _not_cached(function: Function) -> Function:
    return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
