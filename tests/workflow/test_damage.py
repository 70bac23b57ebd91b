"""A network that is no longer whole is trained again by the same command, and no other one is."""

from __future__ import annotations

import pytest
import yaml
from project import COPIED, TINY, Project

from spat.files import read_json
from spat.pipeline.cache import write_record

pytestmark = pytest.mark.slow

TARGET = ("--configfile", "tiny.yaml", "--until", "collect")
PRUNE = "results/tiny/synthetic/iTransformer-tiny/l24-h12/seed0/prune"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("damage"))
    experiment = {**TINY, "tracking": {"enabled": False}}
    (project.folder / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    project.snakemake(*TARGET)
    return Project(
        tmp_path_factory.mktemp("finished") / "copy",
        project.folder,
        (*COPIED, "results", ".snakemake", "tiny.yaml"),
    )


@pytest.mark.parametrize("damage", ["deleted", "cut", "flipped", "wrong content"])
def test_a_damaged_network_alone_is_trained_again(finished: Project, damage: str) -> None:
    folder = finished.folder / PRUNE
    trained = {path: path.stat().st_mtime_ns for path in folder.glob("masks/*/order0/metrics.json")}
    assert len(trained) == 2
    path = folder / "masks/0.0/order0/losses.npy"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "wrong content":
        # As long as before and with a right checksum, so that only a job that reads it notices.
        record = read_json(path.with_name("metrics.json"))
        values = {k: v for k, v in record.items() if k not in ("files", "checksum")}
        write_record(path.parent, {**values, "epochs": 0}, record["files"])
        shown = finished.snakemake(*TARGET, "--forcerun", "collect", fails=True)
        assert "metrics.json: `best_epoch` is 1, but `epochs` is 0" in shown
        assert "Traceback" not in shown
    else:
        # Its size is as it was, so that only a job that reads it notices.
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        shown = finished.snakemake(*TARGET, "--forcerun", "collect", fails=True)
        assert "losses.npy: damaged" in shown
        assert "run the same command again" in shown
        assert "Traceback" not in shown
    finished.snakemake(*TARGET)
    assert path.read_bytes() == content
    now = {path: path.stat().st_mtime_ns for path in trained}
    assert {p.parent.parent.name for p in trained if now[p] != trained[p]} == {"0.0"}
    assert finished.planned(*TARGET) == {}
