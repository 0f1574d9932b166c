"""The threads of PyTorch's own operations: a kernel that wakes them calls itself on each.

PyTorch keeps a team of OpenMP threads, which look for work for a while before they sleep. They are woken
in some 10 us and without the GIL, where a thread of Python takes 100. A kernel asks the OpenMP runtime
for them by `GOMP_parallel`, whose address Python passes to it: code that is kept on disk holds none.

The team has as many threads as PyTorch's operations use, also where there are fewer chunks: the runtime
ends those that a smaller team has no use for, and the next operation would have to start them anew.

OpenMP waits for every member, even for one that the system does not let run as other programs have the
CPU: some ms, where the work of a small graph is done in 0.1. So it is measured how long members keep
their callers waiting, and where that is more than a small part of all time, teams are left alone.
"""

import ctypes
import multiprocessing
import os
import platform
import sys
from functools import lru_cache
from time import perf_counter
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import callconv, cgutils
from numba.np.arrayobj import populate_array

from gatv2.numba.arguments import Index, Plain
from gatv2.numba.compile import (
    Builder,
    Context,
    Signature,
    Typing,
    Value,
    Values,
    field_of,
    intrinsic,
)
from gatv2.numba.memory import Array
from gatv2.numba.support import PROCESS

_SHARE = 0.05
"""Of all time, what may be lost by waiting."""
_MOST_LOST = 0.5
"""Seconds that count of one call: all else stood still, too."""
_PATIENCE = 0.2
"""Seconds of that time that count at once: a few members may be late before teams are left alone."""

# what threads share, in the array of which the first number counts chunks
STATE_SIZE = 6
_ARRIVALS, _LOST, _N_MEMBERS, _PARALLEL, _CLOCK = range(1, STATE_SIZE)

_INT = ir.IntType(32)
_LONG = ir.IntType(64)
_DOUBLE = ir.DoubleType()
_POINTER = ir.IntType(8).as_pointer()
_TASK = ir.FunctionType(ir.VoidType(), [_POINTER])
_PARALLEL_TYPE = ir.FunctionType(ir.VoidType(), [_TASK.as_pointer(), _POINTER, _INT, _INT])
_CLOCK_TYPE = ir.FunctionType(_DOUBLE, [])
_OF_MODE = ir.FunctionType(ir.VoidType(), [_POINTER])
_IS_X86 = platform.machine() in ("x86_64", "AMD64")


class Runtime(NamedTuple):
    """Addresses in the OpenMP runtime that PyTorch runs on; 0 if no team is to be had."""

    parallel: int
    """Of `GOMP_parallel`."""
    clock: int
    """Of `omp_get_wtime`."""


_NONE = Runtime(0, 0)


class _Teams:
    """What is known of this process's teams.

    Attributes:
        paid_until: when all that was lost by waiting for them is no more than its share of the time.
    """

    paid_until = 0.0


def runtime() -> Runtime:
    """The runtime, if a team can be woken now.

    There is none without PyTorch, which is not imported for it, nor where it brings another runtime:
    on macOS and Windows. A forked child has none either, as it would wait for threads of its parent;
    but for one that `os.fork` made of a parent that had not imported gatv2, which nothing tells.
    """
    if "torch" not in sys.modules or perf_counter() < _Teams.paid_until or os.getpid() != PROCESS:
        return _NONE
    return _runtime()


@lru_cache(maxsize=1)
def _runtime() -> Runtime:
    if sys.platform != "linux" or _may_be_forked():
        return _NONE
    try:
        # found by its name among the libraries that are loaded, and the symbols in what it depends on
        library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD)
        names = library.GOMP_parallel, library.omp_get_wtime
    except (OSError, AttributeError):  # linked in another way, or built without OpenMP
        return _NONE
    return Runtime(*(ctypes.cast(name, ctypes.c_void_p).value or 0 for name in names))


def _may_be_forked() -> bool:
    """Whether multiprocessing may have forked this process before anything of ours was imported."""
    process = multiprocessing.current_process()
    is_fresh = type(process).__name__ in ("SpawnProcess", "ForkServerProcess")
    return multiprocessing.parent_process() is not None and not is_fresh


def ask_for_team(state: Array, n_members: int) -> bool:
    """Have `share_out` wake a team, if there is one to be had, and say whether there is."""
    addresses = runtime()
    if addresses.parallel == 0:
        return False
    state[_N_MEMBERS], state[_PARALLEL], state[_CLOCK] = n_members, *addresses
    return True


