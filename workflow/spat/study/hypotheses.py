"""Does pruning help over independent data sources? The changes by source, and the paper's claims.

The table `by_source` describes the change that pruning makes on each source. The table `hypotheses`
tests the three claims, which the experiment file `comparison.yaml` declares:

H1  Removing attention by SPAT improves the forecast: the mask of SEND at the ratio that validation
    chooses, against the better by validation error of the dense model and the control.
H2  SEND ranks sites better than chance: its masks at fixed ratios, against the mean over all masks
    that remove as many sites.
H3  SPAT is better than its rivals: the mask of H1, against the best model by validation error of
    each family of rivals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.models.registry import Family
from spat.study import methods
from spat.study.accuracy import better
from spat.study.gains import gains
from spat.study.methods import CHOSEN, CONTROL, DENSE, METRICS, NONE_LEFT
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, Note, page
from spat.study.pages.reader import Frames
from spat.study.pages.render import all_equal
from spat.study.statistics.averages import average, summarise
from spat.study.statistics.cells import CELL, RUN, keyed
from spat.study.statistics.tests import (
    MIN_SOURCES,
    holm,
    mixed_model,
    signed_rank_equivalence,
    t_interval,
    wilcoxon,
)

# A measure of both tables.
MEAN: Final = "mean of sources"
# The measures of the table `by_source`.
MIXED: Final = "mixed model"
WILCOXON: Final = "p (Wilcoxon, Holm)"
# The least number of sources in the figure `by_source`, and the largest number of models.
_SOURCES: Final = 3
_MODELS: Final = 3

H1: Final = "H1: pruned against unpruned"
H2: Final = "H2: SEND against chance"
H3: Final = "H3: against"
# Families of rivals: `Model.family` of their models.
FAMILIES: Final[Mapping[Family, str]] = {
    "baseline": "models without attention",
    "attention": "models with attention",
    "scan": "models with selective scans (Mamba)",
    "language": "models with a language model",
}
ALL_CELLS: Final = "all"
SEVERAL: Final = "of several seeds"
# The measures of the table `hypotheses`.
LOWER: Final = "sources with a lower error"
P: Final = "p (signed rank)"
ADJUSTED: Final = "p (Holm)"
WORSE: Final = "p: worse than the margin"
BETTER: Final = "p: better than the margin"
MEASURES: Final = (MEAN, LOWER, P, ADJUSTED, WORSE, BETTER)

_MODEL: Final = ["model", "variant"]
_METHOD: Final = [*_MODEL, "method"]
_CELL: Final = ("dataset", "lookback", "horizon")
_PLACE: Final = ["experiment", "dataset", "lookback", "horizon", "seed"]
_VALUES: Final = ("mean", "low", "high", "sd", "n", "missing", "unit")


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
        {**keyed(_MODEL, key), **row}
        for key, group in rows.groupby(_MODEL)
        for row in _measures(group)
    ]
    table = pd.DataFrame(measured).reindex(columns=[*_METHOD, "measure", *_VALUES])
    table = table.dropna(subset="mean").assign(missing=0)
    table["method"] = methods.ordered(table["method"])
    table["measure"] = methods.ordered(table["measure"], (MEAN, MIXED, WILCOXON))
    return methods.sort_rows(table, [*_METHOD, "measure"])


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
def changes_by_source(frames: Frames) -> Figure:
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
                _draw_changes_by_source(axis, chosen, metric, [*order], shift, f"{method}, {name}")
        axis.axhline(len(order) - 0.5, **style.BORDER)
        axis.axvline(0, color=style.BLACK, lw=0.8, zorder=1)
        axis.set_yticks(range(len(order) + 1), [*order, MEAN])
        axis.set_ylim(len(order) + 0.6, -0.6)
        axis.grid(visible=False, axis="y")
        axis.set(title=title, ylabel="data source")
    axes[-1].set_xlabel("change of the test error (%)\n← pruned is better")
    style.legend_below(figure, axes, columns=2)
    return figure


@page(
    "table",
    "hypotheses",
    title="The claims of the paper over independent data sources",
    caption="""
