"""Fill missing values by the rule of a dataset.

A gap is a run of steps for which a channel has no value, or for which the file has no row. There
are three rules:

* `refuse`: a missing value is an error.
* `forward`: each missing value becomes the last known value of its channel. The rule only looks
  backwards, so the input of a forecast contains nothing of its future. The datasets of the registry
  that have gaps use this rule.
* `interpolate`: missing values lie on a straight line between the known neighbours. The neighbour
  after a gap lies in the future of the gap. Therefore a line never crosses a border between
  training, validation and test: gaps that reach the beginning or the end of their split are filled
  forward. The training rows, their mean and their standard deviation thus contain nothing of
  validation or test. Within a split the line looks ahead: if the input of a window ends inside a
  gap, it contains values that depend on the value after the gap. Use `forward` if this matters.

Rows before the first complete row have no earlier value to repeat. They are dropped when the file
is read, and their number is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spat.data.registry import Borders, DataError, Gaps


@dataclass(frozen=True)
class Filled:
    """The record of filled gaps of a series.

    Attributes:
        rule: Rule of the dataset.
        limit: Length of the longest gap that the dataset allows, in steps.
        dropped: Number of rows before the first complete row, which were left out.
        steps: Rows with at least one filled value.
        values: Filled values.
        longest: Length of the longest gap, in steps.
    """

    rule: str = "refuse"
    limit: int = 0
    dropped: int = 0
    steps: int = 0
    values: int = 0
    longest: int = 0


def first_complete(values: NDArray[np.float64]) -> int:
    """The first row of values [T, C] without a missing value; T if there is none."""
    complete = ~np.isnan(values).any(axis=1)
    return int(np.argmax(complete)) if complete.any() else len(values)


def fill(
    values: NDArray[np.float64],
    gaps: Gaps,
    borders: Borders,
    *,
    names: Sequence[str],
    times: NDArray[np.datetime64] | None,
    dropped: int,
) -> tuple[NDArray[np.float64], Filled]:
    """Fill the missing values (NaN) of values [T, C] by the rule of a dataset.

    Returns:
        The filled values [T, C] (the argument itself if nothing is missing), and the record, which
        includes `dropped`.

    Raises:
        DataError: naming row (numbered from 1), time stamp and channel, if the rule is `refuse`, a
            gap is longer than the limit, or the first row is not complete.
    """
    missing = np.isnan(values)
    lengths = np.zeros(values.shape[1], dtype=np.int64)
    longest = 0
    for row in map(int, np.flatnonzero(missing.any(axis=1))):
        # The length of each channel's gap up to this row.
        previous = missing[row - 1] if row else np.zeros_like(missing[row])
        lengths = np.where(missing[row], np.where(previous, lengths, 0) + 1, 0)
        longest = max(longest, int(lengths.max()))
        if gaps.rule == "refuse" or row == 0 or longest > gaps.limit:
            time = "" if times is None else f" ({times[row]})"
            raise DataError(
                f"row {row + 1}{time}, column {names[int(np.argmax(lengths))]!r}: "
                + (
                    f"a gap of more than {gaps.limit} steps, the limit; raise `gap_limit`, or cut "
                    "the file there"
                    if row and gaps.rule != "refuse"
                    else "a value is missing; set `gaps: forward` (or `interpolate`)"
                )
            )
    steps = int(missing.any(axis=1).sum())
    done = Filled(gaps.rule, gaps.limit, dropped, steps, int(missing.sum()), longest)
    if not steps:
        return values, done
    rows = np.arange(len(values))[:, None]
    known = np.maximum.accumulate(np.where(missing, 0, rows), axis=0)
    filled = np.take_along_axis(values, known, axis=0)
    if gaps.rule == "interpolate":
        ends = sorted({0, borders.train[1], borders.validation[1], len(values)})
        for start, stop in pairwise(ends):
            for c in np.flatnonzero(missing[start:stop].any(axis=0)):
                at = start + np.flatnonzero(~missing[start:stop, c])
                if len(at):
                    inside = slice(at[0], at[-1] + 1)
                    filled[inside, c] = np.interp(rows[inside, 0], at, values[at, c])
    return filled, done
