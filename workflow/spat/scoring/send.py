"""SEND, the score of SPAT (arXiv 2505.08768), and its readings.

    SEND(head) = mean over windows and queries of std over keys of softmax over keys of S
    SEND(site) = mean over its heads

This is our reading of the paper's description. The loss of a window is small, so the softmax is
linear here: SEND = std(S) / keys, whose unit depends on the scale of the loss and on the number of
keys. That is why it is computed in float64: in float32 the differences between the softmax's values
drown in rounding where there are hundreds of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from spat.attention.views import SharedMask, SiteRecord
from spat.pipeline.scores_frame import aggregate, joined, rows
from spat.scoring.probe import GROUP, window_means
from spat.scoring.reductions import dispersion, over_rows, several_keys, with_mean

if TYPE_CHECKING:
    import pandas as pd

    from spat.data.windows import Windows
    from spat.models.base import Forecaster


def score_send(
    model: Forecaster, windows: Windows, batches: Sequence[Tensor], *, size: int = GROUP
) -> pd.DataFrame:
    """SEND alone: columns site, name, head (-1 is the site), criterion, value.

    Pre-training records it at the end of every epoch. Empty for a model without attention.
    `size` is the most windows that one pass takes.
    """
    sites = window_means(model, windows, batches, {"send": send}, size=size)
    return aggregate(
        joined([rows(s.site, s.name, "send", s.means["send"].cpu().numpy()) for s in sites])
    )


def send(record: SiteRecord) -> Tensor:
    """SEND per window, [W, 1 + H]."""
    return with_mean(over_rows(record.dispersion))


def send_abs(record: SiteRecord) -> Tensor:
    """SEND of |S|, [W, 1 + H]: the size of a sensitivity, whichever way it points."""
    return with_mean(over_rows(dispersion(record.S.abs(), record.allowed)))


def send_shared(mask: SharedMask) -> Tensor:
    """SEND where the windows of a group share one mask, under their mean loss, [1, 1 + H]."""
    return with_mean(over_rows(dispersion(mask.S, mask.allowed)))


def send_layer(record: SiteRecord) -> Tensor:
    """SEND of S summed over heads, [W, 1]: one mask for all heads of the site."""
    return over_rows(dispersion(record.S.sum(2, keepdim=True), record.allowed))


def send_keys(record: SiteRecord) -> Tensor:
    """SEND with each row times its number of keys, [W, 1 + H]: std(S), for a small S."""
    _, allowed = several_keys(record.S, record.allowed)
    return with_mean(over_rows(record.dispersion * allowed.sum(-1).to(record.dispersion)))


def send_unit(record: SiteRecord) -> Tensor:
    """SEND of S over its mean absolute value in the window and site, [W, 1 + H]; 0 where S is 0."""
    _, R, H, *_ = record.S.shape
    pairs = R * H * int(record.allowed.sum())
    size = record.S.abs().sum((1, 2, 3, 4), keepdim=True) / pairs
    return with_mean(over_rows(dispersion(record.S / size.where(size > 0, 1.0), record.allowed)))
