"""What does pruning save, and at what error?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from spat.study import methods
from spat.study.accuracy import NOTE_CHOSEN, NOTE_PAIRED
from spat.study.methods import CHOSEN, CONTROL, DENSE, NONE_LEFT, SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.pages.render import same
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
MILLION: Final = 1e6
# Methods drawn as larger open marks, since they share their place with another method.
RINGS: Final = (CHOSEN, CONTROL)
DOTS: Final = "#bbbbbb"


@page(
    "table",
    "efficiency",
    title="What pruning saves: the values of the dense model and the change against them",
    caption="""
What pruning saves, and what it does to the error.
The first column holds the values of the dense model; the other columns hold changes against them in
percent.
Latency and peak memory were measured on an otherwise idle machine, dense and pruned models in
alternation.
The last rows average over all cells and give the averages that the SPAT paper (arXiv 2505.08768)
reports.
""",
    layout=Layout((*SHOWN, "metric"), "method", best=False),
    notes=(
        f"Paper: average changes reported in {PAPER_TITLE}.",
        "Averages: seeds first, then horizons, datasets of a source, sources, models.",
        NOTE_CHOSEN,
        NOTE_PAIRED,
    ),
)
def efficiency(frames: Frames) -> pd.DataFrame:
    """Errors and costs: those of the dense model, and the change against it of each method.

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
    table = pd.concat([cells, _averages(rows, changes)])
    table = table.astype({"lookback": "str", "horizon": "str"}).dropna(subset="mean")
    table["method"] = methods.ordered(
        table["method"], [*methods.in_order(set(table["method"]) - {PAPER}), PAPER]
    )
    return table.reset_index(drop=True)


