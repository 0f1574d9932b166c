"""Results of many runs in a CSV: a row for each finished run, so that a stopped program can go on."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows, with ints and floats as such; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {column: _parse(entry) for column, entry in row.items()} for row in csv.DictReader(file)
        ]


def complete(
    path: Path, runs: Iterable[Row], do: Callable[..., Row], columns: Sequence[str]
) -> list[Row]:
    """Do the runs that have no row yet, under a progress bar, and return the rows of all.

    Args:
        path: the CSV.
        runs: what identifies each run: the first columns of its row.
        do: `do(**run)` gives the other columns.
        columns: names of all columns.
    """
    rows = read(path)
    missing = [run for run in runs if not any(run.items() <= row.items() for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file, tqdm(missing, unit="run") as progress:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for run in progress:
            progress.set_postfix(run)
            writer.writerow(run | do(**run))
            file.flush()
    return read(path)


def by(rows: Iterable[Row], column: str, value: str) -> dict[Any, list[Any]]:
    """Entries of the column `value`, grouped by the entry of `column`, in order."""
    groups: dict[Any, list[Any]] = {}
    for row in sorted(rows, key=lambda row: row[column]):
        groups.setdefault(row[column], []).append(row[value])
    return groups


def _parse(entry: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(entry)
        except ValueError:
            continue
    return entry
