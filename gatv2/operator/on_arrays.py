"""The border between tensors and arrays: what a CPU kernel computes on arrays, for an operator.

Tensors become arrays once a call, without a copy, but for half precision, which NumPy does not all have:
it becomes float32 here, which is what the kernels compute it in.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gatv2.numba.call import ArrayArguments, ArrayCotangents
from gatv2.numba.memory import Array
from gatv2.operator.arguments import Arguments, Cotangents, features_of
from gatv2.projection import are_parameters_freed

_HALF = (torch.float16, torch.bfloat16)
_NO_MEMORY = ArrayArguments._field_defaults["memory"]


class ArrayPlan(Protocol):
    """Kernels on arrays, for calls of one kind."""

    def forward(self, arguments: ArrayArguments, /) -> tuple[Array, Array, Array | None]:
        """(out, log-sum-exp, alpha)."""

    def backward(
        self, cotangents: ArrayCotangents, arguments: ArrayArguments, /
    ) -> tuple[Array | None, ...]:
        """Gradients of query, key, attn, edge_features, edge_projection and score_bias."""


class ArrayKernels(Protocol):
    """A module of kernels on arrays."""

    Adjacency: type[Any]
    """The graph, a named tuple of arrays."""

    def Plan(self, arguments: ArrayArguments) -> ArrayPlan:  # noqa: N802
        """Made of a call's arguments, for it and others of its kind."""


class OnArrays:
    """Launches kernels that compute on arrays, for calls of one kind.

    It holds no arrays: PyTorch may move the memory of a graph's tensors between two calls.

    Args:
        kernels: their module.
    """

    def __init__(self, kernels: ArrayKernels) -> None:
        self._kernels = kernels
        self._plan: ArrayPlan | None = None  # made of the first call's arrays

    def forward(self, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor | None]:
        """(out, log-sum-exp, alpha) of the operator's arguments."""
        arrays = self._as_arrays(arguments)
        plan = self._plan or self._planned(arrays)
        out, lse, alpha = plan.forward(arrays)
        out, alpha = _as_tensors((out, alpha), arguments.query.dtype)
        return out, torch.from_numpy(lse), alpha

    def backward(
        self, cotangents: Cotangents, arguments: Arguments, *, overwrites: bool = False
    ) -> tuple[Tensor | None, ...]:
        """Gradients of query, key, attn, edge_features, edge_projection and score_bias.

        With `overwrites`, those of query and key are given the memory of these, where they fit.
        """
        dtype, arrays = arguments.query.dtype, self._as_arrays(arguments, overwrites=overwrites)
        plan = self._plan or self._planned(arrays)
        gradients = plan.backward(ArrayCotangents(*_as_arrays(cotangents, dtype)), arrays)
        return tuple(_as_tensors(gradients, dtype))

    def _planned(self, arrays: ArrayArguments) -> ArrayPlan:
        self._plan = self._kernels.Plan(arrays)
        return self._plan

    def _as_arrays(self, arguments: Arguments, *, overwrites: bool = False) -> ArrayArguments:
        if are_parameters_freed():
            w_edge = arguments.edge_projection
            copied = None if w_edge is None else w_edge.clone()
            arguments = arguments._replace(attn=arguments.attn.clone(), edge_projection=copied)
        features = _as_arrays(features_of(arguments), arguments.query.dtype)
        query, key, attn, x, projection, bias = features
        graph = [x if x is None else x.contiguous().numpy() for x in arguments.adjacency]
        memory = (query, key, None, None, None, None) if overwrites else _NO_MEMORY
        # past a named tuple's own constructor, which is a function in Python
        return tuple.__new__(
            ArrayArguments,
            (
                query,
                key,
                attn,
                x,
                projection,
                self._kernels.Adjacency(*graph),
                None if arguments.seed is None else int(arguments.seed),
                arguments.n_blocks,
                arguments.n_mapped,
                arguments.negative_slope,
                arguments.dropout,
                arguments.wants_rows,
                torch.get_num_threads(),
                bias,
                arguments.wants_bias_rows,
                memory,
            ),
        )


def _as_arrays(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Any]:
    """Tensors of a call of this dtype as arrays, those of half precision in float32."""
    if dtype in _HALF:
        tensors = [x if x is None or x.dtype not in _HALF else _wide(x) for x in tensors]
    # of one that requires a gradient, too
    return [x if x is None else x.numpy(force=True) for x in tensors]


def _wide(tensor: Tensor) -> Tensor:
    """In float32; not what is expanded: a copy of everything."""
    once = tensor[tuple(slice(None if stride else 1) for stride in tensor.stride())]
    return once.float().expand(tensor.shape)


def _as_tensors(arrays: Sequence[Array | None], dtype: torch.dtype) -> list[Any]:
    """The way back: results of a call of this dtype."""
    tensors = [x if x is None else torch.from_numpy(x) for x in arrays]
    return [x if x is None else x.to(dtype) for x in tensors] if dtype in _HALF else tensors
