"""A fused kernel as PyTorch operators: their schema, their shapes, and a launcher for each device."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol, get_type_hints

import torch
from torch import Tensor

from gatv2.operator.arguments import (
    N_NUMBERS,
    Arguments,
    Cotangents,
    flatten,
    names_of,
    unflatten,
    unflatten_gradient,
)
from gatv2.operator.autograd import Call, Formula, make_differentiable
from gatv2.operator.batching import batching_rule
from gatv2.operator.gradient import Gradients, Reference, backward, double_backward
from gatv2.precision import computed_in

__all__ = ["Arguments", "Cotangents", "Launcher", "define"]

_library = torch.library.Library("gatv2", "DEF")
_EDGE_FEATURES = Arguments._fields.index("edge_features")
_SCORE_BIAS = Arguments._fields.index("score_bias")
_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float", bool: "bool"}


class Launcher(Protocol):
    """The compiled kernels of one device."""

    def forward(self, arguments: Arguments, /) -> tuple[Tensor, Tensor, Tensor]:
        """(out, log-sum-exp, alpha); alpha is empty unless `wants_rows`."""

    def backward(self, cotangents: Cotangents, arguments: Arguments, /) -> tuple[Tensor, ...]:
        """Gradients of query, key, attn, edge_features, edge_projection and score_bias.

        Those of attn and edge_projection have the `n_mapped` leading batch dimensions. That of
        edge_features is empty unless `wants_rows`, that of score_bias unless `wants_bias_rows`, and so
        are those of what is None.
        """


def define(
    name: str,
    adjacency: type[Any],
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
    return lambda arguments: call(*flatten(arguments))


def _schema(fields: type[Any], **parts: list[str]) -> list[str]:
    """The fields of a named tuple as arguments of an operator, those of `parts` given in full."""
    kinds = get_type_hints(fields)
    each = (parts.get(name, [f"{_TYPES.get(kinds[name])} {name}"]) for name in fields._fields)
    return [argument for arguments in each for argument in arguments]


def _declare(name: str, inputs: str, n_results: int) -> Any:
    _library.define(f"{name}({inputs}) -> ({', '.join(['Tensor'] * n_results)})")
    return getattr(torch.ops.gatv2, name).default


def _launch(name: str, adjacency: type[Any], key: str, launcher: Callable[[], Launcher]) -> None:
    """Have a device's kernels called for its tensors."""
    launcher = cache(launcher)

    def forward(*flat: Any) -> tuple[Tensor, ...]:
        return launcher().forward(unflatten(flat, adjacency))

    def backward(*flat: Any) -> tuple[Tensor, ...]:
        return launcher().backward(*unflatten_gradient(flat, adjacency))

    _library.impl(name, forward, key)
    _library.impl(f"{name}_backward", backward, key)


def _register_shapes(
    operator: Any,
    gradient: Any,
    adjacency: type[Any],
    alpha_shape: Callable[[Arguments], tuple[int, ...]],
) -> None:
    """Tell the compiler what the results look like."""

    def forward(*flat: Any) -> tuple[Tensor, ...]:
        arguments = unflatten(flat, adjacency)
        query = arguments.query
        return (
            query.new_empty(query.shape),
            query.new_empty(query.shape[:-1], dtype=computed_in(query.dtype)),
            query.new_empty(alpha_shape(arguments) if arguments.wants_rows else (0,)),
        )

    def backward(*flat: Any) -> tuple[Tensor, ...]:
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


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.numbers = inputs[-N_NUMBERS:]
    ctx.save_for_backward(*inputs[:-N_NUMBERS])


def _save_inputs_and_lse(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, lse, _ = output
    ctx.set_materialize_grads(False)
    ctx.numbers = inputs[-N_NUMBERS:]
    ctx.save_for_backward(lse, *inputs[:-N_NUMBERS])


def _backward(
    ctx: Any, d_results: Any, adjacency: type[Any], gradient: Call
) -> tuple[Tensor | None, ...]:
    lse, *tensors = ctx.saved_tensors
    arguments = unflatten((*tensors, *ctx.numbers), adjacency)
    arguments = arguments._replace(
        wants_rows=ctx.needs_input_grad[_EDGE_FEATURES],
        wants_bias_rows=ctx.needs_input_grad[_SCORE_BIAS],
    )
    return _for_each_input(ctx, backward(gradient, d_results, lse, arguments))


def _double_backward(
    ctx: Any, upon: Any, adjacency: type[Any], reference: Reference
) -> tuple[Tensor | None, ...]:
    saved = (*ctx.saved_tensors, *ctx.numbers)
    cotangents, arguments = unflatten_gradient(saved, adjacency)
    to_results, to_features = double_backward(reference, cotangents, arguments, Gradients(*upon))
    return _for_each_input(ctx, (*to_results, None, *to_features))  # None: the log-sum-exp


def _for_each_input(ctx: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return (*gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients)))
