"""Zero-shot transfer as matrices of source and target."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.reporting import methods, style
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CHOSEN, CONTROL, DENSE

MODELS = 4
BESIDE = 4
# Letters of all names that fit beside each other under a matrix.
UPRIGHT = 12
_SHAPE = ["model", "variant", "lookback", "horizon"]


def transfer(frames: Frames) -> Figure:
    """Per model: what transfer costs the dense model (left), what SPAT changes (right), in percent.

    Left: MSE against the same model trained on the target. Right: SPAT (ratio chosen on
    validation) against the control, the diagonal at home. Means over seeds and horizons. A tone
    means the same in all matrices of a kind.

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
    away = costs[costs["dataset"] != costs["target"]]
    names = sorted({*away["dataset"], *away["target"]})
    # Beside each other while the numbers fit into half a column.
    columns = 2 if len(names) <= BESIDE else 1
    width, rows = style.WIDTH / columns - 0.75, 2 * len(parts) // columns
    figure = style.canvas(height=(width * 0.8 + 0.85) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    models = [part[["model", "variant"]].drop_duplicates() for _, part in parts]
    kinds = {"cost of transfer (%)": costs, "SPAT vs control (%)": gains}
    for place, (kind, values) in enumerate(kinds.items()):
        tables = [_table(values.merge(model), names) for model in models]
        # Twice the largest value: the darkest tones would hide the numbers in print.
        limit = 2 * float(np.nanmax(np.abs(np.stack(tables)), initial=0.0)) or 1.0
        for axis, (title, _), table in zip(axes[place::2], parts, tables, strict=True):
            _matrix(axis, table, limit, f"{title}\n{kind}")
    return figure


def _table(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    table = rows.pivot_table(index="dataset", columns="target", values="change")
    return table.reindex(index=names, columns=names)


def _matrix(axis: Axes, table: pd.DataFrame, limit: float, title: str) -> None:
    names = [*table.index]
    sns.heatmap(
        table, ax=axis, annot=table.map(_percent), fmt="", annot_kws={"size": 6}, cmap="RdBu_r",
        center=0, vmin=-limit, vmax=limit, cbar=False, linewidths=0.5, linecolor="white",
        xticklabels=names, yticklabels=names,
    )  # fmt: skip
    axis.set_title(title, fontsize=7)
    axis.set(xlabel="target", ylabel="source")
    axis.grid(visible=False)
    axis.tick_params(length=0, labelrotation=0)
    if len("".join(names)) > UPRIGHT:
        axis.tick_params(axis="x", labelrotation=90)


def _costs(dense: pd.DataFrame) -> pd.DataFrame:
    """Dense MSE on the target against that of the model trained there; seeds averaged first."""
    keys = [*_SHAPE, "target"]
    home = dense[dense["target"] == dense["dataset"]].groupby(keys)["mse"].mean().rename("home")
    means = dense.groupby([*_SHAPE, "dataset", "target"])["mse"].mean().reset_index()
    joined = means.join(home, on=keys)
    return joined.assign(change=100 * (joined["mse"] / joined["home"] - 1)).dropna(subset="change")


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{value:+.1f}".replace("-", "−")
