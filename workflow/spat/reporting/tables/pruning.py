"""Which criterion, and which level: the fine-tuned errors of every decision."""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.evaluation import headmodule
from spat.evaluation.cells import site_errors
from spat.pipeline.frames import RUN
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import SHOWN
from spat.reporting.tables.accuracy import by_cell, sort

ALL_MASKS: Final = "(mean of all masks)"
LEVELS: Final = {"site": "modules", "head": "heads"}
VERSUS: Final = "heads vs modules"
COMPARED: Final = {
    "mse": ("MSE", ""),
    "flops": ("FLOPs", "FLOPs"),
    "latency_ms": ("Latency", "ms"),
}


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
    """Single heads against whole modules that remove equally much, by criterion.

    Matched by the share of heads removed and, where that gives other pairs, by FLOPs. Columns:
    dataset, model, variant, lookback, horizon, criterion, matched, share, metric, method (modules,
    heads, random modules, random heads, heads vs modules), mean, sd, n, missing, unit. The last
    method is the change of heads against modules in percent, paired by seed.

    Raises:
        Absent: if no criterion was asked for at both levels.
    """
    pairs = headmodule.pairs(frames.results, frames.selections, frames.scores)
    if (pairs["criterion"] != headmodule.RANDOM).any():
        # Random masks stand beside the others, as the floor of their level.
        pairs = pairs[pairs["criterion"] != headmodule.RANDOM]
    pairs = pairs.sort_values("match", key=lambda match: match == "flops", kind="stable")
    pairs = pairs.drop_duplicates([*RUN, "criterion", "site_removed", "head_removed"])
    if pairs.empty:
        raise Absent(
            "No criterion removed both modules and single heads: name one in the criteria of "
            "`pruning.site` and of `pruning.head`."
        )
    pairs = pairs.assign(
        matched=pairs["match"].map({"fraction": "share", "flops": "FLOPs"}),
        share=pairs["site_fraction"].map(_percent),
    )
    keys = [*SHOWN, "criterion", "matched", "share"]
    tables = []
    for quantity, (name, unit) in COMPARED.items():
        for method, column in zip(LEVELS.values(), LEVELS, strict=True):
            values = methods.summary(pairs, keys, f"{column}_{quantity}")
            tables.append(values.assign(method=method, metric=name, unit=unit))
        ratio = pairs[f"head_{quantity}"] / pairs[f"site_{quantity}"] - 1
        change = methods.summary(pairs.assign(change=100 * ratio), keys, "change")
        tables.append(change.assign(method=VERSUS, metric=name, unit="%"))
    for level, method in LEVELS.items():
        # Runs that drew no random masks of a level have no floor there.
        drawn = pairs.dropna(subset=f"{level}_floor")
        if not drawn.empty:
            floor = methods.summary(drawn, keys, f"{level}_floor")
            tables.append(floor.assign(method=f"random {method}", metric="MSE", unit=""))
    table = pd.concat(tables, ignore_index=True).dropna(subset="mean")
    return sort(table, keys, [*LEVELS.values(), "random modules", "random heads", VERSUS])


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
