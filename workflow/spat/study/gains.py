"""Is a criterion better than chance, and is its gain robust?

In runs in which every mask was fine-tuned, the mask of a criterion is compared with all masks that
it could have chosen, per run, criterion and number K of removed sites, for 0 < K < N. Errors are
test MSEs after fine-tuning. If a run has several data orders, the error of a mask is the mean over
them. The gains are checked in a second metric, without the cells that have a single seed, over
independent data sources, and, for the best criterion, on sources that did not select it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pandas as pd

from spat.study import methods
from spat.study.pages.page import Absent, Layout, Note, once, page
from spat.study.pages.reader import Frames
from spat.study.replicates import exhaustive
from spat.study.statistics.averages import average, measure
from spat.study.statistics.cells import ALL_ORDERS, CELL, RUN, keyed, sites_removed, wide
from spat.study.statistics.ranks import merged_criteria, relabelled
from spat.study.statistics.tests import MIN_SOURCES, holm, t_interval, wilcoxon, winner

# Decisions that no criterion made.
NOT_RANKING: Final = ("control", "exhaustive")

# The measures of the table `gains`.
MSE: Final = "MSE"
MAE: Final = "MAE"
SEVERAL: Final = "MSE, cells of several seeds"
OVER_SOURCES: Final = "MSE over sources"
SIGNED: Final = f"p, {OVER_SOURCES} (signed rank, Holm)"
_P: Final = {name: f"p, {name} (Holm)" for name in (MSE, MAE, SEVERAL)}
MEASURES: Final = (MSE, _P[MSE], MAE, _P[MAE], SEVERAL, _P[SEVERAL], OVER_SOURCES, SIGNED)

# The measures of the table `winner`, and its row for the best criterion.
ANY: Final = "(best on half of the sources)"
WINS: Final = "chosen (%)"
CHOSEN: Final = "gain where chosen"
HELD_OUT: Final = "gain on the other sources"
P_HELD_OUT: Final = "p: no gain on the other sources"

_MODEL: Final = ["model", "variant"]
_BY: Final = [*_MODEL, "criterion"]
_COLUMNS: Final = [*_BY, "measure", "mean", "low", "high", "sd", "n", "missing", "unit"]
_CHOICE: Final = [*RUN, "criterion", "draw", "removed", "mask"]
_GROUP: Final = [*RUN, "removed"]


@page(
    "table",
    "gains",
    title="Gain of the criteria over chance, checked",
    caption="""
The gain of each criterion over a random choice, in the MSE and the MAE, without the cells that have
a single seed, and over independent data sources.
A random choice has an expected gain of zero; positive is better than chance. P-values are adjusted
over all criteria.
""",
    layout=Layout(("model", "variant", "criterion"), "measure", best=False, counted="runs"),
    notes=(
        "Gain: the mean error of all masks with as many sites removed, minus the error of the "
        "criterion's mask. Intervals are t intervals over seeds, and over sources in the last "
        "gain.",
        Note(SEVERAL, "Cells of several seeds: without the cells that have a single seed."),
        Note(SIGNED, f"Signed-rank tests over sources, for at least {MIN_SOURCES} sources."),
    ),
)
def robust_gains(frames: Frames) -> pd.DataFrame:
    """Gains of each criterion in percent, with p-values adjusted over the criteria of a model.

    Columns: model, variant, criterion, measure, mean, low, high, sd, n (runs, or sources), missing,
    unit. The measure of cells with several seeds is there only if some cells have one.

    Raises:
        Absent: if no run has all masks fine-tuned that remove some number of its sites.
    """
    measured = all_gains(frames)
    if measured.empty:
        raise Absent("No run has all its site masks fine-tuned: set `pruning.exhaustive: true`.")
    selections, labels = decisions_and_labels(frames)
    results = frames.results
    parts = {MSE: measured, MAE: gains(results.assign(mse=results["mae"]), selections, labels)}
    seeds = measured.groupby(list(CELL))["seed"].transform("nunique")
    if (seeds == 1).any() and (seeds > 1).any():
        parts[SEVERAL] = measured[seeds > 1]
    tables = []
    for name, rows in parts.items():
        gain = measure(rows, "relative_gain", _BY, name, "%", scale=100)
        tables += [gain, adjusted(gain, _P[name], _BY)]
    for key, rows in measured.groupby(_MODEL):
        tables.append(
            _over_sources(rows, frames.statistics.confidence).assign(**keyed(_MODEL, key))
        )
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    table = table.dropna(subset="mean").assign(missing=0, sd=float("nan"))
    table["measure"] = methods.present(table["measure"], MEASURES)
    return methods.sort_rows(table[_COLUMNS], [*_BY, "measure"])


@page(
    "table",
    "winner",
    title="The best criterion of many, judged on other sources",
    caption="""
