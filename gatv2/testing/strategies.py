"""Hypothesis strategies: masks, edge indices, and all inputs of attention."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

# distinct primes: no transposed axis goes unnoticed
SIZES = (1, 2, 3, 5, 7, 11)
# heads and features a head: few, as fused kernels are compiled for each kind of row
HEAD_SHAPES = ((1, 1), (2, 3), (5, 4), (1, 13), (8, 7))
BATCH_SHAPES = ((), (2,), (3, 2))


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs of `gatv2.gatv2_attention`, and a cotangent of its output.

    Attributes:
        query: `[*batch, n_queries, n_heads, n_hidden]`.
        key: `[*batch, n_keys, n_heads, n_hidden]`.
        attn: `[n_heads, n_hidden]`.
        mask: `[n_queries, n_keys, 1]` or, if drawn so, with heads or a batch; bool.
        cotangent: the shape of `query`.
        seed: seed for dropout.
        score_bias: `[n_queries, n_keys, 1 or n_heads]`, or with a batch, some of it -inf; None if it was
            not drawn.
    """

    query: Tensor
    key: Tensor
    attn: Tensor
    mask: Tensor
    cotangent: Tensor
    seed: int
    score_bias: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "AttentionInputs":
        """The same inputs in another floating-point dtype."""
        converted: dict[str, Any] = {
            field.name: value.to(dtype)
            if isinstance(value := getattr(self, field.name), Tensor) and value.is_floating_point()
            else value
            for field in fields(self)
        }
        return AttentionInputs(**converted)


@st.composite
def masks(
    draw: st.DrawFn,
    n_queries: int,
    n_keys: int,
    n_heads: int = 1,
    batch_shape: Sequence[int] = (),
) -> Tensor:
    """Bool masks `[*batch, n_queries, n_keys, n_heads]`, from empty to full.

    Some queries and some keys are often without an edge.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from((0.0, 0.15, 0.5, 0.85, 1.0)))
    mask = torch.rand(*batch_shape, n_queries, n_keys, n_heads, generator=generator) < density
    if draw(st.booleans()):
        mask &= torch.rand(n_queries, 1, 1, generator=generator) < 0.7
    if draw(st.booleans()):
        mask &= torch.rand(n_keys, 1, generator=generator) < 0.7
    return mask


@st.composite
def edge_indices(draw: st.DrawFn, n_queries: int, n_keys: int, max_edges: int = 40) -> Tensor:
    """Integer edge indices `[2, n_edges]`, in any order, often with parallel edges."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    n_edges = draw(st.integers(0, max_edges)) if n_queries and n_keys else 0
    query = torch.randint(max(n_queries, 1), (n_edges,), generator=generator)
    key = torch.randint(max(n_keys, 1), (n_edges,), generator=generator)
    dtype = draw(st.sampled_from((torch.int64, torch.int32)))
    return torch.stack((query, key)).to(dtype)


@st.composite
def attention_inputs(
    draw: st.DrawFn,
    dtype: torch.dtype = torch.float64,
    *,
    is_square: bool = False,
    has_head_mask: bool | None = None,
    mask_has_batch: bool | None = None,
    has_score_bias: bool | None = False,
) -> AttentionInputs:
    """Inputs of attention: sizes, features, a mask and a cotangent.

    Args:
        draw: given by Hypothesis.
        dtype: dtype of the features.
        is_square: whether there are as many queries as keys.
        has_head_mask: whether the mask has heads; None for either.
        mask_has_batch: whether the mask has the batch of the features; None for either.
        has_score_bias: whether there is a bias of the scores; None for either.
    """
    n_queries = draw(st.sampled_from(SIZES))
    n_keys = n_queries if is_square else draw(st.sampled_from(SIZES))
    n_heads, n_hidden = draw(st.sampled_from(HEAD_SHAPES))
    batch_shape = draw(st.sampled_from(BATCH_SHAPES))
    mask_heads = n_heads if draw(_given_or_any(has_head_mask)) else 1
    mask_batch = batch_shape if draw(_given_or_any(mask_has_batch)) else ()
    mask = draw(masks(n_queries, n_keys, mask_heads, mask_batch))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    score_bias = None
    if draw(_given_or_any(has_score_bias)):
        bias_heads = n_heads if draw(st.booleans()) else 1
        shape = (*(batch_shape if draw(st.booleans()) else ()), n_queries, n_keys, bias_heads)
        kept = torch.rand(shape, generator=generator) < draw(st.sampled_from((1.0, 0.7, 0.2)))
        score_bias = normal(*shape).where(kept, -torch.inf)
    return AttentionInputs(
        query=normal(*batch_shape, n_queries, n_heads, n_hidden),
        key=normal(*batch_shape, n_keys, n_heads, n_hidden),
        attn=normal(n_heads, n_hidden),
        mask=mask,
        cotangent=normal(*batch_shape, n_queries, n_heads, n_hidden),
        seed=draw(st.integers(0, 2**63 - 1)),
        score_bias=score_bias,
    )


def _given_or_any(value: bool | None) -> st.SearchStrategy[bool]:
    return st.booleans() if value is None else st.just(value)
