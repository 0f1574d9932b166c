"""What was measured: a table, a CSV stamped with the machine, a picture."""

import csv
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import gatv2

Row = dict[str, Any]
COLUMNS = ("case", "who", "forward ms", "forward x", "step ms", "step x", "peak MB")


def cells(row: Row, columns: Sequence[str] = COLUMNS) -> list[str]:
    """A row's entries to three digits, for a person."""
    return [_text(row.get(name)) for name in columns]


def as_table(rows: list[Row], columns: Sequence[str] = COLUMNS) -> str:
    """The rows as aligned text; `x` is how many times as fast as the first rival."""
    lines = [list(columns), *(cells(row, columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    header, *body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([header, "-" * len(header), *body])


def append_csv(rows: list[Row], path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Append the rows, stamped."""
    stamp = _stamp()
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*stamp, *columns], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(stamp | row for row in rows)


def draw(rows: list[Row], path: Path) -> None:
    """Bars: by how much our layer beats PyTorch Geometric's, in time and in memory."""
    import matplotlib.pyplot as plt

    pairs = [
        (ours, rival)
        for ours, rival in pairwise(rows)
        if ours["who"] == "ours" and rival["who"] == "pyg"
    ]
    labels = [ours["case"] for ours, _ in pairs]
    figure, (time, memory) = plt.subplots(
        1, 2, figsize=(7, 1 + 0.5 * len(pairs)), sharey=True, layout="constrained"
    )
    for offset, what, color in ((-0.2, "forward", "tab:blue"), (0.2, "step", "tab:orange")):
        places = [i + offset for i in range(len(pairs))]
        bars = time.barh(places, [ours[f"{what} x"] for ours, _ in pairs], 0.38, color=color)
        bars.set_label({"forward": "forward pass", "step": "training step"}[what])
        time.bar_label(bars, [_text(ours[f"{what} x"]) for ours, _ in pairs], padding=3)
    # of a small graph both are next to nothing, and so is what their ratio says
    is_large = [bool(rival["peak MB"]) and rival["peak MB"] > 10 for _, rival in pairs]
    ratios = [
        rival["peak MB"] / ours["peak MB"] if large else 0.0
        for (ours, rival), large in zip(pairs, is_large, strict=True)
    ]
    bars = memory.barh(range(len(pairs)), ratios, 0.6, color="tab:green")
    memory.bar_label(bars, [_text(ratio) if ratio else "" for ratio in ratios], padding=3)
    time.set(xlabel="times as fast", xscale="log")
    memory.set(xlabel="times less memory", xscale="log")
    for axis in (time, memory):
        axis.margins(x=0.2, y=0.02)
        axis.set_xlim(left=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    time.set_yticks(range(len(pairs)), labels)
    time.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _text(value: object) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _stamp() -> Row:
    """When, on what, and with what."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), cpu)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gatv2": gatv2.__version__,
    }
