"""vmap of a fused operator: over features at once, over anything else one by one."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gatv2.operator.arguments import Argument, Cotangents

_MAPPABLE = {"query", "key", "edge_features", "score_bias", *Cotangents._fields}

Rule = Callable[..., tuple[tuple[Tensor, ...], tuple[int | None, ...]]]
"""(info, in_dims, *arguments) -> (results, out_dims), as `torch.library.register_vmap` has it."""


class Info(Protocol):
    """What vmap tells of itself."""

    batch_size: int


def batching_rule(names: tuple[str, ...], call: Callable[..., tuple[Tensor, ...]]) -> Rule:
    """The rule of an operator.

    Args:
        names: names of its flat arguments.
        call: what calls it, for arguments that are no longer mapped at this level.
    """

    def rule(
        info: Info, in_dims: Sequence[int | None], *arguments: Argument
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        named = list(zip(names, arguments, in_dims, strict=True))
        if any(dim is not None and name not in _MAPPABLE for name, _, dim in named):
            each = [
                call(*(x if dim is None else x.select(dim, i) for _, x, dim in named))
                for i in range(info.batch_size)
            ]
            stacked = tuple(map(torch.stack, zip(*each, strict=True)))
            return stacked, (0,) * len(stacked)
        results = call(*(_mapped(*argument, info.batch_size) for argument in named))
        return results, tuple(0 if result.ndim > 1 else None for result in results)

    return rule


def _mapped(name: str, argument: Argument, dim: int | None, batch_size: int) -> Argument:
    """An argument with the mapped dimension in front, where it may have one."""
    if name == "n_mapped":
        return argument + 1
    if name not in _MAPPABLE or argument is None:
        return argument
    if dim is None:
        return argument.expand(batch_size, *argument.shape)
    return argument.movedim(dim, 0)
