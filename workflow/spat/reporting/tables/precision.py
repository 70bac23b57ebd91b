"""What float32 would do to SEND: a table that is computed once, for networks of real shape."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

import pandas as pd

from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import ordered

COMMAND: Final = "python -m spat.evaluation.float32"
MEASURES: Final = {
    "bias": "relative error",
    "worst": "largest of a window",
    "erased": "rows that become 0",
}


@cache
def errors_of_float32() -> pd.DataFrame:
    """Model, keys, loss, bias, sd, worst, erased, windows: what the command printed."""
    file = resources.files("spat.reporting") / "precision.csv"
    with file.open() as stream:
        return pd.read_csv(stream)


def precision(frames: Frames) -> pd.DataFrame:
    """Error of SEND in float32 against float64 at 7, 42 and 321 keys.

    Columns: model, keys, loss, measure, mean, sd, n (windows), missing, unit. The same in every
    experiment that scores attention.

    Raises:
        Absent: if no attention site was scored.
    """
    if frames.scores.empty:
        raise Absent("No attention site was scored in this experiment, in whichever precision.")
    found = errors_of_float32()
    tables = [
        found[["model", "keys", "loss"]].assign(
            measure=name,
            mean=found[column],
            sd=found["sd"] if column == "bias" else float("nan"),
            n=found["windows"],
        )
        for column, name in MEASURES.items()
    ]
    table = pd.concat(tables).assign(missing=0, unit="share")
    table["measure"] = ordered(table["measure"], list(MEASURES.values()))
    table["loss"] = ordered(table["loss"], list(found["loss"].unique()))
    return table.sort_values(["keys", "loss", "measure"], ignore_index=True)
