"""What does pruning save, and at what error?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spat.models.registry import MODELS
from spat.study import methods
from spat.study.accuracy import NOTE_CHOSEN, NOTE_PAIRED, changes
from spat.study.methods import CHOSEN, CONTROL, DENSE, SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, Note, page
from spat.study.pages.reader import Frames
from spat.study.pages.render import all_equal
from spat.study.statistics.averages import weights
from spat.study.statistics.cells import RUN, having, is_site_mask

PAPER: Final = "paper"
PAPER_TITLE: Final = "arXiv 2505.08768"
# Average changes that the paper reports, in percent.
PAPER_AVERAGES: Final = {"MSE": -2.842, "MAE": -1.996, "FLOPs": -35.274, "Parameters": -28.191}
AVERAGE: Final = "average"
# Column of `results` -> (name, unit), in the order of the table.
QUANTITIES: Final = {
    "mse": ("MSE", ""),
    "mae": ("MAE", ""),
    "flops": ("FLOPs", "FLOPs"),
    "params": ("Parameters", "parameters"),
    "latency_ms": ("Latency", "ms"),
    "memory_mb": ("Memory", "MB"),
}
# Methods drawn as larger open marks, since they lie at the position of another method.
RINGS: Final = (CHOSEN, CONTROL)
DOTS: Final = "#bbbbbb"


@page(
    "table",
    "efficiency",
    title="What pruning saves: the values of the dense model and the change against them",
    caption="""
What pruning saves, and how it changes the error.
The first column contains the values of the dense model; the other columns contain changes against
the dense model in percent.
Latency and peak memory were measured on an otherwise idle machine, dense and pruned models in
alternation.
The last rows average over all cells and give the averages that the SPAT paper (arXiv 2505.08768)
reports.
""",
    layout=Layout((*SHOWN, "metric"), "method", best=False),
    notes=(
        Note(PAPER, f"Paper: average changes reported in {PAPER_TITLE}."),
        "Averages: seeds first, then horizons, datasets of a source, sources, models.",
        NOTE_CHOSEN,
        NOTE_PAIRED,
    ),
)
def efficiency(frames: Frames) -> pd.DataFrame:
    """Errors and costs of the dense model, and the change of each method against it.

    Columns: dataset, model, variant, lookback, horizon, metric, method, mean, sd, n, missing, unit,
    absolute (mean of the value itself), runs and publication. `mean` is the value itself for the
    dense model and the baselines, otherwise the change against dense in percent, paired by seed.
    The last rows average the changes (seeds first, then horizons, datasets of a source, sources,
    models) and give the averages of the paper.

    Raises:
        Absent: if no model has attention sites.
    """
    rows = methods.at_home(frames).reset_index(drop=True)
    changes = methods.relative_to(rows, DENSE, list(QUANTITIES))
    baselines = methods.baselines(rows, frames.results)
    every = pd.concat([rows, baselines], ignore_index=True)
    tables = []
    for quantity, (name, unit) in QUANTITIES.items():
        absolute = methods.summary(every, [*SHOWN, "method"], quantity).assign(unit=unit)
        changed = methods.summary(
            rows.assign(change=changes[quantity]), [*SHOWN, "method"], "change"
        ).assign(unit="%")
        as_values = absolute["method"].isin([DENSE, *baselines["method"]])
        shown = pd.concat([absolute[as_values], changed[changed["method"] != DENSE]])
        values = absolute.rename(columns={"mean": "absolute"})[[*SHOWN, "method", "absolute"]]
        tables.append(shown.merge(values, on=[*SHOWN, "method"]).assign(metric=name))
    cells = methods.arrange(pd.concat(tables), SHOWN, methods.in_order(every["method"]))
    cells = cells.assign(metric=cells["metric"].astype(str), method=cells["method"].astype(str))
    averages = _averages(rows, changes)
    if not frames.words.forecasts:  # the paper's averages are for forecasting
        averages = averages[averages["method"] != PAPER]
    table = pd.concat([cells, averages])
    table = table.astype({"lookback": "str", "horizon": "str"}).dropna(subset="mean")
    table["method"] = methods.ordered(
        table["method"], [*methods.in_order(set(table["method"]) - {PAPER}), PAPER]
    )
    return table.reset_index(drop=True)


def _averages(rows: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Average change per quantity and method over all cells (`runs` runs), and in the paper."""
    tables = []
    for quantity, (name, _) in QUANTITIES.items():
        changed = rows.assign(change=changes[quantity])
        changed = changed[(changed["method"] != DENSE) & changed["change"].notna()]
        by = ["method", "model", "variant"]
        changed["change"] *= weights(changed, by)
        models = changed.groupby(by)["change"].agg(["sum", "size"]).reset_index()
        means = models.groupby("method").agg(mean=("sum", "mean"), runs=("size", "sum"))
        tables.append(means.reset_index().assign(metric=name, publication=""))
        if name in PAPER_AVERAGES:
            paper = {"method": PAPER, "mean": PAPER_AVERAGES[name], "publication": PAPER_TITLE}
            tables.append(pd.DataFrame([{**paper, "metric": name, "runs": 0}]))
    table = pd.concat(tables, ignore_index=True)
    names = {k: rows[k].iloc[0] if all_equal(rows[k]) else "all" for k in SHOWN}
    names["dataset"] = AVERAGE
    return table.assign(**names, sd=float("nan"), n=0, missing=0, unit="%")


