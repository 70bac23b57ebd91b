"""Kept work is removed if its digest changes, published as links, and locked by one process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from spat.pipeline import config as configuration
from spat.pipeline.cache import Kept, stage_lock
from spat.pipeline.config import Config
from spat.pipeline.runs import Run

RUN = Run("synthetic", "DLinear", "published", "l48-h24", 0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    block = {"datasets": ["synthetic"], "models": ["DLinear"], "variants": ["published"]}
    return configuration.load(
        {"experiment": "kept", "results": str(tmp_path), "grid": [block]}, "test"
    )


def test_work_counts_as_done_only_when_it_is_finished(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept", "a")
    assert not kept.done
    kept.state.write_text("half way")
    assert not kept.done
    kept.finish({"mse": 1.0})
    assert kept.done
    assert kept.metrics == {"mse": 1.0, "digest": "a", "files": {}}
    assert not kept.state.exists()


def test_the_same_digest_keeps_work_and_another_removes_it(tmp_path: Path) -> None:
    Kept(tmp_path / "kept", "a").finish({})
    assert Kept(tmp_path / "kept", "a").done
    assert not Kept(tmp_path / "kept", "b").done
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["digest"]


def test_published_files_survive_the_deletion_of_the_outputs(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept", "a")
    (kept.folder / "weights").write_text("w")
    kept.finish({})
    for _ in range(2):  # Snakemake deletes declared outputs before a rerun
        kept.publish(tmp_path, ["weights", "metrics.json"])
        assert (tmp_path / "weights").read_text() == "w"
        (tmp_path / "weights").unlink()
    assert (kept.folder / "weights").read_text() == "w"


def test_a_second_process_waits_for_the_first(config: Config, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from spat.pipeline.config import load_files\n"
        "from spat.pipeline.cache import stage_lock\n"
        "from spat.pipeline.runs import Run\n"
        "from pathlib import Path\n"
        "with stage_lock(load_files(Path(sys.argv[1])), Run.parse(sys.argv[2]), 'pretrain'):\n"
        "    print('in', flush=True)\n"
        "    time.sleep(3)\n"
    )
    file = tmp_path / "config.yaml"
    file.write_text(configuration.dump(config))
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(file), RUN.path], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline().strip() == "in"
    began = time.monotonic()
    with stage_lock(config, RUN, "score"):  # another stage does not wait
        assert time.monotonic() - began < 1
    with stage_lock(config, RUN, "pretrain"):
        assert time.monotonic() - began > 1
    assert first.wait(timeout=30) == 0
