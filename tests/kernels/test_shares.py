"""What chunks add to gradients that all edges share is summed, and nothing else is written to."""

from typing import Any

import numpy as np
import pytest
import torch

from gatv2 import Graph, gatv2_attention

pytest.importorskip("numba")

from gatv2.numba import gradients as kernels
from gatv2.numba import threads
from gatv2.numba.memory import Array

N_NODES, N_EDGES, N_HEADS, N_HIDDEN, N_EDGE_FEATURES = 20, 300, 4, 6, 3
_AROUND = 4096


def assert_untouched(memories: list[Array]) -> None:
    for memory in memories:
        assert (memory[:_AROUND] == 7).all()
        assert (memory[-_AROUND:] == 7).all()


def test_a_number_behind_is_seen() -> None:
    memory = np.full(2 * _AROUND + 1, 7.0)
    assert_untouched([memory])
    memory[_AROUND + 1] = 0
    with pytest.raises(AssertionError):
        assert_untouched([memory])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (2,), (0,), (0, 2)])
@pytest.mark.parametrize("has_edge_features", [False, True])
@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_sums(
    backend: Any,
    has_edge_features: bool,
    batch: tuple[int, ...],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memories: list[Array] = []

    def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
        size = int(np.prod(shape))
        memory = np.full(size + 2 * _AROUND, 7, dtype)
        memories.append(memory)
        memory[_AROUND : _AROUND + size] = 0
        return memory[_AROUND : _AROUND + size].reshape(shape)

    monkeypatch.setattr(kernels, "zeros", zeros)
    monkeypatch.setattr(threads, "_CHUNK_WORK", 1 << 11)
    torch.manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    edge_index = torch.randperm(N_NODES**2)[:N_EDGES]
    graph = Graph.from_edge_index(
        torch.stack((edge_index // N_NODES, edge_index % N_NODES)), N_NODES
    )
    query, key = (randn(*batch, N_NODES, N_HEADS, N_HIDDEN) for _ in range(2))
    attn = randn(N_HEADS, N_HIDDEN)
    edges: dict[str, Any] = {}
    if has_edge_features:
        edges["edge_features"] = randn(*batch, N_EDGES, N_EDGE_FEATURES)
        edges["edge_projection"] = randn(N_HEADS, N_HIDDEN, N_EDGE_FEATURES)
    inputs = [query, key, attn, *edges.values()]
    found = []
    for kernel in ("numba", "torch"):
        out = gatv2_attention(query, key, attn, graph, backend=backend, kernel=kernel, **edges)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        found.append(torch.autograd.grad(out, inputs, cotangent))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
    assert len(memories) == 1 + has_edge_features
    assert_untouched(memories)
