"""What travels is what the halo needs, counted in bytes, and while it travels there is work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer, functional
from gatv2.distributed import Partition

N_PROCESSES = 3
N_HEADS, N_HIDDEN = 2, 5


@contextmanager
def watched() -> Iterator[list[Any]]:
    """What happens meanwhile: exchanges with bytes sent and received, waits, and attention."""
    events: list[Any] = []
    exchange, attend = dist.all_to_all_single, functional.attend

    class Work:
        def __init__(self, work: Any) -> None:
            self.work = work

        def wait(self) -> None:
            events.append("wait")
            self.work.wait()

    def n_bytes(rows: Tensor, counts: list[int]) -> int:
        pieces = list(rows.split(counts))
        del pieces[dist.get_rank()]  # what a process keeps is not sent
        return sum(piece.numel() * piece.element_size() for piece in pieces)

    def spy(output: Tensor, rows: Tensor, out_counts: Any, counts: Any, **options: Any) -> Any:
        events.append(("exchange", n_bytes(rows, counts), n_bytes(output, out_counts)))
        return Work(exchange(output, rows, out_counts, counts, **options))

    def noted(query: Tensor, key: Tensor, *arguments: Any, **options: Any) -> Any:
        events.append("attention")
        if key.requires_grad:
            key = key.clone()
            key.register_hook(lambda _: events.append("gradient"))
        return attend(query, key, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", spy)
        patch.setattr(functional, "attend", noted)
        yield events


def exchanges(rank: int) -> list[tuple[Partition, torch.dtype, list[Any], list[Any]]]:
    """What happens in a forward and in a backward pass, on some graphs and in some dtypes."""
    generator = torch.Generator().manual_seed(0)
    node = torch.arange(30)
    edges = torch.randint(30, (2, 90), generator=generator)
    graphs = [
        Graph.from_edge_index(edges, 30),
        Graph.from_edge_index(edges.cumsum(1) % 30, 30),
        Graph.from_edge_index(torch.stack((node, node)), 30),  # nothing is sent
        Graph.from_edge_index(torch.stack((node, node % 10)), 30),  # rank 0 only sends
    ]
    results = []
    torch.manual_seed(0)
    for graph in graphs:
        partition = Partition.from_graph(graph)
        for dtype in (torch.float64, torch.bfloat16):
            layer = GraphAttentionV2Layer(4, N_HEADS * N_HIDDEN, N_HEADS, dtype=dtype)
            h = torch.randn(30, 4, dtype=dtype)[partition.own]
            with watched() as events:
                out = layer(h, partition)
                forward = events.copy()
                out.backward(out.detach())
            results.append((partition, dtype, forward, events[len(forward) :]))
    return results


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    if not dist.is_gloo_available():
        pytest.skip("PyTorch was built without gloo")
    return run_processes(exchanges, N_PROCESSES, tmp_path_factory.mktemp("exchange"))


def test_bytes_are_those_of_the_halo(of_ranks: dict[int, Any]) -> None:
    """A row of each head for each node that is sent or fetched, and their gradients the other way."""
    for results in of_ranks.values():
        for partition, dtype, forward, backward in results:
            row = N_HEADS * N_HIDDEN * dtype.itemsize
            sent, fetched = len(partition.sent) * row, len(partition.halo) * row
            assert forward[0] == ("exchange", sent, fetched)
            assert backward[1] == ("exchange", fetched, sent)
    counts = [len(results[0][0].sent) for results in of_ranks.values()]
    assert min(counts) > 0


def names_of(events: list[Any]) -> list[str]:
    return [event if isinstance(event, str) else event[0] for event in events]


def test_there_is_work_while_rows_travel(of_ranks: dict[int, Any]) -> None:
    """Local keys are attended to between an exchange's begin and its end, forward and backward."""
    for results in of_ranks.values():
        for _, _, forward, backward in results:
            assert names_of(forward) == ["exchange", "attention", "wait", "attention"]
            assert names_of(backward) == ["gradient", "exchange", "gradient", "wait"]
