"""What a run looks like: its loss curves and some of its forecasts."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.evaluation.cells import keeps_all, keeps_none
from spat.pipeline.frames import RUN
from spat.reporting import methods, style
from spat.reporting.curves import curves
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CHOSEN, CONTROL, DENSE, NONE_LEFT

FORECASTS = ("truth", "input", DENSE, CONTROL, NONE_LEFT)
# Steps of the input that are shown before the forecast.
BEFORE = 48


def history(frames: Frames) -> Figure:
    """Training and validation MSE over pre-training, then validation MSE over fine-tuning.

    Means over seeds; one panel a cell, or some of the cells where there are many.

    Raises:
        Absent: if nothing was trained.
    """
    chosen = methods.site_choices(frames.selections)
    chosen = chosen[chosen["method"] == CHOSEN]
    return curves(_attention_first(frames.history), chosen[[*RUN, "mask"]])


def forecasts(frames: Frames) -> Figure:
    """A test window of each cell: the end of its input, the truth, and what the models forecast.

    The last channel, in standardised units; the window in the middle of those that were kept. Where
    there are many cells, some of them.

    Raises:
        Absent: if no forecasts were kept.
    """
    rows = _attention_first(frames.examples[frames.examples["kind"] == "forecast"])
    if rows.empty:
        raise Absent("No forecasts were kept in this experiment.")
    parts = style.sample(rows)
    looks = style.looks(FORECASTS)
    figure, axes = style.grid(len(parts), extra=0.75)
    for axis, (title, part) in zip(axes, parts, strict=True):
        _window(axis, part, looks)
        axis.set_title(title)
    style.label(axes, "step of the forecast", "last channel\n(standardised)")
    style.legend_below(figure, axes)
    return figure


def _attention_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Only the models with sites, where there are any: the references have nothing to prune."""
    masks = rows["mask"] if "mask" in rows else rows["name"]
    has = rows.assign(sites=masks.map(_is_mask).astype(bool))
    models = set(has.loc[has["sites"], "model"])
    return rows[rows["model"].isin(models)] if models else rows


def _is_mask(name: str) -> bool:
    return set(name) <= {"0", "1", "."}


def _window(axis: Axes, rows: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    rows = rows[(rows["seed"] == rows["seed"].min()) & (rows["column"] == rows["column"].max())]
    windows = sorted(rows["head"].unique())
    rows = rows[rows["head"] == windows[len(windows) // 2]].sort_values("row")
    lines = {_label(str(name)): line for name, line in rows.groupby("name")}
    for label, look in looks.items():
        if label not in lines:
            continue
        line = lines[label]
        steps = line["row"] - line["row"].max() - 1 if label == "input" else line["row"]
        shown = steps >= -BEFORE
        thick = 1.4 if label == "truth" else 0.9
        colour = {"input": style.GREY, "truth": style.BLACK}.get(label, look.colour)
        axis.plot(
            steps[shown], line["value"][shown], color=colour, lw=thick, label=label,
            ls="-" if label in ("input", "truth") else look.line,
        )  # fmt: skip
    axis.axvline(0, **style.BORDER)


def _label(name: str) -> str | None:
    if name in ("input", "truth", DENSE):
        return name
    if keeps_all(name):
        return CONTROL
    return NONE_LEFT if keeps_none(name) else None
