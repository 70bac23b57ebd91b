"""The configuration refuses impossible values; the message names key, value and valid values."""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import yaml

from spat.data.registry import File
from spat.models.registry import MODELS
from spat.pipeline import datasets
from spat.pipeline.checks import checked_plan, require_folders
from spat.pipeline.cli import main
from spat.pipeline.config import Config, ConfigError, dump, load, load_files
from spat.pipeline.stages import score

ROOT = Path(__file__).parents[2]
BLOCK = {"datasets": ["ETTh1"], "models": ["PatchTST"]}
SMALL = {"experiment": "small", "grid": [BLOCK]}
CUSTOM = {"file": "own.csv", "step": "1h"}


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
        ({"traning": {}}, "traning", "(did you mean 'training'?)"),
        ({"grid": [{**BLOCK, "horizon": [1]}]}, "grid.0.horizon", "(did you mean 'horizons'?)"),
        ({"grid": [{**BLOCK, "models": ["patchtst"]}]}, "grid.0.models", "mean 'PatchTST'?)"),
        ({"pruning": {"site": {"criteria": ["sned"]}}}, "pruning.site.crit", "mean 'send'?)"),
        ({"experiment": "mlflow.db-wal"}, "experiment", "use another name"),
        ({"results": "a" * 256}, "results", "the path is too long"),
        ({"results": "/".join(["a" * 200] * 20)}, "results", "the path is too long"),
        ({"data": {"mirrors": [3]}}, "data.mirrors.0", "is not a valid path (given: 3)"),
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
        ({"experiment": "reference"}, "experiment", "use another name"),
        ({"experiment": "Reference"}, "experiment", "use another name"),
        ({"experiment": "mlartifacts"}, "experiment", "use another name"),
        ({"experiment": "mlflow.db"}, "experiment", "use another name"),
        ({"tracking": {"uri": "gopher://host"}}, "tracking.uri", "not the address of an MLflow st"),
        (
            {"tracking": {"uri": "localhost:5000"}},
            "tracking.uri",
            "it must start with http://, https",
        ),
        ({"tracking": {"uri": "file:///tmp/x"}}, "tracking.uri", "not the address of an MLflow"),
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
        ({"finetune": {"epochs": True}}, "finetune.epochs", "true is a truth value"),
        ({"finetune": {"lr_scale": True}}, "finetune.lr_scale", "true is a truth value"),
        ({"finetune": {"lr_scale": math.inf}}, "finetune.lr_scale", "finite number (given: inf)"),
        ({"finetune": {"lr_scale": math.nan}}, "finetune.lr_scale", "finite number (given: nan)"),
        ({"finetune": {"epochs": math.inf}}, "finetune.epochs", "finite number (given: inf)"),
        ({"finetune": {"epochs": 1.5}}, "finetune.epochs", "a valid integer"),
        ({"finetune": {"epochs": 10**30}}, "finetune.epochs", "less than or equal to 10000 (g"),
        ({"grid": [{**BLOCK, "seeds": [True]}]}, "grid.0.seeds", "true is a truth value"),
        ({"grid": [{**BLOCK, "seeds": [0, 0]}]}, "grid.0.seeds", "0 is in the list twice"),
        (
            {"grid": [{**BLOCK, "seeds": [2**63]}]},
            "grid.0.seeds.0",
            "less than 9223372036854775808",
        ),
        ({"grid": [{**BLOCK, "seeds": []}]}, "grid.0.seeds: list", "at least 1 item"),
        ({"grid": [{**BLOCK, "horizons": []}]}, "grid.0.horizons: list", "at least 1 item"),
        ({"grid": [{**BLOCK, "horizons": [False]}]}, "grid.0.horizons", "false is a truth value"),
        ({"grid": [{**BLOCK, "lookback": True}]}, "grid.0.lookback", "true is a truth value"),
        ({"grid": [{**BLOCK, "orders": math.nan}]}, "grid.0.orders", "finite number"),
        ({"grid": [{**BLOCK, "prune": 2}]}, "grid.0.prune", "boolean"),
        ({"measure": {"batch_sizes": []}}, "measure.batch_sizes: list", "at least 1 item"),
        ({"measure": {"batch_sizes": [0]}}, "measure.batch_sizes.0", "greater than or equal to 1"),
        ({"measure": {"batch_sizes": [1, 1]}}, "measure.batch_sizes", "1 is in the list twice"),
        ({"measure": {"batch_sizes": [10**9]}}, "measure.batch_sizes.0", "or equal to 65536"),
        ({"measure": {"batch_sizes": [True]}}, "measure.batch_sizes", "true is a truth value"),
        ({"pruning": {"site": {"criteria": ["send", "send"]}}}, "pruning.site.criteria", "twice"),
        ({"pruning": {"site": {"ratios": [0.5, 0.5]}}}, "pruning.site.ratios", "0.5 is in the"),
        ({"pruning": {"site": {"ratios": ["0.5"]}}}, "pruning.site.ratios", "'0.5' is neither a"),
        ({"pruning": {"site": {"ratios": [True]}}}, "pruning.site.ratios", "True is neither a"),
        ({"transfer": {"pairs": [["ETTh1", "ETTh2"]] * 2}}, "transfer.pairs", "twice"),
        ({"data": {"synthetic": {"noise": math.inf}}}, "data.synthetic.noise", "finite number"),
        ({"data": {"synthetic": {"rows": True}}}, "data.synthetic.rows", "true is a truth value"),
        ({"data": {"synthetic": {"rows": 10**6, "channels": 501}}}, "data.synthetic", "more than"),
        ({"statistics": {"bootstrap": 10**9}}, "statistics.bootstrap", "or equal to 1000000"),
        ({"statistics": {"confidence": True}}, "statistics.confidence", "true is a truth value"),
        ({"statistics": {"margin": math.inf}}, "statistics.margin", "finite number"),
        (
            {"variants": {"w": {"learning_rates": [math.inf]}}},
            "variants.w.learning_rates",
            "finite",
        ),
        ({"variants": {"w": {"sam_rho": True}}}, "variants.w.sam_rho", "true is a truth value"),
        ({"scoring": {"batches": 0}}, "scoring.batches", "greater than or equal to 1"),
        ({"scoring": {"batches": "many"}}, "scoring.batches", "valid integer"),
        ({"results": True}, "results", "true is a truth value"),
        ({"experiment": True}, "experiment", "true is a truth value"),
        ({"experiment": None}, "experiment", "valid string"),
        # Numbers and truth values in quotes.
        ({"finetune": {"epochs": "5"}}, "finetune.epochs", "'5' is text: write the number witho"),
        ({"finetune": {"lr_scale": "1e-3"}}, "finetune.lr_scale", "'1e-3' is text: write the n"),
        ({"training": {"patience": "3"}}, "training.patience", "'3' is text"),
        ({"grid": [{**BLOCK, "lookback": "96"}]}, "grid.0.lookback", "'96' is text"),
        ({"grid": [{**BLOCK, "horizons": [96, "192"]}]}, "grid.0.horizons", "'192' is text"),
        ({"grid": [{**BLOCK, "seeds": ["0"]}]}, "grid.0.seeds", "'0' is text"),
        ({"grid": [{**BLOCK, "prune": "yes"}]}, "grid.0.prune", "'yes' is not a boolean"),
        ({"grid": [{**BLOCK, "prune": 1}]}, "grid.0.prune", "1 is not a boolean"),
        ({"tracking": {"enabled": "false"}}, "tracking.enabled", "'false' is not a boolean"),
        ({"data": {"synthetic": {"noise": "nan"}}}, "data.synthetic.noise", "'nan' is text"),
        ({"variants": {"w": {"learning_rates": ["1e-3"]}}}, "variants.w.learning_rates", "is text"),
        # Values that no one means, one for each field with a bound.
        (
            {"pruning": {"draws": 10**6}},
            "pruning.draws",
            "equal to 1000 (given: 1000000). A larger",
        ),
        ({"pruning": {"draws": 10**6}}, "pruning.draws", "raise the bound in workflow/spat/pipel"),
        ({"grid": [{**BLOCK, "orders": 10**4}]}, "grid.0.orders", "equal to 1000 (given: 10000)"),
        ({"grid": [{**BLOCK, "lookback": 10**6}]}, "grid.0.lookback", "equal to 100000 "),
        ({"grid": [{**BLOCK, "horizons": [10**6]}]}, "grid.0.horizons.0", "equal to 100000 "),
        ({"finetune": {"lr_scale": 1e30}}, "finetune.lr_scale", "equal to 1000 (given: 1e+30)"),
        ({"training": {"epochs": 10**6}}, "training.epochs", "equal to 10000 "),
        ({"training": {"patience": 10**6}}, "training.patience", "equal to 10000 "),
        ({"scoring": {"batch_size": 10**6}}, "scoring.batch_size", "equal to 65536 "),
        ({"scoring": {"batches": 10**6}}, "scoring.batches", "equal to 100000 "),
        ({"measure": {"batch_sizes": [10**6]}}, "measure.batch_sizes.0", "equal to 65536 "),
        ({"measure": {"repeats": 10**6}}, "measure.repeats", "equal to 1000 "),
        # A single round cannot show that the machine was busy.
        ({"measure": {"repeats": 1}}, "measure.repeats", "greater than or equal to 2 (given: 1)"),
        ({"data": {"synthetic": {"channels": 10**6}}}, "data.synthetic.channels", "to 10000 "),
        ({"data": {"synthetic": {"noise": 1e30}}}, "data.synthetic.noise", "equal to 1000 "),
        ({"statistics": {"margin": 1e30}}, "statistics.margin", "equal to 1 "),
        ({"variants": {"w": {"sam_rho": 1e30}}}, "variants.w.sam_rho", "equal to 100 "),
        ({"variants": {"w": {"epochs": 10**6}}}, "variants.w.epochs", "equal to 10000 "),
        ({"variants": {"w": {"learning_rates": [1e9]}}}, "variants.w.learning_rates.0", "to 10 "),
        ({"robustness": {"manipulations": ["noise:5000"]}}, "robustness.manip", "up to 1000"),
        (
            {"robustness": {"manipulations": ["gate:" + "9" * 400]}},
            "robustness.manip",
            "at most 20",
        ),
        ({"experiment": "x" * 9999}, "experiment", "at most 64 letters"),
        # Keys that contradict each other.
        (
            {"data": {"custom": {"own": {**CUSTOM, "gap_limit": 3}}}},
            "data.custom.own",
            "gap_limit:",
        ),
        (
            {"data": {"custom": {"own": {**CUSTOM, "gap_limit": 3, "gaps": "refuse"}}}},
            "data.custom.own",
            "gap_limit: 3 has no effect, since gaps are refused: set `gaps: forward`",
        ),
        (
            {"data": {"custom": {"own": {**CUSTOM, "season": "24"}}}},
            "data.custom.own.season",
            "text",
        ),
        (
            {"data": {"custom": {"own": {**CUSTOM, "split": ["1", 1, 1]}}}},
            "data.custom.own.spl",
            "'1'",
        ),
        ({"data": {"custom": {"own": {**CUSTOM, "mean": "true"}}}}, "data.custom.own.mean", "bool"),
        (
            {"data": {"custom": {"own": {**CUSTOM, "horizons": []}}}},
            "data.custom.own.hor",
            "1 item",
        ),
    ],
)
def test_invalid_values_are_named(change: dict[str, object], key: str, says: str) -> None:
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


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1.5e2", 150.0), ("5", 5.0), (".5", 0.5), ("1E+1", 10.0)],
)
def test_numbers_without_quotes_are_read(text: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALL) + f"finetune: {{lr_scale: {text}}}\n")
    assert load_files(path).finetune.lr_scale == value
    # Nested numbers of Snakemake's `--config` are texts.
    given = {"finetune": {"epochs": "7", "lr_scale": text}, "grid": [{**BLOCK, "prune": "false"}]}
    config = load_files(path, given=given)
    assert (config.finetune.epochs, config.finetune.lr_scale) == (7, value)
    assert not config.grid[0].prune
    with pytest.raises(ConfigError, match="finetune.lr_scale"):
        path.write_text(yaml.safe_dump(SMALL) + f"finetune: {{lr_scale: '{text}'}}\n")
        load_files(path)


