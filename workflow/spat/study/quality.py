"""How good is the choice of a criterion: its gain over chance, its regret, its agreement?

The regret is the error of the criterion's mask minus that of the best mask. The agreement compares
the scores of the sites with the change of the test error when one site is left out, after
fine-tuning, against the control. A high score means keep, so agreement is positive where leaving
out a site with a high score costs most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.integrate
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spat.blocks import Array
from spat.study import methods
from spat.study.gains import adjusted, all_gains, choices, decisions_and_labels, mean_errors
from spat.study.methods import SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, once, page
from spat.study.pages.reader import Frames
from spat.study.replicates import (
    exhaustive,
    leave_one_out_changes,
    mean_changes,
    replicate_sd,
)
from spat.study.statistics.averages import measure, summarise, weights
from spat.study.statistics.cells import ALL_ORDERS, CELL, RUN, keyed, wide
from spat.study.statistics.ranks import permutations, relabelled, site_scores, tau_b, vectors

GAIN: Final = "gain over chance"
REGRET: Final = {
    "seeds": "regret (oracle of other seeds)",
    "orders": "regret (oracle of other orders)",
    "hindsight": "regret (hindsight)",
}
NULL: Final = "hindsight regret of equal masks"
AGREEMENT: Final = "tau-b with the leave-one-out change"
# P-values, adjusted by Holm's method over the criteria of the configuration.
NO_GAIN: Final = "p: no gain (Holm)"
NO_AGREEMENT: Final = "p: no agreement (Holm)"
POSITION: Final = "p: no better than another order of the positions"
MEASURES: Final = (GAIN, NO_GAIN, *REGRET.values(), NULL, AGREEMENT, NO_AGREEMENT, POSITION)

_GROUP: Final = [*RUN, "removed"]


@page(
    "table",
    "quality",
    title="Quality of the criteria where every mask was fine-tuned",
    caption="""
How good each criterion is in runs in which all masks were fine-tuned.
The gain is the mean error of all masks with as many sites removed, minus the error of the
criterion's mask. A random choice has an expected gain of zero.
The regret is the error of the criterion's mask minus that of the best mask. The best mask is chosen
in hindsight, on other seeds or on other data orders. For comparison, the table gives the regret
that noise alone would cause if all masks were equally good.
Tau-b compares the scores with the change of the fine-tuned error when each site is left out.
Criteria that order the sites of every run identically share a row.
P-values are adjusted over all criteria. Intervals are over seeds: they do not reflect variation
across datasets.
""",
    layout=Layout(("model", "variant", "criterion"), "measure", best=False, counted="runs"),
    notes=(
        "Gain: the mean error of all masks with as many sites removed, minus the error of the "
        "criterion's mask (positive is better than chance).",
        "Regret: the error of the criterion's mask minus that of the oracle's mask.",
        "Intervals (t; variances pooled over cells unless Bartlett's test rejects that they are "
        "equal) are over seeds: they do not reflect variation across test windows or datasets.",
        "P-values of a gain are from a t-test over seeds, those of an agreement from permutations "
        "of the sites of each run; both are adjusted over all criteria. The last p-value applies "
        "the same permutation to all runs. N sites have N! orders, so it is at least 1/N!: 0.042 "
        "for four sites.",
    ),
)
def quality(frames: Frames, of: Sequence[str] = ("model", "variant")) -> pd.DataFrame:
    """Measures of each criterion per model, averaged over its cells, with intervals over seeds.

    Columns: those in `of`, criterion, measure, mean, low, high, sd, n (runs), missing, unit. Gains
    and regrets are percent of the error that they are compared with. The p-value of a gain is from
    a t-test over seeds; those of an agreement are from
    `agreement_tests`. Criteria that order the sites of every run
    identically share a row. Averages take seeds first, then horizons, datasets of a source,
    sources.

    Raises:
        Absent: if no run has all masks fine-tuned that remove some number of its sites.
    """
    measured = all_gains(frames)
    if measured.empty:
        raise Absent(
            "No run has all its site masks fine-tuned: set `pruning.exhaustive: true` to compare "
            "criteria with chance and with the oracle."
        )
    by = [*of, "criterion"]
    gain = measure(measured, "relative_gain", by, GAIN, "%", scale=100)
    tables = [gain, adjusted(gain, NO_GAIN, by)]
    regretted, taus = _regrets_and_agreements(frames)
    for oracle, name in REGRET.items():
        rows = regretted[regretted["oracle"] == oracle]
        tables.append(measure(rows, "relative_regret", by, name, "%", scale=100))
    hindsight = regretted[regretted["oracle"] == "hindsight"]
    tables.append(measure(hindsight, "relative_null", by, NULL, "%", scale=100))
    taus = taus[taus["criterion"].isin(set(measured["criterion"]))]
    tables.append(measure(taus, "tau", by, AGREEMENT, "tau", bounds=(-1.0, 1.0)))
    if not taus.empty:
        tests = agreement_tests(taus, of).rename(columns={"runs": "n"})
        position = tests.assign(mean=tests["p_position"], measure=POSITION, unit="p")
        tables += [
            adjusted(tests, NO_AGREEMENT, by),
            position[[*by, "mean", "n", "measure", "unit"]],
        ]
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    table = table.assign(
        measure=methods.present(table["measure"], MEASURES), sd=float("nan"), missing=0
    )
    return methods.sort_rows(table.drop(columns="p"), [*by, "measure"])


@page(
    "table",
    "quality_cells",
    title="Quality of the criteria, cell by cell",
    caption="""
