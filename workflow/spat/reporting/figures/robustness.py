"""Which criteria notice that a site was manipulated."""

from __future__ import annotations

import seaborn as sns
from matplotlib.figure import Figure

from spat.reporting import style
from spat.reporting.frames_io import Frames
from spat.reporting.tables import robustness as table
from spat.reporting.tables.robustness import AUROC, PHASES, SMALLER

# A model takes half a page.
MODELS = 2


def robustness(frames: Frames) -> Figure:
    """AUROC of each criterion against each manipulation; above the line, what was measured.

    1: the manipulated site always scores lower than the intact one; 0.5: it goes unnoticed. The
    rows on top are the share of sites that really are worth less once they are manipulated.

    Raises:
        Absent: if no site was manipulated.
    """
    rows = table.robustness(frames)
    rows = rows[rows["measure"].isin([SMALLER, AUROC])]
    labels = {text: f"measured {text.split()[0]}" for text in PHASES.values()}
    parts = style.panels(rows, ["dataset", "model", "variant"])[:MODELS]
    names = rows["criterion"].nunique()
    figure = style.canvas(height=(0.13 * names + 0.7) * len(parts) + 0.1)
    # The layout, solved once, is a trace too narrow for the longest name.
    figure.get_layout_engine().set(rect=(0.02, 0, 0.98, 1))  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    for axis, (title, part) in zip(axes, parts, strict=True):
        values = part.pivot_table(
            index="criterion", columns="manipulation", values="mean", observed=True
        )
        sns.heatmap(
            values.rename(index=labels), ax=axis, annot=True, fmt=".2f", annot_kws={"size": 5},
            cmap="Blues", vmin=0, vmax=1, cbar=False, linewidths=0.4, linecolor="white",
        )  # fmt: skip
        truths = int(values.index.isin(PHASES.values()).sum())
        axis.axhline(truths, color=style.BLACK, lw=0.9)
        axis.set_title(title)
        axis.set(xlabel="", ylabel="")
        axis.tick_params(length=0, labelsize=6)
        axis.tick_params(axis="x", labelrotation=90)
        axis.tick_params(axis="y", labelrotation=0)
    return figure
