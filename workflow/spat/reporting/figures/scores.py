"""SEND: per site, over epochs, against the uniformity of the maps, and how stable it ranks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spat.evaluation.ranks import UNIFORMITY
from spat.evaluation.stability import THRESHOLD, batch_agreement
from spat.pipeline.frames import RUN
from spat.reporting import style
from spat.reporting.frames_io import Absent, Frames

# Rows of two or three panels that fit on a page.
ROWS = 6
MAP_ROWS = 4
CURVES = 6


def kept(scores: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """RUN, site, name, head, value: the mean over batches at the kept checkpoint.

    Raises:
        Absent: if the criterion was not scored.
    """
    rows = scores[(scores["criterion"] == criterion) & (scores["batch"] >= 0)]
    if rows.empty:
        raise Absent(f"No attention site was scored by `{criterion}` in this experiment.")
    keys = [*RUN, "site", "name", "head"]
    return rows.groupby(keys)["value"].mean().reset_index()


def trajectory(scores: pd.DataFrame) -> pd.DataFrame:
    """SEND of whole sites, over all batches, at the end of each epoch of pre-training."""
    rows = scores[(scores["criterion"] == "send") & (scores["head"] == -1)]
    return rows[rows["batch"] == -1].sort_values("epoch")


def kept_epochs(scores: pd.DataFrame) -> pd.DataFrame:
    """RUN, epoch: the checkpoint of pre-training whose single batches were scored."""
    return scores.loc[scores["batch"] >= 0, [*RUN, "epoch"]].drop_duplicates()


def send_sites(frames: Frames) -> Figure:
    """SEND of each site at the kept checkpoint (left) and over pre-training (right).

    A dashed line marks the epoch of the checkpoint, one for each that seeds (or cells) kept. Bars
    and lines are means over seeds, whiskers standard deviations. Where panels join several cells,
    SEND is divided by its mean over the sites of a run at the kept checkpoint.

    Raises:
        Absent: if there are no scores.
    """
    final = kept(frames.scores, "send")
    final, epochs = final[final["head"] == -1], trajectory(frames.scores)
    keys, cells = style.split(final, ROWS)
    if not cells:
        final, epochs = _by_mean(final, final), _by_mean(epochs, final)
    parts = style.panels(final, keys)
    checkpoints = kept_epochs(frames.scores)
    figure = style.canvas(height=1.35 * len(parts) + 0.65)
    axes = figure.subplots(len(parts), 2, squeeze=False, sharey="row")
    looks = style.looks(sorted(final["site"].unique().astype(str), key=int))
    for (left, right), (title, part) in zip(axes, parts, strict=True):
        here = part[keys].drop_duplicates()
        over = epochs.merge(here, on=keys)
        unit, said = style.power(pd.concat([part["value"], over["value"]]))
        _bars(left, part.assign(value=part["value"] / unit), looks)
        for site, rows in over.assign(value=over["value"] / unit).groupby("site"):
            look = looks[str(site)]
            means = rows.groupby("epoch")["value"].mean()
            right.plot(
                means.index, means, color=look.colour, marker=look.marker, ls=look.line, ms=3
            )
        for epoch in checkpoints.merge(here, on=keys)["epoch"].unique():
            right.axvline(epoch, color=style.BLACK, lw=0.8, ls="--", zorder=0, label="kept epoch")
        left.set(title=title, ylabel=f"SEND{said}" if cells else "SEND / mean")
        right.set(title="over epochs")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1, 0].set_xlabel("site")
    axes[-1, 1].set_xlabel("epoch of pre-training")
    style.legend_below(figure, list(axes[:, 1]))
    return figure


def send_uniformity(frames: Frames) -> Figure:
    """SEND against the uniformity of the attention maps, and the maps of two sites.

    One dot a head, one ring a site; rho is Spearman's, averaged over runs. Where there are many
    cells, a panel joins those of a model and the maps are those of its first run.

    Raises:
        Absent: if SEND or the uniformity of the maps was not recorded.
    """
    keys_of_score = [*RUN, "site", "name", "head"]
    send = kept(frames.scores, "send")
    uniformity = kept(frames.scores, UNIFORMITY)
    both = send.merge(uniformity, on=keys_of_score, suffixes=("", "_map"))
    keys, cells = style.split(both, MAP_ROWS)
    if not cells:
        both = _by_mean(both, both)
    maps = frames.examples[frames.examples["kind"] == "map"]
    parts = style.panels(both, keys)[:MAP_ROWS]
    figure = style.canvas(height=1.4 * len(parts) + 0.35)
    axes = figure.subplots(len(parts), 3, squeeze=False, width_ratios=(1.5, 1, 1))
    for row, (title, part) in zip(axes, parts, strict=True):
        _against(row[0], part, title, relative=not cells)
        first = part[list(RUN)].drop_duplicates()
        shown = maps.merge(first, on=list(RUN))
        _two_maps(row[1:], shown, send)
    return figure


def stability(frames: Frames) -> Figure:
    """Kendall's tau-b of the ranking from b batches against the ranking from all.

    Means over runs and subsets of batches. The band reaches down to the 5 % quantile over subsets
    of SEND; dashed: SEND against as many other batches.

    Raises:
        Absent: if fewer than two batches were scored.
    """
    scores = frames.scores
    names = [c for c in scores["criterion"].unique() if c != UNIFORMITY]
    shown = [*(c for c in names if c == "send"), *(c for c in names if c != "send")][:CURVES]
    agreement = batch_agreement(scores[scores["criterion"].isin(shown)], subsets=100)
    if agreement.empty:
        raise Absent("Ranks need two scored sites and two batches: see `scoring.batches`.")
    keys, _ = style.split(agreement)
    looks = style.looks(shown)
    parts = style.panels(agreement, keys)
    figure, axes = style.grid(len(parts), extra=0.75, sharey=True)
    for axis, (title, part) in zip(axes, parts, strict=True):
        axis.axhline(THRESHOLD, color=style.GREY, lw=0.6, ls=":")
        for criterion in shown:
            rows = part[part["criterion"] == criterion]
            curve = rows.groupby("batches")[["tau", "tau_low", "tau_disjoint"]].mean()
            look = looks[criterion]
            axis.plot(
                curve.index, curve["tau"], color=look.colour, marker=look.marker, ls=look.line,
                ms=3, label=criterion,
            )  # fmt: skip
            if criterion == "send":
                axis.fill_between(
                    curve.index, curve["tau_low"], curve["tau"], color=look.colour, alpha=0.15, lw=0
                )
                other = curve["tau_disjoint"].dropna()
                axis.plot(
                    other.index, other, color=style.BLACK, ls="--", lw=0.9, marker=".", ms=3,
                    label="send, other batches",
                )  # fmt: skip
        axis.set_title(title)
        axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.05)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label(axes, "batches scored", "rank agreement (tau-b)")
    style.legend_below(figure, axes, columns=2)
    return figure


def short(name: str) -> str:
    """A site's name on an axis: `encoder.0.self` -> `e0`, `decoder.1.cross` -> `d1×`."""
    stack, index, kind = [*name.split("."), "", ""][:3]
    return f"{stack[:1]}{index}" + ("×" if kind == "cross" else "")