The gain over chance of each criterion, and its agreement with the change of the error when each
site is left out, for each cell.
The averages of the table *quality* can hide that cells disagree: read both tables together.
""",
    layout=Layout((*SHOWN, "criterion"), "measure", best=False, counted="runs"),
    notes=(
        "As the table `quality`, whose averages can hide that cells disagree. Intervals (t) are "
        "over the seeds of the cell; p-values are adjusted over all criteria and cells of a model.",
    ),
)
def quality_cells(frames: Frames) -> pd.DataFrame:
    """Gains and agreement of each criterion in each cell: `quality` without averages over cells.

    Raises:
        Absent: if `quality` raises it.
    """
    table = quality(frames, SHOWN)
    table = table[table["measure"].isin((GAIN, NO_GAIN, AGREEMENT, NO_AGREEMENT))]
    return table.assign(measure=table["measure"].cat.remove_unused_categories())


@page(
    "figure",
    "criteria_quality",
    title="Gain over chance and regret of the criteria",
    caption="""
Is a criterion better than chance? Left: its gain over the mean of all masks with as many sites
removed. Right: its regret against the best mask, chosen in hindsight or on other seeds; crosses
mark the regret that noise alone would cause if all masks were equally good. Intervals are over
seeds.
""",
)
def criteria_quality(frames: Frames) -> Figure:
    """Gain over chance and regret of each criterion.

    Left: how much lower the error of the criterion's mask is than the mean of all masks. Right: how
    much higher it is than the error of the best mask; crosses are the regret of equally good masks.
    Intervals are over seeds.

    Raises:
        Absent: if `quality` raises it.
    """
    table = quality(frames)
    parts = style.panels(table, ["model", "variant"])[: methods.MODELS_IN_FIGURE]
    height = 0.16 * table["criterion"].nunique() + 0.5
    figure = style.canvas(height=height * len(parts) + 0.6)
    axes = figure.subplots(len(parts), 2, squeeze=False, sharey="row", sharex="col")
    series = {
        "best mask in hindsight": REGRET["hindsight"],
        "best mask of other seeds": REGRET["seeds"],
    }
    marks = list(style.marks([GAIN, *series]).values())
    for (left, right), (title, part) in zip(axes, parts, strict=True):
        by_measure = dict(iter(part.groupby("measure", observed=True)))
        order = by_measure[GAIN].sort_values("mean")["criterion"].tolist()
        _intervals(left, by_measure[GAIN], order, GAIN, marks[0])
        for i, (label, name) in enumerate(series.items()):
            if name in by_measure:
                _intervals(right, by_measure[name], order, label, marks[i + 1], shift=0.18 * i)
        null = part[part["measure"] == NULL].set_index("criterion")["mean"].reindex(order)
        if null.notna().any():
            right.plot(null, range(len(order)), "x", ms=4, color=style.BLACK, label="equal masks")
        left.set_yticks(range(len(order)), order)
        left.set(title=title, ylabel="criterion")
        for axis in (left, right):
            axis.axvline(0, color=style.GREY, lw=0.6)
            axis.set_ylim(-0.7, len(order) - 0.3)
            axis.margins(x=0.1)
    for axis in axes.flat:
        axis.xaxis.set_major_locator(MaxNLocator(3))  # the labels of more would overlap
    axes[-1, 0].set_xlabel("gain (%)")
    axes[-1, 1].set_xlabel("regret (%)")
    style.legend_below(figure, [right for _, right in axes], columns=2)
    return figure


def regrets(
    results: pd.DataFrame, selections: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Error of the criterion's mask minus that of an oracle's mask, for three oracles.

    `seeds`: the mask that is best on average over the other seeds of the cell. `orders`: for each
    data order of the run, the mask that is best over the other orders; the results are averaged.
    Both oracles are unbiased: they are chosen on other fine-tunings than those on which they are
    evaluated. `hindsight`: the mask that is best on the test errors on which it is evaluated. It is
    a lower bound for every criterion. Even if all masks were equally good, there would be a regret
    against it: `null_regret`, computed from the standard deviation of replicates (`replicate_sd`)
    and the number of masks. `null_regret` is 0 for the unbiased oracles.

    Returns:
        RUN, `criterion`, `draw`, `removed`, `oracle`, `mse`, `oracle_mse`, `regret`, `null_regret`
        (missing if there are no replicates), and both as fractions of `oracle_mse`:
        `relative_regret`, `relative_null`.
    """
    errors = exhaustive(results)
    levels = pd.concat([mean_errors(errors), errors])
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


