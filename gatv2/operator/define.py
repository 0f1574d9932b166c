"""A fused kernel as PyTorch operators: their schema, their shapes, and a launcher for each device."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, get_type_hints

import torch
from torch import Tensor

from gatv2.operator.arguments import (
    N_NUMBERS,
    Argument,
    Arguments,
    Cotangents,
    flatten,
    names_of,
    unflatten,
    unflatten_gradient,
)
from gatv2.operator.autograd import Call, Context, Formula, make_differentiable
from gatv2.operator.batching import batching_rule
from gatv2.operator.gradient import (
    Gradients,
    Reference,
    Results,
    backward,
    double_backward,
    wanted,
)
from gatv2.operator.shortcut import Dispatched, Launcher, take_shortcut
from gatv2.precision import computed_in

if TYPE_CHECKING:
    from gatv2.torch_internals import Operator

__all__ = ["Arguments", "Cotangents", "Launcher", "define"]


class _Defined(NamedTuple):
    library: torch.library.Library
    functions: dict[str, Callable[[Arguments], tuple[Tensor, ...]]]


# kept with PyTorch's names of the operators, which outlive this module when it is loaded again
_defined: _Defined = vars(torch.ops.gatv2).get("_defined") or _Defined(
    torch.library.Library("gatv2", "DEF"), {}
)
vars(torch.ops.gatv2)["_defined"] = _defined
_library = _defined.library
_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float", bool: "bool"}


def define(
    name: str,
    adjacency: type[NamedTuple],
    launchers: Mapping[str, Callable[[], Launcher]],
    reference: Reference,
    alpha_shape: Callable[[Arguments], tuple[int, ...]],
) -> Callable[[Arguments], tuple[Tensor, ...]]:
    """Define the operator `gatv2::name` and its gradient, `gatv2::name_backward`.

    The operator takes `Arguments`, flat, and returns (out, log-sum-exp, alpha); its gradient takes
    `Cotangents` and `Arguments`. Both are differentiable, mapped by vmap, compiled and exported.

    Args:
        name: name of the operator.
        adjacency: the named tuple of tensors that tells the kernels the graph.
        launchers: for each device, by PyTorch's dispatch key ("CPU", "CUDA"), a function that imports
            the compiled kernels, and is called when they are needed.
        reference: the same function by plain PyTorch operations.
        alpha_shape: the shape of alpha.

    Returns:
        The function: the operator, of `Arguments`.
    """
    if name in _defined.functions:
        return _defined.functions[name]
    launchers = {key: cache(launcher) for key, launcher in launchers.items()}
    schema = ", ".join(_schema(Arguments, adjacency=_schema(adjacency)))
    cotangents = ", ".join(_schema(Cotangents))
    # flags have names of their own in exported programs
    operator = _declare(name, schema.replace("wants_rows", "with_alpha"), 3)
    schema = schema.replace("wants_rows", "with_d_edge_features")
    inputs = f"{cotangents}, {schema.replace('wants_bias_rows', 'with_d_score_bias')}"
    gradient = _declare(f"{name}_backward", inputs, len(Gradients._fields))
    for key, launcher in launchers.items():
        _launch(name, adjacency, key, launcher)
    _register_shapes(operator, gradient, adjacency, alpha_shape)

    names = names_of(adjacency)
    gradient_names = (*Cotangents._fields, *names)
    call_gradient = make_differentiable(
        gradient,
        Formula(
            _save_inputs,
            lambda ctx, *upon: _double_backward(ctx, upon, adjacency, reference),
            lambda call: batching_rule(gradient_names, call),
        ),
        _library,
    )
    call = make_differentiable(
        operator,
        Formula(
            _save_inputs_and_lse,
            lambda ctx, *d_results: _backward(ctx, d_results, adjacency, call_gradient),
            lambda call: batching_rule(names, call),
        ),
        _library,
    )
    by_dispatcher = Dispatched(
        lambda arguments: call(*flatten(arguments)),
        lambda cotangents, arguments: call_gradient(*cotangents, *flatten(arguments)),
    )
    function = take_shortcut(by_dispatcher, adjacency, launchers)
    _defined.functions[name] = function
    return function


def _schema(fields: type[NamedTuple], **parts: list[str]) -> list[str]:
    """The fields of a named tuple as arguments of an operator, those of `parts` given in full."""
    kinds = get_type_hints(fields)
    each = (parts.get(name, [f"{_TYPES.get(kinds[name])} {name}"]) for name in fields._fields)
    return [argument for arguments in each for argument in arguments]


def _declare(name: str, inputs: str, n_results: int) -> "Operator":
    _library.define(f"{name}({inputs}) -> ({', '.join(['Tensor'] * n_results)})")
    operator: Operator = getattr(torch.ops.gatv2, name).default
    return operator


def _launch(
    name: str, adjacency: type[NamedTuple], key: str, launcher: Callable[[], Launcher]
) -> None:
    """Have a device's kernels called for its tensors."""

    def forward(*flat: Argument) -> tuple[Tensor, ...]:
        return launcher().forward(unflatten(flat, adjacency))

    def backward(*flat: Argument) -> tuple[Tensor, ...]:
        return launcher().backward(*unflatten_gradient(flat, adjacency))

    _library.impl(name, forward, key)
    _library.impl(f"{name}_backward", backward, key)


