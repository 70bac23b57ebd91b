"""Registration of criteria, and the functions that turn means over windows into scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor

from spat.attention.views import View
from spat.scoring.reductions import with_sum

if TYPE_CHECKING:
    from spat.scoring.names import Over

# A `Trace` of W windows -> [W, ...], or a `SharedMask` -> [1, ...].
Function = Callable[[Any], Tensor]
Finish = Callable[[Tensor], Tensor]
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Rule:
    """A criterion with its function; `names.Criterion` has the same data without torch.

    If `over` is `window`, `function` maps a `Trace` to values per window. Otherwise it maps the
    `SharedMask` of a group of windows, computed in `dtype`, to one value for the group. `finish`
    turns the mean over windows into the score.
    """

    name: str
    function: Function
    needs: View
    heads: bool
    source: str
    over: Over
    finish: Finish
    dtype: torch.dtype


RULES: Final[dict[str, Rule]] = {}


def mean(means: Tensor) -> Tensor:
    """The mean over windows, unchanged."""
    return means


def negative(means: Tensor) -> Tensor:
    """Minus the mean: the reverse ranking."""
    return -means


def complement(means: Tensor) -> Tensor:
    """1 - mean."""
    return 1 - means


def absolute(means: Tensor) -> Tensor:
    """|mean|: windows with opposite signs cancel."""
    return means.abs()


def root_sum(means: Tensor) -> Tensor:
    """Root of each column's mean square, summed: [..., H, D] -> [..., 1 + H]."""
    return with_sum(means.sqrt().sum(-1))


def variance_sum(means: Tensor) -> Tensor:
    """Variance of each column from its two moments, summed: [..., H, D, 2] -> [..., 1 + H]."""
    variance = means[..., 1] - means[..., 0].square()
    return with_sum(variance.clamp(min=0).sum(-1))


def criterion(
    name: str,
    *,
    needs: View,
    source: str,
    heads: bool = False,
    over: Over = "window",
    finish: Finish = mean,
    dtype: torch.dtype = torch.float64,
) -> Callable[[F], F]:
    """Register the decorated function as the criterion `name`; see `Rule`.

    If `heads` is set, single heads are scored, too. The configuration finds the criterion by a row
    of the same name in `names.py`.

    Raises:
        ValueError: if there is a criterion of this name.
    """

    if name in RULES:
        raise ValueError(f"criterion {name!r} is registered twice: choose another name")

    def register(function: F) -> F:
        RULES[name] = Rule(name, function, needs, heads, source, over, finish, dtype)
        return function

    return register
