"""Run the benchmarks: `python -m benchmarks --help`."""

import argparse
import csv
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import gatv2
from benchmarks.cases import CASES, QUICK, Case
from benchmarks.measure import (
    check_agreement,
    floors,
    functions,
    interleaved,
    peak_memory,
    summary,
)

Row = dict[str, Any]


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small graphs, in seconds")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [case for case in (QUICK if options.quick else CASES) if options.only in case.name]
    rows: list[Row] = []
    progress = tqdm(cases, unit="case")
    for case in progress:
        progress.set_postfix_str(case.name)
        seconds = 1.0 if options.quick else options.seconds
        rows += measure(case, seconds, has_memory=not options.no_memory, tick=progress.refresh)
    print(as_table(rows))
    options.output.mkdir(parents=True, exist_ok=True)
    append_csv(rows, options.output / "results.csv")
    draw(rows, options.output / "results.png")


def measure(case: Case, seconds: float, *, has_memory: bool, tick: Any) -> list[Row]:
    """One row for each contender and one for each floor."""
    torch.manual_seed(0)
    layers = {name: case.contender(name) for name in ("ours", *case.rivals)}
    check_agreement(case, layers)
    work = {
        f"{name} {what}": function
        for name, (module, layer) in layers.items()
        for what, function in functions(case, module, layer).items()
    }
    medians = summary(interleaved(work | floors(case), seconds, tick))
    rows: list[Row] = []
    rival = case.rivals[0]
    for name in layers:
        row: Row = {"case": case.name, "who": name}
        for what, target in zip(("forward", "step"), case.target, strict=True):
            row[f"{what} ms"] = medians[f"{name} {what}"]
            row[f"{what} x"] = medians[f"{rival} {what}"] / medians[f"{name} {what}"]
            row[f"{what} target"] = target if name == "ours" else None
        row["peak MB"] = peak_memory(case.name, name) if has_memory else None
        rows.append(row)
        tick()
    names = ("gather", "projections")
    floor = [{"case": case.name, "who": f"floor: {n}", "forward ms": medians[n]} for n in names]
    return rows + floor


def as_table(rows: list[Row]) -> str:
    """The rows as aligned text; `x` is how many times as fast as the first rival."""
    names = ["case", "who", "forward ms", "forward x", "step ms", "step x", "peak MB"]

    def text(row: Row, name: str) -> str:
        value = row.get(name)
        if value is None:
            return ""
        if not isinstance(value, float):
            return str(value)
        target = row.get(name.replace(" x", " target")) if name.endswith(" x") else None
        goal = f" (of {target:g})" if target else ""
        return f"{value:.3g}{goal}" if value < 100 else f"{value:.0f}{goal}"

    cells = [names, *([text(row, name) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def stamp() -> Row:
    """When, on what, and with what."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), cpu)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gatv2": gatv2.__version__,
    }


def append_csv(rows: list[Row], path: Path) -> None:
    """Append the rows, stamped."""
    rows = [stamp() | row for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def draw(rows: list[Row], path: Path) -> None:
    """A bar chart of how many times as fast as the first rival our layer is, and of the targets."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ours = [row for row in rows if row["who"] == "ours"]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.6 * len(ours)), layout="constrained")
    for offset, what in ((-0.2, "forward"), (0.2, "step")):
        places = [i + offset for i in range(len(ours))]
        bars = axes.barh(places, [row[f"{what} x"] for row in ours], 0.38, label=what)
        axes.bar_label(bars, fmt="%.1fx", padding=3)
        goals = [(p, row[f"{what} target"]) for p, row in zip(places, ours, strict=True)]
        for place, goal in goals:
            if goal:
                axes.plot([goal, goal], [place - 0.19, place + 0.19], color="black")
    axes.set_yticks(range(len(ours)), [row["case"] for row in ours])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("times as fast as the first rival; a line is the target")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
