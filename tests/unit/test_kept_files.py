"""Any kept file may be deleted or damaged: it is named, and the same command repairs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from spat.files import read_json
from spat.pipeline import cli, records
from spat.pipeline.cache import DamagedError, write_record
from spat.pipeline.config import Config, dump, load_files
from spat.pipeline.frames import COLUMNS
from spat.pipeline.runs import Run
from spat.pipeline.stages.collect import collect
from spat.pipeline.stages.grid import grid
from spat.pipeline.stages.main import main

ROOT = Path(__file__).parents[2]
RUN = Run("synthetic", "iTransformer", "tiny", "l48-h24", 0)
VOLATILE = ["wall_s", "seconds", "latency_ms", "latency_spread_ms", "memory_mb"]
MASK = "prune/masks/0.0/order0"
FILES = (
    *(f"pretrain/{name}" for name in ("model.safetensors", "architecture.json", "history.csv")),
    *(f"pretrain/{name}" for name in ("scores.parquet", "losses.npy", "forecasts.npz")),
    *("pretrain/metrics.json", "pretrain/kept/metrics.json", "pretrain/kept/digest"),
    *("score/scores.parquet", "score/maps.npz", "score/metrics.json"),
    *("select/selections.csv", "select/metrics.json", "prune/manifest.json", "prune/sites.json"),
    *(f"{MASK}/{name}" for name in ("model.safetensors", "architecture.json", "history.csv")),
    *(f"{MASK}/{name}" for name in ("losses.npy", "validation_losses.npy", "forecasts.npz")),
    *(f"{MASK}/{name}" for name in ("untuned_losses.npy", "metrics.json", "digest")),
    *("robustness/robustness.parquet", "robustness/metrics.json"),
    *(f"robustness/kept/site0/uniform/scores/{name}" for name in ("metrics.json", "digest")),
    *("decide/selections.csv", "decide/metrics.json", "measure/metrics.json", "measure/maps.npz"),
    "transfer/synthetic2/metrics.json",
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGE: tuple[Callable[[Path], None], ...] = (flip, Path.unlink, cut, zero, empty)


def configured(results: Path) -> Config:
    smoke = load_files(ROOT / "config.yaml", ROOT / "workflow/experiments/smoke.yaml")
    block = smoke.grid[0].model_copy(update={"models": (RUN.model,)})
    return smoke.model_copy(update={"results": results, "grid": (block,)})


def finish(config: Config) -> dict[str, pd.DataFrame]:
    """All results, as the frames show them."""
    grid(config, "*", minutes=9)
    collect(config)
    frames = {n: pd.read_parquet(config.folder / "data" / f"{n}.parquet") for n in COLUMNS}
    frames["history"] = frames["history"].query("quantity != 'seconds'")
    return {n: frame.drop(columns=VOLATILE, errors="ignore") for n, frame in frames.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, pd.DataFrame]]:
    config = configured(tmp_path_factory.mktemp("whole"))
    return config, finish(config)


def trained_at(config: Config) -> dict[str, int]:
    folder = config.folder / RUN.path
    places = (*folder.glob("prune/masks/*/*"), folder / "pretrain/kept")
    return {p.name + p.parent.name: (p / "metrics.json").stat().st_mtime_ns for p in places}


def copied(whole: Config, results: Path) -> Config:
    config = configured(results)
    shutil.copytree(whole.folder, config.folder)  # hard links are not kept
    kept = config.folder / RUN.path / "pretrain/kept"
    for path in kept.iterdir():
        if path.name != "digest":
            path.unlink()
            os.link(kept.parent / path.name, path)
    return config


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, DAMAGE[i % len(DAMAGE)]) for i, name in enumerate(FILES)],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_the_same_command_repairs_a_damaged_file(
    name: str,
    damage: Callable[[Path], None],
    whole: tuple[Config, dict[str, Any]],
    tmp_path: Path,
) -> None:
    pristine, expected = whole
    config = copied(pristine, tmp_path)
    before = trained_at(config)
    path = config.folder / RUN.path / name
    damage(path)
    for _ in range(3):
        try:
            frames = finish(config)
            break
        except (DamagedError, RuntimeError) as error:
            assert path.name in str(error)
            assert "run the same command again" in str(error)
    for frame, rows in expected.items():
        pd.testing.assert_frame_equal(frames[frame], rows)
    # Only the network of the damaged folder was trained again.
    changed = {place for place, at in trained_at(config).items() if before[place] != at}
    assert changed <= {"order00.0" if name.startswith(MASK) else "keptpretrain"}
    if not name.startswith((MASK, "pretrain")):
        assert not changed


def test_the_main_table_needs_no_masks_of_heads(
    whole: tuple[Config, dict[str, Any]], tmp_path: Path
) -> None:
    pristine, expected = whole
    config = copied(pristine, tmp_path / "results")
    table = main(config)
    folder = config.folder / RUN.path / "prune"
    heads = [p for p in folder.glob("masks/*") if any(len(site) > 1 for site in p.name.split("."))]
    assert heads
    for path in (*heads, folder.parent / "measure", folder.parent / "transfer"):
        shutil.rmtree(path)
    (folder / "manifest.json").unlink()
    assert main(config) == table
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        collect(config)

    # If a mask of sites is damaged, it is trained again, without the masks of heads.
    before = trained_at(config)
    flip(folder.parent / MASK / "validation_losses.npy")
    file = tmp_path / "resolved.yaml"
    file.write_text(dump(config), "utf-8")
    words = ["--config", str(file), "--run", RUN.path]
    assert cli.main(["decide", *words]) == 1
    assert not (folder / "sites.json").exists()
    assert cli.main(["prune", *words, "--only-sites"]) == 0
    assert {p for p, at in trained_at(config).items() if before.get(p) != at} == {"order00.0"}
    assert cli.main(["decide", *words]) == 0
    assert main(config) == table
    assert not (folder / "manifest.json").exists()

    # A new file would be a reason for Snakemake to make the main table again.
    sites = (folder / "sites.json").read_bytes()
    frames = finish(config)
    assert (folder / "sites.json").read_bytes() == sites
    for frame, rows in expected.items():
        pd.testing.assert_frame_equal(frames[frame], rows)


# Records with a valid checksum, as if another version or another run had written them.

METRICS = {"validation": {"mse": 0.1, "mae": 0.1}, "test": {"mse": 0.1}}


def rewrite(path: Path, key: str, value: Any) -> None:
    """Give a key of a record another value (None removes it) and the record its checksum again.

    A function makes the value from the one that is there; `*KEY` are all values by mask.
    """
    record = read_json(path)
    record.pop("checksum")
    for name in ("latency_ms", "latency_spread_ms", "memory_mb") if key[0] == "*" else (key,):
        record[name] = value(record[name]) if callable(value) else value
    if value is None:
        record.pop(key)
    files = record.pop("files")
    path.unlink()  # a published record is a link
    write_record(path.parent, record, files, path.name)


def with_stranger(by_mask: dict[str, Any]) -> dict[str, Any]:
    return {**by_mask, "0.0.0": by_mask["1.1"]}


def without_errors(masks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**masks[0], "errors": {"mse": None, "mae": None}}, *masks[1:]]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("pretrain/metrics.json", "wall_s", -1.0),
        ("pretrain/metrics.json", "digest", "0" * 64),
        ("pretrain/metrics.json", "settings", lambda settings: {**settings, "d_model": "x"}),
        ("score/metrics.json", "wall_s", {"x": 1}),
        ("select/metrics.json", "dataset", "synthetic2"),
        ("decide/metrics.json", "path", None),
        (f"{MASK}/metrics.json", "errors", {"pruned": METRICS, "finetuned": METRICS}),
        (f"{MASK}/metrics.json", "mask", "1.1"),
        ("prune/manifest.json", "masks", [{"mask": "1.1"}]),
        ("prune/manifest.json", "masks", lambda masks: masks[:-1]),
        ("measure/metrics.json", "latency_ms", {}),
        ("measure/metrics.json", "*latency_ms", lambda by_mask: {"1.1": by_mask["1.1"]}),
        ("measure/metrics.json", "*latency_ms", with_stranger),
        ("robustness/metrics.json", "cases", True),
        ("transfer/synthetic2/metrics.json", "masks", []),
        ("transfer/synthetic2/metrics.json", "masks", lambda masks: masks[1:]),
        ("transfer/synthetic2/metrics.json", "masks", lambda masks: masks[:-1]),
        ("transfer/synthetic2/metrics.json", "masks", without_errors),
        (
            "transfer/synthetic2/metrics.json",
            "masks",
            lambda masks: [*masks, {**masks[-1], "mask": "0.1.1"}],
        ),
    ],
)
def test_wrong_content_is_named_and_the_command_in_the_message_repairs_it(
    name: str,
    key: str,
    value: Any,
    whole: tuple[Config, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pristine, expected = whole
    config = copied(pristine, tmp_path / "results")
    path = config.folder / RUN.path / name
    rewrite(path, key, value)
    with pytest.raises(DamagedError) as caught:
        collect(config)
    message = str(caught.value)
    assert str(path) in message and key.removeprefix("*") in message
    obey(message, config, tmp_path, capsys)
    require_same_frames(config, expected)


def obey(message: str, config: Config, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the command that a message names; it must succeed."""
    untracked = config.tracking.model_copy(update={"enabled": False})
    file = folder / "config.yaml"
    file.write_text(dump(config.model_copy(update={"tracking": untracked})), "utf-8")
    command = re.search(r"By hand, first run `python -m spat ([^`]+)`", message)
    assert command, message
    capsys.readouterr()
    words = shlex.split(command[1].replace("FILE", shlex.quote(str(file))))
    assert cli.main(words) == 0, capsys.readouterr().err


