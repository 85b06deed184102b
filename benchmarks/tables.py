"""Writing results: TSV files and Markdown tables."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import fasdiff_edge

RESULTS = Path(__file__).parent / "results" / fasdiff_edge.__version__

Row = Mapping[str, object]


def write_tsv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the same keys as a TSV file, making its folder; floats to five digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _rounded(value) for name, value in row.items()} for row in rows)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of rows with the same keys; columns of numbers are aligned right."""
    names = list(rows[0])
    right = [not isinstance(rows[0][name], str) for name in names]
    lines = [names, ["--:" if flag else ":--" for flag in right]]
    lines += [[str(_rounded(row[name])) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rounded(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value
