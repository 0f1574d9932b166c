"""A fused kernel as PyTorch operators: fake tensors, autograd, double backward, vmap, compilation.

The kernel and its gradient are two operators, so first-order differentiation stays fused under every
transform. The gradient's own derivative goes through the reference.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, Protocol, get_type_hints

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from gatv2.operator.arguments import Arguments, Cotangents, unflatten
from gatv2.precision import FLOATING_DTYPES, computed_in
from gatv2.torch_internals import numba_import_failure

__all__ = ["Arguments", "Cotangents", "Launcher", "define", "unsupported"]

_N_OPTIONS = 6
_library = torch.library.Library("gatv2", "DEF")


class Launcher(Protocol):
    """The compiled kernels of one device."""

    def forward(self, arguments: Arguments, /) -> tuple[Tensor, Tensor, Tensor]:
        """(out, log-sum-exp, alpha); alpha is empty unless `wants_rows`."""

    def backward(self, cotangents: Cotangents, arguments: Arguments, /) -> tuple[Tensor, ...]:
        """Gradients of query, key, attn, edge_features and edge_projection.

        That of edge_features is empty unless `wants_rows`, and so is that of what is None.
        """


Reference = Callable[..., tuple[Tensor, Tensor, Tensor | None]]
"""(query, key, attn, adjacency, seed, n_blocks, negative_slope, dropout, edge_features,
edge_projection) -> (out, log-sum-exp, alpha)."""

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "int",
    float: "float",
    bool: "bool",
}


def define(
    name: str,
    adjacency: type[Any],
    launchers: Mapping[str, Callable[[], Launcher]],
    reference: Reference,
    alpha_shape: Callable[..., tuple[int, ...]],
) -> Any:
    """Define the operator `gatv2::name` and its gradient, `gatv2::name_backward`.

    The operator is `Arguments`, flattened, -> (out, log-sum-exp, alpha); its gradient is `Cotangents`
    and `Arguments` -> gradients of query, key, attn, edge_features and edge_projection.

    Args:
        name: name of the operator.
        adjacency: named tuple of the tensors that make up the graph.
        launchers: for each dispatch key ("CPU", "CUDA"), what returns its compiled kernels: a function
            that imports them, when they are first needed.
        reference: the same function by plain PyTorch operations.
        alpha_shape: shape of alpha, given query, key and the adjacency's tensors.
    """
    inputs = _schema(Arguments, adjacency)
    _library.define(f"{name}({inputs.format(wants_rows='with_alpha')}) -> (Tensor, Tensor, Tensor)")
    _library.define(
        f"{name}_backward({_schema(Cotangents)}, {inputs.format(wants_rows='with_d_edge_features')}) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    operator = getattr(torch.ops.gatv2, name).default
    gradient = getattr(torch.ops.gatv2, f"{name}_backward").default
    for key, launcher in launchers.items():
        _launch(name, adjacency, key, launcher)

    def forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        query, key, _, _, _, *tensors = arguments[:-_N_OPTIONS]
        with_alpha = arguments[-1]
        return (
            query.new_empty(query.shape),
            query.new_empty(query.shape[:-1], dtype=computed_in(query.dtype)),
            query.new_empty(alpha_shape(query, key, *tensors) if with_alpha else (0,)),
        )

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        query, key, attn, edge_features, edge_projection = arguments[4:9]
        mapped = query.shape[: arguments[-4]]
        has_edges, with_d_edge_features = edge_features is not None, arguments[-1]
        return (
            query.new_empty(query.shape),
            key.new_empty(key.shape),
            attn.new_empty((*mapped, *attn.shape)),
            query.new_empty(edge_features.shape if has_edges and with_d_edge_features else (0,)),
            query.new_empty((*mapped, *edge_projection.shape) if has_edges else (0,)),
        )

    torch.library.register_fake(operator, forward_fake, lib=_library)
    torch.library.register_fake(gradient, backward_fake, lib=_library)

    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options = inputs[-_N_OPTIONS + 1 : -1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *inputs[: -_N_OPTIONS + 1])

    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor, d_alpha: Tensor) -> tuple[Any, ...]:
        lse, *tensors = ctx.saved_tensors
        query, _, attn, edge_features, edge_projection, *others = tensors
        d_out = torch.zeros_like(query) if d_out is None else d_out
        d_lse, d_alpha = (query.new_empty(0) if d is None else d for d in (d_lse, d_alpha))
        needs_d_edge_features = ctx.needs_input_grad[3]
        d_query, d_key, d_attn, d_edge_features, d_edge_projection = gradient(
            d_out, d_lse, d_alpha, lse, *tensors, *ctx.options, needs_d_edge_features
        )
        return (
            d_query,
            d_key,
            d_attn.sum_to_size(attn.shape),
            d_edge_features if needs_d_edge_features else None,
            None if edge_features is None else d_edge_projection.sum_to_size(edge_projection.shape),
            *[None] * (len(others) + len(ctx.options) + 1),
        )

    def save_gradient_inputs(ctx: Any, inputs: tuple[Any, ...], _output: object) -> None:
        ctx.options = inputs[-_N_OPTIONS + 1 :]
        ctx.save_for_backward(*inputs[: -_N_OPTIONS + 1])

    def double_backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        d_out, d_lse, d_alpha, _, query, key, attn, *edges_and_tensors, seed = ctx.saved_tensors
        edges, tensors = edges_and_tensors[:2], edges_and_tensors[2:]
        n_blocks, n_mapped, negative_slope, dropout, with_d_edge_features = ctx.options
        is_used = (True, d_lse.numel() > 0, d_alpha.numel() > 0)
        has_edges = edges[0] is not None
        features = (query, key, attn, *edges) if has_edges else (query, key, attn)
        is_wanted = (True, True, True, with_d_edge_features, True)[: len(features)]

        def gradients(d_out: Tensor, d_lse: Tensor, d_alpha: Tensor, *features: Tensor) -> Any:
            def attend(query: Tensor, key: Tensor, attn: Tensor, *edges: Tensor) -> Any:
                results = reference(
                    query,
                    key,
                    attn,
                    tensors,
                    seed,
                    n_blocks,
                    negative_slope,
                    dropout,
                    *(edges or (None, None)),
                )
                return tuple(compress(results, is_used))

            pullback: Any = torch.func.vjp(attend, *features)[1]
            return tuple(
                compress(pullback(tuple(compress((d_out, d_lse, d_alpha), is_used))), is_wanted)
            )

        mapped = gradients
        in_dims = (*(0 if is_one else None for is_one in is_used), 0, 0, None, 0, None)
        in_dims = in_dims[: 3 + len(features)]
        for _level in range(n_mapped):
            mapped = torch.vmap(mapped, in_dims)
        pullback: Any = torch.func.vjp(mapped, d_out, d_lse, d_alpha, *features)[1]
        wanted = tuple(compress(cotangents, is_wanted))
        to_d_out, to_d_lse, to_d_alpha, *to_features = pullback(wanted)
        to_features += [None] * (5 - len(features))
        others = [None] * (len(tensors) + 1 + len(ctx.options))
        return to_d_out, to_d_lse, to_d_alpha, None, *to_features, *others

    _differentiate(operator, save_inputs, backward, _batching_rule(operator, mappable=(0, 1, 3)))
    _differentiate(
        gradient,
        save_gradient_inputs,
        double_backward,
        _batching_rule(gradient, mappable=(0, 1, 2, 3, 4, 5, 7)),
    )
    return operator


def _schema(fields: type[Any], adjacency: type[Any] | None = None) -> str:
    """The fields of a named tuple as an operator's schema, with a gap for the name of `wants_rows`."""
    arguments = []
    for name, kind in get_type_hints(fields).items():
        if name == "adjacency":
            assert adjacency is not None
            arguments.append(_schema(adjacency))
        else:
            shown = "{wants_rows}" if name == "wants_rows" else name
            arguments.append(f"{_SCHEMA_TYPES[kind]} {shown}")
    return ", ".join(arguments)


