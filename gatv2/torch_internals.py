"""Every private name of PyTorch that gatv2 uses: why it is needed, and what is left without it.

A name is looked up when it is needed, so that one that PyTorch moves takes away what needs it and
nothing else. But for attributes of an `nn.Module` (`_parameters`, `_forward_hooks` and their like),
which stand where a module is looked into. Imports nothing of gatv2.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules import module
from torch.overrides import has_torch_function

P = ParamSpec("P")
T = TypeVar("T")


def is_inspectable(tensor: Tensor) -> bool:
    """True if `tensor` holds values of its own that Python may branch on.

    False under `torch.compile` and `torch.export`, for tensors wrapped by a `torch.func` transform,
    for meta and fake tensors, and while operations are recorded: checks of values are left out there.
    """
    return not (
        torch.compiler.is_compiling()
        or tensor.is_meta
        or _is_wrapped(tensor)
        or hasattr(tensor, "fake_mode")
        or _is_recorded()
    )


def _is_recorded() -> bool:
    """Whether `make_fx` notes operations, to run them on other values, or a mode makes fake tensors.

    Private because no public function tells; without it, operations are taken to run.
    """
    internals = torch._C
    try:
        if internals._len_torch_dispatch_stack() == 0:
            return False
        keys = internals._TorchDispatchModeKey.PROXY, internals._TorchDispatchModeKey.FAKE
        return any(internals._get_dispatch_mode(key) is not None for key in keys)
    except AttributeError:
        return False


def _is_wrapped(tensor: Tensor) -> bool:
    """Private because no public function tells; without it, a wrapped tensor is one without memory."""
    try:
        is_wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    except AttributeError:
        try:
            tensor.data_ptr()
        except RuntimeError:
            return True
        return False
    return is_wrapped


def refuse_mapped(tensor: Tensor, remedy: str) -> None:
    """Raise where vmap would need results of different shapes, one for each graph, or look at values.

    Private because no public function tells what vmap maps over; without it, PyTorch raises later.

    Raises:
        NotImplementedError: `torch.func.vmap` maps over `tensor`.
    """
    if torch.compiler.is_compiling():
        return
    is_mapped = getattr(torch._C._functorch, "is_batchedtensor", None)
    if is_mapped is not None and is_mapped(tensor):
        raise NotImplementedError(
            "vmap can't map over graphs here, as each would get a number of edges of its own or be "
            f"checked by its values: {remedy}"
        )


def is_jit_traced() -> bool:
    """Whether torch.jit.trace follows a call; not for an export to ONNX, which traces too."""
    if torch.compiler.is_compiling():
        return False
    # to ask for an export first takes longer than all checks
    return is_traced() and not torch.onnx.is_in_onnx_export()


def refuse_tracing() -> None:
    """Raise a RuntimeError under torch.jit.trace, which would keep one graph without a word."""
    if is_jit_traced():
        raise RuntimeError(
            "torch.jit.trace keeps the numbers of the graph that it was traced with: export the model "
            "with torch.export, which reads the graph at each call"
        )


def made_to_last(tensor: Tensor) -> AbstractContextManager[None]:
    """For what is made of `tensor` and kept: it outlives the active transforms and inference mode."""
    if torch.compiler.is_compiling() or not (torch.is_inference_mode_enabled() or is_transformed()):
        return nullcontext()
    return _beneath_transforms() if is_inspectable(tensor) else nullcontext()


def outlives_inference_mode(make: Callable[P, T]) -> Callable[P, T]:
    """A function that makes a graph: what it makes in inference mode can be trained on later."""

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return make(*args, **kwargs)
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    return made


@contextmanager
def _beneath_transforms() -> Iterator[None]:
    with _no_interpreters(), torch.inference_mode(False):
        yield


def _no_interpreters() -> AbstractContextManager[object]:
    """Private because a transform wraps what is made in it; without it, that is the transform's own."""
    try:
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    except ImportError:
        return nullcontext()
    return temporarily_clear_interpreter_stack()


