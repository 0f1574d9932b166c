"""PyTorch's function transforms, compiler and exporter, for every form of a graph and each kernel."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from runnable import RUNNABLE
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from gatv2 import Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.testing import assert_agrees

N_NODES = 7
MASK = torch.rand(N_NODES, N_NODES, 1, generator=torch.Generator().manual_seed(2)) < 0.4
EDGE_INDEX = MASK.squeeze(-1).nonzero().T
FORMS = {
    "mask": MASK,
    "edge index": EDGE_INDEX,
    "graph": Graph.from_edge_index(EDGE_INDEX, N_NODES),
}
OWN: dict[str, Callable[..., Any]] = {"GATv2": GraphAttentionV2Layer, "GAT": GraphAttentionLayer}
LAYERS = OWN | {
    name: partial(GraphAttentionV2Layer, kernel=name)
    for name in dict.fromkeys(kernel.name for kernel in RUNNABLE)
    if name.startswith("jax")
}


@pytest.fixture(params=list(FORMS.values()), ids=list(FORMS))
def adj_mat(request: pytest.FixtureRequest) -> Any:
    """Forms of one graph in turn."""
    return request.param


@pytest.fixture(params=OWN)
def own_layer(request: pytest.FixtureRequest) -> Any:
    """Both layers in turn, in training, by kernels of PyTorch."""
    return LAYERS[request.param](3, 4, 2, dropout=0.4, dtype=torch.float64)


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Any:
    """The same, and GATv2 by kernels of JAX where they stand beside those of PyTorch."""
    return LAYERS[request.param](3, 4, 2, dropout=0.4, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.fixture
def h() -> Tensor:
    """Features of nodes."""
    return torch.randn(N_NODES, 3, dtype=torch.float64)


def loss_of(layer: Any, adj_mat: Any, weights: Tensor) -> Callable[..., Tensor]:
    """A scalar function of features and parameters, with dropout on."""

    def loss(h: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(layer, parameters, (h, adj_mat), {"seed": 1})
        return (out.tanh() * weights).sum()

    return loss


def test_grad_is_backward(layer: Any, adj_mat: Any, h: Tensor) -> None:
    weights = torch.randn(N_NODES, 4, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    loss = loss_of(layer, adj_mat, weights)
    of_h, of_parameters = grad(loss, argnums=(0, 1))(h, parameters)
    leaf = h.clone().requires_grad_()
    loss(leaf, parameters).backward()
    assert leaf.grad is not None
    assert_agrees(of_h, leaf.grad)
    for name, parameter in parameters.items():
        assert_agrees(of_parameters[name], parameter.grad)


def test_vmap_over_features(layer: Any, adj_mat: Any) -> None:
    features = torch.randn(3, N_NODES, 3, dtype=torch.float64)
    together = vmap(lambda h: layer(h, adj_mat, seed=1))(features)
    for h, out in zip(features, together, strict=True):
        assert_agrees(out, layer(h, adj_mat, seed=1))


def test_vmap_draws_as_it_is_told(own_layer: Any, adj_mat: Any, h: Tensor) -> None:
    features = h.expand(3, -1, -1)
    for randomness, is_same in (("same", True), ("different", False)):
        outs = vmap(lambda h: own_layer(h, adj_mat), randomness=randomness)(features)
        assert torch.equal(outs[0], outs[1]) == is_same


def test_vmap_over_an_ensemble(layer: Any, adj_mat: Any, h: Tensor) -> None:
    members = [copy.deepcopy(layer) for _ in range(3)]
    for member in members:
        member.reset_parameters()
    stacked, _ = torch.func.stack_module_state(members)
    outs = vmap(lambda p: functional_call(layer, p, (h, adj_mat), {"seed": 1}))(stacked)
    for member, out in zip(members, outs, strict=True):
        assert_agrees(out, member(h, adj_mat, seed=1))


def test_vmap_over_masks(own_layer: Any, h: Tensor) -> None:
    masks = torch.stack((MASK, ~MASK))
    outs = vmap(lambda mask: own_layer(h, mask, seed=1))(masks)
    for mask, out in zip(masks, outs, strict=True):
        assert_agrees(out, own_layer(h, mask, seed=1))


def test_vmap_of_grad(layer: Any, adj_mat: Any) -> None:
    features = torch.randn(3, N_NODES, 3, dtype=torch.float64)
    weights = torch.randn(N_NODES, 4, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    gradient = grad(loss_of(layer, adj_mat, weights))
    together = vmap(lambda h: gradient(h, parameters))(features)
    for h, of_h in zip(features, together, strict=True):
        assert_agrees(of_h, gradient(h, parameters))


def test_forward_and_reverse_jacobians_agree(layer: Any, adj_mat: Any, h: Tensor) -> None:
    def function(h: Tensor) -> Tensor:
        out: Tensor = layer(h, adj_mat, seed=1)
        return out

    reverse = jacrev(function)(h)
    assert_agrees(jacfwd(function)(h), reverse)
    tangent = torch.randn_like(h)
    out_tangent = jvp(function, (h,), (tangent,))[1]
    assert_agrees(out_tangent, torch.einsum("abij,ij->ab", reverse, tangent))


def test_hessian(layer: Any, adj_mat: Any, h: Tensor) -> None:
    weights = torch.randn(N_NODES, 4, dtype=torch.float64)
    loss, parameters = loss_of(layer, adj_mat, weights), dict(layer.named_parameters())
    second = hessian(loss)(h, parameters)
    assert second.abs().max() > 0
    twice_reverse = jacrev(jacrev(loss))(h, parameters)
    assert_agrees(second, twice_reverse)


def test_a_graph_prepared_inside_a_transform_serves_outside(own_layer: Any, h: Tensor) -> None:
    edge_index = EDGE_INDEX.clone()  # not prepared yet
    jacobian = jacrev(jacrev(lambda h: own_layer(h, edge_index, seed=1).sum()))
    assert_agrees(jacobian(h), jacobian(h))
    assert_agrees(own_layer(h, edge_index, seed=1), own_layer(h, EDGE_INDEX, seed=1))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(own_layer: Any, adj_mat: Any, h: Tensor, dynamic: bool) -> None:
    """Without a break in the graph, values and gradients."""
    cotangent = torch.randn(N_NODES, 4, dtype=torch.float64)
    compiled = torch.compile(own_layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for function in (compiled, own_layer):
        leaf = h.clone().requires_grad_()
        out = function(leaf, adj_mat, seed=1)
        results.append((out, *torch.autograd.grad(out, (leaf, *own_layer.parameters()), cotangent)))
    for actual, expected in zip(*results, strict=True):
        assert_agrees(actual, expected)


def test_compile_draws_seeds(own_layer: Any, adj_mat: Any, h: Tensor) -> None:
    compiled: Any = torch.compile(own_layer, fullgraph=True, backend="aot_eager")
    assert not torch.equal(compiled(h, adj_mat), compiled(h, adj_mat))


@pytest.mark.parametrize("form", ["mask", "edge index"])
def test_export(own_layer: Any, form: str, h: Tensor) -> None:
    own_layer.eval()
    program: Any = torch.export.export(own_layer, (h, FORMS[form]))
    assert_agrees(program.module()(h, FORMS[form]), own_layer(h, FORMS[form]))


def test_autocast(layer: Any, adj_mat: Any, h: Tensor) -> None:
    layer.float().eval()
    exact = layer(h.float(), adj_mat)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            out = layer(h.float(), adj_mat)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)


def test_checkpoint_drops_the_same_edges_twice(layer: Any, adj_mat: Any, h: Tensor) -> None:
    cotangent = torch.randn(N_NODES, 4, dtype=torch.float64)
    results = []
    for call in (layer, torch.utils.checkpoint.checkpoint):
        torch.manual_seed(3)
        leaf = h.clone().requires_grad_()
        out = (
            call(leaf, adj_mat)
            if call is layer
            else call(layer, leaf, adj_mat, use_reentrant=False)
        )
        results.append((out, *torch.autograd.grad(out, leaf, cotangent)))
    for actual, expected in zip(*results, strict=True):
        assert_agrees(actual, expected)
