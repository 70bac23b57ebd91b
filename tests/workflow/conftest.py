"""Copies of the project for the tests of the workflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from project import COPIED, SMOKE, Project


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which nothing is ever run, only planned."""
    return Project(tmp_path_factory.mktemp("pristine"))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which the experiment `smoke` has run; whoever edits a file restores it."""
    project = Project(tmp_path_factory.mktemp("smoke"))
    # `test_paths.py` runs an experiment with tracking.
    untracked = ("--config", "tracking={'enabled': False}")
    (project.folder / "printed.txt").write_text(project.snakemake(*SMOKE, *untracked, cores=2))
    return project


@pytest.fixture
def smoke_copy(smoke: Project, tmp_path: Path) -> Project:
    """That one again, with its results and Snakemake's records, to go on from."""
    return Project(
        tmp_path / "copy", smoke.folder, (*COPIED, "results", ".snakemake", "printed.txt")
    )


@pytest.fixture
def new_project(tmp_path: Path) -> Callable[[str], Project]:
    """Makes copies of the test's own."""
    return lambda name: Project(tmp_path / name)
