"""Gradients are those of finite differences, in float64, for every input."""

from typing import Any

import pytest
import torch
from attention import attention_over, by
from runnable import RUNNABLE
from torch import Tensor

from gatv2 import Graph
from gatv2.dispatch import Kernel
from gatv2.functional import gat_attention

EDGE_INDEX = torch.tensor([[0, 0, 0, 1, 1, 3, 3, 3, 3], [0, 1, 3, 2, 2, 0, 1, 2, 3]])
GRAPH = Graph.from_edge_index(EDGE_INDEX, (5, 4))  # query 2 and query 4 have no keys


def inputs(n_vectors: int) -> list[Tensor]:
    shapes = [(5, 2, 3), (4, 2, 3), *[(2, 3)] * n_vectors]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kernel", RUNNABLE, ids=lambda kernel: f"{kernel.backend}-{kernel.name}")
def test_gatv2(kernel: Kernel, dropout: float) -> None:
    graph = GRAPH if kernel.backend == "sparse" else GRAPH.coalesce()
    options = {"dropout": dropout, "seed": 11, "return_attention": True}
    attend = attention_over(graph, **by(kernel), **options)
    # interpreted, there is time for one direction of all inputs
    assert torch.autograd.gradcheck(attend, inputs(1), fast_mode=kernel.name == "triton")


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_gatv2_second_order(backend: Any) -> None:
    attend = attention_over(GRAPH.coalesce(), backend=backend)
    assert torch.autograd.gradgradcheck(attend, inputs(1))


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_gat(backend: Any) -> None:
    def attend(query: Tensor, key: Tensor, attn_query: Tensor, attn_key: Tensor) -> Tensor:
        return gat_attention(query, key, attn_query, attn_key, GRAPH.coalesce(), backend=backend)

    assert torch.autograd.gradcheck(attend, inputs(2))
