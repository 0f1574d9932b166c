"""Private names of PyTorch are all in one file, and each that goes takes with it only what needs it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import gatv2
from gatv2 import torch_internals

PACKAGE = Path(gatv2.__file__).parent
HELPERS = Path(__file__).parent.parent / "helpers"
ROOT = HELPERS.parent.parent
PRIVATE = re.compile(r"\b(?:torch|forward_ad|dist|onnx)(?:\.\w+)*\._[a-z_]|\bfrom torch[\w.]*\._")
NAMES = {
    "_SingleLevelFunction": "torch.autograd.function",
    "enable_single_level_autograd_function": "torch._functorch.utils",
    "_AutoDispatchBelowAutograd": "torch._C",
    "_set_fwd_grad_enabled": "torch.autograd.forward_ad",
    "_current_level": "torch.autograd.forward_ad",
    "get_interpreter_stack": "torch._C._functorch",
    "TransformType": "torch._C._functorch",
    "is_functorch_wrapped_tensor": "torch._C._functorch",
    "temporarily_clear_interpreter_stack": "torch._functorch.pyfunctorch",
    "_DisableFuncTorch": "torch._C",
    "_len_torch_dispatch_stack": "torch._C",
    "_profiler_enabled": "torch._C._autograd",
    "is_legacy_batchedtensor": "torch._C._functorch",
    "guard_or_false": "torch.fx.experimental.symbolic_shapes",
}


def uses_of_private_names(source: str) -> list[str]:
    """Private names of PyTorch in a source, comments and strings aside."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found += [f"from {node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    return [name for name in found if PRIVATE.search(name) or "torch.fx.experimental" in name]


def test_private_names_are_in_one_file() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if uses_of_private_names(path.read_text())
    }
    assert users == {"torch_internals.py"}


def test_the_check_sees_private_names() -> None:
    for source in (
        "torch._C._functorch.get_interpreter_stack()",
        "from torch._functorch.utils import unwrap_dead_wrappers",
        "from torch.autograd.function import _SingleLevelFunction",
        "from torch.fx.experimental.symbolic_shapes import guard_or_false",
        "forward_ad._current_level",
        "import torch._dynamo",
    ):
        assert uses_of_private_names(source), source
    assert not uses_of_private_names("'torch._C'; torch.nn.functional.pad; self._name")


def test_is_inspectable() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(torch_internals.is_inspectable(x))
        return x.sum()

    x = torch.randn(2, 3)
    assert torch_internals.is_inspectable(x)
    assert not torch_internals.is_inspectable(x.to("meta"))
    vmap(look)(x)
    grad(look)(x)
    torch.compile(look, backend="eager", fullgraph=False)(x)
    assert seen == [False, False, False]


def test_without_the_name_a_wrapped_tensor_is_one_without_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch._C._functorch, "is_functorch_wrapped_tensor")
    x = torch.randn(2, 3)
    assert torch_internals.is_inspectable(x)
    assert torch_internals.is_inspectable(x[:0])
    assert not torch_internals.is_inspectable(x.to("meta"))
    seen: list[bool] = []

    def total(x: Tensor) -> Tensor:
        seen.append(torch_internals.is_inspectable(x))
        return x.sum()

    vmap(total)(x)
    grad(total)(x)
    assert seen == [False, False]


def test_what_is_made_to_last_is_the_callers() -> None:
    kept: list[Tensor] = []
    index = torch.arange(3)

    def function(x: Tensor) -> Tensor:
        with torch_internals.made_to_last(index):
            kept.append(index + 1)
        assert not torch_internals.is_inspectable(torch.zeros(3))
        return x.sum()

    with torch.inference_mode():
        grad(function)(torch.ones(3))
        assert (index + 1).is_inference()
    (made,) = kept
    assert torch_internals.is_inspectable(made)
    assert not made.is_inference()


def test_without_transforms_arrays_can_be_read() -> None:
    def function(x: Tensor) -> Tensor:
        with torch_internals.without_transforms():
            assert torch.zeros(2).numpy().sum() == 0
        return x.sum()

    grad(function)(torch.ones(3))


