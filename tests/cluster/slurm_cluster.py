"""The profile for Slurm on a cluster of one node: jobs and the node are killed, results are equal.

`make test-cluster` runs this file; `make test` does not. The tests start their own daemons on this
machine, in their own folder, and stop them. They do not read or write files under /etc.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from ports import free_port
from project import ROOT, Project

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol")
FINDER = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
MISSING = [name for name in PROGRAMS if shutil.which(name, path=FINDER) is None]

pytestmark = [
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"not installed: {', '.join(MISSING)} (Debian: slurm-wlm and munge)",
    ),
]

EPOCHS = 6
# The experiment `smoke`, with epochs that last long enough to be killed in. On a machine without a
# card `auto` computes on the CPU, and jobs ask for the cards that the cluster says it has.
LONGER = {
    "data": {"synthetic": {"rows": 2500, "channels": 3}},
    "training": {"device": "auto", "epochs": EPOCHS, "patience": EPOCHS},
    "finetune": {"epochs": 2},
}
FILES = ("--configfile", "workflow/experiments/smoke.yaml", "longer.yaml")
# The profile is for clusters with accounting. These are the changes that it asks for on others, and
# the name of the partition. The plugin looks after a job every five seconds and not every forty.
WITHOUT_ACCOUNTING = (
    ('  slurm_partition: "normal"\n  slurm_account: "default"', '  slurm_partition: "loopback"'),
    ("slurm-status-command: squeue", "slurm-status-command: squeue\nslurm-no-account: true"),
)
HERE = ("--cores", "2", "--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "10")


def program(name: str) -> str:
    return shutil.which(name, path=FINDER) or name


def wait_for(done: Callable[[], object], what: str, seconds: float = 2400) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def wait_for_one(running: subprocess.Popen[str], results: Path, name: str) -> Path:
    """The first of these files of a run with attention."""
    files: list[Path] = []

    def one() -> bool:
        files.extend(results.glob(f"*/*-tiny/*/*/{name}"))
        return bool(files) or running.poll() is not None

    wait_for(one, name)
    assert files, running.communicate()[0][-8000:]
    return files[0]


class Cluster:
    """A controller, a node and their authentication, as processes of this user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool", "munge", "bin"):
            (folder / name).mkdir()
        (folder / "munge").chmod(0o755)
        self._write_configuration()
        # The plugin hides Slurm's variables from `srun`, which would look for its file in /etc.
        srun = folder / "bin" / "srun"
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={self.configuration} exec {program("srun")} "$@"\n',
            encoding="utf-8",
        )
        srun.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a command finds this cluster."""
        path = os.pathsep.join([str(self.folder / "bin"), FINDER])
        return {"SLURM_CONF": str(self.configuration), "PATH": path}

    def _write_configuration(self) -> None:
        user = psutil.Process().username()
        host = socket.gethostname().partition(".")[0]
        memory = psutil.virtual_memory().total // 2**20
        values = {
            "ClusterName": "loopback",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": free_port(),
            "SlurmdPort": free_port(),
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge/socket",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.pid",
            # Neither control groups nor accounting.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "SchedulerParameters": "batch_sched_delay=1,sched_interval=2",
            # A node that does not answer is down after this many seconds.
            "SlurmdTimeout": 10,
            "KillWait": 3,
            "MinJobAge": 3600,
            "ReturnToService": 2,
            "GresTypes": "gpu",
            "MpiDefault": "none",
        }
        lines = [f"{key}={value}" for key, value in values.items()]
        lines += [
            f"NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} Gres=gpu:1",
            f"PartitionName=loopback Nodes={host} Default=YES MaxTime=INFINITE State=UP",
        ]
        self.configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # A simulated card: Slurm assigns it, but there is no device.
        gres = f"NodeName={host} Name=gpu File=/dev/null\n"
        (self.folder / "gres.conf").write_text(gres, encoding="utf-8")

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program(name), *arguments],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start all daemons, and wait for the node."""
        munge = self.folder / "munge"
        subprocess.run([program("mungekey"), "--create", f"--keyfile={munge}/key"], check=True)
        places = {"key-file": "key", "socket": "socket", "pid-file": "pid"}
        places |= {"log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={munge}/{file}" for option, file in places.items()]
        self._start("munged", "--foreground", "--force", *options)
        wait_for((munge / "socket").exists, "munged", 60)
        self._start("slurmctld", "-D", "-c", "-f", str(self.configuration))
        self.start_node()

    def start_node(self) -> None:
        """Start the daemon of the node, and wait until the controller knows it."""
        self._start("slurmd", "-D", "-f", str(self.configuration))
        wait_for(lambda: self.node_state() in ("idle", "mixed", "allocated"), "the node", 120)

    def node_state(self) -> str:
        """The state of the node according to the controller."""
        return self.command("sinfo", "--noheader", "--format=%T", fails=True).strip()

    def command(self, name: str, *arguments: str, fails: bool = False) -> str:
        """Run a command of Slurm, and return its output."""
        done = subprocess.run(
            [program(name), *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert fails or done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """All jobs so far, as `scontrol` shows them."""
        lines = self.command("scontrol", "show", "job", "--oneliner").splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]

    def kill_node(self, inside: Path) -> None:
        """Kill the node's daemon and all processes that it started, as a power cut would."""
        slurmd = psutil.Process(self._daemons["slurmd"].pid)
        running = {
            parent
            for process in processes_in(inside)
            for parent in (process, *process.parents())
            if any(above.name() == "slurmstepd" for above in (parent, *parent.parents()))
        }
        for process in (slurmd, *running):
            process.kill()
        psutil.wait_procs(running, timeout=20)
        self._daemons.pop("slurmd").wait(20)

    def stop(self) -> None:
        """End all jobs and daemons."""
        if "slurmctld" in self._daemons:
            self.command("scancel", f"--user={psutil.Process().username()}", fails=True)
            time.sleep(1)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()


def processes_in(folder: Path) -> list[psutil.Process]:
    """The processes that work in a folder."""
    processes = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder:
                processes.append(process)
        except (psutil.Error, OSError):
            continue
    return processes


class OnCluster(Project):
    """A copy of the project whose jobs go to the cluster."""

    cluster: Cluster

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.cluster.environment}

    def start(self, *arguments: str, cores: int = 1) -> subprocess.Popen[str]:
        profile = ("--workflow-profile", "profiles/slurm")
        return super().start(*profile, *HERE, *arguments, cores=cores)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="spat-slurm-"))
    folder.chmod(0o755)
    started = Cluster(folder)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same experiment on this machine, in one process without Snakemake."""
    project = Project(tmp_path_factory.mktemp("local"))
    (project.folder / "longer.yaml").write_text(yaml.safe_dump(LONGER), encoding="utf-8")
    project.python("-m", "spat", "grid", "--config", "config.yaml", *FILES[1:])
    return project


@pytest.fixture(scope="module")
def project(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> OnCluster:
    made = OnCluster(tmp_path_factory.mktemp("slurm"))
    made.cluster = cluster
    (made.folder / "longer.yaml").write_text(yaml.safe_dump(LONGER), encoding="utf-8")
    profile = made.folder / "profiles/slurm/profile.yaml"
    text = profile.read_text(encoding="utf-8")
    for old, new in WITHOUT_ACCOUNTING:
        assert old in text
        text = text.replace(old, new)
    profile.write_text(text, encoding="utf-8")
    return made


def job_at(project: OnCluster, stage: str, run: str) -> str:
    """The id of the Slurm job that runs a stage of a run."""
    for process in processes_in(project.folder):
        try:
            words = process.cmdline()
            if words[1:4] == ["-m", "spat", stage] and run in words:
                return process.environ()["SLURM_JOB_ID"]
        except (psutil.Error, KeyError):
            continue
    raise AssertionError(f"no job is at {stage} of {run}")


def epochs_of(project: Project, stage: str, run: str) -> int:
    log = project.folder / f"results/smoke/logs/{stage}/{run}.log"
    return log.read_text(encoding="utf-8").count(": train mse")


def test_smoke_survives_a_cancelled_job_and_a_dead_node(
    cluster: Cluster, project: OnCluster, undisturbed: Project
) -> None:
    results = project.folder / "results/smoke"
    started = time.monotonic()
    running = project.start(*FILES)
    try:
        state = wait_for_one(running, results, "pretrain/kept/state.pt")
        first = state.parents[2].relative_to(results).as_posix()
        cancelled = job_at(project, "pretrain", first)
        cluster.command("scancel", cancelled)
        wait_for_one(running, results, "prune/masks/*/order0/state.pt")
        cluster.kill_node(project.folder)
        wait_for(lambda: cluster.node_state().startswith("down"), "a node that is down", 300)
        cluster.start_node()
        shown, _ = running.communicate(timeout=3600)
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
    jobs = cluster.jobs()
    print(f"\n{time.monotonic() - started:.0f} s, {len(jobs)} jobs of Slurm:")
    keys = ("JobId", "JobState", "Comment", "Restarts", "OverSubscribe", "TresPerJob")
    for job in jobs:
        print("  " + " ".join(f"{key}={job.get(key, '')}" for key in keys))
    assert running.returncode == 0, shown[-8000:]

    # The job resumed; it did not start again from the first epoch.
    assert 0 < epochs_of(project, "pretrain", first) < EPOCHS
    compared = 0
    for path in sorted((undisturbed.folder / "results/smoke").rglob("*.safetensors")):
        name = path.relative_to(undisturbed.folder)
        assert (project.folder / name).read_bytes() == path.read_bytes(), name
        compared += 1
    print(f"  {compared} networks equal to those of a run on one machine, bit by bit")
    assert compared >= 15
    for path in (undisturbed.folder / "results/smoke").rglob("selections.csv"):
        name = path.relative_to(undisturbed.folder)
        assert (project.folder / name).read_bytes() == path.read_bytes(), name
    assert (results / "tables/main.md").exists()

    by_kind = {
        kind: [job for job in jobs if job["Comment"].startswith(f"rule_{kind}_")] for kind in KINDS
    }
    assert len(by_kind["prepare"]) == len(by_kind["light"]) == len(by_kind["measure"]) == 1
    # Three runs with attention: one was cancelled, and tried again.
    assert 3 < len(by_kind["run"]) <= 6
    (was_cancelled,) = [job for job in jobs if job["JobId"] == cancelled]
    assert was_cancelled["JobState"] == "CANCELLED"
    assert any(int(job["Restarts"]) or job["JobState"] == "NODE_FAIL" for job in jobs)
    for kind in KINDS:
        cards = {job.get("TresPerJob") for job in by_kind[kind]}
        assert cards == ({"gres:gpu:1"} if kind in ("run", "measure") else {None}), kind
        exclusive = {job["OverSubscribe"] == "NO" for job in by_kind[kind]}
        assert exclusive == {kind == "measure"}, kind


KINDS = ("prepare", "light", "run", "measure")


def test_the_shown_error_is_that_of_the_failed_job(project: OnCluster) -> None:
    stage = project.folder / "workflow/spat/pipeline/stages/score.py"
    text = stage.read_text(encoding="utf-8")
    broken = '    raise ValueError("broken on purpose")\n'
    marker = '    with stage_lock(config, run, "score"):\n'
    assert marker in text
    stage.write_text(text.replace(marker, broken + marker), encoding="utf-8")
    run = "synthetic/iTransformer-tiny/l48-h24/seed0"
    target = f"results/smoke/{run}/select/selections.csv"
    shown = project.snakemake(
        "--retries", "0", "--forcerun", "pretrain", *FILES, "--", target, fails=True, timeout=2400
    )
    _, errors, ending = shown.partition("These jobs failed:")
    print(ending)
    assert errors, shown[-4000:]
    assert f"score: {run}" in ending
    assert "spat score: ValueError: broken on purpose" in ending
    assert f"pretrain: {run}" not in ending


def test_the_profile_of_the_project_is_the_one_that_ran() -> None:
    text = (ROOT / "profiles/slurm/profile.yaml").read_text(encoding="utf-8")
    for old, _ in WITHOUT_ACCOUNTING:
        assert old in text
