"""How kernels are compiled and kept: Numba's decorators, and a cache that knows every source.

Numba's cache asks for the age of the file of the function that it compiled, and of no other. Kernels
are made of many files, so the version of their cache carries a digest of all of them.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from filelock import FileLock, Timeout
from llvmlite import ir
from numba import njit
from numba.core import base, extending, typing

from gatv2.numba.inlined import InlinedCompiler

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

_LOGGER = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parent.parent
_PATTERNS = ("numba/*.py", "dense/numba_*.py", "sparse/numba_*.py", "philox.py")


def _sources() -> list[Path]:
    """The files of which something ends up in a compiled kernel."""
    return sorted(path for pattern in _PATTERNS for path in _PACKAGE.glob(pattern))


_LONGEST_COMPILATION = 120
"""Seconds after which a process compiles what another one seems to be compiling."""

_DIGEST = hashlib.blake2b(
    b"".join(path.read_bytes() for path in _sources()), digest_size=8
).hexdigest()


_OPTIONS: dict[str, object] = {
    "nogil": True,
    "error_model": "numpy",
    # A kernel makes no arrays, and Python holds its arguments while it runs. To count references to
    # them takes longer than a short row, and threads that count those of one array wait for each other.
    "_nrt": False,
}


def kernel(function: Function, *, nogil: bool = True) -> Function:
    """`numba.njit` for kernels: without the GIL, cached on disk where a directory can be written."""
    try:
        compiled = njit(cache=True, **{**_OPTIONS, "nogil": nogil})(function)
    except RuntimeError:  # neither beside the source nor in the user's cache directory
        if not not_kept:
            not_kept.append(_NOWHERE)
            _LOGGER.warning("compiling kernels in each process anew: %s", _NOWHERE)
        return _not_cached(function, nogil=nogil)
    try:
        cache = compiled._cache  # private, but there is no public way to a version
        index = cache._cache_file
        index._version = f"{index._version} {_DIGEST}"
        compiled._cache = _SharedCache(cache)
    except AttributeError:  # of another Numba: slower to start is better than stale
        return _not_cached(function, nogil=nogil)
    return compiled  # type: ignore[no-any-return]


def python_kernel(function: Function) -> Function:
    """`kernel` for what looks at objects of Python, which takes the GIL."""
    return kernel(function, nogil=False)


class _SharedCache:
    """A cache for several processes, of which one compiles a signature and the others wait for it.

    A failure is a miss: files are cut by a crash, and disks are full.

    Args:
        cache: Numba's.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._held: dict[object, FileLock] = {}

    def load_overload(self, signature: object, target: object) -> object:
        """Compiled code, or None for it to be compiled anew."""
        code = self._load(signature, target)
        if code is None and signature not in self._held and self._waits(signature):
            code = self._load(signature, target)
            if code is not None:
                self._release(signature)
        if code is None:
            self._say_why_one_waits()
        return code

    def save_overload(self, signature: object, compiled: object) -> None:
        """Keep compiled code, if that can be done."""
        try:
            # two processes that add to one index at once would lose an entry
            with self._lock("index"):
                self._cache.save_overload(signature, compiled)
        except Exception as error:
            self._warn("written", error)
            not_kept.append(f"{self._cache.cache_path} can't be written: {error}")
        self._release(signature)

    def _load(self, signature: object, target: object) -> object:
        try:
            return self._cache.load_overload(signature, target)
        except Exception as error:  # a damaged file may raise anything
            self._warn("read", error)
            return None

    def _waits(self, signature: object) -> bool:
        """Take the right to compile a signature, and say whether another process had it before."""
        name = hashlib.blake2b(repr(signature).encode(), digest_size=8).hexdigest()
        has_waited = False
        try:
            lock = self._lock(name)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                has_waited = True
                lock.acquire()
        except (OSError, Timeout):  # no lock can be had there, or its owner has stopped
            return has_waited
        self._held[signature] = lock
        return has_waited

    def _release(self, signature: object) -> None:
        lock = self._held.pop(signature, None)
        if lock is not None:
            lock.release()

    def _lock(self, name: str) -> FileLock:
        path = Path(self._cache.cache_path)
        path.mkdir(parents=True, exist_ok=True)
        file = path / f"{self._cache._cache_file._index_name}.{name}.lock"
        return FileLock(file, timeout=_LONGEST_COMPILATION, thread_local=False)

    def __getattr__(self, name: str) -> object:
        return getattr(self._cache, name)

    def _say_why_one_waits(self) -> None:
        if _LOGGER.name not in _told_of:
            _told_of.add(_LOGGER.name)
            _LOGGER.warning(
                "compiling kernels for this CPU, which takes seconds, once: they are kept in %s",
                self._cache.cache_path,
            )

    def _warn(self, what: str, error: Exception) -> None:
        path = self._cache.cache_path
        if path not in _told_of:
            _told_of.add(path)
            warnings.warn(
                f"compiled kernels in {path} can't be {what} ({type(error).__name__}: {error}) and are "
                "compiled anew: delete the directory, or set NUMBA_CACHE_DIR to another one",
                RuntimeWarning,
                stacklevel=2,
            )


_told_of: set[str] = set()

not_kept: list[str] = []
"""Why code that this process compiles is not there for the next one; empty if it is."""

_NOWHERE = (
    "no directory to keep them in can be written, neither that of the sources nor the user's cache: "
    "set NUMBA_CACHE_DIR to one that can"
)


def field_of(context: Context, builder: Builder, kind: Any, array: Value, name: str) -> Value:
    """What is known of an array, as a value: `data`, its address, or its `shape`, `strides`, `itemsize`.

    Numba's own struct of an array is written to memory first, and read from there: as many times the
    code, for each element that is read.
    """
    return context.data_model_manager[kind].get(builder, array, name)


def inline(function: Function) -> Function:
    """`numba.njit` for the parts of a kernel: LLVM always inlines them, Python can't call them."""
    return njit(  # type: ignore[no-any-return]
        forceinline=True,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=InlinedCompiler,
        **_OPTIONS,
    )(function)


def _not_cached(function: Function, *, nogil: bool) -> Function:
    return njit(**{**_OPTIONS, "nogil": nogil})(function)  # type: ignore[no-any-return]
