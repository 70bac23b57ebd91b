"""Do the dense networks reach the errors of their authors, and at what cost?

The references are the published errors, and the errors of the authors' code, trained with the same
data protocol.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    LogFormatterSciNotation,
    NullFormatter,
)

from spat.study import methods
from spat.study.methods import CHOSEN, DENSE, METRICS, NONE_LEFT
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, Note, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import in_domain

# Dense errors this close to the published ones (percent), or lower, count as reproduced.
TOLERANCE: Final = 3.0
MEASURED: Final = "measured"
PUBLISHED: Final = "published"
CHANGE: Final = "change"
AUTHORS: Final = "authors' code"
_CELL: Final = ("model", "variant", "dataset", "lookback", "horizon")
_SYSTEM: Final = ("dataset", "lookback", "horizon", "role", "model", "variant")
# Column of `results` -> (column of the table `rivals`, unit).
_COSTS: Final = {
    "part": ("share of windows", "share"),
    "params": ("parameters", "parameters"),
    "flops": ("FLOPs", "FLOPs"),
    "epochs": ("epochs", "epochs"),
    "best_epoch": ("best epoch", "epochs"),
}
_SECONDS: Final = "s per epoch"
_ENOUGH: Final = 3  # models that the pages `rivals` need at least
# Higher errors, in medians of a panel, would press the others of the figure `rivals` together.
_HIGHEST: Final = 1.5
_COLUMNS: Final = (
    "share of windows",
    "parameters",
    f"parameters less {AUTHORS}",
    "FLOPs",
    "epochs",
    "best epoch",
    _SECONDS,
    *METRICS.values(),
    f"MSE, {AUTHORS}",
    f"MSE, {PUBLISHED}",
)


@page(
    "table",
    "reproduction",
    title="Dense test errors and the published ones",
    caption="""
Dense test errors and the published errors, with their publication.
Models with attention are compared in the sizes that their authors used. An error within 3 percent
of the published one, or below it, counts as reproduced.
""",
    layout=Layout(
        (*_CELL, "metric", "verdict", "publication"),
        "method",
        best=False,
        kept=("model", "dataset", "verdict"),
    ),
    notes=(
        f"Reproduced: a mean within {TOLERANCE:g} % of the published error, or lower.",
        Note(
            "better",
            f"Better: more than {TOLERANCE:g} % below the published error. This is a "
            "deviation, too; different settings are the likely cause. The number of PatchTST was "
            "measured by another paper; the runs here have the settings of the "
            "Time-Series-Library.",
        ),
    ),
)
def reproduction(frames: Frames) -> pd.DataFrame:
    """Dense test errors and published errors.

    Models with attention are compared in their variant `published`, other models in any variant.
    The methods are `measured`, `published` and `change` (percent). The last key columns are a
    verdict (better, within 3 %, worse, diverged) and the publication.

    Raises:
        Absent: if there is no published error for any run.
    """
    rows = in_domain(methods.tested(frames.results), phase="dense")
    rows = rows[(rows["variant"] == "published") | ~methods.has_sites(rows)]
    keys = ["model", "dataset", "lookback", "horizon"]
    tables = []
    for metric, name in METRICS.items():
        table = methods.summary(rows, ["variant", *keys], metric).assign(method=MEASURED, unit="")
        numbers = published()[[*keys, metric, "publication"]].rename(columns={metric: PUBLISHED})
        table = table.merge(numbers, on=keys).assign(metric=name)
        change = 100 * (table["mean"] / table[PUBLISHED] - 1)
        table["verdict"] = change.map(_verdict)
        cited = table.assign(method=PUBLISHED, mean=table[PUBLISHED], sd=np.nan, n=0, missing=0)
        tables += [table, cited, table.assign(method=CHANGE, mean=change, sd=np.nan, unit="%")]
    table = pd.concat(tables, ignore_index=True).drop(columns=PUBLISHED)
    if table.empty:
        raise Absent(
            "There is no published error for any run: models with attention need the variant "
            "`published`, a benchmark dataset and its published lookback (experiment "
            "`reproduction`)."
        )
    return methods.arrange(table, _CELL, [MEASURED, PUBLISHED, CHANGE])


@page(
    "figure",
    "reproduction",
    title="Deviation of the dense test errors from the published ones",
    caption="""
