"""Names in files of results are parsed before use, and never lead outside their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spat.pipeline import config as configuration
from spat.pipeline import records, runs
from spat.pipeline.cache import MANIFEST, DamagedError, Finished, write_record
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.stages import select
from spat.pipeline.stages.collect import collect
from spat.pipeline.stages.decide import decide
from spat.pipeline.stages.prune import prune, train_mask
from spat.pipeline.stages.trained import Job, trained

RUN = Run("synthetic", "iTransformer", "deep", "l48-h24", 0)
FILES = (
    *("architecture.json", "forecasts.npz", "history.csv", "losses.npy"),
    *("model.safetensors", "scores.parquet"),
)
ERRORS = {"mse": 0.5, "mae": 0.6}
PRETRAINED = {
    "status": "ok",
    "data_sha256": "ab" * 32,
    "settings": {
        **{"d_model": 8, "d_ff": 8, "e_layers": 2, "n_heads": 8, "dropout": 0.1},
        **{"time_features": False, "instance_norm": True},
    },
    "recipe": {"learning_rate": 0.001, "batch_size": 32, "epochs": 10, "patience": 3},
    "sites": ["encoder.0.self", "encoder.1.self"],
    "heads": [8, 8],
    "mask": "1.1",
    "params": 1000,
    "flops": 2000,
    "wall_s": 1.5,
    "epochs": 2,
    "best_epoch": 1,
    "errors": {"validation": ERRORS, "test": ERRORS},
}
HOSTILE_MASKS = (
    *("../../../victim", "/victim", "..", ".", "", "1.1/../../../../victim", "1.1\\..\\..\\victim"),
    *("~", "1.1\n", "1.1 ", "1,1", "1.2", "1.1.1", "1.11111111", "none", "victim", "$(touch F)"),
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A pre-trained run with two sites of eight heads, beside a folder that must not change."""
    block = {
        "datasets": [RUN.dataset],
        "models": [RUN.model],
        "variants": [RUN.variant],
        "lookback": 48,
        "horizons": [24],
    }
    config = configuration.load(
        {"experiment": "hostile", "results": str(tmp_path / "results"), "grid": [block]}
    )
    folder = runs.folder(config, RUN, "pretrain")
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).touch()
    write_record(folder, header(config, "pretrain") | PRETRAINED, FILES)
    for place in ("victim", "results/victim", "results/hostile/victim"):
        victim(tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        victim(tmp_path / place).write_text("precious")
    return config


def header(config: Config, stage: str) -> dict[str, Any]:
    return {**records.header(config, stage, RUN), "digest": "cd" * 32}


def victim(folder: Path) -> Path:
    return folder / "order0" / "thesis.txt"


def is_untouched(tmp_path: Path) -> bool:
    return len(list(tmp_path.rglob("thesis.txt"))) == 3


def write_selections(config: Config, mask: str) -> None:
    folder = runs.folder(config, RUN, "select")
    folder.mkdir(parents=True, exist_ok=True)
    frame = select.table([select.Decision("send", 0, "site", 0.5, "", 1, mask, 0)])
    select.write(folder / select.SELECTIONS, frame)
    about = header(config, "select") | {"decisions": 1, "masks": 1}
    write_record(folder, about, [select.SELECTIONS])


@pytest.mark.parametrize("mask", HOSTILE_MASKS)
def test_a_mask_from_a_table_is_parsed_first(mask: str, config: Config, tmp_path: Path) -> None:
    for stage in (prune, decide):
        write_selections(config, mask)  # a stage that finds a damaged folder removes its record
        with pytest.raises(DamagedError, match=r"selections\.csv"):
            stage(config, RUN)
    with pytest.raises(ValueError, match="mask"):
        train_mask(config, RUN, Job(mask, 0, "finetuned"))
    assert is_untouched(tmp_path)
    assert not (runs.folder(config, RUN, "prune") / "masks").exists()


@pytest.mark.parametrize(
    "entry",
    [
        *({"mask": m, "order": 0, "phase": "finetuned", "sizes": {}} for m in HOSTILE_MASKS),
        {"mask": "1.1", "order": "0/../../..", "phase": "finetuned", "sizes": {}},
        {"mask": "1.1", "order": -1, "phase": "finetuned", "sizes": {}},
        {"mask": "1.1", "order": True, "phase": "finetuned", "sizes": {}},
        {"mask": "1.1", "order": 0, "phase": "../victim", "sizes": {}},
        {"mask": "1.1", "order": 0, "phase": "finetuned", "sizes": {"../victim": 1}},
        {"mask": "1.1", "order": 0, "phase": "finetuned"},
        {"mask": "1.1", "order": 0, "sizes": {}},
        {"mask": ["1.1"], "order": 0, "phase": "finetuned", "sizes": {}},
        {"mask": 11, "order": 0, "phase": "finetuned", "sizes": {}},
        "masks/1.1",
        None,
    ],
)
def test_an_entry_of_a_manifest_is_parsed_first(entry: Any, config: Config, tmp_path: Path) -> None:
    folder = runs.folder(config, RUN, "prune")
    folder.mkdir(parents=True)
    write_record(folder, header(config, "prune") | {"masks": [entry]}, name=MANIFEST)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        trained(config, RUN)
    assert is_untouched(tmp_path)


def test_a_folder_that_a_manifest_names_is_not_followed(config: Config, tmp_path: Path) -> None:
    folder = runs.folder(config, RUN, "prune")
    folder.mkdir(parents=True)
    entry = {"mask": "1.1", "order": 0, "phase": "finetuned", "sizes": {}}
    entry["folder"] = str(tmp_path / "victim")
    write_record(folder, header(config, "prune") | {"masks": [entry]}, name=MANIFEST)
    ((job, files),) = trained(config, RUN)
    assert files.folder == folder / job.folder == folder / "masks/1.1/order0"


@pytest.mark.parametrize("name", ["../victim/order0/thesis.txt", "/etc/hostname", "thesis.txt"])
def test_a_file_that_the_record_does_not_list_is_not_read(name: str, config: Config) -> None:
    with pytest.raises(DamagedError, match="not a file of this folder"):
        Finished(runs.folder(config, RUN, "pretrain")).path(name)


def test_missing_jobs_are_named(config: Config) -> None:
    with pytest.raises(FileNotFoundError, match=r"select/metrics\.json"):
        prune(config, RUN)
    without = {key: value for key, value in PRETRAINED.items() if key != "errors"}
    folder = runs.folder(config, RUN, "pretrain")
    write_record(folder, header(config, "pretrain") | without, FILES)
    with pytest.raises(DamagedError, match=r"pretrain/metrics\.json: has no 'errors'"):
        collect(config)
    with pytest.raises(FileNotFoundError, match=r"pretrain/metrics\.json"):
        collect(config)
