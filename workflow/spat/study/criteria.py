"""What error do the masks of each criterion reach?"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.study import methods
from spat.study.gains import decisions_and_labels, gains
from spat.study.methods import SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, once, page
from spat.study.pages.reader import Frames
from spat.study.statistics.averages import average
from spat.study.statistics.cells import RUN, site_errors, wide
from spat.study.statistics.ranks import merged_criteria, relabelled
from spat.study.statistics.tests import MIN_SOURCES, Ranking, ranking

# `level` -> its name on pages.
LEVELS: Final = {"site": "modules", "head": "heads"}
ALL_MASKS: Final = "(mean of all masks)"
# Figure of mean ranks: height of a line, room for labels on each side (in lengths of the axis),
# and the largest number of ticks.
LINE: Final = 0.14
SIDE: Final = 0.65
TICKS: Final = 8


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
    parts = style.panels(rows, ["model", "variant"])[: methods.MODELS_IN_FIGURE]
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
def changes_by_number_removed(frames: Frames) -> Figure:
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
    selections, _ = decisions_and_labels(frames)
    measured = gains(frames.results, selections)
    send = methods.spat_criterion(frames.selections)
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
    shown = dict(list(shown.items())[: methods.MODELS_IN_FIGURE])
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


def _all_masks(frames: Frames, decisions: pd.DataFrame) -> pd.DataFrame:
    """Every site mask of the runs that trained all of them, at the ratios of the decisions."""
    rows = site_errors(methods.tested(frames.results))
    complete = rows.groupby(list(RUN))["mask"].transform("nunique") == 2 ** rows["sites"]
    rows = rows[complete]
    ratios = decisions.loc[decisions["level"] == "site", [*RUN, "removed", "ratio"]]
    rows = rows.merge(ratios.drop_duplicates([*RUN, "removed"]), on=[*RUN, "removed"])
    return rows.assign(criterion=ALL_MASKS, level="site", draw=0)


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
