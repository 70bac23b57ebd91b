"""What do forecasts look like with and without attention?"""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.study.history import attention_first
from spat.study.methods import CONTROL, DENSE, NONE_LEFT
from spat.study.pages import style
from spat.study.pages.page import Absent, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import keeps_all, keeps_none

INPUT: Final = "input"
TRUTH: Final = "truth"
SHOWN: Final = (TRUTH, INPUT, DENSE, CONTROL, NONE_LEFT)
# Steps of the input that are shown before the forecast.
BEFORE: Final = 48


@page(
    "figure",
    "forecasts",
    title="Forecasts of a test window",
    caption="""
One test window of each cell, its last channel: the end of the input, the truth, and the forecasts
of the dense model, of the control and of the model with no attention left, in the standardised
scale.
Where there are many cells, some of them at their shortest horizon.
""",
)
def forecasts(frames: Frames) -> Figure:
    """A test window of each cell: the end of its input, the truth, and the forecasts.

    The last channel, in standardised units; the window in the middle of those that were kept. Where
    there are many cells, some of them.

    Raises:
        Absent: if no forecasts were kept.
    """
    rows = attention_first(frames.forecasts, "name")
    if rows.empty:
        raise Absent("No forecasts were kept in this experiment.")
    parts = style.sample(rows)
    marks = style.marks(SHOWN)
    figure, axes = style.grid(len(parts), extra=0.75)
    for axis, (title, part) in zip(axes, parts, strict=True):
        _window(axis, part, marks)
        axis.set_title(title)
    style.label(axes, "step of the forecast", "last channel\n(standardised)")
    style.legend_below(figure, axes)
    return figure


def _window(axis: Axes, rows: pd.DataFrame, marks: dict[str, style.Mark]) -> None:
    rows = rows[(rows["seed"] == rows["seed"].min()) & (rows["channel"] == rows["channel"].max())]
    windows = sorted(rows["window"].unique())
    rows = rows[rows["window"] == windows[len(windows) // 2]].sort_values("step")
    lines = {_label(str(name)): line for name, line in rows.groupby("name")}
    for label, mark in marks.items():
        if label not in lines:
            continue
        line = lines[label]
        steps = line["step"] - line["step"].max() - 1 if label == INPUT else line["step"]
        shown = steps >= -BEFORE
        colour = {INPUT: style.GREY, TRUTH: style.BLACK}.get(label, mark.colour)
        axis.plot(
            steps[shown], line["value"][shown], color=colour, label=label,
            lw=1.4 if label == TRUTH else 0.9, ls="-" if label in (INPUT, TRUTH) else mark.line,
        )  # fmt: skip
    axis.axvline(0, **style.BORDER)


def _label(name: str) -> str | None:
    if name in (INPUT, TRUTH, DENSE):
        return name
    if keeps_all(name):
        return CONTROL
    return NONE_LEFT if keeps_none(name) else None
