"""The types of SIMD vectors in Numba: values whose data model is an LLVM vector.

LLVM splits a vector of any number of lanes over the registers of the CPU that it compiles for.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import extending
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Any]

# Numba has no types
intrinsic: Decorator = extending.intrinsic
infer_getattr: Decorator = extending.infer_getattr
lower_builtin: Callable[..., Decorator] = extending.lower_builtin
lower_getattr_generic: Callable[..., Decorator] = extending.lower_getattr_generic
overload: Callable[..., Decorator] = extending.overload
register_model: Callable[..., Decorator] = extending.register_model
type_callable: Callable[..., Decorator] = extending.type_callable
unbox: Callable[..., Decorator] = extending.unbox

# Numba's cache asks for the age of the file of the function it compiled, and of no other, and reads an
# index of types before it does. So its version carries a digest of all that ends up in a kernel.
_PACKAGE = Path(__file__).parent.parent
_SOURCES = sorted(
    path
    for pattern in ("numba/*.py", "dense/numba_*.py", "sparse/numba_*.py")
    for path in _PACKAGE.glob(pattern)
)
_DIGEST = hashlib.blake2b(b"".join(p.read_bytes() for p in _SOURCES), digest_size=8).hexdigest()

_ELEMENTS: dict[Any, ir.Type] = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.uint32: ir.IntType(32),
    types.boolean: ir.IntType(1),
}


class VectorType(types.Type):  # type: ignore[misc]
    """Numba's type of a vector of `lanes` scalars of one type."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        """The LLVM type."""
        return ir.VectorType(_ELEMENTS[self.dtype], self.lanes)

    @property
    def mask(self) -> "VectorType":
        """Type of a comparison."""
        return VectorType(types.boolean, self.lanes)

    @property
    def is_float(self) -> bool:
        """Whether the lanes are floating point."""
        return isinstance(self.dtype, types.Float)


class VectorClassType(types.Type):  # type: ignore[misc]
    """Numba's type of a vector type, as a value: its `lanes`, and `bytes` for a bit of each."""

    def __init__(self, vector: VectorType) -> None:
        self.vector = vector
        self.constants = {"lanes": vector.lanes, "bytes": mask_bytes(vector)}
        super().__init__(name=f"type of {vector.name}")


class VectorsType(types.Type):  # type: ignore[misc]
    """Numba's type of `Vectors`."""

    def __init__(self, members: dict[str, VectorType]) -> None:
        self.members = {name: VectorClassType(vector) for name, vector in members.items()}
        super().__init__(name=f"Vectors({members})")


class Vectors:
    """Names vector types to a kernel: passed as an argument, it compiles the kernel for them.

    Args:
        members: of each type its name, NumPy's float32, float64, int32 or uint32, and its lanes.
    """

    def __init__(self, **members: tuple[Any, int]) -> None:
        self._numba_type_ = VectorsType(
            {
                name: VectorType(getattr(types, np.dtype(dtype).name), lanes)
                for name, (dtype, lanes) in members.items()
            }
        )


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: VectorType) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


register_model(VectorClassType)(models.OpaqueModel)
register_model(VectorsType)(models.OpaqueModel)


@unbox(VectorsType)
def _unbox(_typ: VectorsType, _value: object, c: Any) -> Any:
    return extending.NativeValue(c.context.get_dummy_value())


@infer_getattr
class _VectorsAttribute(AttributeTemplate):  # type: ignore[misc]
    key = VectorsType

    def generic_resolve(self, typ: VectorsType, name: str) -> VectorClassType | None:
        return typ.members.get(name)


@lower_getattr_generic(VectorsType)
def _get_member(context: Any, _builder: Any, _typ: Any, _value: Any, _name: str) -> Any:
    return context.get_dummy_value()


@infer_getattr
class _VectorClassAttribute(AttributeTemplate):  # type: ignore[misc]
    key = VectorClassType

    def generic_resolve(self, typ: VectorClassType, name: str) -> Any:
        return types.intp if name in typ.constants else None


@lower_getattr_generic(VectorClassType)
def _get_constant(context: Any, _builder: Any, typ: Any, _value: Any, name: str) -> Any:
    return context.get_constant(types.intp, typ.constants[name])


def kernel(function: Function) -> Function:
    """`numba.njit` for kernels: without the GIL, cached on disk where a directory can be written."""
    try:
        compiled = njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache directory
        return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    index = compiled._cache._cache_file
    index._version = f"{index._version} {_DIGEST}"
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


def mask_bytes(vector: VectorType) -> int:
    """Bytes of a mask with one bit for each lane."""
    return max(vector.lanes // 8, 1)
