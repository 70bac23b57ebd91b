"""What is the SEND of each site and head, and how does it develop over pre-training?"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spat.study import methods
from spat.study.pages import style
from spat.study.pages.page import Absent, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import ALL_BATCHES, RUN, WHOLE_SITE

# Rows of two panels that fit on a page.
ROWS: Final = 6


@page(
    "figure",
    "send_sites",
    title="SEND of each site, and over pre-training",
    caption="""
SEND of each attention module. Left: at the checkpoint that is pruned, as means over seeds with
standard deviations. Right: at the end of each epoch of pre-training; dashed lines mark the epochs
of the pruned checkpoints.
Modules with a low score are removed first. Sites are named by stack and layer: e0 is the first
encoder layer, e0r its routers, and d1× the cross-attention of the second decoder layer.
If panels join several cells, SEND is divided by its mean over the sites of a run at the kept
checkpoint. If there are more than six models, the first six are shown.
""",
)
def send_sites(frames: Frames) -> Figure:
    """SEND of each site at the kept checkpoint (left) and over pre-training (right).

    Dashed lines mark the kept epochs of all seeds (or cells). Bars and lines are means over seeds,
    whiskers standard deviations. If panels join several cells, SEND is divided by its mean over the
    sites of a run at the kept checkpoint.

    Raises:
        Absent: if there are no scores.
    """
    scores = frames.scores
    name = methods.reading(scores)
    final = kept(scores, name)
    final = final[final["head"] == WHOLE_SITE]
    epochs = scores[(scores["criterion"] == name) & (scores["head"] == WHOLE_SITE)]
    epochs = epochs[epochs["batch"] == ALL_BATCHES].sort_values("epoch")
    shown = style.mark(name).label
    keys, cells = style.split(final, ROWS)
    if not cells:
        final, epochs = by_mean(final, final), by_mean(epochs, final)
    parts = style.panels(final, keys)[:ROWS]
    checkpoints = scores.loc[scores["batch"] != ALL_BATCHES, [*RUN, "epoch"]].drop_duplicates()
    figure = style.canvas(height=1.35 * len(parts) + 0.65)
    axes = figure.subplots(len(parts), 2, squeeze=False, sharey="row")
    marks = style.marks(sorted(final["site"].unique().astype(str), key=int))
    for (left, right), (title, part) in zip(axes, parts, strict=True):
        here = part[keys].drop_duplicates()
        over = epochs.merge(here, on=keys)
        unit, suffix = style.power(pd.concat([part["value"], over["value"]]))
        _bars(left, part.assign(value=part["value"] / unit), marks)
        for site, rows in over.assign(value=over["value"] / unit).groupby("site"):
            mark = marks[str(site)]
            means = rows.groupby("epoch")["value"].mean()
            right.plot(
                means.index, means, color=mark.colour, marker=mark.marker, ls=mark.line, ms=3
            )
        for epoch in checkpoints.merge(here, on=keys)["epoch"].unique():
            right.axvline(epoch, color=style.BLACK, lw=0.8, ls="--", zorder=0, label="kept epoch")
        left.set(title=title, ylabel=f"{shown}{suffix}" if cells else f"{shown} / mean")
        right.set(title="over epochs")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1, 0].set_xlabel("site")
    axes[-1, 1].set_xlabel("epoch of pre-training")
    style.legend_below(figure, list(axes[:, 1]))
    return figure


@page(
    "figure",
    "send_heads",
    title="SEND of each site and head",
    caption="""