def _averages(rows: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Average change per quantity and method over all cells (of `runs` runs), and the paper's."""
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
    names = {k: rows[k].iloc[0] if same(rows[k]) else "all" for k in SHOWN}
    names["dataset"] = AVERAGE
    return table.assign(**names, sd=float("nan"), n=0, missing=0, unit="%")


@page(
    "figure",
    "pareto",
    title="Test error against FLOPs",
    caption="""
Test error against the number of floating-point operations of one forecast. Lower left is better.
Points are means over seeds, bars standard deviations. The line joins SPAT's ratios, up to no
attention left; the large open marks are the control and the ratio chosen on validation; small grey
dots are all other masks that were fine-tuned.
A baseline whose error is far outside the panel is given in brackets in the title.
Where there are too many cells for a panel each, both axes are relative to the dense model.
""",
)
def pareto(frames: Frames) -> Figure:
    """Test MSE against FLOPs: one panel a cell, or changes against dense where there are many.

    Points are means over seeds, bars standard deviations. Grey dots are all other site masks, over
    the seeds in which no method chose them. A line joins SPAT's ratios up to `none left`.

    Raises:
        Absent: if no model has attention sites.
    """
    rows, masks = _points(frames)
    keys, cells = style.split(rows)
    if cells:
        scaled = [r.assign(x=r["flops"] / MILLION, y=r["mse"]) for r in (rows, masks)]
        baselines = methods.baselines(rows, frames.results)
        baselines = baselines.assign(x=baselines["flops"] / MILLION, y=baselines["mse"])
    else:
        scaled = [_relative(r, rows, {"flops": "x", "mse": "y"}) for r in (rows, masks)]
        scaled = [r.assign(y=r["y"] - 100) for r in scaled]
        baselines = scaled[0].iloc[:0]
    labels = ("FLOPs (million)", "test MSE") if cells else ("FLOPs (%)", "MSE change (%)")
    return _scatter(scaled[0], scaled[1], baselines, keys, labels)


@page(
    "figure",
    "latency",
    title="Latency against FLOPs",
    caption="""
Measured time of a forward pass of the largest batch (`measure.batch_sizes`) against its
floating-point operations, both in percent of the dense model.
On the dotted diagonal, time falls as operations do; above it, part of the saving is lost to work
that pruning does not change.
""",
)
def latency(frames: Frames) -> Figure:
    """Measured latency of the largest batch against FLOPs, both in percent of the dense model.

    On the diagonal, time falls as operations do.

    Raises:
        Absent: if no latency was measured.
    """
    rows, masks = (r[r["latency_ms"].notna()] for r in _points(frames))
    if rows.empty:
        raise Absent("No latency was measured in this experiment.")
    keys, _ = style.split(rows)
    scaled = [_relative(r, rows, {"flops": "x", "latency_ms": "y"}) for r in (rows, masks)]
    labels = ("FLOPs (%)", "latency of the\nlargest batch (%)")
    figure = _scatter(scaled[0], scaled[1], scaled[0].iloc[:0], keys, labels)
    for axis in figure.axes:
        axis.axline((100, 100), slope=1, color=style.GREY, lw=0.6, ls=":", zorder=0)
    return figure


def _points(frames: Frames) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(methods, all other fine-tuned site masks) of each run on its own dataset."""
    rows = methods.at_home(frames)
    tuned = methods.tested(frames.results)
    tuned = tuned[(tuned["phase"] == "finetuned") & (tuned["target"] == tuned["dataset"])]
    masks = having(tuned, is_site_mask)
    named = pd.MultiIndex.from_frame(rows[[*RUN, "mask"]])
    return rows, masks[~pd.MultiIndex.from_frame(masks[[*RUN, "mask"]]).isin(named)]


def _relative(rows: pd.DataFrame, named: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Columns in percent of the dense model of the same run, under new names."""
    dense = named.loc[named["method"] == DENSE, [*RUN, *columns]]
    joined = rows.merge(dense, on=list(RUN), how="left", suffixes=("", "_dense"))
    return joined.assign(
        **{new: 100 * joined[old] / joined[f"{old}_dense"] for old, new in columns.items()}
    )


def _scatter(
    rows: pd.DataFrame,
    masks: pd.DataFrame,
    baselines: pd.DataFrame,
    keys: Sequence[str],
    labels: tuple[str, str],
) -> Figure:
    names = list(baselines["method"].unique()) if len(baselines) else []
    order = methods.in_order([*rows["method"].unique(), *names])
    marks = _marks(order, names)
    parts = style.panels(rows, keys)
    figure, axes = style.grid(len(parts), extra=0.75)
    for axis, (title, part) in zip(axes, parts, strict=True):
        here = part[list(keys)].drop_duplicates()
        cloud = masks.merge(here, on=list(keys)).groupby([*keys, "mask"])[["x", "y"]].mean()
        if len(cloud):
            axis.plot(cloud["x"], cloud["y"], ".", ms=3, color=DOTS, label="other masks", zorder=1)
        points = _means(pd.concat([part, baselines.merge(here, on=list(keys))]))
        path = [m for m in points.index if m.endswith("%") or m == NONE_LEFT]
        axis.plot(points.loc[path, "x"], points.loc[path, "y"], color=style.GREY, lw=0.7, zorder=2)
        others = points["y"].drop(names, errors="ignore")
        outside = [title]
        for method in order:
            x, y, deviation = points.reindex([method]).to_numpy(dtype=float)[0]
            if method in names and _far(y, others):
                # Above the panel, where it covers no point.
                outside.append(f"({method}: {y:.3f})")
                continue
            mark, ring = marks[method], method in RINGS
            axis.errorbar(
                x, y, yerr=deviation, color=mark.colour, marker=mark.marker, ls="none",
                ms=6.5 if ring else 4, mfc="none" if ring else mark.colour, elinewidth=0.7,
                label=method, zorder=3,
            )  # fmt: skip
        axis.set_title("\n".join(outside))
        axis.margins(0.12)
    style.label(axes, *labels)
    style.legend_below(figure, axes)
    return figure


def _marks(order: Sequence[str], baselines: Sequence[str]) -> dict[str, style.Mark]:
    """Black and grey for what SPAT is compared with, colours for the masks."""
    fixed = {
        DENSE: style.Mark(style.BLACK, "o", "-", ""),
        CONTROL: style.Mark(style.BLACK, "s", "-", ""),
    }
    markers = zip(baselines, ("P", "X", "d", "*", "h", "p"), strict=False)
    fixed |= {name: style.Mark(style.GREY, marker, "-", "") for name, marker in markers}
    return style.marks(m for m in order if m not in fixed) | fixed


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """x, y and the deviation of y per method: over seeds, or over the cells of a panel."""
    table = rows.groupby("method").agg(x=("x", "mean"), y=("y", "mean"), sd=("y", "std"))
    return table.fillna({"sd": 0.0}).loc[methods.in_order(table.index)]


def _far(value: float, others: pd.Series) -> bool:
    """Whether a point at `value` would compress all other points."""
    span = others.max() - others.min()
    return bool(value > others.max() + 2 * span or value < others.min() - 2 * span)
