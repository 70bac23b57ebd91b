"""The experiment `smoke` from end to end, and the jobs of a second invocation after a change."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest
from project import COPIED, SMOKE, Project

from spat.models.registry import MODELS
from spat.pipeline import digests
from spat.pipeline.frames import COLUMNS
from spat.study.pages.registry import ENDINGS, FIGURES, TABLES, tables

pytestmark = pytest.mark.slow

REPORT = {"collect": 1, "tables": 1, "figures": 1}
# Modules that only connect the command line with a stage.
ENTRANCE = ("spat.pipeline.cli", "spat.pipeline.stages.report")
# The module of a stage, if it has another name.
MODULES = dict.fromkeys(("tables", "figures"), "report")
# Runs of the experiment, those that are pruned, and transfers.
PRUNED, TRANSFERS = 3, 2
# Linear and naive runs are one job, and so are their transfers.
SHORT = {"pretrain_short1": 1, "transfer_short1": 1}
TRAINED = {"main": 1, **REPORT}
AFTER_PRUNE = {"decide": PRUNED, "measure": PRUNED, "transfer": TRANSFERS, **TRAINED}
# Masks of single heads are trained after those of whole sites.
PRUNE = {"prune_sites": PRUNED, "prune": PRUNED}
AFTER_SCORE = {"select": PRUNED, **PRUNE, **AFTER_PRUNE}
# The jobs of one run with a transfer.
OF_A_RUN = ("pretrain", "score", "select", *PRUNE, "decide", "measure", "transfer")
EVERYTHING = {
    "pretrain": PRUNED,
    **SHORT,
    "score": PRUNED,
    **AFTER_SCORE,
    "robustness": 1,
}


def test_the_run_writes_every_frame_table_and_figure(smoke: Project) -> None:
    folder = smoke.folder / "results" / "smoke"
    for name in COLUMNS:
        assert len(pd.read_parquet(folder / "data" / f"{name}.parquet")), name
    listed = (folder / "not_made.md").read_text()
    for kind, names in (("table", TABLES), ("figure", FIGURES)):
        made = _made(smoke, kind)
        assert made and made == {name for name in names if f"| {kind} | `{name}` |" not in listed}
        for name in made:
            for ending in ENDINGS[kind]:  # type: ignore[index]
                assert (folder / f"{kind}s" / f"{name}.{ending}").stat().st_size > 0, name


def _made(smoke: Project, kind: str) -> set[str]:
    folder = smoke.folder / "results" / "smoke" / f"{kind}s"
    return {path.stem for path in folder.glob("*.*") if not path.name.startswith(".")}


def test_the_run_ends_with_the_main_table_and_the_folders(smoke: Project) -> None:
    printed = (smoke.folder / "printed.txt").read_text()
    end = printed[printed.rindex("100%") :]
    main = (smoke.folder / "results" / "smoke" / "tables" / "main.md").read_text()
    first_row = next(line for line in main.splitlines() if "iTransformer" in line)
    assert re.split(r"[|\s]+", first_row.strip("| "))[0] in end
    assert "results/smoke/figures" in end


def test_the_run_shows_expected_and_running_jobs(smoke: Project) -> None:
    printed = (smoke.folder / "printed.txt").read_text()
    jobs = re.search(r"^smoke: (\d+) jobs, about \d+ \w+ on 2 cores", printed, re.MULTILINE)
    assert jobs and f"100% {jobs[1]} jobs in " in printed
    assert "The log of each job is in results/smoke/logs" in printed
    assert len(re.findall(r"^ *\d+% (?:prepare|pretrain|prune): .* done in ", printed, re.M)) == (
        2 + PRUNED + 1 + PRUNED
    )
    assert "Shell command" not in printed and "Building DAG" not in printed


def test_the_main_table_is_written_before_anything_is_measured(smoke: Project) -> None:
    folder = smoke.folder / "results" / "smoke"
    first = (folder / "main.md").read_text()
    assert first == (folder / "tables" / "main.md").read_text()
    written = (folder / "main.md").stat().st_mtime_ns
    # A transfer may run before it on a core that is idle; a measurement needs all cores.
    measured = [path.stat().st_mtime_ns for path in folder.glob("*/*/*/*/measure/metrics.json")]
    assert len(measured) == PRUNED and min(measured) > written


def test_a_second_run_has_nothing_to_do(smoke: Project) -> None:
    assert "Nothing to be done" in smoke.snakemake(*SMOKE)


@pytest.mark.parametrize(
    ("settings", "jobs"),
    [
        # Tracking differs, too: it was off.
        (("data={'mirrors': []}", "variants={'unused': {'model': {'d_model': 8}}}"), {}),
        (("statistics={'margin': 0.02}",), {"main": 1, "tables": 1, "figures": 1}),
        (("measure={'repeats': 4}",), {"measure": PRUNED, **REPORT}),
        (("finetune={'epochs': 2}",), {**PRUNE, **AFTER_PRUNE}),
        (("robustness={'manipulations': ['identity']}",), {"robustness": 1, **REPORT}),
        (("pruning={'draws': 3}",), AFTER_SCORE),
        (("pruning={'head': {'criteria': ['send', 'michel']}}",), {"score": PRUNED, **AFTER_SCORE}),
        (("training={'epochs': 3}",), EVERYTHING),
    ],
)
def test_a_setting_reruns_only_jobs_that_depend_on_it(
    settings: tuple[str, ...], jobs: dict[str, int], smoke: Project
) -> None:
    assert smoke.planned(*SMOKE, "--config", *settings) == jobs


def test_another_run_adds_its_own_jobs_only(smoke: Project, tmp_path: Path) -> None:
    wider = tmp_path / "wider.yaml"
    text = (smoke.folder / SMOKE[1]).read_text()
    wider.write_text(text.replace("seeds: [0]", "seeds: [0, 1]", 1))
    two_each = dict.fromkeys(OF_A_RUN, 2)
    assert smoke.planned("--configfile", str(wider)) == {**two_each, **TRAINED}


@pytest.mark.parametrize(
    ("edited", "jobs"),
    [
        (("spat/study/pages/registry.py",), {"main": 1, "tables": 1, "figures": 1}),
        (("spat/study/accuracy.py",), {"main": 1, "tables": 1, "figures": 1}),
        (("spat/scoring/criteria.py",), {"score": PRUNED, "robustness": 1, **AFTER_SCORE}),
        (("spat/training/loop.py",), EVERYTHING),
        (
            ("spat/models/patchtst.py",),
            {**dict.fromkeys(OF_A_RUN, 1), **TRAINED},
        ),
        (
            (
                *("spat/models/registry.py", "spat/pipeline/config.py", "spat/pipeline/cli.py"),
                "rules/common.smk",
            ),
            {},
        ),
    ],
)
def test_an_edit_reruns_only_jobs_that_depend_on_it(
    edited: tuple[str, ...], jobs: dict[str, int], smoke: Project
) -> None:
    before = {
        path: path.read_text() for path in (smoke.folder / "workflow" / name for name in edited)
    }
    for path, text in before.items():
        path.write_text(text + "\nEDITED = True\n")
    try:
        assert smoke.planned(*SMOKE) == jobs
    finally:
        for path, text in before.items():
            path.write_text(text)


def test_touched_files_rerun_nothing(smoke: Project) -> None:
    for path in (smoke.folder / "workflow").rglob("*.py"):
        path.touch()
    assert smoke.planned(*SMOKE) == {}


def test_another_ratio_trains_only_its_new_masks(smoke_copy: Project) -> None:
    folder = smoke_copy.folder / "results/smoke/synthetic/PatchTST-tiny/l48-h24/seed0/prune"
    trained = {path: path.stat().st_mtime_ns for path in folder.glob("masks/*/order0/metrics.json")}
    weights = folder.parent / "pretrain" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    ratio = "pruning={'head': {'criteria': ['send'], 'ratios': [0.25, 0.5]}}"
    target = str((folder / "manifest.json").relative_to(smoke_copy.folder))
    smoke_copy.snakemake(target, *SMOKE, "--config", ratio)
    now = set(folder.glob("masks/*/order0/metrics.json"))
    assert len(now - set(trained)) == 1
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert weights.stat().st_mtime_ns == before


def test_tables_and_figures_are_made_only_from_the_frames(smoke: Project, tmp_path: Path) -> None:
    project = Project(tmp_path / "frames")
    data = Project(tmp_path / "data", smoke.folder / "results" / "smoke", ("data",))
    (project.folder / "results" / "smoke").mkdir(parents=True)
    (data.folder / "data").rename(project.folder / "results" / "smoke" / "data")
    shown = project.snakemake(
        *("--allowed-rules", "tables", "figures", "--forcerun", "tables", "figures"),
        *(*SMOKE, "--", "figures"),
    )
    assert re.search(r"^100% 2 jobs in ", shown, re.MULTILINE)
    for name in _made(smoke, "figure"):
        assert (project.folder / "results" / "smoke" / "figures" / f"{name}.pdf").exists()


def test_the_report_holds_every_table_and_figure(smoke: Project) -> None:
    smoke.snakemake("--report", "report.zip", *SMOKE)
    with ZipFile(smoke.folder / "report.zip") as archive:
        names = {Path(name).name for name in archive.namelist()}
        (page,) = (name for name in archive.namelist() if name.endswith("report.html"))
        text = archive.read(page).decode()
    for title in ("1. Result", "3. Is SEND right?", tables()["main"].title):
        assert title in text
    made = {f"{name}.html" for name in _made(smoke, "table")}
    made |= {f"{name}.png" for name in _made(smoke, "figure")}
    assert {"main.html", "pareto.png"} <= made <= names
    assert "Does pruning change the test error?" in text


# Run each command of `commands.json` in a child of a process that has imported the large packages.
BY_HAND = """
import json, os, sys
from pathlib import Path
import matplotlib.figure, pandas, pyarrow.parquet, pydantic, safetensors.torch, scipy.stats, torch
for stage, command in json.loads(Path("commands.json").read_text()).items():
    assert "spat" not in sys.modules
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, stage
    else:
        from spat.pipeline.cli import main
        status = main(command)
        imported = [name for name in sys.modules if name.partition(".")[0] == "spat"]
        Path(stage + ".json").write_text(json.dumps(imported))
        sys.stderr.flush()
        os._exit(status)
