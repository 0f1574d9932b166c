"""Attention over parts of the keys, joined by their log-sum-exp, is attention over all of them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention import BIAS, attention_over, by, is_used, tensors_of, with_or_without_bias
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.functional import gatv2_scores
from gatv2.testing import (
    AttentionInputs,
    assert_agrees,
    edge_indices,
    value_and_gradients,
)


def joined(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The whole of (out, log-sum-exp) of its parts."""
    lse = torch.stack([lse for _, lse in parts])
    lse = lse.clamp(min=torch.finfo(lse.dtype).min)  # a query may have no keys at all
    out = torch.stack([out for out, _ in parts])
    return (lse.softmax(0).unsqueeze(-1).to(out.dtype) * out).sum(0)


@given(
    inputs=with_or_without_bias(mask_has_batch=False),
    share=st.sampled_from((0.0, 0.3, 0.5, 1.0)),
    dropout=st.sampled_from((0.0, 0.4)),
)
def test_the_parts_join_to_the_whole(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs, share: float, dropout: float
) -> None:
    """Gradients come through the log-sum-exp too, and the parts drop what the whole does."""
    is_first = torch.rand(inputs.mask.shape, generator=torch.Generator().manual_seed(3)) < share

    def outcome(precision: torch.dtype, backend: Any, name: str, masks: list[Tensor]) -> Any:
        data = inputs.to(dtype).to(precision)

        options: dict[str, Any] = {"dropout": dropout, "seed": data.seed, "return_lse": True}
        parts = [attention_over(x, BIAS, backend=backend, kernel=name, **options) for x in masks]

        def function(*tensors: Tensor) -> Tensor:
            return joined([part(*tensors) for part in parts])

        return value_and_gradients(function, tensors_of(data), data.cotangent)

    parts = [inputs.mask & is_first, inputs.mask & ~is_first]
    exact = outcome(torch.float64, "dense", "torch", [inputs.mask])
    reference = outcome(dtype, "dense", "torch", parts)
    actual = outcome(dtype, kernel.backend, kernel.name, parts)
    for a, e, r in zip(actual, exact, reference, strict=True):
        assert_agrees(a, e, r)


@given(inputs=with_or_without_bias(mask_has_batch=False))
def test_it_is_the_log_sum_exp_of_the_scores(kernel: Kernel, inputs: AttentionInputs) -> None:
    data = inputs.to(torch.float64)
    features = (data.query, data.key, data.attn, data.mask)
    options: dict[str, Any] = {**by(kernel), "return_lse": True, "score_bias": data.score_bias}
    out, alpha, lse = gatv2_attention(*features, return_attention=True, **options)
    assert torch.equal(out, gatv2_attention(*features, **options)[0])
    assert alpha.dtype == out.dtype
    scores = gatv2_scores(*features, backend="dense", score_bias=data.score_bias)
    torch.testing.assert_close(lse, scores.logsumexp(-2), rtol=1e-12, atol=1e-12)
    assert torch.equal(lse.isinf(), ~is_used(data).any(-2).expand_as(lse))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_it_in_float32(kernel: Kernel, dtype: torch.dtype) -> None:
    query, attn, mask = torch.randn(4, 2, 3), torch.randn(2, 3), torch.ones(4, 4, 1) > 0
    options: dict[str, Any] = {**by(kernel), "return_lse": True}
    lse = gatv2_attention(query.to(dtype), query.to(dtype), attn.to(dtype), mask, **options)[1]
    assert lse.dtype == torch.float32


@pytest.mark.parametrize("name", ["torch", "numba"])
@given(data=st.data(), seed=st.integers(0, 2**62))
def test_numbers_of_nodes_make_dropout_that_of_a_whole_graph(
    name: str, data: st.DataObject, seed: int
) -> None:
    """Some queries of a graph, over keys in another order, drop what they drop in the graph."""
    n_queries, n_keys = 7, 9
    edge_index = data.draw(edge_indices(n_queries, n_keys)).long()
    queries = torch.tensor(data.draw(st.lists(st.integers(0, 6), unique=True, min_size=1)))
    keys = torch.tensor(data.draw(st.permutations(range(n_keys))))
    generator = torch.Generator().manual_seed(seed)
    query, key, attn = (
        torch.randn(n, 5, 3, generator=generator, dtype=torch.float64)
        for n in (n_queries, n_keys, 1)
    )
    options: dict[str, Any] = {"dropout": 0.5, "seed": seed, "kernel": name}
    whole = Graph.from_edge_index(edge_index, (n_queries, n_keys))
    expected = gatv2_attention(query, key, attn[0], whole, **options)[queries]

    is_of, position = edge_index[0] == queries.unsqueeze(1), keys.argsort()
    to_query, edge = is_of.nonzero().T
    part = Graph.from_edge_index(
        torch.stack((to_query, position[edge_index[1, edge]])), (len(queries), n_keys)
    )
    numbered = replace(part, query_id=queries, key_id=keys)
    actual = gatv2_attention(query[queries], key[keys], attn[0], numbered, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    batch = Graph.batch([numbered, whole])
    both = gatv2_attention(
        torch.cat((query[queries], query)), torch.cat((key[keys], key)), attn[0], batch, **options
    )
    torch.testing.assert_close(both[: len(queries)], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["torch", "numba"])
@pytest.mark.parametrize("numbers", [[-5, 7], [2**32 + 1, 1], [-(2**63), 2**63 - 1]])
def test_numbers_of_nodes_may_be_of_any_size(name: str, numbers: list[int]) -> None:
    """Their lower halves count, for every kernel."""
    edge_index, ids = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]), torch.tensor(numbers)
    query, key, attn = torch.randn(2, 8, 3), torch.randn(2, 8, 3), torch.randn(8, 3)
    long, short = (
        replace(Graph.from_edge_index(edge_index, 2), query_id=numbered, key_id=numbered)
        for numbered in (ids, ids % 2**32)
    )
    actual, expected = (
        gatv2_attention(query, key, attn, graph, dropout=0.5, seed=1, kernel=name)
        for graph in (long, short)
    )
    assert torch.equal(actual, expected)


def test_numbers_go_with_the_graph() -> None:
    edge_index, ids = torch.tensor([[0, 1, 1], [1, 0, 0]]), torch.tensor([5, 3])
    graph = replace(Graph.from_edge_index(edge_index, 2), query_id=ids, key_id=ids)
    for other in (graph.coalesce(), graph.add_self_loops(), graph.to("cpu")):
        for numbers in (other.query_id, other.key_id):
            assert numbers is not None
            assert torch.equal(numbers, ids)
    with pytest.raises(ValueError, match="use backend='sparse'"):
        graph.coalesce().to_mask()
    h, attn = torch.randn(2, 1, 3), torch.randn(1, 3)
    with pytest.raises(ValueError, match="use backend='sparse'"):
        gatv2_attention(h, h, attn, graph.coalesce(), backend="dense")
