"""NaN, infinity and overflow: what no edge of a head uses never spreads, what is used stays where it is.

Node 3 has no edge at all, and no query attends with head 0 to key 2:

    query 0: keys 1, 2    query 1: keys 0, 1    query 2: key 1
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from attention import attention_over, by
from torch import Tensor

from gatv2 import Graph, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.functional import gat_attention

N_HEADS, N_HIDDEN, N_FEATURES = 2, 3, 2
HOSTILE = [math.nan, math.inf, -math.inf]


def head_mask() -> Tensor:
    mask = torch.zeros(4, 4, N_HEADS, dtype=torch.bool)
    for query, key in ((0, 1), (0, 2), (1, 0), (1, 1), (2, 1)):
        mask[query, key] = True
    mask[0, 2, 0] = False
    return mask


class Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    attn: Tensor
    edge_features: Tensor
    edge_projection: Tensor


def inputs(dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (4, N_HEADS, N_HIDDEN),
        (4, N_HEADS, N_HIDDEN),
        (N_HEADS, N_HIDDEN),
        (4, 4, N_FEATURES),
        (N_HEADS, N_HIDDEN, N_FEATURES),
    )
    return Inputs(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))


class Outcome(NamedTuple):
    """Results of attention over pairs, and the gradients of random cotangents of theirs."""

    out: Tensor
    alpha: Tensor
    lse: Tensor
    d_query: Tensor
    d_key: Tensor
    d_attn: Tensor
    d_edge_features: Tensor
    d_edge_projection: Tensor


def outcome(kernel: Kernel, given: Inputs, **options: Any) -> Outcome:
    leaves = Inputs(*(x.clone().requires_grad_() for x in given))
    mask = head_mask()
    results = gatv2_attention(
        leaves.query,
        leaves.key,
        leaves.attn,
        mask,
        edge_features=leaves.edge_features,
        edge_projection=leaves.edge_projection,
        backend=kernel.backend,
        kernel=kernel.name,
        return_attention=True,
        return_lse=True,
        **options,
    )
    out, alpha, lse = results
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=generator).to(x) for x in results]
    cotangents[2] = cotangents[2].masked_fill(~mask.any(-2), 0.0)  # where it is -inf
    gradients = torch.autograd.grad(results, leaves, cotangents)
    if kernel.backend == "sparse":
        pairs = alpha.new_zeros(4, 4, N_HEADS)
        query, key = mask.any(-1).nonzero().T
        pairs[query, key] = alpha
        alpha = pairs
    return Outcome(*(x.detach() for x in (out, alpha, lse, *gradients)))


def assert_same(actual: Tensor, expected: Tensor, where: Tensor | None = None) -> None:
    """Assert equality, NaN being unequal to all, wherever `where` is true."""
    if where is not None:
        where = where.expand_as(expected)
        actual, expected = actual[where], expected[where]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=False)


def test_assert_same_rejects_nan() -> None:
    with pytest.raises(AssertionError):
        assert_same(torch.tensor([math.nan]), torch.tensor([math.nan]))
    assert_same(torch.tensor([math.nan, 1.0]), torch.ones(2), where=torch.tensor([False, True]))


def spoil_isolated_nodes(given: Inputs, value: float) -> None:
    given.query[3], given.key[3] = value, value
    given.edge_features[~head_mask().any(-1)] = value


def spoil_an_unused_head(given: Inputs, value: float) -> None:
    given.key[2, 0] = value


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("spoil", [spoil_isolated_nodes, spoil_an_unused_head])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_no_edge_uses_changes_nothing(
    kernel: Kernel,
    dtype: torch.dtype,
    spoil: Callable[[Inputs, float], None],
    value: float,
    dropout: float,
) -> None:
    hostile = inputs(dtype)
    spoil(hostile, value)
    options = {"dropout": dropout, "seed": 3}
    expected = outcome(kernel, inputs(dtype), **options)
    for actual, clean in zip(outcome(kernel, hostile, **options), expected, strict=True):
        assert_same(actual, clean)


@pytest.mark.parametrize("value", HOSTILE)
def test_what_an_edge_uses_reaches_its_query_and_head_only(
    kernel: Kernel, dtype: torch.dtype, value: float
) -> None:
    hostile = inputs(dtype)
    hostile.key[0, 1, 0] = value  # of which query 1 makes use, with head 1
    actual, clean = outcome(kernel, hostile), outcome(kernel, inputs(dtype))
    is_other = torch.ones(4, N_HEADS, dtype=torch.bool)
    is_other[1, 1] = False
    for name in ("out", "lse", "d_query"):
        where = is_other if name == "lse" else is_other.unsqueeze(-1)
        assert_same(getattr(actual, name), getattr(clean, name), where)
    if math.isnan(value):  # an infinite key may have a score of -inf, and so no weight
        assert bool(actual.out[1, 1].isnan().all())
    assert_same(actual.alpha, clean.alpha, is_other.unsqueeze(1))
    is_far = torch.ones(4, N_HEADS, dtype=torch.bool)
    is_far[:2, 1] = False  # the keys of query 1
    assert_same(actual.d_key, clean.d_key, is_far.unsqueeze(-1))
    assert_same(actual.d_attn[0], clean.d_attn[0])
    assert_same(actual.d_edge_projection[0], clean.d_edge_projection[0])
    assert_same(actual.d_edge_features[[0, 2, 3]], clean.d_edge_features[[0, 2, 3]])


def test_hostile_edge_features_reach_the_heads_that_use_the_edge(
    kernel: Kernel, dtype: torch.dtype
) -> None:
    hostile = inputs(dtype)
    hostile.edge_features[0, 2] = math.nan  # an edge of head 1 alone
    actual, clean = outcome(kernel, hostile), outcome(kernel, inputs(dtype))
    is_other = torch.ones(4, N_HEADS, dtype=torch.bool)
    is_other[0, 1] = False
    assert_same(actual.out, clean.out, is_other.unsqueeze(-1))
    assert not bool(actual.out[0, 1].isfinite().all())
    assert_same(actual.d_query, clean.d_query, is_other.unsqueeze(-1))
    assert_same(actual.d_attn[0], clean.d_attn[0])
    assert_same(actual.d_edge_projection[0], clean.d_edge_projection[0])


def test_a_row_whose_scores_overflow_to_minus_infinity_is_one_without_keys(
    kernel: Kernel, dtype: torch.dtype
) -> None:
    """Zeros, a log-sum-exp of -inf and zero gradients; the other rows are as they were."""
    hostile = inputs(dtype)
    for x in (hostile.query, hostile.key):
        x[:, 0, 0] = 0.0
    hostile.edge_projection[0, 0] = 0.0
    largest = torch.finfo(dtype).max
    hostile.query[0, 0, 0], hostile.attn[0, 0] = largest**0.75, -(largest**0.5)
    actual = outcome(kernel, hostile)
    assert bool((actual.out[0, 0] == 0).all())
    assert bool((actual.alpha[0, :, 0] == 0).all())
    assert actual.lse[0, 0] == -math.inf
    assert bool((actual.d_query[0, 0] == 0).all())
    clean = outcome(kernel, inputs(dtype))
    for name in ("out", "lse", "d_query", "d_key", "d_attn"):
        other_head = getattr(actual, name).select(-1 if name == "lse" else -2, 1)
        assert_same(other_head, getattr(clean, name).select(-1 if name == "lse" else -2, 1))
    assert all(bool(x.isfinite().all()) for x in (actual.out, *actual[3:]))


def test_an_edge_whose_score_overflows_to_minus_infinity_has_no_weight(
    kernel: Kernel, dtype: torch.dtype
) -> None:
    query = torch.zeros(1, 1, 2, dtype=dtype)
    key = torch.tensor([[[1.0, 0.0]], [[2.0, 100.0]], [[3.0, 0.0]]], dtype=dtype)
    attn = torch.tensor([[1.0, -torch.finfo(dtype).max]], dtype=dtype)
    leaves = [x.requires_grad_() for x in (query, key, attn)]
    mask = torch.ones(1, 3, 1, dtype=torch.bool)
    options: Any = {"backend": kernel.backend, "kernel": kernel.name, "return_attention": True}
    out, alpha = gatv2_attention(query, key, attn, mask, **options)
    assert float(alpha.detach().flatten()[1]) == 0.0
    others = torch.tensor([[[True], [False], [True]]])
    without = gatv2_attention(query, key, attn, others, **options)
    assert_same(out, without[0])
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    gradients = torch.autograd.grad(out, leaves, cotangent)
    for gradient, expected in zip(
        gradients, torch.autograd.grad(without[0], leaves, cotangent), strict=True
    ):
        assert_same(gradient, expected)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("n_mask_heads", [1, 2])
def test_an_infinite_feature_whose_score_is_minus_infinity_has_no_edge(
    kernel: Kernel, dtype: torch.dtype, value: float, side: str, n_mask_heads: int
) -> None:
    """Of values, log-sum-exp, coefficients and all gradients, as a mask would have it.

    Triton's kernels have no registers left to tell it: there the head is NaN, and the other one is not.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, attn = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((3, 2, 3), (4, 2, 3), (2, 3))
    )
    attn[0, 0] = -math.copysign(1.0, value)  # so that a . LeakyReLU is -inf
    mask = torch.ones(3, 4, n_mask_heads, dtype=torch.bool)
    mask[2, 3] = False
    others = mask.expand(3, 4, 2).clone()
    hostile = {"query": query.clone(), "key": key.clone()}
    hostile[side][1, 0, 0] = value
    if side == "query":
        others[1, :, 0] = False
    else:
        others[:, 1, 0] = False
    options: Any = {**by(kernel), "dropout": 0.3, "seed": 1}

    def results(query: Tensor, key: Tensor, mask: Tensor) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (query, key, attn)]
        attend = attention_over(mask, return_attention=True, return_lse=True, **options)
        outcome = attend(*leaves)
        out, alpha, lse = outcome
        cotangents = torch.Generator().manual_seed(1)
        weights = [torch.randn(x.shape, generator=cotangents).to(x) for x in outcome]
        weights[2] = weights[2].masked_fill(lse == -math.inf, 0.0)
        gradients = torch.autograd.grad(outcome, leaves, weights)
        return [x.detach() for x in (out, alpha, lse, *gradients)]

    actual = results(hostile["query"], hostile["key"], mask)
    heads = torch.tensor([1] if kernel.name == "triton" else [0, 1])
    of_head = (-2, -1, -1, -2, -2, -2)  # the dimension of heads
    for a, e, dim in zip(actual, results(query, key, others), of_head, strict=True):
        torch.testing.assert_close(a.index_select(dim, heads), e.index_select(dim, heads))


@pytest.mark.parametrize("backend", ["sparse", "dense"])
@pytest.mark.parametrize("value", HOSTILE)
def test_the_static_control_keeps_what_no_edge_uses_out(
    backend: Any, dtype: torch.dtype, value: float
) -> None:
    def results(given: Inputs) -> list[Tensor]:
        query, key, first, second = leaves = [
            x.clone().requires_grad_() for x in (*given[:3], given.attn.flip(-1))
        ]
        graph = head_mask() if backend == "dense" else Graph.from_mask(head_mask())
        out = gat_attention(query, key, first, second, graph, backend=backend)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]

    for spoil in (spoil_isolated_nodes, spoil_an_unused_head):
        hostile = inputs(dtype)
        spoil(hostile, value)
        for actual, clean in zip(results(hostile), results(inputs(dtype)), strict=True):
            assert_same(actual, clean)
