"""A picture of the cases that come as a mask: time of a step over the share of pairs that are edges."""

from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.report import Row

DENSITY = {case.name: case.density for case in CASES if case.n_edges is None}
CURVES = {
    "formula": ("formula, over the mask", "tab:red"),
    "pyg": ("PyG, over edges", "tab:orange"),
    "converted": ("ours, mask to edges in each call", "tab:purple"),
    "dense": ("ours, over the mask", "tab:green"),
    "ours": ("ours, prepared", "tab:blue"),
}
"""The contenders, as the legend calls them, and their colours."""


def draw(rows: list[Row], path: Path) -> None:
    """A curve for each contender, in milliseconds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for who, (label, color) in CURVES.items():
        points = sorted(
            (DENSITY[row["case"]], row["step ms"])
            for row in rows
            if row["who"] == who and row["case"] in DENSITY
        )
        axes.loglog(*zip(*points, strict=True), marker="o", color=color, label=label)
    axes.set(xlabel="share of all pairs that are edges", ylabel="training step, ms")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path)
    plt.close(figure)
