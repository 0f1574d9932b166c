"""The arguments of a fused operator, named once: its schema, shapes and gradients are read from here.

An operator takes plain tensors and numbers, one after another; everything inside takes `Arguments`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

Adjacency = tuple[Tensor | None, ...]
"""The tensors that tell a kernel the graph: each backend has a named tuple of its own."""


class Arguments(NamedTuple):
    """The arguments of a fused operator, and of its gradient after the `Cotangents`."""

    query: Tensor
    """`[*B, N, H, F]`."""
    key: Tensor
    """`[*B, M, H, F]`."""
    attn: Tensor
    """`[H, F]`."""
    edge_features: Tensor | None
    """`[*B, rows, D]`: one row for each edge, or for each pair of nodes (`[*B, N, M, D]`)."""
    edge_projection: Tensor | None
    """`[H, F, D]`."""
    adjacency: Any
    """The backend's named tuple of tensors."""
    seed: Tensor | None
    """0-d, int64: of dropout; None without."""
    n_blocks: int
    """B if the graph is the block-diagonal union of B graphs of one size, else 1."""
    n_mapped: int
    """Leading batch dimensions that dropout does not tell apart, and for which the gradients of attn
    and edge_projection are not summed: those that `torch.vmap` added."""
    negative_slope: float
    dropout: float
    wants_rows: bool
    """Whether the result with a row for each edge is wanted: forward alpha, backward the gradient of
    edge_features."""


class Cotangents(NamedTuple):
    """What the gradient of a fused operator takes before the `Arguments`; empty where there is none."""

    d_out: Tensor
    d_lse: Tensor
    d_alpha: Tensor
    lse: Tensor
    """The log-sum-exp that the operator returned."""


def flatten(arguments: Arguments) -> tuple[Any, ...]:
    """Arguments as an operator takes them: the tensors of the graph in their place among the others."""
    return tuple(
        value
        for name, field in zip(Arguments._fields, arguments, strict=True)
        for value in (field if name == "adjacency" else (field,))
    )


def unflatten(flat: Sequence[Any], adjacency: type[Any]) -> Arguments:
    """Arguments of what an operator was given; `adjacency` is the backend's named tuple."""
    values = iter(flat)

    def take(name: str) -> Any:
        if name == "adjacency":
            return adjacency(*(next(values) for _ in adjacency._fields))
        return next(values)

    return Arguments(*map(take, Arguments._fields))
