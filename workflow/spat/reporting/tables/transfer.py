"""Zero-shot transfer: trained on one dataset, tested on another."""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.evaluation.cells import in_domain
from spat.frames import RUN
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CHOSEN, CONTROL, LIGHT
from spat.reporting.tables.accuracy import METRICS, by_cell, sort

NAIVE: Final = {"RepeatLast": "repeat last", "SeasonalNaive": "seasonal naive"}
ON_TARGET: Final = "trained on target"
TRANSFER_GAIN: Final = "gain − gain at home"
KEYS: Final = ("dataset", "target", "model", "variant", "lookback", "horizon")


def zeroshot(frames: Frames) -> pd.DataFrame:
    """Errors on the target's test split, and SPAT's gain there minus its gain at home.

    Columns: source, target, model, variant, lookback, horizon, metric, method, mean, sd, n,
    missing, unit. A gain is the control's error minus SPAT's, in percent of the control's; the two
    gains of a run are subtracted before seeds are averaged (percentage points).

    Raises:
        Absent: if nothing was evaluated on another dataset.
    """
    named = methods.by_method(frames)
    rows = named[named["target"] != named["dataset"]]
    if rows.empty:
        raise Absent(
            "Nothing was evaluated on another dataset: name (source, target) pairs in "
            "`transfer.pairs`."
        )
    every = [rows, methods.beside(rows, frames.results, LIGHT, LIGHT), *_at_home(rows, frames)]
    methods_of = pd.concat(every, ignore_index=True)
    tables = []
    for metric, name in METRICS.items():
        errors = methods.summary(methods_of, [*KEYS, "method"], metric).assign(unit="")
        gains = methods.summary(_gains(named, metric), [*KEYS, "method"], metric).assign(unit="pp")
        tables += [errors.assign(metric=name), gains.assign(metric=name)]
    table = pd.concat(tables, ignore_index=True)
    last = [LIGHT, ON_TARGET, TRANSFER_GAIN]
    table = sort(table, KEYS, *(name for name in last if name in set(table["method"])))
    first = [name for name in NAIVE.values() if name in set(table["method"])]
    rest = [name for name in table["method"].cat.categories if name not in first]
    table["method"] = table["method"].cat.reorder_categories([*first, *rest])
    table = by_cell(table, [*KEYS, "metric", "method"])
    return table.rename(columns={"dataset": "source"})


def _at_home(rows: pd.DataFrame, frames: Frames) -> list[pd.DataFrame]:
    """What was made for the target itself: naive forecasts, and the same model trained on it."""
    home = in_domain(methods.tested(frames.results), phase="dense").drop(columns="dataset")
    shape = ["lookback", "horizon", "target"]
    cells = rows[[*KEYS, "experiment"]].drop_duplicates()
    found = []
    for model, name in NAIVE.items():
        naive = home[home["model"] == model].drop_duplicates([*shape, "seed"])
        naive = naive.drop(columns=["model", "variant", "experiment"])
        found.append(cells.merge(naive, on=shape).assign(method=name))
    trained = home.drop(columns="experiment")
    found.append(cells.merge(trained, on=[*shape, "model", "variant"]).assign(method=ON_TARGET))
    return found


def _gains(named: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Per run and target: percentage points that SPAT gains more there than on its own dataset."""
    change = methods.relative_to(named, CONTROL, [metric])[metric]
    gains = named.assign(gain=-change)[named["method"] == CHOSEN]
    home = gains["target"] == gains["dataset"]
    joined = gains[~home].merge(
        gains.loc[home, [*RUN, "gain"]], on=list(RUN), suffixes=("", "_home")
    )
    joined[metric] = joined["gain"] - joined["gain_home"]
    return joined.assign(method=TRANSFER_GAIN)
