"""Which criterion chooses well, and is it better than chance?

In runs in which every mask was fine-tuned, the mask of a criterion is compared with all masks that
it could have chosen, per run, criterion and number K of removed sites, for 0 < K < N. Errors are
test MSEs after fine-tuning. If a run has several data orders, the error of a mask is the mean over
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spat.study import methods
from spat.study.leave_one_out import agreement_tests, agreements
from spat.study.methods import SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, once, page
from spat.study.pages.reader import Frames
from spat.study.replicates import exhaustive, expected_minimum, replicate_sd
from spat.study.statistics.averages import average, measure
from spat.study.statistics.cells import (
    ALL_ORDERS,
    CELL,
    RUN,
    keyed,
    site_errors,
    sites_removed,
    wide,
)
from spat.study.statistics.ranks import merged_criteria, relabelled
from spat.study.statistics.tests import MIN_SOURCES, Ranking, holm, ranking

# `level` -> its name on pages.
LEVELS: Final = {"site": "modules", "head": "heads"}
ALL_MASKS: Final = "(mean of all masks)"
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
# Decisions that no criterion made.
NOT_RANKING: Final = ("control", "exhaustive")
# Models that fit in one figure.
MODELS: Final = 4
# Figure of mean ranks: height of a line, room for labels on each side (in lengths of the axis),
# and the largest number of ticks.
LINE: Final = 0.14
SIDE: Final = 0.65
TICKS: Final = 8

_CHOICE: Final = [*RUN, "criterion", "draw", "removed", "mask"]
_GROUP: Final = [*RUN, "removed"]


@page(
    "table",
    "criteria",
    title="Test MSE by criterion and share removed",
    caption="""
Test error after fine-tuning, by the criterion that chose the mask and by the share that was
removed. A good criterion has low errors.
Random masks are averaged over draws. If all masks were trained, *mean of all masks* is the expected
error of a random choice.
""",
    layout=Layout((*SHOWN, "level", "criterion"), "share", within=(*SHOWN, "level")),
    notes=(
        "Masks that remove nothing or everything are left out, since they are the same for all "
        "criteria.",
    ),
)
def criteria(frames: Frames) -> pd.DataFrame:
    """Test MSE by criterion, level and share removed, and the mean of all masks if all are trained.

    Columns: dataset, model, variant, lookback, horizon, level, criterion, share, mean, sd, n,
    missing, unit. Random draws of one seed are averaged first.

    Raises:
        Absent: if no mask at a ratio between 0 and 1 was fine-tuned.
    """
    rows = methods.by_decision(frames)
    rows = pd.concat([rows, _all_masks(frames, rows)], ignore_index=True)
    by = [*SHOWN, "level", "criterion", "ratio"]
    table = methods.summary(rows, by, "mse").assign(unit="")
    table["level"] = methods.ordered(table["level"].map(LEVELS), LEVELS.values())
    table = methods.sort_rows(table, by)
    share = table.pop("ratio").map(percent)
    order = sorted(share.unique(), key=lambda text: float(text.split()[0]))
    table["share"] = methods.ordered(share, order)
    columns = [*SHOWN, "level", "criterion", "share", "mean", "sd", "n", "missing", "unit"]
    return table[columns]


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
    `spat.study.leave_one_out.agreement_tests`. Criteria that order the sites of every run
    identically share a row. Averages take seeds first, then horizons, datasets of a source,
    sources.

    Raises:
        Absent: if no run has all masks fine-tuned that remove some number of its sites.
    """
    measured = gained(frames)
    if measured.empty:
        raise Absent(
            "No run has all its site masks fine-tuned: set `pruning.exhaustive: true` to compare "
            "criteria with chance and with the oracle."
        )
    by = [*of, "criterion"]
    gain = measure(measured, "relative_gain", by, GAIN, "%", scale=100)
    tables = [gain, adjusted(gain, NO_GAIN, by)]
    regretted, taus = _judged(frames)
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
        tables += [adjusted(tests, NO_AGREEMENT, by), position[[*by, *_VALUES]]]
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
    parts = style.panels(table, ["model", "variant"])[:MODELS]
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


