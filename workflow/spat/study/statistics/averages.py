"""Nested averages over runs, and their intervals over seeds.

Runs differ in how independent they are: seeds of a cell differ only in random numbers, horizons
share the data, and datasets of one source share its sensors. So averages are taken over seeds
first, then over horizons, then over the datasets of a source, then over sources, whatever the
number of seeds in each cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import pandas as pd
import scipy.stats

from spat.blocks import Array
from spat.study.statistics.cells import CELL, RUN
from spat.study.statistics.tests import equal_variances

# From the most independent to the least.
LEVELS: Final = ("source", "dataset", "horizon", "seed")

# The variances of cells are pooled if the p-value of Bartlett's test is at least this.
EQUAL: Final = 0.05

_SUMMARY: Final = ("low", "high", "p", "runs", "cells")


def weights(frame: pd.DataFrame, by: Sequence[str] = ()) -> pd.Series:
    """The weight of each row in the nested mean of its group; the weights of a group sum to 1.

    Sources have equal weights; so have the datasets of a source, the horizons of a dataset, and the
    seeds of a horizon. The rows of one run and group share the weight of the run. Levels in `by`
    are not averaged over.
    """
    frame = frame.assign(everything=0)
    keys = ["everything", *by]
    weight = pd.Series(1.0, index=frame.index)
    for level in LEVELS:
        if level not in keys:
            weight /= frame.groupby(keys, dropna=False)[level].transform("nunique")
            keys.append(level)
    return weight / frame.groupby(keys, dropna=False)["everything"].transform("size")


def average(
    frame: pd.DataFrame,
    values: Sequence[str],
    by: Sequence[str] = (),
    upto: Literal["dataset", "source"] = "dataset",
) -> pd.DataFrame:
    """Nested means of `values` per group of `by`.

    There is one row per group and source, or, if `upto` is "source", one row per group. The frame
    has the columns of a run. Every other column that distinguishes rows must be in `by`.

    Returns:
        `by`, `source` (unless `upto` is "source"), `values`, and `runs`, the number of runs with
        all values. Rows with a missing value are left out of all means.
    """
    rows = frame.dropna(subset=list(values)).assign(everything=0)
    keys = [*by] if upto == "source" else [*by, "source"]
    weighted = rows[list(values)].mul(weights(rows, keys), axis="index")
    columns = [rows[key] for key in keys or ["everything"]]
    table = weighted.groupby(columns, dropna=False, observed=True).sum()
    runs = rows.groupby(list(RUN), dropna=False, sort=False).ngroup()
    table["runs"] = runs.groupby(columns, dropna=False).nunique()
    return table.reset_index(drop=not keys)


def summarise(
    frame: pd.DataFrame, value: str, by: Sequence[str], *, confidence: float = 0.95
) -> pd.DataFrame:
    """Nested mean of `value` per group of `by`, with a t interval over seeds.

    The variance is that of seeds within their cell. The variances of the cells are pooled, unless
    Bartlett's test rejects at 5 % that they are equal: then each cell has its own variance, with
    the degrees of freedom of Satterthwaite (1946). A cell with a single run takes the pooled
    variance. The interval reflects repeated training on the same data. For variation between data,
    put `source` in `by`. The interval is missing if no cell has two seeds. Rows with a missing
    value are left out.

    Returns:
        `by`, `value`, `low`, `high`, `p` (two-sided, of a mean of 0), `runs`, `cells`.
    """
    rows = frame[frame[value].notna()]
    weight = weights(rows, by)
    rows = rows.assign(weight=weight, share=weight * rows[value])
    keys, of_cell, of_run = ([*dict.fromkeys([*by, *more])] for more in ((), CELL, RUN))
    runs = rows.groupby(of_run, dropna=False)[["weight", "share"]].sum().reset_index()
    own = runs["share"] / runs["weight"]
    cell_mean = own.groupby([runs[key] for key in of_cell], dropna=False).transform("mean")
    runs = runs.assign(squares=(own - cell_mean) ** 2, weights=runs["weight"] ** 2)
    cells = runs.groupby(of_cell, dropna=False)[["share", "squares", "weights"]].sum()
    cells["runs"] = runs.groupby(of_cell, dropna=False).size()
    groups = cells.reset_index().groupby(keys, dropna=False)
    table = groups[["share", "runs"]].sum()
    table["cells"] = groups.size()
    number = groups.ngroup().to_numpy()
    values = cells[["runs", "weights", "squares"]].to_numpy(dtype=np.float64).T
    errors = [_standard_error(*values[:, number == i]) for i in range(len(table))]
    error, freedom = np.array(errors).reshape(-1, 2).T
    half = error * scipy.stats.t.ppf(0.5 + confidence / 2.0, freedom)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2.0 * scipy.stats.t.sf(np.abs(table["share"] / error), freedom)
    table = table.assign(low=table["share"] - half, high=table["share"] + half, p=p)
    return table.rename(columns={"share": value}).reset_index()[[*by, value, *_SUMMARY]]


def _standard_error(runs: Array, weight: Array, squares: Array) -> tuple[float, float]:
    """Standard error of the weighted mean of cells, and its degrees of freedom.

    Each cell has its number of runs, the sum of their squared weights, and the sum of squares of
    their deviations from the mean of the cell: three arrays, [cells] each.
    """
    several = runs > 1
    freedom = runs[several] - 1.0
    total = float(freedom.sum())
    if not total:
        return float("nan"), float("nan")
    variances = squares[several] / freedom
    if equal_variances(variances, freedom) >= EQUAL:
        return float(np.sqrt(squares[several].sum() / total * weight.sum())), total
    # The pooled variance, used for single runs, is a weighted sum of the variances of the cells.
    alone = float(weight[runs == 1].sum())
    parts = variances * (weight[several] + alone * freedom / total)
    return float(np.sqrt(parts.sum())), float(parts.sum() ** 2 / (parts**2 / freedom).sum())


def measure(
    rows: pd.DataFrame,
    value: str,
    by: Sequence[str],
    name: str,
    unit: str = "",
    *,
    scale: float = 1.0,
    bounds: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """`summarise` as rows of a tidy table: `by`, mean, low, high, n (runs), p, measure, unit.

    Means and intervals are multiplied by `scale`; intervals are clipped to `bounds`. The result is
    empty (without columns) if no row has a value.
    """
    if rows[value].isna().all():
        return pd.DataFrame()
    table = summarise(rows.astype({value: "float64"}), value, by)
    table = table.rename(columns={value: "mean", "runs": "n"}).drop(columns="cells")
    table[["mean", "low", "high"]] *= scale
    if bounds is not None:
        table[["low", "high"]] = table[["low", "high"]].clip(*bounds)
    return table.assign(measure=name, unit=unit)
