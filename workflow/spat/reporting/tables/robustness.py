"""Manipulated sites: which criteria notice, and what leaving such a site out really changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pandas as pd

from spat.evaluation import robustness as evaluation
from spat.evaluation.robustness import INTACT, Phase
from spat.evaluation.summary import summarise
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import SHOWN, ordered
from spat.reporting.tables.accuracy import by_cell

PHASES: Final[dict[Phase, str]] = {
    "untuned": "before fine-tuning",
    "finetuned": "after fine-tuning",
}
SMALLER: Final = "measured: worth less"
AUROC: Final = "AUROC"
AGREES: Final = {phase: f"agrees with measured, {text}" for phase, text in PHASES.items()}
_BY: Final = ["dataset", "model", "variant", "criterion", "manipulation"]


def robustness(frames: Frames) -> pd.DataFrame:
    """AUROC of each criterion at the same position, manipulated against intact, per cell.

    Columns: dataset, model, variant, measure, criterion, manipulation, mean, low, high, sd,
    n (runs), missing, unit. Measures are the share of sites that really are worth less once
    manipulated (the criterion says when that was measured), the AUROC, and how often the criterion
    moved as the measured change did. Datasets are not averaged, since what a manipulation does to
    the worth of a site can differ between them. Intervals are over checkpoints.

    Raises:
        Absent: if no site was manipulated.
    """
    frame = _manipulated(frames)
    tables = []
    for phase, text in PHASES.items():
        rows = evaluation.measured(frame, phase)
        rows = rows[rows["manipulation"] != INTACT].assign(criterion=text)
        tables.append(_average(rows, "smaller", SMALLER))
    tables.append(_average(evaluation.auroc(frame), "auroc", AUROC))
    for phase, measure in AGREES.items():
        tables.append(_average(evaluation.auroc(frame, phase), "auroc", measure))
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    scored = frame.loc[~frame["quantity"].isin(evaluation.NO_CRITERIA), "quantity"].unique()
    table = table.assign(
        measure=_in_order(table["measure"], [SMALLER, AUROC, *AGREES.values()]),
        criterion=_in_order(table["criterion"], [*PHASES.values(), *scored]),
        manipulation=_in_order(table["manipulation"], frame["manipulation"].unique()),
        sd=float("nan"),
        missing=0,
        unit="",
    )
    columns = ["dataset", "model", "variant", "measure", "criterion", "manipulation"]
    values = ["mean", "low", "high", "sd", "n", "missing", "unit"]
    return by_cell(table, columns)[[*columns, *values]]


def leave_one_out(frames: Frames) -> pd.DataFrame:
    """Change of the test MSE by leaving one site out, intact and manipulated, in percent.

    Columns: dataset, model, variant, lookback, horizon, site, phase, manipulation, mean, sd, n,
    missing, unit. Percent of the MSE of the intact network; positive: the site is of use.

    Raises:
        Absent: if no site was manipulated.
    """
    frame = _manipulated(frames)
    by = [*SHOWN, "site", "phase", "manipulation"]
    tables = []
    for phase, text in PHASES.items():
        rows = evaluation.measured(frame, phase)
        rows = rows.assign(percent=100 * rows["relative"], phase=text, site=rows["name"])
        tables.append(methods.summary(rows, by, "percent"))
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    table = table.assign(
        phase=_in_order(table["phase"], PHASES.values()),
        manipulation=_in_order(table["manipulation"], frame["manipulation"].unique()),
        unit="%",
    )
    return by_cell(table, by)


def _manipulated(frames: Frames) -> pd.DataFrame:
    if frames.robustness.empty:
        raise Absent("No site was manipulated: name runs in `robustness.runs` to study them.")
    return frames.robustness


def _average(rows: pd.DataFrame, value: str, measure: str) -> pd.DataFrame:
    if rows.empty:
        return pd.DataFrame()
    table = summarise(rows.astype({value: "float64"}), value, _BY)
    table = table.rename(columns={value: "mean", "runs": "n"}).drop(columns=["cells", "p"])
    # The components of an AUROC may leave [0, 1]; so may the quantiles of their means.
    table[["low", "high"]] = table[["low", "high"]].clip(0.0, 1.0)
    return table.assign(measure=measure)


def _in_order(values: pd.Series, order: Iterable[str]) -> pd.Categorical:
    present = set(values)
    return ordered(values, [name for name in order if name in present])