The gain of the best of many criteria is biased upwards if it is measured on the data that selected
it. So for every way to split the data sources in two halves, the best criterion is chosen on one
half and its gain over chance is measured on the other half.
""",
    layout=Layout(("model", "variant", "criterion"), "measure", best=False, counted="sources"),
    notes=(
        "All splits of the sources in two halves; if their number is odd, the smaller half "
        "chooses. Gains are those of the table `gains`, one value per source.",
        Note(
            P_HELD_OUT,
            "P-value: one-sided, by flipping the signs of all gains of a source, for at least "
            f"{MIN_SOURCES} sources.",
        ),
    ),
)
def gain_held_out(frames: Frames) -> pd.DataFrame:
    """Gain of the best criterion on the sources that selected it and on the other sources.

    Columns: model, variant, criterion (`ANY`, and each one that wins), measure, mean, low, high,
    sd, n (sources), missing, unit.

    Raises:
        Absent: if the table `gains` raises it, or if there are fewer than two sources.
    """
    measured = all_gains(frames)
    if measured["source"].nunique() < 2:
        raise Absent(
            "A criterion that is chosen on half of the sources needs at least two sources whose "
            "site masks are all fine-tuned (`pruning.exhaustive: true`)."
        )
    rows = []
    for key, group in measured.groupby(_MODEL):
        table = gains_by_source(group)
        if len(table) < 2:
            continue
        best = winner(table)
        whole = {"criterion": ANY, "n": best.n, **keyed(_MODEL, key)}
        rows += [
            {**whole, "measure": CHOSEN, "mean": best.chosen, "unit": "%"},
            {**whole, "measure": HELD_OUT, "mean": best.held_out, "unit": "%"},
            {**whole, "measure": P_HELD_OUT, "mean": best.p, "unit": "p"},
        ]
        splits = sum(best.wins.values()) / 100
        for name, wins in best.wins.items():
            row = {"criterion": name, "measure": WINS, "mean": wins / splits, "unit": "number"}
            rows.append({**whole, **row})
    table = pd.DataFrame(rows).astype({"mean": "float64"}).dropna(subset="mean")
    table = table.assign(missing=0).reindex(columns=_COLUMNS)
    table["measure"] = methods.present(table["measure"], (CHOSEN, HELD_OUT, P_HELD_OUT, WINS))
    return methods.sort_rows(table, [*_BY, "measure"])


@once
def decisions_and_labels(frames: Frames) -> tuple[pd.DataFrame, dict[str, str]]:
    """The decisions of criteria, and labels (by name) that merge criteria of equal rankings."""
    selections = frames.selections[~frames.selections["criterion"].isin(NOT_RANKING)]
    asked = set(selections.loc[selections["level"] == "site", "criterion"])
    return selections, merged_criteria(frames.scores[frames.scores["criterion"].isin(asked)])


@once
def all_gains(frames: Frames) -> pd.DataFrame:
    """The `gains` of all criteria, those that rank alike merged."""
    selections, labels = decisions_and_labels(frames)
    return gains(frames.results, selections, labels)


def choices(selections: pd.DataFrame, labels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Site masks chosen at fixed ratios, one row per run, criterion, draw and K.

    Ratios that remove the same number of sites are one choice. `labels` renames criteria, so that
    merged criteria (`spat.study.statistics.ranks.merged_criteria`) count once.

    Raises:
        ValueError: if a criterion chose two masks for one run, draw and K.
    """
    rows = selections[(selections["level"] == "site") & (selections["rule"] == "")]
    rows = rows[rows["ratio"].notna()]
    rows = relabelled(rows, labels).assign(removed=rows["mask"].map(sites_removed).astype("int64"))
    rows = rows[_CHOICE].drop_duplicates()
    twice = rows[rows.duplicated([c for c in _CHOICE if c != "mask"], keep=False)]
    if not twice.empty:
        raise ValueError(
            f"one criterion and number of sites, but two masks:\n{twice.head(4).to_string()}\n"
            "run `select` again, or merge only criteria that rank alike"
        )
    return rows


