"""Is it better to remove single heads or whole modules, where both remove equally much?"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spat.study import methods
from spat.study.accuracy import NOTE_PAIRED
from spat.study.criteria import LEVELS, percent
from spat.study.methods import SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, Note, page
from spat.study.pages.reader import Frames
from spat.study.pages.render import all_equal
from spat.study.statistics.averages import measure
from spat.study.statistics.bootstrap import block_length, relative_change
from spat.study.statistics.cells import CELL, RUN, WHOLE_SITE, in_domain, keyed

RANDOM: Final = "random"
VERSUS: Final = "heads vs modules"
COMPARED: Final = {
    "mse": ("MSE", ""),
    "flops": ("FLOPs", "FLOPs"),
    "latency_ms": ("Latency", "ms"),
}
# FLOPs whose relative difference is below this count as equal; exact equality is rare.
FLOPS_TOLERANCE: Final = 0.02
ONE_LEVEL: Final = (
    "No criterion removed both modules and single heads: name one in the criteria of "
    "`pruning.site` and of `pruning.head`."
)

_VALUES: Final = ("removed", "fraction", "mse", "flops", "latency_ms", "floor", "gain")


@page(
    "table",
    "heads_vs_modules",
    title="Heads against modules at an equal share removed",
    caption="""
Masks of whole modules against masks of single heads that remove as much attention and are chosen by
the same criterion. Random masks of each level are given for comparison.
Pairs are matched by the share of heads removed and, where that gives other pairs, by FLOPs.
*Heads vs modules* is the relative difference: where it is positive, removing modules is better.
""",
    layout=Layout((*SHOWN, "criterion", "matched", "share", "metric"), "method"),
    notes=(Note("random", "Random: mean of the random masks that remove as many."), NOTE_PAIRED),
)
def heads_vs_modules(frames: Frames) -> pd.DataFrame:
    """Single heads against whole modules that remove equally much, by criterion.

    Matched by the share of heads removed and, where that gives other pairs, by FLOPs. Columns:
    dataset, model, variant, lookback, horizon, criterion, matched, share, metric, method (modules,
    heads, random modules, random heads, heads vs modules), mean, sd, n, missing, unit. The last
    method is the change of heads against modules in percent, paired by seed.

    Raises:
        Absent: if no criterion removed both heads and modules.
    """
    rows = pairs(frames.results, frames.selections, frames.scores)
    if (rows["criterion"] != RANDOM).any():
        # Random masks are compared with the other criteria and have no row of their own.
        rows = rows[rows["criterion"] != RANDOM]
    rows = rows.sort_values("match", key=lambda match: match == "flops", kind="stable")
    rows = rows.drop_duplicates([*RUN, "criterion", "site_removed", "head_removed"])
    if rows.empty:
        raise Absent(ONE_LEVEL)
    rows = rows.assign(
        matched=rows["match"].map({"fraction": "share", "flops": "FLOPs"}),
        share=rows["site_fraction"].map(percent),
    )
    keys = [*SHOWN, "criterion", "matched", "share"]
    tables = []
    for quantity, (name, unit) in COMPARED.items():
        for level, method in LEVELS.items():
            values = methods.summary(rows, keys, f"{level}_{quantity}")
            tables.append(values.assign(method=method, metric=name, unit=unit))
        ratio = rows[f"head_{quantity}"] / rows[f"site_{quantity}"] - 1
        change = methods.summary(rows.assign(change=100 * ratio), keys, "change")
        tables.append(change.assign(method=VERSUS, metric=name, unit="%"))
    for level, method in LEVELS.items():
        # Runs without random masks of a level have no `floor` there.
        drawn = rows.dropna(subset=f"{level}_floor")
        if not drawn.empty:
            floor = methods.summary(drawn, keys, f"{level}_floor")
            tables.append(floor.assign(method=f"random {method}", metric="MSE", unit=""))
    table = pd.concat(tables, ignore_index=True).dropna(subset="mean")
    order = [*LEVELS.values(), *(f"random {method}" for method in LEVELS.values()), VERSUS]
    return methods.arrange(table, keys, order)


@page(
    "figure",
    "heads_vs_modules",
    title="Test error of removing heads against that of removing modules",
    caption="""
