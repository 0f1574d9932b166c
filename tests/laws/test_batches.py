"""A batch is its elements, one by one."""

import pytest
import torch
from attention import BIAS, attention_over, by, tensors_of, with_or_without_bias
from hypothesis import given
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.testing import AttentionInputs, assert_agrees, attention_inputs, value_and_gradients


@given(inputs=with_or_without_bias())
def test_one_by_one(kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs) -> None:
    data = inputs.to(dtype)
    batch_shape = data.query.shape[:-3]

    def one_by_one(pairs: Tensor) -> Tensor:
        return pairs.expand(*batch_shape, *pairs.shape[-3:]).reshape(-1, *pairs.shape[-3:])

    def apart(query: Tensor, key: Tensor, attn: Tensor, *bias: Tensor) -> Tensor:
        elements = zip(*map(one_by_one, (query, key, data.mask, *bias)), strict=True)
        outs = [
            gatv2_attention(
                q, k, attn, mask, score_bias=b[0] if b else None, backend="dense", kernel="torch"
            )
            for q, k, mask, *b in elements
        ]
        return torch.stack(outs).reshape(query.shape)

    features = tensors_of(data)
    fused = attention_over(data.mask, BIAS, **by(kernel))
    actual = value_and_gradients(fused, features, data.cotangent)
    reference = value_and_gradients(apart, features, data.cotangent)
    exact = value_and_gradients(apart, [x.double() for x in features], data.cotangent.double())
    for a, e, r in zip(actual, exact, reference, strict=True):
        assert_agrees(a, e, r)


@given(inputs=attention_inputs(mask_has_batch=True))
def test_a_batch_of_masks_is_one_graph(inputs: AttentionInputs) -> None:
    graph = Graph.from_mask(inputs.mask)
    held = graph.to_mask().reshape(*inputs.mask.shape[:-1], -1)
    assert torch.equal(held.expand_as(inputs.mask), inputs.mask)
    out = gatv2_attention(inputs.query, inputs.key, inputs.attn, graph, dropout=0.5, seed=1)
    exact = gatv2_attention(
        inputs.query, inputs.key, inputs.attn, inputs.mask, dropout=0.5, seed=1, backend="dense"
    )
    assert_agrees(out, exact)


@given(inputs=attention_inputs(mask_has_batch=False))
def test_features_without_a_batch_meet_a_batch_of_masks(
    kernel: Kernel, inputs: AttentionInputs
) -> None:
    query, key = (x.reshape(-1, *x.shape[-3:])[0] for x in (inputs.query, inputs.key))
    batch = torch.stack((inputs.mask, ~inputs.mask))
    out = gatv2_attention(query, key, inputs.attn, batch, **by(kernel))
    for element, mask in zip(out, batch, strict=True):
        exact = gatv2_attention(query, key, inputs.attn, mask, backend="dense", kernel="torch")
        assert_agrees(element, exact)


def test_graphs_in_two_batch_dimensions() -> None:
    graph = Graph.from_mask(torch.rand(6, 4, 4, 1) < 0.5)
    layer = GraphAttentionV2Layer(3, 4, 2, dropout=0.0, edge_dim=2, dtype=torch.float64)
    h = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    edge_features = torch.randn(graph.n_edges, 2, dtype=torch.float64)
    layer.backend = "sparse"
    expected = layer(h, graph, edge_features=edge_features)
    layer.backend = "dense"
    assert_agrees(layer(h, graph, edge_features=edge_features), expected)
    scores = layer.attention_scores(h, graph, edge_features=edge_features)
    assert scores.shape == (2, 3, 4, 4, 2)


@pytest.mark.parametrize("kernel", ["numba", "torch"])
def test_no_feature_sets(kernel: str) -> None:
    layer = GraphAttentionV2Layer(3, 4, 2, edge_dim=2, kernel=kernel)
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    assert layer(torch.randn(0, 5, 3), edge_index, edge_features=torch.randn(3, 2)).shape == (
        0,
        5,
        4,
    )
