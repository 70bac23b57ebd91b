"""Stability of scores, on scores whose noise is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import runs, scores

from spat.study import stability

WORTH = (1.0, 2.0, 3.0, 4.0)
SEND = {"send": lambda keys: WORTH}


def test_the_coefficient_of_variation_falls_with_the_root_of_the_batch_size() -> None:
    frame = scores(runs(seeds=2), SEND, batches=4000, noise=0.5)
    table = stability.variation(frame, pools=(1, 4)).set_index(["seed", "pool", "site"])["cv"]
    for site, worth in enumerate(WORTH):
        assert table[0, 1, site] == pytest.approx(0.5 / worth, rel=0.05)
        assert table[1, 4, site] == pytest.approx(0.25 / worth, rel=0.1)


def test_batches_that_fill_no_pool_are_left_out() -> None:
    frame = scores(runs(seeds=1), SEND, batches=7)
    table = stability.variation(frame, pools=(1, 3, 4))
    assert table.groupby("pool")["batches"].first().to_dict() == {1: 7, 3: 2}
    assert (table["cv"] == 0).all()
    assert len(table) == 8, "heads, epochs and the value over all batches are no batches"


def test_a_score_of_mean_zero_has_no_coefficient() -> None:
    table = stability.variation(scores(runs(seeds=1), {"zero": lambda keys: (0, 0, 0, 0)}))
    assert table["cv"].isna().all()


def test_without_noise_one_batch_is_enough() -> None:
    table = stability.batch_agreement(scores(runs(seeds=2), SEND))
    assert table.groupby("seed")["batches"].agg(["min", "max"]).to_numpy().tolist() == [[1, 8]] * 2
    assert (table["tau"] == 1).all() and (table["tau_low"] == 1).all()
    assert table.loc[table["batches"] > 4, "tau_disjoint"].isna().all()
    assert stability.recommended_batches(table)["batches"].tolist() == [1]


def test_agreement_grows_with_batches_and_disjoint_batches_do_not_flatter() -> None:
    frame = scores(runs(seeds=6), SEND, batches=32, noise=2.0)
    table = stability.batch_agreement(frame, subsets=100)
    means = table.groupby("batches")[["tau", "tau_low", "tau_disjoint"]].mean()
    assert means.loc[1, "tau"] < means.loc[4, "tau"] < means.loc[16, "tau"] < 1
    assert means.loc[32, "tau"] == 1
    assert (means["tau_low"] <= means["tau"]).all()
    assert (means["tau_disjoint"].dropna() < means.loc[:16, "tau"]).all()
    needed = stability.recommended_batches(table)
    b = int(needed["batches"].item())
    assert 1 < b < 32 and needed["of"].item() == 32
    assert means.loc[b, "tau"] >= 0.95 > means.loc[b - 1, "tau"]


def test_pure_noise_never_agrees_with_other_batches() -> None:
    frame = scores(runs(seeds=8), {"noise": lambda keys: (0, 0, 0, 0)}, batches=16, noise=1.0)
    table = stability.batch_agreement(frame, subsets=50)
    assert abs(table["tau_disjoint"].mean()) < 0.15
    needed = stability.recommended_batches(table, column="tau_disjoint")
    assert needed["batches"].isna().all() and needed["of"].item() == 8


def test_the_recommendation_waits_until_agreement_stays() -> None:
    run = pd.DataFrame(runs(seeds=1))
    taus = {1: 0.96, 2: 0.9, 3: 0.97, 4: 1.0}  # a lucky first batch recommends nothing
    table = pd.concat([run.assign(criterion="send", batches=b, tau=tau) for b, tau in taus.items()])
    assert stability.recommended_batches(table)["batches"].item() == 3
    assert stability.recommended_batches(table, threshold=0.9)["batches"].item() == 1


def test_curves_are_reproducible() -> None:
    frame = scores(runs(seeds=1), SEND, noise=2.0)
    first, second = (stability.batch_agreement(frame, subsets=20, seed=1) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_one_batch_has_no_curve() -> None:
    table = stability.batch_agreement(scores(runs(seeds=1), SEND, batches=1))
    assert table.empty and "tau_disjoint" in table


def test_the_trajectory_is_compared_with_the_kept_epoch() -> None:
    frame = scores(runs(seeds=2), {**SEND, "michel": lambda keys: WORTH}, kept=3, epochs=5)
    table = stability.epoch_agreement(frame)
    assert set(table["criterion"]) == {"send"}, "other criteria have no trajectory"
    one = table[table["seed"] == 1].set_index("epoch")
    assert one["tau_kept"].tolist() == [-1, 1, 1, 1, 1]  # reversed after the first epoch


def test_runs_that_were_not_scored_still_have_a_trajectory() -> None:
    frame = scores(runs(seeds=1), SEND)
    table = stability.epoch_agreement(frame[(frame["batch"] == -1) & (frame["epoch"] != 3)])
    assert len(table) == 4 and table["tau_kept"].isna().all()


def test_seeds_that_score_alike_agree() -> None:
    of = runs(["ETTh1", "ETTh2"], seeds=3)
    values = {
        "same": lambda keys: WORTH,
        "odd": lambda keys: np.multiply(WORTH, 1 if keys["seed"] else -1),
    }
    table = stability.seed_agreement(scores(of, values)).set_index(["dataset", "criterion"])
    assert table.loc[("ETTh1", "same"), "tau"] == 1 and table.loc[("ETTh1", "same"), "pairs"] == 3
    assert table.loc[("ETTh2", "odd"), "tau"] == pytest.approx(-1 / 3)
