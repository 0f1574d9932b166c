"""Arrays that nothing counts references to: counting them takes longer than a short row of a graph.

Numba counts a reference, atomically, wherever an array is named, passed on or put into a tuple, and
threads that count those of one array wait for each other. A kernel's arguments belong to Python, which
holds them for as long as the kernel runs. So the kernel borrows them, in its first lines.
"""

from llvmlite import ir
from numba import types

from gatv2.numba.arguments import Nothing, Plain
from gatv2.numba.compile import Builder, Context, Signature, Typing, Value, Values, intrinsic


@intrinsic
def borrowed(_typing: Typing, value: Plain) -> Plain:
    """The same arrays, alone or in a tuple, without an owner; anything else as it is."""

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        return _without_owner(context, builder, sig.args[0], args[0])

    return value(value), lower


@intrinsic
def keep_alive(_typing: Typing, owner: Plain) -> Nothing:
    """Have what a kernel made itself, and then borrowed, live until here."""

    def lower(context: Context, _builder: Builder, _sig: Signature, _args: Values) -> Value:
        return context.get_dummy_value()

    return types.void(owner), lower


def _without_owner(context: Context, builder: Builder, kind: types.Type, value: Value) -> Value:
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = ir.Constant(array.meminfo.type, None)
        array.parent = ir.Constant(array.parent.type, None)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for i, member in enumerate(kind.types):
            item = _without_owner(context, builder, member, builder.extract_value(value, i))
            value = builder.insert_value(value, item, i)
    return value