Deviation of the measured test errors of dense models from the published errors, in percent, by
model, dataset and horizon. Errors in the grey band of ±3 percent, or left of it, count as
reproduced. A lower error is a deviation, too.
""",
)
def deviations(frames: Frames) -> Figure:
    """The changes of the table `reproduction`, with the band that counts as reproduced.

    Raises:
        Absent: if the table raises it.
    """
    table = reproduction(frames)
    rows = table[(table["method"] == CHANGE) & np.isfinite(table["mean"])]
    keys = ["model", "dataset", "horizon"]
    cells = rows[[*_CELL]].drop_duplicates().reset_index(drop=True)
    if cells.duplicated(keys).any():
        keys.insert(1, "variant")
    places = {cell: i for i, cell in enumerate(cells.itertuples(index=False, name=None))}
    figure = style.canvas(height=1.1 + 0.16 * len(cells))
    axis = figure.subplots()
    band = f"within {TOLERANCE:g} %"
    axis.axvspan(-TOLERANCE, TOLERANCE, color="#e6e6e6", lw=0, label=band, zorder=0)
    axis.axvline(0, color=style.BLACK, lw=0.8, zorder=1)
    marks = style.marks(METRICS.values())
    for metric, part in rows.groupby("metric", observed=True):
        y = [places[cell] for cell in part[[*_CELL]].itertuples(index=False, name=None)]
        mark = marks[str(metric)]
        axis.plot(
            part["mean"], y, ls="none", marker=mark.marker, color=mark.colour, label=str(metric)
        )
    axis.set_yticks(range(len(cells)), cells[keys].astype(str).agg(" ".join, axis=1))
    axis.set_ylim(len(cells) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("deviation from published (%)")
    axis.set_ylabel("model")
    axis.set_title("dense models")
    style.legend_below(figure, [axis])
    return figure


@page(
    "table",
    "rivals",
    title="Every dense network: its cost, its test error, and that of its authors",
    caption="""
Cost and test error of every dense network, next to the error of its authors' code, trained with the
same protocol, and the published error.
""",
    layout=Layout(_SYSTEM, "method", best=False, kept=("model",)),
    notes=(
        "Epochs: the number that was trained; the weights of the best epoch by validation are "
        "kept. Seconds per epoch: the median over epochs of training and validation, on the "
        "machine and under the load of that run.",
        Note(
            "share of",
            "Share of windows: the share of the training windows in an epoch, if less than 1.",
        ),
        Note(
            AUTHORS,
            "Authors' code: the published implementation, trained with its own recipe and one seed "
            "(`workflow/spat/study/authors_code.csv` lists sources and differences).",
        ),
        Note(
            f"parameters less {AUTHORS}",
            "Parameters less authors' code: the number of parameters minus that of the published "
            "code at the same setting (`workflow/spat/study/authors_parameters.csv` gives the "
            "reasons).",
        ),
        Note(PUBLISHED, "Published: the printed number, where there is one for this lookback."),
    ),
)
def rivals(frames: Frames) -> pd.DataFrame:
    """Cost and test error of the dense networks, with reference errors.

    Columns: dataset, lookback, horizon, role, model, variant, method (the quantity), mean, sd, n,
    missing and unit. Values are means over seeds. The reference errors have no deviation.

    Raises:
        Absent: if `authors_code.csv` has errors for fewer than three of the trained models.
    """
    rows = in_domain(methods.tested(frames.results), phase=DENSE)
    rows = rows.assign(role=rows["model"].map(methods.role))
    rows = rows[rows["role"] != "naive"].reset_index(drop=True)
    # Shown only if a network did not see all windows.
    rows["part"] = rows["share"].mask(rows["share"] == 1.0)
    history = frames.history[frames.history["stage"] == "pretrain"]
    run = ["dataset", "model", "variant", "lookback", "horizon", "seed"]
    seconds = history.groupby(run, observed=True)["seconds"].median().rename(_SECONDS)
    rows = rows.merge(seconds.reset_index(), on=run, how="left")
    keys = [*_SYSTEM]
    tables = [
        methods.summary(rows, keys, column).assign(method=name, unit=unit)
        for column, (name, unit) in _COSTS.items()
    ]
    timed = rows.dropna(subset=_SECONDS)
    tables.append(methods.summary(timed, keys, _SECONDS).assign(method=_SECONDS, unit="s"))
    for metric, name in METRICS.items():
        tables.append(methods.summary(rows, keys, metric).assign(method=name, unit=""))
    cells = rows[keys].drop_duplicates()
    named = ["model", "dataset", "lookback", "horizon"]
    trained = cells.merge(authors_code()[[*named, "variant", "mse"]], on=[*named, "variant"])
    if trained["model"].nunique() < _ENOUGH:
        raise Absent(
            f"`authors_code.csv` has errors for fewer than {_ENOUGH} of the trained models: "
            "train models at their published settings on ETTh1, from 96 to 96 steps (experiment "
            "`rivals`)."
        )
    printed = cells.merge(published()[[*named, "mse"]], on=named)
    counted = rows[[*keys, "params"]].drop_duplicates(keys).merge(authors_parameters(), on=named)
    # The comparison needs a variant of the same sizes.
    counted = counted[counted["params"] == counted["parameters"] + counted["difference"]]
    for numbers, column, method, unit in (
        (counted, "difference", f"parameters less {AUTHORS}", "parameters"),
        (trained, "mse", f"MSE, {AUTHORS}", ""),
        (printed, "mse", f"MSE, {PUBLISHED}", ""),
    ):
        numbers = numbers[keys].assign(mean=numbers[column])
        tables.append(numbers.assign(method=method, sd=np.nan, n=0, missing=0, unit=unit))
    table = pd.concat(tables, ignore_index=True).dropna(subset="mean")
    table["method"] = methods.present(table["method"], _COLUMNS)
    return methods.sort_rows(
        table[[*keys, "method", "mean", "sd", "n", "missing", "unit"]], [*keys, "method"]
    )


@page(
    "figure",
    "rivals",
    title="Test error of every system against its FLOPs and parameters",
    caption="""
