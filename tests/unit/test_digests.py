"""The modules and settings of each stage: a change reruns only the stages that depend on it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spat.models.registry import MODELS
from spat.pipeline import digests
from spat.pipeline.config import Config, load, load_files
from spat.pipeline.runs import Run

PACKAGE = Path(digests.__file__).parents[1]
OF_A_RUN = (
    *("pretrain", "score", "select", "finetune", "prune"),
    *("robustness", "decide", "measure", "transfer"),
)
STAGES = (
    "prepare",
    *(s for s in OF_A_RUN if s != "finetune"),
    "main",
    "collect",
    "tables",
    "figures",
)
RUN = Run("ETTh1", "iTransformer", "deep", "l96-h96", 0)
BASE: dict[str, Any] = {
    "experiment": "test",
    "grid": [{"datasets": ["ETTh1", "synthetic"], "models": ["iTransformer"], "horizons": [96]}],
}


def modules(stage: str, model: str | None = None) -> set[str]:
    paths = {Path(path).resolve().relative_to(PACKAGE) for path in digests.sources(stage, model)}
    return {str(path) for path in paths}


IMPORT_EACH = """
import importlib, json, os, sys
import numpy, pandas, scipy.stats, torch  # once for all: each stage is a fork of this process
for stage, names in json.loads(sys.argv[1]).items():
    reader, writer = os.pipe()
    if os.fork() == 0:
        for name in names:
            importlib.import_module(name)
        found = [name for name in sys.modules if name.split(".")[0] == "spat"]
        os.write(writer, json.dumps({stage: found}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        print(answer.read())
    os.wait()
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """The package's modules that are in `sys.modules` once those of a stage are imported."""
    wanted = {
        stage: [
            digests._ENTRIES.get(stage, f"spat.pipeline.stages.{stage}"),
            *digests._by_name(stage, "PatchTST"),
        ]
        for stage in STAGES
    }
    command = [sys.executable, "-c", IMPORT_EACH, json.dumps(wanted)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not shown.stderr, shown.stderr
    answers = [json.loads(line) for line in shown.stdout.splitlines()]
    return {stage: modules for answer in answers for stage, modules in answer.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_module_is_declared(stage: str, imported: dict[str, list[str]]) -> None:
    computing = {
        module for module in set(imported[stage]) - digests.EXCLUDED if digests._read(module)[0]
    }
    files = {str(digests._file(module).relative_to(PACKAGE)) for module in computing}
    assert files, "something was imported"
    assert files <= modules(stage, "PatchTST")


def test_files_exist_and_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in digests.sources("prune", "PatchTST"):
        assert not Path(path).is_absolute()
        assert Path(path).is_file()


# Models that are subclasses of another model.
BUILT_ON = {
    "Nonstationary": "Transformer",
    "Informer": "Transformer",
    "FEDformer": "Autoformer",
}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_brings_its_own_implementation_and_no_other(model: str) -> None:
    def file(name: str) -> str:
        return MODELS[name].module.rpartition(".")[2] + ".py"

    own = {file(model)} | ({file(BUILT_ON[model])} if model in BUILT_ON else set())
    names = {Path(path).name for path in modules("pretrain", model)}
    assert names & set(map(file, MODELS)) == own


def test_training_depends_on_the_loop_and_not_on_plots_criteria_or_registries() -> None:
    names = modules("pretrain", "iTransformer")
    assert {"training/loop.py", "models/layers/attention.py", "data/windows.py"} <= names
    assert "scoring/criteria.py" not in names
    assert not any(path.startswith("study/") for path in names)
    assert not any(path.endswith("registry.py") for path in names)


def test_scoring_depends_on_its_criteria() -> None:
    assert {"scoring/send.py", "scoring/criteria.py"} <= modules("score", "iTransformer")


@pytest.mark.parametrize("stage", ["main", "collect", "tables", "figures"])
def test_reports_depend_on_nothing_that_trains(stage: str) -> None:
    assert not any(path.startswith(("training/", "models/")) for path in modules(stage, "DLinear"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    copy = tmp_path / "spat"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(digests, "_PACKAGE", copy)
    caches = (digests._paths, digests._modules, digests._read, digests._code)
    for cached in caches:
        cached.cache_clear()
    yield copy
    for cached in caches:
        cached.cache_clear()


def test_comments_and_docstrings_do_not_change_a_digest(package: Path) -> None:
    before = digests.code_digest("pretrain", "iTransformer")
    loop = package / "training" / "loop.py"
    loop.write_text('"""Another docstring."""\n# A comment.\n\n' + loop.read_text())
    digests._code.cache_clear()
    assert digests.code_digest("pretrain", "iTransformer") != "", "the copy can be read"
    text = loop.read_text().replace('"""Another docstring."""\n', "")
    loop.write_text(text)
    digests._code.cache_clear()
    assert digests.code_digest("pretrain", "iTransformer") == before


@pytest.mark.parametrize(
    ("changed", "stage", "matters"),
    [
        ("training/loop.py", "pretrain", True),
        ("models/itransformer.py", "pretrain", True),
        ("models/patchtst.py", "pretrain", False),
        ("scoring/criteria.py", "pretrain", False),
        ("scoring/criteria.py", "score", True),
        ("data/registry.py", "pretrain", False),
        ("pipeline/config.py", "pretrain", False),
    ],
)
def test_a_change_of_code_changes_the_digests_of_the_stages_that_run_it(
    package: Path, changed: str, stage: str, matters: bool
) -> None:
    before = digests.code_digest(stage, "iTransformer")
    path = package / changed
    path.write_text(path.read_text() + "\nONE_MORE = 1\n")
    digests._code.cache_clear()
    assert (digests.code_digest(stage, "iTransformer") != before) == matters


def settings_digests(config: Config, run: Run = RUN) -> dict[str, str]:
    by_stage = {stage: digests.settings_digest(config, stage, run) for stage in OF_A_RUN}
    for stage in ("download", "prepare"):
        by_stage[stage] = digests.settings_digest(config, stage, dataset=run.dataset)
    for stage in ("main", "collect", "tables", "figures"):
        by_stage[stage] = digests.settings_digest(config, stage)
    return by_stage


def changed(change: dict[str, Any], run: Run = RUN) -> set[str]:
    before, after = (
        settings_digests(load(BASE), run),
        settings_digests(load({**BASE, **change}), run),
    )
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"training": {"epochs": 2}}, {"pretrain"}),
        (
            {"training": {"precision": "tf32"}},
            {"pretrain", "score", "finetune", "prune", "robustness", "measure", "transfer"},
        ),
        ({"scoring": {"batches": 3}}, {"pretrain", "score", "robustness", "measure"}),
        ({"pruning": {"site": {"criteria": ["send"], "ratios": [0.5]}}}, {"select", "decide"}),
        ({"pruning": {"head": {"criteria": ["michel"], "ratios": [0.5]}}}, {"score", "select"}),
        ({"pruning": {"draws": 3}}, {"select"}),
        ({"pruning": {"exhaustive": True}}, {"select"}),
        ({"pruning": {"scratch": True}}, {"prune"}),
        ({"finetune": {"epochs": 7}}, {"finetune", "prune"}),
        ({"robustness": {"manipulations": ["uniform"]}}, {"robustness"}),
        ({"robustness": {"runs": ["ETTh1/*"]}}, {"collect"}),
        ({"measure": {"repeats": 3}}, {"measure"}),
        ({"transfer": {"pairs": [["ETTh1", "ETTh2"]]}}, {"collect"}),
        ({"statistics": {"margin": 0.02}}, {"main", "tables", "figures"}),
        ({"grid": [{**BASE["grid"][0], "seeds": [0, 1]}]}, {"collect"}),
        ({"variants": {"mine": {"model": {"d_model": 8}}}}, set()),
        ({"data": {"mirrors": [], "cache": "elsewhere"}}, set()),
        ({"data": {"synthetic": {"rows": 2000}}}, set()),
        ({"tracking": {"enabled": False}}, set()),
        ({"results": "elsewhere"}, set()),
    ],
)
def test_a_setting_changes_the_digests_of_the_stages_that_read_it(
    change: dict[str, Any], stages: set[str]
) -> None:
    assert changed(change) == stages


def test_generated_data_depend_on_their_generator() -> None:
    run = Run("synthetic", "iTransformer", "deep", "l96-h96", 0)
    assert changed({"data": {"synthetic": {"rows": 2000}}}, run) == {"prepare", "pretrain"}


def test_an_epoch_count_equal_to_the_registrys_is_the_same_setting() -> None:
    assert changed({"training": {"epochs": 10, "patience": 3}}) == set()


def test_other_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="'plot' .* expected one of download, prepare, pretrain"):
        digests.settings(load(BASE), "plot", RUN)


def test_the_resolved_configuration_is_written_once_under_its_content(tmp_path: Path) -> None:
    config = load({**BASE, "results": str(tmp_path)})
    path = digests.write_resolved(config)
    written = path.stat().st_mtime_ns
    assert path.parent == tmp_path / "test" / "configs"
    assert load_files(path) == config
    assert digests.write_resolved(config) == path
    assert path.stat().st_mtime_ns == written
    other = config.model_copy(update={"scoring": config.scoring.model_copy(update={"batches": 1})})
    assert digests.write_resolved(other) != path
