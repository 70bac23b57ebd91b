"""Do scores order the sites as the fine-tuned errors do?

The truth of a site is the test change of leaving it out alone, after fine-tuning, against the
control. A high score means keep, so agreement is positive where leaving out a high-scored site
costs most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spat.blocks import Array
from spat.evaluation.cells import CELL, fields, keyed, site_errors, weights
from spat.evaluation.ranks import (
    pairwise_tau,
    permutations,
    relabelled,
    site_scores,
    tau_b,
    vectors,
)
from spat.evaluation.summary import summarise
from spat.pipeline.frames import RUN


def leave_one_out(results: pd.DataFrame) -> pd.DataFrame:
    """What leaving out each site alone changes, for runs and data orders in which all N are known.

    Returns:
        RUN, `order`, `site`, `mse`, `control_mse`, `change` (a share of the control's MSE).
    """
    rows = site_errors(results)
    control = rows.loc[rows["removed"] == 0, [*RUN, "order", "mse"]]
    rows = rows[rows["removed"] == 1].merge(
        control.rename(columns={"mse": "control_mse"}), on=[*RUN, "order"]
    )
    rows = rows.assign(
        change=rows["mse"] / rows["control_mse"] - 1.0,
        site=rows["mask"].map(lambda mask: fields(mask).index("0")).astype("int64"),
    )
    known = rows.groupby([*RUN, "order"])["change"].transform("count")
    return rows.loc[known == rows["sites"], [*RUN, "order", "site", "mse", "control_mse", "change"]]


def agreements(
    results: pd.DataFrame, scores: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Tau-b of each criterion's site scores against the truth, one row per run and criterion.

    The truth is averaged over data orders. Runs with fewer than two sites rank nothing and are left
    out, and so are criteria that did not score every site. `labels` merges criteria.

    Returns:
        RUN, `criterion`, `tau`, `scores` and `changes` (arrays [N], sites in forward order).
    """
    truth = _mean_changes(leave_one_out(results))
    rows = relabelled(site_scores(scores), labels)
    rows = rows.drop_duplicates([*RUN, "criterion", "site"])
    ours = vectors(rows, [*RUN, "criterion"]).rename("scores").reset_index()
    joined = ours.merge(vectors(truth, list(RUN), "change").rename("changes").reset_index())
    same = joined["scores"].map(len) == joined["changes"].map(len)
    joined = joined[same & (joined["changes"].map(len) > 1)]
    pairs = zip(joined["scores"], joined["changes"], strict=True)
    return joined.assign(tau=[float(tau_b(a, b)) for a, b in pairs])


def agreement_tests(
    agreement: pd.DataFrame,
    by: Sequence[str] = CELL,
    *,
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean tau-b per group of `by` and criterion, with its interval over seeds and two nulls.

    Two-sided `p` permutes the sites of every run on its own: all N! orders of a run are known, and
    which of them each run gets is drawn. `p_position` gives all runs the same permutation, exactly:
    it asks whether the criterion is better than another fixed order of the positions, since a site
    that matters in one run may matter in all. `null_sd` is the deviation under the first.

    Returns:
        `by`, `criterion`, `tau`, `low`, `high`, `runs`, `cells`, `null_sd`, `p`, `p_position`.
    """
    keys = [*by, "criterion"]
    table = summarise(agreement, "tau", keys, confidence=confidence).drop(columns="p")
    rows = agreement.assign(weight=weights(agreement, keys))
    found = [keyed(keys, key) | _nulls(group, draws, seed) for key, group in rows.groupby(keys)]
    nulls = pd.DataFrame(found, columns=[*keys, "null_sd", "p", "p_position"])
    return table.merge(nulls, on=keys)


def truth_agreement(results: pd.DataFrame) -> pd.DataFrame:
    """How well two measurements of the truth agree, each as noisy as the other.

    That is no ceiling: a criterion without noise of its own can agree with either better than they
    do with each other.

    Returns:
        CELL, `across` (`seeds`: pairs of seeds, data orders averaged; `orders`: pairs of data
        orders of one seed), `tau` (mean over pairs), `pairs`.
    """
    truth = leave_one_out(results)
    seeds = pairwise_tau(vectors(_mean_changes(truth), list(RUN), "change"), list(CELL))
    orders = pairwise_tau(vectors(truth, [*RUN, "order"], "change"), list(RUN))
    per_cell = orders.assign(tau=orders["tau"] * orders["pairs"]).groupby(list(CELL))
    orders = per_cell[["tau", "pairs"]].sum().reset_index()
    orders["tau"] /= orders["pairs"]
    return pd.concat([seeds.assign(across="seeds"), orders.assign(across="orders")])[
        [*CELL, "across", "tau", "pairs"]
    ].reset_index(drop=True)


def _mean_changes(truth: pd.DataFrame) -> pd.DataFrame:
    """Changes [RUN, `site`] averaged over data orders."""
    return truth.groupby([*RUN, "site"])["change"].mean().reset_index()


def _nulls(group: pd.DataFrame, draws: int, seed: int) -> dict[str, Any]:
    """Permutation nulls of one group: weighted mean tau-b under permuted scores."""
    weight = group["weight"].to_numpy()
    observed = abs(float(weight @ group["tau"].to_numpy())) - 1e-12  # equal counts as extreme
    permuted = [
        tau_b(scores[permutations(len(scores))], changes)  # [P]
        for scores, changes in zip(group["scores"], group["changes"], strict=True)
    ]
    rng = np.random.default_rng(seed)
    null = np.zeros(draws)
    for share, taus in zip(weight, permuted, strict=True):
        null += share * rng.choice(taus, size=draws)
    position = float("nan")
    if len({len(taus) for taus in permuted}) == 1:
        shared: Array = weight @ np.stack(permuted)
        position = float((abs(shared) >= observed).mean())
    extreme = float((abs(null) >= observed).sum())
    return {"null_sd": null.std(), "p": (1.0 + extreme) / (1.0 + draws), "p_position": position}