def test_files_merge_section_by_section_and_lists_are_replaced(tmp_path: Path) -> None:
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text(yaml.safe_dump({**SMALL, "training": {"epochs": 9, "patience": 2}}))
    over.write_text("training: {epochs: 1}\ngrid: [{datasets: [ILI], models: [DLinear]}]\n")
    config = load_files(base, over)
    assert (config.training.epochs, config.training.patience) == (1, 2)
    assert config.grid[0].datasets == ("ILI",)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"- a\n- b\n", "expected a mapping of keys, found list"),
        (b"", "expected a mapping of keys, found nothing"),
        (b"experiment: " + b"x" * 10**6, "1000012 bytes, more than the 1000000 of a configuration"),
        (b"a: [\n", "expected the node content"),
        (b"a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is a duplicate (first in line 1)"),
        (b"a: {b: 1, c: {d: 1, d: 1}}\n", "line 1: the key 'd' is a duplicate"),
        (b"a: {b: 1, 'b': 2}\n", "line 1: the key 'b' is a duplicate"),
        (b"g: [{s: 1,\n s: 2}]\n", "line 2: the key 's' is a duplicate"),
        (LAUGHS.encode(), "more than 100000 values"),
        (b"a: &a [*a]\n", "line 1: the alias refers to the value that contains it"),
        (b"a: *b\n", "found undefined alias"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"a: b: c\n", "mapping values are not allowed here"),
        (b"a: caf\xe9\n", "byte 6 is not UTF-8"),
        ("a: 1".encode("utf-16"), "byte 0 is not UTF-8"),
        (b"a: \x00\n", "special characters are not allowed"),
        (b"a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        (b"a: 2021-13-45\n", "month must be in 1..12"),
        (b"a: !!int x\n", "invalid literal"),
        (b"a: 1\nb: [010]\n", "line 2: YAML reads '010' as the number 8"),
        (b"a: 1:30\n", "line 1: YAML reads '1:30' as the number 90"),
        (b"a: 1_000\n", "line 1: YAML reads '1_000' as the number 1000: write the number in pl"),
        (b"a: 0x10\n", "line 1: YAML reads '0x10' as the number 16"),
        (b"a: 1_0.5\n", "line 1: YAML reads '1_0.5' as the number 10.5"),
        (b"? [1, 2]\n: 3\n", "found unhashable key"),
        (b"a: 1\n--- \nb: 2\n", "expected a single document"),
        (b"\ta: 1\n", "cannot start any token"),
        (b"PK\x03\x04\x00\x00", "special characters are not allowed"),
    ],
)
def test_files_that_are_not_a_configuration_are_named(
    content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_files(path)
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("experiment: " + "x" * 300_000, "xxxxxx... is not a name: use at most 64 letters"),
        # A regular expression that finds secrets must not search from each letter.
        ('experiment: "' + "x" * 200_000 + ' me@host"', "xxxxxx... is not a name: use at most 64"),
        ("x" * 1000 + ": 1", "unknown key; valid here: experiment"),
        ("".join(f"k{i}: 1\n" for i in range(2000)), "k17: unknown key"),
    ],
)
def test_a_message_about_a_long_text_is_short(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(content)
    begun = process_time()
    with pytest.raises(ConfigError) as error:
        load_files(path)
    assert process_time() - begun < 20
    assert says in str(error.value)
    assert len(str(error.value)) < 8000
    assert max(map(len, str(error.value).splitlines())) < 500


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, says in (
        (tmp_path / "absent.yaml", "No such file"),
        (tmp_path, "a folder"),
        (tmp_path / "pipe.yaml", "a pipe or a device"),
        (Path("/dev/zero"), "a pipe or a device"),
    ):
        with pytest.raises(ConfigError, match=says) as error:
            load_files(path)
        assert str(path) in str(error.value)


def test_aliases_and_merged_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "aliases.yaml"
    path.write_text(
        "experiment: small\n"
        "grid:\n"
        "  - &block {datasets: [ETTh1], models: [PatchTST], horizons: &h [96, 192]}\n"
        "  - {<<: *block, datasets: [ETTh2], horizons: *h}\n"
    )
    config = load_files(path)
    assert config.grid[1].models == ("PatchTST",) and config.grid[1].datasets == ("ETTh2",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"robustness": {"runs": ["ILI/*"]}}, "robustness.runs: 'ILI/*' matches no run"),
        ({"variants": {"deep2": {"model": {"d_model": 10**7}}}}, "d_model: 10000000 is too large"),
        *(
            ({"variants": {"deep2": {"model": {key: value}}}}, f"{key}: {value!r} is too large to")
            for key, value in (
                *(
                    ("e_layers", 1000),
                    ("batch_size", 10**6),
                    ("epochs", 10**6),
                    ("patience", 10**6),
                ),
                *(("learning_rate", 1e30), ("weight_decay", 1e30), ("sam_rho", 1e30)),
            )
        ),
        ({"variants": {"deep2": {"model": {"d_model": "8"}}}}, "d_model: '8' is not of type int"),
        (
            {"pruning": {"exhaustive": True}, "variants": {"deep2": {"model": {"e_layers": 13}}}},
            "has 13 layers, so at least 2^13 masks would be trained",
        ),
        (
            {"grid": [{**BLOCK, "seeds": list(range(6_000)), "horizons": [24, 48, 96, 192]}]},
            "grid: 24000 runs are more than 20000: divide them among several experiments",
        ),
        ({"variants": {"deep2": {"model": {"d_model": True}}}}, "d_model: True is not of type int"),
        ({"variants": {"deep2": {"model": {"e_layers": 0}}}}, "e_layers: 0 is not a positive"),
        ({"variants": {"deep2": {"model": {"n_heads": 512}}}}, "n_heads 512 exceeds d_model"),
        ({"variants": {"deep2": {"model": {"patch_len": 120}}}}, "holds no patch of 120 steps"),
        ({"variants": {"deep2": {"model": {"batch_size": 0}}}}, "batch_size: 0 is not a positive"),
        ({"transfer": {"pairs": [["synthetic", "synthetic2"]]}}, "more rows"),
        (
            {"data": {"mirrors": ["/", "/etc/passwd"]}},
            "data.mirrors.1: /etc/passwd is not a",
        ),
    ],
)
def test_grid_checks_all_that_snakemake_checks(
    change: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = {**BLOCK, "horizons": [96], "variants": ["deep2"] if "variants" in change else ["deep"]}
    if "transfer" in change:
        block["datasets"] = ["synthetic"]
        change = {**change, "data": {"synthetic": {"rows": 300}}}
    path = tmp_path / "mine.yaml"
    values = {"experiment": "small", "results": str(tmp_path / "results"), "grid": [block]}
    path.write_text(yaml.safe_dump({**values, **change}))
    assert main(["grid", "--config", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("spat grid: ") and says in error and "Traceback" not in error
    assert not (tmp_path / "results").exists()


# Text of a configuration, the environment -> what the plan says of it.
UNSET: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "in an address": (
        {"tracking": {"uri": "http://me:$SPAT_TEST_X@127.0.0.1:9"}},
        {},
        "tracking.uri: the environment variable $SPAT_TEST_X is not set, or empty: set it, or set",
    ),
    "in braces": ({"tracking": {"uri": "${SPAT_TEST_X}"}}, {}, "$SPAT_TEST_X is not set, or empty"),
    "empty": ({"tracking": {"uri": "$SPAT_TEST_X"}}, {"SPAT_TEST_X": ""}, "not set, or empty"),
    "the second": (
        {"tracking": {"uri": "http://$SPAT_TEST_X:$SPAT_TEST_Y@127.0.0.1:9"}},
        {"SPAT_TEST_X": "me"},
        "tracking.uri: the environment variable $SPAT_TEST_Y is not set",
    ),
    "no address": (
        {"tracking": {"uri": "$SPAT_TEST_X"}},
        {"SPAT_TEST_X": "hush"},
        "tracking.uri: $SPAT_TEST_X is not the address of an MLflow store, which begins with http:",
    ),
    "in a path": ({"results": "$SPAT_TEST_X/r"}, {}, "results: '$SPAT_TEST_X/r': the environment "),
    "empty in a path": (
        {"results": "${SPAT_TEST_X}/r"},
        {"SPAT_TEST_X": ""},
        "results: '${SPAT_TEST_X}/r': the environment variable $SPAT_TEST_X is not set, or empty:",
    ),
    "in a mirror": ({"data": {"mirrors": ["/", "$SPAT_TEST_X"]}}, {}, "data.mirrors.1: '$SPAT_T"),
}


@pytest.mark.parametrize("case", UNSET)
def test_a_variable_without_a_value_is_refused_in_the_plan(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, environment, says = UNSET[case]
    for name in ("SPAT_TEST_X", "SPAT_TEST_Y"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        checked_plan(load({**SMALL, "results": str(tmp_path), **change}))
    assert "hush" not in str(error.value)
    if "tracking" in change:  # nothing needs the address
        off = {"tracking": {**change["tracking"], "enabled": False}}
        assert checked_plan(load({**SMALL, "results": str(tmp_path), **off}))


def _file(path: Path) -> None:
    path.write_text("x", encoding="utf-8")


def _link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("absent"))


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("key", ["results", "data.cache"])
@pytest.mark.parametrize(
    ("make", "below", "says"),
    [
        (None, "/proc/x", "cannot be made (No such file or directory): set"),
        (None, "/proc", "cannot be"),
        (None, "/sys/kernel/x/y", "cannot be made"),
        (_file, "", "is in the place of a folder: move it away, and run the same"),
        (_file, "x/y", "is in the place of a folder: move it away, and run the same"),
        (_link_to_nowhere, "x", "is in the place of a folder: move it away, and run the same"),
        (_link_to_itself, "x", "is in the place of a folder: move it away, and run the same"),
    ],
    ids=["proc", "in proc", "sys", "file", "below a file", "broken link", "link to itself"],
)
def test_a_folder_that_cannot_be_made_is_refused_in_the_plan(
    key: str,
    make: Callable[[Path], None] | None,
    below: str,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    if make:
        make(place)
    folder = place / below  # an absolute path replaces the other
    values: dict[str, Any] = {**SMALL, "results": str(tmp_path / "results")}
    values |= {"results": str(folder)} if key == "results" else {"data": {"cache": str(folder)}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    for command in (["grid"], ["download", "--dataset", "ETTh1"]):
        assert main([*command, "--config", str(path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"spat {command[0]}: ConfigError: {key}: {folder}")
        assert says in error and f"set `{key}` to a folder where you may write" in error
    assert not (tmp_path / "results").exists()


def test_a_cache_from_which_nothing_is_missing_may_be_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make a folder read-only, as a cache that several users share."""
    values = {**SMALL, "results": str(tmp_path), "data": {"cache": "/proc/self"}}
    with pytest.raises(ConfigError, match=r"data\.cache: /proc/self cannot be written"):
        require_folders(load(values), ["ETTh1"])
    require_folders(load(values), ["synthetic"])
    monkeypatch.setattr(datasets, "published", lambda *_: [File("x", "status", (), ())])
    require_folders(load(values), ["ETTh1"])


def test_the_resolved_configuration_reads_back_the_same() -> None:
    config = load_files(ROOT / "config.yaml")
    assert load(yaml.safe_load(dump(config))) == config


def test_a_configuration_cannot_be_changed() -> None:
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


def test_some_criterion_must_rank_the_sites_of_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = replace(MODELS["PatchTST"], view="Output")
    monkeypatch.setitem(MODELS, "PatchTST", narrow)
    message = r"pruning\.site\.criteria: send cannot rank the sites of PatchTST"
    with pytest.raises(ConfigError, match=message) as error:
        load(SMALL)
    assert "add one that works with it: random, michel, taylor" in str(error.value)
    load({**SMALL, "grid": [{**block, "prune": False} for block in SMALL["grid"]]})
    pruning: dict[str, Any] = {"site": {"criteria": ["send", "magnitude"], "ratios": [0.5]}}
    with pytest.raises(ConfigError, match="send, magnitude cannot rank"):
        load({**SMALL, "pruning": pruning})
    pruning["site"]["criteria"].append("cosine")
    pruning["head"] = {"criteria": ["magnitude"], "ratios": [0.5]}
    load({**SMALL, "pruning": pruning})


def test_criteria_that_a_model_does_not_offer_are_left_out_and_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruning = {
        "site": {"criteria": ["magnitude", "cosine", "random"], "ratios": [0.5]},
        "head": {"criteria": ["send", "michel"], "ratios": [0.5]},
    }
    config = load({**SMALL, "pruning": pruning})
    assert score.computed(config.pruning, "PatchTST") == ("send", "magnitude", "cosine", "michel")
    assert score.not_offered(config.pruning, "PatchTST") == []
    monkeypatch.setitem(MODELS, "PatchTST", replace(MODELS["PatchTST"], view="Output"))
    assert score.computed(config.pruning, "PatchTST") == ("cosine", "michel")
    assert score.not_offered(config.pruning, "PatchTST") == ["magnitude", "send"]
