"""Averages over runs (`spat.evaluation.cells.weights`) with their interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from spat.evaluation.bootstrap import Array
from spat.evaluation.cells import CELL, keyed, weights, with_station
from spat.frames import RUN


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
    rows = rows.assign(weight=weights(rows, by))
    found = []
    for key, group in rows.groupby(list(by), dropna=False):
        sample = _draw_means(group, value, draws, seed)
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(sample, [tail, 1.0 - tail]) if sample.size else (np.nan, np.nan)
        measures: dict[str, Any] = {
            value: float((group["weight"] * group[value]).sum()),
            "low": float(low),
            "high": float(high),
            "runs": len(group[list(RUN)].drop_duplicates()),
            "cells": len(group[list(CELL)].drop_duplicates()),
        }
        found.append(keyed(by, key) | measures)
    return pd.DataFrame(found, columns=[*by, value, "low", "high", "runs", "cells"])


def _draw_means(group: pd.DataFrame, value: str, draws: int, seed: int) -> Array:
    """Bootstrap means [D] of a group's weighted mean; empty where no cell has two runs."""
    rng = np.random.default_rng(seed)
    weighted = group.assign(share=group["weight"] * group[value])
    total, varies = np.zeros(draws), False
    for _, cell in weighted.groupby(list(CELL)):
        per_run = cell.groupby("seed")["share"].sum().to_numpy()
        runs = len(per_run)
        drawn = max(runs - 1, 1)
        counts = rng.multinomial(drawn, np.full(runs, 1 / runs), size=draws)
        total += counts @ per_run * (runs / drawn)
        varies |= runs > 1
    return total if varies else np.empty(0)
