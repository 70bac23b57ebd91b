"""Does the change that pruning makes hold over independent data sources?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.study import methods
from spat.study.methods import CHOSEN, CONTROL, DENSE, METRICS, NONE_LEFT
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.statistics.averages import average, summarise
from spat.study.statistics.cells import CELL, keyed
from spat.study.statistics.tests import MIN_SOURCES, holm, mixed_model, t_interval, wilcoxon

MEAN: Final = "mean of sources"
MIXED: Final = "mixed model"
WILCOXON: Final = "p (Wilcoxon, Holm)"
MEASURES: Final = (MEAN, MIXED, WILCOXON)
# The least number of sources in the figure, and the largest number of models.
_SOURCES: Final = 3
_MODELS: Final = 3
_BY: Final = ["model", "variant", "method"]
_COLUMNS: Final = [*_BY, "measure", "mean", "low", "high", "sd", "n", "missing", "unit"]


@page(
    "table",
    "by_source",
    title="Change of the test MSE against the control over independent data sources",
    caption="""
How much the test error changes against the control, over independent data sources: datasets of the
same sensors count as one source.
The mean over sources is given with the standard deviation between sources. As a check, a mixed
model uses all cells, with a random effect of the source; with few sources its interval is too
narrow. Wilcoxon's test needs at least six sources, and is adjusted for the number of methods.
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
    `sd` of the mean over sources is the standard deviation between sources. The mixed model, a
    sensitivity check, uses all cells with a random effect of their source. Wilcoxon's test needs
    at least `MIN_SOURCES` sources, and is adjusted over all methods of a model and variant.

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


@page(
    "figure",
    "by_source",
    title="Change of the test error by pruning, over independent data sources",
    caption="""
Change of the test error of SPAT, at the ratio with the lowest validation error, and of the network
without any attention, for each independent data source: means over the datasets, horizons and seeds
of a source, with 95 % intervals over seeds (t), in the MSE and in the MAE (pale). The
reference of each run is the better of dense model and control by validation error. Sources are
sorted by the change of SPAT. The last row is the mean over sources, with the interval of
independent sources.
""",
)
def improvement(frames: Frames) -> Figure:
    """Change of both errors against the better reference, one row a source, one panel a model.

    Raises:
        Absent: if a mask was chosen by validation on fewer than three sources.
    """
    rows = methods.at_home(frames)
    rows = rows[rows["method"].isin([CHOSEN, NONE_LEFT])]
    changes = {m: methods.relative_to_better(rows, frames.results, m) for m in METRICS}
    rows = rows.assign(**changes)
    rows = rows[np.isfinite(rows["mse"]) & np.isfinite(rows["mae"])]
    models = [
        (" ".join(map(str, key)), part)
        for key, part in rows.groupby(["model", "variant"])
        if part.loc[part["method"] == CHOSEN, "source"].nunique() >= _SOURCES
    ][:_MODELS]
    if not models:
        raise Absent(
            f"SPAT chose a mask by validation on fewer than {_SOURCES} independent data sources, "
            "over which a figure can compare changes."
        )
    counts = [part["source"].nunique() + 1.5 for _, part in models]
    figure = style.canvas(height=0.75 + sum(0.45 + 0.3 * count for count in counts))
    grid = figure.subplots(len(models), 1, squeeze=False, sharex=True, height_ratios=counts)
    axes = list(grid.ravel())
    for axis, (title, part) in zip(axes, models, strict=True):
        means = average(part[part["method"] == CHOSEN], ["mse"], ["method"]).set_index("source")
        order = [str(source) for source in means["mse"].sort_values().index]
        for i, (metric, name) in enumerate(METRICS.items()):
            for j, method in enumerate((CHOSEN, NONE_LEFT)):
                chosen = part[part["method"] == method]
                shift = 0.2 * (2 * j + i) - 0.3
                _sources(axis, chosen, metric, [*order], shift, f"{method}, {name}")
        axis.axhline(len(order) - 0.5, **style.BORDER)
        axis.axvline(0, color=style.BLACK, lw=0.8, zorder=1)
        axis.set_yticks(range(len(order) + 1), [*order, "mean of sources"])
        axis.set_ylim(len(order) + 0.6, -0.6)
        axis.grid(visible=False, axis="y")
        axis.set(title=title, ylabel="data source")
    axes[-1].set_xlabel("change of the test error (%)\n← pruned is better")
    style.legend_below(figure, axes, columns=2)
    return figure


def _sources(
    axis: Axes, rows: pd.DataFrame, metric: str, order: list[str], shift: float, label: str
) -> None:
    """Draw the changes of one method in one metric by source, and their mean below them."""
    table = summarise(rows, metric, ["source"]).set_index("source").reindex(order)
    values = table[metric].dropna()
    low, high = t_interval(values)
    middle = [*table[metric], values.mean()]
    ends = np.array([[*table["low"], low], [*table["high"], high]], dtype=np.float64)
    bars = np.nan_to_num(np.abs(ends - middle))
    mark = style.mark(str(rows["method"].iloc[0]))
    axis.errorbar(
        middle, np.arange(len(middle)) + shift, xerr=bars, ls="none", color=mark.colour,
        marker=mark.marker, ms=4, alpha=1.0 if metric == "mse" else 0.45, elinewidth=0.9,
        label=label, zorder=3,
    )  # fmt: skip


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
