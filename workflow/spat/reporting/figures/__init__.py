"""The figures: one pure function each, from frames to a matplotlib figure.

The caption of a figure is `workflow/report/<name>.rst`. A function raises `Absent` where the
experiment holds nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from spat.reporting import style
from spat.reporting.figures import costs, pruning, ranks, robustness, runs, scores, transfer
from spat.reporting.frames_io import Absent, Frames

FIGURES: Final[dict[str, Callable[[Frames], Figure]]] = {
    "pareto": costs.pareto,
    "latency": costs.latency,
    "send_sites": scores.send_sites,
    "send_uniformity": scores.send_uniformity,
    "stability": scores.stability,
    "criteria_quality": pruning.criteria_quality,
    "critical_difference": ranks.critical_difference,
    "head_module": pruning.head_module,
    "robustness": robustness.robustness,
    "transfer": transfer.transfer,
    "forecasts": runs.forecasts,
    "history": runs.history,
}


def draw(name: str, frames: Frames) -> Figure:
    """A figure, or one that says why there is nothing to show.

    Raises:
        KeyError: if there is no figure of that name.
    """
    with style.drawing():
        try:
            return FIGURES[name](frames)
        except Absent as absent:
            return style.message(str(absent))


def write_figure(name: str, frames: Frames, folder: Path) -> tuple[Path, ...]:
    """Write `<folder>/<name>.png`, `.pdf` and `.svg`; the paths written.

    Raises:
        KeyError: if there is no figure of that name.
    """
    return style.save(draw(name, frames), folder / name)
