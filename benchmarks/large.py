"""Large graphs: `python -m benchmarks.large`. Time an edge and peak memory, from 1M edges to 100M.

Every graph has a process of its own, in which no more than 16 GB can be allocated. PyTorch Geometric
runs on the same graphs as far as they fit, and on the largest that does.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.cases import Case
from benchmarks.measure import functions, interleaved, memory, summary
from benchmarks.report import Row, append_csv

SIZES = (1_000_000, 10_000_000, 100_000_000)
COLUMNS = (
    "who",
    "edges",
    "nodes",
    "prepare ns",
    "forward ns",
    "step ns",
    "gather ns",
    "peak GB",
)
LIMIT_GB = 16
_EDGES_A_NODE = 20
_GATHERED = (
    1 << 14
)  # rows at a time, so that what is gathered stays in the cache and all of it fits
_SHRINK = 0.95  # the next size to try if one does not fit


class Uniform(Case):
    """A case whose edges are drawn without more memory than theirs."""

    @cached_property
    def edge_index(self) -> Tensor:
        """Row 0 attends to row 1."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.n_nodes, (2, self.n_edges or 0), generator=generator)


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--edges", type=int, nargs="+", default=SIZES)
    parser.add_argument("--who", nargs="+", default=["ours", "pyg"])
    parser.add_argument("--seconds", type=float, default=10.0, help="at least, for each graph")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measure(options.who[0], options.edges[0], options.seconds)))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for who in options.who:
        for row in tqdm(_rows(who, options), unit="graph", desc=who):
            append_csv([row], options.output / "large.csv", COLUMNS)


def _rows(who: str, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of the sizes that fit and, if one does not, of the largest that does."""
    fits: Row | None = None
    for n_edges in sorted(options.edges):
        row = _in_child(who, n_edges, options)
        if row is None and fits is not None:
            largest = fits["edges"] * LIMIT_GB / fits["peak GB"]  # memory grows as edges do
            while row is None:
                row = _in_child(who, int(largest // 1e5 * 1e5), options)
                largest *= _SHRINK
            yield row
        if row is None or row["edges"] != n_edges:
            return
        yield row
        fits = row


def _in_child(who: str, n_edges: int, options: argparse.Namespace) -> Row | None:
    """Measured in a process of its own; None if it needs more memory than there may be."""
    sizes = ("--edges", n_edges, "--seconds", options.seconds, "--threads", options.threads)
    arguments = ("-m", "benchmarks.large", "--child", "--who", who, *sizes)
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: Row | None = json.loads(run.stdout.splitlines()[-1])
    return row


def measure(who: str, n_edges: int, seconds: float) -> Row | None:
    """Times in nanoseconds an edge, and the peak memory of this process, inputs and graph included."""
    limit = LIMIT_GB * 10**9
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        return _measure(who, n_edges, seconds)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return None


def _measure(who: str, n_edges: int, seconds: float) -> Row:
    sizes: dict[str, Any] = {"in_features": 16, "n_heads": 4, "n_hidden": 8}
    small = Uniform("warm-up", n_nodes=50, n_edges=200, **sizes)
    functions(small, *small.contender(who))["step"]()
    case = Uniform("large", n_nodes=n_edges // _EDGES_A_NODE, n_edges=n_edges, **sizes)
    _ = case.edge_index, case.features, case.cotangent
    module, layer = case.contender(who)
    start = perf_counter()
    _ = case.graph.by_key if who == "ours" else None
    prepare = {"prepare ns": 1e9 * (perf_counter() - start) / n_edges} if who == "ours" else {}
    times = summary(interleaved(functions(case, module, layer), seconds, lambda: None))
    peak = memory("VmHWM") * 2**20 / 1e9  # before anything else is run
    if who == "ours":
        times |= summary(interleaved({"gather": gather(case)}, seconds / 10, lambda: None))
    per_edge = {f"{name} ns": 1e6 * ms / n_edges for name, ms in times.items()}
    return {
        "who": who,
        "edges": n_edges,
        "nodes": case.n_nodes,
        "peak GB": peak,
        **prepare,
        **per_edge,
    }


def gather(case: Case) -> Callable[[], object]:
    """The floor: read the key row of every edge, in the order of queries, and do nothing with it."""
    keys = torch.randn(case.n_nodes, case.n_heads * case.n_hidden)
    out = torch.empty(_GATHERED, keys.shape[1])
    parts = case.graph.key_index.split(_GATHERED)

    def run() -> None:
        for part in parts:
            torch.index_select(keys, 0, part, out=out[: part.shape[0]])

    return run


def draw(rows: list[Row], path: Path) -> None:
    """Curves over the number of edges: time an edge beside the floor, and peak memory."""
    import matplotlib.pyplot as plt

    figure, (time, space) = plt.subplots(1, 2, figsize=(7, 4), layout="constrained")
    curves = (
        ("pyg", "step ns", "PyG, training step", "tab:orange", "-"),
        ("pyg", "forward ns", "PyG, forward pass", "tab:orange", "--"),
        ("ours", "step ns", "ours, training step", "tab:blue", "-"),
        ("ours", "forward ns", "ours, forward pass", "tab:blue", "--"),
        ("ours", "gather ns", "floor: gather the keys", "tab:gray", ":"),
    )
    for who, what, label, color, line in curves:
        own = [row for row in rows if row["who"] == who]
        edges = [row["edges"] for row in own]
        time.plot(edges, [row[what] for row in own], line, marker="o", color=color, label=label)
        if what == "step ns":
            space.plot(edges, [row["peak GB"] for row in own], marker="o", color=color)
    space.axhline(LIMIT_GB, color="tab:gray", linestyle=":")
    time.set(xlabel="edges", ylabel="ns an edge", xscale="log", yscale="log")
    space.set(xlabel="edges", ylabel="peak memory, GB", xscale="log", ylim=(0, LIMIT_GB + 1))
    for axis in (time, space):
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
