"""What do training, attention maps and forecasts look like, with and without attention?

Jobs also draw the loss curves of their run, so this module does not import the statistics of other
pages: the import would take longer than some jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from spat.study import methods
from spat.study.methods import CHOSEN, CONTROL, DENSE, NONE_LEFT
from spat.study.pages import style
from spat.study.pages.page import Absent, page
from spat.study.statistics.cells import RUN, having, is_mask, keeps_all, keeps_none

if TYPE_CHECKING:
    from spat.study.pages.reader import Frames

# The curves of pre-training.
TRAINING: Final = "training"
VALIDATION: Final = "validation"
# Of maps: the cells that fit on a page, each with three rows, and the maps that fit in a row.
CELLS: Final = 3
MAPS: Final = 6
# Of forecasts: the rows of panels that fit on a page, and the windows in a row.
ROWS: Final = 6
WINDOWS: Final = 3
# Names of lines that are not forecasts, and the steps of the input that are shown.
INPUT: Final = "input"
TRUTH: Final = "truth"
BEFORE: Final = 48
_PALE: Final = "#BBBBBB"


@page(
    "figure",
    "history",
    title="Loss curves of pre-training and fine-tuning",
    caption="""
Loss curves: training and validation error during pre-training, and validation error during
fine-tuning, right of the dotted line. Lines are means over seeds.
Fine-tuning starts from the kept epoch of pre-training, not from the last epoch. If there are many
cells, some of them are shown at their shortest horizon.
""",
)
def history(frames: Frames) -> Figure:
    """Training and validation MSE over pre-training, then validation MSE over fine-tuning.

    Lines are means over seeds. There is one panel per cell; if there are many, some
    cells are shown.

    Raises:
        Absent: if nothing was trained.
    """
    chosen = methods.site_choices(frames.selections)
    chosen = chosen[chosen["method"] == CHOSEN]
    return curves(methods.of_attention_models(frames.history, "mask"), chosen[[*RUN, "mask"]])


@page(
    "figure",
    "attention_maps",
    title="Attention maps before and after pruning",
    caption="""
