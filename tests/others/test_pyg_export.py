"""Layers of PyTorch Geometric, exported, take graphs of every size; or of the one size, in ONNX too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.export import Dim

import gatv2.pyg
from gatv2.convert import from_pyg

SIZES = ((9, 33), (15, 7), (30, 100))


class Called(nn.Module):
    """A layer that is called by position, with edge features if it has some."""

    def __init__(self, layer: Any, edge_name: str) -> None:
        super().__init__()
        self.layer = layer
        self.edge_name = edge_name

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        out: Tensor = self.layer(x, edge_index, **{self.edge_name: edge_attr})
        return out


def drop_in(**options: Any) -> Called:
    return Called(gatv2.pyg.GATv2Conv(3, 2, 2, edge_dim=2, **options), "edge_attr").eval()


def converted(**options: Any) -> Called:
    return Called(from_pyg(pyg.GATv2Conv(3, 2, 2, edge_dim=2, **options)), "edge_features").eval()


def inputs(n_nodes: int, n_edges: int) -> tuple[Tensor, Tensor, Tensor]:
    edge_index = torch.randint(n_nodes, (2, n_edges))
    return torch.randn(n_nodes, 3), edge_index, torch.randn(n_edges, 2)


SHAPES: Any = {
    "x": {0: Dim.DYNAMIC},
    "edge_index": {1: Dim.DYNAMIC},
    "edge_attr": {0: Dim.DYNAMIC},
}


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("add_self_loops", [False, True])
def test_a_trace_is_that_of_their_layer(add_self_loops: bool) -> None:
    """Which reads the graph at each call, of every size; our kernels would be left out of it."""
    module = drop_in(add_self_loops=add_self_loops)
    trace = torch.jit.trace(module, inputs(7, 20), check_trace=False)
    for sizes in SIZES:
        case = inputs(*sizes)
        torch.testing.assert_close(trace(*case), module(*case))


@pytest.mark.parametrize("add_self_loops", [False, True])
@pytest.mark.parametrize("make", [drop_in, converted])
def test_a_program_for_every_size(make: Callable[..., Called], add_self_loops: bool) -> None:
    module = make(add_self_loops=add_self_loops)
    program: Any = torch.export.export(module, inputs(7, 20), dynamic_shapes=SHAPES).module()
    for sizes in SIZES:
        case = inputs(*sizes)
        torch.testing.assert_close(program(*case), module(*case))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # its own
@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("add_self_loops", [False, True])
@pytest.mark.parametrize("make", [drop_in, converted])
def test_onnx(
    make: Callable[..., Called], add_self_loops: bool, is_dynamic: bool, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = make(add_self_loops=add_self_loops)
    case = inputs(7, 20)
    program: Any = torch.onnx.export(
        module, case, dynamo=True, dynamic_shapes=SHAPES if is_dynamic else None, verbose=False
    )
    program.save(tmp_path / "layer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    names = [argument.name for argument in session.get_inputs()]
    cases = [case, *(inputs(*sizes) for sizes in SIZES if is_dynamic)]
    for each in cases:
        given = {name: tensor.numpy() for name, tensor in zip(names, each, strict=True)}
        (out,) = session.run(None, given)
        torch.testing.assert_close(torch.from_numpy(out), module(*each))
