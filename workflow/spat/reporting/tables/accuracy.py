"""Test errors: the main comparison, and the published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Final

import numpy as np
import pandas as pd

from spat.evaluation.cells import in_domain
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CHOSEN, CONTROL, DENSE, LIGHT, SHOWN

METRICS: Final = {"mse": "MSE", "mae": "MAE"}
GAIN: Final = "SPAT vs control"
# Dense errors this close to the published ones, or better, count as reproduced.
TOLERANCE: Final = 3.0
REPRODUCED: Final = ("model", "variant", "dataset", "lookback", "horizon")


def main(frames: Frames) -> pd.DataFrame:
    """Errors of dense, control, SPAT, none left and DLinear, and SPAT's change against the control.

    Columns: dataset, model, variant, lookback, horizon, metric, method, mean, sd, n, missing, unit,
    vs_dense and vs_control (percent, paired by seed, averaged over seeds).

    Raises:
        Absent: if no model has attention sites.
    """
    rows = methods.by_method(frames)
    rows = rows[rows["target"] == rows["dataset"]]
    light = methods.beside(rows, frames.results, LIGHT, LIGHT)
    return errors(pd.concat([rows, light], ignore_index=True))


def errors(rows: pd.DataFrame, keys: Sequence[str] = SHOWN) -> pd.DataFrame:
    """The tidy table of MSE and MAE of measured methods, with SPAT's change against the control."""
    by = [*keys, "method"]
    tables = []
    for metric, name in METRICS.items():
        changes = rows.assign(
            vs_dense=methods.relative_to(rows, DENSE, [metric])[metric],
            vs_control=methods.relative_to(rows, CONTROL, [metric])[metric],
        )
        table = methods.summary(rows, by, metric).assign(metric=name, unit="")
        for column in ("vs_dense", "vs_control"):
            means = methods.summary(changes, by, column)[[*by, "mean"]]
            table = table.merge(means.rename(columns={"mean": column}), on=by)
        gain = methods.summary(changes[changes["method"] == CHOSEN], by, "vs_control")
        tables += [table, gain.assign(metric=name, unit="%", method=GAIN)]
    table = pd.concat(tables, ignore_index=True)
    return sort(table, keys, [*methods.in_order(set(table["method"]) - {GAIN}), GAIN])


def sort(table: pd.DataFrame, keys: Sequence[str], order: Sequence[str]) -> pd.DataFrame:
    """Rows by cell, metric and method (in this order), the columns of keys first."""
    columns = [*keys, "metric", "method", "mean", "sd", "n", "missing", "unit"]
    columns += [str(column) for column in table if column not in columns]
    table = table[columns].assign(
        metric=methods.ordered(table["metric"], list(table["metric"].unique())),
        method=methods.ordered(table["method"], order),
    )
    return by_cell(table, [*keys, "metric", "method"])


def by_cell(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Rows sorted by keys, names regardless of case."""

    def plain(column: pd.Series) -> pd.Series:
        named = not isinstance(column.dtype, pd.CategoricalDtype)
        return column.str.lower() if named and pd.api.types.is_string_dtype(column) else column

    return table.sort_values([*keys], key=plain, kind="stable", ignore_index=True)


@cache
def published() -> pd.DataFrame:
    """Published errors: model, dataset, lookback, horizon, mse, mae, confirmed, source."""
    file = resources.files("spat.reporting") / "published.csv"
    with file.open() as stream:
        return pd.read_csv(stream)


def reproduction(frames: Frames) -> pd.DataFrame:
    """Dense errors beside the published ones.

    Models with attention are compared in their variant `published`; others in any variant. The
    methods are `ours`, `published` and `change` (percent); the keys end with a verdict (better,
    within 3 %, worse, diverged) and the source of the published number.

    Raises:
        Absent: if no run has a published counterpart.
    """
    rows = in_domain(methods.tested(frames.results), phase="dense")
    rows = rows[(rows["variant"] == "published") | ~methods.has_sites(rows)]
    keys = ["model", "dataset", "lookback", "horizon"]
    tables = []
    for metric, name in METRICS.items():
        ours = methods.summary(rows, ["variant", *keys], metric).assign(method="ours", unit="")
        numbers = published()[[*keys, metric, "source"]].rename(columns={metric: "published"})
        ours = ours.merge(numbers, on=keys).assign(metric=name)
        change = 100 * (ours["mean"] / ours["published"] - 1)
        ours["verdict"] = change.map(_verdict)
        theirs = ours.assign(method="published", mean=ours["published"], sd=np.nan, n=0, missing=0)
        tables += [ours, theirs, ours.assign(method="change", mean=change, sd=np.nan, unit="%")]
    table = pd.concat(tables, ignore_index=True).drop(columns="published")
    if table.empty:
        raise Absent(
            "No run has a published counterpart: attention models need the variant `published`, a "
            "benchmark dataset and its published lookback (experiment `reproduction`)."
        )
    return sort(table, REPRODUCED, ["ours", "published", "change"])


def _verdict(change: float) -> str:
    if np.isnan(change):
        return "diverged"
    if abs(change) <= TOLERANCE:
        return f"within {TOLERANCE:g} %"
    return "better" if change < 0 else "worse"
