"""The notice before the default run: missing files with reasons, and the run on generated data."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from spat.data.registry import DATASETS
from spat.pipeline.config import Config, load
from spat.pipeline.stages import preflight as module
from spat.pipeline.stages.preflight import preflight

CONTENT = b"date,a\n"
OFFLINE = "--configfile workflow/experiments/offline.yaml"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder of copies with one of the two files that the configuration asks for."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "ETTh2.csv").write_bytes(CONTENT)
    return tmp_path / "mirror"


@pytest.fixture
def config(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration of two benchmarks and a generated series, without a network."""
    for name in ("ETTh1", "ETTh2"):
        row = replace(DATASETS[name], sha256=(hashlib.sha256(CONTENT).hexdigest(),))
        monkeypatch.setitem(DATASETS, name, row)
    monkeypatch.setattr(module, "_reachable", lambda host: False)
    grid = {"datasets": ["ETTh1", "ETTh2", "synthetic"], "models": ["DLinear"]}
    data = {"cache": tmp_path / "cache", "mirrors": [mirror]}
    return load({"experiment": "tried", "grid": [grid], "data": data})


def test_there_is_no_notice_if_copies_exist(config: Config, mirror: Path) -> None:
    (mirror / "ETTh1.csv").write_bytes(CONTENT)
    assert preflight(config) == ("", "")


def test_there_is_no_notice_if_the_network_has_the_missing_files(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_reachable", lambda host: True)
    assert preflight(config) == ("", "")


def test_the_notice_names_missing_files_and_the_commands_of_the_run_on_generated_data(
    config: Config, mirror: Path
) -> None:
    arguments, notice = preflight(config)
    assert arguments == OFFLINE
    assert f"ETTh1.csv can neither be copied ({config.data.cache}, {mirror})" in notice
    assert "raw.githubusercontent.com unreachable" in notice
    assert "ETTh2.csv" not in notice
    assert "Not usable" not in notice
    for target in ("figures", "report"):
        assert f'\n  make {target} ARGS="{OFFLINE}"\n' in notice


def test_the_notice_names_a_copy_with_a_wrong_hash(config: Config, mirror: Path) -> None:
    (mirror / "ETTh1.csv").write_bytes(b"old")
    _, notice = preflight(config)
    actual, published = (hashlib.sha256(content).hexdigest() for content in (b"old", CONTENT))
    assert (
        f"{mirror / 'ETTh1.csv'}: SHA-256 {actual} (3 bytes) is not the published {published}"
        in notice
    )


def test_a_file_without_a_url_cannot_be_downloaded(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_reachable", lambda host: True)
    monkeypatch.setitem(DATASETS, "ETTh1", replace(DATASETS["ETTh1"], urls=()))
    arguments, notice = preflight(config)
    assert arguments == OFFLINE
    assert "ETTh1.csv can neither be copied" in notice
    assert "no address is known" in notice
