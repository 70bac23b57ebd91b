"""Guess the format of a data file; `python -m spat add` prints the result."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

import numpy as np

from spat.data import raw, reading, stamps
from spat.data.faults import MISSING, shown, time_fault
from spat.data.registry import DataError, Dataset, Gaps, Shares, Table, season_of
from spat.data.series import Series

# Number of rows that are examined.
SAMPLE: Final = 1000

_SEPARATORS: Final = (",", ";", "\t", "|")
_ENCODINGS: Final = ("utf-8-sig", "cp1252", "latin-1")
# Numbers that instruments write for a missing value.
_SIGNS: Final = (-99.0, -999.0, -9999.0, -99999.0)
_DAY: Final = timedelta(days=1)
_MONTH: Final = 28 * _DAY
_PARTS: Final = ("year", "month", "day", "hour", "minute", "second")
_PART_FORMATS: Final = ("%Y", "%m", "%d", "%H", "%M", "%S")
_DAYS: Final = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%Y%m%d", "%Y-%m-%d", "%Y/%m/%d")
_HOURS: Final = ("%H:%M:%S", "%H:%M")
_OTHER_FORMATS: Final = (*(f"{day} {hour}" for day in _DAYS for hour in _HOURS), *_DAYS)


@dataclass(frozen=True)
class Guess:
    """The guessed description of a file, and the series that was read with it.

    Attributes:
        dataset: Row of the registry with the guessed options and the measured sizes and hash.
        series: The series in the file.
        left_out: The columns that are not numbers, each with its first such cell, in quotes.
        doubts: Columns that may have another meaning than their numbers.
    """

    dataset: Dataset
    series: Series
    left_out: Mapping[str, str]
    doubts: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What the user should know about the content of the file."""
        notes = []
        if self.left_out:
            left = (
                f"{name or 'a column without a name'} ({cell})"
                for name, cell in self.left_out.items()
            )
            notes.append(f"left out, since they are not numbers: {', '.join(left)}")
        if self.series.dropped:
            notes.append(f"{self.series.dropped} rows before the first complete one are left out")
        if self.dataset.gaps.rule != "refuse":
            notes.append(
                f"values are missing (longest gap: {self.dataset.gaps.limit} steps); they are "
                "filled with the value before them"
            )
        return [*notes, *self.doubts]


def guess(name: str, path: Path) -> Guess:
    """Guess the format of a text file, and read it.

    The separator is the one that splits the most rows into as many cells as the header has. The
    time stamp is the column, or the pair of adjacent columns, whose sample has the most regular
    time stamps; columns named year, month, day and so on are taken together. Columns that do not
    hold numbers or have no name are left out. If values or rows are missing, the rule is `forward`
    and the limit is the longest gap.

    Raises:
        DataError: naming the file, if it cannot be read, or no separator or time stamp fits.
    """
    try:
        content = raw.load(path).content
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except raw.READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    encoding, text = _decoded(path, content)
    separator, header, rows = _cells(path, text)
    decimal = _decimal(separator, rows)
    date, date_format = _date(path, header, rows)
    left_out: dict[str, str] = {}
    doubts = []
    for i, column in enumerate(header):
        cells = [row[i].strip() for row in rows if row[i].strip() not in MISSING]
        wrong = next((cell for cell in cells if not _parses(cell, decimal)), None)
        if column in date or column in left_out:
            continue
        if not column:
            left_out[column] = "it may hold row numbers"
        elif wrong is not None or not cells:
            left_out[column] = "no values" if wrong is None else shown(wrong)
        elif separator == ";" and decimal == "." and (cell := _with_thousands(cells)):
            doubts.append(
                f"{column}: {cell!r} is read as {float(cell):g}: if the point separates thousands, "
                "remove it from the file"
            )
    dataset = Dataset(
        name=name,
        file=str(path),
        urls=(),
        sha256=(),
        rows=0,
        channels=0,
        step=_step(header, rows, date, date_format),
        split=Shares(train=0.7, test=0.2),
        season=1,
        station=name,
        format="csv",
        mark=True,
        table=Table(
            date=date,
            date_format="" if date_format in stamps.FORMATS and len(date) == 1 else date_format,
            drop=tuple(left_out),
            separator=separator,
            decimal=decimal,
            encodings=(encoding,),
        ),
    )
    dataset = replace(dataset, season=season_of(dataset.step))
    try:
        series = reading.parse(dataset, path)
    except DataError:
        # Read again with gaps of any length; any other error is raised again.
        free = replace(dataset, gaps=Gaps("forward", limit=len(content)))
        series = reading.parse(free, path)
        dataset = replace(dataset, gaps=Gaps("forward", limit=max(1, longest(series))))
    return Guess(reading.measured(dataset, path), series, left_out, (*doubts, *_signs(series)))


