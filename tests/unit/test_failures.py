"""A command that fails prints one message, with the file and the remedy, and no traceback."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from spat.files import replacing, sha256
from spat.pipeline import cli
from spat.pipeline.failures import explain, failed_jobs

SMALL = {"experiment": "small", "grid": [{"datasets": ["synthetic"], "models": ["DLinear"]}]}


def at_work(file: Path) -> Callable[..., None]:
    """A stage that reads `file` and replaces it."""

    def stage(*_: Any, **__: Any) -> None:
        with replacing(file):
            sha256(file)

    return stage


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "results": str(tmp_path / "results")}), "utf-8")
    return path


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("mask"), "KeyError: 'mask' (in files.py, line"),
        (TypeError("'int' object is not subscriptable"), "restore or delete it and run the same"),
        (AttributeError("x"), "AttributeError: x (in files.py"),
        (IndexError("list index out of range"), "IndexError: list index out of range (in"),
        (AssertionError(), "AssertionError (in files.py"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero (in"),
        (EOFError("Ran out of input"), "EOFError: Ran out of input (in"),
        (zipfile.BadZipFile("File is not a zip file"), "BadZipFile: File is not a zip file (in"),
        (csv.Error("field larger than field limit"), "field larger than field limit (in"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "can't decode byte 0xff"),
        (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth"),
        (MemoryError(), "MemoryError. There is too little memory: run fewer jobs"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "too little memory"),
        (ValueError("own.csv: malloc of size 131072 failed"), "too little memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "too little memory"),
        (BrokenProcessPool("terminated abruptly"), "fewer --workers"),
        (FULL, "file.bin'. The disk is full"),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "a"),
            "The disk is full, or a quota is reached",
        ),
        (OSError("4096 requested and 0 written"), "file.bin'. The disk is full"),
        (Exception("I/O error: No space left on device (os error 28)"), "file.bin'. The disk is"),
        (PermissionError(errno.EACCES, "Permission denied", "r"), "'r'. Give yourself access"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "r"), "directory: 'r'"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "r"), "'r'. Remove that link"),
        (ValueError("run 'x' is not there"), "spat collect: ValueError: run 'x' is not there\n"),
        (KeyboardInterrupt(), "interrupted. Finished work is kept, and training resumes from"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_is_one_message_without_a_traceback(
    error: BaseException,
    says: str,
    configuration: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = configuration.with_name("file.bin")
    file.write_bytes(b"x")
    monkeypatch.setitem(cli.STAGES, "collect", (at_work(file), *cli.STAGES["collect"][1:]))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("hashlib.file_digest", fail)
    status = cli.main(["collect", "--config", str(configuration)])
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown
    assert shown.startswith("spat collect: ") and shown.count("\n") == 1
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    if "(in files.py" in shown:
        assert str(file) in shown
    with pytest.raises((type(error), OSError)):
        cli.main(["collect", "--config", str(configuration), "--debug"])


@pytest.mark.parametrize(
    ("shell", "status", "says"),
    [
        (
            "mkdir gone; cd gone; rmdir ../gone; {spat} add x.csv",
            1,
            "the working directory was dele",
        ),
        (
            "mkdir gone; cd gone; rmdir ../gone; {spat} folder",
            1,
            "the working directory was deleted",
        ),
        ("{spat} folder --config small.yaml >&-", 0, ""),
        ("{spat} folder --config absent.yaml >&-", 1, "absent.yaml: cannot be read (No such file"),
        ("{spat} folder --config absent.yaml 2>&-", 1, "absent.yaml: cannot be read (No such file"),
        ("{spat} folder --config absent.yaml >&- 2>&-", 1, ""),
        ("{spat} folder --config small.yaml >/dev/full", 1, "No space left on device. The disk is"),
    ],
)
def test_a_missing_folder_or_stream_is_no_traceback(
    shell: str, status: int, says: str, configuration: Path
) -> None:
    command = shell.format(spat=f"{sys.executable} -m spat")
    # With this variable Python writes each line at once, and nothing is left for the exit.
    variables = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=configuration.parent, capture_output=True, text=True,
        env=variables,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert done.returncode == status, shown
    assert says in shown and "Traceback" not in shown and "(in " not in shown


RUN = "synthetic/DLinear-deep/l96-h96/seed0"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("grid --concurrency 0", "--concurrency 0: give a number from 1 to 1000"),
        ("grid --concurrency=-3", "--concurrency -3: give a number from 1 to 1000"),
        ("grid --concurrency 99999999999999999999", "give a number from 1 to 1000"),
        ("grid --minutes nan", "--minutes nan: give a number above 0"),
        ("grid --runs [", "--runs '[' matches no run of 'small'"),
        (
            f"pretrain --run {RUN}",
            "prepared/synthetic.npz does not exist. With Snakemake or `grid`, run the same command "
            "again. By hand, first run `python -m spat prepare --config FILE --dataset synthetic`",
        ),
    ],
)
def test_arguments_that_cannot_be_used_are_named(
    arguments: str, says: str, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments.split()
    assert cli.main([command, "--config", str(configuration), *rest]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"spat {command}: ") and says in printed
    assert printed.count("\n") == 1
    assert not list(configuration.parent.rglob("*.json"))


@pytest.mark.parametrize("name", ["results", "results/small", "results/small/prepared"])
def test_a_file_in_the_place_of_a_folder_is_named(
    name: str, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configuration.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    command = ["prepare", "--config", str(configuration), "--dataset", "synthetic"]
    assert cli.main(command) == 1
    printed = capsys.readouterr().err
    assert f"{path} is in the place of a folder: move it away, and run the same command" in printed
    assert printed.count("\n") == 1
    path.unlink()
    assert cli.main(command) == 0


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(b"x" * 100_000),
    "text": lambda path: path.write_text("x" * 100_000, encoding="utf-8"),
    "npy": lambda path: np.save(path.open("wb"), np.zeros(100_000)),
    "npz": lambda path: np.savez(path.open("wb"), a=np.zeros(100_000)),
    "csv": lambda path: pd.DataFrame({"a": range(100_000)}).to_csv(path),
    "parquet": lambda path: pd.DataFrame({"a": range(100_000)}).to_parquet(path),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_says_so_with_the_path(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"result.{kind}"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=f"result.{kind}") as caught, replacing(path) as temporary:
        temporary.symlink_to("/dev/full")
        WRITERS[kind](temporary)
    assert caught.value.errno == errno.ENOSPC
    assert "The disk is full" in explain(caught.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "--dataset", "ETTh9", "--horizon", "96"],
        ["models", "--dataset", "ETTh1", "--horizon", "0"],
        ["models", "--dataset", "ETTh1", "--horizon", "96", "--lookback", "-3"],
        ["add", "absent.csv"],
        ["add", "/dev/null"],
        ["pretrain", "--config", "absent.yaml", "--run", "a"],
        ["pretrain", "--config", "CONFIG", "--run", "../../x"],
        ["pretrain", "--config", "CONFIG", "--run", "ETTh1/PatchTST-deep/l96-h96/seed0"],
        ["prune", "--config", "CONFIG", "--run", "x", "--workers", "0"],
        ["transfer", "--config", "CONFIG", "--run", "x", "--target", "y"],
        ["grid", "--config", "CONFIG", "--runs", "none"],
        ["grid", "--config", "CONFIG", "--minutes", "nan"],
        ["grid", "--config", "CONFIG", "--concurrency", "0"],
        ["collect", "--config", "CONFIG"],
        ["tables", "--config", "CONFIG"],
        ["figures", "--config", "CONFIG"],
        ["summary", "--config", "CONFIG"],
        ["prepare", "--config", "CONFIG", "--dataset", "ETTh9"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_one_message(
    arguments: list[str], configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main([str(configuration) if a == "CONFIG" else a for a in arguments])
    # MLflow prints its log if another test of this process imported it before the command did.
    lines = [line for line in capsys.readouterr().err.splitlines() if " INFO mlflow." not in line]
    shown = "\n".join(lines)
    assert status == 1 and "Traceback" not in shown
    assert shown.startswith(f"spat {arguments[0]}: ") and "(in " not in shown


@pytest.mark.parametrize("option", ["--run", "--config"])
def test_two_dashes_are_no_value(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["score", "--run=x", f"{option}=--"])
    assert f"{option}: expected a value, not '--'" in capsys.readouterr().err


def test_another_checkout_does_not_run_the_installed_package(
    configuration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["folder", "--config", str(configuration)]
    other = tmp_path / "other"
    (other / "workflow" / "spat").mkdir(parents=True)
    (other / "workflow" / "spat" / "__init__.py").touch()
    monkeypatch.chdir(other)
    assert cli.main(words) == 0  # not a checkout of the project
    (other / "Snakefile").touch()
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert f"this folder has the package {other / 'workflow' / 'spat'}" in error
    assert f"set PYTHONPATH={other / 'workflow'}" in error
    monkeypatch.chdir(Path(__file__).parents[2])
    assert cli.main(words) == 0


def begun(program: str) -> subprocess.Popen[str]:
    """A process that runs a Python program, after it printed `begun`."""
    job = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None and job.stdout.readline() == "begun\n"
    return job


def test_ctrl_c_says_what_is_kept(configuration: Path) -> None:
    program = (
        "import time; from spat.pipeline import cli\n"
        "def stage(*_): print('begun', flush=True), time.sleep(60)\n"
        "cli.STAGES['collect'] = (stage, '', ())\n"
        f"raise SystemExit(cli.main(['collect', '--config', {str(configuration)!r}]))"
    )
    job = begun(program)
    time.sleep(0.1)
    job.send_signal(signal.SIGINT)
    _, shown = job.communicate(timeout=30)
    assert job.returncode == 130
    assert shown.startswith("spat collect: interrupted.") and "Traceback" not in shown


def test_a_second_ctrl_c_while_the_process_ends_changes_nothing(configuration: Path) -> None:
    program = (
        "import atexit, sys, time; from spat.pipeline import cli\n"
        "atexit.register(time.sleep, 2)\n"
        "def stage(*_): print('begun', flush=True), time.sleep(60)\n"
        "cli.STAGES['collect'] = (stage, '', ())\n"
        f"sys.argv[1:] = ['collect', '--config', {str(configuration)!r}]\n"
        "raise SystemExit(cli.main())"
    )
    job = begun(program)
    job.send_signal(signal.SIGINT)
    assert job.stderr is not None
    assert job.stderr.readline().startswith("spat collect: interrupted.")
    job.send_signal(signal.SIGINT)
    _, shown = job.communicate(timeout=30)
    assert (job.returncode, shown) == (130, "")


def test_a_closed_pipe_and_an_ascii_locale_do_not_fail(configuration: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    program = (
        "from spat.pipeline import cli\n"
        "cli.STAGES['collect'] = (lambda *_: print('\\u2212' * 100000), '', ())\n"
        f"raise SystemExit(cli.main(['collect', '--config', {str(configuration)!r}]))"
    )
    command = f'"{sys.executable}" -c "$PROGRAM" | head -c 5'
    done = subprocess.run(
        ["bash", "-c", command],
        env={**environment, "PROGRAM": program},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("?????", "")


def test_on_a_cluster_the_job_that_failed_is_named_and_no_other(tmp_path: Path) -> None:
    def log(name: str, text: str, age: float = 0) -> Path:
        path = tmp_path / f"{name}.log"
        path.write_text(text, encoding="utf-8")
        os.utime(path, (now - age, now - age))
        return path

    now = time.time()
    message = "spat score: DamagedError: model.safetensors is damaged.\nRun the same command again"
    started = "python -m spat score --run a\n"
    jobs = [
        ("a", "pretrain: a", log("pretrain", "python -m spat pretrain\nepoch 1/1\n", 20)),
        ("a", "score: a", log("score", started + "a warning\n" + message, 10)),
        ("a", "prune: a", log("prune", "spat prune: ValueError: of an earlier run", 500)),
        ("a", "decide: a", tmp_path / "decide.log"),
        ("b", "pretrain: b", log("pretrain-b", "epoch 1/1\n", 30)),
        ("b", "prune: b", log("prune-b", "epoch 1/9\n", 5)),
        ("b", "decide: b", log("decide-b", "")),
        ("c", "pretrain: c", log("pretrain-c", "")),
    ]
    shown = failed_jobs(jobs, since=now - 100).splitlines()
    assert shown == [
        "These jobs failed:",
        f"score: a  ({tmp_path / 'score.log'})",
        "    spat score: DamagedError: model.safetensors is damaged.",
        "    Run the same command again",
        f"prune: b  ({tmp_path / 'prune-b.log'})",
        "    ended without a message: it was killed, or exceeded its time or memory",
        "c",
        "    never started: the log of the cluster, which Snakemake names above, has the reason",
    ]
    assert "No job left a log" in failed_jobs(jobs, since=now + 1)
