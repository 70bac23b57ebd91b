"""The frame of scores: its rows, and the final score of each site or head, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from spat.scoring.probe import SiteScores

# The `batch` of a value over all scored windows, and the `head` of a whole site.
ALL: Final = -1
SITE: Final = -1

_KINDS: Final = {
    "batch": "int64",
    "site": "int64",
    "name": "str",
    "head": "int64",
    "criterion": "str",
    "value": "float64",
}
COLUMNS: Final = tuple(_KINDS)


def frame(scores: Iterable[SiteScores]) -> pd.DataFrame:
    """Scores as rows, with the `COLUMNS`; an empty frame if there are none."""
    parts = []
    for score in scores:
        batches, columns = score.value.shape
        parts.append(
            pd.DataFrame(
                {
                    "batch": np.repeat(np.arange(batches) + ALL, columns),
                    "site": score.site,
                    "name": score.name,
                    "head": np.tile(np.arange(columns) + SITE, batches),
                    "criterion": score.criterion,
                    "value": score.value.ravel(),
                }
            )
        )
    return joined(parts)


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenated frames of scores; an empty frame if there are none."""
    none = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _KINDS.items()})
    return pd.concat([none, *frames], ignore_index=True)


def aggregate(scores: pd.DataFrame) -> pd.DataFrame:
    """The score over all windows, one per site, head and criterion.

    It is the mean over windows, with the last step of the criterion (an absolute value, a
    variance), so it does not depend on the batches.

    Raises:
        ValueError: if a score has no value over all windows, or more than one.
    """
    keys = ["site", "head", "criterion"]
    chosen = scores[scores["batch"] == ALL]
    twice = chosen[chosen.duplicated(keys)]
    if len(twice):
        raise ValueError(f"scores: more than one value over all windows for {_first(twice)}")
    known = pd.MultiIndex.from_frame(chosen[keys])
    lost = scores[~pd.MultiIndex.from_frame(scores[keys]).isin(known)]
    if len(lost):
        raise ValueError(
            f"scores: only values of single batches for {_first(lost)}: run `score` again"
        )
    return chosen[["site", "name", "head", "criterion", "value"]].reset_index(drop=True)


def by_place(scores: pd.DataFrame) -> dict[tuple[str, int, int], float]:
    """(criterion, site, head) -> score, from a frame with one row each.

    Raises:
        ValueError: if a criterion has several scores of one place.
    """
    values: dict[tuple[str, int, int], float] = {}
    columns = (scores[name].tolist() for name in ("criterion", "site", "head", "value"))
    for criterion, site, head, value in zip(*columns, strict=True):
        if (criterion, site, head) in values:
            raise ValueError(f"criterion {criterion!r}: several scores of one place; average them")
        values[criterion, site, head] = value
    return values


def send_train(trajectory: pd.DataFrame) -> pd.DataFrame:
    """The mean of SEND over the epochs of pre-training, as rows of criterion `send_train`.

    Source: SPAT (arXiv 2505.08768) scores during training. `trajectory` has the columns epoch,
    site, name, head, criterion and value.

    Raises:
        ValueError: if the trajectory has no SEND.
    """
    send = trajectory[trajectory["criterion"] == "send"]
    if send.empty:
        raise ValueError("send_train: the record of pre-training has no `send`")
    mean = pd.DataFrame(send.groupby(["site", "name", "head"], as_index=False)["value"].mean())
    return mean.assign(batch=ALL, criterion="send_train")[list(COLUMNS)]


def _first(frame: pd.DataFrame) -> str:
    row = frame.iloc[0]
    return f"{row['criterion']}, site {row['site']} ({row['name']}), head {row['head']}"