class Owner:
    """Has something that is made once."""

    def __init__(self) -> None:
        self.edge_id, self.n_made = torch.arange(3), 0

    @torch_internals.made_once
    def twice(self) -> Tensor:
        """Each number, twice."""
        self.n_made += 1
        return self.edge_id * 2


def test_made_once() -> None:
    owner = Owner()
    grad(lambda x: (x * owner.twice).sum())(torch.ones(3))
    assert torch_internals.is_inspectable(owner.twice)
    assert owner.twice is owner.twice
    assert owner.n_made == 1


def test_what_a_mode_makes_is_not_kept() -> None:
    owner = Owner()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(owner.twice, FakeTensor)
    assert owner.twice.tolist() == [0, 2, 4]
    assert owner.twice is owner.twice


def test_fits_int32() -> None:
    assert torch_internals.fits_int32(2**31 - 1)
    assert not torch_internals.fits_int32(2**31)

    def function(x: Tensor) -> Tensor:
        return x.int() if torch_internals.fits_int32(int(x.sum())) else x.long()

    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled: Any = torch.compile(function, backend="eager", fullgraph=True)
        assert compiled(torch.ones(3)).dtype == torch.int64  # the count depends on values


def test_is_forward_mode() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(torch_internals.is_forward_mode(x))
        return x.sin()

    x = torch.randn(2, 3)
    look(x)
    grad(lambda x: look(x).sum())(x)
    jvp(look, (x,), (x,))
    vmap(lambda y: jvp(look, (y,), (y,)))(x)
    jvp(vmap(look), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        look(x)
        look(torch.autograd.forward_ad.make_dual(x, x))
    assert seen == [False, False, True, True, True, False, True]


def test_is_transformed() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(torch_internals.is_transformed())
        return x.sum()

    x = torch.randn(2, 3)
    look(x)
    vmap(look)(x)
    grad(look)(x)
    jvp(look, (x,), (x,))
    look(x.requires_grad_()).backward()
    assert seen == [False, True, True, True, False]


class _Subclass(Tensor):
    """What may have a mind of its own."""


def test_needs_dispatcher() -> None:
    x, seen = torch.randn(2, 3), []

    def look(x: Tensor) -> Tensor:
        seen.append(torch_internals.needs_dispatcher((x, None)))
        return x.sum()

    look(x)
    look(torch.nn.Parameter(x))
    look(x.as_subclass(_Subclass))
    vmap(look)(x)
    grad(look)(x)
    with torch.autograd.forward_ad.dual_level():
        look(x)
    with torch.device("cpu"):
        look(x)
    with FlopCounterMode(display=False):
        look(x)
    with torch.profiler.profile():
        look(x)
    torch.jit.trace(look, x, check_trace=False)
    look(x)
    assert seen == [False, False, *[True] * 8, False]


@pytest.mark.parametrize(
    "name",
    [
        "_get_tracing_state",
        "_len_torch_dispatch_stack",
        "_profiler_enabled",
        "get_interpreter_stack",
    ],
)
def test_without_the_name_the_dispatcher_is_needed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # PyTorch's modules can't do without the first one
    monkeypatch.delattr(f"{NAMES.get(name, 'torch._C')}.{name}")
    assert torch_internals.needs_dispatcher((torch.ones(2),))


def test_is_mapped_by_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def look(cotangent: Tensor) -> None:
        seen.append(torch_internals.is_mapped_by_autograd((torch.ones(1), cotangent)))

    x = torch.randn(2, requires_grad=True)
    y = x.sin()
    y.register_hook(look)
    torch.autograd.grad(y, x, torch.ones(3, 2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2), retain_graph=True)
    monkeypatch.delattr("torch._C._functorch.is_legacy_batchedtensor")
    torch.autograd.grad(y, x, torch.ones(2))
    assert seen == [True, False, True]


def test_without_the_name_a_transform_may_always_be_active(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch._C._functorch, "get_interpreter_stack")
    assert torch_internals.is_transformed()


def test_the_operators_go_by_the_private_names_that_there_are() -> None:
    internals = torch_internals.single_level_autograd()
    assert internals is not None
    assert issubclass(torch.autograd.Function, internals.function)
    with internals.allow(), internals.below_autograd(), internals.set_forward_mode(True):
        pass


WITHOUT = """
import os, sys
from importlib import import_module
import torch
*others, name = sys.argv[1:]
for other in others:  # each as if this process had done nothing but import PyTorch
    if os.fork() == 0:
        name = other
        break
    assert os.wait()[1] == 0, other
path, _, attribute = name.rpartition(".")
if path:
    delattr(eval(path) if path.startswith("torch._C") else import_module(path), attribute)
import gatv2
from gatv2 import Graph, gatv2_attention
edge_index = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 2]])
graph = Graph.from_edge_index(edge_index, 3)
generator = torch.Generator().manual_seed(0)
features = [torch.randn(*shape, generator=generator) for shape in ((3, 2, 4), (3, 2, 4), (2, 4))]
leaves = [x.requires_grad_() for x in features]
results = []
for adj_mat in (edge_index, graph, graph.to_mask()):
    out = gatv2_attention(*leaves, adj_mat, kernel="torch", dropout=0.3, seed=2)
    results += [out, *torch.autograd.grad(out.sin().sum(), leaves)]
print(name, *(float(x.sum()) for x in results))
"""


def outcomes_without(*names: str) -> dict[str, list[str]]:
    """What fresh processes compute with plain operations, each with a name of PyTorch deleted."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return {name: numbers for name, *numbers in map(str.split, result.stdout.splitlines())}


def test_plain_operations_need_no_private_name() -> None:
    names = ["nothing", *(f"{module}.{name}" for name, module in NAMES.items())]
    groups = [names] if hasattr(os, "fork") else [[name] for name in names]
    outcomes: dict[str, list[str]] = {}
    for group in groups:
        outcomes |= outcomes_without(*group)
    assert sorted(outcomes) == sorted(names)
    assert len(outcomes["nothing"]) == 12
    for name in names:
        assert outcomes[name] == outcomes["nothing"], name


def test_a_name_that_is_missed_is_noticed() -> None:
    """In any of the processes."""
    needed = "torch.nn.functional.leaky_relu"
    for names in ((needed, "nothing"), ("nothing", needed)):
        with pytest.raises(AssertionError, match="leaky_relu"):
            outcomes_without(*names)


SINGLE_LEVEL = (
    "_SingleLevelFunction",
    "enable_single_level_autograd_function",
    "_AutoDispatchBelowAutograd",
    "_set_fwd_grad_enabled",
)


@pytest.mark.parametrize("name", SINGLE_LEVEL)
def test_one_name_less_is_as_good_as_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_internals.single_level_autograd() is not None
    monkeypatch.delattr(f"{NAMES[name]}.{name}")
    assert torch_internals.single_level_autograd() is None


def test_without_one_the_fused_kernels_go_by_public_names() -> None:
    name, *_ = SINGLE_LEVEL
    operators = "tests/kernels/test_numba_operators.py"
    files = (operators, "tests/laws/test_transforms.py", "tests/laws/test_recompilation.py")
    left_out = (
        # an operator called by itself, which nothing of ours does, drops tangents by the public names
        f"--deselect={operators}::test_an_operator_refuses_dual_tensors",
        # no name is hidden from the process that this one starts
        f"--deselect={operators}::test_exported_program_runs_in_a_fresh_process",
        # GAT and PyTorch's kernels are plain operations: see above; one call of one operator is enough,
        # and one layer of a model; self-loops are not the operators'
        "-k",
        "not GAT- and not dense-torch and not sparse-torch and not stack and not self_loops and "
        "(not opcheck or sparse-heads-alpha-edges)",
    )
    without = [str(HELPERS / "without_name.py"), NAMES[name], name]
    result = subprocess.run(
        [sys.executable, *without, "-q", "-x", *left_out, *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout
