"""Hypothesis strategies and assertions for attention over graphs, for our layers and for yours.

Needs Hypothesis: `pip install gatv2-layers[testing]`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

# distinct primes: no transposed axis goes unnoticed
SIZES = (1, 2, 3, 5, 7, 11)
HEADS = (1, 2, 3, 5, 8)
HIDDEN = (1, 3, 4, 7, 13)
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
    """

    query: Tensor
    key: Tensor
    attn: Tensor
    mask: Tensor
    cotangent: Tensor
    seed: int

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
) -> AttentionInputs:
    """Inputs of attention: sizes, features, a mask and a cotangent.

    Args:
        draw: given by Hypothesis.
        dtype: dtype of the features.
        is_square: whether there are as many queries as keys.
        has_head_mask: whether the mask has heads; None for either.
        mask_has_batch: whether the mask has the batch of the features; None for either.
    """
    n_queries = draw(st.sampled_from(SIZES))
    n_keys = n_queries if is_square else draw(st.sampled_from(SIZES))
    n_heads, n_hidden = draw(st.sampled_from(HEADS)), draw(st.sampled_from(HIDDEN))
    batch_shape = draw(st.sampled_from(BATCH_SHAPES))
    mask_heads = n_heads if draw(_given_or_any(has_head_mask)) else 1
    mask_batch = batch_shape if draw(_given_or_any(mask_has_batch)) else ()
    mask = draw(masks(n_queries, n_keys, mask_heads, mask_batch))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return AttentionInputs(
        query=normal(*batch_shape, n_queries, n_heads, n_hidden),
        key=normal(*batch_shape, n_keys, n_heads, n_hidden),
        attn=normal(n_heads, n_hidden),
        mask=mask,
        cotangent=normal(*batch_shape, n_queries, n_heads, n_hidden),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


def _given_or_any(value: bool | None) -> st.SearchStrategy[bool]:
    return st.booleans() if value is None else st.just(value)


def value_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor]:
    """The value of `function(*inputs)`, and the gradient of `(value * cotangent).sum()` to each input.

    Example:
        >>> x = torch.tensor([1.0, 2.0])
        >>> value_and_gradients(torch.square, [x], torch.tensor([1.0, 10.0]))
        [tensor([1., 4.]), tensor([ 2., 40.])]
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves, cotangent, allow_unused=True)
    zeros = (
        torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)
    )
    return [value.detach(), *zeros]


def assert_agrees(actual: Tensor, exact: Tensor, reference: Tensor | None = None) -> None:
    """Assert that a result is as good as its dtype allows; NaN or infinity never is.

    In float64 it is within 1e-10 of `exact`, relative to the largest entry. In a lower precision its
    largest error is at most twice that of `reference`, or 64 roundings of the largest entry.

    Args:
        actual: the result.
        exact: the result in float64.
        reference: the result of a trusted function in the precision of `actual`; needed below float64.

    Raises:
        AssertionError: the shapes differ, the error is too large, or a value is not finite.
        ValueError: `reference` is needed.

    Example:
        >>> assert_agrees(torch.tensor([1.0]).double(), torch.tensor([1.0]).double())
        >>> assert_agrees(torch.tensor([1.1]).double(), torch.tensor([1.0]).double())
        Traceback (most recent call last):
        AssertionError: largest error 0.1, allowed 1e-10
    """
    actual, exact = actual.detach(), exact.detach()
    _require(actual.shape == exact.shape, f"shape {tuple(actual.shape)}, not {tuple(exact.shape)}")
    _require(bool(actual.isfinite().all()), "a value is not finite")
    if actual.numel() == 0:
        return
    scale = max(1.0, float(exact.abs().max()))
    if actual.dtype == torch.float64:
        allowed = 1e-10 * scale
    elif reference is None:
        raise ValueError(f"{actual.dtype} needs a reference of its own precision")
    else:
        of_reference = float((reference.detach().double() - exact).abs().max())
        allowed = max(2 * of_reference, 64 * torch.finfo(actual.dtype).eps * scale)
    error = float((actual.double() - exact).abs().max())
    _require(error <= allowed, f"largest error {error:.3g}, allowed {allowed:.3g}")


def assert_rows_sum_to_one(alpha: Tensor, mask: Tensor) -> None:
    """Assert that coefficients are a distribution over the keys of each query, and zero elsewhere.

    Args:
        alpha: `[*batch, n_queries, n_keys, n_heads]`.
        mask: broadcasts with it, bool.

    Raises:
        AssertionError: a row of a query with keys does not sum to one, or a coefficient is negative,
            not finite, or not zero where there is no edge.
    """
    alpha, mask = alpha.detach(), mask.expand_as(alpha)
    _require(bool(alpha.isfinite().all()), "a coefficient is not finite")
    _require(bool((alpha >= 0).all()), "a coefficient is negative")
    _require(bool((alpha[~mask] == 0).all()), "a coefficient is not zero where there is no edge")
    total, expected = alpha.sum(-2), mask.any(-2).to(alpha.dtype)
    error = float((total - expected).abs().max()) if total.numel() else 0.0
    allowed = 8 * torch.finfo(alpha.dtype).eps * max(1, alpha.shape[-2])
    _require(error <= allowed, f"the sum of a row is off by {error:.3g}, allowed {allowed:.3g}")


def _require(condition: bool, message: str) -> None:
    # not an assert statement, which `python -O` leaves out
    if not condition:
        raise AssertionError(message)


def edges_to_dense(values: Tensor, edge_index: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sum values of edges `[*batch, n_edges, n_heads]` into `[*batch, n_queries, n_keys, n_heads]`.

    Example:
        >>> edges_to_dense(torch.tensor([[5.0]]), torch.tensor([[0], [1]]), (1, 2)).tolist()
        [[[0.0], [5.0]]]
    """
    n_queries, n_keys = shape
    cell = (edge_index[0] * n_keys + edge_index[1]).long()
    flat = values.new_zeros(*values.shape[:-2], n_queries * n_keys, values.shape[-1])
    summed: Tensor = flat.index_add(-2, cell, values)
    return summed.reshape(*values.shape[:-2], *shape, values.shape[-1])


def permuted(mask: Tensor, permutation: Tensor) -> Tensor:
    """A square mask `[*batch, n, n, heads]` with its nodes renamed."""
    return mask.index_select(-3, permutation).index_select(-2, permutation)
