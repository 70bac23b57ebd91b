"""What is the SEND of each site and head, and is it low where attention is uniform?

The table computes Spearman's rank correlation of SEND with the uniformity of the attention maps,
over sites and over heads. The scale of SEND differs between cells, so only runs of the same cell
are pooled.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spat.blocks import Array
from spat.study import methods
from spat.study.methods import SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import ALL_BATCHES, CELL, RUN, WHOLE_SITE, keyed
from spat.study.statistics.ranks import UNIFORMITY

PLACES: Final = ("sites", "heads")
# With fewer runs, the bootstrap interval is hardly wider than the range of their values.
MIN_RUNS: Final = 6
# Name -> the columns of value, low and high.
MEASURES: Final = {
    "rho, all runs": ("rho", "low", "high"),
    "rho within a run": ("within", "within_low", "within_high"),
}
# Rows of panels that fit on a page: rows of two panels, and rows of three.
ROWS_OF_TWO: Final = 6
ROWS_OF_THREE: Final = 4
_COLUMNS: Final = ("rho", "low", "high", "within", "within_low", "within_high", "runs", "points")


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
    name = methods.spat_criterion(scores)
    final = kept(scores, name)
    final = final[final["head"] == WHOLE_SITE]
    epochs = scores[(scores["criterion"] == name) & (scores["head"] == WHOLE_SITE)]
    epochs = epochs[epochs["batch"] == ALL_BATCHES].sort_values("epoch")
    shown = style.mark(name).label
    keys, cells = style.split(final, ROWS_OF_TWO)
    if not cells:
        final, epochs = by_mean(final, final), by_mean(epochs, final)
    parts = style.panels(final, keys)[:ROWS_OF_TWO]
    checkpoints = scores.loc[scores["batch"] != ALL_BATCHES, [*RUN, "epoch"]].drop_duplicates()
    figure = style.canvas(height=1.35 * len(parts) + 0.65)
    axes = figure.subplots(len(parts), 2, squeeze=False, sharey="row")
    marks = style.marks(sorted(final["site"].unique().astype(str), key=int))
    for (left, right), (title, part) in zip(axes, parts, strict=True):
        here = part[keys].drop_duplicates()
        over = epochs.merge(here, on=keys)
        unit, suffix = style.power_of_ten(pd.concat([part["value"], over["value"]]))
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
    name = methods.spat_criterion(frames.scores)
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
        axis.set_yticks(range(len(names)), [methods.short_site_name(site) for site in names])
        count = means.shape[1]
        axis.set_xticks([0, count - 1, count + 1], ["1", str(count), "site"])
        axis.grid(visible=False)
        axis.tick_params(length=0)
    style.label(axes, "heads, by their SEND", "site")
    label = f"{style.mark(name).label} / mean of the run"
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=30, label=label)
    return figure


@page(
    "table",
    "send_uniformity",
    title="SEND against the uniformity of the attention maps: Spearman's rho",
    caption="""
Is SEND low where attention is uniform? Spearman's rank correlation between SEND and the uniformity
of the attention maps (normalised entropy; 1 is uniform), over all sites and over all heads of a
cell, with a bootstrap interval over runs. It is negative if SEND is low for uniform attention.
""",
    layout=Layout((*SHOWN, "places"), "measure", best=False, counted="runs", kept=("places",)),
    notes=(
        "Negative: SEND is low where attention is uniform.",
        "All runs: over the places of all runs together. Within a run: of each run alone, "
        "averaged.",
        "Intervals are a bootstrap over runs.",
    ),
)
def send_uniformity(frames: Frames) -> pd.DataFrame:
    """Spearman's rho of SEND against the uniformity of the attention maps, over sites and heads.

    Columns: dataset, model, variant, lookback, horizon, places (sites, heads), measure, mean, low,
    high, sd, n (runs), missing, unit. Intervals are a bootstrap over runs.

    Raises:
        Absent: if SEND or the uniformity of the maps was not recorded.
    """
    rhos = correlations(
        frames.scores, draws=frames.statistics.bootstrap, confidence=frames.statistics.confidence
    )
    if rhos.empty:
        raise Absent("No attention site was scored by SEND in this experiment.")
    tables = [
        rhos[[*SHOWN, "places"]].assign(
            measure=name, mean=rhos[mean], low=rhos[low], high=rhos[high], n=rhos["runs"]
        )
        for name, (mean, low, high) in MEASURES.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    table = table.assign(
        places=methods.ordered(table["places"], PLACES),
        measure=methods.ordered(table["measure"], MEASURES),
        sd=float("nan"),
        missing=0,
        unit="tau",
    )
    return methods.sort_rows(table, [*SHOWN, "places", "measure"])


@page(
    "figure",
    "send_uniformity",
    title="SEND against the uniformity of the attention maps",
    caption="""