The three claims, each tested over independent data sources: pruning improves the forecast (H1),
SEND chooses better than chance (H2), and the pruned model is better than its rivals (H3).
Changes are relative changes of the test error; negative is better. The reference of H1 is the
dense model or the control, whichever has the lower validation error.
The last two columns test whether the change is within a margin: the errors are equivalent only if
both p-values are small.
""",
    layout=Layout(("model", "variant", "hypothesis", "cells", "metric"), "measure", best=False,
                  kept=("hypothesis", "metric"), counted="sources"),
    notes=(
        "Averages: seeds first, then horizons, datasets of a source; the interval of the mean is a "
        "t interval over sources.",
        "Unpruned: the dense model or the control, whichever has the lower validation error. The "
        "rival is the model of the family with the lowest validation error.",
        f"Signed-rank tests over sources, for at least {MIN_SOURCES} sources. Holm's method "
        "adjusts over the three hypotheses (with the smallest p of H3), and over the families "
        "within H3.",
        "Margin: `statistics.margin`, by default 1 %. One-sided signed-rank tests; the error is "
        "equivalent to that of the reference only if both tests reject.",
        Note(SEVERAL, "Cells of several seeds: without the cells that have a single seed."),
    ),
)  # fmt: skip
def hypotheses(frames: Frames) -> pd.DataFrame:
    """Tests of the declared hypotheses over data sources, in percent of the reference's error.

    Columns: model, variant, hypothesis, cells (`all`, or cells of several seeds if some cells have
    a single seed), metric, measure, mean, low, high, sd, n (sources), missing, unit.

    Raises:
        Absent: if SEND chose no mask by validation, or there are fewer than two sources.
    """
    changes = claims(frames)
    if changes.empty or changes["source"].nunique() < 2:
        raise Absent(
            "The hypotheses need masks of `send` at the ratio `auto:validation` from at least two "
            "data sources."
        )
    seeds = changes.groupby([*CELL, "hypothesis", "metric"])["seed"].transform("nunique")
    parts = {ALL_CELLS: changes}
    if (seeds == 1).any() and (seeds > 1).any():
        parts[SEVERAL] = changes[seeds > 1]
    tables = [
        part_table.assign(cells=cells)
        for cells, part in parts.items()
        for _, group in part.groupby([*_MODEL, "metric"])
        for part_table in _tested(group, frames.statistics.confidence, frames.statistics.margin)
    ]
    table = pd.concat(tables, ignore_index=True).assign(missing=0, sd=float("nan"))
    table["metric"] = methods.present(table["metric"], METRICS.values())
    table["measure"] = methods.ordered(table["measure"], MEASURES)
    keys = [*_MODEL, "hypothesis", "cells", "metric", "measure"]
    return methods.sort_rows(table[[*keys, *_VALUES]].dropna(subset="mean"), keys)


@page(
    "figure",
    "forest",
    title="Change of the test MSE by pruning, over cells",
    caption="""
