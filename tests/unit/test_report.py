"""The summary at the end of a run."""

from pathlib import Path

import pytest
from frame_builder import build, long

from spat.pipeline.config import load
from spat.pipeline.stages.report import summary


@pytest.mark.parametrize("uri", [None, "http://host:5000", "sqlite:////tmp/store.db"])
def test_the_summary_shows_the_main_table_and_where_the_runs_are_tracked(
    uri: str | None, tmp_path: Path
) -> None:
    grid = [{"datasets": ["ETTh1"], "models": ["DLinear"]}]
    values = {"experiment": "tried", "results": tmp_path, "grid": grid, "tracking": {"uri": uri}}
    config = load(values)
    (config.folder / "data").mkdir(parents=True)
    for name, frame in long(build(pairs=())).items():
        frame.to_parquet(config.folder / "data" / f"{name}.parquet")
    lines = summary(config).splitlines()
    assert lines[0].startswith("Test errors of the dense model")
    assert any(line.startswith("ETTh1") and "iTransformer" in line for line in lines)
    assert not any("**" in line or "<ins>" in line for line in lines)
    assert lines[-1] == f"  tracking  {uri or tmp_path / 'mlflow.db'}"
