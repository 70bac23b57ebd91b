"""Averages over runs (`spat.evaluation.cells.weights`) with their interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spat.evaluation.bootstrap import Array
from spat.evaluation.cells import CELL, keyed, weights, with_station
from spat.frames import RUN

Index: TypeAlias = NDArray[np.int64]


def summarise(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str],
    *,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Nested mean of `value` per group of `by`, with a bootstrap interval over seeds.

    Seeds are drawn within their cell (of S, S - 1: see `spat.evaluation.bootstrap`), so the
    interval is about training again on the same data; what other data would give, the values per
    station show (`station` may stand in `by`). It is missing where no cell has two seeds. Missing
    values are left out.

    Returns:
        `by`, `value`, `low`, `high`, `runs`, `cells`.
    """
    rows = with_station(frame[frame[value].notna()])
    rows = rows.assign(
        share=weights(rows, by) * rows[value],
        cell=rows.groupby(list(CELL)).ngroup(),
        run=rows.groupby(list(RUN)).ngroup(),
    )
    found = []
    for key, group in rows.groupby(list(by), dropna=False):
        shares, cells, runs = (group[name].to_numpy() for name in ("share", "cell", "run"))
        sample = _draw_means(shares, cells, runs, draws, seed)
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(sample, [tail, 1.0 - tail]) if sample.size else (np.nan, np.nan)
        measures: dict[str, Any] = {
            value: float(shares.sum()),
            "low": float(low),
            "high": float(high),
            "runs": len(np.unique(runs)),
            "cells": len(np.unique(cells)),
        }
        found.append(keyed(by, key) | measures)
    return pd.DataFrame(found, columns=[*by, value, "low", "high", "runs", "cells"])


def _draw_means(shares: Array, cells: Index, runs: Index, draws: int, seed: int) -> Array:
    """Bootstrap means [D] of a group's weighted mean; empty where no cell has two runs.

    `shares` [rows] sum to that mean; `cells` and `runs` [rows] number what each row belongs to.
    """
    rng = np.random.default_rng(seed)
    total, varies = np.zeros(draws), False
    for cell in np.unique(cells):
        here = cells == cell
        _, number = np.unique(runs[here], return_inverse=True)
        per_run = np.bincount(number, shares[here])
        count = len(per_run)
        drawn = max(count - 1, 1)
        counts = rng.multinomial(drawn, np.full(count, 1 / count), size=draws)
        total += counts @ per_run * (count / drawn)
        varies |= count > 1
    return total if varies else np.empty(0)
