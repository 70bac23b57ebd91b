"""Mean ranks of the criteria over independent sources, and which of them are told apart."""

from __future__ import annotations

from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.evaluation.cells import average, wide
from spat.evaluation.ranks import merged_criteria, relabelled
from spat.evaluation.statistics import MIN_SOURCES, Ranking, ranking
from spat.pipeline.frames import RUN
from spat.reporting import methods, style
from spat.reporting.figures.pruning import MODELS, with_change
from spat.reporting.frames_io import Absent, Frames

# Height of a panel's line, and what its labels take on each side, in lengths of the axis.
LINE: Final = 0.14
SIDE: Final = 0.65
TICKS: Final = 8


def critical_difference(frames: Frames) -> Figure:
    """Mean ranks of the criteria by the test error of their site masks, one panel a model.

    A case is a station: seeds, horizons and its datasets are averaged before they are ranked
    (Demsar 2006). Criteria joined by a bar are not told apart (Nemenyi's test).

    Raises:
        Absent: if no model ran on enough independent sources, or had less than three criteria.
    """
    found = rankings(frames)
    shown = {name: r for name, r in found.items() if r.critical_difference is not None}
    if not shown:
        raise Absent(_too_few(found))
    shown = dict(list(shown.items())[:MODELS])
    heights = [LINE * len(r.ranks) + 1.1 for r in shown.values()]
    figure = style.canvas(height=sum(heights))
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, result) in zip(axes, shown.items(), strict=True):
        _diagram(axis, result)
        axis.set_title(
            f"{name}: {result.test.n} sources\n"
            f"Friedman p = {result.test.p:.2g}, CD = {result.critical_difference:.2g}"
        )
    return figure


def rankings(frames: Frames) -> dict[str, Ranking]:
    """The ranking of each model and variant over stations, by name.

    Raises:
        Absent: if nothing was pruned at a ratio between none and all.
    """
    rows = with_change(methods.by_decision(frames), frames)
    rows = rows[rows["level"] == "site"]
    scores = frames.scores
    labels = merged_criteria(scores[scores["criterion"].isin(set(rows["criterion"]))])
    rows = relabelled(rows, labels).drop_duplicates([*RUN, "criterion", "draw", "removed"])
    means = average(rows, ["change"], ["model", "variant", "criterion"])
    return {
        f"{model} {variant}": ranking(wide(part, "station", "criterion", "change"))
        for (model, variant), part in means.groupby(["model", "variant"])
    }


def short(label: str) -> str:
    """A label of merged criteria: the first, and how many more; `send = snip` -> `send (+1)`."""
    first, *others = label.split(" = ")
    return f"{first} (+{len(others)})" if others else first


def _too_few(found: dict[str, Ranking]) -> str:
    cases = [f"{name} {r.test.n} ({_criteria(len(r.ranks))})" for name, r in found.items()]
    return (
        f"Independent sources: {', '.join(cases) or 'none'}. A critical-difference diagram needs "
        f"at least {MIN_SOURCES}, and 3 criteria: files of one station, horizons and seeds are "
        "not independent."
    )


def _criteria(count: int) -> str:
    return f"{count} {'criterion' if count == 1 else 'criteria'}"


def _diagram(axis: Axes, result: Ranking) -> None:
    """Ranks on top, the best on the left; bars join what is not told apart."""
    from scikit_posthocs import critical_difference_diagram

    assert result.pairwise is not None
    names = {label: short(label) for label in result.ranks.index}
    count = len(names)
    critical_difference_diagram(
        result.ranks.rename(names),
        result.pairwise.rename(index=names, columns=names),
        ax=axis,
        label_props={"fontsize": 6.5},
        marker_props={"s": 8},
        elbow_props={"linewidth": 0.7},
        crossbar_props={"linewidth": 1.8},
        color_palette=[style.BLACK] * count,
        text_h_margin=0.02 * count,
        label_fmt_left="{label} ({rank:.1f})",
        label_fmt_right="({rank:.1f}) {label}",
    )
    axis.grid(visible=False)
    axis.spines["top"].set(visible=True, bounds=(1, count))
    axis.set_xticks(range(1, count + 1, -(-count // TICKS)))
    room = SIDE * (count - 1)
    axis.set_xlim(1 - room, count + room)
    axis.xaxis.set_label_position("top")
    axis.set_xlabel("mean rank (1 is the lowest error)")
    axis.yaxis.set_visible(True)
    axis.set_yticks([])
    axis.set_ylabel("criterion")
