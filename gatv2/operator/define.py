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
from gatv2.operator.shortcut import Dispatched, Kernels, Operator
from gatv2.precision import computed_in

if TYPE_CHECKING:
    from gatv2.torch_internals import RegisteredOperator


class _Defined(NamedTuple):
    library: torch.library.Library
    operators: dict[str, Operator]


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
    kernels: Mapping[str, Callable[[], Kernels]],
    reference: Reference,
    alpha_shape: Callable[[Arguments], tuple[int, ...]],
    check_on_cpu: Callable[[Arguments], None] | None = None,
) -> Operator:
    """Define the operator `gatv2::name` and its gradient, `gatv2::name_backward`.

    The operator takes `Arguments`, flat, and returns (out, log-sum-exp, alpha); its gradient takes
    `Cotangents` and `Arguments`. Both are differentiable, mapped by vmap, compiled and exported.

    Args:
        name: name of the operator.
        adjacency: the named tuple of tensors that tells the kernels the graph.
        kernels: for each device, by PyTorch's dispatch key ("CPU", "CUDA"), a function that imports
            the compiled kernels, and is called when they are needed.
        reference: the same function by plain PyTorch operations.
        alpha_shape: the shape of alpha.
        check_on_cpu: raises for values that kernels can't run on. Of the dispatcher's calls only: before
            the others, Python has looked at them. A GPU would have to be waited for.

    Returns:
        The operator, of `Arguments`.
    """
    if name in _defined.operators:
        return _defined.operators[name]
    kernels = {key: cache(get) for key, get in kernels.items()}
    schema = ", ".join(_schema(Arguments, adjacency=_schema(adjacency)))
    cotangents = ", ".join(_schema(Cotangents))
    # flags have names of their own in exported programs
    operator = _declare(name, schema.replace("wants_rows", "with_alpha"), 3)
    schema = schema.replace("wants_rows", "with_d_edge_features")
    inputs = f"{cotangents}, {schema.replace('wants_bias_rows', 'with_d_score_bias')}"
    gradient = _declare(f"{name}_backward", inputs, len(Gradients._fields))
    for key, get in kernels.items():
        _launch(name, adjacency, key, get, check_on_cpu if key == "CPU" else None)
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
    _defined.operators[name] = Operator(by_dispatcher, kernels)
    return _defined.operators[name]


def _schema(fields: type[NamedTuple], **parts: list[str]) -> list[str]:
    """The fields of a named tuple as arguments of an operator, those of `parts` given in full."""
    kinds = get_type_hints(fields)
    each = (parts.get(name, [f"{_TYPES.get(kinds[name])} {name}"]) for name in fields._fields)
    return [argument for arguments in each for argument in arguments]


def _declare(name: str, inputs: str, n_results: int) -> "RegisteredOperator":
    _library.define(f"{name}({inputs}) -> ({', '.join(['Tensor'] * n_results)})")
    operator: RegisteredOperator = getattr(torch.ops.gatv2, name).default
    return operator


def _launch(
    name: str,
    adjacency: type[NamedTuple],
    key: str,
    kernels: Callable[[], Kernels],
    check: Callable[[Arguments], None] | None,
) -> None:
    """Have a device's kernels called for its tensors."""

    def forward(*flat: Argument) -> tuple[Tensor, ...]:
        arguments = unflatten(flat, adjacency)
        if check is not None:
            check(arguments)
        return _without_none(kernels()().forward(arguments))

    def backward(*flat: Argument) -> tuple[Tensor, ...]:
        cotangents, arguments = unflatten_gradient(flat, adjacency)
        return _without_none(kernels()().backward(cotangents, arguments))

    _library.impl(name, forward, key)
    _library.impl(f"{name}_backward", backward, key)


def _without_none(results: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Results as an operator has them, which are tensors."""
    (first, *_) = results
    assert first is not None
    return tuple(first.new_empty(0) if x is None else x for x in results)


def _register_shapes(
    operator: "RegisteredOperator",
    gradient: "RegisteredOperator",
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
    arguments = unflatten((*tensors, *ctx.numbers), adjacency)
    if not arguments.wants_rows:  # an alpha that is empty may come with a cotangent
        d_results = *d_results[:2], None
    arguments = wanted(arguments, ctx.needs_input_grad)

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