@page(
    "figure",
    "pareto",
    title="Change of the test error against FLOPs",
    caption="""
Change of the test MSE against the control (percent) against the floating-point operations of one
forecast (percent of the dense model). Lower left is better; all panels have the same axes.
Points are means over seeds with 95 % intervals (paired bootstrap over test windows and seeds).
If panels join several cells, bars are standard deviations over runs. The line is the Pareto front:
the methods for which no other method is better in both quantities. Small grey dots are all other
fine-tuned masks. A method whose error is far outside the panel is given in brackets in the title.
""",
)
def pareto(frames: Frames) -> Figure:
    """Change of the test MSE against the control, against FLOPs; one panel a cell.

    If there are many cells, panels join them. Grey dots are all other site masks, averaged over the
    seeds in which no method chose them. The line joins the methods on the Pareto front.

    Raises:
        Absent: if no model has attention sites.
    """
    points, masks, rows = pareto_points(frames)
    keys, _ = style.split(rows)
    figure = _scatter(points, masks, rows, keys, front=True, sharex=True, sharey=True)
    style.label(figure.axes, "FLOPs (% of dense)", "MSE vs control (%)")
    return figure


def pareto_points(frames: Frames) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(methods, other masks, runs) of the figure `pareto`, with `x` and `y`.

    `x` is FLOPs in percent of the dense model, `y` the change of the test MSE against the control
    in percent. The methods are means over seeds with their intervals (`low`, `high`), one row for
    each panel of the figure.

    Raises:
        Absent: if no model has attention sites, or none was fine-tuned.
    """
    rows, masks = _points(frames)
    keys, cells = style.split(rows)
    baselines = methods.baselines(rows, frames.results)
    rows, masks, baselines = (_against_control(part, rows) for part in (rows, masks, baselines))
    points = _means(pd.concat([rows, baselines]), keys)
    if points.empty:
        raise Absent("Only the control was fine-tuned: no fine-tuned mask removes attention.")
    if cells and len(frames.losses):
        tested = changes(frames).set_index([*SHOWN, "method"])[["mean", "low", "high"]]
        tested.columns = pd.Index(["y", "low", "high"])
        points = points.set_index([*keys, "method"])
        points[["low", "high"]] = float("nan")
        points.update(tested)
        points = points.reset_index()
    return points, masks, rows


@page(
    "figure",
    "latency",
    title="Latency against FLOPs",
    caption="""
Measured time of a forward pass of the largest batch (`measure.batch_sizes`) against its
floating-point operations, both in percent of the dense model. Bars are standard deviations over
seeds. On the dotted diagonal, time falls in proportion to the operations. Above it, time falls by
less, since pruning does not change all parts of the work.
""",
)
def latency(frames: Frames) -> Figure:
    """Measured latency of the largest batch against FLOPs, both in percent of the dense model.

    On the diagonal, time falls in proportion to the operations.

    Raises:
        Absent: if no latency was measured.
    """
    rows, masks = (r[r["latency_ms"].notna()] for r in _points(frames))
    if rows.empty:
        raise Absent("No latency was measured in this experiment.")
    keys, _ = style.split(rows)
    rows, masks = (
        _relative(_relative(part, rows, "flops", "x"), rows, "latency_ms", "y")
        for part in (rows, masks)
    )
    figure = _scatter(_means(rows, keys), masks, rows, keys)
    for axis in figure.axes:
        axis.axline((100, 100), slope=1, color=style.GREY, lw=0.6, ls=":", zorder=0)
    style.label(figure.axes, "FLOPs (% of dense)", "latency of the\nlargest batch (%)")
    return figure


def _points(frames: Frames) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(methods, all other fine-tuned site masks) of each run, tested on its own dataset."""
    rows = methods.at_home(frames)
    tuned = methods.tested(frames.results)
    tuned = tuned[(tuned["phase"] == "finetuned") & (tuned["target"] == tuned["dataset"])]
    masks = having(tuned, is_site_mask)
    named = pd.MultiIndex.from_frame(rows[[*RUN, "mask"]])
    return rows, masks[~pd.MultiIndex.from_frame(masks[[*RUN, "mask"]]).isin(named)]


