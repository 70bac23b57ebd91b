"""Find the first row and column that make a text file of numbers unreadable.

Fast readers do not say where they fail. This module reads the file again, slowly, to find the
fault.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Final

from spat.data.stamps import FORMATS

# Cells that mean a missing value, if the dataset allows missing values.
MISSING: Final = (
    *("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "?", "-", "--"),
)

# Squares of larger values do not fit into float32.
LARGEST: Final = 1e18
# The number of characters of a cell that a message shows.
LONGEST_SHOWN: Final = 60

# Characters that are allowed around a number.
_BLANKS: Final = " \t"
_THOUSANDS: Final = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]*)?")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Layout:
    """The columns of a text file, and how they are written.

    Attributes:
        columns: Names of all columns, in the order of the file.
        date: Positions of the columns that give the time stamp.
        drop: Positions of the columns that are left out.
        date_formats: Accepted formats of the time stamp.
        separator: Character that separates cells.
        decimal: Character of the decimal point.
        lines: Lines of the header, 0 if there is none.
        missing: Whether a number may be missing.
    """

    columns: tuple[str, ...]
    date: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    date_formats: tuple[str, ...] = FORMATS
    separator: str = ","
    decimal: str = "."
    lines: int = 0
    missing: bool = False

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Positions of the channels."""
        other = {*self.date, *self.drop}
        return tuple(i for i in range(len(self.columns)) if i not in other)


def first_fault(body: bytes, layout: Layout, sound: int = 0) -> str | None:
    """Find the first row without a time stamp and finite numbers in the columns of `layout`.

    Args:
        body: The file without its header.
        layout: What each column holds.
        sound: Number of rows at the beginning that are known to be valid and are not examined.

    Returns:
        A phrase that names row, line, column and value; None if every row is valid.
    """
    # A byte that is not UTF-8 becomes an escape, so another encoding does not hide the fault.
    text = io.TextIOWrapper(io.BytesIO(body), "utf-8", errors="backslashreplace", newline="")
    reader = csv.reader(text, delimiter=layout.separator)
    row, line = 0, layout.lines + 1
    try:
        for cells in reader:
            row += bool(cells)
            if cells and row > sound and (fault := _row_fault(cells, layout)):
                return f"row {row} (line {line}), {fault}"
            line = layout.lines + reader.line_num + 1
    except csv.Error as error:
        return f"line {line}: not a table of numbers ({error})"
    return None


def _row_fault(cells: list[str], layout: Layout) -> str | None:
    for i, (cell, column) in enumerate(zip(cells, layout.columns, strict=False)):
        problem = None
        if "\n" in cell or "\r" in cell:
            return f"column {column!r}: {shown(cell)} spans lines: is a quote not closed?"
        if i in layout.numbers and not (layout.missing and cell.strip(_BLANKS) in MISSING):
            problem = _number_fault(cell.strip(_BLANKS), layout.decimal)
        elif layout.date and i == layout.date[-1]:
            problem = time_fault(" ".join(cells[j] for j in layout.date), layout.date_formats)
        if problem:
            return f"column {column!r}: {problem}"
    actual, expected = len(cells), len(layout.columns)
    if actual < expected:
        column = layout.columns[actual]
        return f"column {column!r}: missing; {actual} of {expected} cells (truncated?)"
    if actual > expected:
        return f"column {expected + 1}: {actual} cells where the table has {expected} columns"
    return None


def _number_fault(cell: str, decimal: str) -> str | None:
    if not cell:
        return "empty; every cell must be a number (`gaps` says how missing values are filled)"
    if decimal != "." and "." in cell:
        return f"{shown(cell)} is not a number with the decimal sign {decimal!r}"
    english = cell.replace(decimal, ".")
    if _NUMBER.fullmatch(english):
        value = abs(float(english))
        problem = f"is above {LARGEST:g}" if value < float("inf") else "is not a finite number"
        return None if value <= LARGEST else f"{shown(cell)} {problem}"
    if english.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return f"{cell!r} is not a finite number"
    if cell in MISSING:
        return f"{shown(cell)} is not a number (`gaps` says how missing values are filled)"
    if decimal == "." and _THOUSANDS.fullmatch(cell):
        return (
            f"{shown(cell)} is not a number: remove the commas between thousands (only for a "
            "decimal comma set `decimal: ','`)"
        )
    if decimal == "." and _NUMBER.fullmatch(cell.replace(",", ".")):
        return f"{cell!r} is not a number; for a decimal comma set `decimal: ','`"
    if _NUMBER.fullmatch(re.sub(r"[_ ',\xa0]", "", english)):
        return f"{shown(cell)} is not a number: remove the signs between its digits"
    return f"{shown(cell)} is not a number: correct it, or leave the column out with `drop`"


def time_fault(text: str, formats: Sequence[str]) -> str | None:
    """What is wrong with a time stamp, and the remedy; None if it has one of the formats."""
    for form in formats:
        try:
            datetime.strptime(text.strip(), form)
            return None
        except ValueError as error:
            # Any other error means that the text has this format, but no such time exists.
            if not str(error).startswith(("time data", "unconverted data")):
                return f"{shown(text)} is a time that does not exist ({error})"
    for form, remedy in _FOREIGN_TIMES.items():
        if re.fullmatch(form, text.strip()):
            return f"{shown(text)} is not a time stamp: {remedy}"
    return (
        f"{shown(text)} is not a time stamp; known formats: {', '.join(formats)}; for another, set "
        "`date_format`, such as '%d/%m/%Y %H:%M'"
    )


# Times that no `date_format` can describe, and what to write instead.
_FOREIGN_TIMES: Final = {
    r".*\d:\d\d(:\d\d)?(\.\d+)? ?([+-]\d\d(:?\d\d)?|[A-Z]{3,4})": (
        "write all times in UTC, without an offset or a name of the time zone"
    ),
    r".*\d:\d\d:\d\d[.,]\d+Z?": "write it without fractions of a second",
    r".*\b24:\d\d(:\d\d)?": "the hours of a day are 0 to 23: write 00:00 of the next day",
    r"\d{5}(\.\d+)?|(?!(19|20)\d\d[01]\d)\d{9,}(\.\d+)?": (
        "write dates such as 2020-01-31 12:00:00, not the number of seconds or days since a start"
    ),
}


def shown(text: str) -> str:
    """The `repr` of a text, shortened, since an open quote can turn a file into one cell."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")
