"""Rank agreement of many short score vectors at once, and the site scores of a run.

`scipy.stats.kendalltau` takes one pair of vectors per call. A stability curve needs hundreds of
thousands of pairs of four sites each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from spat.blocks import Array
from spat.study.statistics.cells import ALL_BATCHES, RUN, WHOLE_SITE, keyed

# Statistics that are recorded with the scores but are not criteria.
UNIFORMITY: Final = "uniformity"

# Up to this number of sites all permutations are used (720); above it, as many random ones.
EXACT_SITES: Final = 6


def tau_b(a: ArrayLike, b: ArrayLike) -> Array:
    """Kendall's tau-b along the last axis: [..., N] and [..., N] -> [...], broadcast.

    The result is 0 if a vector is constant. (scipy returns NaN, which a mean over runs would leave
    out, although the criterion failed to rank.)
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    first, second = _pairs(x.shape[-1])
    signs = np.sign(x[..., first] - x[..., second]), np.sign(y[..., first] - y[..., second])
    both = np.asarray((signs[0] * signs[1]).sum(axis=-1))
    norm = np.sqrt((signs[0] ** 2).sum(axis=-1) * (signs[1] ** 2).sum(axis=-1))
    return np.asarray(np.divide(both, norm, out=np.zeros_like(both), where=norm > 0))


@cache
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(n, k=1)


@cache
def permutations(n: int) -> NDArray[np.intp]:
    """Orders of n sites, [P, n]: all of them up to `EXACT_SITES`, else a random sample.

    The array is read-only, since all calls share it.
    """
    if n <= EXACT_SITES:
        orders = np.array(list(itertools.permutations(range(n))), dtype=np.intp)
        orders.setflags(write=False)
        return orders
    return shuffles(n, math.factorial(EXACT_SITES), 0)


@cache
def shuffles(n: int, count: int, seed: int) -> NDArray[np.intp]:
    """Random orders of n things, [count, n], read-only."""
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(n, dtype=np.intp), (count, 1)), axis=1)
    orders.setflags(write=False)
    return orders


def batch_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of whole sites in single batches at the kept checkpoint."""
    rows = scores[(scores["head"] == WHOLE_SITE) & (scores["batch"] != ALL_BATCHES)]
    return rows[rows["criterion"] != UNIFORMITY]


def site_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The score that pruning ranks by: RUN, `criterion`, `site`, `value`.

    It is the score over all batches at the kept epoch, which is the epoch with scores of single
    batches. Runs without scores are left out, and so are criteria with a missing score, which
    cannot be ranked.
    """
    whole = scores[(scores["head"] == WHOLE_SITE) & (scores["criterion"] != UNIFORMITY)]
    kept = whole.loc[whole["batch"] != ALL_BATCHES, [*RUN, "epoch"]].drop_duplicates()
    rows = whole[whole["batch"] == ALL_BATCHES].merge(kept, on=[*RUN, "epoch"])
    unknown = rows["value"].isna().groupby([rows[key] for key in (*RUN, "criterion")])
    return rows.loc[~unknown.transform("any"), [*RUN, "criterion", "site", "value"]]


def vectors(frame: pd.DataFrame, keys: list[str], value: str = "value") -> pd.Series:
    """One vector over sites, in forward order, per combination of `keys`: values are arrays [N]."""
    ordered = frame.sort_values([*keys, "site"])
    groups: Any = ordered.groupby(keys, sort=True)[value]
    return groups.agg(lambda values: values.to_numpy(dtype=np.float64))  # type: ignore[no-any-return]


def pairwise_tau(values: pd.Series, group: list[str]) -> pd.DataFrame:
    """Mean tau-b over all pairs of vectors within a group: `group`, `tau`, `pairs`."""
    taus = []
    for key, members in values.groupby(level=group):
        x = np.stack(members.to_list())
        first, second = np.triu_indices(len(x), k=1)
        if len(first):
            tau = float(tau_b(x[first], x[second]).mean())
            taus.append(keyed(group, key) | {"tau": tau, "pairs": len(first)})
    return pd.DataFrame(taus, columns=[*group, "tau", "pairs"])


def merged_criteria(scores: pd.DataFrame) -> dict[str, str]:
    """Criteria that order the sites of every run identically, merged: name -> joined label.

    Ties are broken in forward order, as in pruning. A label joins its criteria by ` = ` in
    alphabetical order. Other criteria keep their name.
    """
    orders = vectors(site_scores(scores), ["criterion", *RUN]).map(
        lambda value: tuple(np.argsort(value, kind="stable").tolist())
    )
    groups: dict[tuple[object, ...], list[str]] = {}
    for criterion, own in orders.groupby(level="criterion"):
        runs = own.droplevel("criterion")
        groups.setdefault(tuple(zip(runs.index, runs, strict=True)), []).append(str(criterion))
    return {name: " = ".join(names) for names in groups.values() for name in names}


def relabelled(frame: pd.DataFrame, labels: Mapping[str, str] | None) -> pd.DataFrame:
    """The frame with the names of merged criteria replaced by their label."""
    names = dict(labels or {})
    return frame.assign(criterion=frame["criterion"].map(lambda name: names.get(name, name)))
