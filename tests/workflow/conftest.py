"""Copies of the project for the tests of the workflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from project import COPIED, SMOKE, Project


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which jobs are planned and never run."""
    return Project(tmp_path_factory.mktemp("pristine"))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which the experiment `smoke` has run; a test that edits a file restores it."""
    project = Project(tmp_path_factory.mktemp("smoke"))
    # `test_paths.py` runs an experiment with tracking.
    untracked = ("--config", "tracking={'enabled': False}")
    (project.folder / "printed.txt").write_text(project.snakemake(*SMOKE, *untracked, cores=2))
    return project


@pytest.fixture
def smoke_copy(smoke: Project, tmp_path: Path) -> Project:
    """A copy of `smoke` with its results and Snakemake's records, which a test may change."""
    return Project(
        tmp_path / "copy", smoke.folder, (*COPIED, "results", ".snakemake", "printed.txt")
    )


@pytest.fixture
def new_project(tmp_path: Path) -> Callable[[str], Project]:
    """A function that makes copies for one test."""
    return lambda name: Project(tmp_path / name)