Test MSE of removing single heads against that of removing whole modules, as a relative difference,
by the share of heads removed. Above zero, removing modules is better. Both masks are chosen by the
same criterion. Points are means over runs, bars 95 % intervals over seeds (t), which may leave the
panel. With one seed they are intervals over test windows (paired bootstrap over blocks).
""",
)
def difference_by_share(frames: Frames) -> Figure:
    """Relative difference of the test MSE, heads against modules, by the share removed.

    Shows means over runs with intervals over seeds, or over windows for a cell of one seed. There
    is one panel per cell; if there are many cells, panels join them.

    Raises:
        Absent: if no criterion removed both heads and modules.
    """
    rows = pairs(frames.results, frames.selections, frames.scores)
    rows = rows[rows["match"] == "fraction"]
    if rows.empty:
        raise Absent(ONE_LEVEL)
    keys, cells = style.split(rows)
    shown = [name for name in methods.CRITERIA_IN_ORDER if name in set(rows["criterion"])]
    table = measure(rows, "difference", [*keys, "criterion", "site_fraction"], "", scale=100)
    if cells:
        table = _with_window_intervals(table, rows, frames)
    parts = style.panels(table, keys)
    figure, axes = style.grid(len(parts), extra=0.7, sharex=True, sharey=True)
    step, room = 2.0, max(1.0, float(np.ptp(table["mean"])))
    for axis, (title, part) in zip(axes, parts, strict=True):
        axis.axhline(0, color=style.GREY, lw=0.8)
        for i, criterion in enumerate(shown):
            here, mark = part[part["criterion"] == criterion], style.mark(criterion)
            bars = [here["mean"] - here["low"], here["high"] - here["mean"]]
            axis.errorbar(
                100 * here["site_fraction"] + step * (i - (len(shown) - 1) / 2), here["mean"],
                yerr=[bar.fillna(0.0).clip(lower=0.0) for bar in bars],
                color=mark.colour, marker=mark.marker,
                ls=mark.line, elinewidth=0.7, label=mark.label,
            )  # fmt: skip
        axis.set_title(title)
        axis.set_xticks(sorted(100 * table["site_fraction"].unique()))
        axis.margins(x=0.15)
        # Intervals of two seeds are much wider than all differences: they may leave the panel.
        axis.set_ylim(table["mean"].min() - room, table["mean"].max() + room)
    style.label(axes, "heads removed (%)", "heads vs modules\n(MSE, %)")
    style.legend_below(figure, axes)
    return figure


def pairs(results: pd.DataFrame, selections: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Each criterion's masks of both levels, paired in two ways, one row per run and pair.

    `match` says which quantity is equal: `fraction` (the share of all heads that is removed, to the
    nearest head) or `flops` (the closest, within `FLOPS_TOLERANCE`). If all sites of a model are
    alike, the two pairings coincide; for the encoder-decoder Transformer they do not. Masks that
    remove nothing or everything are the same at both levels and are left out. Random masks of a run
    are averaged. Only the first data order of fine-tuning is used.

    Returns:
        RUN, `criterion`, `match`; for each level `site_*` and `head_*`: `removed`, `fraction`,
        `mse`, `flops`, `latency_ms`, `floor` (the MSE of random masks of the same level and number;
        missing where none were drawn), `gain` (1 - mse / floor); and `difference`,
        head_mse / site_mse - 1: positive where removing modules is better.
    """
    rows = _decisions(results, selections, scores)
    site, head = (
        rows[rows["level"] == level]
        .drop(columns="level")
        .rename(columns={name: f"{level}_{name}" for name in _VALUES})
        for level in LEVELS
    )
    both = site.merge(head.drop(columns="heads"), on=[*RUN, "criterion"])
    gap = {
        "fraction": (both["head_fraction"] - both["site_fraction"]).abs() * both["heads"],
        "flops": (both["head_flops"] / both["site_flops"] - 1.0).abs(),
    }
    limit = {"fraction": 0.5, "flops": FLOPS_TOLERANCE}
    matched = []
    for match, distance in gap.items():
        close = both.assign(distance=distance, match=match)[distance <= limit[match]]
        nearest = close.sort_values("distance", kind="stable")
        matched.append(nearest.drop_duplicates([*RUN, "criterion", "site_removed"]))
    paired = pd.concat(matched).sort_values([*RUN, "criterion", "match", "site_removed"])
    paired["difference"] = paired["head_mse"] / paired["site_mse"] - 1.0
    values = [f"{level}_{name}" for level in LEVELS for name in _VALUES]
    return paired[[*RUN, "criterion", "match", *values, "difference"]].reset_index(drop=True)


