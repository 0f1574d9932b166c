"""The way of a call past PyTorch's dispatcher, where nothing is at work that it serves.

The dispatcher serves transforms, compilers, modes, subclasses of Tensor and profilers. In a plain call
of a kernel on a small graph it only takes time, and more than the kernel does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gatv2.operator.arguments import (
    N_FEATURES,
    N_NODE_FEATURES,
    N_NUMBERS,
    Arguments,
    Cotangents,
    features_of,
    is_differentiated,
    tensors_of,
)
from gatv2.operator.gradient import Results, backward, wanted
from gatv2.torch_internals import (
    is_mapped_by_autograd,
    needs_dispatcher,
    single_level_autograd,
    with_key,
)

Outputs = tuple[Any, ...]
"""Tensors, or None where one is not wanted; the dispatcher gives an empty one there."""


class Launcher(Protocol):
    """The compiled kernels of one device, for calls of one kind.

    Those have tensors of the same forms; their values, and which results are wanted, may differ. A
    launcher holds no memory of theirs.
    """

    def forward(self, arguments: Arguments, /) -> tuple[Tensor, Tensor, Tensor | None]:
        """(out, log-sum-exp, alpha); alpha is None unless `wants_rows`."""

    def backward(
        self, cotangents: Cotangents, arguments: Arguments, /, *, overwrites: bool = False
    ) -> tuple[Tensor | None, ...]:
        """Gradients of query, key, attn, edge_features, edge_projection and score_bias.

        With `overwrites`, those of query and key may be given the memory of these.

        Those of attn and edge_projection have the `n_mapped` leading batch dimensions. That of
        edge_features is None unless `wants_rows`, that of score_bias unless `wants_bias_rows`, and so
        are those of what is None.
        """


Kernels = Callable[[], Launcher]
"""The compiled kernels of one device: what makes a launcher for calls of one kind."""


class Dispatched(NamedTuple):
    """An operator and its gradient, as the dispatcher calls them."""

    forward: Callable[[Arguments], Outputs]
    backward: Callable[[Cotangents, Arguments], Outputs]


class Operator:
    """An operator that calls its kernels itself where it can.

    Args:
        dispatched: the operator by the dispatcher, for all other calls.
        kernels: what imports the kernels of a device, by its dispatch key; called each time.
    """

    def __init__(
        self, dispatched: Dispatched, kernels: Mapping[str, Callable[[], Kernels]]
    ) -> None:
        self._dispatched = dispatched
        self._kernels = {key.lower(): get for key, get in kernels.items()}

    def __call__(self, arguments: Arguments) -> Outputs:
        """(out, log-sum-exp, alpha)."""
        kernels = self._kernels.get(arguments.query.device.type)
        if kernels is None or needs_dispatcher(tensors_of(arguments)):
            return self._dispatched.forward(arguments)
        features = features_of(arguments)
        call = _Call(self._dispatched, kernels()(), arguments[-N_NUMBERS:])
        bound = Bound(call, arguments.adjacency, is_differentiated(features))
        return bound(*features, arguments.seed)

    def bind(
        self, adjacency: Any, numbers: tuple[Any, ...], device: str, is_differentiated: bool
    ) -> "Bound":
        """What serves calls of a graph, with the last `N_NUMBERS` arguments, past the dispatcher."""
        call = _Call(self._dispatched, self._kernels[device]()(), numbers)
        return Bound(call, adjacency, is_differentiated)


class _Call(NamedTuple):
    """What backward needs of a call beside tensors."""

    dispatched: Dispatched
    launcher: Launcher
    numbers: tuple[Any, ...]

    def arguments(
        self,
        adjacency: Any,
        query: Tensor,
        key: Tensor,
        attn: Tensor,
        edge_features: Tensor | None = None,
        edge_projection: Tensor | None = None,
        score_bias: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Arguments:
        """The arguments of the call."""
        features = query, key, attn, edge_features, edge_projection, score_bias
        # past a named tuple's own constructor, which is a function in Python
        return tuple.__new__(Arguments, (*features, adjacency, seed, *self.numbers))


class Bound:
    """An operator with the graph and the numbers of a call, and the forms of its tensors.

    Attributes:
        call: what backward needs beside tensors.
        adjacency: the graph.
        is_differentiated: whether autograd wants a gradient.
    """

    def __init__(self, call: _Call, adjacency: Any, is_differentiated: bool) -> None:
        self.call, self.adjacency = call, adjacency
        self.is_differentiated = is_differentiated

    def __call__(self, *tensors: Any) -> Outputs:
        """(out, log-sum-exp, alpha) of the features and the seed, without those last that are None."""
        if self.is_differentiated:
            results: Outputs = _Function.apply(self, *tensors)
            return results
        return self.call.launcher.forward(self.call.arguments(self.adjacency, *tensors))


# that of one level of transforms has none to look for at each call
_internals = single_level_autograd()
FunctionBase: Any = torch.autograd.Function if _internals is None else with_key(_internals.function)


def must_be_seen(cotangents: Sequence[Tensor | None], tensors: Sequence[Tensor | None]) -> bool:
    """Whether something wants to see a backward pass: autograd itself, or what the dispatcher serves."""
    return (
        torch.is_grad_enabled()
        or is_mapped_by_autograd(cotangents)
        or needs_dispatcher((*cotangents, *tensors))
    )


class _Function(FunctionBase):  # type: ignore[misc]
    """A bound operator, differentiated; without `setup_context`, which takes time."""

    @staticmethod
    def forward(ctx: Any, bound: Bound, *tensors: Any) -> Outputs:
        ctx.set_materialize_grads(False)
        call, adjacency = bound.call, bound.adjacency
        results = call.launcher.forward(call.arguments(adjacency, *tensors))
        # in the order of the dispatched operator: a checkpoint may come to the other one
        features, seed = tensors[:N_FEATURES], tensors[N_FEATURES:]
        # nothing of the graph but what is saved: that goes with the first backward pass, and a result
        # may be kept for long after it
        ctx.call, ctx.adjacency = call, type(adjacency)
        ctx.save_for_backward(results[1], *features, *adjacency, *seed)
        return results

    @staticmethod
    def backward(ctx: Any, *d_results: *Results) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        end = len(ctx.needs_input_grad)
        n_features = min(end - 1, N_FEATURES)
        lse, *saved = ctx.saved_tensors
        behind = n_features + len(ctx.adjacency._fields)
        adjacency = ctx.adjacency._make(saved[n_features:behind])
        arguments = call.arguments(adjacency, *saved[:n_features], *saved[behind:])
        if end > 1 + N_NODE_FEATURES:
            arguments = wanted(arguments, ctx.needs_input_grad[1:])

        def gradient(cotangents: Cotangents, arguments: Arguments) -> Outputs:
            if must_be_seen(cotangents, features_of(arguments)):
                return call.dispatched.backward(cotangents, arguments)
            return call.launcher.backward(cotangents, arguments)

        gradients = backward(gradient, d_results, lse, arguments)
        return (None, *gradients, None)[:end]