def longest(series: Series) -> int:
    """The longest gap of any channel, in steps."""
    best = 0
    for channel in np.isnan(series.values).T:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], channel, [False]]).astype(int)))
        best = max(best, int((edges[1::2] - edges[::2]).max(initial=0)))
    return best


def _decoded(path: Path, content: bytes) -> tuple[str, str]:
    for start, kind in reading.OTHERS.items():
        if content.startswith(start):
            raise DataError(f"{path}: {kind}")
    marked = [name for mark, name in reading.MARKS.items() if content.startswith(mark)]
    if not marked and b"\0" in content[:4096]:
        raise DataError(f"{path}: not a text file: it holds bytes of value 0")
    for encoding in (*marked, *_ENCODINGS):
        with suppress(UnicodeDecodeError):
            return encoding, content.decode(encoding)
    raise AssertionError("latin-1 decodes any bytes")


def _signs(series: Series) -> Iterator[str]:
    """Channels with a number that often means a missing value, and is far from all other values."""
    for name, values in zip(series.names, series.values.T, strict=True):
        known = values[np.isfinite(values)]
        if len(known) and (lowest := known.min()) in _SIGNS:
            others = known[known > lowest]
            if len(known) - len(others) > 1 and len(others) and others.min() > lowest / 2:
                yield (
                    f"{name} is {lowest:g} in {len(known) - len(others)} rows: if that means a "
                    "missing value, leave these cells empty"
                )


def _with_thousands(cells: Sequence[str]) -> str | None:
    """The first cell with a point, if each point may separate thousands, as in 1.250 and 999."""
    if all(re.fullmatch(r"[+-]?([1-9]\d{0,2}\.\d{3}|\d{1,3})", cell) for cell in cells):
        return next((cell for cell in cells if "." in cell), None)
    return None


def _cells(path: Path, text: str) -> tuple[str, list[str], list[list[str]]]:
    # The separator, the header, and those of the first rows that have as many cells as the header.
    best: tuple[int, int, str, list[str], list[list[str]]] | None = None
    for separator in _SEPARATORS:
        with suppress(csv.Error):
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            header, *rest = [*islice((row for row in reader if row), SAMPLE + 1)] or [[]]
            rows = [row for row in rest if len(row) == len(header)]
            candidate = (len(rows), len(header), separator, header, rows)
            if len(header) > 1 and rows and (best is None or candidate[:2] > best[:2]):
                best = candidate
    if best is None:
        first = [line for line in text[:10_000].splitlines() if line.strip()][:2]
        begin = f": the first lines are {' and '.join(map(shown, first))}" if first else ""
        raise DataError(
            f"{path}: not a table: no separator ({', '.join(map(repr, _SEPARATORS))}) splits its "
            f"header and its rows into the same number of cells, at least two{begin}"
        )
    return best[2], [" ".join(name.split()) for name in best[3]], best[4]


def _decimal(separator: str, rows: list[list[str]]) -> str:
    if separator == ",":
        return "."
    cells = [cell.strip() for row in rows for cell in row]
    commas = sum(re.fullmatch(r"[+-]?\d+,\d+", cell) is not None for cell in cells)
    points = [cell for cell in cells if re.fullmatch(r"[+-]?\d+\.\d+", cell)]
    # Beside decimal commas, points may separate thousands.
    return "," if commas > len(points) or (commas and _with_thousands(points)) else "."


