"""`pytest --device cuda`: a kernel is given everything on the device, and its results come back."""

from types import SimpleNamespace
from typing import Any

import on_device
import pytest
import torch
from attention import attention_over, by, normal
from torch import Tensor

from gatv2 import Graph, dispatch
from gatv2.dispatch import Kernel
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.testing import value_and_gradients

GRAPH = Graph.from_edge_index(torch.tensor([[0, 1, 1], [1, 0, 2]]), (2, 3))


def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [normal(generator, *shape) for shape in ((2, 2, 3), (3, 2, 3), (2, 3))]


def devices_of(given: Any) -> set[str]:
    """Where the tensors of arguments are."""
    if isinstance(given, Tensor):
        return {given.device.type}
    if isinstance(given, Graph):
        return {given.device.type}
    parts = given.values() if isinstance(given, dict) else given if isinstance(given, tuple) else ()
    return {device for part in parts for device in devices_of(part)}


@pytest.mark.parametrize("graph", [GRAPH, GRAPH.to_mask()], ids=["sparse", "dense"])
def test_everything_is_given_on_the_device(graph: Graph | Tensor) -> None:
    given: list[set[str]] = []

    def attention(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        given.append(devices_of((tensors, options)))
        return torch.ones(1), torch.ones(1), torch.ones(1)

    options: dict[str, Any] = {
        "negative_slope": 0.2,
        "dropout": 0.5,
        "seed": torch.tensor(1),
        "return_attention": True,
        "edges": EdgeInputs(torch.ones(3, 2), torch.ones(2, 3, 2)),
        "score_bias": torch.ones(3, 1),
    }
    moved: Any = on_device.attention_on(attention, torch.device("meta"))
    for attend in (attention, moved):
        attend(*features(), graph, **options)
    assert given == [{"cpu"}, {"meta"}]


def test_results_and_gradients_come_back(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = GRAPH if kernel.backend == "sparse" else GRAPH.to_mask()
    attend = attention_over(graph, return_lse=True, dropout=0.5, seed=1, **by(kernel))

    def results() -> list[Tensor]:
        return value_and_gradients(lambda *x: attend(*x)[0], features(), torch.ones(2, 2, 3))

    expected = results()
    moved = on_device.on_device(kernel, torch.device("cpu"))
    monkeypatch.setattr(dispatch, "KERNELS", (moved,))
    assert all(map(torch.equal, results(), expected))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_option_is_an_error() -> None:
    config: Any = SimpleNamespace(known_args_namespace=SimpleNamespace(device="cuda"))
    with pytest.raises(pytest.UsageError, match="PyTorch finds no GPU"):
        on_device.pytest_load_initial_conftests(config)
