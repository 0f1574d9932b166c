"""The threads of PyTorch's own operations: a kernel that wakes them calls itself on each.

PyTorch keeps a team of OpenMP threads, which look for work for a while before they sleep. They are woken
in some 10 us and without the GIL, where a thread of Python takes 100. A kernel asks the OpenMP runtime
for them by `GOMP_parallel`, whose address Python passes to it: code that is kept on disk holds none.

The team has as many threads as PyTorch's operations use, also where there are fewer chunks: the runtime
ends those that a smaller team has no use for, and the next operation would have to start them anew.
"""

import ctypes
import os
import sys
from functools import lru_cache

from llvmlite import ir
from numba import types
from numba.core import callconv, cgutils

from gatv2.numba.arguments import Index, Plain
from gatv2.numba.compile import Builder, Context, Signature, Typing, Value, Values, intrinsic
from gatv2.numba.support import PROCESS

_INT = ir.IntType(32)
_LONG = ir.IntType(64)
_POINTER = ir.IntType(8).as_pointer()
_TASK = ir.FunctionType(ir.VoidType(), [_POINTER])
_GOMP_PARALLEL = ir.FunctionType(ir.VoidType(), [_TASK.as_pointer(), _POINTER, _INT, _INT])


def address() -> int:
    """Of `GOMP_parallel` in the OpenMP runtime that PyTorch runs on; 0 if no team is to be had.

    There is none without PyTorch, which is not imported for it, nor where it brings another runtime:
    on macOS and Windows. A forked child has none either, as it would wait for threads of its parent.
    """
    if "torch" not in sys.modules or os.getpid() != PROCESS:
        return 0
    return _address()


@lru_cache(maxsize=1)
def _address() -> int:
    if sys.platform != "linux":
        return 0
    try:
        # found by its name among the libraries that are loaded, and the symbol in what it depends on
        library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):  # linked in another way, or built without OpenMP
        return 0


@intrinsic
def share_out(_typing: Typing, chunks: Plain) -> Index:
    """Call the kernel on each thread of a team, if it is to have one; return the number of the member.

    `chunks` is `gatv2.numba.threads.Chunks`. The kernel that Python called returns from here when the
    team has taken all chunks, and finds none left. A member's number is less than the team's size.

    Kernels raise nothing but what NUMBA_BOUNDSCHECK adds: that of any member is raised by all.
    """

    def lower(context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        state, _, _, team, n_members = cgutils.unpack_tuple(builder, args[0], 5)
        counters = context.make_array(chunks.types[0])(context, builder, state).data
        member = cgutils.alloca_once_value(builder, ir.Constant(_LONG, 0))
        one = ir.Constant(_LONG, 1)
        with builder.if_then(builder.icmp_signed(">", n_members, one), likely=False):
            arrivals = builder.gep(counters, [one])
            number = builder.atomic_rmw("add", arrivals, one, "monotonic")
            is_first = builder.icmp_signed("==", number, ir.Constant(_LONG, 0))
            with builder.if_else(is_first, likely=False) as (first, others):
                with first:
                    _run_team(builder, team, n_members)
                with others:
                    builder.store(builder.sub(number, one), member)
        return builder.load(member)

    return types.int64(chunks), lower


def _run_team(builder: Builder, team: Value, n_members: Value) -> None:
    """Have each member call the function that is being built, with the arguments that it has itself."""
    kernel = builder.function
    arguments = kernel.args[2:]  # behind the places of the result and of an exception
    outcome = [callconv.RETCODE_OK, ir.Constant(_POINTER, None)]
    shared = cgutils.alloca_once(
        builder, ir.LiteralStructType([x.type for x in (*outcome, *arguments)])
    )
    for i, value in enumerate((*outcome, *arguments)):
        builder.store(value, _member_of(builder, shared, i))
    task = _task(builder.module, kernel, shared.type)
    gomp_parallel = builder.inttoptr(team, _GOMP_PARALLEL.as_pointer())
    data, n_threads = builder.bitcast(shared, _POINTER), builder.trunc(n_members, _INT)
    builder.call(gomp_parallel, [task, data, n_threads, ir.Constant(_INT, 0)])
    status = builder.load(_member_of(builder, shared, 0))
    with builder.if_then(_is_error(builder, status), likely=False):
        exception = builder.load(_member_of(builder, shared, 1))
        builder.store(exception, builder.bitcast(kernel.args[1], _POINTER.as_pointer()))
        builder.ret(status)


def _task(module: ir.Module, kernel: ir.Function, shared: ir.PointerType) -> ir.Function:
    """What a member of the team runs: the kernel, whose result is None."""
    task = ir.Function(module, _TASK, module.get_unique_name("gatv2_task"))
    task.linkage = "internal"
    builder = ir.IRBuilder(task.append_basic_block())
    data = builder.bitcast(task.args[0], shared)
    n_arguments = len(kernel.args) - 2
    arguments = [builder.load(_member_of(builder, data, 2 + i)) for i in range(n_arguments)]
    result, exception = (
        cgutils.alloca_once(builder, _POINTER),
        cgutils.alloca_once(builder, _POINTER),
    )
    places = [
        builder.bitcast(place, argument.type)
        for place, argument in zip((result, exception), kernel.args, strict=False)
    ]
    status = builder.call(kernel, [*places, *arguments])
    with builder.if_then(_is_error(builder, status), likely=False):
        builder.store(builder.load(exception), _member_of(builder, data, 1))
        builder.store(status, _member_of(builder, data, 0))
    builder.ret_void()
    return task


def _member_of(builder: Builder, struct: Value, i: int) -> Value:
    return builder.gep(struct, [ir.Constant(_INT, 0), ir.Constant(_INT, i)], inbounds=True)


def _is_error(builder: Builder, status: Value) -> Value:
    is_ok, is_none = (
        builder.icmp_signed("==", status, code)
        for code in (callconv.RETCODE_OK, callconv.RETCODE_NONE)
    )
    return builder.not_(builder.or_(is_ok, is_none))
