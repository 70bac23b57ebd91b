"""How stable the scores of the sites are: over batches, epochs and seeds."""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.evaluation import stability as evaluation
from spat.evaluation.cells import average
from spat.evaluation.ranks import batch_scores
from spat.pipeline.frames import RUN
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import ordered
from spat.reporting.tables.accuracy import by_cell

# Batches joined to a larger one, for the coefficient of variation.
POOLS: Final = (1, 4)
# Numbers of batches whose ranking is compared with that of all.
COMPARED: Final = (1, 4)
VARIATION: Final = {pool: f"CV, {pool} {'batches' if pool > 1 else 'batch'}" for pool in POOLS}
AGAINST_ALL: Final = {b: f"tau-b, {b} {'batches' if b > 1 else 'batch'}" for b in COMPARED}
HALVES: Final = "tau-b, half and half"
NEEDED: Final = {"tau": "batches needed", "tau_disjoint": "needed, other batches"}
EPOCHS: Final = "tau-b, epochs"
SEEDS: Final = "tau-b, seeds"
MEASURES: Final = (
    *VARIATION.values(),
    *AGAINST_ALL.values(),
    HALVES,
    *NEEDED.values(),
    EPOCHS,
    SEEDS,
)
BY: Final = ("model", "variant", "criterion")


def stability(frames: Frames) -> pd.DataFrame:
    """Stability of each criterion's site scores per model, averaged over its cells.

    Columns: model, variant, criterion, measure, mean, sd, n (runs), missing, unit. The number of
    batches needed is the smallest from which on the mean rank agreement stays at
    `spat.evaluation.stability.THRESHOLD`, with all batches or with as many others; its mean is
    missing where even the largest number does not reach it. Averages take seeds first, then
    horizons, datasets of a station, stations; deviations are over runs.

    Raises:
        Absent: if fewer than two batches or two sites were scored.
    """
    scores = frames.scores
    agreement = evaluation.batch_agreement(scores)
    if agreement.empty:
        raise Absent("Ranks need two scored sites and two batches: see `scoring.batches`.")
    tables = [
        *_of_batches(scores, agreement),
        *(_needed(agreement, column) for column in NEEDED),
        _average(_epochs(scores), "tau_kept", EPOCHS, "tau"),
        _seeds(scores),
    ]
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    names = list(dict.fromkeys(batch_scores(scores)["criterion"]))
    table = table[table["criterion"].isin(names)]
    present = set(table["measure"])
    table = table.assign(
        criterion=ordered(table["criterion"], sorted(names, key=lambda name: name != "send")),
        measure=ordered(table["measure"], [m for m in MEASURES if m in present]),
        missing=0,
    )
    columns = [*BY, "measure", "mean", "sd", "n", "missing", "unit"]
    return by_cell(table[columns], [*BY, "measure"])


def _of_batches(scores: pd.DataFrame, agreement: pd.DataFrame) -> list[pd.DataFrame]:
    variation = evaluation.variation(scores, POOLS)
    tables = [
        _average(variation[variation["pool"] == pool], "cv", name, "")
        for pool, name in VARIATION.items()
    ]
    most = agreement.groupby(list(RUN))["batches"].transform("max")
    for batches, name in AGAINST_ALL.items():
        rows = agreement[(agreement["batches"] == batches) & (batches < most)]
        tables.append(_average(rows, "tau", name, "tau"))
    halves = agreement[agreement["batches"] == most // 2]
    return [*tables, _average(halves, "tau_disjoint", HALVES, "tau")]


def _epochs(scores: pd.DataFrame) -> pd.DataFrame:
    """Agreement of the other epochs with the kept one."""
    kept = scores.loc[scores["batch"] >= 0, [*RUN, "epoch"]].drop_duplicates()
    rows = evaluation.epoch_agreement(scores).merge(kept.assign(kept=True), how="left")
    return rows[rows["kept"].isna()]


def _needed(agreement: pd.DataFrame, column: str) -> pd.DataFrame:
    table = evaluation.recommended_batches(agreement, BY, column=column)
    runs = agreement[[*RUN, "criterion"]].drop_duplicates().groupby([*BY]).size().rename("n")
    table = table.join(runs, on=[*BY]).rename(columns={"batches": "mean"})
    table = table.astype({"mean": "float64"}).drop(columns="of")
    return table.assign(measure=NEEDED[column], unit="batches", sd=float("nan"))


def _seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Agreement between the seeds of a cell, over cells: pairs share their seeds."""
    pairs = evaluation.seed_agreement(scores)
    table = _average(pairs.assign(seed=0), "tau", SEEDS, "tau")
    if table.empty:
        return table
    # Of s seeds there are s (s - 1) / 2 pairs.
    seeds = pairs.assign(n=(1 + (1 + 8 * pairs["pairs"]) ** 0.5) / 2).groupby([*BY])["n"].sum()
    return table.drop(columns="n").join(seeds.round().astype("int64"), on=[*BY])


def _average(rows: pd.DataFrame, value: str, measure: str, unit: str) -> pd.DataFrame:
    """Nested mean, and the plain deviation over runs."""
    known = rows[rows[value].notna()]
    if known.empty:
        return pd.DataFrame()
    runs = known.groupby([*RUN, "criterion"])[value].mean().groupby(list(BY))
    means = average(known, [value], BY, upto="station").set_index(list(BY))[value]
    table = pd.DataFrame({"mean": means, "sd": runs.std(), "n": runs.size()})
    return table.reset_index().assign(measure=measure, unit=unit)
