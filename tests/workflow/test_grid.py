"""`python -m spat grid`: the same files as the rules make, with neither Snakemake nor MLflow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from project import SMOKE, Project

pytestmark = pytest.mark.slow

FILES = ["config.yaml", "workflow/experiments/smoke.yaml"]
PROGRAM = """
import sys
from spat.cli import main
assert main({arguments!r}) == 0
assert not {{"mlflow", "snakemake"}} & set(sys.modules), "not needed on a bare machine"
"""


def test_snakemake_takes_the_runs_of_the_grid_for_done(
    new_project: Callable[[str], Project],
) -> None:
    project = new_project("grid")
    planned = project.planned(*SMOKE)
    arguments = ["grid", "--config", *FILES, "--runs", "synthetic2/*", "--debug"]
    first = project.python("-c", PROGRAM.format(arguments=arguments))
    assert "1 runs are whole" in first.stdout
    left = project.planned(*SMOKE)
    for stage in ("pretrain", "score", "select", "prune", "decide", "measure"):
        assert left[stage] == planned[stage] - 1, stage
    again = project.python("-c", PROGRAM.format(arguments=arguments))
    assert "epoch" not in again.stderr, "finished work is kept"