The mean attention map of each module, over one batch of training windows and all heads, for the
first seed of a cell. The rows of panels are the dense model, the control (the dense model after the
extra epochs), and the network that SPAT prunes at the ratio nearest to one half. In each map, rows
are queries and columns are keys. Weights are in multiples of a uniform weight, with one scale for
all maps; the largest weight is given above each map. A cross marks a module that was removed.
If there are more than three cells, some of them are shown; if there are more than six modules, the
first six.
""",
)
def attention_maps(frames: Frames) -> Figure:
    """The maps of each site in the dense model, the control and the pruned network of a cell.

    Raises:
        Absent: if the maps of pruned networks were not kept, or no mask of SPAT keeps some sites
            and removes others.
    """
    maps = frames.maps
    if not maps["network"].ne(DENSE).any():
        raise Absent("No attention maps of pruned networks were kept in this experiment.")
    maps = maps.assign(
        value=maps["value"] * maps.groupby([*RUN, "network", "name"])["column"].transform("nunique")
    )
    rows = pd.concat([_dense(maps), _control(maps), _pruned(maps, frames.selections)])
    left = rows["method"].ne(DENSE) & rows["method"].ne(CONTROL)
    rows = rows.merge(rows.loc[left, [*RUN]].drop_duplicates(), on=list(RUN))
    if rows.empty:
        raise Absent("No mask of SPAT keeps some modules and removes others.")
    parts = [(title, _first_seed(part)) for title, part in style.sample(rows, CELLS)]
    names = [list(part.loc[part["method"] == DENSE, "name"].unique())[:MAPS] for _, part in parts]
    columns = max(map(len, names))
    figure = style.canvas(height=(min(3.2 / columns, 0.85) * 3 + 0.75) * len(parts) + 0.5)
    # The layout, solved once, is slightly too low for the label of the colour bar.
    figure.get_layout_engine().set(rect=(0, 0.01, 1, 0.99))  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(3 * len(parts), columns, squeeze=False)
    images = []
    for i, ((title, part), sites) in enumerate(zip(parts, names, strict=True)):
        for row, (method, own) in zip(
            axes[3 * i :], part.groupby("method", sort=False), strict=False
        ):
            for axis, name in zip(row, sites, strict=False):
                images += _map(axis, own[own["name"] == name], name)
            row[0].set_ylabel(method)
        first = axes[3 * i, 0]
        first.set_title(f"{title}\n{first.get_title()}", fontsize=7)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        if not axis.has_data():  # a cell with fewer sites than another cell
            axis.remove()
    for image in images:
        image.set_clim(0, max(part["value"].max() for _, part in parts))
    label = "weight / uniform weight"
    shown = figure.axes
    figure.colorbar(images[0], ax=shown, location="bottom", shrink=0.5, aspect=40, label=label)
    return figure


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
    rows = methods.of_attention_models(frames.forecasts, "name")
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
        TRUTH: style.Mark(_PALE, "", "-", ""),
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


def run_history(rows: pd.DataFrame, chosen: str = "") -> Figure:
    """The loss curves of one run.

    `rows` are the rows of the run in the frame `history`; `chosen` is the mask of SPAT, if any.
    """
    choice = rows[list(RUN)].drop_duplicates().assign(mask=chosen)
    with style.drawing():
        return curves(rows, choice)


def curves(rows: pd.DataFrame, chosen: pd.DataFrame) -> Figure:
    """Loss curves by cell; `chosen` has RUN and the mask of SPAT.

    Raises:
        Absent: if there are no epochs.
    """
    if rows.empty:
        raise Absent("Nothing was trained in this experiment, so there are no loss curves.")
    parts = style.sample(rows[rows["order"] == 0])
    marks = {
        TRAINING: style.Mark(style.GREY, ".", "-", ""),
        VALIDATION: style.Mark(style.BLACK, "o", "-", ""),
        **{method: style.mark(method) for method in (CONTROL, CHOSEN, NONE_LEFT)},
    }
    figure, axes = style.grid(len(parts), extra=0.75)
    for axis, (title, part) in zip(axes, parts, strict=True):
        for name, curve in _curves(part, chosen).items():
            mark = marks[name]
            axis.plot(
                curve.index, curve, color=mark.colour, ls=mark.line, marker=mark.marker, ms=3,
                label=name if name in (TRAINING, VALIDATION) else f"fine-tuning: {name}",
            )  # fmt: skip
        # Right of the line, fine-tuning continues from the kept epoch.
        axis.axvline(part.loc[part["stage"] == "pretrain", "epoch"].max() + 0.5, **style.BORDER)
        axis.set_title(title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label(axes, "epoch", "MSE")
    style.legend_below(figure, axes, columns=2)
    return figure


def _curves(rows: pd.DataFrame, chosen: pd.DataFrame) -> dict[str, pd.Series]:
    """Mean curves by name; the epochs of fine-tuning follow those of pre-training."""
    before = rows[rows["stage"] == "pretrain"]
    last = before.groupby(list(RUN))["epoch"].max().rename("last")
    tuned = rows[rows["stage"] == "finetune"].join(last, on=list(RUN))
    tuned = tuned.assign(epoch=tuned["epoch"] + tuned["last"].fillna(0).max())
    masks = {
        CONTROL: having(tuned, keeps_all),
        CHOSEN: tuned.merge(chosen, on=[*RUN, "mask"]),
        NONE_LEFT: having(tuned, keeps_none),
    }
    means = {
        TRAINING: before.groupby("epoch")["train_mse"].mean(),
        VALIDATION: before.groupby("epoch")["val_mse"].mean(),
        **{name: part.groupby("epoch")["val_mse"].mean() for name, part in masks.items()},
    }
    return {name: curve for name, curve in means.items() if len(curve)}


def _dense(maps: pd.DataFrame) -> pd.DataFrame:
    return maps[maps["network"] == DENSE].assign(method=DENSE)


def _control(maps: pd.DataFrame) -> pd.DataFrame:
    masks = maps[maps["network"] != DENSE]
    return masks[masks["network"].map(keeps_all).astype(bool)].assign(method=CONTROL)


def _pruned(maps: pd.DataFrame, selections: pd.DataFrame) -> pd.DataFrame:
    """The maps of SPAT's mask at the ratio nearest to one half, with its name as `method`."""
    choices = methods.site_choices(selections)
    choices = choices[choices["method"] != methods.CHOSEN].dropna(subset="ratio")
    nearest = (choices["ratio"] - 0.5).abs().groupby([choices[key] for key in RUN]).idxmin()
    chosen = choices.loc[nearest].rename(columns={"mask": "network"})
    own: pd.DataFrame = maps.merge(chosen[[*RUN, "network", "method"]], on=[*RUN, "network"])
    return own


def _first_seed(part: pd.DataFrame) -> pd.DataFrame:
    first: pd.DataFrame = part[part["seed"] == part["seed"].min()]
    return first


def _map(axis: Axes, rows: pd.DataFrame, name: str) -> list[AxesImage]:
    """Draw one map, or a cross if the site was removed, and return the images drawn."""
    if rows.empty:
        for ends in ((0, 1), (1, 0)):
            axis.plot((0, 1), ends, color=style.GREY, lw=0.6)
        axis.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1)
        axis.set_title(methods.short_site_name(name), fontsize=7)
        return []
    matrix = style.square(rows)
    axis.set_title(f"{methods.short_site_name(name)}, max {matrix.max():.1f}×", fontsize=7)
    return [axis.imshow(matrix, cmap="Greys", vmin=0, interpolation="nearest")]


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
