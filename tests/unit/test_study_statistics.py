"""Intervals and tests against known truths, and against the libraries."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from planted import EMPTY, FULL, additive, overlapping, results, runs
from statsmodels.stats.multitest import multipletests

from spat.study.accuracy import relative_changes
from spat.study.statistics import averages, bootstrap, cells, tests
from spat.study.statistics.cells import RUN

BLOCK = 192


def standard_error(seeds: np.ndarray, block: int, draws: int = 2000, seed: int = 0) -> float:
    """Of the mean of losses [S, N]."""
    return float(bootstrap.resample(seeds[None], block, draws, seed).std(ddof=1))


# --- the block bootstrap -------------------------------------------------------------------------


def test_seeds_add_their_variance_and_few_seeds_are_corrected_for() -> None:
    # Without noise between windows, only the seeds' means vary: se = sd / sqrt(S).
    rng = np.random.default_rng(0)
    variances = []
    for _ in range(200):
        seeds = rng.standard_normal((3, 1)) * np.ones((3, 900))
        variances.append(standard_error(seeds, 100, draws=300) ** 2)
    assert np.sqrt(np.mean(variances)) == pytest.approx(1 / np.sqrt(3), rel=0.15)


def test_two_thousand_draws_take_well_under_a_second() -> None:
    x = np.stack([overlapping(2785, seed) for seed in range(10)])
    started = time.perf_counter()
    bootstrap.relative_change(1 + x, 1.01 + x, BLOCK, draws=2000)
    assert time.perf_counter() - started < 1.0


def test_pairing_removes_common_variation() -> None:
    hard = 1 + np.abs(overlapping(2785, 0, memory=0.9))
    rng = np.random.default_rng(1)
    seeds = np.stack([hard + 0.01 * rng.standard_normal(2785) for _ in range(3)])
    change = bootstrap.relative_change(seeds, 0.99 * seeds, BLOCK)
    assert change.change == pytest.approx(-0.01, abs=1e-9)
    assert change.high - change.low < 1e-6, "a constant factor has no sampling error when paired"
    assert change.p < 0.01
    assert change.se < standard_error(seeds, BLOCK) / 100


def test_the_interval_covers_a_true_change_as_often_as_nominal() -> None:
    hits = []
    for seed in range(150):
        reference = 2 + overlapping(2785, 2 * seed)
        treatment = reference * 0.98 + overlapping(2785, 2 * seed + 1)
        change = bootstrap.relative_change(reference, treatment, BLOCK, draws=400)
        hits.append(change.low <= -0.02 <= change.high)
    assert 0.8 < np.mean(hits) < 0.99


def test_no_interval_without_blocks_or_with_a_diverged_loss() -> None:
    short = bootstrap.relative_change(np.ones(300), np.ones(300), BLOCK)
    assert short.change == 0 and np.isnan(short.low) and short.draws.size == 0
    lost = bootstrap.relative_change(np.ones(900), np.full(900, np.nan), 100)
    assert np.isnan(lost.change) and np.isnan(lost.p)
    assert not bootstrap.equivalence(lost).no_worse
    with pytest.raises(ValueError, match="blocks of 192"):
        bootstrap.resample(np.ones((1, 1, 300)), BLOCK)
    with pytest.raises(ValueError, match="cannot be paired"):
        bootstrap.relative_change(np.ones((2, 900)), np.ones((3, 900)), 100)


def test_resampling_is_reproducible() -> None:
    x = overlapping(900, 0)
    first, second = (standard_error(x[None], 100, draws=100, seed=3) for _ in range(2))
    assert first == second != standard_error(x[None], 100, draws=100, seed=4)


def change_of(draws: np.ndarray) -> bootstrap.Change:
    return bootstrap.Change(draws.mean(), draws.std(), 0, 0, 0, 3, 10, draws)


@pytest.mark.parametrize(
    ("mean", "sd", "no_worse", "equivalent"),
    [
        (0.0, 0.002, True, True),
        (-0.03, 0.002, True, False),  # clearly better is no worse, and not equivalent
        (0.03, 0.002, False, False),
        (0.0, 0.02, False, False),  # too uncertain to tell
    ],
)
def test_equivalence_decisions(mean: float, sd: float, no_worse: bool, equivalent: bool) -> None:
    draws = mean + sd * np.random.default_rng(0).standard_normal(4000)
    decision = bootstrap.equivalence(change_of(draws), margin=0.01)
    assert (decision.no_worse, decision.equivalent) == (no_worse, equivalent)
    # Two one-sided tests at 5 % are the 90 % interval inside the margin.
    low, high = np.quantile(draws, [0.05, 0.95])
    assert equivalent == (low > -0.01 and high < 0.01)


# --- changes per cell ----------------------------------------------------------------------------


def losses_of(frame: pd.DataFrame, n: int = 800) -> pd.DataFrame:
    """Per-window losses with the frame's means and windows that all masks find equally hard."""
    test = frame[frame["split"] == "test"]
    hard = 1 + 0.3 * np.abs(overlapping(n, 0))
    hard /= hard.mean()
    keys = [*RUN, "order", "mask", "phase", "target"]
    return test[keys].assign(mse=[(v * hard).astype(np.float32) for v in test["mse"]])


