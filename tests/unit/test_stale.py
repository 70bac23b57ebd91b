"""`grid` keeps what is finished, and takes nothing for finished that has become stale."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spat.data import series
from spat.data.registry import DATASETS
from spat.files import read_json
from spat.pipeline import runs
from spat.pipeline.cache import Finished, write_record
from spat.pipeline.config import Config, LevelSection, dump, load_files
from spat.pipeline.runs import Run
from spat.pipeline.stages.grid import grid
from spat.pipeline.stages.prepare import is_prepared, prepare

ROOT = Path(__file__).parents[2]
RUN = Run("synthetic2", "iTransformer", "tiny", "l48-h24", 0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The smallest run of the experiment `smoke`."""
    smoke = load_files(ROOT / "config.yaml", ROOT / "workflow/experiments/smoke.yaml")
    return smoke.model_copy(update={"results": tmp_path})


def changed(config: Config, section: str, **settings: Any) -> Config:
    """The configuration with some settings of a section changed."""
    new = getattr(config, section).model_copy(update=settings)
    return config.model_copy(update={section: new})


def measured(config: Config) -> Any:
    """What `measure` wrote of the run, once `grid` took it through all stages."""
    assert grid(config, RUN.path, minutes=9) == 1
    return read_json(runs.folder(config, RUN, "measure") / "metrics.json")


def test_stale_data_are_prepared_again(config: Config) -> None:
    prepare(config, "synthetic")
    assert is_prepared(config, "synthetic")
    shorter = changed(
        config, "data", synthetic=config.data.synthetic.model_copy(update={"rows": 800})
    )
    assert not is_prepared(shorter, "synthetic")
    measured(config)
    measured(shorter)
    assert len(series.load(runs.prepared_file(config, RUN.dataset)).values) == 800


def test_data_whose_preparation_was_cut_short_are_prepared_again(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    prepare(config, "synthetic")
    monkeypatch.setattr(series, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, "synthetic")
    assert not is_prepared(config, "synthetic")


def test_a_changed_row_of_the_registry_makes_its_data_stale(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(config, "synthetic")
    monkeypatch.setitem(DATASETS, "synthetic", replace(DATASETS["synthetic"], sha256=("a" * 64,)))
    assert not is_prepared(config, "synthetic")


def test_networks_are_measured_again_when_they_or_the_settings_changed(config: Config) -> None:
    # One of four heads: a mask that no ratio of whole sites makes.
    one_head = LevelSection(criteria=("send",), ratios=(0.25,))
    config = changed(config, "pruning", head=one_head)
    first = measured(config)
    path = runs.folder(config, RUN, "measure") / "metrics.json"
    before = path.stat().st_mtime_ns
    assert measured(config) == first
    assert path.stat().st_mtime_ns == before, "finished work is kept"

    larger = changed(config, "measure", batch_sizes=(1, 4))
    assert set(measured(larger)["latency_ms"]["1.1"]) == {"1", "4"}

    fewer = changed(larger, "pruning", head=LevelSection())
    masks = set(measured(fewer)["latency_ms"])
    assert masks < set(first["latency_ms"])
    assert set(measured(larger)["latency_ms"]) == set(first["latency_ms"])

    retrained = Finished(runs.folder(config, RUN, "prune") / "masks/1.1/order0")
    metrics = retrained.metrics
    later = {**metrics, "written": "2999-01-01T00:00:00+00:00"}
    write_record(retrained.folder, later, metrics["files"])
    before = path.stat().st_mtime_ns
    measured(larger)
    assert path.stat().st_mtime_ns > before


def test_a_series_is_prepared_without_torch(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "resolved.yaml"
    file.write_text(dump(config), encoding="utf-8")
    arguments = ["prepare", "--config", str(file), "--dataset", RUN.dataset]
    code = (
        f"import sys; from spat.pipeline.cli import main; assert main({arguments!r}) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    # Importing torch takes longer than the preparation.
    subprocess.run([sys.executable, "-c", code], check=True)
    assert is_prepared(config, RUN.dataset)
