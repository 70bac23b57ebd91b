"""How does pruning change the attention maps of the remaining modules?"""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from spat.study import methods
from spat.study.methods import CONTROL, DENSE
from spat.study.pages import style
from spat.study.pages.page import Absent, page
from spat.study.pages.reader import Frames
from spat.study.send_sites import short
from spat.study.statistics.cells import RUN, keeps_all

# Cells that fit on a page, each with three rows of maps, and maps that fit in a row.
CELLS: Final = 3
SITES: Final = 6


@page(
    "figure",
    "attention_maps",
    title="Attention maps before and after pruning",
    caption="""
The mean attention map of each module, over one batch of training windows and all heads, for the
first seed of a cell. The rows of panels are the dense model, the control (the dense model after the
extra epochs), and the network that SPAT prunes at the ratio nearest to one half. In each map, rows
are queries and columns are keys. Weights are in multiples of a uniform weight, with one scale for
all maps; the largest weight is given above each map. A cross marks a module that was removed.
If there are more than three cells, some of them are shown; if there are more than six modules, the
first six.
""",
)
def attention_maps(frames: Frames) -> Figure:
    """The maps of each site in the dense model, the control and the pruned network of a cell.

    Raises:
        Absent: if the maps of pruned networks were not kept, or no mask of SPAT keeps some sites
            and removes others.
    """
    maps = frames.maps
    if not maps["network"].ne(DENSE).any():
        raise Absent("No attention maps of pruned networks were kept in this experiment.")
    maps = maps.assign(
        value=maps["value"] * maps.groupby([*RUN, "network", "name"])["column"].transform("nunique")
    )
    rows = pd.concat([_dense(maps), _control(maps), _pruned(maps, frames.selections)])
    left = rows["method"].ne(DENSE) & rows["method"].ne(CONTROL)
    rows = rows.merge(rows.loc[left, [*RUN]].drop_duplicates(), on=list(RUN))
    if rows.empty:
        raise Absent("No mask of SPAT keeps some modules and removes others.")
    parts = [(title, _first_seed(part)) for title, part in style.sample(rows, CELLS)]
    names = [list(part.loc[part["method"] == DENSE, "name"].unique())[:SITES] for _, part in parts]
    columns = max(map(len, names))
    figure = style.canvas(height=(min(3.2 / columns, 0.85) * 3 + 0.75) * len(parts) + 0.5)
    # The layout, solved once, is slightly too low for the label of the colour bar.
    figure.get_layout_engine().set(rect=(0, 0.01, 1, 0.99))  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(3 * len(parts), columns, squeeze=False)
    images = []
    for i, ((title, part), sites) in enumerate(zip(parts, names, strict=True)):
        for row, (method, own) in zip(
            axes[3 * i :], part.groupby("method", sort=False), strict=False
        ):
            for axis, name in zip(row, sites, strict=False):
                images += _map(axis, own[own["name"] == name], name)
            row[0].set_ylabel(method)
        first = axes[3 * i, 0]
        first.set_title(f"{title}\n{first.get_title()}", fontsize=7)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        if not axis.has_data():  # a cell with fewer sites than another cell
            axis.remove()
    for image in images:
        image.set_clim(0, max(part["value"].max() for _, part in parts))
    label = "weight / uniform weight"
    figure.colorbar(images[0], ax=axes, location="bottom", shrink=0.5, aspect=40, label=label)
    return figure


def _dense(maps: pd.DataFrame) -> pd.DataFrame:
    return maps[maps["network"] == DENSE].assign(method=DENSE)


def _control(maps: pd.DataFrame) -> pd.DataFrame:
    masks = maps[maps["network"] != DENSE]
    return masks[masks["network"].map(keeps_all).astype(bool)].assign(method=CONTROL)


def _pruned(maps: pd.DataFrame, selections: pd.DataFrame) -> pd.DataFrame:
    """The maps of SPAT's mask at the ratio nearest to one half, with its name as `method`."""
    choices = methods.site_choices(selections)
    choices = choices[choices["method"] != methods.CHOSEN].dropna(subset="ratio")
    nearest = (choices["ratio"] - 0.5).abs().groupby([choices[key] for key in RUN]).idxmin()
    chosen = choices.loc[nearest].rename(columns={"mask": "network"})
    own: pd.DataFrame = maps.merge(chosen[[*RUN, "network", "method"]], on=[*RUN, "network"])
    return own


def _first_seed(part: pd.DataFrame) -> pd.DataFrame:
    first: pd.DataFrame = part[part["seed"] == part["seed"].min()]
    return first


def _map(axis: Axes, rows: pd.DataFrame, name: str) -> list[AxesImage]:
    """Draw one map, or a cross if the site was removed, and return the images drawn."""
    if rows.empty:
        for ends in ((0, 1), (1, 0)):
            axis.plot((0, 1), ends, color=style.GREY, lw=0.6)
        axis.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1)
        axis.set_title(short(name), fontsize=7)
        return []
    matrix = style.square(rows)
    axis.set_title(f"{short(name)}, max {matrix.max():.1f}×", fontsize=7)
    return [axis.imshow(matrix, cmap="Greys", vmin=0, interpolation="nearest")]
