"""Decisions: from scores to masks. Nothing is trained here, and torch is not imported.

A ratio a of N sites (or heads) removes the floor(a N + 1/2) sites with the lowest scores, with ties
in forward order. The adaptive rules choose the number of sites themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from spat.attention.mask import Mask, all_site_masks
from spat.blocks import Array, block_means

RANDOM = "random"
# The adaptive rules follow the criterion of the paper.
RULED = "send"
# Rules that choose among the fine-tuned masks of the nested path, after these are trained.
PATH_RULES = ("one_se", "validation")
SITE, HEAD = "site", "head"
# The number of a head that stands for the whole site.
WHOLE = -1
Place = tuple[int, int]
# criterion, site, head (`WHOLE` for the whole site) -> score.
Scores = Mapping[tuple[str, int, int], float]


class Level(NamedTuple):
    """The criteria and the ratios of one level (whole sites, or heads)."""

    criteria: Sequence[str] = ()
    ratios: Sequence[float] = ()


@dataclass(frozen=True)
class Decision:
    """A row of the frame `selections`: a mask, and the criterion and ratio or rule that chose it.

    `level` is `site` or `head`. `ratio` is NaN if a rule chose the mask, and `rule` is empty if a
    ratio did. `removed` is the number of sites or heads, and `finetunings` the number of trained
    masks that the decision used.
    """

    criterion: str
    draw: int
    level: str
    ratio: float
    rule: str
    removed: int
    mask: str
    finetunings: int = 0


def count(ratio: float, n: int) -> int:
    """The number of n that are removed: floor(ratio n + 1/2), halves rounded up.

    The ratio is used as a decimal number, so that 0.29 of 50 is 14.5 and not slightly less.
    """
    return math.floor(Fraction(str(ratio)) * n + Fraction(1, 2))


def distinct_ratios(ratios: Iterable[float], n: int) -> tuple[float, ...]:
    """The ratios in their order, without those that remove as many of n as an earlier ratio."""
    first: dict[int, float] = {}
    for ratio in ratios:
        first.setdefault(count(ratio, n), ratio)
    return tuple(first.values())


def lowest(scores: Sequence[float] | Array, k: int) -> tuple[int, ...]:
    """The indices of the k lowest scores in ascending order of score; ties in forward order.

    Raises:
        ValueError: if a score is NaN, which has no rank.
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError(
            f"scores {values.tolist()}: NaN has no rank; check whether the model diverged"
        )
    return tuple(int(i) for i in np.argsort(values, kind="stable")[:k])


