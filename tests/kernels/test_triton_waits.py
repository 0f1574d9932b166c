"""A step of training over a prepared graph waits for nothing, so that a CUDA graph can hold it.

On the CPU, in a process that interprets the kernels, by the operations that are called; on a GPU by
PyTorch's own check, and by a CUDA graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from waits import Waits, watch

from gatv2 import GATv2, Graph, GraphAttentionV2Layer
from gatv2.random import as_seed
from gatv2.triton.support import IS_INTERPRETED

N_NODES, N_EDGES, D = 7, 45, 3
Step = Callable[[], tuple[Tensor, ...]]
"""Makes the gradients of all parameters."""

interpreted = pytest.mark.skipif(
    not IS_INTERPRETED, reason="needs a process with TRITON_INTERPRET=1: make test-triton"
)
on_gpu = pytest.mark.skipif(
    IS_INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU, and no interpreter"
)
every_step = [
    pytest.mark.parametrize("backend", ["sparse", "dense"]),
    pytest.mark.parametrize("make", [GraphAttentionV2Layer, GATv2], ids=lambda c: c.__name__),
    pytest.mark.parametrize("has_edges", [False, True], ids=["plain", "edges"]),
]


def for_every_step(test: Any) -> Any:
    """Have a test run over each backend, layer and model, with what edges may have and without."""
    for mark in every_step:
        test = mark(test)
    return test


def edge_index() -> Tensor:
    return torch.randint(N_NODES, (2, N_EDGES), generator=torch.Generator().manual_seed(0))


def prepared(backend: str, device: str) -> Graph | Tensor:
    """The graph as a backend reads it."""
    graph = Graph.from_edge_index(edge_index(), N_NODES)
    return (graph if backend == "sparse" else graph.coalesce().to_mask()).to(device)


def step_over(
    adj_mat: object, backend: str, make: Any, device: str = "cpu", *, has_edges: bool
) -> Step:
    """A step with dropout, after one that prepares what is kept with the graph."""
    sizes = (3, 4, 2) if make is GraphAttentionV2Layer else (3, 8, 4)
    options = {"backend": backend, "kernel": "triton", "edge_dim": D if has_edges else None}
    module: nn.Module = make(*sizes, dropout=0.5, **options, device=device)
    h = torch.randn(N_NODES, 3, device=device)
    shape = (N_EDGES,) if backend == "sparse" else (N_NODES, N_NODES)
    of_edges = {}
    if has_edges:
        of_edges = {
            "edge_features": torch.randn(*shape, D, device=device),
            "score_bias": torch.randn(*shape, 1, device=device, requires_grad=True),
        }

    def step() -> tuple[Tensor, ...]:
        loss = module(h, adj_mat, **of_edges).square().sum()
        leaves = (*module.parameters(), *(x for x in of_edges.values() if x.requires_grad))
        return torch.autograd.grad(loss, leaves)

    step()
    return step


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """What is waited for in the kernels' launchers, and within the fixture itself."""
    from gatv2.dense import triton_kernel as dense
    from gatv2.sparse import triton_kernel as sparse

    waits = Waits()
    for launchers in (sparse, dense):
        watch(waits, launchers, monkeypatch)
    return waits


def seen_in(step: Step, waits: Waits) -> list[str]:
    """What a step waits for."""
    waits.seen.clear()
    with waits:
        step()
    return waits.seen


@interpreted
@for_every_step
def test_a_prepared_step_waits_for_nothing(
    waits: Waits, backend: str, make: Any, has_edges: bool
) -> None:
    step = step_over(prepared(backend, "cpu"), backend, make, has_edges=has_edges)
    assert seen_in(step, waits) == []


@interpreted
def test_the_check_sees_an_edge_index_that_is_compared(waits: Waits) -> None:
    step = step_over(edge_index(), "sparse", GraphAttentionV2Layer, has_edges=False)
    assert seen_in(step, waits)


@interpreted
def test_the_check_sees_a_wait_within_a_kernel(
    waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gatv2.triton import launch

    run = launch.run

    def run_and_wait(*arguments: Any) -> None:
        torch.ones(1).item()
        run(*arguments)

    step = step_over(prepared("sparse", "cpu"), "sparse", GATv2, has_edges=False)
    monkeypatch.setattr(launch, "run", run_and_wait)
    assert set(seen_in(step, waits)) == {"aten::item"}


def test_an_int_as_a_seed_is_not_copied() -> None:
    waits = Waits()
    with waits:
        seed = as_seed(-3, torch.device("cpu"))
    assert (int(seed), waits.seen) == (-3, [])


@pytest.mark.parametrize(
    "work",
    [
        lambda x: float(x.sum()),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor(3),
        lambda x: torch.arange(5).repeat_interleave(torch.arange(5)),
        lambda x: x.to("meta"),
    ],
)
def test_the_check_sees(work: Callable[[Tensor], object]) -> None:
    waits = Waits()
    with waits:
        work(torch.ones(5))
    assert waits.seen


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """PyTorch's check of what waits for a GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@for_every_step
def test_a_prepared_step_waits_for_no_gpu(backend: str, make: Any, has_edges: bool) -> None:
    step = step_over(prepared(backend, "cuda"), backend, make, "cuda", has_edges=has_edges)
    with waiting_is_an_error():
        step()


@on_gpu
def test_pytorch_sees_an_edge_index_that_is_compared() -> None:
    step = step_over(edge_index().cuda(), "sparse", GraphAttentionV2Layer, "cuda", has_edges=False)
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchroniz"):
        step()


@on_gpu
@for_every_step
def test_a_cuda_graph_holds_a_step(backend: str, make: Any, has_edges: bool) -> None:
    """Each time that it runs it drops other coefficients."""
    step = step_over(prepared(backend, "cuda"), backend, make, "cuda", has_edges=has_edges)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = step()
    runs = []
    for _ in range(2):
        graph.replay()
        runs.append([gradient.clone() for gradient in gradients])
    assert all(gradient.isfinite().all() for run in runs for gradient in run)
    assert not all(map(torch.equal, *runs))
