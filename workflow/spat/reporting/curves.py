"""Loss curves, of an experiment or of one run.

They stand apart from the other figures because jobs draw them too, which have no time to import the
statistics that those show.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spat.evaluation.cells import keeps_all, keeps_none
from spat.pipeline.frames import RUN
from spat.reporting import methods, style
from spat.reporting.frames_io import Absent
from spat.reporting.methods import CHOSEN, CONTROL, NONE_LEFT

CURVES = ("training", "validation", CONTROL, CHOSEN, NONE_LEFT)


def run_history(rows: pd.DataFrame, chosen: str = "") -> Figure:
    """The loss curves of one run: `rows` of the frame `history`, `chosen` SPAT's mask if any."""
    choice = rows[list(RUN)].drop_duplicates().assign(mask=chosen)
    with style.drawing():
        return curves(rows, choice)


def curves(rows: pd.DataFrame, chosen: pd.DataFrame) -> Figure:
    """Loss curves by cell; `chosen` has RUN and the mask that is SPAT's.

    Raises:
        Absent: if there are no epochs.
    """
    if rows.empty:
        raise Absent("Nothing was trained in this experiment, so there are no loss curves.")
    parts = style.sample(rows[rows["order"] == 0])
    looks = style.looks(CURVES)
    figure, axes = style.grid(len(parts), extra=0.75)
    for axis, (title, part) in zip(axes, parts, strict=True):
        for name, curve in _curves(part, chosen).items():
            look = looks[name]
            axis.plot(
                curve.index, curve, color=look.colour, ls=look.line, marker=look.marker, ms=3,
                label=name if name in ("training", "validation") else f"fine-tuning: {name}",
            )  # fmt: skip
        # Right of the line, fine-tuning goes on from the kept epoch.
        axis.axvline(part.loc[part["stage"] == "pretrain", "epoch"].max() + 0.5, **style.BORDER)
        axis.set_title(title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label(axes, "epoch", "MSE")
    style.legend_below(figure, axes, columns=2)
    return figure


def _curves(rows: pd.DataFrame, chosen: pd.DataFrame) -> dict[str, pd.Series]:
    """Mean curves by name; fine-tuning begins where pre-training ended."""
    before = rows[rows["stage"] == "pretrain"]
    last = before.groupby(list(RUN))["epoch"].max().rename("last")
    tuned = rows[rows["stage"] == "finetune"].join(last, on=list(RUN))
    tuned = tuned.assign(epoch=tuned["epoch"] + tuned["last"].fillna(0).max())
    found = {
        "training": before.groupby("epoch")["train_mse"].mean(),
        "validation": before.groupby("epoch")["val_mse"].mean(),
    }
    masks = {
        CONTROL: methods.having(tuned, keeps_all),
        CHOSEN: tuned.merge(chosen, on=[*RUN, "mask"]),
        NONE_LEFT: methods.having(tuned, keeps_none),
    }
    found |= {name: part.groupby("epoch")["val_mse"].mean() for name, part in masks.items()}
    return {name: curve for name, curve in found.items() if len(curve)}
