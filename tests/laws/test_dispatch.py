"""Which kernel is taken: the first that has nothing against it, and an explicit choice or an error."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from gatv2 import Graph, GraphAttentionV2Layer, dispatch, select_kernel
from gatv2.dispatch import KERNELS, Kernel

QUERY, ATTN = torch.randn(3, 2, 4), torch.randn(2, 4)
GRAPH = Graph.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
ADJACENCY: dict[str, Any] = {"sparse": GRAPH, "dense": GRAPH.to_mask()}


def test_every_backend_has_a_kernel_that_serves_every_call() -> None:
    for backend in ("dense", "sparse"):
        (plain,) = [k for k in KERNELS if (k.backend, k.name) == (backend, "torch")]
        assert plain.unsupported(QUERY.to("meta"), QUERY, ATTN) == []


def test_auto_takes_the_first_and_says_why_not_another(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = [kernel for kernel in KERNELS if kernel.backend == "sparse"]
    unable = replace(first, name="unable", unsupported=lambda *_: ["it is a test"])
    monkeypatch.setattr(dispatch, "KERNELS", (unable, first, *rest))
    selection = select_kernel(QUERY, QUERY, ATTN, GRAPH)
    assert selection.kernel is first
    assert selection.rejected == {"unable": ["it is a test"]}
    text = "kernel='unable' can't serve this call: it is a test. kernel='torch' serves every call"
    with pytest.raises(ValueError, match=re.escape(text)):
        select_kernel(QUERY, QUERY, ATTN, GRAPH, kernel="unable")


@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_auto_takes_the_fused_kernel_of_a_device(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = tuple(
        replace(kernel, unsupported=lambda *_: []) if kernel.name == "triton" else kernel
        for kernel in KERNELS
    )
    monkeypatch.setattr(dispatch, "KERNELS", kernels)
    on_device, on_cpu = QUERY.to("meta"), ADJACENCY[backend]
    selection = select_kernel(on_device, on_device, ATTN.to("meta"), on_cpu)
    assert (selection.kernel.name, list(selection.rejected)) == ("triton", ["numba"])
    assert select_kernel(QUERY, QUERY, ATTN, on_cpu).kernel.name == "numba"


def test_an_explicit_choice_is_taken(kernel: Kernel) -> None:
    selection = select_kernel(QUERY, QUERY, ATTN, ADJACENCY[kernel.backend], kernel=kernel.name)
    assert selection.kernel == kernel
    assert selection.rejected == {}


def test_forward_mode_is_served_by_auto_and_refused_by_name() -> None:
    layer = GraphAttentionV2Layer(4, 6, 2, kernel="auto")
    explicit = GraphAttentionV2Layer(4, 6, 2, kernel="numba")
    h = torch.randn(3, 4)
    edge_index = GRAPH.edge_index
    tangent = torch.func.jvp(lambda h: layer(h, edge_index, seed=1), (h,), (h,))[1]
    assert tangent.abs().max() > 0
    with pytest.raises(ValueError, match="it has no forward-mode derivative"):
        torch.func.jvp(lambda h: explicit(h, edge_index, seed=1), (h,), (h,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(h, torch.ones_like(h))
        assert forward_ad.unpack_dual(layer(dual, edge_index, seed=1)).tangent is not None
        with pytest.raises(ValueError, match="it has no forward-mode derivative"):
            explicit(dual, edge_index, seed=1)


def test_without_numba() -> None:
    """Then "auto" takes plain PyTorch, "numba" says why it can't, and graphs are prepared as well."""
    code = """
import sys
sys.modules["numba"] = None  # what an interpreter without Numba does on import
import torch
from gatv2 import GraphAttentionV2Layer
h, edge_index = torch.randn(3, 4), torch.tensor([[0, 1, 2], [1, 2, 0]])
print(GraphAttentionV2Layer(4, 6, 2)(h, edge_index).shape)
try:
    GraphAttentionV2Layer(4, 6, 2, kernel="numba")(h, edge_index)
except ValueError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[0] == "torch.Size([3, 6])"
    assert "kernel='numba' can't serve this call: Numba can't be used" in result.stdout


def test_without_compilation() -> None:
    """`NUMBA_DISABLE_JIT=1` leaves Numba's kernels nothing to run."""
    code = """
import torch
from gatv2 import GraphAttentionV2Layer
h, edge_index = torch.randn(3, 4), torch.tensor([[0, 1, 2], [1, 2, 0]])
print(GraphAttentionV2Layer(4, 6, 2)(h, edge_index).shape)
try:
    GraphAttentionV2Layer(4, 6, 2, kernel="numba")(h, edge_index)
except ValueError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[0] == "torch.Size([3, 6])"
    assert "Numba can't be used: NUMBA_DISABLE_JIT is set" in result.stdout