SEND of each head, as a heat map of sites and heads: do sites differ, or the heads within a site?
SEND is divided by its mean over all heads of the run, so that all panels have one scale. The order
of heads differs between seeds, so the heads of a site are sorted by SEND before they are averaged
over runs. The column on the right shows SEND of the whole site, divided by its mean over the sites
of the run. Sites are named as in the figure *SEND of each site, and over pre-training*.
""",
)
def send_heads(frames: Frames) -> Figure:
    """SEND of the sorted heads of each site, and of the whole site, one panel a cell.

    If there are many cells, horizons share a panel.

    Raises:
        Absent: if heads were not scored, every site has one head, or SEND is 0 everywhere.
    """
    name = methods.reading(frames.scores)
    final = kept(frames.scores, name)
    heads, whole = final[final["head"] != WHOLE_SITE], final[final["head"] == WHOLE_SITE]
    if heads["head"].max() < 1:
        raise Absent("No site with several heads was scored: there is nothing to compare.")
    # For a single token SEND is 0 at all heads, and cannot be divided by its mean.
    heads, whole = (by_mean(rows, rows).dropna(subset="value") for rows in (heads, whole))
    if heads.empty:
        raise Absent("SEND is 0 at all heads: each query attends to a single key.")
    place = heads.groupby([*RUN, "site"])["value"].rank(method="first").astype("int64")
    heads = heads.assign(place=place)
    keys, _ = style.split(heads)
    parts = style.panels(heads, keys)
    largest = float(heads.groupby([*keys, "site", "place"])["value"].mean().max())
    tall = 0.14 * heads.groupby(keys)["site"].nunique().max() + 0.42
    figure, axes = style.grid(len(parts), height=tall, extra=0.85)
    for axis, (title, part) in zip(axes, parts, strict=True):
        means = part.pivot_table(index="site", columns="place", values="value")
        sites = whole.merge(part[keys].drop_duplicates(), on=keys).groupby("site")["value"].mean()
        names = part.drop_duplicates("site").set_index("site")["name"].sort_index()
        # An empty column separates the heads from the whole site.
        matrix = np.column_stack([means, np.full(len(means), np.nan), sites.reindex(means.index)])
        image = axis.imshow(
            matrix, cmap="Oranges", vmin=0, vmax=largest, aspect="auto", interpolation="nearest"
        )
        axis.set_title(title)
        axis.set_yticks(range(len(names)), [short(site) for site in names])
        count = means.shape[1]
        axis.set_xticks([0, count - 1, count + 1], ["1", str(count), "site"])
        axis.grid(visible=False)
        axis.tick_params(length=0)
    style.label(axes, "heads, by their SEND", "site")
    label = f"{style.mark(name).label} / mean of the run"
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=30, label=label)
    return figure


def kept(scores: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """RUN, site, name, head, value: the mean over batches at the kept checkpoint.

    Raises:
        Absent: if the criterion was not scored.
    """
    rows = scores[(scores["criterion"] == criterion) & (scores["batch"] != ALL_BATCHES)]
    if rows.empty:
        raise Absent(f"No attention site was scored by `{criterion}` in this experiment.")
    keys = [*RUN, "site", "name", "head"]
    return rows.groupby(keys)["value"].mean().reset_index()


def by_mean(rows: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """SEND divided by the mean of `reference` over the sites (and heads) of its run."""
    mean = reference.groupby(list(RUN))["value"].mean().rename("mean")
    return rows.assign(value=rows["value"] / rows.join(mean, on=list(RUN))["mean"])


def short(name: str) -> str:
    """The name of a site on an axis: `encoder.0.self` -> `e0`, `decoder.1.cross` -> `d1×`.

    `encoder.0.router` -> `e0r`.
    """
    stack, index, kind = [*name.split("."), "", ""][:3]
    return f"{stack[:1]}{index}" + {"cross": "×", "router": "r"}.get(kind, "")


def _bars(axis: Axes, rows: pd.DataFrame, marks: dict[str, style.Mark]) -> None:
    names = rows.drop_duplicates("site").set_index("site")["name"].sort_index()
    for place, site in enumerate(names.index):
        mark = marks[str(site)]
        mean, deviation = style.mean_and_sd(rows.loc[rows["site"] == site, "value"])
        axis.bar(
            place, mean, yerr=deviation or None, color=mark.colour, hatch=mark.hatch, width=0.75,
            edgecolor="white", error_kw={"elinewidth": 0.8, "capsize": 1.5},
        )  # fmt: skip
    axis.set_xticks(range(len(names)), [short(name) for name in names])
    axis.grid(visible=False, axis="x")