def test_relative_changes_are_paired_with_the_control_of_the_same_run() -> None:
    of = runs(["ETTh1", "ETTh2"], seeds=3)
    error = additive([0.02, -0.01, 0, 0])
    # Another data order is another fine-tuning: it has no part in this comparison.
    tuned = results(of, lambda k, mask, order: error(mask) * (1 + k["seed"]) + 9 * order, orders=2)
    dense = results(of, lambda keys, mask, _: 2.0 * (1 + keys["seed"]), masks=[FULL], phase="dense")
    choices = pd.DataFrame(
        [{**keys, "criterion": "send", "mask": m} for keys in of for m in ("0.1.1.1", "1.0.1.1")]
        + [{**keys, "criterion": "none", "mask": "1.1.0.1"} for keys in of]
    )
    losses = losses_of(pd.concat([tuned, dense]))
    changes = relative_changes(losses, choices, ["criterion"], draws=200)
    assert len(changes) == 4  # two cells, two criteria
    send = changes[changes["criterion"] == "send"]
    np.testing.assert_allclose(send["change"], 0.005, atol=1e-6)  # the mean of two masks
    assert (send["p"] < 0.05).all() and send["no_worse"].all() and send["equivalent"].all()
    assert (changes["seeds"] == 3).all() and (changes["blocks"] > 4).all()
    np.testing.assert_allclose(changes.loc[changes["criterion"] == "none", "change"], 0, atol=1e-7)
    against_dense = relative_changes(losses, choices, ["criterion"], reference="dense", draws=200)
    np.testing.assert_allclose(
        against_dense.loc[against_dense["criterion"] == "none", "change"], -0.5, atol=1e-6
    )


def test_a_seed_may_choose_its_own_mask() -> None:
    of = runs(seeds=2)
    tuned = results(of, lambda keys, mask, _: additive([0.1, 0.3, 0, 0])(mask))
    choices = pd.DataFrame([{**of[0], "mask": "0.1.1.1"}, {**of[1], "mask": "1.0.1.1"}])
    changes = relative_changes(losses_of(tuned), choices.assign(rule="x"), ["rule"], draws=200)
    assert changes["change"].item() == pytest.approx(0.2, abs=1e-6)
    nothing = relative_changes(losses_of(tuned), choices.assign(rule="x", mask="9"), ["rule"])
    assert nothing.empty and "change" in nothing


# --- averages ------------------------------------------------------------------------------------


def test_seeds_are_averaged_first_then_horizons_then_the_datasets_of_a_source() -> None:
    frame = pd.DataFrame(
        [{**k, "v": 1.0} for k in runs(["ETTh1"], seeds=10)]
        + [{**k, "v": 3.0} for k in runs(["ETTh1"], seeds=1, horizons=[192])]
        + [{**k, "v": 6.0} for k in runs(["ETTm1"], seeds=2)]
        + [{**k, "v": 8.0} for k in runs(["ETTh2"], seeds=1)]
    )
    table = averages.average(frame, ["v"]).set_index("source")
    assert table["v"].to_dict() == {"ETT1": 4.0, "ETT2": 8.0}  # ((1 + 3) / 2 + 6) / 2
    assert table["runs"].to_dict() == {"ETT1": 13, "ETT2": 1}
    assert averages.average(frame, ["v"], upto="source")["v"].item() == 6.0
    per_dataset = averages.average(frame, ["v"], ["dataset"]).set_index("dataset")["v"]
    assert per_dataset.to_dict() == {"ETTh1": 2.0, "ETTm1": 6.0, "ETTh2": 8.0}
    assert averages.weights(frame).sum() == pytest.approx(1.0)


