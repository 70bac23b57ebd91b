"""Is a criterion's choice good, where all masks that it could have chosen are fine-tuned?

Everything is per run, criterion and K, the number of sites removed, for 0 < K < N: one row each, to
be averaged by `spat.evaluation.summary.summarise`. Errors are test MSEs after fine-tuning; where a
run has several data orders, a mask's error is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import comb
from typing import Final

import numpy as np
import pandas as pd

from spat.evaluation.cells import CELL, keyed, sites_removed, wide
from spat.evaluation.ranks import relabelled
from spat.evaluation.replicates import exhaustive, expected_minimum, replicate_sd
from spat.pipeline.frames import RUN

# `order` of an error that is the mean over data orders.
MEAN: Final = -1

_CHOICE: Final = [*RUN, "criterion", "draw", "removed", "mask"]
_GROUP: Final = [*RUN, "removed"]


def choices(selections: pd.DataFrame, labels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Site masks chosen at fixed ratios, one row per run, criterion, draw and K.

    Ratios that remove the same number of sites are one choice. `labels` renames criteria, so that
    merged ones (`spat.evaluation.ranks.merged_criteria`) count once.

    Raises:
        ValueError: if a criterion chose two masks for one run, draw and K.
    """
    rows = selections[(selections["level"] == "site") & (selections["rule"] == "")]
    rows = rows[rows["ratio"].notna()]
    rows = relabelled(rows, labels).assign(removed=rows["mask"].map(sites_removed).astype("int64"))
    rows = rows[_CHOICE].drop_duplicates()
    twice = rows[rows.duplicated([c for c in _CHOICE if c != "mask"], keep=False)]
    if not twice.empty:
        raise ValueError(
            f"one criterion and number of sites, but two masks:\n{twice.head(4).to_string()}\n"
            "select again, or merge only criteria that rank alike"
        )
    return rows


def gains(
    results: pd.DataFrame, selections: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Mean error over all masks with K sites removed, minus the error of the criterion's mask.

    The mean is what a random choice would get, exactly; so a gain is unbiased, and 0 is chance.

    Returns:
        RUN, `criterion`, `draw`, `removed`, `mask`, `mse`, `mean_mse`, `gain`, and `relative_gain`
        (a share of `mean_mse`). Positive is better than chance.
    """
    errors = _mean_errors(exhaustive(results))
    errors["mean_mse"] = errors.groupby(_GROUP)["mse"].transform("mean")
    rows = choices(selections, labels).merge(errors.drop(columns="order"), on=[*_GROUP, "mask"])
    gain = rows["mean_mse"] - rows["mse"]
    rows = rows.assign(gain=gain, relative_gain=gain / rows["mean_mse"])
    return rows[[*_CHOICE, "mse", "mean_mse", "gain", "relative_gain"]]


def regrets(
    results: pd.DataFrame, selections: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Error of the criterion's mask minus that of an oracle's, for three oracles.

    `seeds`: the mask that was best on average over the other seeds of the cell. `orders`: the one
    that was best over the run's other data orders, averaged over the order left out. Both are
    honest: chosen on other fine-tunings than they are judged on. `hindsight`: the mask that is best
    on these very test errors; no criterion can reach it, and even equal masks show a regret
    against it. That is `null_regret`, from the replicates' deviation (`replicate_sd`) and the
    number of masks; it is 0 for the honest oracles.

    Returns:
        RUN, `criterion`, `draw`, `removed`, `oracle`, `mse`, `oracle_mse`, `regret`, `null_regret`
        (missing where no replicates tell it), and both as shares of `oracle_mse`:
        `relative_regret`, `relative_null`.
    """
    errors = exhaustive(results)
    levels = pd.concat([_mean_errors(errors), errors])
    chosen = choices(selections, labels).merge(
        levels[[*_GROUP, "order", "mask", "mse"]], on=[*_GROUP, "mask"]
    )
    rows = chosen.merge(_oracles(errors), on=[*_GROUP, "order"])
    keys = [*RUN, "criterion", "draw", "removed", "oracle"]
    rows = rows.groupby(keys, as_index=False)[["mse", "oracle_mse"]].mean()
    rows["regret"] = rows["mse"] - rows["oracle_mse"]
    rows = rows.merge(_null_regrets(results, errors), on=_GROUP, how="left")
    rows["null_regret"] = rows["null_regret"].where(rows["oracle"] == "hindsight", 0.0)
    return rows.assign(
        relative_regret=rows["regret"] / rows["oracle_mse"],
        relative_null=rows["null_regret"] / rows["oracle_mse"],
    )


def _mean_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Errors with the data orders of a run averaged: `order` is `MEAN`."""
    mean = errors.groupby([*_GROUP, "mask"])["mse"].mean().reset_index()
    return mean.assign(order=MEAN)


def _oracles(errors: pd.DataFrame) -> pd.DataFrame:
    """RUN, `removed`, `order` (that of the errors judged), `oracle`, `oracle_mse`."""
    mean = _mean_errors(errors)
    hindsight = mean.groupby(_GROUP)["mse"].min().reset_index().assign(order=MEAN)
    found = [
        hindsight.rename(columns={"mse": "oracle_mse"}).assign(oracle="hindsight"),
        _left_out(mean, [*CELL, "removed"], "seed").assign(oracle="seeds", order=MEAN),
        _left_out(errors, _GROUP, "order").assign(oracle="orders"),
    ]
    oracles = pd.concat(found)[[*_GROUP, "order", "oracle", "oracle_mse"]]
    return oracles.astype({"order": "int64", "oracle_mse": "float64"})  # an empty part has no type


def _left_out(errors: pd.DataFrame, group: list[str], replicate: str) -> pd.DataFrame:
    """The error, on each replicate, of the mask that is best over the group's other replicates."""
    found = []
    for key, rows in errors.groupby(group):
        table = wide(rows, replicate, "mask", "mse").dropna()
        values = table.to_numpy()
        if len(values) < 2:
            continue
        others = values.sum(axis=0) - values
        best = values[np.arange(len(values)), others.argmin(axis=1)]
        frame = pd.DataFrame({replicate: table.index, "oracle_mse": best})
        found.append(frame.assign(**keyed(group, key)))
    return pd.concat(found) if found else pd.DataFrame(columns=[*group, replicate, "oracle_mse"])


def _null_regrets(results: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """RUN, `removed`, `null_regret`: the hindsight regret of equal masks, in units of the MSE."""
    counted = errors.groupby([*_GROUP, "sites"], as_index=False).agg(
        mse=("mse", "mean"), orders=("order", "nunique")
    )
    noise = replicate_sd(results)[[*CELL, "relative_sd"]]
    rows = counted.merge(noise, on=list(CELL), how="left")
    masks = [comb(n, k) for n, k in zip(rows["sites"], rows["removed"], strict=True)]
    expected = pd.Series(masks, index=rows.index).map({n: expected_minimum(n) for n in set(masks)})
    null = expected * rows["relative_sd"] * rows["mse"] / np.sqrt(rows["orders"])
    return rows.assign(null_regret=null)[[*_GROUP, "null_regret"]]
