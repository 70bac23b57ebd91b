"""Linear and naive runs share a process, and write the same files as in separate processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from project import TINY, Project
from test_interruption import job_of, wait_for

pytestmark = pytest.mark.slow

EPOCHS = 8
EXPERIMENT = {
    **TINY,
    "experiment": "short",
    "grid": [
        {
            "datasets": ["synthetic"],
            "models": ["DLinear", "RepeatLast"],
            "variants": ["published"],
            "lookback": 24,
            "horizons": [12],
            "seeds": [0, 1, 2],
        }
    ],
    # An epoch is long enough for a kill between two epochs.
    "data": {"synthetic": {"rows": 8000, "channels": 3}},
    "training": {"device": "cpu", "epochs": EPOCHS, "patience": EPOCHS},
    "tracking": {"enabled": False},
}
COMMAND = ("--configfile", "short.yaml", "--until", "pretrain_short1")
RUNS = [
    f"synthetic/{model}-published/l24-h12/seed{seed}"
    for model in ("DLinear", "RepeatLast")
    for seed in range(3)
]
# Lines before the work of `pretrain`. Whether it fails is not in its code, which stays the same.
BROKEN = """\
    if Path("broken").read_text() == run.path:
        raise ValueError("broken on purpose")
"""

NewProject = Callable[[str], Project]


def short(new_project: NewProject, name: str) -> Project:
    project = new_project(name)
    (project.folder / "short.yaml").write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
    return project


def stage(project: Project, run: str) -> Path:
    return project.folder / "results/short" / run / "pretrain"


def log(project: Project, run: str) -> str:
    path = project.folder / f"results/short/logs/pretrain/{run}.log"
    return path.read_text(encoding="utf-8")


def test_a_killed_pack_is_resumed(new_project: NewProject) -> None:
    project = short(new_project, "killed")
    running = project.start(*COMMAND)
    wait_for(stage(project, RUNS[1]) / "kept/state.pt", running)
    job_of(running, "pretrain").kill()
    shown, _ = running.communicate(timeout=120)
    assert running.returncode != 0, shown
    # The record holds the time of writing, since the time of the file changes with its links.
    kept = stage(project, RUNS[0]) / "kept/metrics.json"
    trained = kept.read_bytes()

    shown = project.snakemake(*COMMAND)
    assert "pretrain: 6 short runs: done" in shown
    assert kept.read_bytes() == trained
    epochs = [log(project, run).count(f"/{EPOCHS}: train mse") for run in RUNS]
    assert epochs[0] == 0 < epochs[1] < EPOCHS == epochs[2]

    # Each log begins with the command for its run, which gives the same weights.
    alone = short(new_project, "alone")
    command = log(project, RUNS[1]).splitlines()[0].split()
    assert command[:4] == ["python", "-m", "spat", "pretrain"] and command[-1] == RUNS[1]
    arguments = ("--config", "config.yaml", "short.yaml")
    alone.python("-m", "spat", "prepare", *arguments, "--dataset", "synthetic")
    alone.python("-m", "spat", "pretrain", *arguments, "--run", RUNS[1])
    for name in ("model.safetensors", "losses.npy"):
        one, other = (stage(p, RUNS[1]) / name for p in (project, alone))
        assert one.read_bytes() == other.read_bytes(), name


def test_a_run_of_a_pack_that_fails_does_not_lose_the_others(new_project: NewProject) -> None:
    project = short(new_project, "failing")
    module = project.folder / "workflow/spat/pipeline/stages/pretrain.py"
    text, marker = (
        module.read_text(encoding="utf-8"),
        '    with stage_lock(config, run, "pretrain"):\n',
    )
    assert marker in text
    module.write_text(text.replace(marker, BROKEN + marker), encoding="utf-8")
    (project.folder / "broken").write_text(RUNS[1], encoding="utf-8")
    shown = project.snakemake(*COMMAND, fails=True)
    assert "spat pretrain: RuntimeError: 1 of 6 failed" in shown
    assert f"{RUNS[1]}: ValueError: broken on purpose" in shown
    assert "spat pretrain: ValueError: broken on purpose" in log(project, RUNS[1])
    others = [stage(project, run) / "kept/metrics.json" for run in RUNS if run != RUNS[1]]
    trained = {path: path.read_bytes() for path in others}

    (project.folder / "broken").write_text("no run", encoding="utf-8")
    project.snakemake(*COMMAND)
    assert all((stage(project, run) / "metrics.json").exists() for run in RUNS)
    assert {path: path.read_bytes() for path in others} == trained
    assert "epoch" not in log(project, RUNS[0]) and "epoch" in log(project, RUNS[1])
