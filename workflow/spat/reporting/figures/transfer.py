"""Zero-shot transfer as matrices of source and target."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from spat.reporting import methods, style
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CHOSEN, CONTROL, DENSE

MODELS = 4
_SHAPE = ["model", "variant", "lookback", "horizon"]


def transfer(frames: Frames) -> Figure:
    """Per model: what transfer costs the dense model (left), what SPAT changes (right), in percent.

    Left: MSE against the same model trained on the target. Right: SPAT (ratio chosen on
    validation) against the control, the diagonal at home. Means over seeds and horizons.

    Raises:
        Absent: if nothing was evaluated on another dataset.
    """
    named = methods.by_method(frames)
    if (named["target"] == named["dataset"]).all():
        raise Absent(
            "Nothing was evaluated on another dataset: name (source, target) pairs in "
            "`transfer.pairs`."
        )
    change = methods.relative_to(named, CONTROL, ["mse"])["mse"]
    gains = named.assign(change=change)[named["method"] == CHOSEN]
    costs = _costs(named[named["method"] == DENSE])
    parts = style.panels(costs, ["model", "variant"])[:MODELS]
    names = list(dict.fromkeys([*costs["dataset"], *costs["target"]]))
    side = max(0.24 * len(names), 0.75)
    figure = style.canvas(height=(side + 0.75) * len(parts) + 0.2)
    axes = figure.subplots(len(parts), 2, squeeze=False)
    for row, (title, part) in zip(axes, parts, strict=True):
        here = part[["model", "variant"]].drop_duplicates()
        panels = (
            (part, f"{title}\ncost of transfer (%)"),
            (gains.merge(here), f"{title}\nSPAT vs control (%)"),
        )
        for axis, (rows, label) in zip(row, panels, strict=True):
            table = rows.pivot_table(index="dataset", columns="target", values="change")
            table = table.reindex(index=names, columns=names).dropna(how="all")
            limit = float(np.nanmax(np.abs(table.to_numpy()), initial=0.0)) or 1.0
            sns.heatmap(
                table, ax=axis, annot=True, fmt="+.1f", annot_kws={"size": 6.5}, cmap="RdBu_r",
                center=0, vmin=-limit, vmax=limit, cbar=False, linewidths=0.5, linecolor="white",
            )  # fmt: skip
            axis.set_title(label, fontsize=7)
            axis.set(xlabel="target", ylabel="source")
            axis.tick_params(length=0, labelrotation=0)
            if len(names) > 3:
                axis.tick_params(axis="x", labelrotation=90)
    return figure


def _costs(dense: pd.DataFrame) -> pd.DataFrame:
    """Dense MSE on the target against that of the model trained there; seeds averaged first."""
    keys = [*_SHAPE, "target"]
    home = dense[dense["target"] == dense["dataset"]].groupby(keys)["mse"].mean().rename("home")
    means = dense.groupby([*_SHAPE, "dataset", "target"], as_index=False)["mse"].mean()
    joined = means.join(home, on=keys)
    return joined.assign(change=100 * (joined["mse"] / joined["home"] - 1)).dropna(subset="change")
