"""Selection: the number of sites, the sites, and the requests of a configuration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from spat.attention.mask import Mask, all_site_masks
from spat.pipeline import frames
from spat.pipeline.config import LevelSection, PruningSection
from spat.pipeline.stages import select
from spat.surgery import choose

HEADS = (2, 2, 2, 2)
NONE = PruningSection(site=LevelSection(), head=LevelSection())


def table(sites: list[float], criterion: str = "send") -> pd.DataFrame:
    """Scores of whole sites; head h of site i scores `sites[i] + h / 100`."""
    rows = [(i, -1, criterion, value) for i, value in enumerate(sites)]
    rows += [(i, h, criterion, v + h / 100) for i, v in enumerate(sites) for h in range(2)]
    return pd.DataFrame(rows, columns=["site", "head", "criterion", "value"])


def site_level(*ratios: float | str, criteria: tuple[str, ...] = ("send",)) -> PruningSection:
    return PruningSection(site=LevelSection(criteria=criteria, ratios=ratios), head=LevelSection())


@pytest.mark.parametrize(
    ("ratio", "n", "k"),
    [
        (0.1, 4, 0),
        (0.12, 4, 0),
        (0.125, 4, 1),
        (0.25, 4, 1),
        (0.5, 4, 2),
        (0.75, 4, 3),
        (1.0, 4, 4),
        (0.25, 1, 0),
        (0.5, 1, 1),
        (0.25, 2, 1),
        (0.5, 3, 2),
        (0.25, 3, 1),
        (0.75, 3, 2),
        (0.5, 5, 3),
        (0.29, 50, 15),  # 14.5, although 0.29 * 50 is 14.499999999999998
        (0.3, 32, 10),
        (0.5, 0, 0),
    ],
)
def test_count_rounds_halves_up(ratio: float, n: int, k: int) -> None:
    assert choose.count(ratio, n) == k


def test_ratios_that_remove_the_same_are_reported_once() -> None:
    assert choose.distinct_ratios((0.25, 0.5, 0.75, 1.0), 4) == (0.25, 0.5, 0.75, 1.0)
    assert choose.distinct_ratios((0.25, 0.5, 0.75, 1.0), 2) == (0.25, 0.75)
    assert choose.distinct_ratios((1.0, 0.75), 2) == (1.0,)


def test_lowest_breaks_ties_in_forward_order() -> None:
    assert choose.lowest([3.0, 1.0, 2.0], 2) == (1, 2)
    assert choose.lowest([1.0] * 40, 3) == (0, 1, 2)
    assert choose.lowest([2.0, 1.0, 1.0, 2.0], 3) == (1, 2, 0)
    assert choose.lowest([-math.inf, 0.0, -1.0], 2) == (0, 2)
    with pytest.raises(ValueError, match="NaN has no rank"):
        choose.lowest([1.0, math.nan], 1)


def test_draws_are_distinct_and_reproducible() -> None:
    drawn = choose.random_draws(32, 8, 10, seed=3)
    assert len(set(drawn)) == 10
    assert all(len(set(draw)) == 8 and max(draw) < 32 for draw in drawn)
    assert drawn == choose.random_draws(32, 8, 10, seed=3)
    assert drawn != choose.random_draws(32, 8, 10, seed=4)


def test_all_choices_are_drawn_once_if_there_are_fewer_than_draws() -> None:
    drawn = choose.random_draws(4, 2, 10, seed=0)
    assert sorted(drawn) == list(itertools.combinations(range(4), 2))
    assert choose.random_draws(4, 4, 10, seed=0) == ((0, 1, 2, 3),)
    assert choose.random_draws(4, 0, 10, seed=0) == ((),)


def test_draws_are_uniform() -> None:
    first = [choose.random_draws(4, 1, 1, seed)[0][0] for seed in range(400)]
    assert np.bincount(first, minlength=4).min() > 60


def test_the_nested_path_removes_one_site_after_the_other() -> None:
    path = [mask.name for mask in choose.nested_path([0.3, 0.1, 0.2], (2, 2, 2))]
    assert path == ["1.1.1", "1.0.1", "1.0.0", "0.0.0"]


def test_requested_rows_are_valid_selections() -> None:
    section = PruningSection(
        site=LevelSection(
            criteria=("send", "random"), ratios=(0.25, 0.5, 1.0, "auto:gap", "auto:validation")
        ),
        head=LevelSection(criteria=("send", "random"), ratios=(0.25, 1.0)),
        draws=5,
        exhaustive=True,
    )
    selections = select.requested(table([0.4, 0.1, 0.2, 0.3]), HEADS, section, seed=1)
    keys = ("e", "forecasting", "d", "s", "iTransformer", "v", None, "l96-h96", 0)
    run = dict(zip(frames.RUN, keys, strict=True))
    assert len(frames.checked("selections", selections.assign(**run))) == len(selections)
    for name, level, removed in selections[["mask", "level", "removed"]].itertuples(index=False):
        mask = Mask.parse(name, HEADS)
        gone = mask.removed_heads if level == "head" else mask.sites_removed
        assert len(gone) == removed


def test_sites_are_removed_by_score() -> None:
    selections = select.requested(
        table([0.4, 0.1, 0.2, 0.3]), HEADS, site_level(0.25, 0.5, 0.75, 1.0), seed=1
    )
    assert selections["mask"].tolist() == ["1.0.1.1", "1.0.0.1", "1.0.0.0", "0.0.0.0"]
    assert selections["removed"].tolist() == [1, 2, 3, 4]
    assert set(selections["criterion"]) == {"send"}


def test_heads_are_ranked_across_sites() -> None:
    section = PruningSection(
        site=LevelSection(), head=LevelSection(criteria=("send",), ratios=(0.25, 0.375, 1.0))
    )
    scores = table([0.4, 0.1, 0.105, 0.3])
    selections = select.requested(scores, HEADS, section, seed=1)
    # Scores of the heads: .40 .41 | .10 .11 | .105 .115 | .30 .31
    assert selections["mask"].tolist() == ["1.01.01.1", "1.0.01.1", "0.0.0.0"]
    assert selections["removed"].tolist() == [2, 3, 8]


def test_a_new_ratio_changes_no_draw() -> None:
    scores = table([1.0] * 4)
    few, more = (
        select.requested(scores, (8,) * 4, head_draws(ratios), seed=9)
        for ratios in ((0.5,), (0.25, 0.5))
    )
    pd.testing.assert_series_equal(
        few["mask"], more.loc[more["ratio"] == 0.5, "mask"].reset_index(drop=True)
    )
    assert few["mask"].nunique() == 10


def head_draws(ratios: tuple[float, ...]) -> PruningSection:
    return PruningSection(
        site=LevelSection(), head=LevelSection(criteria=("random",), ratios=ratios)
    )


def test_rules_leave_their_masks() -> None:
    scores = table([0.4, 0.1, 0.11, 0.3])
    section = site_level("auto:gap", "auto:loss_drop_bound", "auto:one_se")
    selections = select.requested(scores, HEADS, section, seed=1, bounded=[3])
    masks = selections.groupby("rule")["mask"].apply(list)
    assert masks["gap"] == ["1.0.0.1"]
    assert masks["loss_drop_bound"] == ["1.1.1.0"]
    assert masks["path"] == ["1.1.1.1", "1.0.1.1", "1.0.0.1", "1.0.0.0", "0.0.0.0"]
    assert selections.loc[selections["rule"] == "path", "draw"].tolist() == [0, 1, 2, 3, 4]
    assert selections["ratio"].isna().all()


def test_an_undefined_gap_leaves_no_row() -> None:
    scores = table([0.4, -0.1, 0.2, 0.3])
    selections = select.requested(scores, HEADS, site_level("auto:gap"), seed=1)
    assert selections.empty


def test_exhaustive_is_every_site_mask() -> None:
    section = NONE.model_copy(update={"exhaustive": True})
    selections = select.requested(table([1.0] * 4), HEADS, section, seed=1)
    assert selections["mask"].tolist() == [mask.name for mask in all_site_masks(HEADS)]


def test_a_model_without_sites_has_nothing_to_decide() -> None:
    assert select.requested(table([]), (), site_level(0.5, "auto:gap"), seed=1).empty


def test_scores_that_are_missing_are_named() -> None:
    scores = table([0.4, 0.1, 0.2])
    with pytest.raises(ValueError, match=r"'send' has no score or NaN for site 3"):
        select.requested(scores, HEADS, site_level(0.5), seed=1)
    with pytest.raises(ValueError, match=r"'michel' has no score or NaN for site 0"):
        select.requested(scores, HEADS, site_level(0.5, criteria=("michel",)), seed=1)
    with pytest.raises(ValueError, match="several scores"):
        select.requested(pd.concat([scores, scores]), HEADS, site_level(0.5), seed=1)
    with pytest.raises(ValueError, match="loss_drop_bound"):
        select.requested(table([1.0] * 4), HEADS, site_level("auto:loss_drop_bound"), seed=1)


@pytest.mark.parametrize(
    ("scores", "k"),
    [
        ([1.0, 2.0, 9.0, 10.0], 2),
        ([9.0, 10.0, 1.0, 2.0], 2),
        ([1e-9, 1.0, 2.0, 3.0], 1),
        ([1.0, 1.1, 1.2, 5.0], 3),
        ([1.0, 2.0, 4.0], 1),
        ([1.0, 1.0, 1.0], None),
        ([1.0], None),
        ([], None),
        ([0.0, 1.0, 2.0], None),
        ([-1.0, 1.0, 2.0], None),
        ([math.nan, 1.0, 2.0], None),
    ],
)
def test_gap(scores: list[float], k: int | None) -> None:
    assert choose.gap(scores) == k


def test_loss_drop_bound_removes_only_sites_that_are_surely_harmless() -> None:
    noise = np.random.default_rng(0).normal(size=(4, 600))
    drops = noise + np.array([[-1.0], [1.0], [0.0], [-1.0]])
    options = {"block": 20, "draws": 500, "confidence": 0.95, "seed": 1}
    assert choose.loss_drop_bound(drops, **options) == (0, 3)
    assert choose.loss_drop_bound(np.zeros((2, 600)), **options) == (0, 1)


def test_one_standard_error_takes_the_smallest_network_within_the_noise() -> None:
    generator = np.random.default_rng(0)
    level = 10 * generator.random(800)  # the months differ much more than the masks do
    errors = [level + shift + 0.5 * generator.normal(size=800) for shift in (0.1, 0, 0, 0.5)]
    options = {"block": 20, "draws": 500, "seed": 1}
    errors[2] += errors[1].mean() - errors[2].mean() + 1e-4
    assert choose.one_standard_error(errors, **options) == 2
    # The errors differ by the same shift in every window, so noise between months does not hide it.
    shifted = [level, level + 1e-3]
    assert choose.one_standard_error(shifted, **options) == 0
    assert choose.one_standard_error([level, level], **options) == 1
    diverged = np.full(800, np.nan)
    assert choose.one_standard_error([level, diverged], **options) == 0


def test_validation_minimum_prefers_the_smaller_network() -> None:
    assert choose.validation_minimum([3.0, 1.0, 2.0]) == 1
    assert choose.validation_minimum([1.0, 2.0, 1.0]) == 2
    assert choose.validation_minimum([math.nan, 2.0, 3.0]) == 1
    with pytest.raises(ValueError, match="finite"):
        choose.validation_minimum([math.nan, math.inf])


def test_a_series_shorter_than_two_blocks_still_decides() -> None:
    drops = np.stack([np.full(10, 0.1), np.full(10, -0.1)]) + np.arange(10.0) / 1e3
    few = {"block": 96, "draws": 100, "confidence": 0.95, "seed": 1}
    assert choose.loss_drop_bound(drops, **few) == (1,)


def test_criteria_and_rules_that_a_model_does_not_offer_are_left_out() -> None:
    scores = table([0.4, 0.1, 0.2, 0.3], "michel")
    section = site_level(0.5, "auto:gap", "auto:validation", criteria=("send", "michel"))
    section = section.model_copy(update={"head": section.site})
    with pytest.raises(ValueError, match="'send' has no score"):
        select.requested(scores, HEADS, section, seed=1)
    selections = select.requested(scores, HEADS, section, seed=1, possible=("michel",))
    assert set(selections["criterion"]) == {"michel"}
    assert set(selections["rule"]) == {""}
    assert sorted(selections["level"]) == ["head", "site"]


def test_the_only_head_of_a_site_has_the_score_of_the_site() -> None:
    scores = table([0.4, 0.1, 0.2, 0.3])
    scores = scores[(scores["head"] == -1) | (scores["site"] != 1)]
    section = NONE.model_copy(update={"head": LevelSection(criteria=("send",), ratios=(0.2,))})
    selections = select.requested(scores, (2, 1, 2, 2), section, seed=1)
    assert list(selections["mask"]) == ["1.0.1.1"]
    with pytest.raises(ValueError, match="no score or NaN for site 1, head 0"):
        select.requested(scores, HEADS, section, seed=1)