def agreements(
    results: pd.DataFrame, scores: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Tau-b of each criterion's site scores against the changes, one row per run and criterion.

    Changes are averaged over data orders. Runs with fewer than two sites are left out, since they
    have no ranking, and so are criteria that did not score every site. `labels` merges criteria.

    Returns:
        RUN, `criterion`, `tau`, `scores` and `changes` (arrays [N], sites in forward order).
    """
    changes = mean_changes(leave_one_out_changes(results))
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
    table = summarise(agreement, "tau", keys).drop(columns="p")
    rows = agreement.assign(weight=weights(agreement, keys))
    nulls = [keyed(keys, key) | _nulls(group, draws) for key, group in rows.groupby(keys)]
    return table.merge(pd.DataFrame(nulls, columns=[*keys, "null_sd", "p", "p_position"]), on=keys)


def expected_minimum(n: int) -> float:
    """Minus the expected minimum of n independent standard normal variables."""
    density = scipy.stats.norm.pdf
    below = scipy.stats.norm.cdf
    return float(
        scipy.integrate.quad(lambda x: n * x * density(x) * below(x) ** (n - 1), -10.0, 10.0)[0]
    )


@once
def _regrets_and_agreements(frames: Frames) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `regrets` and the `agreements` of all criteria, those that rank alike merged."""
    selections, labels = decisions_and_labels(frames)
    regretted = regrets(frames.results, selections, labels)
    return regretted, agreements(frames.results, frames.scores, labels)


def _oracles(errors: pd.DataFrame) -> pd.DataFrame:
    """RUN, `removed`, `order` (of the evaluated errors), `oracle`, `oracle_mse`."""
    mean = mean_errors(errors)
    hindsight = mean.groupby(_GROUP)["mse"].min().reset_index().assign(order=ALL_ORDERS)
    tables = [
        hindsight.rename(columns={"mse": "oracle_mse"}).assign(oracle="hindsight"),
        _left_out(mean, [*CELL, "removed"], "seed").assign(oracle="seeds", order=ALL_ORDERS),
        _left_out(errors, _GROUP, "order").assign(oracle="orders"),
    ]
    oracles = pd.concat(tables)[[*_GROUP, "order", "oracle", "oracle_mse"]]
    # An empty part has columns without a type.
    return oracles.astype({"order": "int64", "oracle_mse": "float64"})


def _left_out(errors: pd.DataFrame, group: list[str], replicate: str) -> pd.DataFrame:
    """For each replicate, the error of the mask that is best over the group's other replicates."""
    tables = []
    for key, rows in errors.groupby(group):
        table = wide(rows, replicate, "mask", "mse").dropna()
        values = table.to_numpy()
        if len(values) < 2:
            continue
        others = values.sum(axis=0) - values
        best = values[np.arange(len(values)), others.argmin(axis=1)]
        frame = pd.DataFrame({replicate: table.index, "oracle_mse": best})
        tables.append(frame.assign(**keyed(group, key)))
    return pd.concat(tables) if tables else pd.DataFrame(columns=[*group, replicate, "oracle_mse"])


def _null_regrets(results: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """RUN, `removed`, `null_regret`: the hindsight regret of equally good masks, as an MSE."""
    counted = errors.groupby([*_GROUP, "sites"], as_index=False).agg(
        mse=("mse", "mean"), orders=("order", "nunique")
    )
    noise = replicate_sd(results)[[*CELL, "relative_sd"]]
    rows = counted.merge(noise, on=list(CELL), how="left")
    masks = [comb(n, k) for n, k in zip(rows["sites"], rows["removed"], strict=True)]
    expected = pd.Series(masks, index=rows.index).map({n: expected_minimum(n) for n in set(masks)})
    null = expected * rows["relative_sd"] * rows["mse"] / np.sqrt(rows["orders"])
    return rows.assign(null_regret=null)[[*_GROUP, "null_regret"]]


def _nulls(group: pd.DataFrame, draws: int) -> dict[str, Any]:
    """Permutation nulls of one group: weighted mean tau-b under permuted scores."""
    weight = group["weight"].to_numpy()
    # The tolerance counts equal values as extreme.
    observed = abs(float(weight @ group["tau"].to_numpy())) - 1e-12
    permuted = [
        tau_b(scores[permutations(len(scores))], changes)  # [P]
        for scores, changes in zip(group["scores"], group["changes"], strict=True)
    ]
    rng = np.random.default_rng(0)
    null = np.zeros(draws)
    for share, taus in zip(weight, permuted, strict=True):
        null += share * rng.choice(taus, size=draws)
    position = float("nan")
    if len({len(taus) for taus in permuted}) == 1:
        shared: Array = weight @ np.stack(permuted)
        position = float((abs(shared) >= observed).mean())
    extreme = float((abs(null) >= observed).sum())
    return {"null_sd": null.std(), "p": (1.0 + extreme) / (1.0 + draws), "p_position": position}


def _intervals(
    axis: Axes, rows: pd.DataFrame, order: list[str], label: str, mark: style.Mark, shift: float = 0
) -> None:
    table = rows.set_index("criterion").reindex(order)
    low = (table["mean"] - table["low"]).fillna(0.0)
    high = (table["high"] - table["mean"]).fillna(0.0)
    axis.errorbar(
        table["mean"], np.arange(len(order)) + shift, xerr=[low, high], ls="none",
        color=mark.colour, marker=mark.marker, ms=3.5, elinewidth=0.7, label=label,
    )  # fmt: skip
