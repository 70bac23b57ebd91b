"""The quality of criteria, on frames in which it is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from planted import EMPTY, FULL, MASKS, Keys, additive, decision, results, runs, scores, selections
from statsmodels.stats.anova import anova_lm

from spat.study import gains, quality, replicates
from spat.study.statistics import ranks
from spat.study.statistics.averages import summarise
from spat.study.statistics.cells import ANY_REMOVED, CELL
from spat.study.statistics.tests import detectable

WORTH = (0.04, -0.06, 0.02, -0.03)


def noise(*key: object) -> float:
    """A reproducible standard normal number."""
    seed = zlib.crc32(repr(key).encode())
    return float(np.random.default_rng(seed).standard_normal())


def chance(name: str) -> Callable[[Keys], Sequence[float]]:
    """A criterion of random scores."""
    return lambda keys: [noise(name, i, *keys.values()) for i in range(4)]


CRITERIA: dict[str, Callable[[Keys], Sequence[float]]] = {
    "oracle": lambda keys: WORTH,
    "reverse": lambda keys: [-w for w in WORTH],
    "scaled": lambda keys: [10 * w + 3 for w in WORTH],
    "chance": chance("a"),
    "constant": lambda keys: [1.0] * 4,
}


def noisy(sd: float = 0.0, worth: Sequence[float] = WORTH) -> Callable[[Keys, str, int], float]:
    plain = additive(worth)
    return lambda keys, mask, order: plain(mask) + sd * noise(mask, order, *keys.values())


# --- ranks ---------------------------------------------------------------------------------------


def test_tau_b_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 200, 6))  # there are many ties
    expected = [scipy.stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ranks.tau_b(a, b), np.nan_to_num(expected), atol=1e-12)


def test_tau_b_of_a_constant_is_zero_and_shapes_broadcast() -> None:
    assert ranks.tau_b([1, 1, 1], [1, 2, 3]) == 0
    table = ranks.tau_b(np.arange(4)[ranks.permutations(4)], np.arange(4))
    assert table.shape == (24,)
    assert np.unique(table.round(6)).size == 7 and (table == 1).sum() == 1
    assert ranks.permutations(8).shape == (720, 8)


def test_criteria_that_rank_alike_are_merged() -> None:
    labels = ranks.merged_criteria(scores(runs(seeds=3), CRITERIA))
    assert labels["oracle"] == labels["scaled"] == "oracle = scaled"
    assert labels["reverse"] == "reverse" and labels["chance"] == "chance"
    # Criteria that rank alike in one run and not in another are not merged.
    values = {"a": lambda keys: WORTH, "b": lambda keys: np.multiply(WORTH, 1 - 2 * keys["seed"])}
    assert ranks.merged_criteria(scores(runs(seeds=1), values)) == dict.fromkeys("ab", "a = b")
    assert ranks.merged_criteria(scores(runs(seeds=2), values)) == {"a": "a", "b": "b"}
    # A criterion that is missing in some runs is not merged.
    frame = scores(runs(seeds=2), {"a": lambda keys: WORTH, "b": lambda keys: WORTH})
    fewer = frame[(frame["criterion"] == "a") | (frame["seed"] == 0)]
    assert ranks.merged_criteria(fewer) == {"a": "a", "b": "b"}


def test_site_scores_are_those_over_all_batches_at_the_kept_epoch() -> None:
    frame = scores(runs(seeds=1), {"send": lambda keys: WORTH}, kept=3)
    frame.loc[frame["batch"] >= 0, "value"] = 99.0  # a mean over batches would differ
    table = ranks.site_scores(frame)
    np.testing.assert_allclose(table["value"], WORTH)
    frame.loc[(frame["batch"] == -1) & (frame["site"] == 2), "value"] = np.nan
    assert ranks.site_scores(frame).empty


# --- gains ---------------------------------------------------------------------------------------


def test_the_oracle_has_a_positive_gain_and_chance_has_none() -> None:
    of = runs(["ETTh1", "ETTh2"], seeds=40)
    table = gains.gains(results(of, noisy()), selections(of, CRITERIA))
    assert set(table["removed"]) == {1, 2, 3}, "K = 0 and K = N are no choice"
    means = table.groupby(["criterion", "removed"])["gain"].mean()
    # K = 1: the mean over masks is 1 + mean(worth); the oracle removes the site of least worth.
    assert means["oracle", 1] == pytest.approx(np.mean(WORTH) - min(WORTH))
    assert means["reverse", 1] == pytest.approx(np.mean(WORTH) - max(WORTH))
    assert (means["oracle"] > 0).all() and (means["reverse"] < 0).all()
    summarised = summarise(table, "relative_gain", ["criterion"]).set_index("criterion")
    assert summarised.loc["chance", "low"] < 0 < summarised.loc["chance", "high"]
    assert summarised.loc["oracle", "low"] > 0
    assert summarised.loc["oracle", "runs"] == 80


def test_the_mean_of_all_random_masks_gains_exactly_nothing() -> None:
    of = runs(seeds=2)
    every = [m for m in MASKS if m.split(".").count("0") == 2]
    asked = pd.DataFrame(
        [decision(k, "random", m, draw=i, ratio=0.5) for k in of for i, m in enumerate(every)]
    )
    table = gains.gains(results(of, noisy(0.01)), asked)
    assert len(table) == 12
    np.testing.assert_allclose(table.groupby("seed")["gain"].mean(), 0, atol=1e-12)


def test_groups_with_a_missing_or_diverged_mask_are_left_out() -> None:
    of = runs(seeds=2)
    frame = results(of, noisy())
    diverged = (frame["mask"] == "0.1.1.1") & (frame["seed"] == 0)
    absent = (frame["mask"] == "0.0.1.1") & (frame["seed"] == 1)
    frame.loc[diverged, "mse"] = np.nan
    table = gains.gains(frame[~absent], selections(of, CRITERIA))
    assert set(zip(table["seed"], table["removed"], strict=True)) == {
        (0, 2), (0, 3), (1, 1), (1, 3),
    }  # fmt: skip


def test_ratios_of_one_number_of_sites_count_once_and_labels_merge() -> None:
    of = runs(seeds=1)
    asked = selections(of, CRITERIA)
    again = asked[asked["ratio"] == 0.25].assign(ratio=0.3)
    both = pd.concat([asked, again])
    assert len(gains.choices(both)) == len(gains.choices(asked)) == 4 * len(CRITERIA)
    labels = {"oracle": "oracle = scaled", "scaled": "oracle = scaled"}
    assert len(gains.choices(asked, labels)) == 4 * (len(CRITERIA) - 1)
    with pytest.raises(ValueError, match="two masks"):
        gains.choices(asked, {"oracle": "x", "reverse": "x"})


# --- regrets -------------------------------------------------------------------------------------


def test_the_oracle_has_no_honest_regret_and_its_reverse_the_largest() -> None:
    of = runs(seeds=4)
    table = quality.regrets(results(of, noisy(), orders=3), selections(of, CRITERIA))
    assert set(table["oracle"]) == {"seeds", "orders", "hindsight"}
    means = table.groupby(["criterion", "oracle", "removed"])["regret"].mean()
    np.testing.assert_allclose(means["oracle"], 0, atol=1e-12)
    np.testing.assert_allclose(means["reverse"].xs(1, level="removed"), 0.04 + 0.06)
    assert (table["null_regret"].abs() < 1e-9).all(), "without noise equal masks are equal"


def test_oracles_are_judged_on_other_fine_tunings_than_they_are_chosen_on() -> None:
    # Site 0 is the one to remove in seed 0, site 1 in seeds 1 and 2.
    def error(keys: Keys, mask: str, order: int) -> float:
        return additive((-0.1, 0, 0, 0) if keys["seed"] == 0 else (0, -0.1, 0, 0))(mask)

    of = runs(seeds=3)
    asked = selections(of, {"send": lambda keys: (0, 1, 2, 3)})
    table = quality.regrets(results(of, error), asked)
    one = table[(table["removed"] == 1)].set_index(["oracle", "seed"])["regret"]
    # Seed 0: the others say site 1, which costs 0.1 more there than the criterion's site 0.
    assert one["seeds", 0] == pytest.approx(-0.1)
    assert one["hindsight", 0] == pytest.approx(0.0)
    assert one["hindsight", 1] == pytest.approx(0.1)
    assert "orders" not in one.index.get_level_values("oracle")


def test_equal_masks_show_the_null_regret_in_hindsight_and_none_honestly() -> None:
    of = runs(seeds=60)
    asked = selections(of, {"chance": chance("b")})
    table = quality.regrets(results(of, noisy(0.01, worth=(0, 0, 0, 0)), orders=3), asked)
    means = table.groupby("oracle")[["regret", "null_regret"]].mean()
    # Four or six masks, the mean of three orders: about 0.01 x 1.1 / sqrt(3).
    assert means.loc["hindsight", "null_regret"] == pytest.approx(0.01 * 1.11 / 3**0.5, rel=0.1)
    assert means.loc["hindsight", "regret"] == pytest.approx(
        means.loc["hindsight", "null_regret"], rel=0.15
    )
    assert means.loc[["seeds", "orders"], "regret"].abs().max() < 0.002
    assert (means.loc[["seeds", "orders"], "null_regret"] == 0).all()


def test_the_null_regret_is_missing_without_replicates() -> None:
    of = runs(seeds=2)
    table = quality.regrets(results(of, noisy(0.01)), selections(of, CRITERIA))
    assert table.loc[table["oracle"] == "hindsight", "null_regret"].isna().all()
    assert (table.loc[table["oracle"] == "seeds", "null_regret"] == 0).all()
    numbers = ["mse", "oracle_mse", "regret", "null_regret", "relative_regret", "relative_null"]
    assert (table[numbers].dtypes == "float64").all()


# --- replicates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 6])
def test_the_expected_minimum_of_normal_numbers(n: int) -> None:
    sample = np.random.default_rng(0).standard_normal((200_000, n)).min(axis=1)
    assert quality.expected_minimum(n) == pytest.approx(-sample.mean(), abs=0.01)


def test_variance_components_find_what_was_planted() -> None:
    of = runs(seeds=30)
    table = replicates.variance_components(results(of, noisy(0.02), orders=4))
    pooled = table[table["removed"] == ANY_REMOVED].iloc[0]
    assert pooled["sd_replicates"] == pytest.approx(0.02, rel=0.1)
    assert pooled["runs"] == 30 and pooled["orders"] == 4
    one = table[table["removed"] == 1].iloc[0]
    assert one["sd_masks"] == pytest.approx(np.std(WORTH, ddof=1), rel=0.15)
    assert one["p"] < 1e-6 and one["F"] > 3


def test_equal_masks_have_an_f_ratio_near_one() -> None:
    p = []
    for name in range(40):
        error = noisy(0.02, worth=(0, 0, 0, 0))
        frame = results(
            runs(seeds=3), lambda k, m, o, name=name, error=error: error({**k, "x": name}, m, o),
            orders=3,
        )  # fmt: skip
        pooled = replicates.variance_components(frame)
        p.append(pooled.loc[pooled["removed"] == ANY_REMOVED, "p"].item())
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_the_sums_of_squares_equal_those_of_statsmodels() -> None:
    frame = results(runs(seeds=1), noisy(0.02), orders=3)
    table = replicates.variance_components(frame)
    own = table[table["removed"] == 2].iloc[0]
    test = replicates.exhaustive(frame)
    fit = smf.ols("mse ~ C(mask) + C(order)", test[test["removed"] == 2]).fit()
    expected = anova_lm(fit).loc["C(mask)"]
    assert own["F"] == pytest.approx(expected["F"])
    assert own["p"] == pytest.approx(expected["PR(>F)"])


def test_an_effect_of_an_order_on_all_masks_is_not_noise() -> None:
    frame = results(runs(seeds=1), lambda k, m, o: additive(WORTH)(m) + 0.1 * o, orders=3)
    table = replicates.variance_components(frame)
    assert (table["sd_replicates"] < 1e-9).all()


def test_too_few_orders_have_no_components() -> None:
    assert replicates.variance_components(results(runs(), noisy(0.1), orders=2)).empty


def test_cells_without_replicates_take_the_deviation_of_the_others() -> None:
    with_replicates = results(runs(["ETTh1"]), noisy(0.02), orders=3)
    without = results(runs(["ETTh2"]), lambda k, m, o: 2 * noisy(0.02)(k, m, o))
    table = replicates.replicate_sd(pd.concat([with_replicates, without])).set_index("dataset")
    assert table["own"].to_dict() == {"ETTh1": True, "ETTh2": False}
    assert table.loc["ETTh2", "relative_sd"] == table.loc["ETTh1", "relative_sd"]
    assert table.loc["ETTh1", "relative_sd"] == pytest.approx(0.02, rel=0.2)


def test_the_detectable_difference_pools_masks_and_pairs_by_seed() -> None:
    # A seed moves all masks alike; what remains differs in two of them.
    def error(keys: Keys, mask: str, order: int) -> float:
        own = {"0.1.1.1": 0.01, "1.0.1.1": 0.03}.get(mask, 0.0)
        return 1.0 * (1 + keys["seed"]) * (1 + own * (-1) ** keys["seed"]) + 0.5 * order

    frame = results(runs(["ETTh1"], seeds=4), error, orders=2)
    alone = results(runs(["ETTh2"], seeds=1), error)
    table = replicates.detectable_differences(pd.concat([frame, alone])).set_index("removed")
    assert set(table["dataset"]) == {"ETTh1"}, "one seed shows nothing"
    spread = np.std([1, -1, 1, -1], ddof=1)
    assert table.loc[1, "sd"] == pytest.approx(np.sqrt((0.01**2 + 0.03**2) / 4) * spread)
    assert table.loc[1, "detectable"] == pytest.approx(detectable(table.loc[1, "sd"], 4))
    assert table.loc[2, "sd"] == pytest.approx(0, abs=1e-12)
    pooled = table.loc[ANY_REMOVED]
    assert pooled["sd"] == pytest.approx(np.sqrt((0.01**2 + 0.03**2) / 15) * spread)
    assert table["masks"].to_dict() == {ANY_REMOVED: 15, 1: 4, 2: 6, 3: 4, 4: 1}
    assert (table["seeds"] == 4).all()


# --- agreement with the leave-one-out changes ----------------------------------------------------


def test_leave_one_out_changes_are_against_the_control() -> None:
    table = replicates.leave_one_out_changes(results(runs(seeds=1), noisy(), orders=2))
    assert len(table) == 8
    np.testing.assert_allclose(table.set_index(["order", "site"])["change"].loc[1], WORTH)
    lost = results(runs(seeds=1), noisy(), masks=[m for m in MASKS if m != "1.1.0.1"])
    assert replicates.leave_one_out_changes(lost).empty, (
        "a ranking of three sites is not one of four"
    )


def test_the_oracle_agrees_and_chance_does_not() -> None:
    of = runs(["ETTh1", "ETTh2"], seeds=20)
    table = quality.agreements(results(of, noisy()), scores(of, CRITERIA))
    assert len(table) == 40 * len(CRITERIA)
    tests = quality.agreement_tests(table, ["model"], draws=2000).set_index("criterion")
    assert tests.loc["oracle", "tau"] == pytest.approx(1) and tests.loc["oracle", "p"] < 0.001
    assert tests.loc["reverse", "tau"] == pytest.approx(-1) and tests.loc["reverse", "p"] < 0.001
    assert tests.loc["constant", "tau"] == 0 and tests.loc["constant", "p"] == 1
    assert abs(tests.loc["chance", "tau"]) < 0.25 and tests.loc["chance", "p"] > 0.05
    assert tests.loc["chance", "low"] < 0 < tests.loc["chance", "high"]
    assert tests.loc["oracle", "runs"] == 40


def test_the_permutation_null_is_exact_for_one_run() -> None:
    of = runs(seeds=1)
    table = quality.agreements(results(of, noisy()), scores(of, CRITERIA))
    tests = quality.agreement_tests(table, draws=20_000).set_index("criterion")
    # Of 24 orders one agrees fully and one is fully reversed.
    assert tests.loc["oracle", "p"] == pytest.approx(2 / 24, abs=0.01)
    assert tests.loc["oracle", "p_position"] == pytest.approx(2 / 24)
    # tau-b over the 24 orders has variance 2 (2 N + 5) / (9 N (N - 1)) = 26 / 108.
    assert tests.loc["oracle", "null_sd"] == pytest.approx(np.sqrt(26 / 108), rel=0.03)
    assert set(CELL) <= set(tests.columns)


def test_one_fixed_order_of_positions_is_one_of_twenty_four() -> None:
    # Every run has the same changes, so a criterion by position alone is right in all or in none.
    of = runs(seeds=10)
    table = quality.agreements(results(of, noisy()), scores(of, {"oracle": lambda keys: WORTH}))
    test = quality.agreement_tests(table, draws=2000).iloc[0]
    assert test["p"] < 0.001 and test["p_position"] == pytest.approx(2 / 24)


def test_p_values_of_random_scores_are_uniform() -> None:
    of = runs(seeds=8)
    errors = results(of, noisy(0.05, worth=(0, 0, 0, 0)))
    p = []
    for name in range(60):
        table = quality.agreements(
            errors, scores(of, {"x": chance(f"u{name}")}, batches=1, epochs=0)
        )
        p.append(quality.agreement_tests(table, draws=400)["p"].item())
    assert 0.0 <= np.mean(np.array(p) < 0.2) < 0.4
    assert np.mean(p) == pytest.approx(0.5, abs=0.15)


def test_labels_merge_criteria_in_the_agreement() -> None:
    of = runs(seeds=2)
    frame = scores(of, CRITERIA)
    table = quality.agreements(results(of, noisy()), frame, ranks.merged_criteria(frame))
    assert "oracle = scaled" in set(table["criterion"]) and "scaled" not in set(table["criterion"])
    assert not table.duplicated(["seed", "criterion"]).any()


def test_the_changes_agree_with_themselves_only_if_there_is_a_ranking() -> None:
    of = runs(seeds=6)
    real = replicates.self_agreement(results(of, noisy(0.001), orders=3)).set_index("across")
    assert real.loc["seeds", "tau"] > 0.95 and real.loc["orders", "tau"] > 0.95
    assert real.loc["seeds", "pairs"] == 15 and real.loc["orders", "pairs"] == 6 * 3
    none = replicates.self_agreement(results(of, noisy(0.1, worth=(0, 0, 0, 0)), orders=3))
    assert none["tau"].abs().max() < 0.5
    assert set(replicates.self_agreement(results(of, noisy()))["across"]) == {"seeds"}


def test_masks_of_heads_and_models_without_sites_do_not_disturb() -> None:
    of = runs(seeds=2)
    frame = results(of, noisy())
    head = frame[frame["mask"] == FULL].assign(mask="1.01.1.1", mse=0.0)
    none = frame[frame["mask"] == FULL].assign(mask="none", model="DLinear")
    asked, values = selections(of, CRITERIA), scores(of, CRITERIA)
    both = pd.concat([frame, head, none])
    pd.testing.assert_frame_equal(gains.gains(both, asked), gains.gains(frame, asked))
    pd.testing.assert_frame_equal(
        quality.agreements(both, values).drop(columns=["scores", "changes"]),
        quality.agreements(frame, values).drop(columns=["scores", "changes"]),
    )


def test_empty_results_give_empty_frames_with_their_columns() -> None:
    of = runs(seeds=1)
    frame = results(of, noisy(), masks=[FULL, EMPTY])
    asked = selections(of, CRITERIA)
    assert gains.gains(frame, asked).empty
    assert {"oracle", "regret"} <= set(quality.regrets(frame, asked))
    assert quality.agreements(frame, scores(of, CRITERIA)).empty
