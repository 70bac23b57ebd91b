"""`python -m spat grid` makes the same files as the rules, without Snakemake and MLflow."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from project import SMOKE, Project

pytestmark = pytest.mark.slow

FILES = ["config.yaml", "workflow/experiments/smoke.yaml"]
PROGRAM = """
import sys
from spat.pipeline.cli import main
assert main({arguments!r}) == 0
assert not {{"mlflow", "snakemake"}} & set(sys.modules), "not needed on a bare machine"
"""

FAILING = """
from spat.pipeline.cli import main
from spat.pipeline.stages import score
def fail(config, run):
    if run.dataset == "synthetic":
        raise ValueError("spoilt on purpose")
    whole(config, run)
whole, score.score = score.score, fail
print("status", main({arguments!r}))
"""


def weights(project: Project) -> dict[str, bytes]:
    """The trained weights of `synthetic2`, by file."""
    folder = project.folder / "results/smoke"
    files = (folder / "synthetic2").rglob("model.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_snakemake_takes_the_runs_of_the_grid_for_done(
    new_project: Callable[[str], Project],
) -> None:
    project = new_project("grid")
    planned = project.planned(*SMOKE)
    arguments = ["grid", "--config", *FILES, "--runs", "synthetic2/*", "--debug"]
    first = project.python("-c", PROGRAM.format(arguments=arguments))
    assert "1 runs are complete" in first.stdout
    assert "Test errors of the dense model" in first.stdout
    assert re.search(r"\bMSE +[+−]\d+\.\d+ % +[*_]?\d\.\d+", first.stdout), "the table at the end"
    assert not (project.folder / "results/smoke/data").exists(), "frames of a part are not kept"
    left = project.planned(*SMOKE)
    for stage in ("pretrain", "score", "select", "prune_sites", "prune", "decide", "measure"):
        assert left[stage] == planned[stage] - 1, stage
    again = project.python("-c", PROGRAM.format(arguments=arguments))
    assert "epoch" not in again.stderr, "finished work is kept"

    other = new_project("workers")
    patterns = ["--runs", "synthetic*/iTransformer-tiny/*", "--concurrency", "3"]
    arguments = ["grid", "--config", *FILES, *patterns]
    shown = other.python("-c", PROGRAM.format(arguments=arguments))
    assert "2 runs are complete" in shown.stdout
    expected = weights(project)
    assert len(expected) > 2
    assert weights(other) == expected, "runs do not depend on what runs beside them"


def test_a_run_that_fails_leaves_the_others_whole(new_project: Callable[[str], Project]) -> None:
    project = new_project("failing")
    arguments = ["grid", "--config", *FILES, "--runs", "synthetic*/iTransformer-tiny/*"]
    shown = project.python("-c", FAILING.format(arguments=arguments))
    assert "status 1" in shown.stdout
    assert "1 of 2 runs failed, 1 are complete" in shown.stderr
    assert (
        "synthetic/iTransformer-tiny/l48-h24/seed0: ValueError: spoilt on purpose" in shown.stderr
    )
    folder = project.folder / "results/smoke/synthetic2/iTransformer-tiny/l48-h24/seed0"
    assert (folder / "measure/metrics.json").exists()
