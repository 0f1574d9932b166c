"""The fused CPU kernel over a dense mask: same function as `gatv2.dense.reference`."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gatv2.dense import reference
from gatv2.operator.define import Launcher, define, unsupported

__all__ = ["gatv2_attention", "unsupported"]


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
    edge_features: Tensor | None = None,
    edge_projection: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """GATv2 attention without anything of `[N, M]` beside the mask; see `gatv2.dense.reference`."""
    features = (query, key, attn, edge_features, edge_projection)
    n_mapped = 0
    out, lse, alpha = _attention(
        *features, mask, seed, 1, n_mapped, negative_slope, dropout, return_attention
    )
    return out, lse, alpha if return_attention else None


def _numba() -> Launcher:
    from gatv2.dense import numba_kernel
    from gatv2.operator.on_arrays import OnArrays

    return OnArrays(numba_kernel)


def _reference(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    adjacency: Sequence[Tensor],
    seed: Tensor | None,
    _n_blocks: int,
    negative_slope: float,
    dropout: float,
    edge_features: Tensor | None,
    edge_projection: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    return reference.gatv2_attention(
        query,
        key,
        attn,
        adjacency[0],
        negative_slope=negative_slope,
        dropout=dropout,
        seed=seed,
        return_attention=True,
        edge_features=edge_features,
        edge_projection=edge_projection,
    )


def _alpha_shape(query: Tensor, key: Tensor, _mask: Tensor) -> tuple[int, ...]:
    return (*query.shape[:-2], key.shape[-3], query.shape[-2])


_attention = define("dense_attention", Adjacency, {"CPU": _numba}, _reference, _alpha_shape)