def look_at(state: Array) -> None:
    """Leave teams alone for a while if they have kept their callers waiting."""
    lost = min(float(state[_LOST]) * 1e-9, _MOST_LOST)
    if lost > 0:
        begin = max(_Teams.paid_until, perf_counter() - _PATIENCE)
        _Teams.paid_until = begin + lost / _SHARE


@intrinsic
def share_out(_typing: Typing, chunks: Plain) -> Index:
    """Call the kernel on each thread of a team, if it is to have one; return the number of the member.

    `chunks` is `gatv2.numba.threads.Chunks`. The kernel that Python called returns from here when the
    team has taken all chunks, and finds none left. A member's number is less than the team's size.

    Kernels raise nothing but what NUMBA_BOUNDSCHECK adds: that of a member is raised by the call.
    """

    def lower(context: Context, builder: Builder, _sig: Signature, args: Values) -> Value:
        array = builder.extract_value(args[0], 0)
        data = field_of(context, builder, chunks.types[0], array, "data")

        def at(i: int) -> Value:
            return builder.gep(data, [ir.Constant(_LONG, i)])

        n_members = builder.load(at(_N_MEMBERS))
        member = cgutils.alloca_once_value(builder, ir.Constant(_LONG, 0))
        one = ir.Constant(_LONG, 1)
        with builder.if_then(builder.icmp_signed(">", n_members, one), likely=False):
            number = builder.atomic_rmw("add", at(_ARRIVALS), one, "monotonic")
            is_first = builder.icmp_signed("==", number, ir.Constant(_LONG, 0))
            with builder.if_else(is_first, likely=False) as (first, others):
                with first:
                    parallel, clock = builder.load(at(_PARALLEL)), builder.load(at(_CLOCK))
                    builder.store(_run_team(builder, n_members, parallel, clock), at(_LOST))
                with others:
                    builder.store(builder.sub(number, one), member)
        return builder.load(member)

    return types.int64(chunks), lower


@intrinsic
def row_of(_typing: Typing, rows: Plain, member: Index) -> Plain:
    """The row of one member, of an array that has one for each; what is no array as it is.

    Numba's own indexing takes longer to compile than all else that a team needs.
    """
    if not isinstance(rows, types.Array):
        return rows(rows, member), lambda _context, _builder, _sig, args: args[0]

    def lower(context: Context, builder: Builder, sig: Signature, args: Values) -> Value:
        data, itemsize, shape, strides = (
            field_of(context, builder, rows, args[0], name)
            for name in ("data", "itemsize", "shape", "strides")
        )
        row = context.make_array(sig.return_type)(context, builder)
        (_, width), (stride, step) = (cgutils.unpack_tuple(builder, x, 2) for x in (shape, strides))
        populate_array(
            row,
            data=cgutils.pointer_add(builder, data, builder.mul(args[1], stride)),
            shape=[width],
            strides=[step],
            itemsize=itemsize,
            meminfo=None,
            parent=None,
        )
        return row._getvalue()

    return types.Array(rows.dtype, 1, "C")(rows, member), lower


def _run_team(builder: Builder, n_members: Value, parallel: Value, clock: Value) -> Value:
    """Have each member call the function that is being built, with the arguments that it has itself.

    Returns the nanoseconds that were lost by waiting for the last one: those that the wait took longer
    than the work before it, which the caller could have done instead.
    """
    kernel = builder.function
    # behind the places of the result and of an exception
    values = [*_Shared.initial(clock, _read_mode(builder)), *kernel.args[2:]]
    struct = ir.LiteralStructType([value.type for value in values])
    place = cgutils.alloca_once(builder, struct)
    shared = _Shared(builder, place)
    for i, value in enumerate(values):
        builder.store(value, shared.at(i))
    task = _task(builder.module, kernel, place.type)
    begin = shared.now()
    start = builder.inttoptr(parallel, _PARALLEL_TYPE.as_pointer())
    data, n_threads = builder.bitcast(place, _POINTER), builder.trunc(n_members, _INT)
    builder.call(start, [task, data, n_threads, ir.Constant(_INT, 0)])
    end = shared.now()
    status = shared.load(_Shared.STATUS)
    with builder.if_then(_is_error(builder, status), likely=False):
        error = builder.bitcast(kernel.args[1], _POINTER.as_pointer())
        builder.store(shared.load(_Shared.EXCEPTION), error)
        builder.ret(status)
    first_end = shared.load(_Shared.FIRST_END)
    lost = builder.fsub(builder.fsub(end, first_end), builder.fsub(first_end, begin))
    return builder.fptosi(builder.fmul(lost, ir.Constant(_DOUBLE, 1e9)), _LONG)


