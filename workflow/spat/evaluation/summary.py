"""Averages over runs (`spat.evaluation.cells.weights`) with their interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import scipy.stats

from spat.evaluation.cells import CELL, weights, with_station
from spat.pipeline.frames import RUN

MEASURES: Final = ("low", "high", "p", "runs", "cells")


def summarise(
    frame: pd.DataFrame, value: str, by: Sequence[str], *, confidence: float = 0.95
) -> pd.DataFrame:
    """Nested mean of `value` per group of `by`, with a t interval over seeds.

    Seeds vary within their cell; cells are taken to vary alike, so that their variances are pooled
    and a cell of a single run counts with that of the others. The interval is about training again
    on the same data; what other data would give, the values per station show (`station` may stand
    in `by`). It is missing where no cell has two seeds. Missing values are left out.

    Returns:
        `by`, `value`, `low`, `high`, `p` (two-sided, of a mean of 0), `runs`, `cells`.
    """
    rows = with_station(frame[frame[value].notna()])
    weight = weights(rows, by)
    rows = rows.assign(weight=weight, share=weight * rows[value])
    keys, of_cell, of_run = ([*dict.fromkeys([*by, *more])] for more in ((), CELL, RUN))
    runs = rows.groupby(of_run, dropna=False)[["weight", "share"]].sum().reset_index()
    own = runs["share"] / runs["weight"]
    cell_mean = own.groupby([runs[key] for key in of_cell], dropna=False).transform("mean")
    runs = runs.assign(squares=(own - cell_mean) ** 2, weights=runs["weight"] ** 2)
    groups = runs.groupby(keys, dropna=False)
    table = groups[["share", "squares", "weights"]].sum()
    table["runs"] = groups.size()
    table["cells"] = runs[of_cell].drop_duplicates().groupby(keys, dropna=False).size()
    freedom = (table["runs"] - table["cells"]).where(lambda n: n > 0)
    error = np.sqrt(table["squares"] / freedom * table["weights"])
    half = error * scipy.stats.t.ppf(0.5 + confidence / 2.0, freedom)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2.0 * scipy.stats.t.sf(np.abs(table["share"] / error), freedom)
    table = table.assign(low=table["share"] - half, high=table["share"] + half, p=p)
    return table.rename(columns={"share": value}).reset_index()[[*by, value, *MEASURES]]
