"""Does SEND measure what it is said to: is it low where attention is uniform?

Spearman's rank correlation of SEND with the uniformity of the attention maps, over sites and over
heads. SEND has another scale in every cell, so cells are never pooled; runs of a cell may be.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.stats

from spat.blocks import Array
from spat.evaluation.cells import CELL, keyed
from spat.evaluation.ranks import UNIFORMITY
from spat.pipeline.frames import RUN

LEVELS: Final = ("sites", "heads")
# Of fewer runs the bootstrap's interval is little more than their range.
MIN_RUNS: Final = 6
_MEASURES: Final = ("rho", "low", "high", "within", "within_low", "within_high", "runs", "points")


def points(scores: pd.DataFrame, criterion: str = "send") -> pd.DataFrame:
    """The criterion and the uniformity of each place, over all batches at the kept epoch.

    Returns:
        RUN, `level` (`sites`, `heads`), `site`, `head`, `score`, `uniformity`.
    """
    whole = scores[(scores["batch"] == -1) & scores["criterion"].isin([criterion, UNIFORMITY])]
    keys = [*RUN, "epoch", "site", "head"]
    mine, maps = (
        whole.loc[whole["criterion"] == name, [*keys, "value"]] for name in (criterion, UNIFORMITY)
    )
    # The uniformity is known at the kept epoch alone, SEND at every one.
    both = mine.rename(columns={"value": "score"}).merge(
        maps.rename(columns={"value": "uniformity"}), on=keys
    )
    level = np.where(both["head"] < 0, *LEVELS)
    columns = [*RUN, "level", "site", "head", "score", "uniformity"]
    return both.assign(level=level)[columns]


def correlations(
    scores: pd.DataFrame,
    criterion: str = "send",
    *,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's rho per cell and level, with bootstrap intervals over runs.

    `rho` is that of all places of all runs together, `within` the mean over runs of each run's own
    (missing where a run holds one value throughout). Of S runs S - 1 are drawn, as in
    `spat.evaluation.bootstrap`; of fewer than `MIN_RUNS` there is no interval.

    Returns:
        CELL, `level`, `rho`, `low`, `high`, `within`, `within_low`, `within_high`, `runs`,
        `points` (places of one run).
    """
    keys = [*CELL, "level"]
    found = []
    for key, group in points(scores, criterion).groupby(keys):
        ordered = group.sort_values(["seed", "site", "head"])
        shape = (ordered["seed"].nunique(), -1)
        x, y = (ordered[name].to_numpy().reshape(shape) for name in ("score", "uniformity"))
        found.append(keyed(keys, key) | _measures(x, y, draws, confidence, seed))
    return pd.DataFrame(found, columns=[*keys, *_MEASURES])


def spearman(x: Array, y: Array) -> Array:
    """Rank correlation along the last axis, [..., N] -> [...]; missing for constants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        return np.asarray(scipy.stats.spearmanrho(x, y, axis=-1).statistic)


def _measures(x: Array, y: Array, draws: int, confidence: float, seed: int) -> dict[str, Any]:
    """x, y [runs, places]."""
    runs = len(x)
    own = spearman(x, y)
    nan = float("nan")
    found = {
        "rho": float(spearman(x.ravel(), y.ravel())),
        "within": float(np.nanmean(own)) if np.isfinite(own).any() else nan,
        "runs": runs,
        "points": x.shape[1],
    }
    if runs < MIN_RUNS:
        return found | dict.fromkeys(("low", "high", "within_low", "within_high"), nan)
    drawn = np.random.default_rng(seed).integers(runs, size=(draws, runs - 1))
    together = spearman(x[drawn].reshape(draws, -1), y[drawn].reshape(draws, -1))
    tail = (1.0 - confidence) / 2.0
    for name, sample in (("", together), ("within_", _means(own[drawn]))):
        low, high = np.nanquantile(sample, [tail, 1.0 - tail])
        found |= {f"{name}low": float(low), f"{name}high": float(high)}
    return found


def _means(values: Array) -> Array:
    """Means along the last axis of what is known, NaN where nothing is."""
    known = np.isfinite(values)
    sums = np.where(known, values, 0.0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / known.sum(axis=-1))