class _Shared:
    """What members of a team have in common: some numbers, and then the kernel's arguments.

    Args:
        builder: of the function that reads and writes them.
        place: where they are.
    """

    STATUS, EXCEPTION, CLOCK, N_ENDED, FIRST_END, MODE, N_NUMBERS = range(7)

    def __init__(self, builder: Builder, place: Value) -> None:
        self._builder, self._place = builder, place

    @staticmethod
    def initial(clock: Value, mode: Value) -> list[Value]:
        """The numbers at the start."""
        return [
            callconv.RETCODE_OK,
            ir.Constant(_POINTER, None),
            clock,
            ir.Constant(_LONG, 0),
            ir.Constant(_DOUBLE, 0.0),
            mode,
        ]

    def at(self, i: int) -> Value:
        """Where an element is."""
        index = [ir.Constant(_INT, 0), ir.Constant(_INT, i)]
        return self._builder.gep(self._place, index, inbounds=True)

    def load(self, i: int) -> Value:
        """An element."""
        return self._builder.load(self.at(i))

    def now(self) -> Value:
        """The time in seconds."""
        clock = self._builder.inttoptr(self.load(self.CLOCK), _CLOCK_TYPE.as_pointer())
        return self._builder.call(clock, [])


def _task(module: ir.Module, kernel: ir.Function, shared_type: ir.PointerType) -> ir.Function:
    """What a member of the team runs: the kernel, whose result is None."""
    task = ir.Function(module, _TASK, module.get_unique_name("gatv2_task"))
    task.linkage = "internal"
    builder = ir.IRBuilder(task.append_basic_block())
    shared = _Shared(builder, builder.bitcast(task.args[0], shared_type))
    arguments = [shared.load(shared.N_NUMBERS + i) for i in range(len(kernel.args) - 2)]
    result, exception = (cgutils.alloca_once(builder, _POINTER) for _ in range(2))
    places = [
        builder.bitcast(place, argument.type)
        for place, argument in zip((result, exception), kernel.args, strict=False)
    ]
    # `torch.set_flush_denormal` is of the calling thread, whose chunks others may take
    mode = _read_mode(builder)
    _write_mode(builder, shared.load(shared.MODE))
    status = builder.call(kernel, [*places, *arguments], attrs=("noinline",))
    _write_mode(builder, mode)
    with builder.if_then(_is_error(builder, status), likely=False):
        builder.store(builder.load(exception), shared.at(shared.EXCEPTION))
        builder.store(status, shared.at(shared.STATUS))
    one = ir.Constant(_LONG, 1)
    n_ended = builder.atomic_rmw("add", shared.at(shared.N_ENDED), one, "monotonic")
    with builder.if_then(builder.icmp_signed("==", n_ended, ir.Constant(_LONG, 0))):
        builder.store(shared.now(), shared.at(shared.FIRST_END))
    builder.ret_void()
    return task


def _read_mode(builder: Builder) -> Value:
    """How this thread rounds, and whether it takes tiny numbers for zero; 0 on other processors."""
    place = cgutils.alloca_once_value(builder, ir.Constant(_INT, 0))
    if _IS_X86:
        store = cgutils.get_or_insert_function(builder.module, _OF_MODE, "llvm.x86.sse.stmxcsr")
        builder.call(store, [builder.bitcast(place, _POINTER)])
    return builder.load(place)


def _write_mode(builder: Builder, mode: Value) -> None:
    if _IS_X86:
        place = cgutils.alloca_once_value(builder, mode)
        load = cgutils.get_or_insert_function(builder.module, _OF_MODE, "llvm.x86.sse.ldmxcsr")
        builder.call(load, [builder.bitcast(place, _POINTER)])


def _is_error(builder: Builder, status: Value) -> Value:
    is_ok, is_none = (
        builder.icmp_signed("==", status, code)
        for code in (callconv.RETCODE_OK, callconv.RETCODE_NONE)
    )
    return builder.not_(builder.or_(is_ok, is_none))
