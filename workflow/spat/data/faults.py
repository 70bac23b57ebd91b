"""Why a text file of numbers could not be read: the first row and column at fault.

Readers are fast and say little when they fail; this walks the file slowly, once, to say more.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from spat.files import READ_ERRORS, opened

# As the published files write them; %m, %d and %H also take a single digit.
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y-%m-%d", "%Y/%m/%d")


# What stands for a missing value, where the dataset allows some.
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "?")


@dataclass(frozen=True)
class Layout:
    """The columns of a text file: which are the time stamp, which are left out.

    Attributes:
        columns: Names of all columns, in the order of the file.
        date: Positions of the columns that give the time stamp.
        drop: Positions of the columns that are left out.
        date_formats: Accepted forms of the time stamp.
        header: Whether the first line holds the names.
        missing: Whether a number may be missing.
    """

    columns: tuple[str, ...]
    date: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    date_formats: tuple[str, ...] = TIME_FORMATS
    header: bool = True
    missing: bool = False

    @property
    def numbers(self) -> tuple[int, ...]:
        """Positions of the channels."""
        return tuple(i for i in range(len(self.columns)) if i not in {*self.date, *self.drop})


def first_fault(path: Path, layout: Layout) -> str | None:
    """The first row that does not have a time stamp and finite numbers where `layout` says.

    Returns:
        A phrase that names row, line, column and value; None if every row is as it should be.
    """
    try:
        # Latin-1 decodes any byte: headers with other encodings must not hide the fault sought.
        with io.TextIOWrapper(opened(path), encoding="latin-1", newline="") as file:
            for row, line in enumerate(csv.reader(file), start=0 if layout.header else 1):
                if line and row and (fault := _row_fault(line, layout)):
                    return f"row {row} (line {row + layout.header}), {fault}"
    except READ_ERRORS:
        return "the compressed data end early or are damaged (truncated?)"
    except csv.Error as error:
        return f"not a table of numbers ({error})"
    return None


def _row_fault(cells: list[str], layout: Layout) -> str | None:
    for i, (cell, column) in enumerate(zip(cells, layout.columns, strict=False)):
        problem = None
        if i in layout.numbers and not (layout.missing and cell.strip() in MISSING):
            problem = _number_fault(cell)
        elif layout.date and i == layout.date[-1]:
            problem = _time_fault(" ".join(cells[j] for j in layout.date), layout.date_formats)
        if problem:
            return f"column {column!r}: {problem}"
    found, expected = len(cells), len(layout.columns)
    if found < expected:
        return (
            f"column {layout.columns[found]!r}: missing; {found} of {expected} cells (truncated?)"
        )
    if found > expected:
        return f"column {expected + 1}: {found} cells where the table has {expected} columns"
    return None


def _number_fault(cell: str) -> str | None:
    if not cell.strip():
        return "empty; every cell must be a number"
    try:
        number = float(cell)
    except ValueError:
        return f"{cell!r} is not a number"
    return None if math.isfinite(number) else f"{cell!r} is not a finite number"


def _time_fault(text: str, formats: Sequence[str]) -> str | None:
    for layout in formats:
        with suppress(ValueError):
            datetime.strptime(text, layout)
            return None
    return f"{text!r} is not a time stamp; known: {', '.join(formats)}"
