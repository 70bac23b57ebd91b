"""SEND, the score of SPAT (arXiv 2505.08768), as printed in a published review, and other readings.

    S[h, i, j] = dL/dM at M = 1     one mask M on the attention A, L the mean loss of a batch
    P[h, i, j] = softmax over the keys j of |S[h, i, j]|
    SEND(site) = mean over batches and queries i of the standard deviation over j of
                 the mean over heads of P[h, i, j]
    SEND(head) = the same without the mean over heads

All windows of a training batch share the mask, and so do independent channels. |S| is small, so the
softmax is nearly linear: to first order, SEND is std(mean over heads of |S|) / keys. Its unit
depends on the scale of the loss and on the number of keys. SEND is computed in float64, because in
float32 the differences between the values of the softmax are lost in rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spat.attention.views import Mixing, SharedMask, Trace
from spat.scoring.criterion import criterion, negative
from spat.scoring.probe import (
    Cases,
    Losses,
    Shared,
    SiteScores,
    observe,
    window_means,
)
from spat.scoring.reductions import (
    deviation,
    dispersion,
    over_rows,
    several_keys,
    shares,
    with_mean,
)

_SPAT = "SPAT, arXiv 2505.08768"
_PRINTED = f"{_SPAT}, as printed in a review"
_OUR_READING = f"{_SPAT} (our reading)"


def score_send(
    model: nn.Module,
    cases: Cases,
    batches: Sequence[Tensor],
    losses: Losses,
    *,
    batch_size: int,
) -> list[SiteScores]:
    """Only SEND, with the values of `scores.score`; pre-training records it after each epoch."""
    means = window_means(
        lambda batch: observe(model, batch, losses),
        cases,
        batches,
        {},
        {"send": Shared(send, batch_size, torch.float64)},
        batch_size=batch_size,
    )
    return [SiteScores.of(site, "send", site.means["send"]) for site in means if site.means]


@criterion("send", needs=Mixing, heads=True, source=_PRINTED, over="batch")
@criterion("send_reverse", needs=Mixing, heads=True, source=_PRINTED, over="batch", finish=negative)
def send(mask: SharedMask) -> Tensor:
    """SEND of one batch, [1, 1 + H]."""
    return _printed(mask, deviation)


@criterion(
    "send_float32", needs=Mixing, heads=True, source=_PRINTED, over="batch", dtype=torch.float32
)
def send_float32(mask: SharedMask) -> Tensor:
    """SEND of one batch, computed in float32, the default precision of PyTorch: [1, 1 + H]."""
    return _printed(mask, _spread)


@criterion("send_window", needs=Mixing, heads=True, source=_OUR_READING)
def send_window(trace: Trace) -> Tensor:
    """SEND with one mask per window, signed S, and the mean over heads as last step: [W, 1 + H]."""
    mixing = trace.mixing
    return with_mean(over_rows(mixing.once(_dispersion), mixing.allowed))


@criterion("send_abs", needs=Mixing, heads=True, source=_OUR_READING)
def send_abs(trace: Trace) -> Tensor:
    """`send_window` of |S|, [W, 1 + H]."""
    mixing = trace.mixing
    return with_mean(over_rows(dispersion(mixing.S.abs(), mixing.allowed), mixing.allowed))


@criterion("send_shared", needs=Mixing, heads=True, source=_OUR_READING, over="group")
def send_shared(mask: SharedMask) -> Tensor:
    """`send_window` with one mask shared by 32 windows and their mean loss: [1, 1 + H]."""
    return with_mean(over_rows(dispersion(mask.S, mask.allowed), mask.allowed))


@criterion("send_layer", needs=Mixing, source=_OUR_READING)
def send_layer(trace: Trace) -> Tensor:
    """`send_window` of S summed over heads, [W, 1]: one mask for all heads of the site."""
    mixing = trace.mixing
    allowed = _any(mixing.allowed, 2)
    return over_rows(dispersion(mixing.S.sum(2, keepdim=True), allowed), allowed)


@criterion("send_keys", needs=Mixing, heads=True, source=_OUR_READING)
def send_keys(trace: Trace) -> Tensor:
    """`send_window` with rows times their number of keys, [W, 1 + H]; about std(S) for small S."""
    mixing = trace.mixing
    rows = mixing.once(_dispersion)
    _, allowed = several_keys(mixing.S, mixing.allowed)
    return with_mean(over_rows(rows * allowed.sum(-1).to(rows), mixing.allowed))


@criterion("send_unit", needs=Mixing, heads=True, source=_OUR_READING)
def send_unit(trace: Trace) -> Tensor:
    """`send_window` of S divided by its mean absolute value in the window and site; 0 if S is 0."""
    mixing = trace.mixing
    S, allowed = mixing.S, mixing.allowed
    W, R, H, *_ = S.shape
    pairs = allowed.sum() * R * H if allowed.ndim == 2 else allowed.expand_as(S).flatten(1).sum(1)
    size = S.abs().sum((1, 2, 3, 4)) / pairs.to(S)
    scale = size.where(size > 0, 1.0).view(W, 1, 1, 1, 1)
    return with_mean(over_rows(dispersion(S / scale, allowed), allowed))


def _printed(mask: SharedMask, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The printed formula; `measure` is the standard deviation over the allowed keys."""
    allowed = _any(mask.allowed, 1)  # independent channels share the mask
    P = shares(mask.S.sum(1, keepdim=True).abs(), allowed)
    together = _any(allowed, 2)
    mean = P.mean(2, keepdim=True)
    if allowed.ndim > 2:  # over the heads in which the row has keys
        heads = allowed.any(-1, keepdim=True).to(P).expand(*P.shape[:-1], 1)
        mean = P.sum(2, keepdim=True) / heads.sum(2, keepdim=True).clamp(min=1)
    site = over_rows(measure(mean, together), together)
    return torch.cat([site, over_rows(measure(P, allowed), allowed)], dim=-1)


def _spread(values: Tensor, allowed: Tensor) -> Tensor:
    """Population standard deviation over the allowed keys about their own mean, [..., rows]."""
    values, several = several_keys(values, allowed)
    if several.all():
        return values.std(-1, correction=0)
    kept = several.to(values.device)
    n = kept.sum(-1, keepdim=True).clamp(min=1)
    offset = (values - (values * kept).sum(-1, keepdim=True) / n) * kept
    return (offset.square().sum(-1) / n.squeeze(-1)).sqrt()


def _dispersion(mixing: Mixing) -> Tensor:
    return dispersion(mixing.S, mixing.allowed)


def _any(allowed: Tensor, axis: int) -> Tensor:
    """The keys that any part along an axis allows; an array without leading axes is unchanged."""
    return allowed if allowed.ndim == 2 else allowed.any(axis, keepdim=True)
