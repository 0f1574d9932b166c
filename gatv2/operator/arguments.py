"""The arguments of a fused operator, named once: its schema, shapes, gradients and vmap read them here.

An operator of PyTorch takes tensors and numbers one after another, *flat*; what stands behind it takes
`Arguments`. Imports nothing of gatv2.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Argument: TypeAlias = Any
"""One of the flat arguments: a tensor, a number or None, by its name."""


class Arguments(NamedTuple):
    """The arguments of a fused operator, and of its gradient after the `Cotangents`."""

    query: Tensor
    """`[*B, N, H, F]`."""
    key: Tensor
    """`[*B, M, H, F]`."""
    attn: Tensor
    """`[H, F]`."""
    edge_features: Tensor | None
    """`[*B, E, D]`, or with a mask `[*B, N, M, D]`."""
    edge_projection: Tensor | None
    """`[H, F, D]`."""
    score_bias: Tensor | None
    """`[*B, E, 1 or H]`, or with a mask `[*B, N, M, 1 or H]`; -inf where there is no edge."""
    adjacency: Any
    """The graph: a named tuple of tensors, each backend's own."""
    seed: Tensor | None
    """0-d int64, the seed of the dropout mask; None without dropout."""
    n_blocks: int
    """B if the graph is the block-diagonal union of B graphs of one size, else 1."""
    n_mapped: int
    """How many batch dimensions, in front, `torch.vmap` added. Dropout does not tell them apart, and
    the gradients of attn and edge_projection are not summed over them."""
    negative_slope: float
    dropout: float
    wants_rows: bool
    """Whether the result that has a row for each edge is wanted: forward alpha, backward the gradient
    of edge_features."""
    wants_bias_rows: bool
    """Whether backward is to give the gradient of score_bias; forward does not read it."""


class Cotangents(NamedTuple):
    """What a gradient takes before the `Arguments`; None is zero."""

    d_out: Tensor
    d_lse: Tensor | None
    d_alpha: Tensor | None
    lse: Tensor
    """The log-sum-exp that the operator returned."""


N_FEATURES = _AT = Arguments._fields.index("adjacency")
"""How many arguments have gradients; they come first."""
N_NODE_FEATURES = Arguments._fields.index("edge_features")
"""How many of them are always there."""
N_NUMBERS = sum(kind in (int, float, bool) for kind in Arguments.__annotations__.values())
"""How many arguments are no tensors; they come last."""


def features_of(arguments: Arguments) -> tuple[Tensor | None, ...]:
    """The arguments that have gradients, or None."""
    return arguments[:_AT]  # type: ignore[return-value]


def is_differentiated(features: Iterable[Tensor | None]) -> bool:
    """Whether autograd wants a gradient of any of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in features)


def tensors_of(arguments: Arguments) -> tuple[Tensor | None, ...]:
    """The flat arguments that are tensors, or None."""
    return (*arguments[:_AT], *arguments.adjacency, arguments.seed)


def names_of(adjacency: type[NamedTuple]) -> tuple[str, ...]:
    """The names of the flat arguments, given a backend's named tuple."""
    return (*Arguments._fields[:_AT], *adjacency._fields, *Arguments._fields[_AT + 1 :])


def flatten(arguments: Arguments) -> tuple[Argument, ...]:
    """The arguments as an operator takes them."""
    return (*arguments[:_AT], *arguments.adjacency, *arguments[_AT + 1 :])


def unflatten(flat: Sequence[Argument], adjacency: type[NamedTuple]) -> Arguments:
    """The arguments that an operator was given; `adjacency` is the backend's named tuple."""
    end = _AT + len(adjacency._fields)
    return Arguments._make((*flat[:_AT], adjacency._make(flat[_AT:end]), *flat[end:]))


def unflatten_gradient(
    flat: Sequence[Argument], adjacency: type[NamedTuple]
) -> tuple[Cotangents, Arguments]:
    """The cotangents and arguments that the gradient of an operator was given."""
    n_cotangents = len(Cotangents._fields)
    return Cotangents(*flat[:n_cotangents]), unflatten(flat[n_cotangents:], adjacency)
