"""Edge features and a bias of the scores under transforms, the compiler and autocast."""

from typing import Any

import pytest
import torch
from attention import as_vector, attention_over, by
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.dispatch import KERNELS, Kernel
from gatv2.testing import assert_agrees

EDGE_INDEX = torch.tensor([[0, 3, 0, 1, 1, 3, 3, 0], [3, 0, 0, 2, 2, 1, 2, 1]])  # 2 has no keys
MASK = torch.zeros(5, 4, 1, dtype=torch.bool).index_put((*EDGE_INDEX,), torch.tensor(True))


def function_of(kernel: Kernel) -> Any:
    """Attention, with coefficients and dropout, as a function of all six tensors."""
    adj_mat = Graph.from_edge_index(EDGE_INDEX, (5, 4)) if kernel.backend == "sparse" else MASK
    options = {"dropout": 0.4, "seed": 11, "return_attention": True}
    return as_vector(attention_over(adj_mat, **by(kernel), **options))


def tensors_of(kernel: Kernel, *batch_shape: int) -> list[Tensor]:
    """Query, key, attn, edge features and their projection, a bias of the scores."""
    edges = (EDGE_INDEX.shape[1],) if kernel.backend == "sparse" else (5, 4)
    of_nodes = ((*batch_shape, 5, 2, 3), (*batch_shape, 4, 2, 3), (2, 3))
    shapes = (*of_nodes, (*edges, 3), (2, 3, 3), (*edges, 2))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def test_gradcheck(kernel: Kernel) -> None:
    is_interpreted = kernel.name == "triton"  # where each evaluation of a graph takes a while
    leaves = [x.requires_grad_() for x in tensors_of(kernel, *([] if is_interpreted else [2]))]
    assert torch.autograd.gradcheck(function_of(kernel), leaves, fast_mode=is_interpreted)
    assert torch.autograd.gradgradcheck(
        function_of(kernel), leaves, fast_mode=True, check_undefined_grad=not is_interpreted
    )


REFERENCES = {kernel.backend: kernel for kernel in KERNELS if kernel.name == "torch"}


def test_jacobians(kernel: Kernel) -> None:
    tensors, argnums = tensors_of(kernel), (0, 1, 2, 3, 4, 5)
    step = 7 if kernel.name == "triton" else 1  # interpreted, each row takes a while

    def some_results(kernel: Kernel) -> Any:
        function = function_of(kernel)
        return lambda *x: function(*x)[::step]

    actual = jacrev(some_results(kernel), argnums=argnums)(*tensors)
    exact = jacfwd(some_results(REFERENCES[kernel.backend]), argnums=argnums)(*tensors)
    for a, e in zip(actual, exact, strict=True):
        assert_agrees(a, e)


@pytest.mark.parametrize(
    "in_dims", [(0, None, None, None, None, None), (None, None, None, 0, None, None),
                (0, 0, 0, 0, 0, 0), (None, None, None, 1, 2, 1), (0, None, None, None, None, 0)],
)  # fmt: skip
def test_vmap(kernel: Kernel, in_dims: tuple[int | None, ...]) -> None:
    """Of values, of gradients sample by sample, and of gradients of the whole."""
    tensors = [
        x if dim is None else torch.randn(*x.shape[:dim], 3, *x.shape[dim:], dtype=x.dtype)
        for x, dim in zip(tensors_of(kernel), in_dims, strict=True)
    ]
    argnums = (0, 1, 2, 3, 4, 5)

    def results(kernel: Kernel) -> list[Tensor]:
        function = function_of(kernel)
        return [
            vmap(function, in_dims)(*tensors),
            *vmap(grad(lambda *x: function(*x).square().sum(), argnums), in_dims)(*tensors),
            *grad(lambda *x: vmap(function, in_dims)(*x).square().sum(), argnums)(*tensors),
        ]

    for actual, exact in zip(results(kernel), results(REFERENCES[kernel.backend]), strict=True):
        assert_agrees(actual, exact)


