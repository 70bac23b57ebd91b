"""How stable scores are: from batch to batch, over pre-training, and across seeds.

From the per-batch scores of whole sites. What a ranking from b batches is worth is asked in two
ways: against the ranking from all batches, which contains those b and so flatters, and against
another b batches that share none with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from spat.blocks import Array
from spat.evaluation.cells import CELL, keyed, weights, wide
from spat.evaluation.ranks import batch_scores, pairwise_tau, site_scores, tau_b, vectors
from spat.pipeline.frames import RUN

# A ranking of four sites with one swap of neighbours has tau 2/3: at a mean of 0.95, six rankings
# of seven are the full one.
THRESHOLD: Final = 0.95

_CASE: Final = [*RUN, "criterion"]


def variation(scores: pd.DataFrame, pools: Sequence[int] = (1,)) -> pd.DataFrame:
    """Coefficient of variation of each site's score over batches.

    A pool of g joins g consecutive batches by their mean, which is the score of a batch g times as
    large for every criterion that is a mean over windows. Batches that fill no pool are left out,
    and so are pools that leave fewer than two.

    Returns:
        RUN, `criterion`, `site`, `pool`, `batches`, `mean`, `cv` (missing where the mean is 0).
    """
    rows = batch_scores(scores)
    place = rows.groupby([*_CASE, "site"])["batch"].rank(method="first").astype("int64") - 1
    count = place.groupby([rows[key] for key in (*_CASE, "site")]).transform("size")
    found = []
    for pool in pools:
        full = place < count // pool * pool
        pooled = rows[full].assign(pool=pool, part=place[full] // pool)
        keys = [*_CASE, "site", "pool"]
        means = pooled.groupby([*keys, "part"], as_index=False)["value"].mean()
        table = means.groupby(keys)["value"].agg(["count", "mean", "std"]).reset_index()
        found.append(table[table["count"] > 1])
    joined: pd.DataFrame = pd.concat(found, ignore_index=True)
    mean = joined["mean"].abs()
    joined["cv"] = joined["std"] / mean.where(mean > 0)
    columns = [*_CASE, "site", "pool", "batches", "mean", "cv"]
    return joined.rename(columns={"count": "batches"})[columns]


def batch_agreement(scores: pd.DataFrame, subsets: int = 200, seed: int = 0) -> pd.DataFrame:
    """Tau-b of the ranking from b random batches, for every b from 1 to all B.

    Returns:
        RUN, `criterion`, `batches` (b), `tau` (mean, against the ranking from all), `tau_low` (its
        5 % quantile over subsets), `tau_disjoint` (mean, against another b batches; missing where
        b > B / 2). Cases with fewer than two batches or sites are left out.
    """
    whole = wide(batch_scores(scores), [*_CASE, "batch"], "site", "value")
    found = []
    for key, group in whole.groupby(level=_CASE):
        table = group.dropna(axis="columns").to_numpy()  # models differ in their number of sites
        if min(table.shape) > 1:
            curve = _curve(table, subsets, np.random.default_rng(seed))
            found += [keyed(_CASE, key) | point for point in curve]
    return pd.DataFrame(found, columns=[*_CASE, "batches", "tau", "tau_low", "tau_disjoint"])


def recommended_batches(
    agreement: pd.DataFrame,
    by: Sequence[str] = ("model", "criterion"),
    threshold: float = THRESHOLD,
    column: str = "tau",
) -> pd.DataFrame:
    """The smallest b from which on the mean of `column` over runs stays at the threshold or above.

    Missing where even the largest b does not reach it; with `tau_disjoint` that can happen, with
    `tau` it cannot, since all batches agree with themselves.

    Returns:
        `by`, `batches`, and `of`, the largest b that was tried.
    """
    keys = [*by, "batches"]
    rows = agreement[agreement[column].notna()]
    shares = (rows[column] * weights(rows, keys)).rename("mean")
    means = shares.groupby([rows[key] for key in keys]).sum().reset_index()
    found = []
    for key, curve in means.groupby(list(by)):
        failing = curve.loc[curve["mean"] < threshold, "batches"]
        enough = curve.loc[curve["batches"] > failing.max(), "batches"] if len(failing) else None
        first = curve["batches"].min() if enough is None else enough.min()
        found.append(keyed(by, key) | {"batches": first, "of": curve["batches"].max()})
    return pd.DataFrame(found, columns=[*by, "batches", "of"]).astype({"batches": "Int64"})


def epoch_agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Tau-b of the scores after each epoch of pre-training, from the recorded trajectory.

    Returns:
        RUN, `criterion`, `epoch`, `tau_kept` (against the scores at the kept checkpoint; missing
        where there are none), `tau_last` and `tau_previous` (against the last and the previous
        epoch; the latter missing for the first).
    """
    rows = scores[(scores["head"] == -1) & (scores["batch"] == -1)]
    epochs = rows.groupby(_CASE)["epoch"].transform("nunique")
    rows = rows[epochs > 1]  # the other criteria are known at the kept epoch alone
    trajectory = vectors(rows, [*_CASE, "epoch"]).rename("values").reset_index()
    kept = vectors(site_scores(scores), _CASE).rename("kept").reset_index()
    trajectory = trajectory.merge(kept, on=_CASE, how="left")
    cases = trajectory.groupby(_CASE)["values"]
    trajectory = trajectory.assign(last=cases.transform("last"), previous=cases.shift())
    for name in ("kept", "last", "previous"):
        trajectory[f"tau_{name}"] = [
            float(tau_b(a, b)) if isinstance(b, np.ndarray) else float("nan")
            for a, b in zip(trajectory["values"], trajectory[name], strict=True)
        ]
    return trajectory[[*_CASE, "epoch", "tau_kept", "tau_last", "tau_previous"]]


def seed_agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Tau-b of the site scores between the seeds of a cell: CELL, `criterion`, `tau`, `pairs`."""
    return pairwise_tau(vectors(site_scores(scores), _CASE), [*CELL, "criterion"])


def _curve(table: Array, subsets: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """table [B, N] -> one row per b, over random subsets of b batches."""
    total, half = len(table), len(table) // 2
    shuffled = table[rng.permuted(np.tile(np.arange(total), (subsets, 1)), axis=1)]
    running = shuffled.cumsum(axis=1)  # [R, B, N]; sums order the sites as means do
    tau = tau_b(running, running[:, -1:])  # [R, B]
    others = running[:, 1 : 2 * half : 2] - running[:, :half]  # batches b + 1 to 2 b
    disjoint = np.full(total, np.nan)
    disjoint[:half] = tau_b(running[:, :half], others).mean(axis=0)
    curves = {
        "batches": np.arange(1, total + 1),
        "tau": tau.mean(axis=0),
        "tau_low": np.quantile(tau, 0.05, axis=0),
        "tau_disjoint": disjoint,
    }
    return [dict(zip(curves, point, strict=True)) for point in zip(*curves.values(), strict=True)]
