"""Twenty epochs on one to four processes have the losses of twenty epochs on one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from gatv2 import GATv2, Graph
from gatv2.distributed import Partition
from gatv2.testing import assert_agrees

N_PROCESSES, N_EPOCHS = 4, 20
N_NODES, N_CLASSES = 40, 3


def task() -> tuple[Graph, Tensor, Tensor, Tensor]:
    """A graph, features, labels, and which nodes train: few, and none in the first quarter."""
    generator = torch.Generator().manual_seed(0)
    graph = Graph.from_edge_index(torch.randint(N_NODES, (2, 200), generator=generator), N_NODES)
    h = torch.randn(N_NODES, 6, generator=generator, dtype=torch.float64)
    label = torch.randint(N_CLASSES, (N_NODES,), generator=generator)
    is_train = torch.rand(N_NODES, generator=generator) < 0.6
    is_train[: N_NODES // 4] = False
    return graph, h, label, is_train


def curve(group: Any = None) -> Tensor:
    """The losses of a training with dropout, on the processes of a group; False for one alone."""
    graph, h, label, is_train = task()
    torch.manual_seed(1)
    model: Any = GATv2(6, 8, N_CLASSES, n_heads=2, dropout=0.5, feature_dropout=0.0, bias=True)
    model = model.double()
    n_processes, own = 1, slice(None)
    adjacency: Any = graph
    if group is not False:
        n_processes = dist.get_world_size(group)
        model = DistributedDataParallel(model, process_group=group)
        adjacency = Partition.from_graph(graph, group)
        own = adjacency.own
    h, label, is_train, n_train = h[own], label[own], is_train[own], int(is_train.sum())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    torch.manual_seed(2)
    for _ in range(N_EPOCHS):
        optimizer.zero_grad()
        total = cross_entropy(model(h, adjacency)[is_train], label[is_train], reduction="sum")
        (total * n_processes / n_train).backward()  # of which DDP takes the mean
        optimizer.step()
        losses.append(total.detach() / n_train)
    result = torch.stack(losses)
    if group is not False:
        dist.all_reduce(result, group=group)
    return result


def curves(_rank: int) -> dict[int, Tensor]:
    """By number of processes, those of all groups that this one is in."""
    groups: list[Any] = [dist.new_group(list(range(n))) for n in range(1, N_PROCESSES)]
    groups = [group for group in groups if dist.get_rank(group) >= 0] + [None]
    return {dist.get_world_size(group): curve(group) for group in groups}


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_the_curve_is_that_of_one_process(tmp_path: Path) -> None:
    expected = curve(False)
    assert expected[-1] < expected[0]
    of_ranks = run_processes(curves, N_PROCESSES, tmp_path)
    assert list(of_ranks[0]) == [1, 2, 3, 4]
    for losses in of_ranks.values():
        for actual in losses.values():
            assert_agrees(actual, expected)
