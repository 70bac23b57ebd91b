"""How did the loss develop over training?

Jobs also draw the loss curves of their run, so this module does not import the statistics of other
pages: the import would take longer than some jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spat.study import methods
from spat.study.methods import CHOSEN, CONTROL, NONE_LEFT
from spat.study.pages import style
from spat.study.pages.page import Absent, page
from spat.study.statistics.cells import RUN, having, is_mask, keeps_all, keeps_none

if TYPE_CHECKING:
    from spat.study.pages.reader import Frames

TRAINING: Final = "training"
VALIDATION: Final = "validation"


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
    return curves(attention_first(frames.history, "mask"), chosen[[*RUN, "mask"]])


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


def attention_first(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of models with sites if there are any, otherwise all; masks are in `column`."""
    models = set(rows.loc[rows[column].map(is_mask).astype(bool), "model"])
    return rows[rows["model"].isin(models)] if models else rows


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
