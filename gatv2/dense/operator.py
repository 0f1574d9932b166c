"""The fused operator over a dense mask, on every device: same function as `gatv2.dense.reference`."""

import math
from functools import partial
from typing import NamedTuple

from torch import Tensor

from gatv2.dense import reference
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.operator.arguments import Arguments
from gatv2.operator.define import define
from gatv2.operator.shortcut import Kernels
from gatv2.triton.support import IS_INTERPRETED


class Adjacency(NamedTuple):
    """What tells the kernels the graph."""

    mask: Tensor
    """`[*B, N, M, 1 or H]`, bool."""


def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    mask: Tensor,
    *,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    return_attention: bool,
    edges: EdgeInputs | None = None,
    score_bias: Tensor | None = None,
    is_interpreted: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """GATv2 attention without anything of `[N, M]` beside the mask; see `gatv2.dense.reference`.

    `is_interpreted`: on the CPU by Triton's interpreter, in a process that was started with
    TRITON_INTERPRET=1.
    """
    edge_features, edge_projection = edges or (None, None)
    if score_bias is not None and mask.shape[-1] > 1:  # kernels read one mask of heads
        score_bias, mask = score_bias.where(mask, -math.inf), mask.any(-1, keepdim=True)
    operator = _interpreted if is_interpreted else _attention
    out, lse, alpha = operator(
        Arguments(
            query,
            key,
            attn,
            edge_features,
            edge_projection,
            score_bias,
            Adjacency(mask),
            seed,
            n_blocks=1,
            n_mapped=0,
            negative_slope=negative_slope,
            dropout=dropout,
            wants_rows=return_attention,
            wants_bias_rows=False,
        )
    )
    return out, lse, alpha if return_attention else None


def _numba() -> Kernels:
    from gatv2.dense import numba_kernel
    from gatv2.operator.on_arrays import OnArrays

    return partial(OnArrays, numba_kernel)


def _triton() -> Kernels:
    from gatv2.dense import triton_kernel

    return lambda: triton_kernel


def _reference(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor | None]:
    return reference.gatv2_attention(
        arguments.query,
        arguments.key,
        arguments.attn,
        arguments.adjacency.mask,
        negative_slope=arguments.negative_slope,
        dropout=arguments.dropout,
        seed=arguments.seed,
        return_attention=True,
        edges=EdgeInputs.join(arguments.edge_features, arguments.edge_projection),
        score_bias=arguments.score_bias,
    )


def _alpha_shape(arguments: Arguments) -> tuple[int, ...]:
    *pairs, n_heads, _ = arguments.query.shape
    return (*pairs, arguments.key.shape[-3], n_heads)


_attention = define(
    "dense_attention", Adjacency, {"CPU": _numba, "CUDA": _triton}, _reference, _alpha_shape
)
_interpreted = _attention
if IS_INTERPRETED:  # on the CPU too, by an operator of its own
    _interpreted = define(
        "dense_attention_interpreted", Adjacency, {"CPU": _triton}, _reference, _alpha_shape
    )
