"""What is special to the Triton kernels, in a process that interprets them: parts, tiles, no waiting.

`make test-triton` runs this file and tests/laws with TRITON_INTERPRET=1, which Triton reads once.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatv2 import Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import KERNELS
from gatv2.testing import assert_agrees, value_and_gradients
from gatv2.triton.support import IS_INTERPRETED, unsupported

if not IS_INTERPRETED:
    pytest.skip(
        "needs a process with TRITON_INTERPRET=1: make test-triton", allow_module_level=True
    )

from benchmarks import gpu
from gatv2.sparse import triton_kernel
from gatv2.triton import launch
from gatv2.triton.shape import Tile, row_tile

N_QUERIES, N_KEYS, N_EDGES, D = 9, 7, 45, 3


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Whatever a test sets is set back."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SPLIT", "CHUNKS", "TILE"):
            patch.setattr(launch, name, getattr(launch, name))
        yield


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
def test_parts_of_rows_join_to_the_whole(split: int) -> None:
    launch.SPLIT, inputs, graph = (
        split,
        problem(),
        Graph.from_edge_index(hub(), (N_QUERIES, N_KEYS)),
    )
    exact = outcome(inputs, graph, "torch")
    for result, e in zip(outcome(inputs, graph, "triton"), exact, strict=True):
        assert_agrees(result, e)


@pytest.mark.parametrize("size", [(2, 4), (3, 5), (1, 32)])
def test_tiles_of_the_gpu(size: tuple[int, int]) -> None:
    launch.TILE, launch.SPLIT = None, 1024
    inputs, graph = problem(*size), Graph.from_edge_index(hub(), (N_QUERIES, N_KEYS))
    exact = outcome(inputs, graph, "torch")
    for result, e in zip(outcome(inputs, graph, "triton"), exact, strict=True):
        assert_agrees(result, e)


def test_the_same_bits_whatever_runs_first() -> None:
    """In every run; and in tiles of another height, to which no sum belongs but that of d_attn."""
    inputs = problem(dtype=torch.float32)
    graph = Graph.from_edge_index(hub(), (N_QUERIES, N_KEYS))
    launch.TILE = Tile(4, 8, 1)
    first, again = (outcome(inputs, graph, "triton") for _ in range(2))
    assert all(map(torch.equal, first, again))
    launch.TILE = Tile(16, 8, 1)
    other = outcome(inputs, graph, "triton")
    assert all(map(torch.equal, first[:3], other[:3]))


def test_the_benchmarks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path)])
    monkeypatch.setenv("MPLBACKEND", "agg")
    gpu.main()
    lines = (tmp_path / "gpu.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(("floor", "attention", "ours", "plain", "pyg"))
    assert (tmp_path / "gpu.png").stat().st_size > 0


WAITS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::_unique2",
}


class Waits(TorchDispatchMode):
    """Collects operations for which a process would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function._schema.name
        kwargs = kwargs or {}
        is_moved = kwargs.get("device") not in (None, torch.device("cpu"))
        if name in WAITS or (name == "aten::_to_copy" and is_moved):
            self.seen.append(name)
        return function(*args, **kwargs)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """What a step waits for, our kernels' launchers included, which a mode does not see into."""
    waits = Waits()

    def watched(launcher: Callable[..., Any]) -> Callable[..., Any]:
        def launch(*arguments: Any) -> Any:
            with waits:
                return launcher(*arguments)

        return launch

    for name in ("forward", "backward"):
        monkeypatch.setattr(triton_kernel, name, watched(getattr(triton_kernel, name)))
    return waits


def step(edges: Any, waits: Waits) -> None:
    """A step of training, after one that prepares what is kept with the graph."""
    layer = GraphAttentionV2Layer(
        3, 4, 2, dropout=0.5, backend="sparse", kernel="triton", edge_dim=D
    )
    h, x = torch.randn(N_KEYS, 3), torch.randn(N_EDGES, D)
    layer(h, edges, edge_features=x).sum().backward()
    waits.seen.clear()
    with waits:
        layer(h, edges, edge_features=x).sum().backward()


def test_a_prepared_step_waits_for_nothing(waits: Waits) -> None:
    edge_index = torch.randint(N_KEYS, (2, N_EDGES))
    step(Graph.from_edge_index(edge_index, N_KEYS), waits)
    assert waits.seen == []
    step(edge_index, waits)
    assert waits.seen  # it is compared with the edges that are kept


def test_the_check_sees_a_wait_within_a_kernel(
    waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch.run

    def run_and_wait(*arguments: Any) -> None:
        torch.ones(1).item()
        run(*arguments)

    monkeypatch.setattr(launch, "run", run_and_wait)
    step(Graph.from_edge_index(torch.randint(N_KEYS, (2, N_EDGES)), N_KEYS), waits)
    assert set(waits.seen) == {"aten::item"}


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
