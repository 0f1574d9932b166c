"""How it is measured: agreement first, then times, interleaved, then peak memory, alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import MASKED, Case, Layer

Times = dict[str, list[float]]


def check_agreement(case: Case, layers: dict[str, tuple[torch.nn.Module, Layer]]) -> None:
    """Raise an AssertionError unless every contender gives our result and our gradients.

    Without dropout, whose masks differ; parallel edges, which a dense mask can't hold, are left out
    by comparing only those who read them.
    """
    results = {}
    for name, (module, layer) in layers.items():
        module.eval()
        results[name] = _result(module, layer, case)
        module.train()
    ours = results["ours"]
    has_parallel_edges = torch.unique(case.edge_index, dim=1).shape[1] < case.edge_index.shape[1]
    for name, result in results.items():
        if has_parallel_edges and name in MASKED:
            continue
        for a, b in zip(result, ours, strict=True):
            is_close = torch.isclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
            # with edge features a sum of three terms has one order here and another there: where it
            # is nearly zero it may get either sign, and then the other slope
            allowed = 0 if case.edge_dim is None else 1e-4 * b.numel()
            if (~is_close).sum() > allowed:
                error = float((a - b).abs().max())
                raise AssertionError(f"{case.name}: {name} differs from ours by up to {error:.3g}")


def _result(module: torch.nn.Module, layer: Layer, case: Case) -> tuple[Tensor, ...]:
    """Output, and gradients of the nodes' features and of what projects those of edges."""
    h = case.features.clone().requires_grad_()
    parameters = dict(module.named_parameters())
    names = ("linear_e.weight", "lin_edge.weight")  # ours, PyG's
    leaves = (h, *(parameters[name] for name in names if name in parameters))
    out = layer(h)
    return out.detach(), *torch.autograd.grad(out, leaves, case.cotangent)


def functions(case: Case, module: torch.nn.Module, layer: Layer) -> dict[str, Callable[[], object]]:
    """A forward pass, and a training step."""

    def forward() -> None:
        module.eval()
        with torch.no_grad():
            layer(case.features)

    def step() -> None:
        module.train()
        module.zero_grad()
        layer(case.features).backward(case.cotangent)

    return {"forward": forward, "step": step}


def floors(case: Case) -> dict[str, Callable[[], object]]:
    """What nothing that gathers a key row an edge can do without."""
    width = case.n_heads * case.n_hidden
    keys, weight = torch.randn(case.n_nodes, width), torch.randn(width, case.in_features)
    index, out = case.edge_index[1].int(), torch.empty(case.edge_index.shape[1], width)

    def gather() -> None:
        torch.index_select(keys, 0, index, out=out)

    def project() -> None:
        for _ in range(2):
            torch.nn.functional.linear(case.features, weight)

    return {"gather": gather, "projections": project}


_TURN_MS = 10
"""Of a function that takes less."""


def interleaved(
    work: dict[str, Callable[[], object]], seconds: float, tick: Callable[[], object]
) -> Times:
    """Run everything in turn, again and again, at least three times; times of a call in milliseconds.

    What is short runs several times in a turn, as a training step does: behind another function's
    every step would find its code and its data gone from the processor's caches.
    """
    n_calls: dict[str, int] = {}
    for name, function in work.items():
        function()  # compile, and get memory
        n_calls[name] = max(int(_TURN_MS / _milliseconds(function, 1)), 1)
        tick()
    times: Times = {name: [] for name in work}
    begin = perf_counter()
    while len(next(iter(times.values()))) < 3 or perf_counter() - begin < seconds:
        for name, function in work.items():
            times[name].append(_milliseconds(function, n_calls[name]))
        tick()
    return times


def _milliseconds(function: Callable[[], object], n_calls: int) -> float:
    """Of one of some calls."""
    start = perf_counter()
    for _ in range(n_calls):
        function()
    return 1e3 * (perf_counter() - start) / n_calls


def summary(times: Times) -> dict[str, float]:
    """Median of each."""
    return {name: median(values) for name, values in times.items()}


def peak_memory(case_name: str, contender: str) -> float | None:
    """Peak memory of a training step beyond inputs and parameters, in MB, in its own process."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    return float(in_a_process("benchmarks.measure", "report_peak", case_name, contender))


def in_a_process(module: str, function: str, *arguments: object) -> Any:
    """What a function of a module prints as JSON, called in a process of its own."""
    code = f"from {module} import {function}; {function}{arguments!r}"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def report_peak(case_name: str, contender: str) -> None:
    """Print by how many MB a training step raises this process's memory."""
    from benchmarks.cases import CASES, QUICK

    case = next(case for case in CASES + QUICK if case.name == case_name)
    module, layer = case.contender(contender)
    _ = case.features, case.edge_features, case.cotangent
    small = replace(case, name="warm-up", n_nodes=50, n_edges=200)
    functions(small, *small.contender(contender))["step"]()
    print(json.dumps(added_memory(functions(case, module, layer)["step"])))


def added_memory(run: Callable[[], object]) -> float:
    """By how many MB a call raises this process's memory, at its peak."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run()
    return max(memory("VmHWM") - before, 0.0)  # counted in pages, and not at one moment


def memory(field: str) -> float:
    """A field of this process's status, such as "VmRSS", in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
