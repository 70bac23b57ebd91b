"""Parse time stamps, average rows over steps, and check that rows are one step apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from spat.data.registry import DataError, Dataset, step_seconds

if TYPE_CHECKING:
    import pyarrow as pa

# %m, %d and %H also take a single digit.
FORMATS: Final = (
    "%Y-%m-%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d %H:%M:%S",
)

# The largest number of steps that time stamps may span: three years of seconds.
MOST_STEPS: Final = 10**8

Values = NDArray[np.float64]
Times = NDArray[np.datetime64]


def parsed(texts: Any, formats: Sequence[str]) -> Times:
    """Parse texts (an Arrow column [T]) into times [T]; a text in none of the formats becomes NaT.

    Arrow reads 30 February as 1 March and second 60 as the next minute. Therefore each time is
    written in the same format again and compared with its text. If they differ, Python's
    `datetime`, which is slower and exact, parses the text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_trim_whitespace(texts)
    times = np.full(len(texts), "NaT", dtype="M8[s]")
    for form in formats:
        rest = np.flatnonzero(np.isnat(times))
        if not len(rest):
            break
        some = texts if len(rest) == len(times) else texts.take(pa.array(rest))
        parsed = pc.strptime(some, format=form, unit="s", error_is_null=True)
        written = _written(parsed, form)
        same = pc.equal(some, written).fill_null(False)
        if not pc.all(same).as_py():  # pad single digits, as `_written` does
            padded = pc.replace_substring_regex(some, r"\b(\d)\b", r"0\1")
            same = pc.equal(padded, written).fill_null(False)
        times[rest] = parsed.to_numpy().astype("M8[s]")
        for i in np.flatnonzero(~same.to_numpy() & parsed.is_valid().to_numpy()).tolist():
            exact = None
            with suppress(ValueError):
                exact = datetime.strptime(some[i].as_py(), form)
            if exact != times[rest[i]]:
                times[rest[i]] = np.datetime64("NaT")
    return times


# The positions of the parts of a time in `2026-01-31 12:00:00`.
_PLACES: Final = {
    "Y": (0, 4),
    "m": (5, 7),
    "d": (8, 10),
    "H": (11, 13),
    "M": (14, 16),
    "S": (17, 19),
}


