"""How large is the error of SEND in float32?

`python -m spat.study.float32` computes the error for networks of real size; its output is
committed.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

import pandas as pd

from spat.study import methods
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames

COMMAND: Final = "python -m spat.study.float32"
MEASURES: Final = {
    "bias": "relative error",
    "worst": "largest of a window",
    "erased": "rows that become 0",
}


@page(
    "table",
    "precision",
    title="SEND in float32 against float64, by the number of keys",
    caption="""
The error of SEND in float32. The softmax of SEND differs from one over the number of keys by less
than float32 resolves. Up to 42 keys this error is negligible for the loss of each window. At 321
keys SEND is about 17 % too large, and for the mean loss of a batch most rows become exactly zero,
so that ties decide the ranking.
The networks have real sizes, are untrained, and see generated data. The table is the same in every
experiment.
""",
    layout=Layout(("model", "keys", "loss"), "measure", best=False, counted="windows"),
    notes=(
        "Relative error of the SEND of a site in a window, on untrained networks and generated "
        f"data (`{COMMAND}`).",
        "SEND is computed in float64 from the loss of each window.",
    ),
)
def precision(frames: Frames) -> pd.DataFrame:
    """Error of SEND in float32 against float64 at 7, 42 and 321 keys.

    Columns: model, keys, loss, measure, mean, sd, n (windows), missing, unit. The table is the same
    in every experiment that scores attention.

    Raises:
        Absent: if no attention site of a forecaster was scored.
    """
    if frames.scores.empty or not frames.words.forecasts:
        raise Absent("No attention site of a forecaster was scored in this experiment.")
    errors = errors_of_float32()
    tables = [
        errors[["model", "keys", "loss"]].assign(
            measure=name,
            mean=errors[column],
            sd=errors["sd"] if column == "bias" else float("nan"),
            n=errors["windows"],
        )
        for column, name in MEASURES.items()
    ]
    table = pd.concat(tables).assign(missing=0, unit="share")
    table["measure"] = methods.ordered(table["measure"], MEASURES.values())
    table["loss"] = methods.ordered(table["loss"], errors["loss"].unique())
    return table.sort_values(["keys", "loss", "measure"], ignore_index=True)


@cache
def errors_of_float32() -> pd.DataFrame:
    """Model, keys, loss, bias, sd, worst, erased, windows: the output of the command."""
    file = resources.files("spat.study") / "precision.csv"
    with file.open() as stream:
        return pd.read_csv(stream)
