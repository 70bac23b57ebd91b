"""Rank agreement of many short score vectors at once, and the site scores of a run.

`scipy.stats.kendalltau` takes one pair of vectors a call; a stability curve needs hundreds of
thousands of pairs of four sites each.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from spat.evaluation.bootstrap import Array
from spat.frames import RUN

# Recorded among the scores, but no criterion.
UNIFORMITY: Final = "uniformity"

# All permutations up to this many sites (720), a random sample of as many beyond.
EXACT_SITES: Final = 6


def tau_b(a: ArrayLike, b: ArrayLike) -> Array:
    """Kendall's tau-b along the last axis: [..., N] and [..., N] -> [...], broadcast.

    A constant vector ranks nothing and gets 0. (scipy says NaN; an average over runs would then
    forget that a criterion was of no use.)
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    first, second = np.triu_indices(x.shape[-1], k=1)
    signs = np.sign(x[..., first] - x[..., second]), np.sign(y[..., first] - y[..., second])
    both = np.asarray((signs[0] * signs[1]).sum(axis=-1))
    norm = np.sqrt((signs[0] ** 2).sum(axis=-1) * (signs[1] ** 2).sum(axis=-1))
    return np.asarray(np.divide(both, norm, out=np.zeros_like(both), where=norm > 0))


def permutations(n: int, seed: int = 0) -> NDArray[np.intp]:
    """Orders of n sites, [P, n]: all of them up to `EXACT_SITES`, else a random sample."""
    if n <= EXACT_SITES:
        return np.array(list(itertools.permutations(range(n))), dtype=np.intp)
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(n), (math.factorial(EXACT_SITES), 1)), axis=1)


def batch_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of whole sites at the kept checkpoint, one row per run, criterion, batch and site."""
    rows = scores[(scores["head"] == -1) & (scores["batch"] >= 0)]
    return rows[rows["criterion"] != UNIFORMITY]


def site_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The score of each site: RUN, `criterion`, `site`, `value`, the mean over the batches."""
    keys = [*RUN, "criterion", "site"]
    return batch_scores(scores).groupby(keys)["value"].mean().reset_index()


def vectors(frame: pd.DataFrame, keys: list[str], value: str = "value") -> pd.Series:
    """One vector over sites, in forward order, per combination of `keys`: values are arrays [N]."""
    ordered = frame.sort_values([*keys, "site"])
    groups: Any = ordered.groupby(keys, sort=True)[value]
    return groups.agg(lambda values: values.to_numpy(dtype=np.float64))  # type: ignore[no-any-return]


def pairwise_tau(values: pd.Series, group: list[str]) -> pd.DataFrame:
    """Mean tau-b over all pairs of vectors within a group: `group`, `tau`, `pairs`."""
    found = []
    for key, members in values.groupby(level=group):
        x = np.stack(members.to_list())
        first, second = np.triu_indices(len(x), k=1)
        if len(first):
            tau = float(tau_b(x[first], x[second]).mean())
            found.append(dict(zip(group, key, strict=True)) | {"tau": tau, "pairs": len(first)})
    return pd.DataFrame(found, columns=[*group, "tau", "pairs"])


def merged_criteria(scores: pd.DataFrame) -> dict[str, str]:
    """Criteria that order the sites of every run identically, merged: name -> joined label.

    Ties are broken in forward order, as pruning does. A label joins its criteria by ` = ` in the
    order of the alphabet; one that is alone keeps its name.
    """
    order = vectors(site_scores(scores), [*RUN, "criterion"]).map(
        lambda value: tuple(np.argsort(value, kind="stable").tolist())
    )
    table = order.unstack("criterion")
    table = table.where(table.notna(), None)
    groups: dict[tuple[object, ...], list[str]] = {}
    for criterion in sorted(table.columns):
        groups.setdefault(tuple(table[criterion]), []).append(criterion)
    return {name: " = ".join(names) for names in groups.values() for name in names}