Change of the test MSE of the pruned networks against the dense model or the control, whichever has
the lower validation error, for each dataset and horizon, with the 95 percent intervals of the table
`better`. Left of the line, pruning lowers the error. The two methods are SPAT at the ratio with the
lowest validation error, and the network without any attention. A mark has no bar if SPAT chose the
reference itself, or if the cell has too few test windows for an interval.
The last row is the mean over independent data sources, with the interval of the table `hypotheses`.
""",
)
def forest(frames: Frames) -> Figure:
    """The changes of the table `better` for SPAT and for no attention at all, one row a cell.

    Raises:
        Absent: as the table `better`.
    """
    rows = better(frames)
    shown = [name for name in (CHOSEN, NONE_LEFT) if name in set(rows["method"])]
    if not shown:
        raise Absent("No mask was chosen by validation, and none removes all attention.")
    parts = list(rows[rows["method"].isin(shown)].groupby(_MODEL, sort=False))
    means = means_of_sources(frames)
    cells = [part[[*_CELL]].drop_duplicates() for _, part in parts]
    height = 0.55 + sum(0.5 + 0.19 * (len(cell) + 1) for cell in cells)
    figure = style.canvas(height=height)
    ratios = [len(cell) + 1.5 for cell in cells]
    grid = figure.subplots(len(parts), 1, squeeze=False, sharex=True, height_ratios=ratios)
    axes = list(grid.ravel())
    for axis, (key, part), cell in zip(axes, parts, cells, strict=True):
        model = tuple(map(str, key))
        names = [_cell_name(d, int(back), int(ahead), cell) for d, back, ahead in cell.to_numpy()]
        places = dict(zip(cell.itertuples(index=False, name=None), range(len(cell)), strict=True))
        for shift, method in zip((-0.16, 0.16), shown, strict=False):
            chosen = part[part["method"] == method]
            y = [places[key] + shift for key in chosen[[*_CELL]].itertuples(index=False, name=None)]
            _interval(axis, chosen, y, method)
        if model in means and CHOSEN in shown:
            _interval(axis, means[model], [len(cell)], CHOSEN, label="")
            names.append(MEAN)
            axis.axhline(len(cell) - 0.5, **style.BORDER)
        axis.axvline(0, color=style.BLACK, lw=0.8, zorder=1)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(visible=False, axis="y")
        axis.set_title(" ".join(model))
        axis.set_ylabel("dataset")
    axes[-1].set_xlabel("change of the test MSE (%)\n← pruned is better")
    style.legend_below(figure, axes)
    return figure


def means_of_sources(frames: Frames) -> dict[tuple[str, ...], pd.DataFrame]:
    """The mean over sources of H1, in the MSE of all cells, by model and variant.

    Models with fewer than `MIN_SOURCES` sources are left out.
    """
    try:
        table = hypotheses(frames)
    except Absent:
        return {}
    wanted = (table["hypothesis"] == H1) & (table["measure"] == MEAN) & (table["metric"] == "MSE")
    rows = table[wanted & (table["cells"] == ALL_CELLS) & (table["n"] >= MIN_SOURCES)]
    return {tuple(map(str, key)): part for key, part in rows.groupby(_MODEL)}


def _cell_name(dataset: str, lookback: int, horizon: int, cells: pd.DataFrame) -> str:
    """A cell by its dataset, and by lookback and horizon where one dataset has several."""
    of_dataset = cells[cells["dataset"] == dataset]
    parts = [dataset]
    if not all_equal(of_dataset["lookback"]):
        parts.append(f"{lookback} →")
    if not all_equal(of_dataset["horizon"]):
        parts.append(str(horizon))
    return " ".join(parts)


def _interval(
    axis: Axes, rows: pd.DataFrame, y: Sequence[float], method: str, label: str | None = None
) -> None:
    mark = style.mark(method)
    below, above = rows["mean"] - rows["low"], rows["high"] - rows["mean"]
    axis.errorbar(
        rows["mean"], y, xerr=[below, above], color=mark.colour, marker=mark.marker, ls="none",
        ms=4, elinewidth=0.9, label=method if label is None else label, zorder=3,
    )  # fmt: skip


def rivals(results: pd.DataFrame, family: Family) -> pd.DataFrame:
    """The model of a family with the lowest validation MSE, among models that were not pruned.

    Returns:
        Experiment, dataset, lookback, horizon, seed, `rival` (the name of the model) and its test
        errors `mse` and `mae`.
    """
    home = results[(results["target"] == results["dataset"]) & (results["order"] == 0)]
    pruned = home.loc[home["phase"] == "finetuned", _MODEL].drop_duplicates()
    dense = home[(home["phase"] == "dense") & (home["model"].map(methods.family) == family)]
    was_pruned = pd.MultiIndex.from_frame(dense[_MODEL]).isin(pd.MultiIndex.from_frame(pruned))
    dense = dense[~was_pruned]
    keys = [*_PLACE, *_MODEL]
    kept = dense[dense["split"] == "validation"].sort_values(["mse", *_MODEL], kind="stable")
    kept = kept.drop_duplicates(_PLACE)[keys]
    tested = dense.loc[dense["split"] == "test", [*keys, "mse", "mae"]]
    joined = pd.DataFrame(kept.merge(tested, on=keys)).rename(columns={"model": "rival"})
    return joined[[*_PLACE, "rival", "mse", "mae"]]


def claims(frames: Frames) -> pd.DataFrame:
    """The changes that the hypotheses concern, one per run, in percent.

    Returns:
        RUN, `hypothesis`, `metric`, `change`. H2 has one row for each number of removed sites.
    """
    results = frames.results
    rows = methods.at_home(frames)
    chosen = rows.loc[rows["method"] == CHOSEN, [*RUN, *METRICS]]
    compared = {H1: (methods.references(results), [*RUN])}
    for family, name in FAMILIES.items():
        compared[f"{H3} {name}"] = (rivals(results, family), _PLACE)
    tables: list[pd.DataFrame] = []
    for metric, shown in METRICS.items():
        for hypothesis, (others, keys) in compared.items():
            reference = others[[*keys, metric]].rename(columns={metric: "reference"})
            joined = chosen.merge(reference, on=keys)
            joined["change"] = 100 * (joined[metric] / joined["reference"] - 1)
            tables.append(joined.assign(hypothesis=hypothesis, metric=shown))
        choices = frames.selections
        send = choices[choices["criterion"] == methods.spat_criterion(choices)]
        gained = gains(results.assign(mse=results[metric]), send)
        gained = gained.merge(chosen[[*RUN]], on=[*RUN])
        gained = gained.assign(change=-100 * gained["relative_gain"].astype("float64"))
        tables.append(gained.assign(hypothesis=H2, metric=shown))
    columns = [*RUN, "hypothesis", "metric", "change"]
    changes = pd.concat([table[columns] for table in tables], ignore_index=True)
    return changes.replace({"change": [np.inf, -np.inf]}, np.nan).dropna(subset="change")


def _tested(group: pd.DataFrame, confidence: float, margin: float) -> Iterator[pd.DataFrame]:
    """The measures of each hypothesis for one model, variant and metric."""
    means = average(group, ["change"], ["hypothesis"])
    values = {str(name): part["change"] for name, part in means.groupby("hypothesis")}
    keys = {key: group[key].iloc[0] for key in (*_MODEL, "metric")}
    p = {name: wilcoxon(changes).p for name, changes in values.items()}
    adjusted = holm_over_claims(p)
    for name, changes in values.items():
        worse, better_ = signed_rank_equivalence(changes, 100 * margin)
        low, high = t_interval(changes, confidence)
        rows = [
            {"measure": MEAN, "mean": changes.mean(), "low": low, "high": high, "unit": "%"},
            {"measure": LOWER, "mean": int((changes < 0).sum()), "unit": "count"},
            {"measure": P, "mean": p[name], "unit": "p"},
            {"measure": ADJUSTED, "mean": adjusted[name], "unit": "p"},
            {"measure": WORSE, "mean": worse.p, "unit": "p"},
            {"measure": BETTER, "mean": better_.p, "unit": "p"},
        ]
        table = pd.DataFrame(rows).reindex(columns=["measure", "mean", "low", "high", "unit"])
        table[["mean", "low", "high"]] = table[["mean", "low", "high"]].astype("float64")
        yield table.assign(hypothesis=name, n=len(changes), **keys)


def holm_over_claims(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's method over the hypotheses, and within H3 over the families of rivals.

    H3 enters with the smallest adjusted p-value of its families. The p-value of a family is at
    least the adjusted p-value of H3.
    """
    families = {name: value for name, value in p.items() if name.startswith(H3)}
    inner = holm(families, list(families))
    known = [value for value in inner.values() if value is not None]
    outer = {name: value for name, value in p.items() if name not in families}
    if families:
        outer[H3] = min(known) if known else None
    adjusted = holm(outer, list(outer))
    whole = adjusted.pop(H3, None)
    for name, value in inner.items():
        adjusted[name] = None if value is None or whole is None else max(value, whole)
    return adjusted


def _draw_changes_by_source(
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


def _measures(group: pd.DataFrame) -> Iterator[dict[str, object]]:
    """The measures of the table `by_source` for one model and variant."""
    means = average(group, ["change"], ["method"])
    values = {str(name): part["change"] for name, part in means.groupby("method")}
    tests = {name: wilcoxon(changes) for name, changes in values.items()}
    adjusted = holm({name: test.p for name, test in tests.items()}, list(tests))
    cells = group.groupby([*CELL, "method"])["change"].mean().reset_index()
    for name, changes in values.items():
        common = {"method": name, "n": len(changes)}
        yield {**common, "measure": MEAN, "mean": changes.mean(), "sd": changes.std(), "unit": "%"}
        fit = mixed_model(cells[cells["method"] == name])
        # Processors differ by about 1e-8, since the fit ends at the optimiser's tolerance.
        interval = {part: round(getattr(fit, part), 4) for part in ("mean", "low", "high")}
        yield {**common, "measure": MIXED, **interval, "unit": "%"}
        yield {**common, "measure": WILCOXON, "mean": adjusted[name], "unit": "p"}
