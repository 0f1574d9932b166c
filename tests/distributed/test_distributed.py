"""`DistributedDataParallel` on two processes: gradients are the mean of theirs, alike in both."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gatv2 import GraphAttentionV2Layer
from gatv2.dispatch import Kernel
from gatv2.testing import assert_agrees

N_PROCESSES = 2


def layer_of(backend: Any) -> GraphAttentionV2Layer:
    torch.manual_seed(0)
    return GraphAttentionV2Layer(
        *(3, 8, 2), bias=True, residual=True, backend=backend, dtype=torch.float64
    )


def gradients(layer: Any, rank: int) -> list[Tensor]:
    """Gradients of one process, of its own graph and with its own dropout."""
    torch.manual_seed(rank)
    h, edge_index = torch.randn(7, 3).double(), torch.randint(7, (2, 20 + rank)).unique(dim=1)
    layer.zero_grad()
    layer(h, edge_index, seed=rank).backward(torch.randn(7, 8).double())
    return [parameter.grad.clone() for parameter in layer.parameters()]


def gradients_of_process(rank: int) -> dict[str, list[Tensor]]:
    """What `DistributedDataParallel` makes of them."""
    return {
        backend: gradients(DistributedDataParallel(layer_of(backend)), rank)
        for backend in ("dense", "sparse")
    }


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_gradients_are_averaged(tmp_path: Path) -> None:
    of_processes = run_processes(gradients_of_process, N_PROCESSES, tmp_path)
    for backend in ("dense", "sparse"):
        alone = [gradients(layer_of(backend), rank) for rank in range(N_PROCESSES)]
        for expected, *actual in zip(
            (torch.stack(pair).mean(0) for pair in zip(*alone, strict=True)),
            *(results[backend] for results in of_processes.values()),
            strict=True,
        ):
            for gradient in actual:
                assert_agrees(gradient, expected)


@pytest.mark.parametrize("sizes", [(3, 7, 1), (3, 6, 2), (3, 8, 2)])
def test_gradients_are_laid_out_as_parameters(kernel: Kernel, sizes: tuple[int, int, int]) -> None:
    """`DistributedDataParallel` warns of others, and copies them."""
    layer = GraphAttentionV2Layer(*sizes, backend=kernel.backend, kernel=kernel.name)
    layer(torch.randn(4, 3), torch.ones(4, 4, 1)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name