def _by_mean(rows: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """SEND divided by the mean of `reference` over the sites (and heads) of its run."""
    mean = reference.groupby(list(RUN))["value"].mean().rename("mean")
    return rows.assign(value=rows["value"] / rows.join(mean, on=list(RUN))["mean"])


def _bars(axis: Axes, rows: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    names = rows.drop_duplicates("site").set_index("site")["name"].sort_index()
    for place, site in enumerate(names.index):
        look = looks[str(site)]
        mean, deviation = style.mean_and_sd(rows.loc[rows["site"] == site, "value"])
        axis.bar(
            place, mean, yerr=deviation or None, color=look.colour, hatch=look.hatch, width=0.75,
            edgecolor="white", error_kw={"elinewidth": 0.8, "capsize": 1.5},
        )  # fmt: skip
    axis.set_xticks(range(len(names)), [short(name) for name in names])
    axis.grid(visible=False, axis="x")


def _against(axis: Axes, rows: pd.DataFrame, title: str, *, relative: bool) -> None:
    unit, said = style.power(rows["value"])
    scaled = rows.assign(value=rows["value"] / unit)
    heads, sites = scaled[scaled["head"] >= 0], scaled[scaled["head"] == -1]
    axis.plot(heads["value"], heads["value_map"], ".", ms=2.5, color=style.COLOURS[5])
    axis.plot(
        sites["value"], sites["value_map"], "o", ms=4, mfc="none", color=style.COLOURS[1], mew=0.8
    )
    some = heads if len(heads) else sites
    rhos = [
        run["value"].corr(run["value_map"], method="spearman")
        for _, run in some.groupby(list(RUN))
        if run["value"].std() > 0 and run["value_map"].std() > 0
    ]
    rho = f"ρ = {np.mean(rhos):+.2f}".replace("-", "−") if rhos else "ρ undefined"
    axis.set_title(f"{title}\n{rho}", fontsize=7)
    axis.set(xlabel="SEND / mean" if relative else f"SEND{said}", ylabel="uniformity")
    axis.margins(0.1)


def _two_maps(axes: np.ndarray, maps: pd.DataFrame, send: pd.DataFrame) -> None:
    """The mean attention map of the site with the lowest SEND, and of the one with the highest."""
    run = maps[list(RUN)].drop_duplicates().head(1)
    shown = maps.merge(run, on=list(RUN))
    scored = send[send["head"] == -1].merge(run, on=list(RUN))
    names = scored[scored["name"].isin(set(shown["name"]))].sort_values("value")["name"]
    told = ("lowest", "highest")
    ends = [*names.iloc[[0, -1]]] if len(names) else []
    for axis, name, word in zip(axes, ends, told, strict=False):
        matrix = style.square(shown[shown["name"] == name])
        axis.imshow(matrix, cmap="Greys", vmin=0, interpolation="nearest")
        axis.set_title(f"{word}: {short(name)}\nmax {matrix.max():.2f}", fontsize=7)
        axis.set(xlabel="key", ylabel="query", xticks=[], yticks=[])
        axis.spines[:].set_visible(True)
    if names.empty:
        for axis in axes:
            axis.set(xticks=[], yticks=[], xlabel="key", ylabel="query")
            axis.text(0.5, 0.5, "no map", ha="center", va="center", transform=axis.transAxes)