def _with_window_intervals(table: pd.DataFrame, rows: pd.DataFrame, frames: Frames) -> pd.DataFrame:
    """`table` with intervals over test windows, in percent, for cells of one seed.

    `rows` are the result of `pairs`. The losses of random masks of a run are averaged. If the
    losses per window were not kept, there is no interval.
    """
    losses = frames.losses[frames.losses["target"] == frames.losses["dataset"]]
    losses = losses[(losses["order"] == 0) & (losses["phase"] == "finetuned")]
    kept = _at_ratios(frames.selections).merge(losses[[*RUN, "mask", "mse"]], on=[*RUN, "mask"])
    key = [*RUN, "criterion", "level", "removed"]
    means = {of: np.stack(group["mse"].to_list()).mean(axis=0) for of, group in kept.groupby(key)}
    intervals = []
    for of, group in rows.groupby(list(CELL)):
        if not all_equal(group["seed"]):
            continue
        for pair in group.to_dict("records"):
            names = [pair[name] for name in (*RUN, "criterion")]
            site, head = (means.get((*names, level, pair[f"{level}_removed"])) for level in LEVELS)
            if site is None or head is None:
                continue
            change = relative_change(
                site,
                head,
                block_length(pair["lookback"], pair["horizon"]),
                draws=frames.statistics.bootstrap,
                confidence=frames.statistics.confidence,
            )
            place = {name: pair[name] for name in ("criterion", "site_fraction")}
            interval = {"low": 100 * change.low, "high": 100 * change.high}
            intervals.append(keyed(CELL, of) | place | interval)
    if not intervals:
        return table
    over = pd.DataFrame(intervals)
    on = [name for name in over.columns if name in table and name not in ("low", "high")]
    joined = table.merge(over[[*on, "low", "high"]], on=on, how="left", suffixes=("", "_windows"))
    for end in ("low", "high"):
        joined[end] = joined[end].fillna(joined.pop(f"{end}_windows"))
    return joined


def _at_ratios(selections: pd.DataFrame) -> pd.DataFrame:
    """The masks of fixed ratios: RUN, criterion, draw, level, removed, mask."""
    rows = selections[(selections["rule"] == "") & selections["ratio"].notna()]
    return rows[[*RUN, "criterion", "draw", "level", "removed", "mask"]].drop_duplicates()


def _decisions(
    results: pd.DataFrame, selections: pd.DataFrame, scores: pd.DataFrame
) -> pd.DataFrame:
    """Errors, costs and `floor` per run, criterion, level and number removed."""
    decisions = _at_ratios(selections)
    errors = in_domain(results[results["order"] == 0])
    keys = [*RUN, "criterion", "level", "removed"]
    rows = decisions.merge(errors[[*RUN, "mask", "mse", "flops", "latency_ms"]], on=[*RUN, "mask"])
    rows = rows.groupby(keys)[["mse", "flops", "latency_ms"]].mean().reset_index()
    rows = rows.merge(_sizes(scores), on=list(RUN))
    total = np.where(rows["level"] == "site", rows["sites"], rows["heads"])
    rows = rows.assign(fraction=rows["removed"] / total)
    rows = rows[(rows["removed"] > 0) & (rows["fraction"] < 1.0)]
    floor = rows.loc[rows["criterion"] == RANDOM, [*RUN, "level", "removed", "mse"]]
    floor = floor.rename(columns={"mse": "floor"})
    rows = rows.merge(floor, on=[*RUN, "level", "removed"], how="left")
    return rows.assign(gain=1.0 - rows["mse"] / rows["floor"]).drop(columns="sites")


def _sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """RUN, `sites`, `heads`: the total numbers, counted in the scores."""
    places = scores.loc[scores["head"] != WHOLE_SITE, [*RUN, "site", "head"]].drop_duplicates()
    sizes = places.groupby(list(RUN)).agg(sites=("site", "nunique"), heads=("head", "size"))
    return sizes.reset_index()
