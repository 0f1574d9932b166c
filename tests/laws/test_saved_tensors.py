"""For the backward pass a fused kernel keeps nothing of size edges x heads x features."""

import gc
from typing import Any
from weakref import ref

import pytest
import torch
from attention import by
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.dispatch import KERNELS, Kernel

N_NODES, N_EDGES, N_HEADS, N_HIDDEN, EDGE_DIM = 30, 700, 5, 7, 2


def largest_saved(kernel: Kernel, edge_dim: int | None) -> int:
    """Elements of the largest tensor that a layer keeps for its backward pass."""
    where: Any = by(kernel)
    layer = GraphAttentionV2Layer(
        3, N_HEADS * N_HIDDEN, N_HEADS, dropout=0.5, edge_dim=edge_dim, **where
    )
    pairs = torch.randperm(N_NODES**2)[:N_EDGES]
    edge_index = torch.stack((pairs // N_NODES, pairs % N_NODES))
    features = None if edge_dim is None else torch.randn(N_EDGES, edge_dim)
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(N_NODES, 3), edge_index, edge_features=features)
    return max(sizes)


@pytest.mark.parametrize("edge_dim", [None, EDGE_DIM])
def test_nothing_of_edges_heads_and_features(kernel: Kernel, edge_dim: int | None) -> None:
    largest = largest_saved(kernel, edge_dim)
    of_edges = N_EDGES * N_HEADS * N_HIDDEN
    if kernel.name == "torch":  # which the check sees
        assert largest >= of_edges
    else:
        assert largest < of_edges / 10


def test_a_result_keeps_no_graph_behind_its_backward_pass(kernel: Kernel) -> None:
    where: Any = by(kernel)
    layer = GraphAttentionV2Layer(3, N_HEADS * N_HIDDEN, N_HEADS, **where)
    mask = torch.rand(N_NODES, N_NODES, 1) < 0.3
    adj_mat = mask if kernel.backend == "dense" else Graph.from_mask(mask)
    tensor = ref(adj_mat.key_index if isinstance(adj_mat, Graph) else adj_mat)
    results = [layer(torch.randn(N_NODES, 3), adj_mat).square().sum() for _ in range(2)]
    del adj_mat, mask
    gc.collect()
    assert kernel.name == "torch" or tensor() is not None  # which backward will read
    torch.stack(results).sum().backward()
    gc.collect()
    assert tensor() is None


def test_there_are_fused_kernels() -> None:
    assert {kernel.backend for kernel in KERNELS if kernel.name != "torch"} == {"dense", "sparse"}
