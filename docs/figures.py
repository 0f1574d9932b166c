"""Pictures and tables of the pages, made from the CSV of runs when the pages are built."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import run_log

from benchmarks import everyday, large, masks, report

DATA = Path(__file__).parent / "data"
FIGURES = Path(__file__).parent / "_figures"
DRAWINGS = {
    "benchmarks": ("benchmarks", report.draw),
    "masks": ("benchmarks", masks.draw),
    "large": ("large", large.draw),
}
"""Each picture: the CSV it is drawn from, and who draws it."""
FROM_KEPT_RESULTS = {
    "lookup_figure": ("--results", "../docs/_figures/lookup.csv"),
    "noise_figure": ("--root", ".", "--results", "../docs/_figures/noise.csv"),
}
SHORT = {
    "lookup": ("--epochs", "1"),
    "jax_dictionary_lookup": ("--k", "5", "--steps", "100"),
    "digits": (),
    "learned_graph": (),
}
EXAMPLES = {name: ("--output", "../docs/_figures", *given) for name, given in SHORT.items()}
EXAMPLES |= FROM_KEPT_RESULTS
"""The examples that run when the pages are built, and their command lines, seen from `examples/`."""


def draw_all() -> None:
    """Draw the pictures of the benchmarks, and write their tables, case by case."""
    FIGURES.mkdir(exist_ok=True)
    for name, (data, draw) in DRAWINGS.items():
        draw(run_log.read(DATA / f"{data}.csv"), FIGURES / f"{name}.svg")
    for name in ("lookup", "noise"):
        shutil.copy(DATA / f"{name}.csv", FIGURES)  # which an example may write to
    (FIGURES / "benchmarks.md").write_text(tables(run_log.read(DATA / "benchmarks.csv")))
    (FIGURES / "dgl.md").write_text(dgl_table(run_log.read(DATA / "dgl.csv")))
    (FIGURES / "everyday.md").write_text(everyday_table(run_log.read(DATA / "everyday.csv")))
    (FIGURES / "locality.md").write_text(locality_table(run_log.read(DATA / "locality.csv")))


def tables(rows: list[run_log.Row]) -> str:
    """A heading and a table for each case."""
    header = f"| {' | '.join(report.COLUMNS[1:])} |\n{'|---' * (len(report.COLUMNS) - 1)}|\n"
    text = ""
    for case in dict.fromkeys(row["case"] for row in rows):
        lines = (report.cells(row)[1:] for row in rows if row["case"] == case)
        text += f"## {case[0].upper()}{case[1:]}\n\n{header}"
        text += "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
    return text


def dgl_table(rows: list[run_log.Row]) -> str:
    """A row for each case: how many times as fast and as lean as DGL's layer ours is."""
    text = "| case | forward | training step | memory |\n|---|---|---|---|\n"
    for ours, dgl in pairwise(rows):
        if dgl["who"] == "dgl":
            ratios = ours["forward x"], ours["step x"], dgl["peak MB"] / ours["peak MB"]
            text += f"| {ours['case']} | {' | '.join(f'{ratio:.3g}x' for ratio in ratios)} |\n"
    return text


def everyday_table(rows: list[run_log.Row]) -> str:
    """For each processor a row for each piece of work: times, and how many times PyTorch Geometric's."""
    text = ""
    for cpu in dict.fromkeys(row["cpu"] for row in rows):
        text += f"| {cpu} | PyG | prepared | | fresh | |\n|---|---|---|---|---|---|\n"
        for row in (row for row in rows if row["cpu"] == cpu):
            cells = report.cells(row, everyday.COLUMNS)
            case, pyg, prepared, prepared_x, fresh, fresh_x = cells
            ratios = f"{prepared} ms | {prepared_x}x | {fresh} ms | {fresh_x}x"
            text += f"| {case} | {pyg} ms | {ratios} |\n"
        text += "\n"
    return text


def locality_table(rows: list[run_log.Row]) -> str:
    """A row for each graph and order."""
    text = "| graph | edges | order | to find it | forward | step |\n|---|---|---|---|---|---|\n"
    for row in rows:
        times = (f"{row[f'{what} ms']:.0f}" for what in ("order", "forward", "step"))
        text += f"| {row['graph']} | {row['edges']:,} | {row['order']} | {' | '.join(times)} |\n"
    return text


def arguments(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """The command line of an example, which Sphinx-Gallery asks for."""
    return list(EXAMPLES[Path(script_vars["src_file"]).stem])