def test_rows_of_one_run_share_its_weight_and_missing_values_are_left_out() -> None:
    first, second = runs(seeds=2)
    frame = pd.DataFrame(
        [{**first, "v": 1.0}, {**first, "v": 3.0}, {**second, "v": 6.0}, {**second, "v": np.nan}]
    )
    table = averages.average(frame, ["v"])
    assert table["v"].item() == 4.0 and table["runs"].item() == 2


def test_a_summary_has_the_nested_mean_and_an_interval_over_seeds() -> None:
    rng = np.random.default_rng(0)
    of = [*runs(["ETTh1"], seeds=30), *runs(["ETTh2"], seeds=5)]
    frame = pd.DataFrame([{**k, "v": (k["dataset"] == "ETTh2") + rng.normal()} for k in of])
    table = averages.summarise(frame, "v", ["model"])
    means = frame.groupby("dataset")["v"].agg(["mean", "sem"])
    assert table["v"].item() == pytest.approx(means["mean"].mean())
    rest = frame["v"] - frame.groupby("dataset")["v"].transform("mean")
    se = np.sqrt(rest.var(ddof=2) * (1 / 30 + 1 / 5)) / 2  # 33 degrees of freedom
    half = scipy.stats.t.ppf(0.975, 33) * se
    assert table["high"].item() - table["v"].item() == pytest.approx(half)
    assert table["v"].item() - table["low"].item() == pytest.approx(half)
    assert table["p"].item() == pytest.approx(2 * scipy.stats.t.sf(means["mean"].mean() / se, 33))
    assert table[["runs", "cells"]].to_numpy().tolist() == [[35, 2]]


@pytest.mark.parametrize("seeds", [{"ETTh1": 3}, {"ETTh1": 10, "ETTh2": 10, "ETTm1": 1}])
def test_the_interval_of_a_summary_covers_as_often_as_nominal(seeds: dict[str, int]) -> None:
    rng = np.random.default_rng(1)
    of = [k for name, count in seeds.items() for k in runs([name], seeds=count)]
    frame = pd.concat([pd.DataFrame(of).assign(trial=trial) for trial in range(400)])
    table = averages.summarise(frame.assign(v=rng.normal(size=len(frame))), "v", ["trial"])
    covered = (table["low"] <= 0) & (table["high"] >= 0)
    assert covered.mean() == pytest.approx(0.95, abs=0.035)
    assert ((table["p"] < 0.05) == ~covered).all()


def test_unequal_variances_are_not_pooled() -> None:
    rng = np.random.default_rng(0)
    of = [*runs(["ETTh1"], seeds=6), *runs(["ETTh2"], seeds=9)]
    spread = {"ETTh1": 0.1, "ETTh2": 3.0}
    frame = pd.DataFrame([{**k, "v": 1 + spread[k["dataset"]] * rng.normal()} for k in of])
    row = averages.summarise(frame, "v", ["model"]).iloc[0]
    a, b = (part["v"].to_numpy() for _, part in frame.groupby("dataset"))
    # The mean of two means is half the difference between one and minus the other: Welch's test.
    welch = scipy.stats.ttest_ind(a, -b, equal_var=False)
    assert row["p"] == pytest.approx(welch.pvalue)
    interval = welch.confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((interval.low / 2, interval.high / 2))
    # A single run has the pooled variance, a weighted sum of those of the others.
    single = pd.concat([frame, pd.DataFrame([{**runs(["Weather"], seeds=1)[0], "v": 1.0}])])
    with_one = averages.summarise(single, "v", ["model"]).iloc[0]
    pooled = (5 * a.var(ddof=1) + 8 * b.var(ddof=1)) / 13
    error = np.sqrt(a.var(ddof=1) / 6 + b.var(ddof=1) / 9 + pooled) / 3
    parts = np.array([a.var(ddof=1) * (1 / 6 + 5 / 13), b.var(ddof=1) * (1 / 9 + 8 / 13)])
    freedom = parts.sum() ** 2 / (parts**2 / [5, 8]).sum()
    half = scipy.stats.t.ppf(0.975, freedom) * error
    assert with_one["high"] - with_one["v"] == pytest.approx(half)


def test_rows_of_a_run_are_one_observation() -> None:
    of = runs(["ETTh1"], seeds=4)
    once = pd.DataFrame([{**k, "v": float(i)} for i, k in enumerate(of)])
    thrice = pd.concat([once.assign(v=once["v"] + d) for d in (-1.0, 0.0, 1.0)])
    expected = averages.summarise(once, "v", ["model"])
    pd.testing.assert_frame_equal(averages.summarise(thrice, "v", ["model"]), expected)


