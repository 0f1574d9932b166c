"""Importing gatv2 is light: optional and heavy libraries are imported where they are used."""

import subprocess
import sys

import pytest

import gatv2

HEAVY = ("jax", "numba", "scipy", "torch_geometric", "sklearn", "matplotlib", "hypothesis")


def imported_by(code: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has imported after running `code`."""
    check = f"import sys\n{code}\nprint(*(m for m in {HEAVY} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", check], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_import_is_light() -> None:
    assert imported_by("import gatv2") == set()


def test_the_check_sees_what_is_imported() -> None:
    assert "scipy" in imported_by("import gatv2, gatv2.ranking")


WITHOUT_DISTRIBUTED = """
import torch, torch._dynamo
import torch.distributed as dist
for name in ("ProcessGroup", "group", "all_to_all_single", "is_initialized", "get_rank"):
    delattr(dist, name)
dist.is_available = lambda: False
from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.distributed import Partition
graph = Graph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3)
(partition,) = Partition.split(graph, 1)
GraphAttentionV2Layer(3, 4, 2)(torch.randn(3, 3), partition).backward(torch.randn(3, 4))
try:
    Partition.from_graph(graph)
except RuntimeError as error:
    print(error)
"""


def test_pytorch_may_be_built_without_torch_distributed() -> None:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_DISTRIBUTED]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("torch.distributed is not initialized")


def test_public_names() -> None:
    assert gatv2.__all__ == [
        "GATv2",
        "Graph",
        "GraphAttentionLayer",
        "GraphAttentionV2Layer",
        "gatv2_attention",
        "select_kernel",
    ]
    for name in gatv2.__all__:
        assert getattr(gatv2, name).__doc__


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError):
        _ = gatv2.nothing  # type: ignore[attr-defined]