def _relative(rows: pd.DataFrame, named: pd.DataFrame, column: str, new: str) -> pd.DataFrame:
    """`rows` with `column` in percent of the dense model of the same run, as the column `new`."""
    dense = named.loc[named["method"] == DENSE, [*RUN, column]].rename(columns={column: "dense"})
    joined = rows.merge(dense, on=list(RUN), how="left")
    return joined.assign(**{new: 100 * joined[column] / joined["dense"]}).drop(columns="dense")


def _against_control(rows: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """`x`: FLOPs in percent of the dense model; `y`: change of the MSE against the control."""
    control = named.loc[named["method"] == CONTROL, [*RUN, "mse"]].drop_duplicates(list(RUN))
    rows = _relative(rows, named, "flops", "x")
    rows = rows.merge(control.rename(columns={"mse": "control"}), on=list(RUN), how="left")
    return rows.assign(y=100 * (rows["mse"] / rows["control"] - 1))


def _means(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """`x` and `y` of each method in each panel, with `low` and `high` one deviation away."""
    groups = rows.groupby([*keys, "method"])
    table = groups.agg(x=("x", "mean"), y=("y", "mean"), sd=("y", "std")).reset_index()
    table = table.assign(low=table["y"] - table["sd"], high=table["y"] + table["sd"])
    return table.drop(columns="sd").dropna(subset=["x", "y"])


def _scatter(
    points: pd.DataFrame,
    masks: pd.DataFrame,
    rows: pd.DataFrame,
    keys: Sequence[str],
    *,
    front: bool = False,
    **share: bool,
) -> Figure:
    """One panel for each value of `keys`: the methods, their bars, and dots of all other masks."""
    low, high = _limits(points)
    order = methods.in_order(points["method"])
    parts = style.panels(rows, keys)
    figure, axes = style.grid(len(parts), extra=0.75, **share)
    for axis, (title, part) in zip(axes, parts, strict=True):
        here = part[list(keys)].drop_duplicates()
        cloud = masks.merge(here, on=list(keys)).groupby([*keys, "mask"])[["x", "y"]].mean()
        cloud = cloud[cloud["y"].between(low, high)]
        if len(cloud):
            axis.plot(cloud["x"], cloud["y"], ".", ms=3, color=DOTS, label="other masks", zorder=1)
        shown = points.merge(here, on=list(keys)).set_index("method")
        inside = shown[shown["y"].between(low, high)]
        if front:
            best = _front(inside)
            axis.plot(best["x"], best["y"], color=style.GREY, lw=0.8, label="front", zorder=2)
            axis.axhline(0, color=style.GREY, lw=0.5, ls=":", zorder=0)
        places = inside.to_dict("index")
        for method in (name for name in order if name in places):
            x, y, below, above = (places[method][name] for name in ("x", "y", "low", "high"))
            mark, ring = style.mark(method), method in RINGS
            axis.errorbar(
                x, y, yerr=None if np.isnan(below) else [[y - below], [above - y]],
                color=mark.colour, marker=mark.marker, ls="none", ms=6.5 if ring else 4,
                mfc="none" if ring else mark.colour, elinewidth=0.7, label=method, zorder=3,
            )  # fmt: skip
        outside = shown.drop(inside.index)["y"]
        lines = [f"({method}: {_signed(y)})" for method, y in outside.items()]
        axis.set_title("\n".join([title, *lines]))
        axis.set_ylim(low, high)
        axis.margins(x=0.12)
    style.legend_below(figure, axes)
    return figure


def _limits(points: pd.DataFrame) -> tuple[float, float]:
    """The range of `y` for all panels: it contains most points of pruned models, with a margin."""
    known = points[~points["method"].isin(MODELS)]
    first, last = (float(value) for value in known["y"].quantile([0.1, 0.9]))
    room = 1.5 * max(last - first, 2.0)
    low = max(float(np.nanmin(points[["y", "low"]])), first - room)
    high = min(float(np.nanmax(points[["y", "high"]])), last + room)
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """The Pareto front: points for which no other is lower in both `x` and `y`, sorted by `x`."""
    ordered = points.sort_values(["x", "y"])
    return ordered[ordered["y"] <= ordered["y"].cummin()]


def _signed(value: float) -> str:
    return f"{value:+.1f} %".replace("-", "−")
