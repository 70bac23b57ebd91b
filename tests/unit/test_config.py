"""The configuration refuses what cannot run, and says which key, which value and what is valid."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from spat.models.registry import MODELS
from spat.pipeline.cli import main
from spat.pipeline.config import Config, ConfigError, dump, load, load_files

ROOT = Path(__file__).parents[2]
BLOCK = {"datasets": ["ETTh1"], "models": ["PatchTST"]}
SMALL = {"experiment": "small", "grid": [BLOCK]}


def test_defaults_need_only_an_experiment_and_a_grid() -> None:
    config = load(SMALL)
    assert config.folder == Path("results/small")
    assert config.grid[0].variants == ("deep",)
    assert config.pruning.site.rules == ("validation",)
    assert config.pruning.site.fixed == (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ({"traning": {}}, "traning", "unknown key; valid here: experiment, results, grid"),
        ({"training": {"epoch": 3}}, "training.epoch", "valid here: device, precision, epochs"),
        ({"grid": [{**BLOCK, "seed": 1}]}, "grid.0.seed", "valid here: datasets, models"),
        ({"grid": [{**BLOCK, "models": ["LSTM"]}]}, "grid.0.models", "'LSTM' is not one of iTra"),
        ({"grid": [{**BLOCK, "datasets": ["ETTh3"]}]}, "grid.0.datasets", "not one of ETTh1, "),
        ({"grid": [{**BLOCK, "variants": ["big"]}]}, "grid.0.variants", "not one of published, d"),
        ({"grid": []}, "grid: list", "at least 1 item, not 0 (given: [])"),
        ({"grid": [{"datasets": ["ETTh1"]}]}, "grid.0.models", "Field required"),
        ({"grid": [{**BLOCK, "seeds": 1}]}, "grid.0.seeds: should", "a valid list (given: 1)"),
        ({"grid": [{**BLOCK, "models": "DLinear"}]}, "grid.0.models: should", "valid list (given"),
        ({"training": 3}, "training: should", "be a valid mapping of keys (given: 3)"),
        ({"pruning": {"site": {"ratios": [None]}}}, "pruning.site.ratios: None", "is neither a nu"),
        ({"variants": {"w": {"model": {"d_ff": [8]}}}}, "variants.w.model: d_ff: [8]", "neither a"),
        ({"experiment": "a/b"}, "experiment", "a/b"),
        ({"experiment": "a b"}, "experiment", "'a b' is not a name"),
        ({"experiment": "a\n"}, "experiment", "is not a name"),
        ({"experiment": "größe"}, "experiment", "is not a name"),
        ({"experiment": "a" * 65}, "experiment", "at most 64 letters"),
        ({"experiment": "reference"}, "experiment", "take another name"),
        ({"experiment": "Reference"}, "experiment", "take another name"),
        ({"experiment": "mlartifacts"}, "experiment", "take another name"),
        ({"results": "results/reference"}, "experiment", "another folder `results`"),
        ({"results": "results/x/../reference"}, "experiment", "another folder `results`"),
        ({"results": str(ROOT / "results/reference")}, "experiment", "another folder `results`"),
        ({"variants": {"x$(touch F)": {}}}, "variants.x$(touch F)", "is not a name"),
        ({"variants": {"`id`": {}}}, "variants.`id`", "is not a name"),
        ({"variants": {"../../x": {}}}, "variants.../../x", "is not a name"),
        ({"variants": {"a/b": {}}}, "variants.a/b", "is not a name"),
        ({"variants": {"{run}": {}}}, "variants.{run}", "is not a name"),
        ({"variants": {"": {}}}, "variants.", "is not a name"),
        ({"results": "a{x}"}, "results", "is not a usable path"),
        ({"results": "a\nb"}, "results", "is not a usable path"),
        ({"results": "a?b"}, "results", "is not a usable path"),
        ({"results": "--config"}, "results", "is not a usable path"),
        ({"results": ""}, "results", "is not a usable path"),
        ({"results": "~nobody-of-this-name/x"}, "results", "no such user's home folder"),
        ({"results": "$SPAT_UNSET/x"}, "results", "variable $SPAT_UNSET is not set"),
        ({"data": {"cache": "{x}"}}, "data.cache", "is not a usable path"),
        ({"pruning": {"site": {"ratios": [1.5]}}}, "pruning.site.ratios", "1.5 is neither a num"),
        ({"pruning": {"site": {"ratios": [0]}}}, "pruning.site.ratios", "0 is neither a number"),
        ({"pruning": {"site": {"ratios": ["auto:best"]}}}, "pruning.site.ratios", "auto:one_se"),
        ({"pruning": {"site": {"criteria": ["sned"]}}}, "pruning.site.criteria", "one of send"),
        ({"pruning": {"head": {"criteria": ["cosine"]}}}, "pruning.head.criteria", "one of send"),
        ({"pruning": {"head": {"ratios": ["auto:gap"]}}}, "pruning.head.ratios", "whole sites"),
        ({"transfer": {"pairs": [["ETTh1", "ETTh1"]]}}, "transfer.pairs.0", "both 'ETTh1'"),
        ({"transfer": {"pairs": [["ETTh1", "M4"]]}}, "transfer.pairs.0", "'M4' is not one of"),
        ({"training": {"device": "gpu"}}, "training.device", "'auto', 'cpu' or 'cuda'"),
        ({"finetune": {"epochs": 0}}, "finetune.epochs", "given: 0"),
        ({"variants": {"deep": {}}}, "variants.deep", "belongs to the model registry"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], key: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load({**SMALL, **change}, "mine.yaml")
    message = str(error.value)
    assert message.startswith("mine.yaml: ")
    (line,) = message.splitlines()[1:]
    assert line.startswith(f"  {key}")
    assert says in line


@pytest.mark.parametrize("path", ["~/runs", "$HOME/runs", "${HOME}/runs"])
def test_the_home_folder_is_filled_in(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load({**SMALL, "results": path, "data": {"mirrors": [path]}})
    assert config.results == Path("/home/someone/runs")
    assert config.data.mirrors == (Path("/home/someone/runs"),)


def test_files_merge_section_by_section_and_lists_are_replaced(tmp_path: Path) -> None:
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text(yaml.safe_dump({**SMALL, "training": {"epochs": 9, "patience": 2}}))
    over.write_text("training: {epochs: 1}\ngrid: [{datasets: [ILI], models: [DLinear]}]\n")
    config = load_files(base, over)
    assert (config.training.epochs, config.training.patience) == (1, 2)
    assert config.grid[0].datasets == ("ILI",)


def test_files_that_are_no_configuration_are_named(tmp_path: Path) -> None:
    for content in ("- a\n- b\n", "a: [\n"):
        path = tmp_path / "broken.yaml"
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"broken\.yaml"):
            load_files(path)
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_files(tmp_path / "absent.yaml")


def test_the_resolved_configuration_reads_back_the_same() -> None:
    config = load_files(ROOT / "config.yaml")
    assert load(yaml.safe_load(dump(config))) == config


def test_it_cannot_be_changed() -> None:
    config = load(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3  # type: ignore[misc]


def test_every_field_of_the_schema_is_described() -> None:
    missing = [
        f"{name}.{key}"
        for name, model in Config.model_json_schema()["$defs"].items()
        for key, field in model["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert not missing


def test_the_committed_schema_is_that_of_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    main(["schema"])
    committed = (ROOT / "workflow" / "config.schema.json").read_text()
    assert json.loads(committed) == json.loads(capsys.readouterr().out), (
        "the schema drifted: python -m spat schema > workflow/config.schema.json"
    )


def test_criteria_are_asked_only_of_models_that_show_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = replace(MODELS["PatchTST"], view="Output")
    monkeypatch.setitem(MODELS, "PatchTST", narrow)
    with pytest.raises(ConfigError, match="'send' cannot rank the sites of PatchTST") as error:
        load(SMALL)
    assert "those that work with it: random, michel, taylor" in str(error.value)
    pruning: dict[str, Any] = {"site": {"criteria": ["michel", "cosine"], "ratios": [0.5]}}
    load({**SMALL, "pruning": pruning})
    pruning["head"] = {"criteria": ["magnitude"], "ratios": [0.5]}
    with pytest.raises(ConfigError, match=r"pruning\.head\.criteria: 'magnitude'"):
        load({**SMALL, "pruning": pruning})