def auto(backend: Any, edge_dim: int = 3) -> GraphAttentionV2Layer:
    return GraphAttentionV2Layer(
        3, 4, 2, edge_dim=edge_dim, dropout=0.3, backend=backend, dtype=torch.float64
    )


@pytest.fixture(params=["dense", "sparse"])
def backend(request: pytest.FixtureRequest) -> Any:
    """Both backends in turn."""
    return request.param


def layer_inputs(backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of nodes, a graph that can be traced, edge features, a bias for all heads."""
    h = torch.randn(5, 3, dtype=torch.float64)
    adj_mat = MASK.new_ones(5, 5, 1) if backend == "dense" else EDGE_INDEX
    edges = (5, 5) if backend == "dense" else (8,)
    x, bias = (torch.randn(*edges, size, dtype=torch.float64) for size in (3, 1))
    return h, adj_mat, x, bias


def test_second_order_and_forward_mode(backend: str) -> None:
    layer, (h, adj_mat, x, bias) = auto(backend), layer_inputs(backend)
    parameters: dict[str, Any] = dict(layer.named_parameters())

    def loss(x: Tensor, bias: Tensor) -> Tensor:
        of_edges = {"edge_features": x, "score_bias": bias, "seed": 1}
        out = functional_call(layer, parameters, (h, adj_mat), of_edges)
        return torch.as_tensor(out.tanh().square().sum())

    for i, given in enumerate((x, bias)):
        second = hessian(loss, argnums=i)(x, bias)
        assert second.abs().max() > 0
        assert_agrees(second, jacrev(jacrev(loss, argnums=i), argnums=i)(x, bias))
        tangents = [torch.zeros_like(x), torch.zeros_like(bias)]
        tangents[i] = torch.randn_like(given)
        derivative = jvp(loss, (x, bias), tuple(tangents))[1]
        assert_agrees(derivative, (grad(loss, argnums=i)(x, bias) * tangents[i]).sum())


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend: str, dynamic: bool) -> None:
    layer, (h, adj_mat, *of_edges) = auto(backend), layer_inputs(backend)
    cotangent = torch.randn(5, 4, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for function in (compiled, layer):
        x, bias = leaves = [x.clone().requires_grad_() for x in of_edges]
        out = function(h, adj_mat, edge_features=x, score_bias=bias, seed=1)
        results.append((out, *torch.autograd.grad(out, (*leaves, *layer.parameters()), cotangent)))
    for actual, exact in zip(*results, strict=True):
        assert_agrees(actual, exact)


def test_export(backend: str) -> None:
    layer, (h, adj_mat, x, bias) = auto(backend).eval(), layer_inputs(backend)
    of_edges: dict[str, Any] = {"edge_features": x, "score_bias": bias}
    program: Any = torch.export.export(layer, (h, adj_mat), of_edges)
    names = {str(node.target) for node in program.graph.nodes}
    assert f"gatv2.{backend}_attention.default" in names
    actual = program.module()(h, adj_mat, **of_edges)
    assert_agrees(actual, layer(h, adj_mat, **of_edges))


def test_no_gradient_for_features_that_want_none(kernel: Kernel) -> None:
    """Then the projection gets the same, and so it does when differentiated twice."""
    results = []
    for needs in (False, True):
        torch.manual_seed(0)
        *tensors, x, projection, bias = tensors_of(kernel, 2)
        x.requires_grad_(needs)
        bias.requires_grad_(needs)
        leaves = [y.requires_grad_() for y in (*tensors, projection)]
        out = function_of(kernel)(*tensors, x, projection, bias)
        once = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        penalty = torch.stack([y.square().sum() for y in once]).sum()
        results.append((*once, *torch.autograd.grad(penalty, leaves)))
    for actual, exact in zip(*results, strict=True):
        assert_agrees(actual, exact)


def test_autocast(backend: str) -> None:
    layer, (h, adj_mat, *given) = auto(backend).float().eval(), layer_inputs(backend)
    x, bias = (x.float() for x in given)
    exact = layer(h.float(), adj_mat, edge_features=x, score_bias=bias)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            out = layer(h.float(), adj_mat, edge_features=x, score_bias=bias)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
