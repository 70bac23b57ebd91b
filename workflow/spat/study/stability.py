"""How stable are the scores: from batch to batch, over pre-training, and across seeds?

All measures use the scores of whole sites in single batches. A ranking from b batches is compared
with the ranking from all batches, which contains the b batches, so that the agreement is biased
upwards; and with the ranking from another b batches, which has no batch in common with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spat.blocks import Array
from spat.study import methods
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.statistics.averages import average, weights
from spat.study.statistics.cells import ALL_BATCHES, CELL, RUN, WHOLE_SITE, keyed, wide
from spat.study.statistics.ranks import (
    batch_scores,
    pairwise_tau,
    shuffles,
    site_scores,
    tau_b,
    vectors,
)

# For four sites, one swap of neighbours gives a tau of 2/3. At a mean of 0.95, about six of seven
# rankings equal the ranking from all batches.
THRESHOLD: Final = 0.95
# Batches joined to a larger one, for the coefficient of variation.
POOLS: Final = (1, 4)
# Numbers of batches whose ranking is compared with the ranking from all batches.
COMPARED: Final = (1, 4)
VARIATION: Final = {pool: f"CV, {pool} {'batches' if pool > 1 else 'batch'}" for pool in POOLS}
AGAINST_ALL: Final = {b: f"tau-b, {b} {'batches' if b > 1 else 'batch'}" for b in COMPARED}
HALVES: Final = "tau-b, half and half"
NEEDED: Final = {"tau": "batches needed", "tau_disjoint": "needed, other batches"}
EPOCHS: Final = "tau-b, epochs"
SEEDS: Final = "tau-b, seeds"
MEASURES: Final = (
    *VARIATION.values(),
    *AGAINST_ALL.values(),
    HALVES,
    *NEEDED.values(),
    EPOCHS,
    SEEDS,
)
TOO_FEW: Final = "Ranks need two scored sites and two batches: see `scoring.batches`."
# Criteria in the figure.
CURVES: Final = 6
_BY: Final = ("model", "variant", "criterion")
_CASE: Final = [*RUN, "criterion"]


@page(
    "table",
    "stability",
    title="Stability of the scores of the sites",
    caption="""
