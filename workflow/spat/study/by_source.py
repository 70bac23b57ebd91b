"""Does the change that pruning makes hold over independent data sources?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd

from spat.study import methods
from spat.study.methods import CONTROL, DENSE
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.statistics.averages import average
from spat.study.statistics.cells import CELL, keyed
from spat.study.statistics.tests import MIN_SOURCES, holm, mixed_model, wilcoxon

MEAN: Final = "mean of sources"
MIXED: Final = "mixed model"
WILCOXON: Final = "p (Wilcoxon, Holm)"
MEASURES: Final = (MEAN, MIXED, WILCOXON)
_BY: Final = ["model", "variant", "method"]
_COLUMNS: Final = [*_BY, "measure", "mean", "low", "high", "sd", "n", "missing", "unit"]


@page(
    "table",
    "by_source",
    title="Change of the test MSE against the control over independent data sources",
    caption="""
How much the test error changes against the control, over independent data sources: datasets of the
same sensors count as one source.
The mean over sources comes with the standard deviation between them. The mixed model checks it on
all cells, with a random effect of the source; with few sources its interval is too narrow.
Wilcoxon's test needs at least six sources, and is adjusted for the number of methods.
""",
    layout=Layout(("model", "variant", "method"), "measure", best=False, counted="sources"),
    notes=(
        "A source: the sensors that a dataset comes from (those of ETTh1 and ETTm1 are the same). "
        "Averages: seeds first, then horizons, datasets of a source; ± is the standard deviation "
        "between sources.",
        "Mixed model: the mean over cells with a random effect of the source. With few sources its "
        "interval is too narrow. Missing where no source has several cells.",
        f"Wilcoxon's signed-rank test over sources, for at least {MIN_SOURCES} sources.",
    ),
)
def by_source(frames: Frames) -> pd.DataFrame:
    """Change of the test MSE against the control over data sources, in percent.

    Columns: model, variant, method, measure, mean, low, high, sd, n (sources), missing, unit. The
    mean over sources has the standard deviation between them. The mixed model, a sensitivity check,
    uses all cells with a random effect of their source. Wilcoxon's test is made over at least
    `MIN_SOURCES` sources and adjusted over the methods of a model and variant, all of which were
    planned.

    Raises:
        Absent: if there are fewer than two sources, or nothing was pruned.
    """
    rows = methods.at_home(frames)
    change = methods.relative_to(rows, CONTROL, ["mse"])["mse"]
    rows = rows.assign(change=change)[~rows["method"].isin([DENSE, CONTROL])]
    rows = rows[np.isfinite(rows["change"])]
    if rows["source"].nunique() < 2:
        sources = ", ".join(sorted(rows["source"].unique())) or "no source"
        raise Absent(
            f"The pruned runs come from {sources}: a comparison over independent sources needs at "
            "least two."
        )
    measured = [
        {**keyed(_BY[:-1], key), **row}
        for key, group in rows.groupby(_BY[:-1])
        for row in _rows(group)
    ]
    table = pd.DataFrame(measured).reindex(columns=_COLUMNS)
    table = table.dropna(subset="mean").assign(missing=0)
    table["method"] = methods.ordered(table["method"])
    table["measure"] = methods.ordered(table["measure"], MEASURES)
    return methods.sort_rows(table, [*_BY, "measure"])


def _rows(group: pd.DataFrame) -> Iterator[dict[str, object]]:
    """The measures of one model and variant."""
    means = average(group, ["change"], ["method"])
    values = {str(name): part["change"] for name, part in means.groupby("method")}
    tests = {name: wilcoxon(changes) for name, changes in values.items()}
    adjusted = holm({name: test.p for name, test in tests.items()}, list(tests))
    cells = group.groupby([*CELL, "method"])["change"].mean().reset_index()
    for name, changes in values.items():
        common = {"method": name, "n": len(changes)}
        yield {**common, "measure": MEAN, "mean": changes.mean(), "sd": changes.std(), "unit": "%"}
        fit = mixed_model(cells[cells["method"] == name])
        interval = {"mean": fit.mean, "low": fit.low, "high": fit.high}
        yield {**common, "measure": MIXED, **interval, "unit": "%"}
        yield {**common, "measure": WILCOXON, "mean": adjusted[name], "unit": "p"}
