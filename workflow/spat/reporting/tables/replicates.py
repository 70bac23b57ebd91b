"""Is there anything to rank? Masks against replicates, and what the seeds could have shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pandas as pd

from spat.evaluation import replicates as evaluation
from spat.evaluation.cells import CELL
from spat.evaluation.replicates import POOLED
from spat.evaluation.truth import truth_agreement
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import SHOWN, ordered
from spat.reporting.tables.accuracy import by_cell

YES: Final = "yes"
BELOW: Final = "below noise"
NO: Final = "no"
UNKNOWN: Final = "not replicated"
SINGLE: Final = "one mask"
MASKS: Final = "sd of masks (%)"
ORDERS: Final = "sd of orders (%)"
RATIO: Final = "F"
P: Final = "p"
SEEDS: Final = "sd of seeds (%)"
DETECTABLE: Final = "detectable (%)"
TRUTH: Final = {"orders": "tau-b, orders", "seeds": "tau-b, seeds"}
MEASURES: Final = (MASKS, ORDERS, RATIO, P, SEEDS, DETECTABLE, *TRUTH.values())
_KEYS: Final = [*SHOWN, "removed"]


def replicates(frames: Frames) -> pd.DataFrame:
    """Variance between masks against that between data orders, per cell and sites removed.

    Columns: dataset, model, variant, lookback, horizon, removed (a number of sites, or `all`),
    ranking, measure, mean, sd, n, missing, unit. Deviations are percent of the MSE; F compares the
    masks with the replicates. Ranking says whether there is one to be found: `yes`; `below noise`
    where F is significant but masks differ by less than replicates do; `no` where F is not
    significant; `not replicated` without three data orders; `one mask` where all sites go. Beside
    them, for the number of seeds: the deviation of a mask's change against the control and the
    smallest change that a paired t-test would have found; and how well the changes by leaving out
    one site agree with themselves.

    Raises:
        Absent: if no mask has several data orders or seeds.
    """
    components = evaluation.variance_components(frames.results)
    over_seeds = evaluation.detectable_differences(frames.results)
    if components.empty and over_seeds.empty:
        raise Absent(
            "No mask was fine-tuned with several seeds, or with three data orders (`orders` of a "
            "grid block) where all masks are trained (`pruning.exhaustive`)."
        )
    tables = [*_components(components), *_of_seeds(over_seeds), *_truth(frames.results)]
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    verdicts = _verdicts(components, over_seeds, 1.0 - frames.statistics.confidence)
    table = table.merge(verdicts, "left", _KEYS)
    numbers = sorted({*table["removed"]} - {POOLED})
    removed = table["removed"].map(lambda k: "all" if k == POOLED else str(k))
    table = table.assign(
        ranking=table["ranking"].fillna(UNKNOWN),
        removed=ordered(removed, [*map(str, numbers), "all"]),
        measure=ordered(table["measure"], MEASURES),
        sd=float("nan"),
        missing=0,
    )
    columns = [*_KEYS, "ranking", "measure", "mean", "sd", "n", "missing", "unit"]
    return by_cell(table[columns], [*_KEYS, "measure"])


def _components(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    values = {
        MASKS: 100 * table["sd_masks"] / table["mse"],
        ORDERS: 100 * table["sd_replicates"] / table["mse"],
        RATIO: table["F"],
        P: table["p"],
    }
    for measure, value in values.items():
        yield _rows(table.assign(mean=value, n=table["runs"]), measure, "number")


def _of_seeds(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for measure, column in ((SEEDS, "sd"), (DETECTABLE, "detectable")):
        yield _rows(table.assign(mean=100 * table[column], n=table["seeds"]), measure, "number")


def _truth(results: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Agreement of the leave-one-out changes, in the rows of one removed site."""
    found = truth_agreement(results).assign(removed=1).rename(columns={"tau": "mean"})
    replicated = {"orders": results[results["order"] > 0], "seeds": results}
    for across, measure in TRUTH.items():
        n = replicated[across].groupby(list(CELL))["seed"].nunique().rename("n")
        rows = found[found["across"] == across].join(n, on=list(CELL))
        yield _rows(rows, measure, "tau")


def _rows(table: pd.DataFrame, measure: str, unit: str) -> pd.DataFrame:
    return table[[*_KEYS, "mean", "n"]].assign(measure=measure, unit=unit).dropna(subset="mean")


def _verdicts(components: pd.DataFrame, over_seeds: pd.DataFrame, alpha: float) -> pd.DataFrame:
    significant = components["p"] < alpha
    larger = components["sd_masks"] > components["sd_replicates"]
    verdict = significant.map({True: YES, False: NO}).mask(significant & ~larger, BELOW)
    single = over_seeds.loc[over_seeds["masks"] == 1, _KEYS].assign(ranking=SINGLE)
    return pd.concat([components[_KEYS].assign(ranking=verdict), single])
