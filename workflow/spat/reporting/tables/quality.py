"""How good the criteria are where every mask was fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from spat.evaluation import quality as evaluation
from spat.evaluation.ranks import merged_criteria
from spat.evaluation.statistics import holm
from spat.evaluation.summary import summarise
from spat.evaluation.truth import agreement_tests, agreements
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import SHOWN, ordered
from spat.reporting.tables.accuracy import by_cell

GAIN: Final = "gain over chance"
REGRET: Final = {
    "seeds": "regret (oracle of other seeds)",
    "orders": "regret (oracle of other orders)",
    "hindsight": "regret (hindsight)",
}
NULL: Final = "hindsight regret of equal masks"
AGREEMENT: Final = "tau-b with the leave-one-out change"
# P-values, by Holm's method over the criteria of the configuration.
NO_GAIN: Final = "p: no gain (Holm)"
NO_AGREEMENT: Final = "p: no agreement (Holm)"
POSITION: Final = "p: no better than another order of the positions"
MEASURES: Final = (GAIN, NO_GAIN, *REGRET.values(), NULL, AGREEMENT, NO_AGREEMENT, POSITION)
# Decisions that are no criterion's.
NOT_RANKING: Final = ("control", "exhaustive")


def quality(frames: Frames, of: Sequence[str] = ("model", "variant")) -> pd.DataFrame:
    """Measures of each criterion per model, averaged over its cells, with intervals over seeds.

    Columns: `of`, criterion, measure, mean, low, high, sd, n (runs), missing, unit. Gains
    and regrets are percent of the error they are compared with; the p-value of a gain is that of a
    t-test over seeds, those of an agreement are of `spat.evaluation.truth.agreement_tests`.
    Criteria that order the sites of every run identically are one row. Averages take seeds first,
    then horizons, datasets of a station, stations.

    Raises:
        Absent: if no run has all masks of some number of sites fine-tuned.
    """
    selections = frames.selections[~frames.selections["criterion"].isin(NOT_RANKING)]
    asked = set(selections.loc[selections["level"] == "site", "criterion"])
    labels = merged_criteria(frames.scores[frames.scores["criterion"].isin(asked)])
    gains = evaluation.gains(frames.results, selections, labels)
    if gains.empty:
        raise Absent(
            "No run has all its site masks fine-tuned: set `pruning.exhaustive: true` to compare "
            "criteria with chance and with the oracle."
        )
    by = [*of, "criterion"]
    gained = _average(gains, "relative_gain", GAIN, by)
    tables = [gained, _adjusted(gained, NO_GAIN, by)]
    regrets = evaluation.regrets(frames.results, selections, labels)
    for oracle, name in REGRET.items():
        rows = regrets[regrets["oracle"] == oracle]
        tables.append(_average(rows, "relative_regret", name, by))
    hindsight = regrets[regrets["oracle"] == "hindsight"]
    tables.append(_average(hindsight, "relative_null", NULL, by))
    taus = agreements(frames.results, frames.scores, labels)
    taus = taus[taus["criterion"].isin(set(gains["criterion"]))]
    tables.append(_average(taus, "tau", AGREEMENT, by))
    if not taus.empty:
        tests = agreement_tests(taus, of).rename(columns={"runs": "n"})
        position = tests.assign(mean=tests["p_position"], measure=POSITION, unit="p")
        tables += [_adjusted(tests, NO_AGREEMENT, by), position[[*by, *_VALUES]]]
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    measure = ordered(table["measure"], [m for m in MEASURES if m in set(table["measure"])])
    table = table.assign(measure=measure, sd=float("nan"), missing=0)
    return by_cell(table.drop(columns="p"), [*by, "measure"])


def in_cells(frames: Frames) -> pd.DataFrame:
    """Gains and agreement of each criterion in every cell: `quality`, not averaged.

    Raises:
        Absent: as `quality`.
    """
    table = quality(frames, SHOWN)
    shown = (GAIN, NO_GAIN, AGREEMENT, NO_AGREEMENT)
    table = table[table["measure"].isin(shown)]
    return table.assign(measure=table["measure"].cat.remove_unused_categories())


_VALUES: Final = ["mean", "n", "measure", "unit"]


def _average(rows: pd.DataFrame, value: str, measure: str, by: Sequence[str]) -> pd.DataFrame:
    if rows[value].isna().all():
        return pd.DataFrame()
    table = summarise(rows.astype({value: "float64"}), value, by)
    scale, unit = (1, "tau") if value == "tau" else (100, "%")
    table = table.rename(columns={value: "mean", "runs": "n"}).drop(columns="cells")
    table[["mean", "low", "high"]] *= scale
    if unit == "tau":
        table[["low", "high"]] = table[["low", "high"]].clip(-1.0, 1.0)
    return table.assign(measure=measure, unit=unit)


def _adjusted(table: pd.DataFrame, measure: str, by: Sequence[str]) -> pd.DataFrame:
    """The column `p`, adjusted over the criteria of each model (or cell)."""
    found = []
    for _, group in table.groupby([*by[:-1]]):
        p = dict(zip(group["criterion"], group["p"], strict=True))
        adjusted = holm(p, list(p))
        found.append(group.assign(mean=group["criterion"].map(adjusted).astype("float64")))
    return pd.concat(found).assign(measure=measure, unit="p")[[*by, *_VALUES]]
