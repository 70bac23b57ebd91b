"""What do forecasts look like with and without attention?"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.study import methods
from spat.study.history import attention_first
from spat.study.methods import CHOSEN, CONTROL, DENSE, NONE_LEFT
from spat.study.pages import style
from spat.study.pages.page import Absent, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import RUN, is_mask, keeps_all, keeps_none

INPUT: Final = "input"
TRUTH: Final = "truth"
PALE: Final = "#BBBBBB"
# Steps of the input that are shown before the forecast.
BEFORE: Final = 48
# Rows of panels that fit on a page, and windows in a row.
ROWS: Final = 6
WINDOWS: Final = 3


@page(
    "figure",
    "forecasts",
    title="Forecasts of three test windows",
    caption="""
The last channel of three test windows of each cell: the end of the input, the truth, and the
forecasts of the dense model, the control, SPAT at the ratio chosen on validation, and the model
without attention, in the standardised scale. If SPAT chose to remove nothing or everything, its
forecast is that of the control or of the model without attention.
If there are many cells, some of them are shown at their shortest horizon.
""",
)
def forecasts(frames: Frames) -> Figure:
    """Three test windows of each cell: the end of the input, the truth, and the forecasts.

    Shows the last channel, in standardised units, of some of the cells if there are many.

    Raises:
        Absent: if no forecasts were kept.
    """
    rows = attention_first(frames.forecasts, "name")
    if rows.empty:
        raise Absent("No forecasts were kept in this experiment.")
    chosen = methods.site_choices(frames.selections)
    chosen = chosen.loc[chosen["method"] == CHOSEN, [*RUN, "mask"]]
    rows = rows.merge(chosen.rename(columns={"mask": "chosen"}), on=list(RUN), how="left")
    rows = rows.assign(
        name=[_label(*names) for names in zip(rows["name"], rows["chosen"], strict=True)]
    )
    marks = {
        INPUT: style.Mark(style.GREY, "", "-", ""),
        TRUTH: style.Mark(PALE, "", "-", ""),
        **{method: style.mark(method) for method in (DENSE, CONTROL, CHOSEN, NONE_LEFT)},
    }
    parts = style.sample(rows, ROWS)
    columns = min(WINDOWS, *(part["window"].nunique() for _, part in parts))
    figure = style.canvas(height=1.15 * len(parts) + 0.75)
    axes = figure.subplots(len(parts), columns, squeeze=False, sharex="row", sharey="row")
    for row, (title, part) in zip(axes, parts, strict=True):
        part = part[(part["seed"] == part["seed"].min())]
        part = part[part["channel"] == part["channel"].max()]
        windows = np.sort(part["window"].unique())
        picked = windows[np.linspace(0, len(windows) - 1, columns).round().astype(int)]
        for axis, window in zip(row, picked, strict=True):
            _window(axis, part[part["window"] == window].sort_values("step"), marks)
            axis.set_title(f"window {window}", fontsize=7)
        row[0].set_title(f"{title}\nwindow {picked[0]}", fontsize=7)
        row[0].set_ylabel("last channel")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    style.legend_below(figure, list(axes.ravel()))
    return figure


def _window(axis: Axes, rows: pd.DataFrame, marks: dict[str, style.Mark]) -> None:
    for name, mark in marks.items():
        line = rows[rows["name"] == name]
        if line.empty:
            continue
        steps = line["step"] - line["step"].max() - 1 if name == INPUT else line["step"]
        shown = steps >= -BEFORE
        axis.plot(
            steps[shown], line["value"][shown], color=mark.colour, label=name, ls=mark.line,
            lw=2.2 if name == TRUTH else 0.9,
        )  # fmt: skip
    axis.axvline(0, **style.BORDER)


def _label(name: str, chosen: str) -> str:
    """The name of a line in the legend; `chosen` is the mask of SPAT."""
    if not is_mask(name):
        return name
    if keeps_all(name):
        return CONTROL
    if keeps_none(name):
        return NONE_LEFT
    return CHOSEN if name == chosen else name
