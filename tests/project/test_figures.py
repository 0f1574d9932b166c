"""The numbers in the README are those of the measurements that are kept."""

import csv
import re
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[2]
CASES = {
    "20 nodes, 100 edges": "20 nodes, 100 edges",
    "Cora's density (2,708 nodes)": "Cora's density",
    "169k nodes, 2.3M edges": "169k nodes, 2.3M edges, 8 x 8",
    "power law (100k nodes, 2.9M edges)": "power law",
    "20k nodes, 2M edges": "20k nodes, 2M edges",
}
"""What the README calls a case, and what the measurements call it."""


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV under docs/data."""
    with (ROOT / "docs/data" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measured(case: str) -> list[float]:
    """Times as fast as PyTorch Geometric, forward and a training step, and times less memory."""
    of = {row["who"]: row for row in rows("benchmarks") if row["case"] == case}
    columns = ("forward ms", "step ms", "peak MB")
    return [float(of["pyg"][column]) / float(of["ours"][column]) for column in columns]


def check_table(text: str) -> int:
    """Compare the ratios of a table with the measurements; returns how many there are."""
    n_ratios = 0
    for name, case in CASES.items():
        (line,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", text, re.MULTILINE)
        for cell, ratio in zip(line.split("|"), measured(case), strict=True):
            if cell.strip():
                told = float(cell.split("x")[0])
                assert told == float(f"{ratio:.3g}"), f"{name}: {told} is not {ratio}"
                n_ratios += 1
    return n_ratios


def test_ratios_in_the_readme_are_measured() -> None:
    assert check_table((ROOT / "README.md").read_text()) == 14


def test_another_ratio_is_noticed() -> None:
    text = (ROOT / "README.md").read_text()
    told = re.search(r"\| power law .*?\| ([\d.]+)x", text)
    assert told is not None
    with pytest.raises(AssertionError, match="power law"):
        check_table(text.replace(told[1], f"{float(told[1]) + 1:.1f}"))


def check_accuracies(text: str) -> None:
    """Compare the table of the dictionary lookup with the runs of one head and twenty keys."""
    for layer in ("GAT", "GATv2"):
        runs = [row for row in rows("lookup") if row["layer"] == layer]
        runs = [row for row in runs if row["n_heads"] == "1" and row["k"] == "20"]
        (line,) = re.findall(rf"^\| {layer} \|(.*)\|$", text, re.MULTILINE)
        columns = ("train_accuracy", "test_accuracy")
        for cell, column in zip(line.split("|"), columns, strict=True):
            share = fmean(float(row[column]) for row in runs)
            assert cell.strip() == f"{100 * share:.1f} %", f"{layer}: {cell} is not {share}"


def test_accuracies_in_the_readme_are_measured() -> None:
    text = (ROOT / "README.md").read_text()
    check_accuracies(text)
    with pytest.raises(AssertionError, match="GATv2"):
        check_accuracies(text.replace("| 100.0 %", "| 99.0 %"))


def check_memory(text: str) -> None:
    """Compare the largest graph and the memory it takes with the last run of ours."""
    largest = [row for row in rows("large") if row["who"] == "ours"][-1]
    told = re.findall(r"on (\d+) million edges with (\d+) GB", text)
    assert told == [(f"{int(largest['edges']) / 1e6:.0f}", f"{float(largest['peak GB']):.0f}")], (
        told
    )


def test_the_largest_graph_in_the_readme_is_measured() -> None:
    text = (ROOT / "README.md").read_text()
    check_memory(text)
    with pytest.raises(AssertionError):
        check_memory(text.replace("with 12 GB", "with 11 GB"))
