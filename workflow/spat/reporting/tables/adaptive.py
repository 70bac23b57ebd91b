"""Rules that choose how much to remove, against one ratio fixed on other data."""

from __future__ import annotations

from typing import Final, get_args

import pandas as pd

from spat.evaluation import adaptive as evaluation
from spat.evaluation.cells import with_station
from spat.evaluation.summary import summarise
from spat.pipeline.config import Rule
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import ordered
from spat.reporting.tables.accuracy import by_cell

ALL: Final = "all"
FIXED: Final = "fixed ratio"
RATIO: Final = "ratio"
# Column of the comparison -> (name, unit, scale).
MEASURES: Final = {
    "change": ("MSE vs control", "%", 100.0),
    "difference": ("MSE vs fixed ratio", "%", 100.0),
    "removed": ("sites removed", "sites", 1.0),
    "fixed_ratio": (RATIO, "share", 1.0),
    "finetunings": ("fine-tunings", "masks", 1.0),
}
_BY: Final = ["model", "variant", "station", "rule"]


def adaptive(frames: Frames) -> pd.DataFrame:
    """Test error of each rule against the control and the fixed ratio, and what the rule spends.

    Columns: model, variant, station (or `all`), rule, measure, mean, low, high, sd, n (runs),
    missing, unit. The row `fixed ratio` is the opponent: the ratio of least validation error on the
    other stations. Averages take seeds first, then horizons, datasets of a station, stations;
    intervals of the changes are over seeds.

    Raises:
        Absent: if no rule chose a mask.
    """
    asked = frames.selections["rule"].isin(get_args(Rule))
    if not asked.any():
        raise Absent("No adaptive rule chose a mask: add `auto:<rule>` to `pruning.site.ratios`.")
    rows = with_station(evaluation.comparison(frames.results, frames.selections))
    fixed = rows["rule"] == evaluation.FIXED
    rows = rows.astype(dict.fromkeys(MEASURES, "float64"))
    # Against itself the opponent has no difference, and the rules have no ratio of their own.
    rows["difference"] = rows["difference"].mask(fixed)
    rows["fixed_ratio"] = rows["fixed_ratio"].where(fixed)
    both = pd.concat([rows.assign(place=rows["station"]), rows.assign(place=ALL)])
    tables = [_average(both, value) for value in MEASURES]
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    # The mean of what stations chose for one another is no ratio that anyone would take.
    table = table[(table["measure"] != RATIO) | (table["station"] != ALL)]
    rules = {**{rule: f"auto:{rule}" for rule in get_args(Rule)}, evaluation.FIXED: FIXED}
    names = [name for name, _, _ in MEASURES.values()]
    table = table.assign(
        rule=ordered(table["rule"].map(rules), list(rules.values())),
        station=ordered(table["station"], [*sorted(rows["station"].unique()), ALL]),
        measure=ordered(table["measure"], [n for n in names if n in set(table["measure"])]),
        sd=float("nan"),
        missing=0,
    )
    return by_cell(table, [*_BY, "measure"])


def _average(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    name, unit, scale = MEASURES[value]
    keys = ["model", "variant", "place", "rule"]
    table = summarise(rows, value, keys)
    table = table.rename(columns={value: "mean", "runs": "n", "place": "station"})
    table[["mean", "low", "high"]] *= scale
    if unit != "%":
        table[["low", "high"]] = float("nan")
    return table.drop(columns=["cells", "p"]).assign(measure=name, unit=unit)
