"""A linear projection, whose first input may tell its size."""

from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin


class Where(TypedDict):
    """Where a projection is made, and in which dtype."""

    device: torch.device | str | None
    dtype: torch.dtype | None


def linear(n_inputs: int, n_outputs: int, *, bias: bool, **where: Unpack[Where]) -> nn.Linear:
    """A projection, not yet drawn; with `n_inputs` -1 one that its first input gives its size."""
    if n_inputs == -1:
        return _LazyLinear(n_outputs, bias=bias, **where)
    return nn.Linear(n_inputs, n_outputs, bias=bias, **where)


def n_inputs_of(projection: nn.Linear) -> int:
    """Features of an input; -1 if they are not known yet."""
    weight = projection.weight
    return -1 if isinstance(weight, UninitializedTensorMixin) else weight.shape[1]


def reset_parameters(module: nn.Module) -> None:
    """Draw all parameters that have a size: Glorot uniform; biases are zero."""
    for parameter in module.parameters():
        if not isinstance(parameter, UninitializedTensorMixin):
            _reset(parameter)


def _reset(parameter: Tensor) -> None:
    if parameter.ndim > 1:
        nn.init.xavier_uniform_(parameter)
    else:
        nn.init.zeros_(parameter)


class _LazyLinear(nn.LazyLinear):
    """Becomes an `nn.Linear` at its first input, drawn as our parameters are."""

    def reset_parameters(self) -> None:
        if self.in_features:  # else this is the constructor of nn.LazyLinear
            reset_parameters(self)
