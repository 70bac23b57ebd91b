"""A folder of results may have any name that the file system allows; names are never executed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from project import TINY, Project

# Characters with a meaning in a shell, a wildcard pattern, a regular expression or a glob.
ODD = "my \"own\" 'results' größe $(touch F) `touch F` [a] *;&| %20#"


@pytest.mark.slow
def test_odd_characters_in_the_path_of_results(new_project: Callable[[str], Project]) -> None:
    project = new_project("spaces and ümläuts")
    # The file of the experiment has an odd name, too.
    (project.folder / "my experiment.yaml").write_text(
        yaml.safe_dump({**TINY, "results": ODD}, allow_unicode=True), encoding="utf-8"
    )
    before = {path.name for path in project.folder.iterdir()}
    shown = project.snakemake("--configfile", "my experiment.yaml")
    assert {path.name for path in project.folder.iterdir()} - before <= {ODD, ".snakemake"}
    folder = project.folder / ODD / "tiny"
    assert (folder / "figures/pareto.pdf").exists()
    assert (folder / "synthetic/iTransformer-tiny/l24-h12/seed0/prune/manifest.json").exists()
    assert (project.folder / ODD / "mlflow.db").exists()
    assert "MLflow at" not in shown
    assert f"{ODD}/tiny/tables" in shown  # the summary


def test_a_working_directory_that_cannot_be_written(new_project: Callable[[str], Project]) -> None:
    project = new_project("no state")
    state = project.folder / ".snakemake"
    state.touch()
    shown = project.snakemake("--dry-run", fails=True)
    assert f"keeps its state in {state}, which cannot be written" in shown
    assert "Traceback" not in shown
    # As the message says: nothing is then written here.
    before = {path.name for path in project.folder.iterdir()}
    elsewhere = project.folder.with_name("elsewhere")
    offline = str(project.folder / "workflow/experiments/offline.yaml")
    project.snakemake("--dry-run", "--directory", str(elsewhere), "--configfile", offline)
    assert {path.name for path in project.folder.iterdir()} == before


def test_a_brace_in_a_path_is_refused(pristine: Project) -> None:
    shown = pristine.snakemake("--config", "results=a{run}", fails=True)
    assert "results: 'a{run}' is not a usable path" in shown
    assert "Traceback" not in shown