def without_transforms() -> AbstractContextManager[object]:
    """For kernels that read and write arrays: a transform would wrap every new tensor.

    Private because `torch.empty` and `torch.from_numpy` are wrapped too; without it, no graph can be
    prepared inside a transform.
    """
    make: Callable[[], AbstractContextManager[object]]
    make = getattr(torch._C, "_DisableFuncTorch", nullcontext)
    return make()


if TYPE_CHECKING:
    from functools import cached_property

    from torch._ops import OpOverload
    from torch.autograd.function import _SingleLevelFunction

    made_once = cached_property
    AutogradBase: TypeAlias = _SingleLevelFunction

    class RegisteredOperator(OpOverload):
        """What `torch.ops` has of ours."""

        def __call__(self, *arguments: object, **_: object) -> tuple[Tensor, ...]:  # noqa: D102
            ...

    class AutogradFunction(AutogradBase):
        """An autograd function of ours."""

        vmap: Callable[..., object]

        @classmethod
        def apply(cls, *arguments: object) -> tuple[Tensor, ...]:  # noqa: D102
            ...
else:

    def made_once(make: Callable[[object], object]) -> property:
        """A property of a graph that is made when first asked for, and kept with it.

        It outlives transforms, as the graph does (its `edge_id`), and takes no lock, which
        torch.compile can't trace. Where operations are recorded it is made each time: what a mode makes
        is fake, and no later call can read it.
        """
        name = f"_{make.__name__}"

        @wraps(make)
        def read(owner: object) -> object:
            if name not in owner.__dict__:
                if not torch.compiler.is_compiling() and _is_recorded():
                    return make(owner)
                with made_to_last(owner.edge_id):
                    owner.__dict__[name] = make(owner)
            return owner.__dict__[name]

        return property(read)


def n_writes_of(tensors: Sequence[Tensor]) -> list[int]:
    """How many operations have written to each tensor, as autograd counts them; [] if it does not.

    It does not for what is made in inference mode. Private because no public function tells; without
    it, what has been written to stays unseen.
    """
    try:
        return [x._version for x in tensors]
    except (AttributeError, RuntimeError):
        return []


def has_hooks() -> bool:
    """Whether there is a hook of all modules, or of all that is saved for a backward pass.

    A checkpoint has the latter, which counts or keeps what is saved. Private because no public function
    tells; without it, there may always be some.
    """
    try:
        return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None or bool(
            module._has_any_global_hook()
        )
    except AttributeError:
        return True


