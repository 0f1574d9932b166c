"""How an operator is made differentiable: one autograd function for all transforms and compilers.

`torch.library.register_autograd` is the public way, and its functions refuse the transforms of
`torch.func`. So we register one of our own, by private names of PyTorch; where they are missing, the
public ways share the work.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from gatv2.operator.arguments import Argument
from gatv2.operator.batching import Rule
from gatv2.torch_internals import (
    SingleLevelAutograd,
    forward_mode_level,
    is_transformed,
    single_level_autograd,
    with_key,
)

if TYPE_CHECKING:
    from gatv2.torch_internals import AutogradBase, AutogradFunction, RegisteredOperator

Call = Callable[..., tuple[Tensor, ...]]


class Context(Protocol):
    """What an autograd function keeps from forward to backward."""

    numbers: tuple[Argument, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """As they were saved."""

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """Which inputs want a gradient."""

    def save_for_backward(self, *tensors: Argument) -> None:
        """Keep tensors."""

    def set_materialize_grads(self, value: bool) -> None:
        """Whether a cotangent that is zero comes as zeros, and not as None."""


class Formula(NamedTuple):
    """The derivative of an operator."""

    save: Callable[[Context, tuple[Argument, ...], tuple[Tensor, ...]], None]
    """(ctx, inputs, output): keeps what backward reads."""
    backward: Callable[..., tuple[Tensor | None, ...]]
    """(ctx, *cotangents) -> gradients of the inputs."""
    batching: Callable[[Call], Rule]
    """vmap's rule, of what calls the operator."""


def make_differentiable(
    operator: "RegisteredOperator", formula: Formula, library: torch.library.Library
) -> Call:
    """Register an operator's autograd and vmap; returns what calls it."""
    torch.library.register_vmap(operator, formula.batching(operator), lib=library)
    internals = single_level_autograd()
    if internals is None:
        return _by_public_names(operator, formula, library)
    differentiate = _autograd_kernel(operator, formula, internals)
    library.impl(_name(operator), differentiate, "Autograd")

    def call(*arguments: Argument) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling() or is_transformed():
            return operator(*arguments)
        return differentiate(*arguments)  # where the dispatcher would begin, and soon get back to

    return call


def _autograd_kernel(
    operator: "RegisteredOperator", formula: Formula, internals: SingleLevelAutograd
) -> Call:
    """What differentiates at one level: under a transform, the dispatcher calls it at each."""

    def call_below(*arguments: Argument) -> tuple[Tensor, ...]:
        with internals.below_autograd():
            return operator(*arguments)

    def forward(*arguments: Argument) -> tuple[Tensor, ...]:
        if not is_transformed():
            return call_below(*arguments)
        # the next level below differentiates by itself, so its modes stay on
        with internals.below_autograd(), torch.enable_grad(), internals.set_forward_mode(True):
            return operator(*arguments)

    differentiable = _function(operator, formula, forward, with_key(internals.function))

    def differentiate(*arguments: Argument) -> tuple[Tensor, ...]:
        tracks = torch.is_grad_enabled() and any(
            isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
        )
        if tracks or forward_mode_level() >= 0:  # the function refuses forward mode
            with internals.allow():
                return differentiable.apply(*arguments)
        return call_below(*arguments)

    return differentiate


def _by_public_names(
    operator: "RegisteredOperator", formula: Formula, library: torch.library.Library
) -> Call:
    """An autograd function where Python runs, and the operator's own under the compiler.

    Neither does both: transforms refuse the operator's own, and `fullgraph=True` cannot trace a
    function whose backward calls another one.
    """
    torch.library.register_autograd(
        operator, formula.backward, setup_context=formula.save, lib=library
    )

    def call(*arguments: Argument) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        return differentiable.apply(*arguments)

    differentiable = _function(operator, formula, operator, torch.autograd.Function)
    differentiable.vmap = staticmethod(formula.batching(call))
    return call


def _function(
    operator: "RegisteredOperator", formula: Formula, forward: Call, base: "type[AutogradBase]"
) -> "type[AutogradFunction]":
    members: dict[str, Callable[..., object]] = {
        "forward": forward,
        "setup_context": formula.save,
        "backward": formula.backward,
    }
    return type(
        f"{_name(operator)}_function",
        (base,),
        {name: staticmethod(member) for name, member in members.items()},
    )


def _name(operator: "RegisteredOperator") -> str:
    """The name without its namespace and overload."""
    return str(operator).split(".")[1]
