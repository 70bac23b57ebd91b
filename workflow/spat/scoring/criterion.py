"""What a criterion is, and what becomes of the mean of its values."""

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
    """A criterion with its function; `names.Criterion` says the same without torch.

    `function` maps a `Trace` to values per window where `over` is `window`, and else the
    `SharedMask` of a group of windows, computed in `dtype`, to one value for all of them. `finish`
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
    """The score is the mean over windows itself."""
    return means


def negative(means: Tensor) -> Tensor:
    """Minus the mean: the reverse ranking."""
    return -means


def complement(means: Tensor) -> Tensor:
    """1 - mean."""
    return 1 - means


def absolute(means: Tensor) -> Tensor:
    """|mean|: windows that pull in opposite directions cancel."""
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

    `heads` says that single heads are scored too. A row of the same name in `names.py` makes the
    criterion known to the configuration.

    Raises:
        ValueError: if there is a criterion of this name.
    """

    if name in RULES:
        raise ValueError(f"criterion {name!r} is registered twice: choose another name")

    def register(function: F) -> F:
        RULES[name] = Rule(name, function, needs, heads, source, over, finish, dtype)
        return function

    return register
