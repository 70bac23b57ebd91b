"""How good the criteria are where every mask was fine-tuned."""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.evaluation import quality as evaluation
from spat.evaluation.summary import summarise
from spat.evaluation.truth import agreements
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import ordered
from spat.reporting.tables.accuracy import by_cell

GAIN: Final = "gain over chance"
REGRET: Final = {
    "seeds": "regret (oracle of other seeds)",
    "orders": "regret (oracle of other orders)",
    "hindsight": "regret (hindsight)",
}
NULL: Final = "hindsight regret of equal masks"
AGREEMENT: Final = "tau-b with the leave-one-out change"
MEASURES: Final = (GAIN, *REGRET.values(), NULL, AGREEMENT)
# Decisions that are no criterion's.
NOT_RANKING: Final = ("control", "all")


def quality(frames: Frames) -> pd.DataFrame:
    """Measures of each criterion per model, averaged over its cells, with intervals over seeds.

    Columns: model, variant, criterion, measure, mean, low, high, sd, n (runs), missing, unit. Gains
    and regrets are percent of the error they are compared with. Averages take seeds first, then
    horizons, datasets of a station, stations.

    Raises:
        Absent: if no run has all masks of some number of sites fine-tuned.
    """
    selections = frames.selections[~frames.selections["criterion"].isin(NOT_RANKING)]
    gains = evaluation.gains(frames.results, selections)
    if gains.empty:
        raise Absent(
            "No run has all its site masks fine-tuned: set `pruning.exhaustive: true` to compare "
            "criteria with chance and with the oracle."
        )
    by = ["model", "variant", "criterion"]
    tables = [_average(gains, "relative_gain", by, GAIN)]
    regrets = evaluation.regrets(frames.results, selections)
    for oracle, name in REGRET.items():
        rows = regrets[regrets["oracle"] == oracle]
        tables.append(_average(rows, "relative_regret", by, name))
    tables.append(_average(regrets[regrets["oracle"] == "hindsight"], "relative_null", by, NULL))
    taus = agreements(frames.results, frames.scores)
    taus = taus[taus["criterion"].isin(set(selections["criterion"]))]
    tables.append(_average(taus, "tau", by, AGREEMENT))
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    measure = ordered(table["measure"], [m for m in MEASURES if m in set(table["measure"])])
    table = table.assign(measure=measure, sd=float("nan"), missing=0)
    return by_cell(table, [*by, "measure"])


def _average(rows: pd.DataFrame, value: str, by: list[str], measure: str) -> pd.DataFrame:
    if rows[value].notna().sum() == 0:
        return pd.DataFrame()
    table = summarise(rows, value, by, draws=500)
    scale, unit = (1, "tau") if value == "tau" else (100, "%")
    table = table.rename(columns={value: "mean", "runs": "n"}).drop(columns="cells")
    table[["mean", "low", "high"]] *= scale
    return table.assign(measure=measure, unit=unit)
