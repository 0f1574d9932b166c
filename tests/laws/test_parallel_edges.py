"""Parallel edges count separately, as in PyTorch Geometric."""

import pytest
import torch
from attention import attention_over
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.testing import SIZES, assert_agrees, edge_indices, edges_to_dense, value_and_gradients


def by_counting(query: Tensor, key: Tensor, attn: Tensor, count: Tensor) -> Tensor:
    """An edge that occurs c times, or whose weights add up to c, weighs c times as much."""
    pair = query[:, None] + key[None]
    scores = (torch.nn.functional.leaky_relu(pair, 0.2) * attn).sum(-1)
    weight = scores.exp() * count
    total = weight.sum(1, keepdim=True)
    alpha = weight / torch.where(total == 0, 1, total)
    return torch.einsum("ijh,jhf->ihf", alpha, key)


@given(data=st.data())
def test_a_repeated_edge_weighs_more(
    kernel: Kernel, dtype: torch.dtype, data: st.DataObject
) -> None:
    if kernel.backend == "dense":
        return  # a mask cannot hold parallel edges: see below
    n_queries, n_keys = data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from(SIZES))
    edge_index = data.draw(edge_indices(n_queries, n_keys))
    edge_index = torch.cat((edge_index, edge_index[:, ::2]), dim=1)
    graph = Graph.from_edge_index(edge_index, (n_queries, n_keys))
    has_bias, heads = data.draw(st.booleans()), data.draw(st.sampled_from((1, 2)))
    bias = torch.randn(edge_index.shape[1], heads, dtype=dtype) * has_bias
    count = edges_to_dense(bias.double().exp(), edge_index, (n_queries, n_keys))
    inputs = [torch.randn(n, 2, 3, dtype=dtype) for n in (n_queries, n_keys)]
    inputs.append(torch.randn(2, 3, dtype=dtype))
    cotangent = torch.randn(n_queries, 2, 3, dtype=dtype)

    def reference(precision: torch.dtype) -> list[Tensor]:
        return value_and_gradients(
            lambda query, key, attn: by_counting(query, key, attn, count.to(precision)),
            [x.to(precision) for x in inputs],
            cotangent.to(precision),
        )

    actual = value_and_gradients(
        attention_over(graph, score_bias=bias if has_bias else None, kernel=kernel.name),
        inputs,
        cotangent,
    )
    for a, e, r in zip(actual, reference(torch.float64), reference(dtype), strict=True):
        assert_agrees(a, e, r)


def test_dropout_tells_parallel_edges_apart(kernel: Kernel) -> None:
    """With one value for all keys, the output tells how many of the 1,000 copies were kept."""
    if kernel.backend == "dense":
        return
    edge_index = torch.zeros(2, 1000, dtype=torch.int64)
    out = gatv2_attention(
        torch.zeros(1, 4, 1),
        torch.ones(1, 4, 1),
        torch.zeros(4, 1),
        edge_index,
        dropout=0.5,
        seed=1,
        kernel=kernel.name,
    )
    kept = out * 0.5
    assert ((kept > 0.4) & (kept < 0.6)).all()
    assert kept.unique().numel() > 1


def test_a_mask_cannot_hold_them() -> None:
    edge_index = torch.tensor([[0, 0, 1], [2, 2, 0]])
    graph = Graph.from_edge_index(edge_index, 3)
    features = torch.randn(3, 1, 2)
    with pytest.raises(ValueError, match=r"parallel edges.*graph\.coalesce\(\)"):
        gatv2_attention(features, features, torch.randn(1, 2), graph, backend="dense")
    merged = graph.coalesce()
    assert merged.edge_index.tolist() == [[0, 1], [2, 0]]
    gatv2_attention(features, features, torch.randn(1, 2), merged, backend="dense")
