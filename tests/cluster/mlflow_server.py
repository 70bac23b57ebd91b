"""An MLflow server on PostgreSQL: parallel writers, a killed server, and the rebuilt store.

`make test-server` runs this file; `make test` does not. The tests start their own database and
server on this machine, and stop them.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from ports import free_port
from project import TINY, Project
from test_tracking import make_config, write_stage

from spat.files import read_json
from spat.pipeline import tracking
from spat.pipeline.config import Config, load_files
from spat.pipeline.runs import Run

WRITERS = 6
ROUNDS = 4
USER = "spat"
# Only the MLflow server knows the password of the database.
DATABASE = "MLFLOW_BACKEND_STORE_URI"


def _postgres() -> Path | None:
    """The folder of PostgreSQL's programs, or None."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if (anywhere := shutil.which("pg_isready")) and not folders:
        folders = [Path(anywhere).resolve().parent]
    return max(folders, key=lambda path: path.parent.name.zfill(3), default=None)


def _missing() -> str | None:
    if _postgres() is None:
        return "PostgreSQL is not installed"
    if importlib.util.find_spec("psycopg2") is None:
        return "psycopg2 is not installed: pip install -r envs/requirements-server.txt"
    if os.getuid() == 0 and not shutil.which("setpriv"):
        return "PostgreSQL refuses to run as root, and setpriv, which changes the user, is missing"
    return None


pytestmark = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