def test_a_summary_of_single_seeds_has_no_interval() -> None:
    frame = pd.DataFrame([{**k, "v": 1.0} for k in runs(["ETTh1", "ETTh2"], seeds=1)])
    table = averages.summarise(frame, "v", ["model", "dataset"])
    assert len(table) == 2 and table["low"].isna().all()


# --- tests across sources ------------------------------------------------------------------------


def test_wilcoxon_needs_six_sources() -> None:
    few = tests.wilcoxon([-0.01] * 5)
    assert few.p is None and few.n == 5 and "too few sources" in few.note
    changes = [-0.01, -0.02, -0.03, 0.001, -0.04, -0.05, -0.06]
    enough = tests.wilcoxon(changes)
    assert enough.p == scipy.stats.wilcoxon(changes).pvalue and enough.note == ""
    assert tests.wilcoxon(np.zeros(6)).p == 1.0
    with pytest.raises(tests.StatisticsError, match="diverged"):
        tests.wilcoxon([np.nan] * 6)


def all_signs(n: int) -> np.ndarray:
    return np.array(list(itertools.product((1.0, -1.0), repeat=n)))


def test_the_signed_rank_test_is_exact_with_zeros_and_ties() -> None:
    x = np.array([0.0, -0.4, 0.0, -0.1, 0.4, -2.0, -0.7])
    ranks = scipy.stats.rankdata(np.abs(x)) * (x != 0)  # Pratt: zeros are ranked, then left out
    sums = np.abs((all_signs(7) * ranks).sum(axis=1))
    expected = (sums >= abs((np.sign(x) * ranks).sum()) - 1e-9).mean()
    assert tests.wilcoxon(x).p == pytest.approx(expected)


def test_equivalence_over_sources_is_two_one_sided_tests() -> None:
    x = np.array([0.2, -0.3, 0.5, 0.1, -0.6, 0.4, 1.3])
    worse, better = tests.signed_rank_equivalence(x, 1.0)

    def share(y: np.ndarray) -> float:
        """P-value of "y is not above 0", by all signs."""
        ranks = scipy.stats.rankdata(np.abs(y))
        return float(((all_signs(7) * ranks).sum(axis=1) >= (np.sign(y) * ranks).sum()).mean())

    assert worse.p == pytest.approx(share(1.0 - x))
    assert better.p == pytest.approx(share(x + 1.0))
    assert (worse.p < 0.05, better.p < 0.05) == (True, True)
    few, _ = tests.signed_rank_equivalence(x[:5], 1.0)
    assert few.p is None and "too few sources" in few.note
    with pytest.raises(tests.StatisticsError, match="margin 0"):
        tests.signed_rank_equivalence(x, 0)


def test_bartlett_and_the_t_interval_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    samples = [scale * rng.normal(size=n) for scale, n in ((1.0, 4), (2.0, 7), (1.5, 3))]
    variances = [sample.var(ddof=1) for sample in samples]
    p = tests.equal_variances(variances, [len(sample) - 1 for sample in samples])
    assert p == pytest.approx(scipy.stats.bartlett(*samples).pvalue)
    assert tests.equal_variances([0.0, 1.0], [2, 2]) == 0.0
    assert tests.equal_variances([0.0, 0.0], [2, 2]) == tests.equal_variances([3.0], [2]) == 1.0
    interval = scipy.stats.ttest_1samp(samples[1], 0.0).confidence_interval(0.95)
    assert tests.t_interval(samples[1]) == pytest.approx((interval.low, interval.high))
    assert np.isnan(tests.t_interval([1.0])).all()


def test_the_winner_is_judged_on_sources_that_did_not_choose_it() -> None:
    rng = np.random.default_rng(3)
    lucky = pd.DataFrame(rng.normal(size=(7, 20)), columns=[f"m{i}" for i in range(20)])
    winner = tests.winner(lucky)
    chosen, held = [], []
    for half in itertools.combinations(range(7), 3):
        inside = lucky.iloc[list(half)].mean()
        name = inside.idxmax()
        chosen.append(inside[name])
        held.append(lucky.drop(index=list(half))[name].mean())
    assert winner.chosen == pytest.approx(np.mean(chosen))
    assert winner.held_out == pytest.approx(np.mean(held))
    assert sum(winner.wins.values()) == 35 and winner.n == 7
    assert winner.chosen > 0.5 > winner.held_out and winner.p is not None and winner.p > 0.05
    good = tests.winner(lucky.assign(good=2 + rng.normal(size=7) / 10))
    assert good.p == pytest.approx(1 / 2**7) and good.wins["good"] > 17
    assert tests.winner(lucky.head(4)).p is None
    with pytest.raises(tests.StatisticsError, match="at least two"):
        tests.winner(lucky.head(1))


