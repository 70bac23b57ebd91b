"""The same command trains a damaged network again, and no other network."""

from __future__ import annotations

import pytest
import yaml
from project import TINY, Project

from spat.files import read_json
from spat.pipeline.cache import write_record

pytestmark = pytest.mark.slow

PRUNE = "results/tiny/synthetic/iTransformer-tiny/l24-h12/seed0/prune"
EXPERIMENT = {**TINY, "transfer": {"pairs": []}, "tracking": {"enabled": False}}
# Every stage until `collect`, in one process.
FINISH = """
from spat.pipeline.cli import main
files = ("--config", "config.yaml", "tiny.yaml")
assert main(["grid", *files]) == 0 == main(["collect", *files])
"""


def until(rule: str) -> tuple[str, ...]:
    return ("--configfile", "tiny.yaml", "--until", rule)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("damage"))
    (project.folder / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    project.python("-c", FINISH)
    assert project.planned(*until("collect")) == {}
    # Snakemake ends with a summary if there are tables.
    tables = project.folder / "results/tiny/tables"
    tables.mkdir()
    (tables / "main.md").write_text("")
    return project


@pytest.mark.parametrize("damage", ["deleted", "cut", "flipped", "wrong content"])
def test_only_the_damaged_network_is_trained_again(finished: Project, damage: str) -> None:
    folder = finished.folder / PRUNE
    trained = {path: path.stat().st_mtime_ns for path in folder.glob("masks/*/order0/metrics.json")}
    assert len(trained) == 2
    path = folder / "masks/0.0/order0/losses.npy"
    content = path.read_bytes()
    command = until("prune")
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        # The size is the same, so only a job that reads the file notices the damage.
        command = until("collect")
        if damage == "flipped":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            messages = ("losses.npy: damaged", "run the same command again")
        else:
            # The checksum is right, too.
            record = read_json(path.with_name("metrics.json"))
            values = {k: v for k, v in record.items() if k not in ("files", "checksum")}
            write_record(path.parent, {**values, "epochs": 0}, record["files"])
            messages = ("metrics.json: `best_epoch` is 1, but `epochs` is 0",)
        shown = finished.snakemake(*command, "--forcerun", "collect", fails=True)
        assert all(message in shown for message in messages)
        assert "Traceback" not in shown
    shown = finished.snakemake(*command)
    assert "spat summary" not in shown  # no error of the summary, which needs the frames
    assert path.read_bytes() == content
    now = {path: path.stat().st_mtime_ns for path in trained}
    assert {p.parent.parent.name for p in trained if now[p] != trained[p]} == {"0.0"}
    assert finished.planned(*command) == {}
