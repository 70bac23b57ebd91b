"""Tests across independent sources, and the smallest change that a number of seeds can detect.

Runs of one dataset, horizons of one dataset, and ETTh1 and ETTm1 (the same sensors) are not
independent. So values are averaged to one per source (`spat.study.statistics.averages`) before they
are tested. If there are too few sources, a test returns a note instead of a p-value.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from spat.blocks import Array

# With five pairs, Wilcoxon's two-sided p-value is at least 0.0625, even if all signs agree.
MIN_SOURCES: Final = 6


class StatisticsError(ValueError):
    """The arguments do not allow a valid test; the message names the remedy."""


@dataclass(frozen=True)
class Outcome:
    """A test over `n` independent sources.

    If it was not made, `p` is None and `note` gives the reason.
    """

    statistic: float | None
    p: float | None
    n: int
    note: str = ""


@dataclass(frozen=True)
class MixedEffect:
    """change ~ 1 with a random effect of the source.

    `mean` with its interval, the standard deviations between and within sources, and the two-sided
    `p` of mean = 0. `note` contains the warnings of the fit; the numbers are NaN if the fit failed.
    """

    mean: float
    low: float
    high: float
    p: float
    between: float
    within: float
    sources: int
    note: str = ""


@dataclass(frozen=True)
class Ranking:
    """Friedman's test and Nemenyi's critical difference over `test.n` independent cases.

    `ranks` are the mean ranks (1: the lowest value). Methods whose ranks differ by less than
    `critical_difference` do not differ significantly. `pairwise` contains Nemenyi's p-values.
    Both are None if there are too few cases.
    """

    test: Outcome
    ranks: pd.Series
    critical_difference: float | None = None
    pairwise: pd.DataFrame | None = None


def wilcoxon(changes: ArrayLike) -> Outcome:
    """Two-sided signed-rank test of changes, one for each independent source.

    The test is made only for at least `MIN_SOURCES` sources. It is exact: with ties, or changes of
    0 (ranked by Pratt's method), the signs are permuted.

    Raises:
        StatisticsError: if a change is not finite.
    """
    x = _finite(changes)
    if x.size < MIN_SOURCES:
        return Outcome(None, None, x.size, _few(x.size))
    if not x.any():
        return Outcome(0.0, 1.0, x.size, "no source changed")
    statistic, p = _signed_rank(x, "two-sided")
    return Outcome(statistic, p, x.size)


def signed_rank_equivalence(changes: ArrayLike, margin: float) -> tuple[Outcome, Outcome]:
    """Two one-sided signed-rank tests (TOST) of changes, one for each independent source.

    The null hypothesis of the first outcome is "at least `margin` worse" (higher), that of the
    second "at least `margin` better". If both p-values are small, the change is within the margin.
    The tests are made only for at least `MIN_SOURCES` sources.

    Raises:
        StatisticsError: if a change is not finite, or the margin is not positive.
    """
    x = _finite(changes)
    if not margin > 0:
        raise StatisticsError(f"margin {margin}: give a number above 0, in the unit of the changes")
    if x.size < MIN_SOURCES:
        none = Outcome(None, None, x.size, _few(x.size))
        return none, none
    worse, better = _signed_rank(x - margin, "less"), _signed_rank(x + margin, "greater")
    return Outcome(*worse, x.size), Outcome(*better, x.size)


def _signed_rank(x: Array, alternative: str) -> tuple[float, float]:
    sizes = np.abs(x)
    plain = bool((x != 0).all()) and len(np.unique(sizes)) == x.size
    method = "exact" if plain else scipy.stats.PermutationMethod(rng=np.random.default_rng(0))
    result = scipy.stats.wilcoxon(x, zero_method="pratt", alternative=alternative, method=method)
    return float(result.statistic), float(result.pvalue)


def _finite(changes: ArrayLike) -> Array:
    x = np.asarray(changes, dtype=np.float64)
    if not np.isfinite(x).all():
        raise StatisticsError(
            f"changes {x.tolist()}: leave out sources whose training diverged, and report them"
        )
    return x


def _few(sources: int) -> str:
    return f"too few sources: {sources}, at least {MIN_SOURCES} needed"


def t_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """The t interval of the mean of independent values; missing for fewer than two."""
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        return float("nan"), float("nan")
    half = scipy.stats.t.ppf(0.5 + confidence / 2.0, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return float(x.mean() - half), float(x.mean() + half)


def equal_variances(variances: ArrayLike, freedom: ArrayLike) -> float:
    """P-value of Bartlett's test that sample variances of these degrees of freedom are equal.

    It is 1 if there are fewer than two variances or all are 0, and 0 if only some are 0.
    """
    values, df = np.asarray(variances, dtype=np.float64), np.asarray(freedom, dtype=np.float64)
    if values.size < 2 or not values.any():
        return 1.0
    if not values.all():
        return 0.0
    total = df.sum()
    pooled = (df * values).sum() / total
    scale = 1.0 + ((1.0 / df).sum() - 1.0 / total) / (3.0 * (values.size - 1))
    statistic = (df * np.log(pooled / values)).sum() / scale
    return float(scipy.stats.chi2.sf(statistic, values.size - 1))


@dataclass(frozen=True)
class Winner:
    """The mean of the best method on the sources that selected it and on other sources.

    For every way to split the sources in two halves (if their number is odd, the smaller half
    selects), the method with the highest mean on one half is evaluated on the other half. `chosen`
    and `held_out` are its means on the two halves, averaged over all splits; `wins` counts how
    often each method is selected. `p` is the one-sided p-value of `held_out` from a test that flips
    the signs of whole sources.
    """

    chosen: float
    held_out: float
    p: float | None
    wins: dict[str, int]
    n: int


def winner(table: pd.DataFrame) -> Winner:
    """The winner's curse in a table of gains (high is best): rows are sources, columns methods.

    The test flips the signs of sources in all combinations (null hypothesis: no method is better
    than chance). It is made only for at least `MIN_SOURCES` sources.

    Raises:
        StatisticsError: for fewer than two sources, or if a gain is missing.
    """
    gains = _finite(table.to_numpy())
    n = len(gains)
    if n < 2:
        raise StatisticsError(f"{n} source(s): a split in two halves needs at least two")
    halves = np.array(list(itertools.combinations(range(n), n // 2)))
    inside = np.zeros((len(halves), n))
    np.put_along_axis(inside, halves, 1.0, axis=1)
    # Weights of the sources: those that select, and the others.
    selecting, others = inside / (n // 2), (1.0 - inside) / (n - n // 2)

    def means(x: Array) -> tuple[NDArray[np.intp], float, float]:
        first, second = selecting @ x, others @ x
        best = first.argmax(axis=1)
        rows = np.arange(len(best))
        return best, float(first[rows, best].mean()), float(second[rows, best].mean())

    best, chosen, held_out = means(gains)
    counts = np.bincount(best, minlength=gains.shape[1])
    wins = {str(name): int(k) for name, k in zip(table.columns, counts, strict=True) if k}
    p = None
    if n >= MIN_SOURCES:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        flipped = np.array([means(gains * sign[:, None])[2] for sign in signs])
        p = float((flipped >= held_out - 1e-12).mean())
    return Winner(chosen, held_out, p, wins, n)


def holm(p: Mapping[str, float | None], family: Sequence[str]) -> dict[str, float | None]:
    """P-values adjusted by Holm's method over a family of tests that was declared beforehand.

    A test of the family that could not be made (None) counts as a member; its result is None.

    Raises:
        StatisticsError: if the names of `p` are not those of `family`.
    """
    if len(set(family)) != len(family) or set(p) != set(family):
        raise StatisticsError(
            f"tests {sorted(p)} differ from the declared family {sorted(family)}: Holm's method "
            "needs every test that was planned and no other"
        )
    given = [p[name] for name in family]
    if not given:
        return {}
    # `multipletests` of statsmodels collects garbage at each call, which took half of the time of
    # the tables that use it.
    raw = np.array([1.0 if value is None or np.isnan(value) else value for value in given])
    order = np.argsort(raw)
    adjusted = np.empty_like(raw)
    adjusted[order] = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)).clip(max=1.0)
    made = [value is not None and not np.isnan(value) for value in given]
    return {n: float(a) if m else None for n, a, m in zip(family, adjusted, made, strict=True)}


def mixed_model(frame: pd.DataFrame) -> MixedEffect:
    """Mean of `change` over cells with a random effect of `source` (REML), as a sensitivity check.

    With few sources the normal interval is too narrow, so read it together with the values per
    source.
    """
    from statsmodels.regression.mixed_linear_model import MixedLM

    rows = frame[["change", "source"]].dropna()
    sources = int(rows["source"].nunique())
    nan = float("nan")
    if sources < 2 or len(rows) <= sources:
        note = (
            f"{len(rows)} cells of {sources} sources: at least two sources are needed, and one of "
            "them with several cells"
        )
        return MixedEffect(nan, nan, nan, nan, nan, nan, sources, note)
    y = rows["change"].to_numpy(dtype=np.float64)
    scale = float(y.std()) or 1.0  # The optimiser's tolerance is absolute.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit = MixedLM(y / scale, np.ones((len(y), 1)), groups=rows["source"].to_numpy()).fit()
        except np.linalg.LinAlgError as error:
            return MixedEffect(nan, nan, nan, nan, nan, nan, sources, str(error))
        low, high = scale * fit.conf_int(0.05)[0]
        mean, p = scale * float(fit.fe_params[0]), float(fit.pvalues[0])
        between = scale * float(np.sqrt(np.asarray(fit.cov_re)[0, 0]))
    note = "; ".join(dict.fromkeys(str(warning.message).split("\n")[0] for warning in caught))
    within = scale * float(np.sqrt(fit.scale))
    return MixedEffect(mean, float(low), float(high), p, between, within, sources, note)


def ranking(table: pd.DataFrame) -> Ranking:
    """Friedman's test of methods (columns) over independent cases (rows); low values are best.

    Cases with a missing value are left out. The test and Nemenyi's critical difference (Demsar
    2006, equation for CD) are computed only for at least `MIN_SOURCES` cases and three methods.
    """
    complete = table.dropna()
    cases, methods = complete.shape
    ranks = complete.rank(axis="columns").mean().sort_values()
    if cases < MIN_SOURCES or methods < 3:
        note = f"{cases} cases of {methods} methods: at least {MIN_SOURCES} and 3 needed"
        return Ranking(Outcome(None, None, cases, f"too few: {note}"), ranks)
    import scikit_posthocs

    result = scipy.stats.friedmanchisquare(*complete.to_numpy().T)
    pairwise = scikit_posthocs.posthoc_nemenyi_friedman(complete.to_numpy())
    pairwise = pairwise.set_axis(complete.columns).set_axis(complete.columns, axis="columns")
    q = scipy.stats.studentized_range.ppf(0.95, methods, np.inf) / np.sqrt(2.0)
    distance = float(q * np.sqrt(methods * (methods + 1) / (6.0 * cases)))
    test = Outcome(float(result.statistic), float(result.pvalue), cases)
    return Ranking(test, ranks, distance, pairwise)


def detectable(sd: float, n: int, power: float = 0.8) -> float:
    """The smallest mean difference that a paired t-test of `n` pairs detects with this power.

    The test has a level of 5 %. `sd` is the standard deviation of the paired differences; the
    result has its unit.

    Raises:
        StatisticsError: for fewer than two pairs.
    """
    from statsmodels.stats.power import TTestPower

    if n < 2:
        raise StatisticsError(f"{n} pair(s) of seeds: a paired t-test needs at least two")
    effect = TTestPower().solve_power(nobs=n, alpha=0.05, power=power, alternative="two-sided")
    return float(effect) * sd
