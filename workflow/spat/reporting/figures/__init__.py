"""The figures: one pure function each, from frames to a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib.figure

from spat.reporting import style
from spat.reporting.figures import costs, pruning, runs, scores, transfer
from spat.reporting.frames_io import Absent, Frames


@dataclass(frozen=True)
class Figure:
    """A figure: what draws it, its caption (`workflow/report/<caption>`), its report category.

    `function` raises `Absent` where the experiment holds nothing to show.
    """

    function: Callable[[Frames], matplotlib.figure.Figure]
    caption: str
    category: str

    def draw(self, frames: Frames) -> matplotlib.figure.Figure:
        """The figure, or one that says why there is nothing to show."""
        with style.drawing():
            try:
                return self.function(frames)
            except Absent as absent:
                return style.message(str(absent))


FIGURES: Final[dict[str, Figure]] = {
    "pareto": Figure(costs.pareto, "pareto.rst", "Accuracy and cost"),
    "latency": Figure(costs.latency, "latency.rst", "Accuracy and cost"),
    "send_sites": Figure(scores.send_sites, "send_sites.rst", "Scores"),
    "send_uniformity": Figure(scores.send_uniformity, "send_uniformity.rst", "Scores"),
    "stability": Figure(scores.stability, "stability.rst", "Scores"),
    "criteria_quality": Figure(pruning.criteria_quality, "criteria_quality.rst", "Criteria"),
    "head_module": Figure(pruning.head_module, "head_module.rst", "Criteria"),
    "transfer": Figure(transfer.transfer, "transfer.rst", "Transfer"),
    "forecasts": Figure(runs.forecasts, "forecasts.rst", "Runs"),
    "history": Figure(runs.history, "history.rst", "Runs"),
}


def write_figure(name: str, frames: Frames, folder: Path) -> tuple[Path, ...]:
    """Write `<folder>/<name>.png`, `.pdf` and `.svg`; the paths written.

    Raises:
        KeyError: if there is no figure of that name.
    """
    return style.save(FIGURES[name].draw(frames), folder / name)
