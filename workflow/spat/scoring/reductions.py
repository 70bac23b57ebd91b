"""From arrays of attention shape, [..., Q, K], to values per row, head and site."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dispersion(values: Tensor, allowed: Tensor) -> Tensor:
    """Population standard deviation over keys of the softmax over keys.

    values [..., Q, K], allowed bool [Q, K] -> [..., rows]. Softmax and deviation run over the
    allowed keys of each row; rows with a single one are left out. In the precision of `values`.
    """
    if not allowed.all():
        values = values.masked_fill(~allowed.to(values.device), -math.inf)
    return deviation(values.softmax(-1), allowed)


def deviation(shares: Tensor, allowed: Tensor) -> Tensor:
    """Population standard deviation over the allowed keys of shares that sum to one in each row.

    shares [..., Q, K], allowed bool [Q, K] -> [..., rows], without the rows of a single key.
    """
    shares, several = several_keys(shares, allowed)
    n = several.sum(-1).to(shares)
    # The shares of n keys have the mean 1/n.
    offset = shares - 1 / n.unsqueeze(-1)
    if not several.all():
        offset = offset.masked_fill(~several.to(offset.device), 0.0)
    norm: Tensor = torch.linalg.vector_norm(offset, dim=-1)
    return norm / n.sqrt()


def several_keys(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [..., rows, K] and their allowed keys [rows, K] where there is more than one."""
    several = allowed.sum(-1) > 1
    if several.all():
        return values, allowed
    return values[..., several.to(values.device), :], allowed[several]


def over_rows(values: Tensor) -> Tensor:
    """Mean over sequences and queries, [W, R, H, rows] -> [W, H]; 0 without rows."""
    return values.sum((1, 3)) / max(1, values.shape[1] * values.shape[3])


def with_sum(heads: Tensor) -> Tensor:
    """[..., H] -> [..., 1 + H]: in front, the sum over heads as the value of the site."""
    return torch.cat([heads.sum(-1, keepdim=True), heads], dim=-1)


def with_mean(heads: Tensor) -> Tensor:
    """[..., H] -> [..., 1 + H]: in front, the mean over heads as the value of the site."""
    return torch.cat([heads.mean(-1, keepdim=True), heads], dim=-1)