def _register_shapes(
    operator: "Operator",
    gradient: "Operator",
    adjacency: type[NamedTuple],
    alpha_shape: Callable[[Arguments], tuple[int, ...]],
) -> None:
    """Tell the compiler what the results look like."""

    def forward(*flat: Argument) -> tuple[Tensor, ...]:
        arguments = unflatten(flat, adjacency)
        query = arguments.query
        return (
            query.new_empty(query.shape),
            query.new_empty(query.shape[:-1], dtype=computed_in(query.dtype)),
            query.new_empty(alpha_shape(arguments) if arguments.wants_rows else (0,)),
        )

    def backward(*flat: Argument) -> tuple[Tensor, ...]:
        _, arguments = unflatten_gradient(flat, adjacency)
        query, key, attn = arguments.query, arguments.key, arguments.attn
        rows = arguments.edge_features if arguments.wants_rows else None
        bias = arguments.score_bias if arguments.wants_bias_rows else None
        projection, mapped = arguments.edge_projection, query.shape[: arguments.n_mapped]
        return (
            query.new_empty(query.shape),
            key.new_empty(key.shape),
            attn.new_empty((*mapped, *attn.shape)),
            query.new_empty((0,) if rows is None else rows.shape),
            query.new_empty((0,) if projection is None else (*mapped, *projection.shape)),
            query.new_empty((0,) if bias is None else bias.shape),
        )

    torch.library.register_fake(operator, forward, lib=_library)
    torch.library.register_fake(gradient, backward, lib=_library)


def _save_inputs(ctx: Context, inputs: tuple[Argument, ...], output: tuple[Tensor, ...]) -> None:
    ctx.numbers = inputs[-N_NUMBERS:]
    ctx.save_for_backward(*inputs[:-N_NUMBERS])


def _save_inputs_and_lse(
    ctx: Context, inputs: tuple[Argument, ...], output: tuple[Tensor, ...]
) -> None:
    _, lse, _ = output
    ctx.set_materialize_grads(False)
    ctx.numbers = inputs[-N_NUMBERS:]
    ctx.save_for_backward(lse, *inputs[:-N_NUMBERS])


def _backward(
    ctx: Context, d_results: Results, adjacency: type[NamedTuple], gradient: Call
) -> tuple[Tensor | None, ...]:
    lse, *tensors = ctx.saved_tensors
    arguments = wanted(unflatten((*tensors, *ctx.numbers), adjacency), ctx.needs_input_grad)

    def by_operator(cotangents: Cotangents, arguments: Arguments) -> tuple[Tensor, ...]:
        return gradient(*cotangents, *flatten(arguments))

    return _for_each_input(ctx, backward(by_operator, d_results, lse, arguments))


def _double_backward(
    ctx: Context, upon: tuple[Tensor | None, ...], adjacency: type[NamedTuple], reference: Reference
) -> tuple[Tensor | None, ...]:
    saved = (*ctx.saved_tensors, *ctx.numbers)
    cotangents, arguments = unflatten_gradient(saved, adjacency)
    to_results, to_features = double_backward(reference, cotangents, arguments, Gradients(*upon))
    return _for_each_input(ctx, (*to_results, None, *to_features))  # None: the log-sum-exp


def _for_each_input(
    ctx: Context, gradients: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    return (*gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients)))