def _launch(name: str, adjacency: type[Any], key: str, launcher: Callable[[], Launcher]) -> None:
    """Have a device's kernels called for its tensors."""
    n_cotangents = len(Cotangents._fields)

    def forward(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
        return launcher().forward(unflatten(flat, adjacency))

    def backward(*flat: Any) -> tuple[Tensor, ...]:
        cotangents = Cotangents(*flat[:n_cotangents])
        return launcher().backward(cotangents, unflatten(flat[n_cotangents:], adjacency))

    _library.impl(name, forward, key)
    _library.impl(f"{name}_backward", backward, key)


def unsupported(query: Tensor, key: Tensor, attn: Tensor, *edges: Tensor) -> list[str]:
    """The reasons why a fused CPU kernel can't serve these inputs; empty if it can."""
    reasons = []
    if query.device.type != "cpu":
        reasons.append(f"it runs on the CPU only, and the features are on {query.device}")
    if query.dtype not in FLOATING_DTYPES:
        known = ", ".join(str(dtype) for dtype in FLOATING_DTYPES)
        reasons.append(f"it computes in {known}, and the features are {query.dtype}")
    if _is_forward_mode(query, key, attn, *edges):
        reasons.append("it has no forward-mode derivative (jvp, jacfwd, dual tensors)")
    if torch.onnx.is_in_onnx_export():
        reasons.append("ONNX has no such operator")
    if failure := _numba_failure():
        reasons.append(f"Numba can't be imported: {failure}")
    return reasons


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _numba_failure() -> str | None:
    failure: str | None = numba_import_failure()  # through whose cache Dynamo would trace
    return failure


def _is_forward_mode(*tensors: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    if any(level.key() == torch._C._functorch.TransformType.Jvp for level in levels):
        return True
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def _differentiate(
    operator: Any,
    save: Callable[..., None],
    backward: Callable[..., tuple[Any, ...]],
    batching_rule: Callable[..., Any],
) -> None:
    """Register an operator's autograd and vmap.

    Not `torch.library.register_autograd`, whose function the `torch.func` transforms refuse.
    """

    def forward(*arguments: Any) -> Any:
        # under a transform, the next level below differentiates by itself, so its modes stay on
        with (
            torch._C._AutoDispatchBelowAutograd(),
            torch.enable_grad(),
            forward_ad._set_fwd_grad_enabled(True),
        ):
            return operator(*arguments)

    name = operator._schema.name.split("::")[1]
    members = {"forward": forward, "setup_context": save, "backward": backward}
    function: Any = type(
        f"{name}_function",
        (_SingleLevelFunction,),
        {member: staticmethod(value) for member, value in members.items()},
    )

    def differentiable(*arguments: Any) -> Any:
        tracks = torch.is_grad_enabled() and any(
            isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
        )
        if tracks or forward_ad._current_level >= 0:  # the function refuses forward mode
            with enable_single_level_autograd_function():
                return function.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    _library.impl(name, differentiable, "Autograd")
    torch.library.register_vmap(operator, batching_rule, lib=_library)


def _batching_rule(operator: Any, mappable: tuple[int, ...]) -> Callable[..., Any]:
    """The rule of vmap: over tensors at the places `mappable` at once, over anything else one by one."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        if any(dim is not None for i, dim in enumerate(in_dims) if i not in mappable):
            results = [
                operator(
                    *(
                        argument if dim is None else argument.select(dim, i)
                        for argument, dim in zip(arguments, in_dims, strict=True)
                    )
                )
                for i in range(info.batch_size)
            ]
            stacked = tuple(map(torch.stack, zip(*results, strict=True)))
            return stacked, (0,) * len(stacked)
        mapped = list(arguments)
        mapped[-4] += 1
        for i in mappable:
            tensor, dim = arguments[i], in_dims[i]
            if tensor is None:
                continue
            if tensor.ndim - (dim is not None) == 1:  # no cotangent
                mapped[i] = tensor.new_empty(0)
            elif dim is None:
                mapped[i] = tensor.expand(info.batch_size, *tensor.shape)
            else:
                mapped[i] = tensor.movedim(dim, 0)
        results = operator(*mapped)
        return results, tuple(0 if result.ndim > 1 else None for result in results)

    return rule