def test_the_p_value_of_a_winner_is_uniform_without_a_better_method() -> None:
    rng = np.random.default_rng(0)
    p = [tests.winner(pd.DataFrame(rng.normal(size=(6, 5)))).p for _ in range(150)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_holm_equals_statsmodels_over_the_declared_family() -> None:
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.2}
    adjusted = tests.holm(p, list(p))
    expected = multipletests(list(p.values()), method="holm")[1]
    assert list(adjusted.values()) == pytest.approx(expected)
    # A test that was planned and could not be made still counts.
    with_one_missing = tests.holm({**p, "e": None}, [*p, "e"])
    assert with_one_missing["e"] is None
    assert with_one_missing["a"] == pytest.approx(0.05)
    assert tests.holm({}, []) == {}


def test_holm_refuses_another_family_than_the_declared_one() -> None:
    for p, family in (({"a": 0.1}, ["a", "b"]), ({"a": 0.1, "b": 0.1}, ["a"]), ({}, ["a"])):
        with pytest.raises(tests.StatisticsError, match="declared family"):
            tests.holm(p, family)


def test_the_mixed_model_finds_planted_mean_and_deviations() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"source": f"s{i}", "change": -0.02 + shift + 0.005 * rng.standard_normal()}
        for i, shift in enumerate(0.02 * rng.standard_normal(40))
        for _ in range(6)
    ]
    fit = tests.mixed_model(pd.DataFrame(rows))
    assert fit.low < -0.02 < fit.high and fit.mean == pytest.approx(-0.02, abs=0.01)
    assert fit.between == pytest.approx(0.02, rel=0.3)
    assert fit.within == pytest.approx(0.005, rel=0.2)
    assert fit.sources == 40 and fit.p < 0.05


def test_the_mixed_model_says_when_there_is_too_little() -> None:
    frame = pd.DataFrame({"source": ["a", "a", "a"], "change": [0.1, 0.2, 0.3]})
    fit = tests.mixed_model(frame)
    assert np.isnan(fit.mean) and "3 cells of 1 source" in fit.note
    constant = pd.DataFrame({"source": list("aabb"), "change": [0.1] * 4})
    assert tests.mixed_model(constant).sources == 2  # singular, and no crash


def test_ranking_needs_enough_cases() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.standard_normal((12, 3)), columns=["good", "mid", "bad"])
    table["good"] -= 5
    table["bad"] += 5
    ranking = tests.ranking(table)
    assert list(ranking.ranks.index) == ["good", "mid", "bad"]
    assert ranking.ranks["good"] == 1.0 and ranking.test.p is not None and ranking.test.p < 0.001
    # Demsar 2006, table 5: q = 2.343 for three classifiers at 0.05.
    assert ranking.critical_difference == pytest.approx(2.343 * np.sqrt(12 / 72), rel=1e-3)
    assert ranking.pairwise is not None and ranking.pairwise.loc["good", "bad"] < 0.001
    few = tests.ranking(table.head(5))
    assert few.critical_difference is None and few.test.p is None and "too few" in few.test.note
    holes = table.copy()
    holes.loc[:6, "mid"] = np.nan
    assert tests.ranking(holes).test.n == 5


def test_the_smallest_detectable_difference_has_the_nominal_power() -> None:
    sd, n = 0.02, 10
    effect = tests.detectable(sd, n, power=0.8)
    rng = np.random.default_rng(0)
    samples = effect + sd * rng.standard_normal((4000, n))
    power = (scipy.stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.03)
    assert tests.detectable(sd, 3) > 3 * effect
    with pytest.raises(tests.StatisticsError, match="at least two"):
        tests.detectable(sd, 1)


# --- masks by their names ------------------------------------------------------------------------


def test_masks_are_read_by_their_names() -> None:
    assert cells.keeps_all(FULL) and not cells.keeps_none(FULL) and cells.keeps_none(EMPTY)
    assert cells.keeps_all("none") and not cells.keeps_none("none")
    assert cells.is_site_mask("1.0.1.1") and not cells.is_site_mask("1.01.1.1")
    assert not cells.is_site_mask("none") and cells.sites_removed("0.01.0.1") == 2
    assert not cells.keeps_all("1.01.1.1")
