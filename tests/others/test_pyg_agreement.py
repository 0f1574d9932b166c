"""PyTorch Geometric's `GATv2Conv`, converted, computes what it did: values and every gradient."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import GATv2Conv

import gatv2.pyg
from gatv2 import GraphAttentionV2Layer
from gatv2.convert import from_pyg, to_pyg
from gatv2.dispatch import Kernel
from gatv2.testing import SIZES, assert_agrees, edge_indices

FLOWS = ("source_to_target", "target_to_source")
NAMES = {
    "linear_l": "lin_r",
    "linear_r": "lin_l",
    "linear_e": "lin_edge",
    "attn": "att",
    "linear_residual": "res",
}


@dataclass
class Case:
    """A layer of PyTorch Geometric and what it is called with."""

    conv: Any
    x: list[Tensor]
    edge_index: Tensor
    edge_attr: Tensor | None = None

    @property
    def leaves(self) -> list[Tensor]:
        """All that has a gradient."""
        return self.x if self.edge_attr is None else [*self.x, self.edge_attr]

    def __call__(self, layer: Any, leaves: list[Tensor]) -> Tensor:
        x, edge_attr = leaves[: len(self.x)], next(iter(leaves[len(self.x) :]), None)
        h: Any = x[0] if len(x) == 1 else tuple(x)
        if not isinstance(layer, GraphAttentionV2Layer):
            theirs: Tensor = layer(h, self.edge_index, edge_attr)
            return theirs
        out: Tensor = layer(h, self.edge_index, edge_features=edge_attr)
        return out

    def without_parallel_edges(self) -> "Case":
        """The first of each set of parallel edges, and its features."""
        pairs = [tuple(pair) for pair in self.edge_index.T.tolist()]
        first = torch.tensor([pairs.index(pair) for pair in dict.fromkeys(pairs)], dtype=torch.long)
        edge_attr = None if self.edge_attr is None else self.edge_attr[first]
        return Case(self.conv, self.x, self.edge_index[:, first], edge_attr)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Directed graphs with parallel edges and self-loops, one set of nodes or two, and all options."""
    is_pair = draw(st.booleans())
    flow = "source_to_target" if is_pair else draw(st.sampled_from(FLOWS))
    n_first = draw(st.sampled_from(SIZES))
    n_second = draw(st.sampled_from(SIZES)) if is_pair else n_first
    edge_index = draw(edge_indices(n_first, n_second)).long()
    # with other numbers of nodes on both sides, a sampled block; what could be a mask of it is an error
    assume(n_first == n_second or edge_index.shape != (n_first, n_second))
    share_weights = draw(st.booleans())
    widths = (3, 3) if share_weights or not is_pair else (3, 5)
    torch.manual_seed(draw(st.integers(0, 2**32)))
    edge_dim = draw(st.sampled_from((None, 1, 4)))
    row = torch.randn(edge_dim or 1).double()
    fills: list[Any] = [0.5, None, row, row.unsqueeze(0)]
    if flow == "source_to_target" and n_second <= n_first:  # else theirs reads out of bounds
        fills += ["mean", "add", "min", "max", "mul"]
    conv = GATv2Conv(
        widths if is_pair else 3,
        draw(st.sampled_from((1, 4, 7))),  # few sizes: a fused kernel is compiled for each
        draw(st.sampled_from((1, 2, 5))),
        concat=draw(st.booleans()),
        negative_slope=draw(st.sampled_from((0.0, 0.2, 1.5))),
        add_self_loops=draw(st.booleans()),
        edge_dim=edge_dim,
        fill_value=draw(st.sampled_from(fills)),
        bias=draw(st.booleans()),
        share_weights=share_weights,
        residual=draw(st.booleans()),
        flow=flow,
    ).double()
    for name, parameter in conv.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    x = [torch.randn(n_first, widths[0]).double()]
    if is_pair:
        x.append(torch.randn(n_second, widths[1]).double())
    edge_attr = torch.randn(edge_index.shape[1], edge_dim).double() if edge_dim else None
    return Case(conv, x, edge_index, edge_attr)


def results(case: Case, layer: Any, cotangent: Tensor) -> tuple[Tensor, ...]:
    """The value, and gradients of features and parameters."""
    leaves = [x.clone().requires_grad_() for x in case.leaves]
    out = case(layer, leaves)
    return out, *torch.autograd.grad(out, [*leaves, *layer.parameters()], cotangent)


