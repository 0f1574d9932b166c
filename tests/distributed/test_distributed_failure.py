"""A process that dies, or stops, ends the others with an error, and soon."""

import datetime
import os
import signal
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch.nn.parallel import DistributedDataParallel

from gatv2 import GATv2, Graph
from gatv2.distributed import Partition

N_PROCESSES = 3
LOST = 1
TIMEOUT = 10  # seconds
needs_gloo = pytest.mark.skipif(
    not dist.is_gloo_available(), reason="PyTorch was built without gloo"
)


def train(group: Any, epochs: Iterable[int], in_the_middle: Callable[[int], object]) -> None:
    """Train on the processes of a group."""
    torch.manual_seed(0)
    graph = Graph.from_edge_index(torch.randint(60, (2, 400)), 60)
    partition = Partition.from_graph(graph, group)
    model = DistributedDataParallel(GATv2(4, 8, 3, n_heads=2), process_group=group)
    h = torch.randn(60, 4)[partition.own]
    for epoch in epochs:
        out = model(h, partition)
        in_the_middle(epoch)
        out.square().sum().backward()


def train_until(rank: int, path: Path, signal_number: int, timeout: float) -> tuple[str, float]:
    """Train until the process LOST sends itself a signal, in the middle of the third epoch.

    Args:
        rank: this process.
        path: where the lost process leaves word of when it was.
        signal_number: the signal.
        timeout: seconds that the processes wait for one another.

    Returns:
        The error of a process that is not lost, and after how many seconds it came.
    """
    train(None, range(1), lambda _: None)  # what has to be compiled is compiled
    group = dist.new_group(timeout=datetime.timedelta(seconds=timeout))

    def lose(epoch: int) -> None:
        if rank == LOST and epoch == 2:
            (path / "when").write_text(str(time.time()))
            os.kill(os.getpid(), signal_number)

    try:
        train(group, count(), lose)
    except RuntimeError as error:
        return str(error), time.time() - float((path / "when").read_text())
    raise AssertionError("training ended")


@needs_gloo
def test_a_process_that_is_killed_is_noticed_at_once(tmp_path: Path) -> None:
    arguments = tmp_path, int(signal.SIGKILL), 20 * TIMEOUT
    errors = run_processes(train_until, N_PROCESSES, tmp_path, *arguments, lost=(LOST,))
    assert sorted(errors) == [0, 2]
    for message, after in errors.values():
        assert "onnection" in message, message  # reset, or closed
        assert after < 10 * TIMEOUT


@needs_gloo
def test_a_process_that_stops_is_noticed_by_the_timeout(tmp_path: Path) -> None:
    arguments = tmp_path, int(signal.SIGSTOP), TIMEOUT
    errors = run_processes(train_until, N_PROCESSES, tmp_path, *arguments, lost=(LOST,))
    assert sorted(errors) == [0, 2]
    for message, after in errors.values():
        assert "imed out" in message, message
        assert TIMEOUT - 1 < after < 10 * TIMEOUT