@page(
    "figure",
    "criteria_changes",
    title="Change of the test MSE by criterion and share removed",
    caption="""
Change of the test MSE against the control, by criterion, level (whole modules or single heads) and
share removed. Negative is better than the control. Points are means over runs, bars standard
deviations; random draws of a run are averaged first.
""",
)
def criteria_changes(frames: Frames) -> Figure:
    """Change of the test MSE against the control by criterion, level and share removed.

    Raises:
        Absent: if no mask at a ratio between 0 and 1 was fine-tuned.
    """
    rows = methods.with_change(methods.by_decision(frames), frames)
    rows = rows.assign(series=rows["criterion"] + " " + rows["level"].map(LEVELS))
    ratios = sorted(rows["ratio"].unique())
    parts = style.panels(rows, ["model", "variant"])[:MODELS]
    orders = [sorted(part["series"].unique(), reverse=True) for _, part in parts]
    heights = [0.2 * len(order) + 0.55 for order in orders]
    figure = style.canvas(height=sum(heights) + 0.6)
    axes = figure.subplots(len(parts), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (title, part), order in zip(axes, parts, orders, strict=True):
        for i, ratio in enumerate(ratios):
            mark = style.share(ratio, f"{percent(ratio)} removed")
            here = part[part["ratio"] == ratio]
            # Draws first, then seeds; the deviation is over runs.
            runs = here.groupby([*RUN, "series"], as_index=False)["change"].mean()
            table = runs.groupby("series")["change"].agg(["mean", "std"]).reindex(order)
            axis.errorbar(
                table["mean"], np.arange(len(order)) + 0.15 * (i - (len(ratios) - 1) / 2),
                xerr=table["std"].fillna(0.0), color=mark.colour, marker=mark.marker, ls="none",
                elinewidth=0.7, label=mark.label,
            )  # fmt: skip
        axis.axvline(0, color=style.GREY, lw=0.6)
        axis.set_yticks(range(len(order)), order)
        axis.set_ylim(-0.6, len(order) - 0.4)
        axis.set(title=title, ylabel="criterion")
    axes[-1].set_xlabel("MSE change against control (%)")
    style.legend_below(figure, list(axes))
    return figure


@page(
    "figure",
    "sites_removed",
    title="Change of the test MSE by the number of modules removed",
    caption="""
Change of the test MSE against the control by the number of attention modules removed. Each dot is a
fine-tuned mask, averaged over seeds; the grey line is the mean of all masks, the expected error of
a random choice. Larger marks show the masks of SEND and of the criterion with the highest gain over
chance. That criterion was selected by the same errors that are shown: the table *winner* gives its
gain on data that did not select it.
""",
)
def by_removed(frames: Frames) -> Figure:
    """Change of all masks by the number of sites removed; SEND and the best criterion are marked.

    Raises:
        Absent: if no model has attention sites, or only the control was fine-tuned.
    """
    masks = mask_changes(frames).dropna(subset="change")
    if masks.empty or not masks["removed"].any():
        raise Absent("Only the control was fine-tuned, and no mask that removes whole modules.")
    try:
        rows = methods.with_change(methods.by_decision(frames), frames)
    except Absent:
        rows = masks.iloc[:0].assign(criterion="", level="site")
    rows = rows[rows["level"] == "site"]
    selections, _ = ranked(frames)
    measured = gains(frames.results, selections)
    send = methods.reading(frames.selections)
    measured = measured[(measured["criterion"] != send) & (measured["draw"] == 0)]
    mean = average(measured, ["relative_gain"], ["model", "variant", "criterion"], upto="source")
    best = mean.sort_values("relative_gain").groupby(["model", "variant"])["criterion"].last()
    keys, _ = style.split(masks)
    parts = style.panels(masks, keys)
    figure, axes = style.grid(len(parts), extra=0.7, sharex=True)
    for axis, (title, part) in zip(axes, parts, strict=True):
        cloud = part.groupby(["removed", "mask"])["change"].mean().reset_index()
        middle = cloud.groupby("removed")["change"].mean()
        if cloud["removed"].duplicated().any():  # else SEND's masks cover them
            axis.plot(
                cloud["removed"], cloud["change"], ".", ms=4, color="#BBBBBB", label="all masks"
            )
            axis.plot(middle.index, middle, color=style.GREY, lw=0.8, label="their mean")
        here = rows.merge(part[list(keys)].drop_duplicates(), on=list(keys))
        own = part.groupby(["model", "variant"]).size().index
        winners = [str(best[key]) for key in own if key in best.index]
        for name in dict.fromkeys([send, *winners]):
            path = here[here["criterion"] == name].groupby("removed")["change"].mean()
            if path.empty:
                continue
            ends = middle[[k for k in (middle.index.min(), middle.index.max()) if k not in path]]
            path = pd.concat([path, ends]).sort_index()
            mark = style.mark(name)
            axis.plot(
                path.index, path, color=mark.colour, marker=mark.marker, ls=mark.line,
                label=mark.label,
            )  # fmt: skip
        axis.axhline(0, color=style.GREY, lw=0.5, ls=":", zorder=0)
        axis.set_title(title)
        axis.set_xticks(range(0, int(part["sites"].max()) + 1, -(-int(part["sites"].max()) // 6)))
    style.label(axes, "modules removed", "MSE vs control (%)")
    style.legend_below(figure, axes)
    return figure


@page(
    "figure",
    "critical_difference",
    title="Mean ranks of the criteria over independent sources",
    caption="""
Mean ranks of the criteria by the test error of their masks, over independent data sources; 1 is
best, and criteria joined by a bar do not differ significantly (Nemenyi's test at 5 %). CD is the
critical difference. A number in brackets counts other criteria that order the sites of every run
identically.
The figure needs at least six independent sources; datasets of one source, horizons and seeds are
not independent.
""",
)
def critical_difference(frames: Frames) -> Figure:
    """Mean ranks of the criteria by the test error of their site masks, one panel a model.

    A case is a source: errors are averaged over its seeds, horizons and datasets before criteria
    are ranked (Demsar 2006). A bar joins criteria that do not differ significantly (Nemenyi's
    test).

    Raises:
        Absent: if no model has at least three criteria and enough independent sources.
    """
    every = rankings(frames)
    shown = {name: r for name, r in every.items() if r.critical_difference is not None}
    if not shown:
        cases = [f"{name} {r.test.n} ({_counted(len(r.ranks))})" for name, r in every.items()]
        raise Absent(
            f"Independent sources: {', '.join(cases) or 'none'}. A critical-difference diagram "
            f"needs at least {MIN_SOURCES}, and 3 criteria: datasets of one source, horizons and "
            "seeds are not independent."
        )
    shown = dict(list(shown.items())[:MODELS])
    heights = [LINE * len(r.ranks) + 1.1 for r in shown.values()]
    figure = style.canvas(height=sum(heights))
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, result) in zip(axes, shown.items(), strict=True):
        _diagram(axis, result)
        axis.set_title(
            f"{name}: {result.test.n} sources\n"
            f"Friedman p = {result.test.p:.2g}, CD = {result.critical_difference:.2g}"
        )
    return figure


@once
def ranked(frames: Frames) -> tuple[pd.DataFrame, dict[str, str]]:
    """The decisions of criteria, and labels (by name) that merge criteria of equal rankings."""
    selections = frames.selections[~frames.selections["criterion"].isin(NOT_RANKING)]
    asked = set(selections.loc[selections["level"] == "site", "criterion"])
    return selections, merged_criteria(frames.scores[frames.scores["criterion"].isin(asked)])


@once
def gained(frames: Frames) -> pd.DataFrame:
    """The `gains` of all criteria, those that rank alike merged."""
    selections, labels = ranked(frames)
    return gains(frames.results, selections, labels)


def choices(selections: pd.DataFrame, labels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Site masks chosen at fixed ratios, one row per run, criterion, draw and K.

    Ratios that remove the same number of sites are one choice. `labels` renames criteria, so that
    merged criteria (`spat.study.statistics.ranks.merged_criteria`) count once.

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
            "run `select` again, or merge only criteria that rank alike"
        )
    return rows


def gains(
    results: pd.DataFrame, selections: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Mean error over all masks with K sites removed, minus the error of the criterion's mask.

    The mean is the exact expected error of a random choice. So the gain is unbiased, and a random
    choice has an expected gain of 0.

    Returns:
        RUN, `criterion`, `draw`, `removed`, `mask`, `mse`, `mean_mse`, `gain`, and `relative_gain`
        (a fraction of `mean_mse`). Positive is better than chance.
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


def rankings(frames: Frames) -> dict[str, Ranking]:
    """The ranking of the criteria over sources, by the name of each model and variant.

    Raises:
        Absent: if nothing was pruned at a ratio between none and all.
    """
    rows = methods.with_change(methods.by_decision(frames), frames)
    rows = rows[rows["level"] == "site"]
    scores = frames.scores
    labels = merged_criteria(scores[scores["criterion"].isin(set(rows["criterion"]))])
    rows = relabelled(rows, labels).drop_duplicates([*RUN, "criterion", "draw", "removed"])
    means = average(rows, ["change"], ["model", "variant", "criterion"])
    return {
        f"{model} {variant}": ranking(wide(part, "source", "criterion", "change"))
        for (model, variant), part in means.groupby(["model", "variant"])
    }


def adjusted(table: pd.DataFrame, name: str, by: Sequence[str]) -> pd.DataFrame:
    """The column `p` as a measure, adjusted over the criteria (and cells) of each model.

    `by` are the key columns of the rows; they contain model and variant.
    """
    groups = []
    for _, group in table.reset_index(drop=True).groupby(["model", "variant"]):
        p = {str(i): value for i, value in group["p"].items()}
        adjusted = holm(p, list(p))
        groups.append(group.assign(mean=pd.Series(adjusted).astype("float64").to_numpy()))
    joined = pd.concat(groups)
    return joined.assign(measure=name, unit="p")[[*by, *_VALUES]]


@once
def mask_changes(frames: Frames) -> pd.DataFrame:
    """The change of every fine-tuned site mask against the control of its run, in percent.

    The control and the mask that keeps nothing are included. The changes of the masks that criteria
    chose are those of `spat.study.methods.by_decision` with `with_change`.

    Returns:
        RUN, `mask`, `sites` (N), `removed` (K), `change`, for the first data order.

    Raises:
        Absent: if no model has attention sites.
    """
    rows = site_errors(methods.tested(frames.results))
    return methods.with_change(rows, frames)[[*RUN, "mask", "sites", "removed", "change"]]


def percent(ratio: float) -> str:
    """A share as text: `25 %`."""
    return f"{100 * ratio:g} %"


@once
def _judged(frames: Frames) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `regrets` and the `agreements` of all criteria, those that rank alike merged."""
    selections, labels = ranked(frames)
    regretted = regrets(frames.results, selections, labels)
    return regretted, agreements(frames.results, frames.scores, labels)


_VALUES: Final = ["mean", "n", "measure", "unit"]


def _all_masks(frames: Frames, decisions: pd.DataFrame) -> pd.DataFrame:
    """Every site mask of the runs that trained all of them, at the ratios of the decisions."""
    rows = site_errors(methods.tested(frames.results))
    complete = rows.groupby(list(RUN))["mask"].transform("nunique") == 2 ** rows["sites"]
    rows = rows[complete]
    ratios = decisions.loc[decisions["level"] == "site", [*RUN, "removed", "ratio"]]
    rows = rows.merge(ratios.drop_duplicates([*RUN, "removed"]), on=[*RUN, "removed"])
    return rows.assign(criterion=ALL_MASKS, level="site", draw=0)


def _mean_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Errors averaged over the data orders of a run: `order` is `ALL_ORDERS`."""
    mean = errors.groupby([*_GROUP, "mask"])["mse"].mean().reset_index()
    return mean.assign(order=ALL_ORDERS)


def _oracles(errors: pd.DataFrame) -> pd.DataFrame:
    """RUN, `removed`, `order` (of the evaluated errors), `oracle`, `oracle_mse`."""
    mean = _mean_errors(errors)
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


def _counted(count: int) -> str:
    return f"{count} {'criterion' if count == 1 else 'criteria'}"


def _short(label: str) -> str:
    """A short label of merged criteria: the first, and the number of others.

    `send = snip` -> `send (+1)`.
    """
    first, *others = label.split(" = ")
    return f"{first} (+{len(others)})" if others else first


def _diagram(axis: Axes, result: Ranking) -> None:
    """Draw the mean ranks, best on the left, and bars that join criteria without a difference."""
    from scikit_posthocs import critical_difference_diagram

    assert result.pairwise is not None
    names = {label: _short(label) for label in result.ranks.index}
    count = len(names)
    drawn = critical_difference_diagram(
        result.ranks.rename(names),
        result.pairwise.rename(index=names, columns=names),
        ax=axis,
        label_props={"fontsize": 6.5},
        marker_props={"s": 8},
        elbow_props={"linewidth": 0.7},
        crossbar_props={"linewidth": 1.8},
        color_palette=[style.BLACK] * count,
        text_h_margin=0.02 * count,
        label_fmt_left="{label} ({rank:.1f})",
        label_fmt_right="({rank:.1f}) {label}",
    )
    # The library draws a bar through its points in the order of a set, which is random.
    for (bar,) in drawn["crossbars"]:
        x = bar.get_xdata()
        bar.set_data([min(x), max(x)], bar.get_ydata()[:2])
    axis.grid(visible=False)
    axis.spines["top"].set(visible=True, bounds=(1, count))
    axis.set_xticks(range(1, count + 1, -(-count // TICKS)))
    room = SIDE * (count - 1)
    axis.set_xlim(1 - room, count + room)
    axis.xaxis.set_label_position("top")
    axis.set_xlabel("mean rank (1 is the lowest error)")
    axis.yaxis.set_visible(True)
    axis.set_yticks([])
    axis.set_ylabel("criterion")
