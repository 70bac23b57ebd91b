"""After kill -9 the same command resumes, with bit-identical results."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from project import COPIED, Project

pytestmark = pytest.mark.slow

RUN = "results/kill/synthetic/iTransformer-tiny/l48-h24/seed0"
EPOCHS = 6
# An epoch is long enough for a kill between two epochs.
EXPERIMENT = f"""
experiment: kill
grid:
  - datasets: [synthetic]
    models: [iTransformer]
    variants: [tiny]
    lookback: 48
    horizons: [24]
variants:
  tiny:
    base: deep
    model: {{ d_model: 64, d_ff: 64, n_heads: 2, e_layers: 2, learning_rate: 0.001 }}
data:
  synthetic: {{ rows: 8000, channels: 3 }}
training: {{ device: cpu, epochs: {EPOCHS}, patience: {EPOCHS} }}
scoring: {{ batches: 2, batch_size: 16 }}
pruning:
  site: {{ criteria: [send], ratios: [1.0] }}
  head: {{ criteria: [], ratios: [] }}
finetune: {{ epochs: {EPOCHS} }}
transfer: {{ pairs: [] }}
tracking: {{ enabled: false }}
"""
PRETRAINED = f"{RUN}/pretrain/model.safetensors"
MANIFEST = f"{RUN}/prune/manifest.json"
CONTROL = "masks/1.1/order0"

NewProject = Callable[[str], Project]


def arguments(target: str) -> tuple[str, ...]:
    return (target, "--configfile", "kill.yaml")


def killable(new_project: NewProject, name: str) -> Project:
    project = new_project(name)
    (project.folder / "kill.yaml").write_text(EXPERIMENT)
    return project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = killable(lambda name: Project(tmp_path_factory.mktemp(name)), "undisturbed")
    project.snakemake(*arguments(MANIFEST))
    return project


@pytest.fixture
def selected(undisturbed: Project, tmp_path: Path) -> Project:
    """A copy of `undisturbed` in which no mask has been trained yet."""
    names = (*COPIED, "kill.yaml", "results", ".snakemake")
    project = Project(tmp_path / "selected", undisturbed.folder, names)
    shutil.rmtree(project.folder / RUN / "prune")
    return project


def job_of(snakemake: subprocess.Popen[str], stage: str) -> psutil.Process:
    """The Python process of a stage below Snakemake."""
    for child in psutil.Process(snakemake.pid).children(recursive=True):
        if child.cmdline()[1:4] == ["-m", "spat", stage]:
            return child
    raise AssertionError(f"no job of {stage} is running")


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


def epochs_logged(project: Project, stage: str) -> int:
    log = project.folder / "results/kill/logs" / stage / f"{RUN.removeprefix('results/kill/')}.log"
    return log.read_text().count(f"/{EPOCHS}: train mse")


def kill_the_job(
    project: Project, command: tuple[str, ...], stage: str, state: Path, cores: int = 1
) -> list[psutil.Process]:
    """Kill the job of a stage when it has written its state; return its child processes."""
    running = project.start(*command, cores=cores)
    wait_for(state, running)
    job = job_of(running, stage)
    workers = job.children()
    job.kill()
    shown, _ = running.communicate(timeout=120)
    assert running.returncode != 0, shown
    return workers


def test_a_killed_pretraining_is_resumed(new_project: NewProject, undisturbed: Project) -> None:
    project = killable(new_project, "pretraining")
    state = project.folder / RUN / "pretrain" / "kept" / "state.pt"
    kill_the_job(project, arguments(PRETRAINED), "pretrain", state)
    assert not (project.folder / PRETRAINED).exists()
    project.snakemake(*arguments(PRETRAINED))
    assert 0 < epochs_logged(project, "pretrain") < EPOCHS
    assert_same(project, undisturbed, PRETRAINED)
    assert_same(project, undisturbed, f"{RUN}/pretrain/scores.parquet")


def test_a_killed_finetuning_is_resumed(selected: Project, undisturbed: Project) -> None:
    folder = selected.folder / RUN / "prune"
    kill_the_job(selected, arguments(MANIFEST), "prune", folder / CONTROL / "state.pt")
    assert not (selected.folder / MANIFEST).exists()
    selected.snakemake(*arguments(MANIFEST))
    assert 0 < epochs_logged(selected, "prune") < 2 * EPOCHS
    for mask in (CONTROL, "masks/0.0/order0"):
        assert_same(selected, undisturbed, f"{RUN}/prune/{mask}/model.safetensors")


def test_the_workers_of_a_killed_job_end_with_it(selected: Project) -> None:
    state = selected.folder / RUN / "prune" / CONTROL / "state.pt"
    workers = kill_the_job(selected, arguments(MANIFEST), "prune", state, cores=2)
    assert len(workers) >= 2
    _, left = psutil.wait_procs(workers, timeout=10)
    assert not left


def test_after_a_killed_snakemake_the_next_job_waits_for_its_orphan(
    new_project: NewProject, undisturbed: Project
) -> None:
    project = killable(new_project, "orphan")
    running = project.start(*arguments(PRETRAINED))
    wait_for(project.folder / RUN / "pretrain" / "kept" / "state.pt", running)
    orphan = job_of(running, "pretrain")
    running.kill()
    running.wait(timeout=60)
    assert orphan.is_running()

    locked = project.snakemake(*arguments(PRETRAINED), fails=True)
    assert "--unlock" in locked
    project.snakemake("--unlock", *arguments(PRETRAINED))
    project.snakemake(*arguments(PRETRAINED))
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    # The orphan trained all epochs; the next job waited for them and used them.
    assert epochs_logged(project, "pretrain") == 0
    assert_same(project, undisturbed, PRETRAINED)


def assert_same(project: Project, other: Project, name: str) -> None:
    assert (project.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