def assert_same(case: Case, layer: GraphAttentionV2Layer) -> None:
    """Assert that a layer computes what `case.conv` does, and so do its gradients."""
    cotangent = torch.randn_like(case(case.conv, case.leaves))
    ours, theirs = (results(case, function, cotangent) for function in (layer, case.conv))
    n = 1 + len(case.leaves)
    for actual, expected in zip(ours[:n], theirs[:n], strict=True):
        assert_agrees(actual, expected)
    gradient = dict(zip(dict(case.conv.named_parameters()), theirs[n:], strict=True))
    for name, actual in zip(dict(layer.named_parameters()), ours[n:], strict=True):
        module, _, rest = name.partition(".")
        their_name = ".".join(filter(None, (NAMES.get(module, module), rest)))
        if their_name not in gradient:  # the shared matrix, which they name by the other side
            their_name = their_name.replace("lin_r", "lin_l")
        assert_agrees(actual, gradient[their_name].view_as(actual))


@given(case=cases())
def test_values_and_gradients(kernel: Kernel, case: Case) -> None:
    layer = from_pyg(case.conv)
    if kernel.backend == "dense":  # a mask holds no parallel edges
        case = case.without_parallel_edges()
    layer.backend, layer.kernel = kernel.backend, kernel.name
    assert_same(case, layer)


@given(case=cases())
def test_round_trip(case: Case) -> None:
    """To ours and back is the same to the bit; ours, to theirs and back, has the same parameters."""
    layer = from_pyg(case.conv)
    back = to_pyg(layer)
    assert back.state_dict().keys() == case.conv.state_dict().keys()
    for name, tensor in case.conv.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert torch.equal(case(back, case.leaves), case(case.conv, case.leaves))
    again = from_pyg(back)
    assert repr(again) == repr(layer)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@given(case=cases())
def test_the_change_of_an_import(case: Case) -> None:
    """`gatv2.pyg.GATv2Conv` with the same arguments and state dict."""
    conv = case.conv
    ours = gatv2.pyg.GATv2Conv(
        *(conv.in_channels, conv.out_channels, conv.heads, conv.concat, conv.negative_slope),
        add_self_loops=conv.add_self_loops,
        edge_dim=conv.edge_dim,
        fill_value=conv.fill_value,
        bias=conv.bias is not None,
        share_weights=conv.share_weights,
        residual=conv.res is not None,
        flow=conv.flow,
    ).double()
    ours.load_state_dict(conv.state_dict())
    cotangent = torch.randn_like(case(conv, case.leaves))
    pairs = zip(results(case, ours, cotangent), results(case, conv, cotangent), strict=True)
    for actual, expected in pairs:
        assert_agrees(actual, expected)
    x = case.x[0] if len(case.x) == 1 else tuple(case.x)
    for actual, expected in zip(
        _flat(ours(x, case.edge_index, case.edge_attr, return_attention_weights=True)),
        _flat(conv(x, case.edge_index, case.edge_attr, return_attention_weights=True)),
        strict=True,
    ):
        assert_agrees(actual.double(), expected.double())


def _flat(result: Any) -> tuple[Tensor, ...]:
    out, (edge_index, alpha) = result
    return out, edge_index, alpha


@pytest.mark.parametrize("fill_value", [2, np.float32(2), np.int64(2), torch.tensor(2.0), "max"])
def test_self_loops_are_filled_as_ours(fill_value: Any) -> None:
    layer = GraphAttentionV2Layer(
        3, 4, 2, edge_dim=5, add_self_loops=True, fill_value=fill_value, flow="source_to_target"
    ).eval()
    x, edge_index, edge_attr = torch.randn(6, 3), torch.randint(6, (2, 20)), torch.randn(20, 5)
    expected = layer(x, edge_index, edge_features=edge_attr)
    torch.testing.assert_close(to_pyg(layer)(x, edge_index, edge_attr), expected)


def test_in_training_only_the_dropped_edges_differ() -> None:
    conv = GATv2Conv(3, 4, heads=2, dropout=0.5)
    layer = from_pyg(conv)
    assert layer.training
    assert layer.dropout == 0.5
    assert not from_pyg(conv.eval()).training


def test_the_comparison_rejects_the_other_direction() -> None:
    conv = GATv2Conv(3, 4, heads=2, add_self_loops=False).double()
    case = Case(conv, [torch.randn(5, 3).double()], torch.tensor([[0, 1, 2], [1, 2, 4]]))
    layer = from_pyg(conv)
    assert_same(case, layer)
    layer.flow = "target_to_source"
    with pytest.raises(AssertionError):
        assert_same(case, layer)
