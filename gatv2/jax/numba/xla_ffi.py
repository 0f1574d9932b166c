"""Python functions as targets of `jax.ffi.ffi_call` on the CPU, without a compiler.

XLA calls a C function with a pointer to a call frame, which tells where the buffers are. `ctypes` makes
such a function of a Python one, and reads the frame: buffers are arrays in XLA's own memory, nothing
is copied. Unlike `jax.pure_callback`, no JAX array is made, so the function may run while JAX is busy.

Source: the structures of `xla/ffi/api/c_api.h`, which jaxlib ships (`jax.ffi.include_dir()`); version 0
of the interface.
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import NumPyArray as Array

Attributes = dict[str, Any]  # bools, integers and floats, by names that whoever calls agrees on
Function = Callable[[list[Array], list[Array], Attributes], None]
"""Reads inputs, writes outputs, given the attributes of the call."""

_DTYPES = {
    1: np.dtype(np.bool_),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    8: np.dtype(np.uint32),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
    16: np.dtype(jnp.bfloat16),
}
_Number = ctypes.c_bool | ctypes.c_int32 | ctypes.c_int64 | ctypes.c_float | ctypes.c_double
_SCALAR_TYPES: dict[int, type[_Number]] = {
    1: ctypes.c_bool,
    4: ctypes.c_int32,
    5: ctypes.c_int64,
    11: ctypes.c_float,
    12: ctypes.c_double,
}
_FIRST_VERSION = (0, 1)
_METADATA_EXTENSION = 1
_INTERNAL_ERROR = 13


class _Struct(ctypes.Structure):
    """What the structures of the interface begin with; fields of a subclass come behind."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p)]


class _Version(_Struct):
    _fields_ = [("major", ctypes.c_int), ("minor", ctypes.c_int)]


class _Api(_Struct):
    _fields_ = [
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)),
    ]


class _ErrorArguments(_Struct):
    _fields_ = [("message", ctypes.c_char_p), ("code", ctypes.c_int)]


class _Buffer(_Struct):
    _fields_ = [
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


class _Buffers(_Struct):
    _fields_ = [
        ("size", ctypes.c_int64),
        ("types", ctypes.POINTER(ctypes.c_int)),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    ]


class _Name(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(ctypes.c_char)), ("length", ctypes.c_size_t)]


class _Scalar(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("value", ctypes.c_void_p)]


class _Attributes(_Struct):
    _fields_ = [
        ("size", ctypes.c_int64),
        ("types", ctypes.POINTER(ctypes.c_int)),
        ("names", ctypes.POINTER(ctypes.POINTER(_Name))),
        ("items", ctypes.POINTER(ctypes.POINTER(_Scalar))),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
    ]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]


class _CallFrame(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_MetadataExtension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("inputs", _Buffers),
        ("outputs", _Buffers),
        ("attributes", _Attributes),
    ]


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))


def register(name: str, function: Function) -> None:
    """Make a Python function the target `name` of `jax.ffi.ffi_call` on the CPU.

    The first of a name stays: another thread may be as far, or these modules have been loaded twice.
    What the function raises is raised where the result of the call is waited for, as a
    `jax.errors.JaxRuntimeError` with its message.

    Example:
        >>> import jax.numpy as jnp
        >>> def scale(inputs, outputs, attributes):
        ...     outputs[0][...] = inputs[0] * attributes["factor"]
        >>> register("gatv2_doctest_scale", scale)
        >>> shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        >>> jax.ffi.ffi_call("gatv2_doctest_scale", shape)(jnp.arange(3.0), factor=2)
        Array([0., 2., 4.], dtype=float32)
    """

    def handle(frame_pointer: "ctypes._Pointer[_CallFrame]") -> int | None:
        frame = frame_pointer.contents
        try:
            if frame.extension and frame.extension.contents.type == _METADATA_EXTENSION:
                _tell_version(frame)
            else:
                inputs, outputs = _arrays(frame.inputs), _arrays(frame.outputs)
                function(inputs, outputs, _attributes(frame.attributes))
        except BaseException as error:  # nothing may unwind into XLA
            return _error(frame.api, f"{type(error).__name__}: {error}")
        return None

    handler = _Handler(handle)
    # XLA has its address for the life of the process, which may be longer than that of this module
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handler))
    address = ctypes.cast(handler, ctypes.c_void_p).value
    capsule = jax.ffi.pycapsule(address)
    try:
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except jax.errors.JaxRuntimeError as error:
        if "Duplicate" not in str(error):
            raise


def _tell_version(frame: _CallFrame) -> None:
    """Answer XLA's question for which version of the interface this is written.

    All that is read here has been the same in every minor version.
    """
    major, minor = _FIRST_VERSION
    if frame.api:
        version = frame.api.contents.version
        if version.major != major:
            raise RuntimeError(
                f"XLA's foreign function interface has version {version.major}.{version.minor}; "
                f"kernel='numba' is written for {major}: use kernel='jax'"
            )
        minor = version.minor
    own = frame.extension.contents.metadata.contents
    own.version.struct_size, own.version.extension = ctypes.sizeof(_Version), None
    own.version.major, own.version.minor = major, minor
    own.traits = 0


def _arrays(buffers: _Buffers) -> list[Array]:
    return [_array(buffers.items[i].contents) for i in range(buffers.size)]


def _array(buffer: _Buffer) -> Array:
    shape, dtype = tuple(buffer.dims[: buffer.rank]), _DTYPES[buffer.dtype]
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes == 0:
        return np.empty(shape, dtype)
    memory = (ctypes.c_char * n_bytes).from_address(buffer.data)
    array: Array = np.frombuffer(memory, np.uint8).view(dtype).reshape(shape)
    return array


def _attributes(attributes: _Attributes) -> Attributes:
    values = {}
    for i in range(attributes.size):
        name, scalar = attributes.names[i].contents, attributes.items[i].contents
        value = _SCALAR_TYPES[scalar.dtype].from_address(scalar.value).value
        values[name.data[: name.length].decode()] = value
    return values


def _error(api: "ctypes._Pointer[_Api]", message: str) -> int | None:
    arguments = _ErrorArguments(
        ctypes.sizeof(_ErrorArguments), None, message.encode(), _INTERNAL_ERROR
    )
    error: int | None = api.contents.create_error(ctypes.addressof(arguments))
    return error
