"""Pictures and a table of the pages, made from the CSV of runs when the pages are built.

They are SVG that stands in the page itself, with `currentColor` for text and lines, and so look
right in the light and in the dark theme.
"""

from pathlib import Path

import learned_graph
import lookup_figure
import matplotlib as mpl
import noise_figure
import run_log

from benchmarks import large, report

DATA = Path(__file__).parent / "data"
DRAWINGS = {
    "lookup": lookup_figure.draw,
    "noise": noise_figure.draw,
    "learned_graph": learned_graph.draw,
    "benchmarks": report.draw,
    "large": large.draw,
}
INK = "#0a0b0c"  # stands for currentColor
STYLE = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "gatv2",
    "font.family": "sans-serif",
}


def draw_all(folder: Path) -> None:
    """Draw every picture into `folder`, and write the table of the benchmarks."""
    folder.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, draw in DRAWINGS.items():
            path = folder / f"{name}.svg"
            draw(run_log.read(DATA / f"{name}.csv"), path)
            svg = path.read_text()
            path.write_text(svg[svg.index("<svg") :].replace(INK, "currentColor"))
    rows = run_log.read(DATA / "benchmarks.csv")
    lines = [list(report.COLUMNS), ["---"] * len(report.COLUMNS)]
    last = ""
    for row in rows:
        case, *others = report.cells(row)
        lines.append(["" if case == last else case, *others])
        last = case
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (folder / "benchmarks.md").write_text(table)
