"""Benchmarks on a GPU: `python -m benchmarks.gpu`. With TRITON_INTERPRET=1, a smoke test on the CPU."""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.cases import Case
from benchmarks.measure import check_agreement
from benchmarks.report import Row, append_csv
from gatv2 import Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.triton.support import IS_INTERPRETED

COLUMNS = ("case", "dtype", "dropout", "who", "forward ms", "step ms", "peak MB", "gpu")
CASES = (
    Case("169k nodes, 2.3M edges, 8 x 8", 169_343, 2_300_000, 128),
    Case("169k nodes, 2.3M edges, 4 x 32", 169_343, 2_300_000, 128, n_heads=4, n_hidden=32),
    Case("169k nodes, 2.3M edges, 1 x 64", 169_343, 2_300_000, 128, n_heads=1, n_hidden=64),
    Case("20k nodes, 2M edges", 20_000, 2_000_000, 64),
    Case("power law", 100_000, 2_900_000, 128, exponent=0.7),
    Case("hubs", 100_000, 2_900_000, 128, exponent=1.2),
    Case("5M nodes, 100M edges", 5_000_000, 100_000_000, 32, n_heads=4),
)
SMOKE = (Case("smoke", 12, 40, 5, n_heads=2, n_hidden=4),)
LARGE = 50_000_000
"""From so many edges on, only ours and the floor are measured: the others do not fit."""

Work = Callable[[], object]


class Contender(NamedTuple):
    """What is measured: a forward pass, and one with a backward pass."""

    forward: Work
    step: Work


def main() -> None:
    """Parse the command line, check that results agree, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender")
    parser.add_argument("--output", type=Path, default=Path("results"))
    options = parser.parse_args()
    if not IS_INTERPRETED and not torch.cuda.is_available():
        sys.exit("no GPU is available; TRITON_INTERPRET=1 makes this a smoke test on the CPU")
    device = torch.device("cpu" if IS_INTERPRETED else "cuda")
    rows: list[Row] = []
    cases = [case for case in (SMOKE if IS_INTERPRETED else CASES) if options.only in case.name]
    for case in tqdm(cases, unit="case"):
        for dtype, dropout in ((torch.float32, 0.0), (torch.float32, 0.6), (torch.bfloat16, 0.0)):
            contenders = contenders_of(replace(case, dropout=dropout), dtype, device)
            for name, contender in contenders:
                rows.append(
                    {
                        "case": case.name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "dropout": dropout,
                        "who": name,
                        "forward ms": milliseconds(contender.forward, device, options.seconds),
                        "step ms": milliseconds(contender.step, device, options.seconds),
                        "peak MB": peak_memory(contender.step, device),
                        "gpu": "none" if IS_INTERPRETED else torch.cuda.get_device_name(device),
                    }
                )
    for row in rows:
        print(
            "  ".join(
                f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name])
                for name in COLUMNS
            )
        )
    options.output.mkdir(parents=True, exist_ok=True)
    append_csv(rows, options.output / "gpu.csv", COLUMNS)
    draw(rows, options.output / "gpu.png")


def contenders_of(
    case: Case, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Contender]]:
    """Attention by itself: the floor and ours; and whole layers, ours and others'."""
    graph = case.graph.to(device)
    _ = graph.by_key
    yield from _attention(case, graph, dtype, device)
    if case.n_edges is not None and case.n_edges >= LARGE:
        return
    h = case.features.to(device, dtype)
    cotangent = case.cotangent.to(device, dtype)
    layers = dict(_layers(case, graph, dtype, device))
    if dtype == torch.float32:
        moved = replace(case, dropout=0.0)
        moved.__dict__.update(
            features=h, cotangent=cotangent, edge_index=case.edge_index.to(device)
        )
        check_agreement(
            moved, {name: pair for name, pair in layers.items() if "compiled" not in name}
        )
    for name, (module, layer) in layers.items():
        yield name, _of_layer(module, layer, h, cotangent)


def _attention(
    case: Case, graph: Graph, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Contender]]:
    from benchmarks.gpu_floor import floors

    size = (case.n_heads, case.n_hidden)
    query, key = (torch.randn(case.n_nodes, *size, dtype=dtype, device=device) for _ in range(2))
    attn, cotangent = torch.randn(size, dtype=dtype, device=device), torch.randn_like(query)
    yield "floor", Contender(**floors(query, key, attn, graph))
    leaves = [x.requires_grad_() for x in (query, key, attn)]

    def forward() -> None:
        with torch.no_grad():
            attend()

    def attend() -> Tensor:
        return gatv2_attention(query, key, attn, graph, dropout=case.dropout, kernel="triton")

    yield "attention", Contender(forward, lambda: torch.autograd.grad(attend(), leaves, cotangent))


def _layers(
    case: Case, graph: Graph, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, tuple[torch.nn.Module, Any]]]:
    torch.manual_seed(1)
    sizes = (case.in_features, case.n_heads * case.n_hidden, case.n_heads)
    ours = GraphAttentionV2Layer(*sizes, dropout=case.dropout, kernel="triton").to(device, dtype)
    plain = GraphAttentionV2Layer(*sizes, dropout=case.dropout, kernel="torch").to(device, dtype)
    plain.load_state_dict(ours.state_dict())
    pyg, _ = case._pyg(ours)
    pyg = pyg.to(device, dtype)
    edge_index = case.edge_index.flip(0).contiguous().to(device)
    yield "ours", (ours, lambda h: ours(h, graph))
    yield "plain", (plain, lambda h: plain(h, graph))
    yield "pyg", (pyg, lambda h: pyg(h, edge_index))
    if not IS_INTERPRETED:
        for name, module, edges in (("plain", plain, graph), ("pyg", pyg, edge_index)):
            compiled = torch.compile(module)
            yield f"{name}, compiled", (module, lambda h, f=compiled, e=edges: f(h, e))


def _of_layer(module: torch.nn.Module, layer: Any, h: Tensor, cotangent: Tensor) -> Contender:
    def forward() -> None:
        module.eval()
        with torch.no_grad():
            layer(h)

    def step() -> None:
        module.train()
        module.zero_grad()
        layer(h).backward(cotangent)

    return Contender(forward, step)


def milliseconds(work: Work, device: torch.device, seconds: float) -> float:
    """The median time of a call, on the device itself where that is a GPU."""
    work()
    times: list[float] = []
    begin = perf_counter()
    while len(times) < (1 if IS_INTERPRETED else 5) or perf_counter() - begin < seconds * (
        not IS_INTERPRETED
    ):
        times.append(_timed(work, device))
    return median(times)


def _timed(work: Work, device: torch.device) -> float:
    if device.type == "cpu":
        start = perf_counter()
        work()
        return 1e3 * (perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def peak_memory(work: Work, device: torch.device) -> float | None:
    """By how many MB a call raises the GPU's memory, at its peak."""
    if device.type == "cpu":
        return None
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - held) / 2**20


def draw(rows: list[Row], path: Path) -> None:
    """Bars: a training step of each, in float32 without dropout."""
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row["dtype"] == "float32" and not row["dropout"]]
    figure, axis = plt.subplots(figsize=(9, 1 + 0.25 * len(shown)), layout="constrained")
    bars = axis.barh(range(len(shown)), [row["step ms"] for row in shown])
    axis.bar_label(bars, [f"{row['step ms']:.3g}" for row in shown], padding=3)
    axis.set_yticks(range(len(shown)), [f"{row['case']}: {row['who']}" for row in shown])
    axis.set(xlabel="milliseconds, forward and backward", xscale="log")
    axis.invert_yaxis()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
