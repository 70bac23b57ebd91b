"""All criteria of a model from one pass, as a tidy frame."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from spat.pipeline import scores_frame
from spat.scoring import criteria as competitors
from spat.scoring.names import CRITERIA, STATISTICS, Criterion
from spat.scoring.probe import GROUP, loss_drops, window_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spat.data.windows import Windows
    from spat.models.base import Forecaster


def score(
    model: Forecaster,
    windows: Windows,
    batches: Sequence[Tensor],
    criteria: Iterable[str] | None = None,
    *,
    validation: NDArray[np.float64] | None = None,
    trajectory: pd.DataFrame | None = None,
    size: int = GROUP,
) -> pd.DataFrame:
    """Scores: columns batch, site, name, head, criterion, value (float64; a high one means keep).

    `batch` counts the batches from 0, and is -1 for the value over all their windows, the one to
    rank by (`scores_frame.aggregate`); `head` is -1 for the whole site. The uniformity of the
    attention maps is always included.

    Args:
        model: probed in eval(), and left as it was found.
        windows: training windows.
        batches: indices of windows, each batch [B].
        criteria: names of the registry; all that can be had when absent. `random` has no value.
        validation: `loss_drops` of validation windows, [sites, windows], for `loss_drop_val`.
        trajectory: SEND over pre-training, for `send_train`: see `scores_frame.send_train`.
        size: the most windows that one pass of the probe takes.

    Raises:
        TypeError: if the model is no `Forecaster`.
        ValueError: on an unknown criterion, one whose input was not given, or no windows.
    """
    given = {"probe", "group", "ablation", "draws"}
    given |= {"validation"} if validation is not None else set()
    given |= {"trajectory"} if trajectory is not None else set()
    frames = []
    wanted = _wanted(criteria, given)
    for row in wanted:
        if row.needs == "ablation":
            drops = loss_drops(model, windows, batches)
            frames += _dropped(model, row.name, drops, [len(batch) for batch in batches])
        elif validation is not None and row.needs == "validation":
            frames += _dropped(model, row.name, validation, [])
        elif trajectory is not None and row.needs == "trajectory":
            frames.append(scores_frame.send_train(trajectory))
    return scores_frame.joined([*_probed(model, windows, batches, wanted, size), *frames])


def _wanted(criteria: Iterable[str] | None, given: set[str]) -> list[Criterion]:
    if criteria is None:
        return [row for row in CRITERIA.values() if row.needs in given]
    wanted = []
    for name in criteria:
        if name not in CRITERIA:
            raise ValueError(f"criterion {name!r} is not one of {', '.join(CRITERIA)}")
        if CRITERIA[name].needs not in given:
            raise ValueError(f"criterion {name!r} needs `{CRITERIA[name].needs}`: pass it to score")
        wanted.append(CRITERIA[name])
    return wanted


def _probed(
    model: Forecaster,
    windows: Windows,
    batches: Sequence[Tensor],
    wanted: list[Criterion],
    size: int,
) -> list[pd.DataFrame]:
    """The criteria of the probe, and the statistics of the maps."""
    single = [row for row in wanted if row.needs == "probe"] + list(STATISTICS.values())
    shared = [row for row in wanted if row.needs == "group"]
    sites = window_means(
        model,
        windows,
        batches,
        {row.function: _imported(row.function) for row in single},
        {row.function: _imported(row.function) for row in shared},
        size=size,
    )
    return [
        scores_frame.rows(site.site, site.name, row.name, _finished(row, site.means[row.function]))
        for site in sites
        for row in [*single, *shared]
    ]


def _imported(function: str) -> Callable[[Any], Tensor]:
    module, name = function.split(".")
    return getattr(importlib.import_module(f"spat.scoring.{module}"), name)  # type: ignore[no-any-return]


def _finished(row: Criterion, means: Tensor) -> NDArray[np.float64]:
    return getattr(competitors, row.finish)(means).cpu().numpy()  # type: ignore[no-any-return]


def _dropped(
    model: Forecaster, name: str, drops: NDArray[np.float64], sizes: list[int]
) -> list[pd.DataFrame]:
    """Rows of loss drops [sites, windows]: over all windows, and over batches of these sizes."""
    batches = np.split(drops, np.cumsum(sizes)[:-1], axis=1) if sizes else []
    means = np.stack([part.mean(1) for part in (drops, *batches)], axis=1)
    return [
        scores_frame.rows(index, site.name, name, means[index, :, None])
        for index, site in enumerate(model.sites())
        if site.attention is not None
    ]