Is SEND low where attention is uniform? Left: SEND against the uniformity of the attention maps
(their normalised entropy; 1 is uniform), a dot for each head and a ring for each site; rho is
Spearman's rank correlation, averaged over runs.
Right: the mean attention maps of the sites with the lowest and the highest SEND, in multiples of a
uniform weight, with one scale for all maps. The largest weight is given above each map.
If there are more than four models, the first four are shown.
""",
)
def against_uniformity(frames: Frames) -> Figure:
    """SEND against the uniformity of the attention maps, and the maps of two sites.

    There is one dot per head and one ring per site; rho is Spearman's rank correlation, averaged
    over runs. If there are many cells, a panel joins the cells of a model, and the maps are from
    its first run.

    Raises:
        Absent: if SEND or the uniformity of the maps was not recorded.
    """
    name = methods.spat_criterion(frames.scores)
    send = kept(frames.scores, name)
    uniformity = kept(frames.scores, UNIFORMITY)
    both = send.merge(uniformity, on=[*RUN, "site", "name", "head"], suffixes=("", "_map"))
    keys, cells = style.split(both, ROWS_OF_THREE)
    if not cells:
        both = by_mean(both, both)
    maps = frames.maps[frames.maps["network"] == methods.DENSE]
    # In multiples of a uniform weight, so that all maps of the figure have one scale.
    keys_of_map = maps.groupby([*RUN, "name"])["column"].transform("nunique")
    maps = maps.assign(value=maps["value"] * keys_of_map)
    parts = style.panels(both, keys)[:ROWS_OF_THREE]
    figure = style.canvas(height=1.4 * len(parts) + 0.55)
    axes = figure.subplots(len(parts), 3, squeeze=False, width_ratios=(1.5, 1, 1))
    for row, (title, part) in zip(axes, parts, strict=True):
        _scatter(row[0], part, title, style.mark(name).label, relative=not cells)
        shown = maps.merge(part[list(RUN)].drop_duplicates(), on=list(RUN))
        _two_maps(row[1:], shown, send)
    images = [image for axis in axes.ravel() for image in axis.images]
    for image in images:
        image.set_clim(0, max(float(shown.get_array().max()) for shown in images))
    style.legend_below(figure, [row[0] for row in axes])
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


def points(scores: pd.DataFrame) -> pd.DataFrame:
    """Score and uniformity of each site and head, over all batches at the kept epoch.

    Returns:
        RUN, `places` (`sites`, `heads`), `site`, `head`, `score`, `uniformity`.
    """
    whole = scores[scores["batch"] == ALL_BATCHES]
    keys = [*RUN, "epoch", "site", "head"]
    names = (methods.spat_criterion(scores), UNIFORMITY)
    scored, maps = (whole.loc[whole["criterion"] == name, [*keys, "value"]] for name in names)
    # The uniformity is recorded at the kept epoch only, SEND at every epoch.
    both = scored.rename(columns={"value": "score"}).merge(
        maps.rename(columns={"value": "uniformity"}), on=keys
    )
    places = np.where(both["head"] == WHOLE_SITE, *PLACES)
    return both.assign(places=places)[[*RUN, "places", "site", "head", "score", "uniformity"]]


def correlations(
    scores: pd.DataFrame, *, draws: int = 2000, confidence: float = 0.95
) -> pd.DataFrame:
    """Spearman's rho per cell, over sites and over heads, with bootstrap intervals over runs.

    `rho` is computed from all places of all runs together; `within` is the mean over runs of the
    rho of each run (missing for a run with a constant score). Each draw takes S - 1 of S runs, as
    in `spat.study.statistics.bootstrap`. With fewer than `MIN_RUNS` runs there is no interval.

    Returns:
        CELL, `places`, `rho`, `low`, `high`, `within`, `within_low`, `within_high`, `runs`,
        `points` (places of one run).
    """
    keys = [*CELL, "places"]
    rows = []
    for key, group in points(scores).groupby(keys):
        ordered = group.sort_values(["seed", "site", "head"])
        shape = (ordered["seed"].nunique(), -1)
        x, y = (ordered[name].to_numpy().reshape(shape) for name in ("score", "uniformity"))
        rows.append(keyed(keys, key) | _measures(x, y, draws, confidence))
    return pd.DataFrame(rows, columns=[*keys, *_COLUMNS])


def spearman(x: Array, y: Array) -> Array:
    """Rank correlation along the last axis, [..., N] -> [...]; NaN for constants and N < 2."""
    if x.shape[-1] < 2:
        return np.full(x.shape[:-1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        return np.asarray(scipy.stats.spearmanrho(x, y, axis=-1).statistic)


def _bars(axis: Axes, rows: pd.DataFrame, marks: dict[str, style.Mark]) -> None:
    names = rows.drop_duplicates("site").set_index("site")["name"].sort_index()
    for place, site in enumerate(names.index):
        mark = marks[str(site)]
        mean, deviation = style.mean_and_sd(rows.loc[rows["site"] == site, "value"])
        axis.bar(
            place, mean, yerr=deviation or None, color=mark.colour, hatch=mark.hatch, width=0.75,
            edgecolor="white", error_kw={"elinewidth": 0.8, "capsize": 1.5},
        )  # fmt: skip
    axis.set_xticks(range(len(names)), [methods.short_site_name(name) for name in names])
    axis.grid(visible=False, axis="x")


def _measures(x: Array, y: Array, draws: int, confidence: float) -> dict[str, Any]:
    """The measures of one cell: x, y [runs, places]."""
    runs = len(x)
    own = spearman(x, y)
    nan = float("nan")
    measures: dict[str, Any] = {
        "rho": float(spearman(x.ravel(), y.ravel())),
        "within": float(np.nanmean(own)) if np.isfinite(own).any() else nan,
        "runs": runs,
        "points": x.shape[1],
    }
    if runs < MIN_RUNS:
        return measures | dict.fromkeys(("low", "high", "within_low", "within_high"), nan)
    drawn = np.random.default_rng(0).integers(runs, size=(draws, runs - 1))
    together = spearman(x[drawn].reshape(draws, -1), y[drawn].reshape(draws, -1))
    tail = (1.0 - confidence) / 2.0
    for name, sample in (("", together), ("within_", _means(own[drawn]))):
        low, high = np.nanquantile(sample, [tail, 1.0 - tail])
        measures |= {f"{name}low": float(low), f"{name}high": float(high)}
    return measures


def _means(values: Array) -> Array:
    """Means along the last axis, without NaN; NaN if all values are NaN."""
    known = np.isfinite(values)
    sums = np.where(known, values, 0.0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / known.sum(axis=-1))


def _scatter(axis: Axes, rows: pd.DataFrame, title: str, name: str, *, relative: bool) -> None:
    unit, suffix = style.power_of_ten(rows["value"])
    scaled = rows.assign(value=rows["value"] / unit)
    whole = scaled["head"] == WHOLE_SITE
    heads, sites = scaled[~whole], scaled[whole]
    axis.plot(heads["value"], heads["value_map"], ".", ms=2.5, color=style.COLOURS[5], label="head")
    axis.plot(
        sites["value"],
        sites["value_map"],
        "o",
        ms=4,
        mfc="none",
        color=style.COLOURS[1],
        mew=0.8,
        label="whole site",
    )
    rhos = [
        run["value"].corr(run["value_map"], method="spearman")
        for _, run in (heads if len(heads) else sites).groupby(list(RUN))
        if run["value"].std() > 0 and run["value_map"].std() > 0
    ]
    rho = f"ρ = {np.mean(rhos):+.2f}".replace("-", "−") if rhos else "ρ undefined"
    axis.set_title(f"{title}\n{rho}", fontsize=7)
    axis.set(xlabel=f"{name} / mean" if relative else f"{name}{suffix}", ylabel="uniformity")
    axis.margins(0.1)


def _two_maps(axes: np.ndarray, maps: pd.DataFrame, send: pd.DataFrame) -> None:
    """Draw the mean attention maps of the sites with the lowest and the highest SEND."""
    run = maps[list(RUN)].drop_duplicates().head(1)
    shown = maps.merge(run, on=list(RUN))
    scored = send[send["head"] == WHOLE_SITE].merge(run, on=list(RUN))
    names = scored[scored["name"].isin(set(shown["name"]))].sort_values("value")["name"]
    ends = [*names.iloc[[0, -1]]] if len(names) else []
    for axis, name, end in zip(axes, ends, ("lowest", "highest"), strict=False):
        matrix = style.square(shown[shown["name"] == name])
        axis.imshow(matrix, cmap="Greys", vmin=0, interpolation="nearest")
        site = methods.short_site_name(name)
        axis.set_title(f"{end}: {site}\nmax {matrix.max():.1f}×", fontsize=7)
        axis.set(xlabel="key", ylabel="query", xticks=[], yticks=[])
        axis.spines[:].set_visible(True)
    if names.empty:
        for axis in axes:
            axis.set(xticks=[], yticks=[], xlabel="key", ylabel="query")
            axis.text(0.5, 0.5, "no map", ha="center", va="center", transform=axis.transAxes)
