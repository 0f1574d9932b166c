"""The border between tensors and arrays: what a CPU kernel computes on arrays, for an operator.

Tensors become arrays once a call, without a copy, but for half precision, which NumPy does not all have:
it becomes float32 here, which is what the kernels compute it in.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from gatv2.numba.call import ArrayArguments, ArrayCotangents
from gatv2.numba.memory import Array
from gatv2.operator.arguments import Arguments, Cotangents

_HALF = (torch.float16, torch.bfloat16)


class ArrayKernels(Protocol):
    """A module of kernels on arrays."""

    Adjacency: type[Any]
    """The graph, a named tuple of arrays."""

    def forward(self, arguments: ArrayArguments) -> tuple[Array, Array, Array]:
        """(out, log-sum-exp, alpha)."""

    def backward(self, cotangents: ArrayCotangents, arguments: ArrayArguments) -> tuple[Array, ...]:
        """Gradients of query, key, attn, edge_features, edge_projection and score_bias."""


class OnArrays:
    """Launches kernels that compute on arrays.

    Args:
        kernels: their module.
    """

    def __init__(self, kernels: ArrayKernels) -> None:
        self._kernels = kernels

    def forward(self, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
        """(out, log-sum-exp, alpha) of the operator's arguments."""
        dtype = arguments.query.dtype
        out, lse, alpha = self._kernels.forward(_as_arrays(arguments, self._kernels.Adjacency))
        return _as_tensor(out, dtype), torch.from_numpy(lse), _as_tensor(alpha, dtype)

    def backward(self, cotangents: Cotangents, arguments: Arguments) -> tuple[Tensor, ...]:
        """Gradients of query, key, attn, edge_features, edge_projection and score_bias."""
        dtype = arguments.query.dtype
        arrays = ArrayCotangents(*map(_as_array, cotangents))
        gradients = self._kernels.backward(arrays, _as_arrays(arguments, self._kernels.Adjacency))
        return tuple(_as_tensor(gradient, dtype) for gradient in gradients)


def _as_arrays(arguments: Arguments, adjacency: type[Any]) -> ArrayArguments:
    x, projection, seed = arguments.edge_features, arguments.edge_projection, arguments.seed
    bias = arguments.score_bias
    return ArrayArguments(
        _as_array(arguments.query),
        _as_array(arguments.key),
        _as_array(arguments.attn),
        None if x is None else _as_array(x),
        None if projection is None else _as_array(projection),
        adjacency(*[None if x is None else x.numpy() for x in arguments.adjacency]),
        None if seed is None else int(seed),
        arguments.n_blocks,
        arguments.n_mapped,
        arguments.negative_slope,
        arguments.dropout,
        arguments.wants_rows,
        torch.get_num_threads(),
        None if bias is None else _as_array(bias),
        arguments.wants_bias_rows,
    )


def _as_array(tensor: Tensor) -> Array:
    if tensor.dtype in _HALF:
        # not what is expanded: a copy of everything
        once = tensor[tuple(slice(None if stride else 1) for stride in tensor.stride())]
        tensor = once.float().expand(tensor.shape)
    return tensor.numpy(force=True)  # of one that requires a gradient, too


def _as_tensor(array: Array, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