How stable is a ranking of the sites? Rank agreement (Kendall's tau-b) of the ranking from some
batches with the ranking from all batches, averaged over runs. Since these batches are part of all
batches, this agreement is biased upwards; a comparison with another set of as many batches does not
have this bias. The table also gives the variation of a site's score from batch to batch
(coefficient of variation), the agreement of other epochs of pre-training with the kept epoch, and
the agreement between seeds.
""",
    layout=Layout(_BY, "measure", best=False, counted="runs"),
    notes=(
        "CV: coefficient of variation of a site's score from batch to batch; 4 batches joined are "
        "one batch that is four times as large.",
        "Tau-b: rank agreement of the sites, between 1 or 4 batches and all batches, between two "
        "halves of the batches, between the other epochs and the kept epoch, and between seeds.",
        "Batches needed: from this number on, the mean tau-b with all, or with as many other, "
        f"batches, is at least {THRESHOLD:g}.",
    ),
)
def stability(frames: Frames) -> pd.DataFrame:
    """Stability of each criterion's site scores per model, averaged over its cells.

    Columns: model, variant, criterion, measure, mean, sd, n (runs), missing, unit. The number of
    batches needed is the smallest number from which on the mean rank agreement, with all batches or
    with as many other batches, is at least `THRESHOLD`. Its mean is missing if even the largest
    number does not reach the threshold. Averages take seeds first, then horizons, datasets of a
    source, sources; standard deviations are over runs.

    Raises:
        Absent: if fewer than two batches or two sites were scored.
    """
    scores = frames.scores
    agreement = batch_agreement(scores)
    if agreement.empty:
        raise Absent(TOO_FEW)
    tables = [
        *_of_batches(scores, agreement),
        *(_needed(agreement, column) for column in NEEDED),
        _average(_other_epochs(scores), "tau_kept", EPOCHS, "tau"),
        _of_seeds(scores),
    ]
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    names = list(dict.fromkeys(batch_scores(scores)["criterion"]))
    table = table[table["criterion"].isin(names)]
    send = methods.spat_criterion(scores)
    table = table.assign(
        criterion=methods.ordered(table["criterion"], sorted(names, key=lambda n: n != send)),
        measure=methods.present(table["measure"], MEASURES),
        missing=0,
    )
    columns = [*_BY, "measure", "mean", "sd", "n", "missing", "unit"]
    return methods.sort_rows(table[columns], [*_BY, "measure"])


@page(
    "figure",
    "stability",
    title="Rank agreement of the scores by the number of batches",
    caption="""
How stable is a ranking of the sites? Rank agreement (Kendall's tau-b) of the ranking from some
batches with the ranking from all batches, averaged over runs. Since these batches are part of all
batches, this agreement is biased upwards. The dashed line compares SEND with another set of as many
batches, which does not have this bias.
The band reaches down to the 5 % quantile of SEND's rankings. The dotted line is 0.95: from this
agreement on, the number of batches counts as sufficient.
""",
)
def agreement_by_batches(frames: Frames) -> Figure:
    """Kendall's tau-b of the ranking from b batches and the ranking from all batches.

    Lines are means over runs and subsets of batches. The band reaches down to the 5 % quantile of
    SEND over subsets; the dashed line compares SEND with as many other batches.

    Raises:
        Absent: if fewer than two batches were scored.
    """
    scores = frames.scores
    names = set(batch_scores(scores)["criterion"])
    send = methods.spat_criterion(scores)
    shown = [name for name in methods.CRITERIA_IN_ORDER if name in names]
    shown = sorted(shown, key=lambda name: name != send)[:CURVES]
    agreement = batch_agreement(scores[scores["criterion"].isin(shown)], subsets=100)
    if agreement.empty:
        raise Absent(TOO_FEW)
    keys, _ = style.split(agreement)
    parts = style.panels(agreement, keys)
    figure, axes = style.grid(len(parts), extra=0.75, sharey=True)
    for axis, (title, part) in zip(axes, parts, strict=True):
        axis.axhline(THRESHOLD, color=style.GREY, lw=0.6, ls=":")
        for criterion in shown:
            rows = part[part["criterion"] == criterion]
            curve = rows.groupby("batches")[["tau", "tau_low", "tau_disjoint"]].mean()
            mark = style.mark(criterion)
            axis.plot(
                curve.index, curve["tau"], color=mark.colour, marker=mark.marker, ls=mark.line,
                ms=3, label=mark.label,
            )  # fmt: skip
            if criterion == send:
                axis.fill_between(
                    curve.index, curve["tau_low"], curve["tau"], color=mark.colour, alpha=0.15, lw=0
                )
                other = curve["tau_disjoint"].dropna()
                axis.plot(
                    other.index, other, color=style.BLACK, ls="--", lw=0.9, marker=".", ms=3,
                    label=f"{mark.label}, other batches",
                )  # fmt: skip
        axis.set_title(title)
        axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.05)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label(axes, "batches scored", "rank agreement (tau-b)")
    style.legend_below(figure, axes, columns=2)
    return figure


def variation(scores: pd.DataFrame, pools: Sequence[int] = (1,)) -> pd.DataFrame:
    """Coefficient of variation of each site's score over batches.

    A pool of size g is the mean over g consecutive batches. If a criterion is a mean over windows,
    this equals the score of a batch that is g times as large. Batches that do not fill a pool are
    left out, and so are pool sizes with fewer than two pools.

    Returns:
        RUN, `criterion`, `site`, `pool`, `batches`, `mean`, `cv` (missing if the mean is 0).
    """
    rows = batch_scores(scores)
    place = rows.groupby([*_CASE, "site"])["batch"].rank(method="first").astype("int64") - 1
    count = place.groupby([rows[key] for key in (*_CASE, "site")]).transform("size")
    tables = []
    for pool in pools:
        full = place < count // pool * pool
        pooled = rows[full].assign(pool=pool, part=place[full] // pool)
        keys = [*_CASE, "site", "pool"]
        means = pooled.groupby([*keys, "part"], as_index=False)["value"].mean()
        table = means.groupby(keys)["value"].agg(["count", "mean", "std"]).reset_index()
        tables.append(table[table["count"] > 1])
    joined: pd.DataFrame = pd.concat(tables, ignore_index=True)
    mean = joined["mean"].abs()
    joined["cv"] = joined["std"] / mean.where(mean > 0)
    columns = [*_CASE, "site", "pool", "batches", "mean", "cv"]
    return joined.rename(columns={"count": "batches"})[columns]


def batch_agreement(scores: pd.DataFrame, subsets: int = 200, seed: int = 0) -> pd.DataFrame:
    """Tau-b of the ranking from b random batches, for every b from 1 to all B.

    Returns:
        RUN, `criterion`, `batches` (b), `tau` (mean over subsets, with the ranking from all
        batches), `tau_low` (5 % quantile over subsets), `tau_disjoint` (mean, with another b
        batches; missing if b > B / 2). Runs with fewer than two batches or sites are left out.
    """
    whole = wide(batch_scores(scores), [*_CASE, "batch"], "site", "value")
    rows: list[dict[str, object]] = []
    for key, group in whole.groupby(level=_CASE):
        table = group.dropna(axis="columns").to_numpy()  # models differ in their number of sites
        if min(table.shape) > 1:
            curve = _curve(table, shuffles(len(table), subsets, seed))
            rows += [keyed(_CASE, key) | point for point in curve]
    return pd.DataFrame(rows, columns=[*_CASE, "batches", "tau", "tau_low", "tau_disjoint"])


def recommended_batches(
    agreement: pd.DataFrame,
    by: Sequence[str] = ("model", "criterion"),
    threshold: float = THRESHOLD,
    column: str = "tau",
) -> pd.DataFrame:
    """The smallest b from which on the mean of `column` over runs is at least `threshold`.

    It is missing if even the largest b does not reach the threshold. This is possible for
    `tau_disjoint`, but not for `tau`, which is 1 for all batches.

    Returns:
        `by`, `batches`, and `of`, the largest b that was tried.
    """
    keys = [*by, "batches"]
    rows = agreement[agreement[column].notna()]
    shares = (rows[column] * weights(rows, keys)).rename("mean")
    means = shares.groupby([rows[key] for key in keys]).sum().reset_index()
    needed = []
    for key, curve in means.groupby(list(by)):
        failing = curve.loc[curve["mean"] < threshold, "batches"]
        enough = curve.loc[curve["batches"] > failing.max(), "batches"] if len(failing) else None
        first = curve["batches"].min() if enough is None else enough.min()
        needed.append(keyed(by, key) | {"batches": first, "of": curve["batches"].max()})
    return pd.DataFrame(needed, columns=[*by, "batches", "of"]).astype({"batches": "Int64"})


def epoch_agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Tau-b of the scores after each epoch of pre-training, from the recorded trajectory.

    Returns:
        RUN, `criterion`, `epoch`, `tau_kept` (with the scores at the kept checkpoint; missing if
        there are none).
    """
    rows = scores[(scores["head"] == WHOLE_SITE) & (scores["batch"] == ALL_BATCHES)]
    epochs = rows.groupby(_CASE)["epoch"].transform("nunique")
    rows = rows[epochs > 1]  # other criteria are recorded at the kept epoch only
    trajectory = vectors(rows, [*_CASE, "epoch"]).rename("values").reset_index()
    kept = vectors(site_scores(scores), _CASE).rename("kept").reset_index()
    trajectory = trajectory.merge(kept, on=_CASE, how="left")
    trajectory["tau_kept"] = [
        float(tau_b(a, b)) if isinstance(b, np.ndarray) else float("nan")
        for a, b in zip(trajectory["values"], trajectory["kept"], strict=True)
    ]
    return trajectory[[*_CASE, "epoch", "tau_kept"]]


def seed_agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Tau-b of the site scores between the seeds of a cell: CELL, `criterion`, `tau`, `pairs`."""
    return pairwise_tau(vectors(site_scores(scores), _CASE), [*CELL, "criterion"])


def _of_batches(scores: pd.DataFrame, agreement: pd.DataFrame) -> list[pd.DataFrame]:
    pooled = variation(scores, POOLS)
    tables = [
        _average(pooled[pooled["pool"] == pool], "cv", name, "") for pool, name in VARIATION.items()
    ]
    most = agreement.groupby(list(RUN))["batches"].transform("max")
    for batches, name in AGAINST_ALL.items():
        rows = agreement[(agreement["batches"] == batches) & (batches < most)]
        tables.append(_average(rows, "tau", name, "tau"))
    halves = agreement[agreement["batches"] == most // 2]
    return [*tables, _average(halves, "tau_disjoint", HALVES, "tau")]


def _other_epochs(scores: pd.DataFrame) -> pd.DataFrame:
    """Agreement of the other epochs with the kept epoch."""
    kept = scores.loc[scores["batch"] != ALL_BATCHES, [*RUN, "epoch"]].drop_duplicates()
    rows = epoch_agreement(scores).merge(kept.assign(kept=True), how="left")
    return rows[rows["kept"].isna()]


def _needed(agreement: pd.DataFrame, column: str) -> pd.DataFrame:
    table = recommended_batches(agreement, _BY, column=column)
    runs = agreement[[*RUN, "criterion"]].drop_duplicates().groupby([*_BY]).size().rename("n")
    table = table.join(runs, on=[*_BY]).rename(columns={"batches": "mean"})
    table = table.astype({"mean": "float64"}).drop(columns="of")
    return table.assign(measure=NEEDED[column], unit="batches", sd=float("nan"))


def _of_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Agreement between the seeds of a cell; deviations are over cells, since pairs share seeds."""
    pairs = seed_agreement(scores)
    table = _average(pairs.assign(seed=0), "tau", SEEDS, "tau")
    if table.empty:
        return table
    # s seeds have s (s - 1) / 2 pairs.
    seeds = pairs.assign(n=(1 + (1 + 8 * pairs["pairs"]) ** 0.5) / 2).groupby([*_BY])["n"].sum()
    return table.drop(columns="n").join(seeds.round().astype("int64"), on=[*_BY])


def _average(rows: pd.DataFrame, value: str, measure: str, unit: str) -> pd.DataFrame:
    """Nested mean, and the standard deviation over runs."""
    known = rows[rows[value].notna()]
    if known.empty:
        return pd.DataFrame()
    runs = known.groupby([*RUN, "criterion"])[value].mean().groupby(list(_BY))
    means = average(known, [value], _BY, upto="source").set_index(list(_BY))[value]
    table = pd.DataFrame({"mean": means, "sd": runs.std(), "n": runs.size()})
    return table.reset_index().assign(measure=measure, unit=unit)


def _curve(table: Array, orders: NDArray[np.intp]) -> list[dict[str, float]]:
    """table [B, N], orders of its batches [R, B] -> one row per b, over the first b of each."""
    total, half = len(table), len(table) // 2
    shuffled = table[orders]
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
