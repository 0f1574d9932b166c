"""A process that dies, or stops, ends the others with an error, and soon."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch.nn.parallel import DistributedDataParallel

from gatv2 import GATv2, Graph
from gatv2.distributed import Partition

N_PROCESSES = 3
LOST = 1


def train_until(rank: int, path: Path, sent: int) -> tuple[str, float]:
    """Train until the process LOST sends itself a signal, in the middle of the third epoch.

    Args:
        rank: this process.
        path: where the lost process leaves word of when it was.
        sent: the signal.

    Returns:
        The error of a process that is not lost, and after how many seconds it came.
    """
    torch.manual_seed(0)
    graph = Graph.from_edge_index(torch.randint(60, (2, 400)), 60)
    partition = Partition.from_graph(graph)
    model = DistributedDataParallel(GATv2(4, 8, 3, n_heads=2))
    h = torch.randn(60, 4)[partition.own]

    try:
        for epoch in range(1000):
            out = model(h, partition)
            if rank == LOST and epoch == 2:
                (path / "when").write_text(str(time.time()))
                os.kill(os.getpid(), sent)
            out.square().sum().backward()
    except RuntimeError as error:
        return str(error), time.time() - float((path / "when").read_text())
    return "", 0.0


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_a_process_that_is_killed_is_noticed_at_once(tmp_path: Path) -> None:
    errors = run_processes(
        *(train_until, N_PROCESSES, tmp_path, tmp_path, int(signal.SIGKILL)),
        lost=(LOST,),
        group_timeout=100,
    )
    assert sorted(errors) == [0, 2]
    for message, after in errors.values():
        assert message
        assert after < 20


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_a_process_that_stops_is_noticed_by_the_timeout(tmp_path: Path) -> None:
    errors = run_processes(
        *(train_until, N_PROCESSES, tmp_path, tmp_path, int(signal.SIGSTOP)),
        lost=(LOST,),
        group_timeout=8,
    )
    assert sorted(errors) == [0, 2]
    for message, after in errors.values():
        assert message
        assert 7 < after < 30
