"""Every shipped experiment plans its jobs, and a wrong configuration fails before any of them."""

from __future__ import annotations

import re
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from project import Project

from spat.data.registry import DATASETS
from spat.pipeline import expected, runs
from spat.pipeline.config import load_files

ROOT = Path(__file__).parents[2]
EXPERIMENTS = (
    *("default", "smoke", "offline", "reproduction", "ablation", "paper"),
    *("planted", "unplanted", "scratch"),
)


def overlay(name: str) -> tuple[str, ...]:
    return () if name == "default" else ("--configfile", f"workflow/experiments/{name}.yaml")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_plans_the_jobs_of_its_grid(
    name: str, pristine: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    # CPU seconds are measured, since wall-clock time depends on other work.
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    jobs = pristine.planned(*overlay(name))
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    with capsys.disabled():
        print(f"\n{name}: {sum(jobs.values())} jobs, planned in {seconds:.1f} s")
    # The promise for over a thousand jobs.
    assert seconds < 30

    config = load_files(ROOT / "config.yaml", *(ROOT / path for path in overlay(name)[1:]))
    planned = runs.plan(config)
    pruned = sum(p.prune for p in planned)
    targets = {p.run.path: runs.targets(config, p.run) for p in planned}
    datasets = {p.run.dataset for p in planned}.union(*targets.values())
    packs = expected.packs(config, {p.run.path: p for p in planned})
    packed = {path for pack in packs for path in pack}
    wanted = {
        "download": sum(bool(DATASETS[name].file) for name in datasets),
        "prepare": len(datasets),
        "pretrain": len(planned) - len(packed),
        **{f"pretrain_short{number}": 1 for number in range(1, len(packs) + 1)},
        **dict.fromkeys(("score", "select", "prune", "decide", "measure"), pruned),
        "prune_sites": pruned * config.pruning.has_heads,
        "robustness": len(runs.studied(config)),
        "transfer": sum(len(targets[path]) for path in targets if path not in packed),
        **{
            f"transfer_short{number}": 1
            for number, pack in enumerate(packs, 1)
            if any(targets[path] for path in pack)
        },
        **dict.fromkeys(("main", "collect", "tables", "figures"), 1),
    }
    assert jobs == {rule: count for rule, count in wanted.items() if count}


@pytest.fixture(scope="module")
def default_jobs(pristine: Project) -> dict[str, int]:
    """The jobs of the default experiment."""
    return pristine.planned()


def test_a_file_without_an_address_is_fetched_from_its_copy(
    default_jobs: dict[str, int], new_project: Callable[[str], Project]
) -> None:
    project = new_project("local")
    registry = project.folder / "workflow/spat/data/registry.py"
    text = registry.read_text()
    registry.write_text(text.replace('urls=(f"{_ETT}/{name}.csv",)', "urls=()"))
    assert registry.read_text() != text
    assert project.planned() == default_jobs


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("traning={}", "traning: unknown key; valid here: experiment"),
        ("grid=[{'datasets': ['ETTh1'], 'models': ['LSTM']}]", "'LSTM' is not one of iTransformer"),
        ("grid=[{'datasets': ['ETTh9'], 'models': ['DLinear']}]", "'ETTh9' is not one of ETTh1"),
        ("pruning={'site': {'ratios': [1.5]}}", "pruning.site.ratios"),
        (
            "variants={'wide': {'model': {'d_modle': 8}}} "
            "grid=[{'datasets': ['ETTh1'], 'models': ['PatchTST'], 'variants': ['wide']}]",
            "variants.wide",
        ),
    ],
)
def test_a_wrong_configuration_fails_before_any_job(
    setting: str, says: str, pristine: Project
) -> None:
    settings = setting.split(" grid=")
    if len(settings) == 2:
        settings[1] = f"grid={settings[1]}"
    shown = pristine.snakemake("--config", *settings, fails=True)
    assert says in shown
    assert "Traceback" not in shown
    assert "Building DAG" not in shown


def test_a_run_outside_the_grid_is_named(pristine: Project) -> None:
    path = "results/default/ILI/PatchTST-deep/l36-h24/seed0/pretrain/metrics.json"
    shown = pristine.snakemake("--dry-run", path, fails=True)
    assert "run 'ILI/PatchTST-deep/l36-h24/seed0' is not in the grid of experiment 'de" in shown


@pytest.mark.parametrize("profile", ["gpu"])
def test_profiles_plan_the_same_jobs(
    profile: str, pristine: Project, default_jobs: dict[str, int]
) -> None:
    assert pristine.planned("--workflow-profile", profile) == default_jobs


@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_a_cluster_gets_one_job_for_a_run(profile: str, pristine: Project, tmp_path: Path) -> None:
    text = (ROOT / f"profiles/{profile}/profile.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    # A dry run does not need the executor, which may not be installed.
    kept = {key: value for key, value in values.items() if not key.startswith(EXECUTORS)}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    shown = pristine.snakemake("--dry-run", "--workflow-profile", str(tmp_path), *overlay("smoke"))
    groups = Counter(re.findall(r"Group job (\w+) ", shown))
    assert groups == {"prepare": 1, "light": 1, "run": 3, "measure": 1}


EXECUTORS = ("executor", "slurm-", "cluster-generic-")


def test_a_duplicate_key_fails_before_any_job(pristine: Project, tmp_path: Path) -> None:
    overlay = tmp_path / "twice.yaml"
    overlay.write_text("finetune: {epochs: 1}\nfinetune: {epochs: 2}\n", encoding="utf-8")
    shown = pristine.snakemake("--configfile", str(overlay), fails=True)
    assert "twice.yaml: line 2: the key 'finetune' is a duplicate" in shown
    assert "Traceback" not in shown


def test_threads_need_no_number_of_cores() -> None:
    # On a cluster Snakemake has no number of cores, and a dry run does not show the error.
    for rules in (ROOT / "workflow/rules").glob("*.smk"):
        for line in rules.read_text(encoding="utf-8").splitlines():
            assert line.lstrip().startswith("#") or "workflow.cores" not in line, rules


def test_snakemake_plans_with_the_package_of_its_folder(
    new_project: Callable[[str], Project], tmp_path: Path
) -> None:
    here, elsewhere = new_project("here"), tmp_path / "elsewhere/spat"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text("raise RuntimeError('the package of another checkout')")
    here.path = [str(elsewhere.parent)]
    assert "download" in here.planned()
