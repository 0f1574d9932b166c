"""What is special to the Triton kernels, in a process that interprets them: parts and tiles.

`make test-triton` runs this file and tests/laws with TRITON_INTERPRET=1, which Triton reads once.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gatv2 import Graph, gatv2_attention
from gatv2.dispatch import KERNELS
from gatv2.testing import assert_agrees, value_and_gradients
from gatv2.triton.support import IS_INTERPRETED, unsupported

if not IS_INTERPRETED:
    pytest.skip(
        "needs a process with TRITON_INTERPRET=1: make test-triton", allow_module_level=True
    )

from benchmarks import gpu
from gatv2.triton import launch, passes
from gatv2.triton.shape import Tile, edge_tile, row_tile

N_QUERIES, N_KEYS, N_EDGES, D = 9, 7, 45, 3


def problem(
    n_heads: int = 2, n_hidden: int = 4, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    shapes = (N_QUERIES, n_heads, n_hidden), (N_KEYS, n_heads, n_hidden), (n_heads, n_hidden)
    features = [torch.randn(shape, dtype=dtype) for shape in shapes]
    projection = torch.randn(n_heads, n_hidden, D, dtype=dtype)
    return [*features, torch.randn(N_EDGES, D, dtype=dtype), projection]


def hub() -> Tensor:
    """Edges of which half are of one query, some of them parallel, and many of one key."""
    edge_index = torch.stack(
        (torch.randint(N_QUERIES, (N_EDGES,)), torch.randint(N_KEYS, (N_EDGES,)))
    )
    edge_index[0, ::2] = 3
    edge_index[1, ::3] = 5
    return edge_index


def outcome(
    inputs: list[Tensor], graph: Any, kernel: str, *, dropout: float = 0.3, backend: Any = "sparse"
) -> list[Tensor]:
    """Values, with coefficients, and the gradients of all inputs."""

    def attend(query: Tensor, key: Tensor, attn: Tensor, x: Tensor, projection: Tensor) -> Tensor:
        results = gatv2_attention(
            query,
            key,
            attn,
            graph,
            edge_features=x,
            edge_projection=projection,
            dropout=dropout,
            seed=-3,
            backend=backend,
            kernel=kernel,
            return_attention=True,
        )
        return torch.cat([result.flatten() for result in results])

    n_values = inputs[0].numel() + N_EDGES * inputs[0].shape[1]
    cotangent = torch.randn(n_values, generator=torch.Generator().manual_seed(1)).to(inputs[0])
    return value_and_gradients(attend, inputs, cotangent)


@pytest.mark.parametrize("split", [1, 4, 16, 1024])
def test_parts_of_rows_join_to_the_whole(split: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SPLIT", split)
    inputs, graph = problem(), Graph.from_edge_index(hub(), (N_QUERIES, N_KEYS))
    exact = outcome(inputs, graph, "torch")
    for result, e in zip(outcome(inputs, graph, "triton"), exact, strict=True):
        assert_agrees(result, e)


@pytest.mark.parametrize("size", [(2, 4), (3, 5), (1, 32)])
def test_tiles_of_the_gpu(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SPLIT", 1024)
    monkeypatch.setattr(launch, "row_tile", row_tile)
    monkeypatch.setattr(passes, "edge_tile", edge_tile)
    inputs, graph = problem(*size), Graph.from_edge_index(hub(), (N_QUERIES, N_KEYS))
    exact = outcome(inputs, graph, "torch")
    for result, e in zip(outcome(inputs, graph, "triton"), exact, strict=True):
        assert_agrees(result, e)


def test_the_same_bits_whatever_runs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every run; and in tiles of another height, to which no sum belongs but that of d_attn."""
    inputs = problem(dtype=torch.float32)
    graph = Graph.from_edge_index(hub(), (N_QUERIES, N_KEYS))
    monkeypatch.setattr(launch, "row_tile", lambda *_: Tile(4, 8, 1))
    first, again = (outcome(inputs, graph, "triton") for _ in range(2))
    assert all(map(torch.equal, first, again))
    monkeypatch.setattr(launch, "row_tile", lambda *_: Tile(16, 8, 1))
    other = outcome(inputs, graph, "triton")
    assert all(map(torch.equal, first[:3], other[:3]))


def test_the_benchmarks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path)])
    monkeypatch.setenv("MPLBACKEND", "agg")
    gpu.main()
    lines = (tmp_path / "gpu.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(("floor", "attention", "ours", "plain", "pyg"))
    assert (tmp_path / "gpu.png").stat().st_size > 0


def test_reasons() -> None:
    for kernel in KERNELS:
        if kernel.name == "triton":
            assert kernel.unsupported(torch.ones(1)) == []
            (reason,) = kernel.unsupported(torch.ones(1, dtype=torch.int64))
            assert "it computes in torch.float32" in reason
    (reason,) = unsupported(torch.device("cuda"))
    assert "interpreted here" in reason


@pytest.mark.parametrize(
    ("size", "dtype", "tile"),
    [
        ((8, 8), torch.float32, Tile(2, 8, 1)),
        ((4, 32), torch.float32, Tile(1, 8, 1)),
        ((1, 256), torch.float32, Tile(1, 8, 2)),
        ((8, 8), torch.bfloat16, Tile(4, 4, 1)),
        ((8, 8), torch.float64, Tile(1, 8, 1)),
        ((1, 1), torch.float32, Tile(128, 8, 1)),
        ((64, 128), torch.float32, Tile(1, 2, 16)),
    ],
)
def test_the_rule_of_tiles(size: tuple[int, int], dtype: torch.dtype, tile: Tile) -> None:
    assert row_tile(*size, dtype, launch.ONE_ROW) == tile
