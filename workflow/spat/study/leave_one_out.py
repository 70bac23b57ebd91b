"""Do scores order the sites as the fine-tuned errors do when one site is left out?

The change of a site is the change of the test error when it alone is left out, after fine-tuning,
against the control. A high score means keep, so agreement is positive where leaving out a site with
a high score costs most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spat.blocks import Array
from spat.study.statistics.averages import summarise, weights
from spat.study.statistics.cells import CELL, RUN, keyed, parsed, site_errors
from spat.study.statistics.ranks import (
    pairwise_tau,
    permutations,
    relabelled,
    site_scores,
    tau_b,
    vectors,
)


def leave_one_out_changes(results: pd.DataFrame) -> pd.DataFrame:
    """The change of the test MSE when each site alone is left out.

    Runs and data orders in which the error of a site is missing are left out.

    Returns:
        RUN, `order`, `site`, `mse`, `control_mse`, `change` (a fraction of the control's MSE).
    """
    rows = site_errors(results)
    control = rows.loc[rows["removed"] == 0, [*RUN, "order", "mse"]]
    rows = rows[rows["removed"] == 1].merge(
        control.rename(columns={"mse": "control_mse"}), on=[*RUN, "order"]
    )
    rows = rows.assign(
        change=rows["mse"] / rows["control_mse"] - 1.0,
        site=rows["mask"].map(lambda mask: parsed(mask).sites_removed[0]).astype("int64"),
    )
    known = rows.groupby([*RUN, "order"])["change"].transform("count")
    return rows.loc[known == rows["sites"], [*RUN, "order", "site", "mse", "control_mse", "change"]]


def agreements(
    results: pd.DataFrame, scores: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Tau-b of each criterion's site scores against the changes, one row per run and criterion.

    Changes are averaged over data orders. Runs with fewer than two sites are left out, since they
    have no ranking, and so are criteria that did not score every site. `labels` merges criteria.

    Returns:
        RUN, `criterion`, `tau`, `scores` and `changes` (arrays [N], sites in forward order).
    """
    changes = _mean_changes(leave_one_out_changes(results))
    rows = relabelled(site_scores(scores), labels)
    rows = rows.drop_duplicates([*RUN, "criterion", "site"])
    scored = vectors(rows, [*RUN, "criterion"]).rename("scores").reset_index()
    joined = scored.merge(vectors(changes, list(RUN), "change").rename("changes").reset_index())
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

    The two-sided `p` permutes the sites of each run independently: each draw takes one of the N!
    orders for each run. `p_position` applies the same permutation to all runs, for all N! orders:
    it tests whether the criterion is better than another fixed order of the positions, since a site
    that matters in one run may matter in all runs. `null_sd` is the standard deviation under the
    first null.

    Returns:
        `by`, `criterion`, `tau`, `low`, `high`, `runs`, `cells`, `null_sd`, `p`, `p_position`.
    """
    keys = [*by, "criterion"]
    table = summarise(agreement, "tau", keys, confidence=confidence).drop(columns="p")
    rows = agreement.assign(weight=weights(agreement, keys))
    nulls = [keyed(keys, key) | _nulls(group, draws, seed) for key, group in rows.groupby(keys)]
    return table.merge(pd.DataFrame(nulls, columns=[*keys, "null_sd", "p", "p_position"]), on=keys)


def self_agreement(results: pd.DataFrame) -> pd.DataFrame:
    """Agreement of two measurements of the changes, which have equal noise.

    This is not an upper bound: a criterion without noise can agree with each measurement better
    than the two measurements agree with each other.

    Returns:
        CELL, `across` (`seeds`: pairs of seeds, data orders averaged; `orders`: pairs of data
        orders of one seed), `tau` (mean over pairs), `pairs`.
    """
    changes = leave_one_out_changes(results)
    seeds = pairwise_tau(vectors(_mean_changes(changes), list(RUN), "change"), list(CELL))
    orders = pairwise_tau(vectors(changes, [*RUN, "order"], "change"), list(RUN))
    per_cell = orders.assign(tau=orders["tau"] * orders["pairs"]).groupby(list(CELL))
    orders = per_cell[["tau", "pairs"]].sum().reset_index()
    orders["tau"] /= orders["pairs"]
    both = pd.concat([seeds.assign(across="seeds"), orders.assign(across="orders")])
    return both[[*CELL, "across", "tau", "pairs"]].reset_index(drop=True)


def _mean_changes(changes: pd.DataFrame) -> pd.DataFrame:
    """Changes [RUN, `site`] averaged over data orders."""
    return changes.groupby([*RUN, "site"])["change"].mean().reset_index()


def _nulls(group: pd.DataFrame, draws: int, seed: int) -> dict[str, Any]:
    """Permutation nulls of one group: weighted mean tau-b under permuted scores."""
    weight = group["weight"].to_numpy()
    # The tolerance counts equal values as extreme.
    observed = abs(float(weight @ group["tau"].to_numpy())) - 1e-12
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
