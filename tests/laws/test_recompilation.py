"""A compiled layer serves graphs of every size without being compiled again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention import by
from torch import Tensor
from torch._dynamo.utils import counters

from gatv2 import GATv2, Graph, GraphAttentionV2Layer
from gatv2.dispatch import Kernel
from gatv2.testing import assert_agrees

SIZES = ((7, 20), (9, 33), (15, 7), (30, 100))
FORMS: dict[str, Callable[[Tensor, int], Any]] = {
    "edge index": lambda edge_index, n: edge_index,
    "graph": Graph.from_edge_index,
    "mask": lambda edge_index, n: Graph.from_edge_index(edge_index, n).coalesce().to_mask(),
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def n_compilations(module: torch.nn.Module, form: str) -> int:
    """How often a module is compiled for graphs of several sizes; its results are checked."""
    counters.clear()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for n_nodes, n_edges in SIZES:
        h = torch.randn(n_nodes, 3, dtype=torch.float64)
        adj_mat = FORMS[form](torch.randint(n_nodes, (2, n_edges)), n_nodes)
        cotangent = torch.randn(n_nodes, 4, dtype=torch.float64)
        results = []
        for function in (compiled, module):
            leaf = h.clone().requires_grad_()
            out = function(leaf, adj_mat)
            results.append((out, *torch.autograd.grad(out, leaf, cotangent)))
        for actual, expected in zip(*results, strict=True):
            assert_agrees(actual, expected)
    n_graphs: int = counters["stats"]["unique_graphs"]
    return n_graphs


def layer_of(kernel: Kernel) -> GraphAttentionV2Layer:
    where: Any = {**by(kernel), "dtype": torch.float64}
    return GraphAttentionV2Layer(3, 4, 2, **where).eval()


@pytest.mark.parametrize("form", FORMS)
def test_one_compilation_serves_all_sizes(kernel: Kernel, form: str) -> None:
    if (kernel.backend == "dense") != (form == "mask"):
        pytest.skip("the backend reads another form")
    assert n_compilations(layer_of(kernel), form) == 1


@pytest.mark.parametrize("form", FORMS)
def test_with_self_loops(form: str) -> None:
    backend: Any = "dense" if form == "mask" else "sparse"
    layer = GraphAttentionV2Layer(
        *(3, 4, 2), add_self_loops=True, residual=True, backend=backend, dtype=torch.float64
    ).eval()
    assert n_compilations(layer, form) == 1


def test_a_stack_of_layers() -> None:
    assert n_compilations(GATv2(3, 8, 4, n_heads=2, dtype=torch.float64).eval(), "edge index") == 1


def test_the_count_sees_a_compilation_for_each_size() -> None:
    class Branching(torch.nn.Module):
        def forward(self, h: Tensor, _adj_mat: Tensor) -> Tensor:
            return h.repeat(1, 2)[:, :4] * (2.0 if h.shape[0] > 8 else 3.0)

    assert n_compilations(Branching(), "edge index") == 2