Test MSE against the floating-point operations of one forecast, on a logarithmic scale; lower left
is better. The axis ends at 1.5 times the median; a higher error is drawn at its end, with its
number. The area of a mark grows with the square root of the number of parameters. Values are means
over seeds. For a model that was pruned, a line joins the dense model, the model pruned by SPAT at
the ratio chosen on validation, and the model without attention. Variants of a model share a mark.
If there are many cells, each dataset is shown at its shortest horizon.
""",
)
def trade_off(frames: Frames) -> Figure:
    """Test MSE against FLOPs; the area of a mark shows the number of parameters.

    Raises:
        Absent: if fewer than three models were trained, or none has attention sites.
    """
    changed = methods.at_home(frames)
    changed = changed[changed["method"].isin([CHOSEN, NONE_LEFT])]
    dense = in_domain(methods.tested(frames.results), phase=DENSE).assign(method=DENSE)
    dense = dense[dense["model"].map(methods.role) != "naive"]
    rows = pd.concat([dense, changed], ignore_index=True)
    if rows["model"].nunique() < _ENOUGH:
        raise Absent(f"Fewer than {_ENOUGH} models were trained: there is little to compare.")
    place = ["dataset", "lookback", "horizon"]
    shortest = rows.groupby("dataset")["horizon"].transform("min") == rows["horizon"]
    if len(rows[place].drop_duplicates()) > style.FACETS:
        rows = rows[shortest]
    rows = rows.merge(rows[place].drop_duplicates().iloc[: style.FACETS])
    system = ["model", "variant"]
    by = [*place, *system, "method"]
    rows = rows.groupby(by, sort=False)[["flops", "mse", "params"]].mean().reset_index()
    rows["size"] = 14 + 60 * np.sqrt(rows["params"] / rows["params"].max())
    pruned = set(rows.loc[rows["method"] != DENSE, "model"])
    single = rows[place].drop_duplicates()["dataset"].is_unique
    parts = style.panels(rows, ["dataset"] if single else place)
    figure, axes = style.grid(len(parts), height=2.4 if len(parts) == 1 else 1.6, extra=1.0)
    for axis, (title, part) in zip(axes, parts, strict=True):
        highest = _limit(axis, part)
        for (model, _), shown in part.assign(mse=part["mse"].clip(upper=highest)).groupby(system):
            if model in pruned:
                _pruned(axis, shown.sort_values("flops", ascending=False), str(model))
                continue
            mark = style.mark(str(model))
            axis.scatter(
                shown["flops"], shown["mse"], s=shown["size"], marker=mark.marker,
                color=mark.colour, alpha=0.8, lw=0, label=model, zorder=2, clip_on=False,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.margins(0.15)
        _label_decades(axis)
        axis.set_title(title)
    style.label(axes, "FLOPs of a forecast", "test MSE")
    style.legend_below(figure, axes, columns=2)
    return figure


def _limit(axis: Axes, rows: pd.DataFrame) -> float:
    """End the y axis at `_HIGHEST` medians if there are higher errors, and write their numbers.

    Returns the end of the axis, at which higher errors are drawn, or infinity.
    """
    highest = _HIGHEST * rows["mse"].median()
    above = rows[rows["mse"] > highest]
    if above.empty:
        return np.inf
    lowest = rows["mse"].min()
    axis.set_ylim(lowest - 0.1 * (highest - lowest), highest)
    for _, part in above.groupby("model"):
        ends = sorted({f"{error:.3f}" for error in (part["mse"].min(), part["mse"].max())})
        right = part["flops"].mean() ** 2 > rows["flops"].min() * rows["flops"].max()
        axis.annotate(
            f"↑ {' to '.join(ends)}", (part["flops"].mean(), highest),
            xytext=(-8 if right else 8, -3), textcoords="offset points", va="top",
            ha="right" if right else "left",
        )  # fmt: skip
    return float(highest)


def _label_decades(axis: Axes) -> None:
    """Label powers of ten on a logarithmic x axis, and more numbers if there is at most one."""
    axis.xaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_xlim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), np.arange(1, 10, 0.5)):
        values = np.outer(powers, factors).ravel()
        values = values[(low <= values) & (values <= high)]
        if len(values) > 1:
            break
    if len(factors) > 1:
        axis.xaxis.set_major_locator(FixedLocator(values.tolist()))
        axis.xaxis.set_major_formatter(
            LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf), labelOnlyBase=False)
        )


@cache
def published() -> pd.DataFrame:
    """Published errors: model, dataset, lookback, horizon, mse, mae, confirmed, publication."""
    file = resources.files("spat.study") / "published.csv"
    with file.open() as stream:
        return pd.read_csv(stream)


@cache
def authors_code() -> pd.DataFrame:
    """Test errors of the authors' code, trained with the data protocol of this project, one seed.

    Columns: model and variant (those of this project with the same recipe), dataset, lookback,
    horizon, parameters, mse, mae, source (repository and script) and note (what differs).
    """
    file = resources.files("spat.study") / "authors_code.csv"
    with file.open(encoding="utf-8") as stream:
        return pd.read_csv(stream, keep_default_na=False)


@cache
def authors_parameters() -> pd.DataFrame:
    """The number of parameters of the authors' code at its published settings.

    Columns: model (of this project), dataset, lookback, horizon, channels, d_model (if the counted
    network has another width than the published settings of this project), parameters, difference
    (parameters of this project's model minus these), why (what this project's model leaves out or
    adds) and source (repository and script).
    """
    file = resources.files("spat.study") / "authors_parameters.csv"
    with file.open(encoding="utf-8") as stream:
        return pd.read_csv(stream, keep_default_na=False)


def _verdict(change: float) -> str:
    if np.isnan(change):
        return "diverged"
    if abs(change) <= TOLERANCE:
        return f"within {TOLERANCE:g} %"
    return "better" if change < 0 else "worse"


def _pruned(axis: Axes, rows: pd.DataFrame, model: str) -> None:
    """Draw the dense and the pruned networks of a model, in its colour."""
    colour = style.mark(model).colour
    axis.plot(rows["flops"], rows["mse"], color=colour, lw=0.8, zorder=1)
    for method in (DENSE, CHOSEN, NONE_LEFT):
        marker = style.mark(model if method == DENSE else method).marker
        at = rows[rows["method"] == method]
        label = model if method == DENSE else f"{model}, {method}"
        axis.scatter(
            at["flops"], at["mse"], s=at["size"], marker=marker, color=colour, alpha=0.9, lw=0,
            label=label, zorder=3, clip_on=False,
        )  # fmt: skip
