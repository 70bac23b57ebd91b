"""Which criterion, and which level: the fine-tuned errors of every decision."""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.evaluation.cells import site_errors
from spat.frames import RUN
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CONTROL, DENSE, SHOWN
from spat.reporting.tables.accuracy import by_cell, sort

ALL_MASKS: Final = "(mean of all masks)"
LEVELS: Final = {"site": "modules", "head": "heads"}


def criteria(frames: Frames) -> pd.DataFrame:
    """Test MSE by criterion, level and share removed; where all masks are trained, their mean.

    Columns: dataset, model, variant, lookback, horizon, level, criterion, share, mean, sd, n,
    missing, unit. Random draws of one seed count with their mean.

    Raises:
        Absent: if nothing was pruned at a ratio between none and all.
    """
    rows = methods.by_decision(frames)
    rows = pd.concat([rows, _all_masks(frames, rows)], ignore_index=True)
    by = [*SHOWN, "level", "criterion", "ratio"]
    table = methods.summary(rows, by, "mse").assign(unit="")
    table["level"] = methods.ordered(table["level"].map(LEVELS), list(LEVELS.values()))
    table = by_cell(table, [*SHOWN, "level", "criterion", "ratio"])
    share = table.pop("ratio").map(_percent)
    order = sorted(share.unique(), key=lambda text: float(text.split()[0]))
    table["share"] = methods.ordered(share, order)
    columns = [*SHOWN, "level", "criterion", "share", "mean", "sd", "n", "missing", "unit"]
    return table[columns]


def heads(frames: Frames) -> pd.DataFrame:
    """Heads against modules at an equal share removed: MSE, and change of FLOPs and latency.

    Columns: dataset, model, variant, lookback, horizon, share, metric, method (a criterion and what
    it removes, and the control), mean, sd, n, missing, unit. Criteria asked for at both levels are
    compared, and `random` as the floor of each.

    Raises:
        Absent: if no criterion was asked for at both levels.
    """
    rows = methods.by_decision(frames)
    levels = rows.groupby("criterion")["level"].nunique()
    rows = rows[rows["criterion"].isin(levels[levels == len(LEVELS)].index)]
    if rows.empty:
        raise Absent(
            "No criterion removed both modules and single heads: name one in the criteria of "
            "`pruning.site` and of `pruning.head`."
        )
    costs = ["flops", "latency_ms"]
    named = methods.by_method(frames)
    dense = named[named["method"] == DENSE][[*RUN, *costs]].drop_duplicates(list(RUN))
    rows = rows.assign(method=rows["criterion"] + " " + rows["level"].map(LEVELS))
    control = named[(named["method"] == CONTROL) & (named["target"] == named["dataset"])]
    ratios = rows[[*RUN, "ratio"]].drop_duplicates()
    joined = pd.concat([rows, control.merge(ratios, on=list(RUN))])
    joined = joined.merge(dense, on=list(RUN), suffixes=("", "_dense"))
    for cost in costs:
        joined[cost] = 100 * (joined[cost] / joined[f"{cost}_dense"] - 1)
    joined["share"] = joined["ratio"].map(_percent)
    keys = [*SHOWN, "share"]
    names = {"mse": ("MSE", ""), "flops": ("FLOPs", "%"), "latency_ms": ("Latency", "%")}
    tables = [
        methods.summary(joined, [*keys, "method"], value).assign(metric=name, unit=unit)
        for value, (name, unit) in names.items()
    ]
    table = pd.concat(tables, ignore_index=True).dropna(subset="mean")
    return sort(table, keys)


def _all_masks(frames: Frames, decisions: pd.DataFrame) -> pd.DataFrame:
    """Every site mask of the runs that trained all of them, under the ratios of the decisions."""
    rows = site_errors(methods.tested(frames.results))
    complete = rows.groupby(list(RUN))["mask"].transform("nunique") == 2 ** rows["sites"]
    rows = rows[complete]
    ratios = decisions.loc[decisions["level"] == "site", [*RUN, "removed", "ratio"]]
    rows = rows.merge(ratios.drop_duplicates([*RUN, "removed"]), on=[*RUN, "removed"])
    return rows.assign(criterion=ALL_MASKS, level="site", draw=0)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:g} %"
