"""A variant that tries several learning rates keeps the one that validates best."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from spat.data import series, synthetic
from spat.data.registry import DATASETS
from spat.files import read_json
from spat.pipeline import digests, runs
from spat.pipeline.config import Config, ConfigError, load
from spat.pipeline.runs import Run
from spat.pipeline.stages import common
from spat.pipeline.stages.pretrain import pretrain

RATES = (1e-5, 1e-2, 1e-30)


def trained(results: Path, *rates: float, divergent: float = 0.0) -> tuple[Config, Run]:
    """DLinear pre-trained for two epochs in the variant `tuned`.

    `divergent` is a further rate, tried first, which a configuration could not have.
    """
    block = {"datasets": ["synthetic"], "models": ["DLinear"], "variants": ["tuned"]}
    config = load(
        {
            "experiment": "rates",
            "results": str(results),
            "grid": [{**block, "lookback": 24, "horizons": [12]}],
            "variants": {"tuned": {"base": "published", "learning_rates": list(rates)}},
            "training": {"epochs": 2, "device": "cpu"},
        },
        "test",
    )
    if divergent:
        variant = config.variants["tuned"].model_copy(
            update={"learning_rates": (divergent, *rates)}
        )
        config = config.model_copy(update={"variants": {"tuned": variant}})
    run = runs.plan(config)[0].run
    content = synthetic.generate(600, 3, seed=0, coupling=0.6, noise=0.3)
    prepared = series.prepare(DATASETS["synthetic"], content, "0" * 64)
    series.save(prepared, runs.prepared_file(config, "synthetic"))
    pretrain(config, run)
    return config, run


def test_the_rate_that_validates_best_is_kept_and_all_are_recorded(tmp_path: Path) -> None:
    config, run = trained(tmp_path / "all", *RATES)
    folder = runs.folder(config, run, "pretrain")
    metrics = read_json(folder / "metrics.json")
    tried = metrics["learning_rates"]
    assert [row["learning_rate"] for row in tried] == list(RATES)
    best = min(tried, key=lambda row: row["validation"])
    assert best["learning_rate"] == metrics["recipe"]["learning_rate"] == 1e-2
    assert metrics["errors"]["validation"]["mse"] == pytest.approx(best["validation"], rel=1e-12)
    assert pd.read_csv(folder / "history.csv")["learning_rate"].tolist() == [1e-2, 1e-2]
    assert common.settings_of(config, run).learning_rate == 1e-2
    assert not list(folder.rglob("state*"))
    kept = folder / "kept" / "model.safetensors"
    before = kept.stat().st_mtime_ns
    pretrain(config, run)
    assert kept.stat().st_mtime_ns == before, "finished work is kept"
    alone, same = trained(tmp_path / "alone", 1e-2)
    weights = "model.safetensors"
    other = runs.folder(alone, same, "pretrain") / weights
    assert other.read_bytes() == (folder / weights).read_bytes()


def test_training_that_diverges_is_not_kept(tmp_path: Path) -> None:
    config, run = trained(tmp_path, 1e-3, divergent=1e30)
    metrics = read_json(runs.folder(config, run, "pretrain") / "metrics.json")
    assert [row["status"] for row in metrics["learning_rates"]] == ["diverged", "ok"]
    assert metrics["status"] == "ok"
    assert metrics["recipe"]["learning_rate"] == 1e-3


def test_the_rates_are_part_of_the_digest_of_a_run(tmp_path: Path) -> None:
    (one, run), (two, _) = trained(tmp_path, 1e-3), trained(tmp_path, 1e-3, 1e-2)
    first, second = (digests.settings_digest(config, "pretrain", run) for config in (one, two))
    assert first != second


def test_a_rate_that_is_not_positive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"variants\.tuned\.learning_rates\.1"):
        trained(tmp_path, 1e-3, 0.0)
