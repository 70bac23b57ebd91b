"""What else could explain a gain: training from scratch, a smaller model, more regularisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pandas as pd

from spat.evaluation.cells import in_domain
from spat.evaluation.controls import tuned
from spat.pipeline.frames import RUN
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CONTROL, DENSE, SHOWN
from spat.reporting.tables.accuracy import METRICS, by_cell

VERSUS: Final = {DENSE: "MSE vs dense", CONTROL: "MSE vs control"}
SCRATCH: Final = ", from scratch"
TUNED: Final = " (tuned)"
COSTS: Final = {"params": "parameters", "flops": "FLOPs"}
MEASURES: Final = (
    *("MSE", f"MSE{SCRATCH}", *VERSUS.values()),
    *("MAE", f"MAE{SCRATCH}", *COSTS.values()),
)


def controls(frames: Frames) -> pd.DataFrame:
    """Pruned and fine-tuned, the same masks from scratch, and the variants that are controls.

    Columns: dataset, model, variant, lookback, horizon, method, measure (MSE, its changes against
    the dense model and the control, MAE, both errors of the mask trained from scratch, parameters,
    FLOPs), mean, sd, n, missing, unit, values. A kind of control with values is `(tuned)`: every
    seed has the value of its best validation error, the variant's own (`base`) among them, and
    `values` counts them.

    Raises:
        Absent: if nothing was trained from scratch and no variant is a control.
    """
    rows = methods.by_method(frames)
    rows = rows[rows["target"] == rows["dataset"]]
    names = rows.loc[rows["phase"] == "finetuned", [*RUN, "mask", "method"]]
    scratch = in_domain(methods.tested(frames.results), phase="scratch")
    scratch = scratch.merge(names, on=[*RUN, "mask"])
    others = tuned(pd.concat([frames.results, frames.controls]))
    others = others.assign(
        method=others["kind"].where(others["value"] == "", others["kind"] + TUNED)
    )
    cells = pd.concat([scratch, others])[[*SHOWN]].drop_duplicates()
    if cells.empty:
        raise Absent(
            "Nothing was trained from scratch and no variant is a control: set "
            "`pruning.scratch: true`, or run variants named BASE+KIND beside BASE."
        )
    trained = pd.concat([rows.merge(cells), others], ignore_index=True)
    table = pd.concat(_measures(trained, scratch), ignore_index=True)
    table = table.merge(_values(others), on=[*SHOWN, "method"], how="left")
    table = table.assign(
        method=methods.ordered(table["method"]), measure=methods.ordered(table["measure"], MEASURES)
    )
    columns = [*SHOWN, "method", "measure", "mean", "sd", "n", "missing", "unit", "values"]
    return by_cell(table[columns], [*SHOWN, "method", "measure"])


def _measures(trained: pd.DataFrame, scratch: pd.DataFrame) -> Iterator[pd.DataFrame]:
    by = [*SHOWN, "method"]
    for method, name in VERSUS.items():
        change = methods.relative_to(trained, method, ["mse"])["mse"]
        changes = methods.summary(trained.assign(change=change), by, "change")
        yield changes.assign(measure=name, unit="%")
    for metric, name in METRICS.items():
        yield methods.summary(trained, by, metric).assign(measure=name, unit="")
        yield methods.summary(scratch, by, metric).assign(measure=name + SCRATCH, unit="")
    for cost, name in COSTS.items():
        yield methods.summary(trained, by, cost).assign(measure=name, unit=name)


def _values(others: pd.DataFrame) -> pd.DataFrame:
    """How many seeds took each value: `0.2: 2, 0.3: 1`."""
    tried = others[others["value"] != ""]
    counts = tried.groupby([*SHOWN, "method", "value"]).size().reset_index(name="seeds")
    counts["values"] = counts["value"] + ": " + counts["seeds"].astype(str)
    return counts.groupby([*SHOWN, "method"])["values"].agg(", ".join).reset_index()