def random_draws(n: int, k: int, wanted: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Up to `wanted` different random choices of k out of n; fewer if fewer exist.

    Each (n, k) has its own stream of random numbers, so that draws do not depend on other ratios.
    """
    generator = np.random.default_rng((seed, n, k))
    draws: dict[tuple[int, ...], None] = {}
    while len(draws) < min(wanted, math.comb(n, k)):
        chosen = generator.choice(n, size=k, replace=False)
        draws.setdefault(tuple(sorted(int(i) for i in chosen)))
    return tuple(draws)


def nested_path(scores: Sequence[float] | Array, heads: Sequence[int]) -> tuple[Mask, ...]:
    """The N + 1 masks from full to empty that remove one site after another, lowest score first."""
    order = lowest(scores, len(heads))
    full = Mask.full(heads)
    return tuple(full.without_sites(order[:k]) for k in range(len(heads) + 1))


def requested(
    scores: Scores,
    heads: Sequence[int],
    *,
    site: Level,
    head: Level,
    rules: Sequence[str] = (),
    draws: int,
    exhaustive: bool = False,
    seed: int,
    bounded: Sequence[int] | None = None,
) -> list[Decision]:
    """All decisions for the given criteria, ratios and rules.

    `heads` is the number of heads per site. `rules` are adaptive rules for whole sites, `draws` is
    the number of random masks of each ratio, and `exhaustive` adds all site masks. `bounded` are
    the sites that `loss_drop_bound` returned.

    Decisions of the rule `path` are the nested path of SEND, with `draw` sites removed; the rules
    that use fine-tuned errors choose among them later. Decisions of the rule `exhaustive` are all
    site masks. `gap` gives no decision if it is undefined. The control is not included.

    Raises:
        ValueError: if a criterion has no score for a site (or head), or `rules` contains
            `loss_drop_bound` and `bounded` is None.
    """
    if not heads:
        return []
    decisions = [*_by_ratio(SITE, scores, heads, site, draws, seed)]
    decisions += _by_rule(scores, heads, rules, bounded)
    decisions += _by_ratio(HEAD, scores, heads, head, draws, seed)
    if exhaustive:
        masks = all_site_masks(heads)
        decisions += [_ruled("exhaustive", m, i, "exhaustive") for i, m in enumerate(masks)]
    return decisions


def gap(scores: Sequence[float] | Array) -> int | None:
    """The k with the largest relative gap s_(k+1) / s_(k) in the sorted scores.

    None if there is no such gap: fewer than two scores, all scores equal, or a score that is not
    positive and finite. Of equal gaps the first is taken.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return None
    ratios = values[1:] / values[:-1]
    return int(ratios.argmax()) + 1 if ratios.max() > 1 else None


def loss_drop_bound(
    drops: Array, *, block: int, draws: int, confidence: float, seed: int
) -> tuple[int, ...]:
    """The sites that may be removed: those whose mean loss drop has an upper bound of at most 0.

    `drops` [sites, windows] is the validation loss of each window without the site minus the loss
    with it (paired). The bound is one-sided: the `confidence` quantile of the moving-block
    bootstrap.
    """
    means = _bootstrap(drops, block, draws, seed)
    return tuple(int(i) for i in np.flatnonzero(np.quantile(means, confidence, axis=-1) <= 0))


def one_standard_error(errors: Sequence[Array], *, block: int, draws: int, seed: int) -> int:
    """The largest k whose mean error is at most one standard error above the best of the path.

    `errors` holds the per-window validation losses [windows] of the K + 1 masks of the path. The
    standard error is that of the paired difference to the best mask (moving-block bootstrap). The
    standard error of the loss itself would include the variation between windows, which all masks
    share. A mask with a loss that is not finite is never chosen.

    Raises:
        ValueError: if no mask has finite losses.
    """
    best = validation_minimum([float(np.mean(e, dtype=np.float64)) for e in errors])
    chosen = best
    for k in range(best + 1, len(errors)):
        difference = np.asarray(errors[k], np.float64) - errors[best]
        if not np.isfinite(difference).all():
            continue
        if difference.mean() <= _bootstrap(difference, block, draws, seed).std(ddof=1):
            chosen = k
    return chosen


def validation_minimum(errors: Sequence[float] | Array) -> int:
    """The k with the lowest mean validation error along the path; of equal errors the largest k.

    Raises:
        ValueError: if no error is finite.
    """
    values = np.asarray(errors, dtype=np.float64)
    if not np.isfinite(values).any():
        raise ValueError(
            f"validation errors {values.tolist()}: no mask of the path has a finite error"
        )
    return int(np.flatnonzero(values == values[np.isfinite(values)].min())[-1])


def _bootstrap(series: Array, block: int, draws: int, seed: int) -> Array:
    """Moving-block bootstrap of the mean: series [..., windows] -> [..., draws].

    A series shorter than two blocks is cut into halves instead; its spread is then underestimated.
    """
    values = np.asarray(series, dtype=np.float64)
    block = max(1, min(block, values.shape[-1] // 2))
    return block_means(values, block, draws, np.random.default_rng(seed))


def _by_ratio(
    level: str, scores: Scores, heads: Sequence[int], asked: Level, draws: int, seed: int
) -> Iterator[Decision]:
    places = _sites(heads) if level == SITE else Mask.empty(heads).removed_heads
    n = len(places)
    for criterion in asked.criteria:
        values = None if criterion == RANDOM else _values(scores, criterion, places, heads)
        for ratio in distinct_ratios(asked.ratios, n):
            k = count(ratio, n)
            chosen = random_draws(n, k, draws, seed) if values is None else (lowest(values, k),)
            for draw, indices in enumerate(chosen):
                mask = _without(heads, [places[i] for i in indices])
                yield Decision(criterion, draw, level, ratio, "", k, mask.name)


def _by_rule(
    scores: Scores,
    heads: Sequence[int],
    rules: Sequence[str],
    bounded: Sequence[int] | None,
) -> Iterator[Decision]:
    if not rules:
        return
    values = _values(scores, RULED, _sites(heads), heads)
    path = nested_path(values, heads)
    if "gap" in rules and (k := gap(values)) is not None:
        yield _ruled("gap", path[k])
    if "loss_drop_bound" in rules:
        if bounded is None:
            raise ValueError(
                "rule loss_drop_bound: pass `bounded`, the sites that it allows to remove"
            )
        yield _ruled("loss_drop_bound", Mask.full(heads).without_sites(bounded))
    if set(rules) & set(PATH_RULES):
        yield from (_ruled("path", mask, k) for k, mask in enumerate(path))


def _ruled(rule: str, mask: Mask, draw: int = 0, criterion: str = RULED) -> Decision:
    return Decision(criterion, draw, SITE, math.nan, rule, len(mask.sites_removed), mask.name)


def _sites(heads: Sequence[int]) -> tuple[Place, ...]:
    return tuple((site, WHOLE) for site in range(len(heads)))


def _without(heads: Sequence[int], places: Iterable[Place]) -> Mask:
    mask = Mask.full(heads)
    for site, head in places:
        mask = mask.without_sites([site]) if head == WHOLE else mask.without_heads([(site, head)])
    return mask


def _values(scores: Scores, criterion: str, places: Sequence[Place], heads: Sequence[int]) -> Array:
    """The scores of a criterion at `places`.

    If a site has a single head without a score, the score of the site is used.
    """
    values = []
    for site, head in places:
        whole = scores.get((criterion, site, WHOLE), math.nan) if heads[site] == 1 else math.nan
        values.append(scores.get((criterion, site, head), whole))
    for (site, head), value in zip(places, values, strict=True):
        if math.isnan(value):
            where = f"site {site}" if head == WHOLE else f"site {site}, head {head}"
            raise ValueError(
                f"criterion {criterion!r} has no score or NaN for {where}: score it, or remove it "
                f"from pruning.{SITE if head == WHOLE else HEAD}.criteria"
            )
    return np.asarray(values, np.float64)
