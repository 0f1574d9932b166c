"""The types of SIMD vectors in Numba: values whose data model is an LLVM vector.

LLVM splits a vector of any number of lanes over the registers of the CPU that it compiles for.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import extending
from numba.core.datamodel import DataModelManager, models
from numba.core.pythonapi import _UnboxContext as UnboxContext
from numba.core.typing.templates import AttributeTemplate

from gatv2.numba.compile import (
    Builder,
    Context,
    Value,
    infer_getattr,
    lower_getattr_generic,
    register_model,
    unbox,
)

_ELEMENTS: dict[types.Type, ir.Type] = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.uint8: ir.IntType(8),
    types.uint32: ir.IntType(32),
    types.uint64: ir.IntType(64),
    types.boolean: ir.IntType(1),
}


class VectorType(types.Type):  # type: ignore[misc]
    """Numba's type of a vector of `lanes` scalars of one type."""

    def __init__(self, dtype: types.Type, lanes: int) -> None:
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
        members: of each type its name, NumPy's float32, float64, int32, uint8, uint32 or uint64, and
            its lanes.
    """

    def __init__(self, **members: tuple[type[np.generic], int]) -> None:
        self._numba_type_ = VectorsType(
            {
                name: VectorType(getattr(types, np.dtype(dtype).name), lanes)
                for name, (dtype, lanes) in members.items()
            }
        )


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: DataModelManager, fe_type: VectorType) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


register_model(VectorClassType)(models.OpaqueModel)
register_model(VectorsType)(models.OpaqueModel)


@unbox(VectorsType)
def _unbox(_typ: VectorsType, _value: object, c: UnboxContext) -> extending.NativeValue:
    return extending.NativeValue(c.context.get_dummy_value())


@infer_getattr
class _VectorsAttribute(AttributeTemplate):  # type: ignore[misc]
    key = VectorsType

    def generic_resolve(self, typ: VectorsType, name: str) -> VectorClassType | None:
        return typ.members.get(name)


@lower_getattr_generic(VectorsType)
def _get_member(
    context: Context, _builder: Builder, _typ: VectorsType, _value: Value, _name: str
) -> Value:
    return context.get_dummy_value()


@infer_getattr
class _VectorClassAttribute(AttributeTemplate):  # type: ignore[misc]
    key = VectorClassType

    def generic_resolve(self, typ: VectorClassType, name: str) -> types.Type | None:
        return types.intp if name in typ.constants else None


@lower_getattr_generic(VectorClassType)
def _get_constant(
    context: Context, _builder: Builder, typ: VectorClassType, _value: Value, name: str
) -> Value:
    return context.get_constant(types.intp, typ.constants[name])


def mask_bytes(vector: VectorType) -> int:
    """Bytes of a mask with one bit for each lane."""
    return max(vector.lanes // 8, 1)