"""


def test_every_job_runs_by_hand_and_imports_only_declared_modules(smoke_copy: Project) -> None:
    logs = sorted((smoke_copy.folder / "results" / "smoke" / "logs").rglob("*.log"))
    lines = [path.read_text().splitlines()[0] for path in logs]
    assert all(line.startswith("python -m spat ") for line in lines)
    # The logs of single runs, without those of the jobs that several short runs share.
    alone = [shlex.split(line)[3:] for line in lines if "--logs" not in line]
    commands = {command[0]: command for command in reversed(alone)}
    assert len(alone) == len(lines) - len(SHORT)
    assert {"prepare", "pretrain", "robustness", "transfer", "figures"} <= set(commands)
    # Tracking is off, since it reads all files after the work.
    (smoke_copy.folder / "untracked.yaml").write_text("tracking: {enabled: false}\n")
    for command in commands.values():
        command.insert(command.index("--config") + 2, "untracked.yaml")
    (smoke_copy.folder / "commands.json").write_text(json.dumps(commands))
    smoke_copy.python("-c", BY_HAND)
    for stage, command in commands.items():
        imported = set(json.loads((smoke_copy.folder / f"{stage}.json").read_text()))
        assert f"spat.pipeline.stages.{MODULES.get(stage, stage)}" in imported
        model = next((name for name in MODELS if f"/{name}-" in str(command)), None)
        declared = {Path(path).resolve() for path in digests.sources(stage, model)}
        computing = {
            digests._file(module).resolve()
            for module in imported - digests.EXCLUDED
            if digests._read(module)[0] and module not in ENTRANCE
        }
        assert computing <= declared, stage


def test_a_frozen_copy_needs_no_installed_package(smoke: Project) -> None:
    assert set(COPIED) <= {path.name for path in smoke.folder.iterdir()}
    where = smoke.python("-c", "import spat; print(spat.__file__)").stdout
    assert Path(where.strip()).is_relative_to(smoke.folder)
