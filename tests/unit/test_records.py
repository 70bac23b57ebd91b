"""Files of jobs are complete or absent, digests are portable, headers name code and machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spat import files
from spat.files import read_json, replacing, write_json
from spat.pipeline import config as configuration
from spat.pipeline import records
from spat.pipeline.runs import Run

RUN = Run("synthetic", "DLinear", "published", "l48-h24", 3)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"mse": 1})

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert read_json(path) == {"mse": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
    assert read_json(path) == {"a": [None, 1.5], "b": {"c": None}}


def test_broken_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        read_json(path)


def test_digests_depend_on_values_and_not_on_the_order_of_keys() -> None:
    assert records.digest({"a": 1, "b": 2}) == records.digest({"b": 2, "a": 1})
    assert records.digest({"a": 1}) != records.digest({"a": 2})
    assert records.digest([1, 2]) != records.digest([2, 1])


def test_a_header_names_the_code_and_the_machine(tmp_path: Path) -> None:
    block = {"datasets": ["synthetic"], "models": ["DLinear"], "variants": ["published"]}
    config = configuration.load({"experiment": "e", "grid": [block]}, "test")
    header = records.header(config, "pretrain", RUN, "cpu")
    assert header["seed"] == 3
    assert header["device"] == "cpu"
    assert {"python", "torch"} <= set(header["versions"])
    assert header["commit"]
    other = configuration.load({"experiment": "f", "grid": [block]}, "test")
    assert header["config"] != records.header(other, "pretrain", RUN)["config"]


@pytest.mark.parametrize(
    ("name", "is_abandoned"),
    [
        (".metrics.json.{host}.{gone}.tmp", True),
        ("..metrics.json.{host}.{gone}.tmp.{host}.{gone}.tmp", True),
        (".metrics.json.{host}.{here}.tmp", False),
        (".metrics.json.elsewhere.{gone}.tmp", False),
        (".other.json.{host}.{gone}.tmp", False),
        (".metrics.json.lock", False),
        ("metrics.json.{host}.{gone}.tmp", False),
    ],
)
def test_files_of_a_killed_process_are_removed(
    name: str, is_abandoned: bool, tmp_path: Path
) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / name.format(host=files._HOST, gone=process.pid, here=os.getppid())
    left.write_text("half")
    write_json(tmp_path / "metrics.json", {})
    assert left.exists() != is_abandoned
    assert (tmp_path / "metrics.json").exists()


def test_a_killed_write_leaves_nothing_after_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    code = (
        "import os, signal; from pathlib import Path; from spat.files import replacing\n"
        f"with replacing(Path({str(path)!r})) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("tracked", "commands", "variables"),
    [
        (False, ["add README", "commit -qm a"], {}),
        (False, ["add README", "commit -qm a", "add ."], {}),
        (True, ["add .", "commit -qm a"], {}),
        # As in a hook of another repository.
        (True, ["add .", "commit -qm a"], {"GIT_DIR": "other.git"}),
        (True, ["add .", "commit -qm a"], {"GIT_WORK_TREE": "theirs"}),
        (True, ["add .", "commit -qm a"], {"GIT_INDEX_FILE": "none"}),
    ],
)
def test_the_commit_of_a_surrounding_repository_is_not_that_of_the_code(
    tracked: bool, commands: list[str], variables: dict[str, str], tmp_path: Path
) -> None:
    package = Path(files.__file__).parents[1]
    shutil.copytree(package, tmp_path / "theirs/code", ignore=shutil.ignore_patterns("*.pyc"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "README").write_text("theirs")
    for command in ("init -q", *commands):
        subprocess.run([*git, *command.split()], check=True)
    own = {name: str(tmp_path / value) for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-c", "from spat.pipeline import records; print(records.commit())"],
        env={**os.environ, **own, "PYTHONPATH": str(tmp_path / "theirs/code")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip() != "unknown") == tracked
