"""Is SEND low where attention is uniform, as its name promises?"""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.evaluation.validation import LEVELS, correlations
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import SHOWN, ordered
from spat.reporting.tables.accuracy import by_cell

# Name -> the columns of value, low and high.
MEASURES: Final = {
    "rho, all runs": ("rho", "low", "high"),
    "rho within a run": ("within", "within_low", "within_high"),
}


def validation(frames: Frames) -> pd.DataFrame:
    """Spearman's rho of SEND against the uniformity of the attention maps, over sites and heads.

    Columns: dataset, model, variant, lookback, horizon, places (sites, heads), measure, mean, low,
    high, sd, n (runs), missing, unit. Intervals are a bootstrap over runs.

    Raises:
        Absent: if SEND or the uniformity of the maps was not recorded.
    """
    found = correlations(
        frames.scores, draws=frames.statistics.bootstrap, confidence=frames.statistics.confidence
    )
    if found.empty:
        raise Absent("No attention site was scored by SEND in this experiment.")
    tables = [
        found[[*SHOWN, "level"]].assign(
            measure=name, mean=found[mean], low=found[low], high=found[high], n=found["runs"]
        )
        for name, (mean, low, high) in MEASURES.items()
    ]
    table = pd.concat(tables, ignore_index=True).rename(columns={"level": "places"})
    table = table.assign(
        places=ordered(table["places"], LEVELS),
        measure=ordered(table["measure"], list(MEASURES)),
        sd=float("nan"),
        missing=0,
        unit="tau",
    )
    return by_cell(table, [*SHOWN, "places", "measure"])
