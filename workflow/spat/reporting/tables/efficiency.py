"""What removing attention saves, beside what it does to the error, and the paper's averages."""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.evaluation.cells import weights
from spat.reporting import methods
from spat.reporting.frames_io import Frames
from spat.reporting.methods import DENSE, LIGHT, SHOWN
from spat.reporting.render import same
from spat.reporting.tables.accuracy import sort

PAPER: Final = "paper"
SOURCE: Final = "arXiv 2505.08768"
AVERAGE: Final = "average"
# Column of `results` -> (name, unit); the order is that of the table.
QUANTITIES: Final = {
    "mse": ("MSE", ""),
    "mae": ("MAE", ""),
    "flops": ("FLOPs", "FLOPs"),
    "params": ("Parameters", "parameters"),
    "latency_ms": ("Latency", "ms"),
    "memory_mb": ("Memory", "MB"),
}
# Average changes that the paper reports, in percent.
PAPER_AVERAGES: Final = {"MSE": -2.842, "MAE": -1.996, "FLOPs": -35.274, "Parameters": -28.191}


def efficiency(frames: Frames) -> pd.DataFrame:
    """Errors and costs: the dense model's own, and the change against it of each method.

    Columns: dataset, model, variant, lookback, horizon, metric, method, mean, sd, n, missing, unit,
    absolute (mean of the value itself), runs and source. `mean` is the value itself for the dense
    model and for DLinear, else the change against dense in percent, paired by seed. The last rows
    average the changes: seeds first, then horizons, datasets of a station, stations, models;
    beside them the paper's averages.

    Raises:
        Absent: if no model has attention sites.
    """
    rows = methods.by_method(frames)
    rows = rows[rows["target"] == rows["dataset"]].reset_index(drop=True)
    changes = methods.relative_to(rows, DENSE, list(QUANTITIES))
    light = methods.beside(rows, frames.results, LIGHT, LIGHT)
    every = pd.concat([rows, light], ignore_index=True)
    tables = []
    for quantity, (name, unit) in QUANTITIES.items():
        absolute = methods.summary(every, [*SHOWN, "method"], quantity).assign(unit=unit)
        changed = methods.summary(
            rows.assign(change=changes[quantity]), [*SHOWN, "method"], "change"
        ).assign(unit="%")
        shown = pd.concat(
            [
                absolute[absolute["method"].isin([DENSE, LIGHT])],
                changed[changed["method"] != DENSE],
            ]
        )
        values = absolute.rename(columns={"mean": "absolute"})[[*SHOWN, "method", "absolute"]]
        tables.append(shown.merge(values, on=[*SHOWN, "method"]).assign(metric=name))
    cells = sort(pd.concat(tables), SHOWN, methods.in_order(every["method"]))
    table = pd.concat(
        [
            cells.assign(metric=cells["metric"].astype(str), method=cells["method"].astype(str)),
            _averages(rows, changes),
        ]
    ).astype({"lookback": "str", "horizon": "str"})
    table = table.dropna(subset="mean")
    table["method"] = methods.ordered(
        table["method"], [*methods.in_order(set(table["method"]) - {PAPER}), PAPER]
    )
    return table.reset_index(drop=True)


def _averages(rows: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Average change per quantity and method over all cells (of `runs` runs), and the paper's."""
    tables = []
    for quantity, (name, _) in QUANTITIES.items():
        changed = rows.assign(change=changes[quantity])
        changed = changed[(changed["method"] != DENSE) & changed["change"].notna()]
        by = ["method", "model", "variant"]
        changed["change"] *= weights(changed, by)
        models = changed.groupby(by)["change"].agg(["sum", "size"]).reset_index()
        ours = models.groupby("method").agg(mean=("sum", "mean"), runs=("size", "sum"))
        tables.append(ours.reset_index().assign(metric=name, source=""))
        if name in PAPER_AVERAGES:
            theirs = {"method": PAPER, "mean": PAPER_AVERAGES[name], "source": SOURCE}
            tables.append(pd.DataFrame([{**theirs, "metric": name, "runs": 0}]))
    table = pd.concat(tables, ignore_index=True)
    names = {k: rows[k].iloc[0] if same(rows[k]) else "all" for k in SHOWN}
    names["dataset"] = AVERAGE
    return table.assign(**names, sd=float("nan"), n=0, missing=0, unit="%")