def _date(path: Path, header: Sequence[str], rows: list[list[str]]) -> tuple[tuple[str, ...], str]:
    # The columns of the time stamp, and its format.
    lower = [name.lower() for name in header]
    parts = [part for part in _PARTS if part in lower]
    if parts == list(_PARTS[: len(parts)]) and len(parts) >= 3:
        at = [lower.index(part) for part in parts]
        return tuple(header[i] for i in at), " ".join(_PART_FORMATS[: len(at)])
    places = [*((i,) for i in range(len(header))), *((i, i + 1) for i in range(len(header) - 1))]
    candidates: list[tuple[int, tuple[int, ...], str]] = []
    for place in places:
        # Year, month and day have at least six digits. The check saves time if there are many
        # channels.
        if sum(char.isdigit() for row in rows[:1] for i in place for char in row[i]) < 6:
            continue
        texts = [" ".join(row[i] for i in place) for row in rows]
        for form in (*stamps.FORMATS, *_OTHER_FORMATS):
            if (times := _times(texts, form)) is not None and len(set(times)) > 1:
                # Months count as equal steps, which `reading.parse` then refuses with a remedy.
                steps = [
                    _MONTH if _MONTH <= b - a <= 31 * _DAY else b - a for a, b in pairwise(times)
                ]
                # If two formats differ in the order of day and month, the right one makes the rows
                # regular.
                usual = max(set(steps), key=steps.count)
                candidates.append((steps.count(usual), place, form))
    if not candidates:
        raise DataError(
            f"{path}: no column of time stamps was found among {', '.join(header[:12])}"
            f"{_first_time_fault(header, rows)}: correct the file, or write the block by hand, "
            "with `date` and `date_format`"
        )
    # The most regular candidate; among equals the one with two columns (date and time), then the
    # first column and the first format.
    _, place, form = max(candidates, key=lambda entry: (entry[0], len(entry[1])))
    return tuple(header[i] for i in place), form


def _first_time_fault(header: Sequence[str], rows: list[list[str]]) -> str:
    """The cell for which the most likely column is not one of time stamps; empty if none is."""
    if len(rows) < 2:
        return f" ({len(rows)} row of as many cells as the header; at least two are needed)"
    best = (0, 0, "")
    for i in range(min(len(header), 12)):
        for form in (*stamps.FORMATS, *_OTHER_FORMATS):
            good = [_times([row[i]], form) is not None for row in rows]
            best = max(best, (sum(good), -i, form))
    count, place, form = best
    bad = [row[-place] for row in rows if _times([row[-place]], form) is None]
    if count > 1 and bad:
        return f" ({header[-place]!r} has {shown(bad[0])} among times of the format {form})"
    named = (i for i, name in enumerate(header) if re.search("(?i)date|time|stamp|^ts$", name))
    if (at := next(named, None)) is not None:
        return f" ({header[at]!r}: {time_fault(rows[0][at], stamps.FORMATS)})"
    return ""


def _times(texts: Sequence[str], form: str) -> list[datetime] | None:
    try:
        return [datetime.strptime(text, form) for text in texts]
    except ValueError:
        return None


def _step(
    header: Sequence[str], rows: list[list[str]], date: Sequence[str], date_format: str
) -> str:
    at = [header.index(name) for name in date]
    times = _times([" ".join(row[i] for i in at) for row in rows], date_format) or []
    steps = [int((b - a).total_seconds()) for a, b in pairwise(times)]
    steps = [step for step in steps if step > 0] or [3600]
    return stamps.span(max(set(steps), key=steps.count))


def _parses(text: str, decimal: str) -> bool:
    if decimal != "." and "." in text:
        return False
    try:
        float(text.replace(decimal, "."))
    except ValueError:
        return False
    return codecs.encode(text, "ascii", "ignore").decode() == text and "_" not in text