def gains(
    results: pd.DataFrame, selections: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Mean error over all masks with K sites removed, minus the error of the criterion's mask.

    The mean is the exact expected error of a random choice. So the gain is unbiased, and a random
    choice has an expected gain of 0.

    Returns:
        RUN, `criterion`, `draw`, `removed`, `mask`, `mse`, `mean_mse`, `gain`, and `relative_gain`
        (a fraction of `mean_mse`). Positive is better than chance.
    """
    errors = mean_errors(exhaustive(results))
    errors["mean_mse"] = errors.groupby(_GROUP)["mse"].transform("mean")
    rows = choices(selections, labels).merge(errors.drop(columns="order"), on=[*_GROUP, "mask"])
    gain = rows["mean_mse"] - rows["mse"]
    rows = rows.assign(gain=gain, relative_gain=gain / rows["mean_mse"])
    return rows[[*_CHOICE, "mse", "mean_mse", "gain", "relative_gain"]]


def adjusted(table: pd.DataFrame, name: str, by: Sequence[str]) -> pd.DataFrame:
    """The column `p` as a measure, adjusted over the criteria (and cells) of each model.

    `by` are the key columns of the rows; they contain model and variant.
    """
    groups = []
    for _, group in table.reset_index(drop=True).groupby(["model", "variant"]):
        p = {str(i): value for i, value in group["p"].items()}
        adjusted = holm(p, list(p))
        groups.append(group.assign(mean=pd.Series(adjusted).astype("float64").to_numpy()))
    joined = pd.concat(groups)
    return joined.assign(measure=name, unit="p")[[*by, "mean", "n", "measure", "unit"]]


def mean_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Errors averaged over the data orders of a run: `order` is `ALL_ORDERS`."""
    mean = errors.groupby([*_GROUP, "mask"])["mse"].mean().reset_index()
    return mean.assign(order=ALL_ORDERS)


def gains_by_source(rows: pd.DataFrame) -> pd.DataFrame:
    """Gains in percent: one row per source, one column per criterion, complete rows only."""
    means = average(rows.assign(gain=100 * rows["relative_gain"]), ["gain"], ["criterion"])
    return wide(means, "source", "criterion", "gain").dropna()


def _over_sources(rows: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Mean gains over sources and their signed-rank tests, for the criteria of one model."""
    table = gains_by_source(rows)
    tests = {str(name): wilcoxon(values).p for name, values in table.items()}
    p = holm(tests, list(tests))
    averages = []
    for name, values in table.items():
        low, high = t_interval(values, confidence)
        common = {"criterion": name, "n": len(values)}
        gain = {"measure": OVER_SOURCES, "mean": values.mean(), "low": low, "high": high}
        averages += [
            {**common, **gain, "unit": "%"},
            {**common, "measure": SIGNED, "mean": p[str(name)], "unit": "p"},
        ]
    return pd.DataFrame(averages).astype({"mean": "float64"})