def _until(ready: Callable[[], bool], process: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None and time.monotonic() < end, log.read_text("utf-8")[-4000:]
        time.sleep(0.1)


class Service:
    """PostgreSQL and an MLflow server that uses it, in their own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.database_port = free_port(), free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "mlflow.log"
        self._bin = _postgres() or Path()
        self._word = secrets.token_hex(8)
        self._processes: list[subprocess.Popen[Any]] = []

    def make(self) -> None:
        """Create the database, and start both services."""
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        words = self.folder / "word"
        words.write_text(self._word)
        words.chmod(0o644)
        options = ["-U", USER, "-A", "scram-sha-256", "--pwfile", str(words), "-E", "UTF8"]
        self._as_postgres("initdb", "-D", str(self._data), *options, "--no-locale").wait(120)
        words.unlink()
        self.start()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _as_postgres(self, program: str, *arguments: str) -> subprocess.Popen[Any]:
        user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        with (self.folder / "postgres.log").open("ab") as log:
            return subprocess.Popen(
                [*(user if os.getuid() == 0 else ()), str(self._bin / program), *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Start both services, and wait until they answer."""
        listen = ("-c", "listen_addresses=127.0.0.1", "-p", str(self.database_port))
        database = self._as_postgres(
            "postgres", "-D", str(self._data), "-k", str(self.folder), *listen
        )
        self._processes = [database]
        asked = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1"]
        asked += ["-p", str(self.database_port)]
        _until(
            lambda: subprocess.run(asked, check=False).returncode == 0,
            database,
            self.folder / "postgres.log",
        )
        address = f"postgresql://{USER}:{self._word}@127.0.0.1:{self.database_port}/postgres"
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "2"]
        options += ["--artifacts-destination", str(self.folder / "artifacts")]
        with self.log.open("ab") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                env={**os.environ, DATABASE: address, "MLFLOW_DISABLE_TELEMETRY": "true"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(server)
        _until(self._answers, server, self.log)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False

    def kill(self) -> None:
        """Kill both services: the server by SIGKILL, the database without a checkpoint."""
        for server in self._processes[1:]:
            os.killpg(server.pid, signal.SIGKILL)
        for database in self._processes[:1]:
            database.send_signal(signal.SIGQUIT)
        for process in self._processes:
            process.wait(60)
        self._processes = []


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    # Outside of pytest's folders, which only their owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="spat-server-"))
    folder.chmod(0o755)
    started = Service(folder)
    try:
        started.make()
        yield started
    finally:
        started.kill()
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may be slow to answer, which is not what is tested here.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def _shown(config: Config) -> dict[str, Any]:
    """The live runs of an experiment by job; fails if a job has two."""
    from mlflow import MlflowClient

    client = MlflowClient(config.tracking.uri, config.tracking.uri)
    experiment = client.get_experiment_by_name(f"spat/{config.experiment}").experiment_id
    entries = client.search_runs([experiment], max_results=1000)
    jobs = {run.data.tags["job"]: run for run in entries}
    assert len(jobs) == len(entries)
    return jobs


def _write(root: str, uri: str, writer: int, barrier: Any) -> None:
    config = make_config(root, uri=uri)
    tracking._import()
    for number in range(ROUNDS):
        # All writers add the same dataset at the same time, which is new in each round.
        run = Run("ETTh1", "iTransformer", "deep", "l96-h96", 10 * writer + number)
        write_stage(config, run, "pretrain", data_sha256=f"{number}a" * 32)
        barrier.wait(120)
        tracking.log(config, run, "pretrain")


def test_six_writers_without_a_common_lock_all_finish(service: Service, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WRITERS)
    # Each with its own results, and so without a lock that the others would wait for.
    roots = [str(tmp_path / f"machine{i}") for i in range(WRITERS)]
    writers = [
        context.Process(target=_write, args=(root, service.uri, i, barrier))
        for i, root in enumerate(roots)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    collisions = (service.folder / "postgres.log").read_text().count("unique constraint")
    print(f"\n{WRITERS * ROUNDS} jobs, {collisions} collisions in the database")
    shown = _shown(make_config(roots[0], uri=service.uri))
    assert len(shown) == 2 * WRITERS * ROUNDS
    for run in shown.values():
        assert run.info.status == "FINISHED"
        (dataset,) = run.inputs.dataset_inputs
        assert dataset.dataset.name == "ETTh1"
        assert run.data.metrics["test/mse"] == 0.38


def _experiment(project: Project, service: Service) -> Config:
    values = {**TINY, "tracking": {"uri": service.uri}}
    (project.folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    paths = project.folder / "config.yaml", project.folder / "tiny.yaml"
    config = load_files(*paths)
    return config.model_copy(update={"results": project.folder / "results"})


def test_a_server_killed_in_the_middle_of_a_run_is_rebuilt(
    service: Service, tmp_path: Path
) -> None:
    project = Project(tmp_path / "project")
    config = _experiment(project, service)
    running = project.start("--configfile", "tiny.yaml")
    trained = config.folder / "synthetic/iTransformer-tiny/l24-h12/seed0/pretrain/metrics.json"
    try:
        _until(trained.exists, running, project.folder / "tiny.yaml")
        service.kill()
        shown, _ = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == 0, shown[-4000:]  # a dead server fails no job
    logs = "".join(path.read_text() for path in (config.folder / "logs").rglob("*.log"))
    assert "the results do not need it" in logs

    service.start()
    project.python("-m", "spat", "track", "--config", "config.yaml", "tiny.yaml")
    entries = _shown(config)
    for run in entries.values():
        assert run.info.status in ("FINISHED", "FAILED")
    _assert_same_as_files(config, entries)


def _assert_same_as_files(config: Config, entries: dict[str, Any]) -> None:
    compared = 0
    for path in sorted(config.folder.rglob("metrics.json")):
        job = path.parent.relative_to(config.folder).as_posix()
        if "/kept" in job or job not in entries:
            continue
        metrics, shown = read_json(path), entries[job].data.metrics
        for split, errors in metrics["errors"].items() if "errors" in metrics else ():
            for name, value in errors.items():
                values = value if isinstance(value, dict) else {name: value}
                for key, number in values.items():
                    moment = "" if split in ("finetuned", "validation", "test") else f"{split}/"
                    place = split if not isinstance(value, dict) else name
                    assert shown[f"{moment}{place}/{key}"] == number, (job, split, name)
                    compared += 1
        history = path.parent / "history.csv"
        if "history.csv" in metrics.get("files", ()):
            last = pd.read_csv(history).iloc[-1]
            assert shown["epoch/val_mse"] == last["val_mse"]
            compared += 1
    assert {job.split("/")[-1] for job in entries} >= {"report", "pretrain", "score", "measure"}
    assert any("/masks/" in job for job in entries)
    print(f"\n{len(entries)} runs, {compared} values equal to those of the files")
    assert compared > 10
