"""SEND against uniformity, on frames with a known correlation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from planted import Keys, runs, scores

from spat.study import send


def of_seeds(seeds: int, sign: int = -1) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    drawn = {seed: rng.standard_normal(4) for seed in range(seeds)}

    def uniformity(keys: Keys) -> list[float]:
        return [sign * i + drawn[keys["seed"]][i] for i in range(4)]

    values = {"send": lambda keys: (0.0, 1.0, 2.0, 3.0), "uniformity": uniformity}
    return scores(runs(seeds=seeds), values)


def test_points_are_those_of_the_kept_epoch_over_all_batches() -> None:
    frame = scores(runs(seeds=2), {"send": lambda k: range(4), "uniformity": lambda k: range(4)})
    frame.loc[(frame["criterion"] == "send") & (frame["batch"] >= 0), "value"] = 99.0
    points = send.points(frame)
    assert len(points) == 2 * 4 * 3
    assert points["places"].value_counts().to_dict() == {"heads": 16, "sites": 8}
    # The scores of the first epoch are reversed and must not be used.
    assert (points["score"] == points["uniformity"]).all()


def test_rho_equals_scipy() -> None:
    frame = of_seeds(6)
    points = send.points(frame)
    table = send.correlations(frame).set_index("places")
    for places in send.PLACES:
        rows = points[points["places"] == places]
        expected = scipy.stats.spearmanr(rows["score"], rows["uniformity"]).statistic
        assert table.loc[places, "rho"] == pytest.approx(expected)
        own = [
            scipy.stats.spearmanr(run["score"], run["uniformity"]).statistic
            for _, run in rows.groupby("seed")
        ]
        assert table.loc[places, "within"] == pytest.approx(np.mean(own))
        assert table.loc[places, "runs"] == 6
    assert table["points"].to_dict() == {"heads": 8, "sites": 4}


def test_the_interval_is_that_of_runs() -> None:
    table = send.correlations(of_seeds(40)).set_index("places").loc["sites"]
    own = [
        scipy.stats.spearmanr(run["score"], run["uniformity"]).statistic
        for _, run in send.points(of_seeds(40)).query("places == 'sites'").groupby("seed")
    ]
    width = table["within_high"] - table["within_low"]
    assert width == pytest.approx(2 * 1.96 * scipy.stats.sem(own), rel=0.15)
    assert table["low"] < table["rho"] < table["high"]
    assert table["high"] < 0


def test_few_runs_have_no_interval_and_a_constant_no_rho() -> None:
    table = send.correlations(of_seeds(5))
    assert table[["low", "high", "within_low", "within_high"]].isna().all(axis=None)
    assert table["rho"].notna().all()
    values = {"send": lambda keys: (1, 1, 1, 1), "uniformity": lambda keys: (1, 2, 3, 4)}
    constant = send.correlations(scores(runs(seeds=1), values))
    assert constant[["rho", "within"]].isna().all(axis=None)


def test_a_constant_run_is_left_out_of_the_mean_within_runs() -> None:
    values = {
        "send": lambda keys: (1, 2, 3, 4) if keys["seed"] else (1, 1, 1, 1),
        "uniformity": lambda keys: (4, 3, 2, 1),
    }
    table = send.correlations(scores(runs(seeds=6), values)).set_index("places")
    row = table.loc["sites"]
    assert row[["within", "within_high"]].tolist() == pytest.approx([-1, -1])


def test_cells_are_not_pooled() -> None:
    values = {
        "send": lambda keys: np.arange(4.0) + 100 * (keys["dataset"] == "ETTh2"),
        "uniformity": lambda keys: -np.arange(4.0) + 100 * (keys["dataset"] == "ETTh2"),
    }
    table = send.correlations(scores(runs(["ETTh1", "ETTh2"], seeds=2), values))
    assert table["rho"].tolist() == pytest.approx([-1] * 4)


def test_without_uniformity_there_are_no_correlations() -> None:
    assert send.correlations(scores(runs(), {"send": lambda keys: range(4)})).empty
