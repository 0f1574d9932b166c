"""`gatv2.pyg.GATv2Conv` is one function of autograd's where it can be, and the same as one of many."""

from typing import Any

import pytest
import torch
from at_once import is_at_once
from torch import Tensor, nn

pytest.importorskip("torch_geometric")
from gatv2 import Graph
from gatv2.pyg import GATv2Conv

N_NODES, N_FEATURES, N_EDGES, EDGE_DIM = 9, 6, 30, 3

pytestmark = pytest.mark.skipif(
    pytest.importorskip("gatv2.numba.available").FAILURE is not None, reason="needs Numba"
)


def make(**options: Any) -> GATv2Conv:
    torch.manual_seed(0)
    return GATv2Conv(N_FEATURES, 4, **{"heads": 2, **options})


def edges() -> Tensor:
    return torch.randint(N_NODES, (2, N_EDGES), generator=torch.Generator().manual_seed(1))


def features(n_nodes: int = N_NODES, n_features: int = N_FEATURES) -> Tensor:
    generator = torch.Generator().manual_seed(n_nodes)
    return torch.randn(n_nodes, n_features, generator=generator, requires_grad=True)


def gradients(conv: GATv2Conv, x: Any, graph: Any, edge_attr: Tensor | None) -> list[Tensor]:
    torch.manual_seed(3)
    out = conv(x, graph, edge_attr)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    inputs = [*(x if isinstance(x, tuple) else (x,)), *conv.parameters()]
    inputs += [] if edge_attr is None else [edge_attr]
    found = torch.autograd.grad(out, inputs, cotangent, allow_unused=True)
    return [out, *(torch.zeros(()) if each is None else each for each in found)]


@pytest.mark.parametrize("prepares", [False, True])
@pytest.mark.parametrize("has_edge_attr", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 1, "concat": False, "bias": False},
        {"concat": False, "residual": True, "dropout": 0.4},
        {"share_weights": True, "fill_value": 0.5},
        {"add_self_loops": False, "fill_value": "max"},
        {"flow": "target_to_source", "fill_value": 2.0, "residual": True},
    ],
)
def test_same_bits(options: dict[str, Any], has_edge_attr: bool, prepares: bool) -> None:
    conv = make(edge_dim=EDGE_DIM if has_edge_attr else None, **options)
    edge_attr = features(N_EDGES, EDGE_DIM) if has_edge_attr else None
    graph: Any = edges()
    if prepares:
        graph = Graph.from_edge_index(graph, N_NODES, flow=conv.flow)
    actual = gradients(conv, features(), graph, edge_attr)
    assert is_at_once(actual[0])
    conv.lin_l.register_forward_hook(lambda *_: None)  # which wants to see the projection
    expected = gradients(conv, features(), graph, edge_attr)
    assert not is_at_once(expected[0])
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_pairs() -> None:
    conv, x = make(add_self_loops=False), (features(), features(5))
    edge_index = edges() % torch.tensor([[N_NODES], [5]])
    actual = gradients(conv, x, edge_index, None)
    assert is_at_once(actual[0])
    conv.lin_r.register_forward_hook(lambda *_: None)
    for a, e in zip(actual, gradients(conv, x, edge_index, None), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: conv.lin_l.register_forward_pre_hook(lambda *_: None),
        lambda conv: setattr(conv, "lin_r", nn.Linear(N_FEATURES, 8)),
        lambda conv: nn.utils.parametrize.register_parametrization(conv, "att", nn.Identity()),
        lambda conv: conv.register_message_forward_hook(lambda *_: None),
    ],
)
def test_who_wants_to_see_more_does(change: Any) -> None:
    conv = make()
    change(conv)
    out = conv(features(), edges())
    assert not is_at_once(out)
    out.backward(torch.randn_like(out))


def test_edge_features_without_a_projection_are_refused() -> None:
    with pytest.raises(ValueError, match="edge_dim"):
        make()(features(), edges(), features(N_EDGES, EDGE_DIM))


def test_scalars_of_edges() -> None:
    conv, x, weight = make(edge_dim=1), features(), torch.rand(N_EDGES)
    out = conv(x, edges(), weight)
    assert is_at_once(out)
    assert torch.equal(out, conv(x, edges(), weight.unsqueeze(1)))


@pytest.mark.parametrize("shape", [(N_EDGES,), (), (0,), (0, 2), (N_EDGES, 2), (3, N_EDGES)])
@pytest.mark.parametrize("has_edge_attr", [False, True])
def test_an_edge_index_of_another_shape_is_refused_as_such(
    shape: tuple[int, ...], has_edge_attr: bool
) -> None:
    edge_attr = features(N_EDGES, EDGE_DIM) if has_edge_attr else None
    with pytest.raises(ValueError, match="an edge index must have shape"):
        make(edge_dim=EDGE_DIM)(features(), torch.zeros(shape, dtype=torch.long), edge_attr)


@pytest.mark.parametrize(
    "bias",
    [
        torch.rand(8, dtype=torch.float64),
        torch.rand(8, dtype=torch.float16),
        torch.rand(2, N_NODES, 8),
        torch.rand(N_NODES, 8),
        torch.rand(1),
    ],
)
def test_a_bias_of_another_form_makes_the_result_that_of_a_sum(bias: Tensor) -> None:
    conv = make()
    without = conv(features(), edges())
    conv.bias = nn.Parameter(bias)
    actual, expected = conv(features(), edges()), without + bias
    assert is_at_once(actual)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)
    actual.sum().backward()
    assert conv.bias.grad.shape == bias.shape