def coo_entries(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values of a matrix in COO, in the order in which it has them.

    Private because `indices()` is of a coalesced matrix alone; without it, entries are brought to the
    order of a coalesced one.
    """
    try:
        return matrix._indices(), matrix._values()
    except AttributeError:
        matrix = matrix.coalesce()
        return matrix.indices(), matrix.values()


def is_traced() -> bool:
    """Whether torch.jit.trace is at work, also for an export to ONNX.

    Private because the public function takes longer; without it, that is asked.
    """
    try:
        return torch._C._get_tracing_state() is not None
    except AttributeError:
        return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_exported_to_onnx() -> bool:
    """`torch.onnx.is_in_onnx_export()`, asked only while something is traced: it is slow."""
    return (torch.compiler.is_compiling() or is_traced()) and torch.onnx.is_in_onnx_export()


def fits_int32(count: int) -> bool:
    """Whether a count fits; under the compiler, False for one that depends on values.

    Private because only the compiler's own function answers without fixing the count; without it, the
    count is fixed.
    """
    if is_exported_to_onnx():
        return False  # ONNX scatters by int64 alone
    if not torch.compiler.is_compiling():
        return count < 2**31
    try:
        from torch.fx.experimental.symbolic_shapes import guard_or_false
    except ImportError:
        return count < 2**31
    return guard_or_false(count < 2**31)


def is_forward_mode(*tensors: Tensor) -> bool:
    """Whether a call is differentiated in forward mode: by jvp, jacfwd, hessian, or dual tensors."""
    if torch.compiler.is_compiling():
        return False
    if _has_jvp():
        return True
    return forward_mode_level() >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def _has_jvp() -> bool:
    """Private because a level of vmap hides the tangents below it; without it, those stay unseen."""
    try:
        functorch = torch._C._functorch
        levels = functorch.get_interpreter_stack()
        return levels is not None and any(
            level.key() == functorch.TransformType.Jvp for level in levels
        )
    except AttributeError:
        return False


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is active.

    Private because no public function tells; without it, one may always be.
    """
    try:
        is_active: bool = torch._C._functorch.get_interpreter_stack() is not None
    except AttributeError:
        return True
    return is_active


_ORDINARY = frozenset((Tensor, torch.nn.Parameter, type(None)))
_NO_TENSOR = (None,)


def needs_dispatcher(tensors: Iterable[object]) -> bool:
    """Whether something that the dispatcher serves may want to see an operator's call.

    That is what watches all of them, or a subclass of Tensor.
    """
    return is_watched() or not _ORDINARY.issuperset(map(type, tensors))


def is_watched() -> bool:
    """Whether something that the dispatcher serves may want to see each call of an operator.

    That is a compiler, a trace, a transform, forward mode, a mode, or the profiler. Private because
    public functions tell of some alone, and slowly; without one name, there may always be something.
    """
    if torch.compiler.is_compiling():
        return True
    internals = torch._C
    try:
        return (
            has_torch_function(_NO_TENSOR)  # that is, there is a mode
            or forward_ad._current_level >= 0
            or internals._functorch.get_interpreter_stack() is not None
            or internals._get_tracing_state() is not None
            or internals._len_torch_dispatch_stack() > 0
            or internals._autograd._profiler_enabled()
        )
    except AttributeError:
        return True


def is_seen() -> bool:
    """Whether anything may want to see, or to change, each operation or module of a call on the CPU."""
    return is_watched() or has_hooks() or torch.is_autocast_enabled("cpu")


def is_mapped_by_autograd(cotangents: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass is mapped over many cotangents, by `is_grads_batched`.

    Private because its vmap, which is not that of `torch.func`, is seen by nothing else; without it,
    each may be mapped.
    """
    try:
        is_mapped = torch._C._functorch.is_legacy_batchedtensor
    except AttributeError:
        return True
    return True in [is_mapped(x) for x in cotangents if x is not None]  # faster than `any`


def keeps_graph() -> bool:
    """Whether the graph of the backward pass that runs may be differentiated again.

    Private because no public function tells; without it, it always may.
    """
    try:
        keeps: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    except AttributeError:
        return True
    return keeps


def forward_mode_level() -> int:
    """The level of forward mode, -1 outside of it.

    Private because asking each tensor takes longer; without it, each is asked.
    """
    return getattr(forward_ad, "_current_level", 0)


class SingleLevelAutograd(NamedTuple):
    """What an operator needs to be differentiated at one level of transforms after the other."""

    function: "type[AutogradBase]"
    """The base of an autograd function that the dispatcher calls at each level."""
    allow: Callable[[], AbstractContextManager[None]]
    """Lets such a function be applied."""
    below_autograd: Callable[[], AbstractContextManager[None]]
    """Has the dispatcher go on below autograd."""
    set_forward_mode: Callable[[bool], AbstractContextManager[None]]
    """Switches forward mode."""


def single_level_autograd() -> SingleLevelAutograd | None:
    """The names, or None if one is missing.

    Private because what `torch.library.register_autograd` registers is refused by the transforms;
    without them, an operator's call takes 40 us longer (`gatv2.operator.autograd`).
    """
    try:
        from torch._functorch.utils import enable_single_level_autograd_function
        from torch.autograd.function import _SingleLevelFunction

        return SingleLevelAutograd(
            _SingleLevelFunction,
            enable_single_level_autograd_function,
            torch._C._AutoDispatchBelowAutograd,
            forward_ad._set_fwd_grad_enabled,
        )
    except (ImportError, AttributeError):
        return None


def with_key(function: "type[AutogradBase]") -> "type[AutogradBase]":
    """The base of a function, with what `torch.autograd.Function` adds to it for compiled autograd.

    Private because that asks each function for its key; without it, it refuses ours.
    """
    name = "_compiled_autograd_key"
    key = getattr(torch.autograd.Function, name, None)
    return function if key is None else type("_Function", (function,), {name: staticmethod(key)})
