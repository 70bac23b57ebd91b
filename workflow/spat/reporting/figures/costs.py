"""Errors and time against floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from spat.evaluation.cells import is_site_mask
from spat.pipeline.frames import RUN
from spat.reporting import methods, style
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CHOSEN, CONTROL, DENSE, LIGHT, NONE_LEFT

MILLION: Final = 1e6
# Drawn larger and open, since they share their place with another method.
RINGS: Final = (CHOSEN, CONTROL)
DOTS: Final = "#bbbbbb"


def pareto(frames: Frames) -> Figure:
    """Test MSE against FLOPs: one panel a cell, or changes against dense where there are many.

    Points are means over seeds, bars standard deviations; grey dots are all other site masks, over
    the seeds that have no name for them. A line joins SPAT's ratios up to the last, `none left`.

    Raises:
        Absent: if no model has attention sites.
    """
    rows, masks = _own(frames)
    keys, cells = style.split(rows)
    if cells:
        scaled = [r.assign(x=r["flops"] / MILLION, y=r["mse"]) for r in (rows, masks)]
        light = methods.beside(rows, frames.results, LIGHT, LIGHT)
        light = light.assign(x=light["flops"] / MILLION, y=light["mse"])
    else:
        scaled = [_relative(r, rows, {"flops": "x", "mse": "y"}) for r in (rows, masks)]
        scaled = [r.assign(y=r["y"] - 100) for r in scaled]
        light = scaled[0].iloc[:0]
    labels = ("FLOPs (million)", "test MSE") if cells else ("FLOPs (%)", "MSE change (%)")
    return _scatter(scaled[0], scaled[1], light, keys, labels)


def latency(frames: Frames) -> Figure:
    """Measured latency of the largest batch against FLOPs, both in percent of the dense model.

    On the diagonal, time falls as operations do.

    Raises:
        Absent: if no latency was measured.
    """
    rows, masks = _own(frames)
    rows, masks = (r[r["latency_ms"].notna()] for r in (rows, masks))
    if rows.empty:
        raise Absent("No latency was measured in this experiment.")
    keys, _ = style.split(rows)
    scaled = [_relative(r, rows, {"flops": "x", "latency_ms": "y"}) for r in (rows, masks)]
    labels = ("FLOPs (%)", "latency of the\nlargest batch (%)")
    figure = _scatter(scaled[0], scaled[1], scaled[0].iloc[:0], keys, labels)
    for axis in figure.axes:
        axis.axline((100, 100), slope=1, color=style.GREY, lw=0.6, ls=":", zorder=0)
    return figure


def _own(frames: Frames) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(methods, all other fine-tuned site masks) of each run on its own dataset."""
    rows = methods.by_method(frames)
    rows = rows[rows["target"] == rows["dataset"]]
    tuned = methods.tested(frames.results)
    tuned = tuned[(tuned["phase"] == "finetuned") & (tuned["target"] == tuned["dataset"])]
    masks = methods.having(tuned, is_site_mask)
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
    light: pd.DataFrame,
    keys: Sequence[str],
    labels: tuple[str, str],
) -> Figure:
    order = methods.in_order([*rows["method"].unique(), *light["method"].unique()])
    looks = _looks(order)
    parts = style.panels(rows, keys)
    figure, axes = style.grid(len(parts), extra=0.75)
    for axis, (title, part) in zip(axes, parts, strict=True):
        here = part[list(keys)].drop_duplicates()
        cloud = masks.merge(here, on=list(keys)).groupby([*keys, "mask"])[["x", "y"]].mean()
        if len(cloud):
            axis.plot(cloud["x"], cloud["y"], ".", ms=3, color=DOTS, label="other masks", zorder=1)
        points = _points(pd.concat([part, light.merge(here, on=list(keys))]))
        path = [m for m in points.index if m.endswith("%") or m == NONE_LEFT]
        axis.plot(points.loc[path, "x"], points.loc[path, "y"], color=style.GREY, lw=0.7, zorder=2)
        reach = points["y"].drop(LIGHT, errors="ignore")
        axis.set_title(title)
        for method in order:
            x, y, deviation = points.reindex([method]).to_numpy(dtype=float)[0]
            if method == LIGHT and _far(y, reach):
                # Above the panel, where it covers no point.
                axis.set_title(f"{title}\n({LIGHT}: {y:.3f})")
                continue
            look, ring = looks[method], method in RINGS
            axis.errorbar(
                x, y, yerr=deviation, color=look.colour, marker=look.marker, ls="none",
                ms=6.5 if ring else 4, mfc="none" if ring else look.colour, elinewidth=0.7,
                label=method, zorder=3,
            )  # fmt: skip
        axis.margins(0.12)
    style.label(axes, *labels)
    style.legend_below(figure, axes)
    return figure


def _looks(order: Sequence[str]) -> dict[str, style.Look]:
    """Black and grey for what is compared with; colours for the masks."""
    fixed = {
        DENSE: style.Look(style.BLACK, "o", "-", ""),
        CONTROL: style.Look(style.BLACK, "s", "-", ""),
        LIGHT: style.Look(style.GREY, "P", "-", ""),
    }
    return style.looks(m for m in order if m not in fixed) | fixed


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """x, y and the deviation of y per method: over seeds, or over the cells of a panel."""
    table = rows.groupby("method").agg(x=("x", "mean"), y=("y", "mean"), sd=("y", "std"))
    return table.fillna({"sd": 0.0}).loc[methods.in_order(table.index)]


def _far(value: float, others: pd.Series) -> bool:
    """Whether a reference would press all other points together."""
    span = others.max() - others.min()
    return bool(value > others.max() + 2 * span or value < others.min() - 2 * span)
