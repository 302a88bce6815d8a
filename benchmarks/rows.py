"""Rows of measurements in a CSV file, which later runs add to."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from benchmarks import markdown
from nvg_jax import files
from nvg_jax.errors import UserError

Row = Mapping[str, str]


def load(path: epath.PathLike, keys: Sequence[str]) -> dict[tuple[str, ...], Row]:
    """The rows of a file by what tells them apart, its first columns; none if there is no file."""
    if not epath.Path(path).exists():
        return {}
    reader = csv.DictReader(io.StringIO(epath.Path(path).read_text()))
    if tuple(reader.fieldnames or ())[: len(keys)] != tuple(keys):
        raise UserError(f"{path} is not a file of this program: name another as --output")
    return {tuple(row[name] for name in keys): row for row in reader}


def add(path: epath.PathLike, done: dict[tuple[str, ...], Row], row: Row, num_keys: int) -> None:
    """Adds a row to those of a file, and writes it; UserError if it has other columns."""
    if done and row.keys() != next(iter(done.values())).keys():
        raise UserError(f"{path} has other columns: name another file as --output")
    done[tuple(row.values())[:num_keys]] = row
    text = io.StringIO()
    writer = csv.DictWriter(text, row.keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(done.values())
    files.write_text(path, text.getvalue())


def summary(rows: Sequence[Row], head: Mapping[str, str], keys: Sequence[str]) -> str:
    """A Markdown table of the means over rows that agree in the columns of `head`, by their titles;
    with standard deviations of several. keys: columns that are no measurements."""
    columns = [name for name in rows[0] if name not in keys]
    shown = []
    for key in dict.fromkeys(tuple(row[name] for name in head) for row in rows):
        same = [row for row in rows if tuple(row[name] for name in head) == key]
        cells = []
        for name in columns:
            values = [float(row[name]) for row in same]
            spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3g}{spread}")
        shown.append((*key, *cells))
    return markdown.table((*head.values(), *columns), shown)
