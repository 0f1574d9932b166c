"""Importing gatv2 is light: names come when they are asked for, heavy libraries where they are used."""

import subprocess
import sys

import pytest

import gatv2

HEAVY = (
    *("jax", "numba", "scipy", "torch_geometric", "sklearn", "matplotlib", "hypothesis", "triton"),
    *("torch._dynamo", "sympy"),
)
EVERY_NAME = "from gatv2 import *"


def run(*lines: str) -> str:
    """What a fresh interpreter prints that runs some lines."""
    command = [sys.executable, "-W", "ignore", "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def imported_by(*lines: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has imported after some lines, but for PyTorch's own."""
    check = f"{{m for m in {HEAVY} if m in sys.modules}}"
    program = ["import sys, torch", f"own = {check}", *lines, f"print(*{check} - own)"]
    return set(run(*program).split())


def test_import_is_light() -> None:
    assert imported_by("import gatv2") == set()
    assert imported_by(EVERY_NAME, "import gatv2.functional, gatv2.inference") == set()


def test_the_check_sees_what_is_imported() -> None:
    assert "scipy" in imported_by("import gatv2.ranking")
    assert imported_by("import gatv2, torch._dynamo") >= {"torch._dynamo", "sympy"}


def test_import_loads_no_other_file_of_ours() -> None:
    ours = "print(*(m for m in sys.modules if m.startswith('gatv2')))"
    noted = {"gatv2.numba", "gatv2.numba.support"}  # which process this is
    assert set(run("import gatv2, sys", ours).split()) == {"gatv2", *noted}
    assert "gatv2.model" in run("import gatv2, sys", "gatv2.GATv2", ours).split()
    # one process's layer knows nothing of others
    assert "gatv2.distributed" not in run(EVERY_NAME, "import sys", ours).split()


AGAIN = """
import sys, torch
from importlib import import_module, reload

def attend(kernel="torch"):
    layer = import_module("gatv2").GraphAttentionV2Layer(3, 4, 2, kernel=kernel)
    for backend in ("sparse", "dense"):
        layer.backend = backend
        layer(torch.randn(4, 3), torch.ones(4, 4, 1)).sum().backward()
        assert layer.attn.grad.isfinite().all()

attend()
ours = [name for name in sys.modules if name.startswith("gatv2")]
for name in ours:
    reload(sys.modules[name])
for name in ours:
    del sys.modules[name]
attend("auto")
print("all there")
"""


def test_it_can_be_loaded_again() -> None:
    """Module by module or as a whole, though PyTorch keeps the names of its operators."""
    assert run(AGAIN) == "all there\n"


NAMES = """
import pickle
from importlib import reload
import gatv2
for name in ("ranking", "convert", "jax", "distributed", "testing", "pyg", "graph"):
    assert getattr(gatv2, name).__name__ == f"gatv2.{name}" and name in dir(gatv2), name
for name in gatv2.__all__:
    assert name in dir(gatv2), name
    named = getattr(gatv2, name)
    assert pickle.loads(pickle.dumps(named)) is named is getattr(reload(gatv2), name), name
print("all there")
"""


def test_names_come_when_they_are_asked_for() -> None:
    assert run(NAMES) == "all there\n"


COMPILED = """
import torch
import gatv2
# the name is first asked for while it is traced
attend = torch.compile(lambda *x: gatv2.gatv2_attention(*x), fullgraph=True, backend="eager")
inputs = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.randn(2, 4), torch.tensor([[0], [1]])
print(torch.equal(attend(*inputs), gatv2.gatv2_attention(*inputs)))
"""


def test_names_come_in_compiled_functions() -> None:
    assert run(COMPILED) == "True\n"


WITHOUT_DISTRIBUTED = """
import torch, torch._dynamo
import torch.distributed as dist
for name in ("ProcessGroup", "group", "all_to_all_single", "is_initialized", "get_rank"):
    delattr(dist, name)
dist.is_available = lambda: False
from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.distributed import Partition
graph = Graph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3)
(partition,) = Partition.split(graph, 1)
GraphAttentionV2Layer(3, 4, 2)(torch.randn(3, 3), partition).backward(torch.randn(3, 4))
try:
    Partition.from_graph(graph)
except RuntimeError as error:
    print(error)
"""


def test_pytorch_may_be_built_without_torch_distributed() -> None:
    assert run(WITHOUT_DISTRIBUTED).startswith("torch.distributed is not initialized")


def test_public_names() -> None:
    assert gatv2.__all__ == [
        "GATv2",
        "Graph",
        "GraphAttentionLayer",
        "GraphAttentionV2Layer",
        "gatv2_attention",
        "release_scratch",
        "select_kernel",
    ]
    for name in gatv2.__all__:
        assert getattr(gatv2, name).__doc__


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError):
        _ = gatv2.nothing  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = gatv2.testing.nothing  # type: ignore[attr-defined]


def test_strategies_without_hypothesis_say_what_to_install() -> None:
    program = """
import sys
sys.modules["hypothesis"] = None
from gatv2.testing import assert_agrees
try:
    from gatv2.testing import masks
except ImportError as error:
    print(error)
"""
    printed = run(program)
    assert printed.startswith("gatv2.testing.masks needs hypothesis, which can't be imported")
    assert printed.endswith("pip install 'gatv2-layers[testing]'\n")
