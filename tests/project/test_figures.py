"""Every ratio in the README's table of speed is that of the measurements that are kept."""

import csv
import re
from pathlib import Path

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


def measured(case: str) -> list[float]:
    """Times as fast as PyTorch Geometric, forward and a training step, and times less memory."""
    with (ROOT / "docs/data/benchmarks.csv").open(newline="") as file:
        of = {row["who"]: row for row in csv.DictReader(file) if row["case"] == case}
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
