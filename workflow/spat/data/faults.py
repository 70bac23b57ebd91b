"""Why a text file of numbers could not be read: the first row and column at fault.

Readers are fast and say little when they fail; this walks the file slowly, once, to say more.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from spat.files import READ_ERRORS, opened

# As the published files write them; %m, %d and %H also take a single digit.
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y-%m-%d", "%Y/%m/%d")


def first_fault(path: Path, columns: Sequence[str], *, header: bool, timed: bool) -> str | None:
    """The first row that is not `columns` finite numbers (a time stamp first, if `timed`).

    Returns:
        A phrase that names row, line, column and value; None if every row is as it should be.
    """
    try:
        # Latin-1 decodes any byte: headers with other encodings must not hide the fault sought.
        with io.TextIOWrapper(opened(path), encoding="latin-1", newline="") as file:
            for row, line in enumerate(csv.reader(file), start=0 if header else 1):
                if line and row and (fault := _row_fault(line, columns, timed)):
                    return f"row {row} (line {row + header}), {fault}"
    except READ_ERRORS:
        return "the compressed data end early or are damaged (truncated?)"
    except csv.Error as error:
        return f"not a table of numbers ({error})"
    return None


def _row_fault(cells: list[str], columns: Sequence[str], timed: bool) -> str | None:
    for index, (cell, column) in enumerate(zip(cells, columns, strict=False)):
        problem = _time_fault(cell) if timed and index == 0 else _number_fault(cell)
        if problem:
            return f"column {column!r}: {problem}"
    found, expected = len(cells), len(columns)
    if found < expected:
        return f"column {columns[found]!r}: missing; {found} of {expected} cells (truncated?)"
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


def _time_fault(cell: str) -> str | None:
    for layout in TIME_FORMATS:
        with suppress(ValueError):
            datetime.strptime(cell, layout)
            return None
    return f"{cell!r} is not a time stamp; known: {', '.join(TIME_FORMATS)}"
