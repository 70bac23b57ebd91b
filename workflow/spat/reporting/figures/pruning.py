"""Heads against modules, and criteria against chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.pipeline.frames import RUN
from spat.reporting import methods, style
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CONTROL
from spat.reporting.tables.pruning import LEVELS
from spat.reporting.tables.quality import GAIN, NULL, REGRET, quality

MODELS = 4


def head_module(frames: Frames) -> Figure:
    """Test MSE against the share removed, as single heads and as whole modules.

    Lines are means over seeds (random draws averaged first), whiskers standard deviations; the
    grey line is the control. Where panels join several cells, changes against the control.

    Raises:
        Absent: if no criterion removed both heads and modules.
    """
    rows = methods.by_decision(frames)
    both = rows.groupby("criterion")["level"].nunique() == len(LEVELS)
    rows = rows[rows["criterion"].isin(both[both].index)]
    if rows.empty:
        raise Absent(
            "No criterion removed both modules and single heads: name one in the criteria of "
            "`pruning.site` and of `pruning.head`."
        )
    rows = with_change(rows, frames)
    keys, cells = style.split(rows)
    value = "mse" if cells else "change"
    looks = style.looks(sorted(rows["criterion"].unique()))
    series = [(criterion, level) for criterion in looks for level in LEVELS]
    parts = style.panels(rows, keys)
    figure, axes = style.grid(len(parts), extra=0.8)
    for axis, (title, part) in zip(axes, parts, strict=True):
        axis.axhline(
            part["control"].mean() if cells else 0.0,
            color=style.GREY,
            lw=0.8,
            ls="-",
            label=CONTROL,
        )
        for i, (criterion, level) in enumerate(series):
            look = looks[criterion]
            here = part[(part["criterion"] == criterion) & (part["level"] == level)]
            table = methods.summary(here, ["ratio"], value)
            axis.errorbar(
                100 * table["ratio"] + 0.8 * (i - len(series) / 2), table["mean"],
                yerr=table["sd"].fillna(0.0), color=look.colour, marker=look.marker,
                ls="-" if level == "site" else "--", elinewidth=0.6,
                mfc=look.colour if level == "site" else "white",
                label=f"{criterion} {LEVELS[level]}",
            )  # fmt: skip
        axis.set_title(title)
        ticks = sorted(100 * rows["ratio"].unique())
        axis.set_xticks(ticks)
        axis.set_xlim(ticks[0] - 8, ticks[-1] + 8)
    style.label(axes, "heads removed (%)", "test MSE" if cells else "MSE vs control (%)")
    style.legend_below(figure, axes, columns=2)
    return figure


def criteria_quality(frames: Frames) -> Figure:
    """Gain over chance and regret of each criterion; without all masks, changes by ratio.

    Left: how much lower the error of the criterion's mask is than the mean of all masks. Right: how
    much higher than that of the best mask; crosses: the regret that equal masks would show.
    Intervals are over seeds.

    Raises:
        Absent: if nothing was pruned at a ratio between none and all.
    """
    try:
        table = quality(frames)
    except Absent:
        return _changes(frames)
    parts = style.panels(table, ["model", "variant"])[:MODELS]
    criteria = table["criterion"].nunique()
    figure = style.canvas(height=(0.16 * criteria + 0.5) * len(parts) + 0.6)
    axes = figure.subplots(len(parts), 2, squeeze=False, sharey="row", sharex="col")
    for (left, right), (title, part) in zip(axes, parts, strict=True):
        order = part[part["measure"] == GAIN].sort_values("mean")["criterion"].tolist()
        _intervals(left, part[part["measure"] == GAIN], order, GAIN, 0)
        for i, measure in enumerate((REGRET["hindsight"], REGRET["seeds"])):
            label = "best mask in hindsight" if i == 0 else "best mask of other seeds"
            _intervals(right, part[part["measure"] == measure], order, label, i + 1)
        null = part[part["measure"] == NULL].set_index("criterion")["mean"].reindex(order)
        if null.notna().any():
            right.plot(null, range(len(order)), "x", ms=4, color=style.BLACK, label="equal masks")
        left.set_yticks(range(len(order)), order)
        left.set(title=title, ylabel="criterion")
        for axis in (left, right):
            axis.axvline(0, color=style.GREY, lw=0.6)
            axis.set_ylim(-0.7, len(order) - 0.3)
            axis.margins(x=0.1)
    axes[-1, 0].set_xlabel("gain (%)")
    axes[-1, 1].set_xlabel("regret (%)")
    style.legend_below(figure, [right for _, right in axes], columns=2)
    return figure


def _changes(frames: Frames) -> Figure:
    """Change of the test MSE against the control by criterion, level and share removed."""
    rows = with_change(methods.by_decision(frames), frames)
    rows = rows.assign(series=rows["criterion"] + " " + rows["level"].map(LEVELS))
    ratios = sorted(rows["ratio"].unique())
    looks = style.looks([f"{100 * ratio:g} % removed" for ratio in ratios])
    parts = style.panels(rows, ["model", "variant"])[:MODELS]
    order = sorted(rows["series"].unique(), reverse=True)
    figure = style.canvas(height=(0.2 * len(order) + 0.55) * len(parts) + 0.6)
    axes = figure.subplots(len(parts), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (title, part) in zip(axes, parts, strict=True):
        for i, (ratio, (label, look)) in enumerate(zip(ratios, looks.items(), strict=True)):
            here = part[part["ratio"] == ratio]
            # Draws first, then seeds; the deviation is over runs.
            runs = here.groupby([*RUN, "series"], as_index=False)["change"].mean()
            table = runs.groupby("series")["change"].agg(["mean", "std"]).reindex(order)
            axis.errorbar(
                table["mean"], np.arange(len(order)) + 0.15 * (i - (len(ratios) - 1) / 2),
                xerr=table["std"].fillna(0.0), color=look.colour, marker=look.marker, ls="none",
                elinewidth=0.7, label=label,
            )  # fmt: skip
        axis.axvline(0, color=style.GREY, lw=0.6)
        axis.set_yticks(range(len(order)), order)
        axis.set_ylim(-0.6, len(order) - 0.4)
        axis.set(title=title, ylabel="criterion")
    axes[-1].set_xlabel("MSE change against control (%)")
    style.legend_below(figure, list(axes))
    return figure


def _intervals(axis: Axes, rows: pd.DataFrame, order: list[str], label: str, number: int) -> None:
    table = rows.set_index("criterion").reindex(order)
    if table["mean"].notna().sum() == 0:
        return
    look = list(style.looks("abc").values())[number]
    low = (table["mean"] - table["low"]).fillna(0.0)
    high = (table["high"] - table["mean"]).fillna(0.0)
    axis.errorbar(
        table["mean"], np.arange(len(order)) + 0.18 * (number == 2), xerr=[low, high], ls="none",
        color=look.colour, marker=look.marker, ms=3.5, elinewidth=0.7, label=label,
    )  # fmt: skip


def with_change(rows: pd.DataFrame, frames: Frames) -> pd.DataFrame:
    """The control's MSE of the same run, and the change against it in percent."""
    named = methods.by_method(frames)
    named = named[(named["method"] == CONTROL) & (named["target"] == named["dataset"])]
    control = named.drop_duplicates(list(RUN)).set_index(list(RUN))["mse"].rename("control")
    rows = rows.join(control, on=list(RUN))
    return rows.assign(change=100 * (rows["mse"] / rows["control"] - 1))
