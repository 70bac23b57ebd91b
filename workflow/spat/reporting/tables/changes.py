"""The change that pruning makes against the control, with its interval."""

from __future__ import annotations

import numpy as np
import pandas as pd

from spat.evaluation.changes import relative_changes
from spat.pipeline.frames import RUN
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CONTROL, DENSE, SHOWN
from spat.reporting.tables.accuracy import by_cell


def changes(frames: Frames) -> pd.DataFrame:
    """Relative change of the test MSE against the control, in percent, per cell and method.

    Columns: dataset, model, variant, lookback, horizon, method, mean, low, high (interval of a
    paired block bootstrap), sd (missing: the interval stands for it), n, missing, unit, p,
    no_worse and equivalent (within the margin). The change is that of the mean over seeds.

    Raises:
        Absent: if no model has attention sites, or no mask but the control's was fine-tuned.
    """
    rows = methods.by_method(frames)
    rows = rows[(rows["target"] == rows["dataset"]) & ~rows["method"].isin([DENSE, CONTROL])]
    if rows.empty:
        raise Absent("No mask was fine-tuned beside the control's.")
    losses = frames.losses[frames.losses["target"] == frames.losses["dataset"]]
    # A run that diverged has no losses to resample; the table `main` shows it.
    finite = losses["mse"].map(lambda values: bool(np.isfinite(values).all())).astype(bool)
    table = relative_changes(
        losses[finite],
        rows[[*RUN, "mask", "method"]],
        ["method"],
        draws=frames.statistics.bootstrap,
        confidence=frames.statistics.confidence,
        margin=frames.statistics.margin,
    )
    percent = {name: 100 * table[name] for name in ("change", "low", "high")}
    table = table.assign(**percent, sd=float("nan"), missing=0, unit="%")
    table = table.rename(columns={"change": "mean", "seeds": "n"})
    table["method"] = methods.ordered(table["method"])
    columns = [*SHOWN, "method", "mean", "low", "high", "sd", "n", "missing", "unit"]
    table = table[[*columns, "p", "no_worse", "equivalent"]]
    return by_cell(table, [*SHOWN, "method"])