def require_same_frames(config: Config, expected: dict[str, Any]) -> None:
    collect(config)
    for frame in expected:
        actual = pd.read_parquet(config.folder / "data" / f"{frame}.parquet")
        if frame == "history":
            actual = actual.query("quantity != 'seconds'")
        actual = actual.drop(columns=VOLATILE, errors="ignore")
        pd.testing.assert_frame_equal(actual, expected[frame])


def other_columns(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        is_csv = path.suffix == ".csv"
        frame = change(pd.read_csv(path, dtype=str) if is_csv else pd.read_parquet(path))
        path.unlink()  # a published file is a link
        frame.to_csv(path, index=False) if is_csv else frame.to_parquet(path)

    return write


def other_arrays(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with np.load(path) as stored:
            arrays = change(dict(stored))
        path.unlink()
        np.savez(path, **arrays)

    return write


def other_array(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        values = change(np.load(path))
        path.unlink()
        np.save(path, values)

    return write


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("pretrain/history.csv", other_columns(lambda f: f.drop(columns="epoch")), "'epoch'"),
        ("pretrain/history.csv", other_columns(lambda f: f.drop(columns="val_mae")), "'val_mae'"),
        (f"{MASK}/history.csv", other_columns(lambda f: f.assign(val_mse="x")), "'val_mse'"),
        ("score/scores.parquet", other_columns(lambda f: f.drop(columns="batch")), "'batch'"),
        ("score/scores.parquet", other_columns(lambda f: f.assign(head="x")), "'head'"),
        ("select/selections.csv", other_columns(lambda f: f.drop(columns="mask")), "'mask'"),
        ("select/selections.csv", other_columns(lambda f: f.assign(removed="")), "'removed'"),
        ("robustness/robustness.parquet", other_columns(lambda f: f.assign(value="x")), "'value'"),
        ("score/scores.parquet", other_columns(lambda f: f.assign(criterion="x")), "is not one of"),
        ("select/selections.csv", other_columns(lambda f: f.assign(level="x")), "'x' is not one"),
        ("robustness/robustness.parquet", other_columns(lambda f: f.assign(quantity="x")), "'x'"),
        ("robustness/robustness.parquet", other_columns(lambda f: f.assign(split="x")), "'split'"),
        ("pretrain/history.csv", other_columns(lambda f: f.iloc[:0]), "0 rows, but 'epochs' of"),
        (f"{MASK}/history.csv", other_columns(lambda f: pd.concat([f, f])), "2 rows, but 'epo"),
        (f"{MASK}/losses.npy", other_array(lambda _: np.array(["x", "y"])), "1 dimensions"),
        (f"{MASK}/losses.npy", other_array(lambda a: a + 1), "the mean of"),
        ("pretrain/losses.npy", other_array(lambda a: a[:0]), "the mean of 0 values"),
        ("score/scores.parquet", other_columns(lambda f: f.assign(name=[[1]] * len(f))), "'name'"),
        ("select/selections.csv", other_columns(lambda f: f.assign(rule="x")), "'rule': 'x' is"),
        ("score/maps.npz", other_arrays(lambda a: {k: a[k][:0] for k in a}), "is empty, or"),
        ("measure/maps.npz", other_arrays(lambda a: {k: a[k] * np.nan for k in a}), "is empty, or"),
        (
            "pretrain/forecasts.npz",
            other_arrays(lambda a: {k: a[k][:2] for k in a}),
            "the array 'window' is [2]: expected [3]",
        ),
        (
            f"{MASK}/forecasts.npz",
            other_arrays(lambda a: {**a, "forecast": a["forecast"][:, 1:]}),
            "the array 'forecast' is [3, 23]: expected [3, 24]",
        ),
        ("score/maps.npz", other_arrays(lambda _: {}), "no array"),
        ("measure/maps.npz", other_arrays(lambda _: {}), "no array"),
        ("pretrain/forecasts.npz", other_arrays(lambda a: {**a, "input": np.ones(3)}), "'input'"),
        (f"{MASK}/forecasts.npz", other_arrays(lambda _: {"x": np.ones(3)}), "'window'"),
    ],
)
def test_a_table_with_wrong_content_and_a_right_hash_is_named_and_its_kept_copy_is_forgotten(
    name: str,
    change: Callable[[Path], None],
    says: str,
    whole: tuple[Config, dict[str, Any]],
    tmp_path: Path,
) -> None:
    config = copied(whole[0], tmp_path)
    path = config.folder / RUN.path / name
    with_right_hashes(path, change)
    with pytest.raises(DamagedError) as caught:
        collect(config)
    assert str(path) in str(caught.value) and says in str(caught.value)
    assert "By hand, first run `python -m spat" in str(caught.value)
    for record in (path.parent / "kept/metrics.json", path.parent / "metrics.json"):
        if record.with_name("digest").exists():
            assert str(record) in str(caught.value) and not record.exists()


def with_right_hashes(path: Path, change: Callable[[Path], None]) -> None:
    """Change a file, its record and the kept copies of both, as if a job had written them so."""
    change(path)
    record = read_json(path.parent / "metrics.json")
    (path.parent / "metrics.json").unlink()
    values = {k: v for k, v in record.items() if k not in ("files", "checksum")}
    write_record(path.parent, values, record["files"])
    if (kept := path.parent / "kept").is_dir() and path.parent.name == "pretrain":
        for file in (path.name, "metrics.json"):
            shutil.copy(path.parent / file, kept / file)


def as_json(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        values = change(read_json(path))
        path.unlink()
        path.write_text(json.dumps(values), "utf-8")

    return write


@pytest.mark.parametrize(
    ("name", "change", "stage", "says"),
    [
        ("pretrain/history.csv", other_columns(lambda f: f.iloc[:0]), ["collect"], "0 rows"),
        (f"{MASK}/history.csv", other_columns(lambda f: f.iloc[:0]), ["collect"], "0 rows"),
        ("pretrain/losses.npy", other_array(lambda a: a + 1), ["collect"], "the mean of"),
        (
            "pretrain/architecture.json",
            as_json(lambda v: {**v, "mask": "1.0"}),
            ["score"],
            "none in the network",
        ),
        (
            "pretrain/architecture.json",
            as_json(lambda v: {**v, "settings": {**v["settings"], "d_model": -3}}),
            ["score"],
            "d_model: -3 is not a positive",
        ),
        (
            "pretrain/architecture.json",
            as_json(lambda v: {**v, "shape": {**v["shape"], "horizon": 0}}),
            ["transfer", "--target", "synthetic2"],
            "shape.horizon: 0 is not a whole number from 1",
        ),
        (f"{MASK}/architecture.json", as_json(lambda _: {}), ["measure"], "'model'"),
        (
            f"{MASK}/model.safetensors",
            lambda path: save_file({"x": torch.zeros(1)}, path),
            ["measure"],
            "missing in the weights",
        ),
        (
            f"{MASK}/validation_losses.npy",
            other_array(lambda a: a[:-1] + 1),
            ["decide"],
            "the mean of",
        ),
        (
            "select/selections.csv",
            other_columns(lambda f: f.assign(mask=f["mask"] + ".1")),
            ["decide"],
            "sites",
        ),
    ],
)
def test_what_has_wrong_content_and_a_right_hash_is_made_again(
    name: str,
    change: Callable[[Path], None],
    stage: list[str],
    says: str,
    whole: tuple[Config, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pristine, expected = whole
    config = copied(pristine, tmp_path / "results")
    with_right_hashes(config.folder / RUN.path / name, change)
    file = tmp_path / "resolved.yaml"
    file.write_text(dump(config), "utf-8")
    run = [] if stage == ["collect"] else ["--run", RUN.path]
    words = [stage[0], "--config", str(file), *run, *stage[1:]]
    assert cli.main(words) == 1
    message = capsys.readouterr().err
    assert says in message
    obey(message, config, tmp_path, capsys)
    assert cli.main(words) == 0, capsys.readouterr().err
    require_same_frames(config, expected)


def test_a_list_of_masks_that_do_not_fit_the_run_is_written_again(
    whole: tuple[Config, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pristine, expected = whole
    config = copied(pristine, tmp_path / "results")
    manifest = config.folder / RUN.path / "prune/manifest.json"
    rewrite(manifest, "masks", lambda masks: [{**masks[0], "mask": "1.1.1.1.1"}, *masks[1:]])
    with pytest.raises(DamagedError, match="the model 2") as caught:
        collect(config)
    obey(str(caught.value), config, tmp_path, capsys)
    require_same_frames(config, expected)


@pytest.mark.parametrize("name", ["pretrain/kept/metrics.json", f"{MASK}/metrics.json"])
def test_kept_work_with_wrong_content_is_computed_again(
    name: str,
    whole: tuple[Config, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pristine, expected = whole
    config = copied(pristine, tmp_path)
    path = config.folder / RUN.path / name
    rewrite(path, "params", "../../../victim")
    frames = finish(config)
    assert f"{path}: 'params' is '../../../victim': " in capsys.readouterr().err
    for frame, rows in expected.items():
        pd.testing.assert_frame_equal(frames[frame], rows)


# Values that no key of a record may have, with exceptions.
IMPOSSIBLE: tuple[Any, ...] = ({"x": 1}, ["x"], "../../../victim", -1, True, None, float("nan"))
POSSIBLE = {"not_offered": [["x"]], "file": [None, "../../../victim"]}
# Keys that only some versions or some runs write.
OPTIONAL = {"learning_rates", "not_offered", "uncertain", "latency_spread_ms", "wall_s"}
OPTIONAL |= {"swept_params", "dead_params"}


def all_records(config: Config) -> Iterator[Path]:
    for path in config.folder.rglob("*.json"):
        if "checksum" in read_json(path):
            yield path


def test_no_key_of_a_record_takes_an_impossible_value(
    whole: tuple[Config, dict[str, Any]],
) -> None:
    seen = set()
    for path in all_records(whole[0]):
        record = read_json(path)
        del record["checksum"]
        assert records.fault(path, record) is None
        seen.add(path.parent.name)
        for key, value in record.items():
            if key not in OPTIONAL:
                rest = {k: v for k, v in record.items() if k != key}
                assert f"{path}: has no '{key}'" in str(records.fault(path, rest))
            for wrong in IMPOSSIBLE:
                if wrong in POSSIBLE.get(key, []) or (key, wrong) == ("latency_spread_ms", None):
                    continue
                message = records.fault(path, {**record, key: wrong})
                assert message is not None, (path, key, wrong, value)
                assert message.startswith(f"{path}: ") and key in message and "\n" not in message
    assert {"kept", "score", "select", "order0", "measure", "synthetic2", "prepared"} <= seen


def test_the_metrics_of_records_are_those_of_the_tasks() -> None:
    from spat.tasks.registry import CLASSES, task_named

    wanted = {
        name: tuple(metric.name for metric in task.metrics)
        for name, task in ((name, task_named(name)) for name in CLASSES)
    }
    assert wanted == records.METRICS


# A folder, pipe or link in the place of a file.


def folder(path: Path, outside: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text("x")


def pipe(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_a_folder(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside)


def broken_link(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside / "absent")


def link_to_itself(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(path)


OTHERS: tuple[Callable[[Path, Path], None], ...] = (folder, pipe, link_to_a_folder, broken_link)


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("../../../../prepared/synthetic.json", link_to_itself),
        ("pretrain/metrics.json", link_to_itself),
        (f"{MASK}/metrics.json", link_to_itself),
        (f"{MASK}/losses.npy", link_to_itself),
        *(
            (name, OTHERS[i % len(OTHERS)])
            for i, name in enumerate(
                (
                    *("pretrain/metrics.json", "pretrain/losses.npy", "pretrain/kept/metrics.json"),
                    *("score/metrics.json", "score/maps.npz", "select/selections.csv"),
                    *("select/metrics.json", "prune/manifest.json", f"{MASK}/metrics.json"),
                    *(f"{MASK}/losses.npy", f"{MASK}/digest", "measure/metrics.json"),
                    *("transfer/synthetic2/metrics.json", "decide/metrics.json"),
                    *(
                        "robustness/metrics.json",
                        ".locks/prune",
                        "../../../../prepared/synthetic.npz",
                    ),
                    *("../../../../prepared/synthetic.json", "pretrain/kept/digest"),
                )
            )
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_a_folder_or_pipe_in_the_place_of_a_file_is_replaced(
    name: str,
    replaced: Callable[[Path, Path], None],
    whole: tuple[Config, dict[str, Any]],
    tmp_path: Path,
) -> None:
    pristine, expected = whole
    config = copied(pristine, tmp_path / "results")
    (outside := tmp_path / "outside").mkdir()
    (outside / "thesis.txt").write_text("precious")
    path = config.folder / RUN.path / name
    replaced(path, outside)
    frames = finish(config)
    assert path.is_file() and not path.is_symlink()
    for frame, rows in expected.items():
        pd.testing.assert_frame_equal(frames[frame], rows)
    assert (outside / "thesis.txt").read_text() == "precious"


def test_stray_files_do_not_block_a_run(
    whole: tuple[Config, dict[str, Any]], tmp_path: Path
) -> None:
    config = copied(whole[0], tmp_path)
    folder = config.folder / RUN.path
    shutil.copytree(folder / "pretrain" / "kept", folder / "score" / "kept")
    shutil.copy(folder / "pretrain" / "kept" / "digest", folder / "measure" / "digest")
    collect(config)
