"""Projections that a hook, an adapter or quantization changes: their calls are what is computed.

Adapters such as LoRA put a module in the place of a projection, hooks change what it returns, and
`quantize_dynamic` leaves no matrix of floating-point numbers.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn.utils import parametrize

import gatv2.pyg
from gatv2 import GraphAttentionV2Layer
from gatv2.testing import assert_agrees

EDGE_INDEX = torch.tensor([[0, 1, 2, 3, 0, 4, 2], [1, 0, 0, 2, 3, 4, 2]])


class Adapter(nn.Module):
    """A projection and a correction of low rank; it has neither `weight` nor `in_features`."""

    def __init__(self, base: nn.Module, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(n_inputs, 1).double()
        self.up = nn.Linear(1, n_outputs).double()  # with a bias, which no matrix of the whole has

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x).tanh())
        return out


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def adapt(layer: Any, name: str) -> None:
    base = getattr(layer, name)
    setattr(layer, name, Adapter(base, base.weight.shape[1], base.weight.shape[0]))


def hook(layer: Any, name: str) -> None:
    getattr(layer, name).register_forward_hook(lambda _module, _inputs, out: out.relu() + 1)


def hook_before(layer: Any, name: str) -> None:
    getattr(layer, name).register_forward_pre_hook(lambda _module, inputs: (inputs[0].square(),))


def put_forward(layer: Any, name: str) -> None:
    projection = getattr(layer, name)
    old = projection.forward
    projection.forward = lambda x: old(x).sin()


CHANGES: list[Callable[[Any, str], None]] = [adapt, hook, hook_before, put_forward]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["lin_l", "lin_r", "lin_edge", "res"])
def test_in_the_drop_in(change: Callable[[Any, str], None], name: str) -> None:
    """As in PyTorch Geometric's own class, with the same change; every gradient too."""
    x, edge_attr = torch.randn(5, 3).double(), torch.randn(7, 2).double()
    convs = [
        kind(3, 4, heads=2, edge_dim=2, residual=True).double()
        for kind in (pyg.GATv2Conv, gatv2.pyg.GATv2Conv)
    ]
    for conv in convs:
        change(conv, name)
    convs[1].load_state_dict(convs[0].state_dict())
    results = []
    cotangent = torch.randn(5, 8).double()
    for conv in convs:
        leaves = [x.clone().requires_grad_(), edge_attr.clone().requires_grad_()]
        out = conv(leaves[0], EDGE_INDEX, leaves[1])
        results.append((out, *torch.autograd.grad(out, [*leaves, *conv.parameters()], cotangent)))
    for expected, actual in zip(*results, strict=True):
        assert_agrees(actual, expected)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_in_our_layer(change: Callable[[Any, str], None], form: str) -> None:
    """Features that the changed projection makes, given to a layer whose own is the identity."""
    layer = GraphAttentionV2Layer(3, 8, 2, edge_dim=2, dropout=0.0).double()
    graph: Tensor = EDGE_INDEX
    features = torch.randn(7, 2).double()
    if form == "dense":
        graph = torch.zeros(5, 5, 1, dtype=torch.bool)
        graph[EDGE_INDEX[0], EDGE_INDEX[1]] = True
        features = torch.randn(5, 5, 2).double()
    h = torch.randn(5, 3).double()
    plain = layer(h, graph, edge_features=features)
    change(layer, "linear_e")
    identity = GraphAttentionV2Layer(3, 8, 2, edge_dim=8, dropout=0.0).double()
    with torch.no_grad():
        for name in ("linear_l", "linear_r"):
            getattr(identity, name).weight.copy_(getattr(layer, name).weight)
        identity.attn.copy_(layer.attn)
        assert identity.linear_e is not None
        identity.linear_e.weight.copy_(torch.eye(8))
        assert layer.linear_e is not None
        made = layer.linear_e(features)
    out = layer(h, graph, edge_features=features)
    assert_agrees(out, identity(h, graph, edge_features=made))
    scores = layer.attention_scores(h, graph, edge_features=features).exp()
    assert_agrees(scores, identity.attention_scores(h, graph, edge_features=made).exp())
    assert not torch.allclose(plain, out)


def test_parametrized_weights_stay_fused() -> None:
    """A parametrization makes a matrix, which the kernel is given."""
    layer = GraphAttentionV2Layer(3, 8, 2, edge_dim=2, dropout=0.0).double()
    doubled = GraphAttentionV2Layer(3, 8, 2, edge_dim=2, dropout=0.0).double()
    doubled.load_state_dict(layer.state_dict())
    assert doubled.linear_e is not None
    assert layer.linear_e is not None
    doubled.linear_e.weight.data.mul_(2)
    parametrize.register_parametrization(layer.linear_e, "weight", Doubled())
    h, features = torch.randn(5, 3).double(), torch.randn(7, 2).double()
    out = layer(h, EDGE_INDEX, edge_features=features)
    assert torch.equal(out, doubled(h, EDGE_INDEX, edge_features=features))


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its quantization
@pytest.mark.parametrize("share_weights", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_quantized(share_weights: bool, bias: bool) -> None:
    """`quantize_dynamic` gives a layer that works, within the precision of 8 bits."""
    from torch.ao.quantization import quantize_dynamic

    layer = GraphAttentionV2Layer(
        16, 8, 2, edge_dim=4, share_weights=share_weights, bias=bias, residual=True
    ).eval()
    quantized: Any = quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantized.linear_e, nn.Linear)
    assert "bias=True" in repr(quantized) if bias else "bias=False" in repr(quantized)
    h, features = torch.randn(5, 16), torch.randn(7, 4)
    expected = layer(h, EDGE_INDEX, edge_features=features)
    out = quantized(h, EDGE_INDEX, edge_features=features)
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()
    with pytest.raises(ValueError, match="in_features=16"):
        quantized(torch.randn(5, 3), EDGE_INDEX, edge_features=features)


def test_features_of_edges_whose_size_the_first_input_tells() -> None:
    x, edge_attr = torch.randn(5, 3), torch.randn(7, 2)
    conv = gatv2.pyg.GATv2Conv(-1, 4, heads=2, edge_dim=-1)
    out = conv(x, EDGE_INDEX, edge_attr)
    theirs = pyg.GATv2Conv(3, 4, heads=2, edge_dim=2)
    theirs.load_state_dict(conv.state_dict())
    torch.testing.assert_close(out, theirs(x, EDGE_INDEX, edge_attr))
