"""The results of an experiment as one web page, which needs no server and no network.

Plotly draws the interactive figures, and DataTables the sortable tables. The page contains the code
of both and has about five megabytes.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from importlib import resources
from typing import Final

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment
from plotly.offline import get_plotlyjs

from spat.study import accuracy, efficiency, hypotheses, methods
from spat.study.methods import CHOSEN, NONE_LEFT, SHOWN
from spat.study.pages import registry, render, style
from spat.study.pages.page import Absent, Page
from spat.study.pages.reader import Frames

# The marker of plotly for that of matplotlib.
SYMBOLS: Final = {
    "o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond",
    "d": "diamond-tall", "P": "cross", "X": "x", "<": "triangle-left", ">": "triangle-right",
    "*": "star", "h": "hexagon", "p": "pentagon", "8": "octagon",
}  # fmt: skip
_FIRST: Final = "main"


@dataclass(frozen=True)
class _Plot:
    """An interactive figure, which shows the values under the pointer."""

    name: str
    text: str
    html: str


@dataclass(frozen=True)
class _Cell:
    """The sort key of a cell, its text, and its style: best, second or none."""

    order: str
    text: str
    style: str = ""


@dataclass(frozen=True)
class _Table:
    """The column names and the rows of a table."""

    columns: list[str]
    rows: list[list[_Cell]]


@dataclass(frozen=True)
class _Part:
    """A table, or a figure as a PNG in base64."""

    kind: str
    name: str
    title: str
    content: _Table | str
    notes: str
    open: bool


def index(frames: Frames, experiment: str) -> str:
    """The page of an experiment as HTML.

    It contains a verdict as text, two interactive figures, every table and figure that the frames
    have data for, and the provenance of the results (commits, devices and precisions).
    """
    plots = [plot for plot in (_pareto(frames), _forest(frames)) if plot is not None]
    plots = [replace(plot, text=frames.words.text(plot.text)) for plot in plots]
    groups = {
        title: [part for name in names for part in _parts(name, frames)]
        for title, names in registry.GROUPS.items()
    }
    groups = {title: parts for title, parts in groups.items() if parts}
    template = resources.files("spat.study.pages").joinpath("index.html")
    code = Environment(autoescape=True).from_string(template.read_text(encoding="utf-8"))
    return code.render(
        experiment=experiment,
        sections=["Verdict", *(plot.name for plot in plots), *groups, "Provenance"],
        verdict=[frames.words.text(line) for line in verdict(frames)],
        plots=plots,
        groups=groups,
        provenance=_provenance(frames),
        plotly=get_plotlyjs(),
        datatables=_bundle("dt_bundle.js"),
        style=_bundle("dt_bundle.css"),
    )


def _bundle(name: str) -> str:
    """A file of the DataTables build in the package itables, in base64."""
    return base64.b64encode((resources.files("itables") / "html" / name).read_bytes()).decode()


def verdict(frames: Frames) -> list[str]:
    """The results of pruning as text: one sentence for each model and method."""
    try:
        changes = accuracy.better(frames)
    except Absent as absent:
        return [str(absent)]
    means = hypotheses.means_of_sources(frames)
    lines = []
    for (model, variant), part in changes.groupby(["model", "variant"], sort=False):
        for method, what in (
            (CHOSEN, "SPAT at the ratio that validation chooses"),
            (NONE_LEFT, "Removing all attention"),
        ):
            cells = part[part["method"] == method]
            if cells.empty:
                continue
            better, worse = int((cells["high"] < 0).sum()), int((cells["low"] > 0).sum())
            sources = means.get((str(model), str(variant))) if method == CHOSEN else None
            lines.append(
                f"{what} changes the test MSE of {model} ({variant}) by "
                f"{render.number(cells['mean'].mean(), '%')} % on average over {len(cells)} "
                f"{'cell' if len(cells) == 1 else 'cells'}, against the better of dense model and "
                f"control. The 95 % interval lies below zero in {better}, above zero in {worse}."
            )
            if sources is not None:
                row = sources.iloc[0]
                mean, low, high = (render.number(row[k], "%") for k in ("mean", "low", "high"))
                lines[-1] += (
                    f" The mean over {row['n']} independent data sources is {mean} % "
                    f"[{low}, {high}]."
                )
    return lines


def _pareto(frames: Frames) -> _Plot | None:
    try:
        points, _, _ = efficiency.pareto_points(frames)
    except Absent:
        return None
    figure = go.Figure()
    for method in methods.in_order(points["method"]):
        rows = points[points["method"] == method]
        cells = rows.drop(columns=["x", "y", "low", "high", "method"]).astype(str)
        mark = style.mark(method)
        figure.add_scatter(
            x=rows["x"], y=rows["y"], mode="markers", name=method, text=cells.agg(" ".join, axis=1),
            marker={"color": mark.colour, "symbol": SYMBOLS[mark.marker], "size": 9},
            hovertemplate=frames.words.text("%{text}<br>FLOPs %{x:.1f} %, MSE %{y:+.2f} %"),
        )  # fmt: skip
    figure.update_xaxes(title="FLOPs (% of the dense model)")
    figure.update_yaxes(title=frames.words.text("test MSE against the control (%)"))
    text = "Each mark is a method in one cell (dataset, model, horizon). Lower and further left is "
    return _Plot("Pareto", text + "better.", _html(figure, 460))


def _forest(frames: Frames) -> _Plot | None:
    try:
        rows = accuracy.better(frames)
    except Absent:
        return None
    rows = rows[rows["method"].isin([CHOSEN, NONE_LEFT])]
    if rows.empty:
        return None
    cells = rows[[*SHOWN]].drop_duplicates()
    keys = [key for key in SHOWN if key == "dataset" or not render.all_equal(cells[key])]
    figure = go.Figure()
    for method in methods.in_order(rows["method"]):
        part = rows[rows["method"] == method]
        names = part[keys].astype(str).agg(" ".join, axis=1)
        mark = style.mark(method)
        figure.add_scatter(
            x=part["mean"], y=names, mode="markers", name=method, orientation="h",
            error_x={
                "type": "data", "symmetric": False, "thickness": 1.5, "width": 0,
                "array": part["high"] - part["mean"], "arrayminus": part["mean"] - part["low"],
            },
            marker={"color": mark.colour, "symbol": SYMBOLS[mark.marker], "size": 9},
            customdata=part[["low", "high", "n"]],
            hovertemplate="%{y}<br>%{x:+.2f} % [%{customdata[0]:+.2f}, %{customdata[1]:+.2f}], "
            "%{customdata[2]} seeds",
        )  # fmt: skip
    figure.add_vline(x=0, line_width=1)
    figure.update_layout(scattermode="group")
    figure.update_yaxes(autorange="reversed")
    ends = rows[["mean", "low", "high"]].to_numpy(dtype=float)
    low, high = min(0.0, float(np.nanmin(ends))), max(0.0, float(np.nanmax(ends)))
    room = 0.05 * (high - low) + 0.1
    title = frames.words.text("change of the test MSE (%)")
    figure.update_xaxes(title=title, range=[low - room, high + room])
    text = (
        "Change against the dense model or the control, whichever has the lower validation error, "
        "with 95 % intervals. "
        "Left of the line the pruned network is better."
    )
    return _Plot("Forest", text, _html(figure, 140 + 34 * len(cells)))


def _html(figure: go.Figure, height: int) -> str:
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": -0.25}, font={"size": 12},
    )  # fmt: skip
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    # A bar of buttons would cover the upper marks on a telephone.
    config = {"responsive": True, "displayModeBar": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def _parts(name: str, frames: Frames) -> list[_Part]:
    """The table and the figure of a name, if the frames have data for them."""
    parts = []
    table, figure = registry.tables().get(name), registry.figures().get(name)
    if table is not None and (made := _table(table, frames)):
        title = frames.words.page(table).title
        parts.append(_Part("table", name, title, *made, open=name == _FIRST))
    if figure is not None:
        figure = frames.words.page(figure)
        try:
            drawn = registry.draw(name, frames)
        except Absent:
            return parts
        stream = io.BytesIO()
        with style.drawing():
            drawn.savefig(stream, format="png", metadata={"Software": None})
        code = base64.b64encode(stream.getvalue()).decode()
        notes = " ".join(figure.caption.split())
        parts.append(_Part("figure", name, figure.title, code, notes, open=False))
    return parts


def _table(page: Page, frames: Frames) -> tuple[_Table, str] | None:
    """A sortable table and its notes."""
    try:
        page, frame = registry.page_and_table(page, frames)
    except Absent:
        return None
    assert page.layout is not None
    sheet = render.sheet(frame, page.layout, page.notes)
    return _Table(
        [*map(render.title, sheet.keys), *sheet.columns],
        [[*(_Cell(key, key) for key in keys), *map(_cell, cells)] for keys, cells in sheet.body],
    ), " ".join(sheet.notes)


def _cell(cell: render.Cell) -> _Cell:
    """A cell of a sortable table, from a cell of a sheet."""
    text = cell.line({"best": "%s", "second": "%s", "": "%s"})
    return _Cell(render.value(cell.value), text, cell.style)


def _provenance(frames: Frames) -> _Table:
    """The commits, devices and precisions of the networks, with the number of seeds and rows."""
    rows = frames.results
    keys = ["dataset", "model", "variant", "precision", "device", "commit"]
    groups = rows.groupby(keys, sort=False)
    counted = groups.agg(seeds=("seed", "nunique"), rows=("mask", "size")).reset_index()
    return _Table(
        [*counted.columns],
        [
            [_Cell(str(value), str(value)) for value in row]
            for row in counted.itertuples(index=False)
        ],
    )
