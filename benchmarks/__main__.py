"""Run the benchmarks: `python -m benchmarks --help`."""

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import everyday
from benchmarks.cases import CASES, QUICK, Case, against_dgl
from benchmarks.measure import (
    check_agreement,
    floors,
    functions,
    interleaved,
    peak_memory,
    summary,
)
from benchmarks.report import Row, append_csv, as_table, draw


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small graphs, in seconds")
    parser.add_argument("--everyday", action="store_true", help="what people run first, instead")
    parser.add_argument("--dgl", action="store_true", help="against DGL's layer, where it can run")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--output", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.everyday:
        measure_everyday(options)
        return
    cases = [case for case in (QUICK if options.quick else CASES) if options.only in case.name]
    if options.dgl:
        cases = against_dgl(cases)
    rows: list[Row] = []
    progress = tqdm(cases, unit="case")
    for case in progress:
        progress.set_postfix_str(case.name)
        seconds = 1.0 if options.quick else options.seconds
        rows += measure(case, seconds, has_memory=not options.no_memory, tick=progress.refresh)
    print(as_table(rows))
    append_csv(rows, options.output / ("dgl.csv" if options.dgl else "benchmarks.csv"))
    if not options.dgl:
        draw(rows, options.output / "benchmarks.png")


def measure_everyday(options: argparse.Namespace) -> None:
    """A row for each piece of work of `benchmarks.everyday`."""
    works = [work for work in everyday.works() if options.only in work.name]
    progress = tqdm(works, unit="case")
    rows = [everyday.measure(work, options.seconds, progress.refresh) for work in progress]
    print(as_table(rows, everyday.COLUMNS))
    append_csv(rows, options.output / "everyday.csv", everyday.COLUMNS)


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
        for what in ("forward", "step"):
            row[f"{what} ms"] = medians[f"{name} {what}"]
            row[f"{what} x"] = medians[f"{rival} {what}"] / medians[f"{name} {what}"]
        row["peak MB"] = peak_memory(case.name, name) if has_memory else None
        rows.append(row)
        tick()
    names = ("gather", "projections")
    floor = [{"case": case.name, "who": f"floor: {n}", "forward ms": medians[n]} for n in names]
    return rows + floor


if __name__ == "__main__":
    main()