def _written(times: pa.ChunkedArray, form: str) -> pa.ChunkedArray:
    """Format times; each part has its full number of digits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = re.split("%(.)", form)  # literals, with directives between them
    if not set(parts[1::2]) <= set(_PLACES):
        return pc.strftime(times, format=form)  # slow
    iso = times.cast(pa.string())
    if form == FORMATS[0]:
        return iso
    pieces = [
        pc.utf8_slice_codeunits(iso, *_PLACES[part]) if i % 2 else part
        for i, part in enumerate(parts)
    ]
    return pc.binary_join_element_wise(*pieces, "")


def span(seconds: int) -> str:
    """Write seconds as a `step`, in the largest unit that divides them: 900 -> `15min`."""
    for unit, width in (("W", 604800), ("D", 86400), ("h", 3600), ("min", 60)):
        if seconds and seconds % width == 0:
            return f"{seconds // width}{unit}"
    return f"{seconds}s"


def means(path: Path, values: Values, times: Times, step: str) -> tuple[Values, Times]:
    """Average values [T, C] at times [T] over steps -> means [S, C] and starts of the steps [S].

    Steps are counted from the midnight before the first row. Missing values (NaN) are left out of
    a mean; the mean of a step without values is NaN.

    Raises:
        DataError: naming file and time stamps, if there are more than `MOST_STEPS` steps.
    """
    width = np.timedelta64(step_seconds(step), "s")
    midnight = times.min().astype("M8[D]")
    number = (times - midnight) // width
    first = number.min()
    number -= first
    steps = int(number.max()) + 1
    if steps > MOST_STEPS:
        raise DataError(
            f"{path}: from {times.min()} to {times.max()} there are {steps} steps of {step}, more "
            f"than {MOST_STEPS}: correct the time stamp that is wrong, or set a longer `step`"
        )
    means = np.full((steps, values.shape[1]), np.nan)
    known = np.isfinite(values)
    for channel in range(values.shape[1]):
        at = known[:, channel]
        counts = np.bincount(number[at], minlength=steps)
        sums = np.bincount(number[at], weights=values[at, channel], minlength=steps)
        np.divide(sums, counts, out=means[:, channel], where=counts > 0)
    start = midnight + first * width
    return means, (start + np.arange(steps) * width).astype("M8[s]")


def regular(path: Path, dataset: Dataset, values: Values, times: Times) -> tuple[Values, Times]:
    """Check that rows are one step apart; return values [T, C] and times [T] without missing rows.

    If the rule of the dataset fills gaps, a step without a row gets a row of missing values. Time
    stamps that the registry lists as irregular are accepted.

    Raises:
        DataError: naming file, row (numbered from 1) and time stamps, if the rows run backwards in
            time, are out of order, repeat a time stamp, have another step than the dataset, or
            leave out steps that may not be filled. Rows are never sorted.
    """
    seconds = np.diff(times).astype("m8[s]").astype(np.int64)
    step = step_seconds(dataset.step)
    odd = np.flatnonzero(seconds != step)
    if dataset.irregular is not None:
        known = np.array(dataset.irregular, dtype="M8[s]")
        odd = odd[~np.isin(times[odd + 1], known)]
    if dataset.irregular is None or not len(odd):
        return values, times
    _check_order(path, times, seconds, odd)
    widths, counts = np.unique(seconds, return_counts=True)
    usual = int(widths[counts.argmax()])
    if usual >= _MONTH and widths.max() - widths.min() <= _MONTHS_DIFFER:
        raise DataError(
            f"{path}: the rows are calendar months, quarters or years, which differ in length: "
            "set `date: []`, and leave the column of the time stamps out with `drop`"
        )
    if usual != step:
        raise DataError(
            f"{path}: the rows are {span(usual)} apart, but the step is {dataset.step}: set "
            f"`step: {span(usual)}`"
        )
    for i in odd.tolist():
        where = f"{path}, row {i + 2}: {times[i + 1]} comes {span(int(seconds[i]))} after"
        lost = int(seconds[i]) // step - 1
        if seconds[i] % step:
            raise DataError(
                f"{where} {times[i]}, which is not a multiple of the step {dataset.step}"
            )
        if dataset.gaps.rule == "refuse" or lost > dataset.gaps.limit:
            remedy = (
                "set `gaps: forward` (or `interpolate`) to fill them"
                if dataset.gaps.rule == "refuse"
                else f"more than the {dataset.gaps.limit} of `gap_limit`; raise it, or cut the file"
            )
            if lost > len(times):
                remedy = "more than the file has; correct the time stamp that is wrong"
            raise DataError(f"{where} {times[i]}, so {lost} rows are missing: {remedy}")
    return _inserted(values, times, seconds // step, np.timedelta64(step, "s"))


# The shortest month, and the difference between the longest and the shortest, in seconds.
_MONTH: Final = 28 * 86400
_MONTHS_DIFFER: Final = 3 * 86400


def _check_order(
    path: Path, times: Times, seconds: NDArray[np.int64], odd: NDArray[np.intp]
) -> None:
    if (seconds < 0).all():
        raise DataError(
            f"{path}: the rows run backwards in time, from {times[0]} to {times[-1]}: sort the "
            "file by its time stamps, the oldest row first"
        )
    for i in odd[seconds[odd] <= 0][:1].tolist():
        if seconds[i] == 0:
            raise DataError(
                f"{path}, row {i + 2}: the time stamp {times[i]} is that of the row before: remove "
                "one of the two rows (local time repeats an hour in autumn: write UTC)"
            )
        raise DataError(
            f"{path}, row {i + 2}: {times[i + 1]} comes after {times[i]}, so the rows are out of "
            "order: sort the file by its time stamps, the oldest row first"
        )


def _inserted(
    values: Values, times: Times, steps: NDArray[np.int64], width: np.timedelta64
) -> tuple[Values, Times]:
    at = np.concatenate([[0], np.cumsum(steps)])
    filled = np.full((int(at[-1]) + 1, values.shape[1]), np.nan)
    filled[at] = values
    return filled, (times[0] + np.arange(len(filled)) * width).astype("M8[s]")
