"""Reductions of arrays of attention shape, [..., Q, K], to values per row, head and site.

`allowed` marks the keys that a row may use: bool [Q, K], or with leading axes that broadcast with
those of the values ([W, 1, 1, Q, K]) if the keys differ by window. Rows with fewer than two keys
are left out: they are dropped if `allowed` is [Q, K]; otherwise they are 0 and not counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shares(values: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed keys, [..., Q, K], in the precision of `values`.

    A row without keys is 0.
    """
    if allowed.all():
        return values.softmax(-1)
    hidden = ~allowed.to(values.device)
    uniform = values.masked_fill(hidden, -math.inf).softmax(-1)
    return uniform if allowed.ndim == 2 else uniform.masked_fill(hidden, 0.0)


def dispersion(values: Tensor, allowed: Tensor) -> Tensor:
    """Population standard deviation over the allowed keys of the softmax over them: [..., rows]."""
    return deviation(shares(values, allowed), allowed)


def deviation(shares: Tensor, allowed: Tensor) -> Tensor:
    """Population standard deviation over the allowed keys of shares that sum to one in each row.

    shares [..., Q, K] -> [..., rows].
    """
    shares, several = several_keys(shares, allowed)
    n = several.sum(-1).clamp(min=1).to(shares)
    # The shares of n keys have the mean 1/n.
    offset = shares - 1 / n.unsqueeze(-1)
    if not several.all():
        offset = offset.masked_fill(~several.to(offset.device), 0.0)
    norm: Tensor = torch.linalg.vector_norm(offset, dim=-1)
    return norm / n.sqrt()


def several_keys(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [..., rows, K] that have more than one key, and their allowed keys [rows, K].

    If `allowed` has leading axes all rows are kept, and rows with fewer than two keys allow none.
    """
    several = allowed.sum(-1) > 1
    if several.all():
        return values, allowed
    if allowed.ndim > 2:
        return values, allowed & several.unsqueeze(-1)
    return values[..., several.to(values.device), :], allowed[several]


def over_rows(values: Tensor, allowed: Tensor) -> Tensor:
    """Mean over sequences and the rows of `several_keys`, [W, R, H, rows] -> [W, H].

    It is 0 if there are no such rows.
    """
    if allowed.ndim == 2:
        return values.sum((1, 3)) / max(1, values.shape[1] * values.shape[3])
    counted = (allowed.sum(-1) > 1).to(values.device).expand_as(values)
    return (values * counted).sum((1, 3)) / counted.sum((1, 3)).clamp(min=1)


def with_sum(heads: Tensor) -> Tensor:
    """[..., H] -> [..., 1 + H]: the sum over heads, as the value of the site, then the heads."""
    return torch.cat([heads.sum(-1, keepdim=True), heads], dim=-1)


def with_mean(heads: Tensor) -> Tensor:
    """[..., H] -> [..., 1 + H]: the mean over heads, as the value of the site, then the heads."""
    return torch.cat([heads.mean(-1, keepdim=True), heads], dim=-1)
