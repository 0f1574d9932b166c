"""Exported layers take graphs of every size: in a fresh process, and in onnxruntime."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attention import by
from runnable import RUNNABLE
from torch import Tensor
from torch.export import Dim

from gatv2 import GraphAttentionV2Layer
from gatv2.dispatch import Kernel

SIZES = ((9, 33), (15, 7), (30, 100))
SHAPES: dict[str, Any] = {
    "sparse": {"h": {0: Dim.DYNAMIC}, "adj_mat": {1: Dim.DYNAMIC}},
    "dense": {"h": {0: Dim.DYNAMIC}, "adj_mat": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}},
}


def inputs(backend: str, n_nodes: int, n_edges: int) -> tuple[Tensor, Tensor]:
    h = torch.randn(n_nodes, 3)
    if backend == "dense":
        return h, torch.rand(n_nodes, n_nodes, 1) < 0.3
    return h, torch.randint(n_nodes, (2, n_edges))


def layer_of(kernel: Kernel, **options: Any) -> GraphAttentionV2Layer:
    where: Any = by(kernel)
    return GraphAttentionV2Layer(3, 4, 2, bias=True, **where, **options).eval()


def exported(layer: GraphAttentionV2Layer) -> torch.export.ExportedProgram:
    """A layer's program for graphs of every size."""
    shapes = SHAPES[layer.backend]
    return torch.export.export(layer, inputs(layer.backend, 7, 20), dynamic_shapes=shapes)


RUN = """
import sys, torch
from pathlib import Path
for path in sorted(Path(sys.argv[1]).iterdir(), key=lambda path: "torch" not in path.name):
    if "torch" not in path.name:
        import gatv2.functional  # which has the operators
    program = torch.export.load(path / "program.pt2").module()
    with torch.no_grad():
        results = [program(*case) for case in torch.load(path / "cases.pt")]
    torch.save(results, path / "results.pt")
    assert "torch" not in path.name or "gatv2" not in sys.modules
"""


def test_saved_programs_run_in_a_fresh_process(tmp_path: Path) -> None:
    """Those of plain operations need nothing but PyTorch."""
    saved = []
    for kernel in RUNNABLE:
        layer, path = layer_of(kernel), tmp_path / f"{kernel.backend}-{kernel.name}"
        path.mkdir()
        torch.export.save(exported(layer), path / "program.pt2")
        cases = [inputs(kernel.backend, *sizes) for sizes in SIZES]
        torch.save(cases, path / "cases.pt")
        saved.append((layer, path, cases))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], env=environment, check=True)
    for layer, path, cases in saved:
        results = torch.load(path / "results.pt")
        for result, case in zip(results, cases, strict=True):
            torch.testing.assert_close(result, layer(*case))


def test_self_loops_are_exported(kernel: Kernel) -> None:
    layer = layer_of(kernel, add_self_loops=True)
    program: Any = exported(layer).module()
    for sizes in SIZES:
        case = inputs(kernel.backend, *sizes)
        torch.testing.assert_close(program(*case), layer(*case))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # its own
@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("options", [{}, {"add_self_loops": True, "residual": True}])
def test_onnx(backend: Any, options: Any, tmp_path: Path) -> None:
    """`kernel="auto"` takes plain operations by itself: ONNX has no fused ones."""
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = GraphAttentionV2Layer(3, 4, 2, bias=True, backend=backend, **options).eval()
    program: Any = torch.onnx.export(
        layer,
        inputs(backend, 7, 20),
        dynamo=True,
        dynamic_shapes=SHAPES[backend],
        verbose=False,
    )
    program.save(tmp_path / "layer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    names = [argument.name for argument in session.get_inputs()]
    for sizes in SIZES:
        case = inputs(backend, *sizes)
        given = {name: tensor.numpy() for name, tensor in zip(names, case, strict=True)}
        (out,) = session.run(None, given)
        torch.testing.assert_close(torch.from_numpy(out), layer(*case))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("check_trace", [False, True])
def test_a_trace_is_refused(check_trace: bool) -> None:
    """It would keep the numbers of one graph, and answer zeros for another."""
    layer = GraphAttentionV2Layer(3, 4, 2, dropout=0.0)
    inputs = torch.randn(6, 3), torch.tensor([[0, 1, 2], [1, 2, 3]])
    with pytest.raises(RuntimeError, match=r"export the model with torch\.export"):
        torch.jit.trace(layer, inputs, check_trace=check_trace)
