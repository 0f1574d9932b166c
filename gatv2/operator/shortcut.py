"""The way of a call past PyTorch's dispatcher, where nothing is at work that it serves.

The dispatcher serves transforms, compilers, modes, subclasses of Tensor and profilers. In a plain call
of a kernel on a small graph it only takes time, and more than the kernel does.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gatv2.operator.arguments import (
    N_FEATURES,
    N_NUMBERS,
    Arguments,
    Cotangents,
    tensors_of,
    unflatten,
)
from gatv2.operator.gradient import Results, backward, wanted
from gatv2.torch_internals import is_mapped_by_autograd, needs_dispatcher

Outputs = tuple[Tensor, ...]


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


class Dispatched(NamedTuple):
    """An operator and its gradient, as the dispatcher calls them."""

    forward: Callable[[Arguments], Outputs]
    backward: Callable[[Cotangents, Arguments], Outputs]


def take_shortcut(
    operator: Dispatched,
    adjacency: type[NamedTuple],
    launchers: Mapping[str, Callable[[], Launcher]],
) -> Callable[[Arguments], Outputs]:
    """An operator that calls its kernels itself where it can.

    Args:
        operator: the operator by the dispatcher, for all other calls.
        adjacency: the named tuple of tensors that tells the kernels the graph.
        launchers: what gives the kernels of a device, by its dispatch key; called each time.
    """
    by_device = {key.lower(): make for key, make in launchers.items()}

    def launcher_for(tensors: tuple[Tensor | None, ...], device: torch.device) -> Launcher | None:
        make = by_device.get(device.type)
        return None if make is None or needs_dispatcher(tensors) else make()

    def gradient(cotangents: Cotangents, arguments: Arguments) -> Outputs:
        tensors = (*cotangents, *tensors_of(arguments))
        launcher = launcher_for(tensors, arguments.query.device)
        if launcher is None or torch.is_grad_enabled() or is_mapped_by_autograd(cotangents):
            return operator.backward(cotangents, arguments)
        return launcher.backward(cotangents, arguments)

    class Function(torch.autograd.Function):
        """The kernels of one device, differentiated; without `setup_context`, which takes time."""

        @staticmethod
        def forward(
            ctx: Any, launcher: Launcher, arguments: Arguments, *_features: Tensor | None
        ) -> Outputs:
            ctx.set_materialize_grads(False)
            results = launcher.forward(arguments)
            tensors = tensors_of(arguments)
            ctx.numbers = arguments[-N_NUMBERS:]
            ctx.save_for_backward(results[1], *tensors)
            return results

        @staticmethod
        def backward(ctx: Any, *d_results: *Results) -> tuple[Tensor | None, ...]:
            lse, *tensors = ctx.saved_tensors
            arguments = unflatten((*tensors, *ctx.numbers), adjacency)
            arguments = wanted(arguments, ctx.needs_input_grad[2:])
            return None, None, *backward(gradient, d_results, lse, arguments)

    def call(arguments: Arguments) -> Outputs:
        if torch.compiler.is_compiling():
            return operator.forward(arguments)
        launcher = launcher_for(tensors_of(arguments), arguments.query.device)
        if launcher is None:
            return operator.forward(arguments)
        features: tuple[Tensor | None, ...] = arguments[:N_FEATURES]  # type: ignore[assignment]
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in features):
            results: Outputs = Function.apply(launcher, arguments, *features)  # type: ignore[no-untyped-call]
            return results
        return launcher.forward(arguments)

    return call
