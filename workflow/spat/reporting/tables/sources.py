"""The change that pruning makes, over independent data sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd

from spat.evaluation.cells import CELL, average, with_station
from spat.evaluation.statistics import MIN_SOURCES, holm, mixed_model, wilcoxon
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CONTROL, DENSE
from spat.reporting.tables.accuracy import by_cell

MEAN: Final = "mean of sources"
MIXED: Final = "mixed model"
WILCOXON: Final = "p (Wilcoxon, Holm)"
MEASURES: Final = (MEAN, MIXED, WILCOXON)
_BY: Final = ["model", "variant", "method"]
_COLUMNS: Final = [*_BY, "measure", "mean", "low", "high", "sd", "n", "missing", "unit"]


def sources(frames: Frames) -> pd.DataFrame:
    """Change of the test MSE against the control over data sources (stations), in percent.

    Columns: model, variant, method, measure, mean, low, high, sd, n (sources), missing, unit. The
    mean over sources has the deviation between them; the mixed model, a sensitivity check, takes
    cells with a random effect of their source; Wilcoxon's test is made over at least `MIN_SOURCES`
    sources and adjusted over the methods of a model and variant, all of which were planned.

    Raises:
        Absent: if there are fewer than two sources, or nothing was pruned.
    """
    rows = methods.by_method(frames)
    rows = rows[rows["target"] == rows["dataset"]]
    change = methods.relative_to(rows, CONTROL, ["mse"])["mse"]
    rows = rows.assign(change=change)[~rows["method"].isin([DENSE, CONTROL])]
    rows = rows[np.isfinite(rows["change"])]
    if with_station(rows)["station"].nunique() < 2:
        raise Absent("The runs are of one data source: nothing can be said of others.")
    found = [
        {**dict(zip(_BY[:-1], key, strict=True)), **row}
        for key, group in rows.groupby(_BY[:-1])
        for row in _rows(group)
    ]
    table = pd.DataFrame(found).reindex(columns=_COLUMNS)
    table = table.dropna(subset="mean").assign(missing=0)
    table["method"] = methods.ordered(table["method"])
    table["measure"] = methods.ordered(table["measure"], MEASURES)
    return by_cell(table, [*_BY, "measure"])


def _rows(group: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Of one model and variant."""
    stations = average(group, ["change"], ["method"])
    values = {str(name): part["change"] for name, part in stations.groupby("method")}
    tests = {name: wilcoxon(changes) for name, changes in values.items()}
    adjusted = holm({name: test.p for name, test in tests.items()}, list(tests))
    cells = group.groupby([*CELL, "method"])["change"].mean().reset_index()
    for name, changes in values.items():
        common = {"method": name, "n": len(changes)}
        yield {**common, "measure": MEAN, "mean": changes.mean(), "sd": changes.std(), "unit": "%"}
        fit = mixed_model(with_station(cells[cells["method"] == name]))
        interval = {"mean": fit.mean, "low": fit.low, "high": fit.high}
        yield {**common, "measure": MIXED, **interval, "unit": "%"}
        yield {**common, "measure": WILCOXON, "mean": adjusted[name], "unit": "p"}


NOTES: Final = (
    "A source: the sensors behind a dataset (ETTh1 and ETTm1 are one). Averages: seeds first, then "
    "horizons, datasets of a source; ± is the deviation between sources.",
    "Mixed model: the mean over cells with a random effect of the source; of a handful of sources "
    "its interval is too narrow. Missing where no source has several cells.",
    f"Wilcoxon's signed-rank test over sources, from {MIN_SOURCES} sources on.",
)
