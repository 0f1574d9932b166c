"""The stack is its layers one after another, with one graph and with dropout in front of each."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import elu, leaky_relu

import gatv2.graph
import gatv2.graph.sort
from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.testing import assert_agrees, edge_indices, masks

EDGE_INDEX = torch.tensor([[0, 0, 1, 3], [1, 2, 2, 3]])


def test_sizes_of_the_layers() -> None:
    model = GATv2(3, 16, 7, n_layers=4, n_heads=8, out_heads=2, dropout=0.1, bias=True)
    layers: Any = model.layers
    sizes = [(x.in_features, x.out_features, x.n_heads, x.is_concat, x.dropout) for x in layers]
    hidden = (16, 16, 8, True, 0.1)
    assert sizes == [(3, *hidden[1:]), hidden, hidden, (16, 7, 2, False, 0.1)]
    assert all(layer.bias is not None for layer in layers)
    one: Any = GATv2(3, 16, 7, n_layers=1).layers
    assert [(x.in_features, x.out_features) for x in one] == [(3, 7)]
    static = GATv2(3, 16, 7, layer=GraphAttentionLayer)
    assert {type(layer) for layer in static.layers} == {GraphAttentionLayer}
    with pytest.raises(ValueError, match="`n_layers` must be positive; got 0"):
        GATv2(3, 16, 7, n_layers=0)


@given(mask=masks(5, 5), data=st.data())
def test_is_one_layer_after_another(mask: Tensor, data: st.DataObject) -> None:
    flow: Any = data.draw(st.sampled_from(("target_to_source", "source_to_target")))
    backend: Any = data.draw(st.sampled_from(("auto", "dense", "sparse")))
    options: Any = {"bias": True, "residual": True, "flow": flow, "backend": backend}
    model = GATv2(3, 8, 7, n_layers=3, n_heads=2, dtype=torch.float64, **options).eval()
    h = torch.randn(2, 5, 3).double()
    one, two, three = model.layers
    embedded = elu(two(elu(one(h, mask)), mask))
    edges = mask.squeeze(-1).nonzero().T
    for form in (
        mask,
        edges,
        mask.squeeze(-1).float().to_sparse(),
        Graph.from_mask(mask, flow=flow),
    ):
        out, coefficients = model(h, form, return_attention=True)
        assert_agrees(out, three(embedded, mask))
        assert_agrees(out, model(h, form))
        assert_agrees(model.embed(h, form), embedded)
        for layer, alpha in zip(model.layers, coefficients, strict=True):
            assert alpha.shape[-1] == layer.n_heads


def test_features_of_edges_reach_every_layer() -> None:
    model = GATv2(3, 8, 7, n_heads=2, edge_dim=4, add_self_loops=True, fill_value=0.5).eval()
    h, features = torch.randn(4, 3), torch.randn(4, 4)
    one, two = model.layers
    expected = two(
        elu(one(h, EDGE_INDEX, edge_features=features)), EDGE_INDEX, edge_features=features
    )
    out = model(h, EDGE_INDEX, edge_features=features)
    torch.testing.assert_close(out, expected)
    embedded = model.embed(h, EDGE_INDEX, edge_features=features)
    torch.testing.assert_close(two(embedded, EDGE_INDEX, edge_features=features), out)


def test_the_graph_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = gatv2.graph.sort.sort_edges

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(gatv2.graph.graph, "sort_edges", counted)
    matrix = torch.eye(4).to_sparse()
    GATv2(3, 8, 7, n_layers=5, n_heads=2)(torch.randn(4, 3), matrix)
    assert len(made) == 1


def test_dropout_of_features_and_training() -> None:
    h = torch.ones(4, 100)
    model = GATv2(100, 8, 7, n_heads=2, dropout=0.0, feature_dropout=0.5)
    assert not torch.equal(model(h, EDGE_INDEX), model(h, EDGE_INDEX))
    model.eval()
    assert torch.equal(model(h, EDGE_INDEX), model(h, EDGE_INDEX))
    plain = GATv2(100, 8, 7, n_heads=2, dropout=0.0, feature_dropout=0.0)
    assert torch.equal(plain(h, EDGE_INDEX), plain(h, EDGE_INDEX))


def test_activation_and_reset() -> None:
    model = GATv2(3, 8, 7, n_heads=2, activation=leaky_relu).eval()
    h = torch.randn(4, 3)
    one, two = model.layers
    torch.testing.assert_close(
        model(h, EDGE_INDEX), two(leaky_relu(one(h, EDGE_INDEX)), EDGE_INDEX)
    )
    before = [p.detach().clone() for p in model.parameters()]
    model.reset_parameters()
    for old, new in zip(before, model.parameters(), strict=True):
        assert not torch.equal(old, new)


@given(edge_index=edge_indices(6, 6))
def test_learns_to_tell_neighbours_apart(edge_index: Tensor) -> None:
    """A step of gradient descent lowers the loss, and every parameter has a gradient."""
    torch.manual_seed(0)
    model = GATv2(3, 8, 2, n_heads=2, dropout=0.0, feature_dropout=0.0, residual=True)
    h, target = torch.randn(6, 3), torch.randn(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in itertools.repeat(None, 2):
        optimizer.zero_grad()
        loss = (model(h, edge_index) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert all(p.grad is not None for p in model.parameters())


def test_lazy_and_errors() -> None:
    model = GATv2(-1, 8, 2, n_heads=2)
    assert model(torch.randn(4, 5), EDGE_INDEX).shape == (4, 2)
    assert model.layers[0].in_features == 5
    with pytest.raises(ValueError, match="in_features=5"):
        model(torch.randn(4, 3), EDGE_INDEX)
    with pytest.raises(
        TypeError, match=r"`h` must be a torch\.Tensor, dense or sparse, or .*; got list"
    ):
        model([1.0], EDGE_INDEX)  # type: ignore[call-overload]
    assert isinstance(model.layers[0], GraphAttentionV2Layer)
