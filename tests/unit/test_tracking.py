"""MLflow is a view of the files: the same however it is made, harmless when it cannot be made."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_mlflow import FakeServer

from spat.pipeline import records, runs, tracking
from spat.pipeline.cache import Finished, write_record
from spat.pipeline.config import Config, ConfigError, dump, load
from spat.pipeline.runs import Run

RUN = Run("ETTh1", "iTransformer", "deep", "l96-h96", 0)
SITES = ("encoder.0.self", "encoder.1.self")
MASKS = ("1.1", "0.1", "0.0")
ERRORS = {"validation": {"mse": 0.4, "mae": 0.5}, "test": {"mse": 0.38, "mae": 0.4}}
SETTINGS = {
    **{"d_model": 256, "d_ff": 256, "e_layers": 2, "n_heads": 8, "dropout": 0.1},
    **{"time_features": False, "instance_norm": True},
}
RECIPE = {"learning_rate": 0.001, "batch_size": 32, "epochs": 10, "patience": 3}
# Files that the view does not show, but that a record must list.
NETWORK = ("architecture.json", "model.safetensors", "losses.npy", "forecasts.npz")
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
STAGES = ("pretrain", "score", "prune", "measure", "transfer/ETTh2")
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def make_config(root: Path | str, **tracking_section: Any) -> Config:
    grid = {"datasets": ["ETTh1"], "models": ["iTransformer"], "horizons": [96]}
    values = {
        "experiment": "tried",
        "results": Path(root) / "results",
        "grid": [grid],
        "transfer": {"pairs": [["ETTh1", "ETTh2"]]},
        "tracking": tracking_section,
    }
    return load(values)


def write_stage(
    config: Config, run: Run, stage: str, *, digest: str = "d0" * 32, **changes: Any
) -> None:
    """The files of one job, with made-up numbers; `changes` go into its `metrics.json`."""
    folder = runs.folder(config, run, stage)
    about = records.header(config, stage.split("/")[0], run)
    metrics = {**about, "digest": digest}
    if stage == "pretrain":
        write_history(folder)
        write_scores(folder, "epoch")
        touch(folder, *NETWORK)
        heads = changes.get("heads", [8, 8])
        metrics |= {
            "status": "ok",
            "data_sha256": "ab" * 32,
            "settings": SETTINGS,
            "recipe": RECIPE,
            "sites": [f"encoder.{i}.self" for i in range(len(heads))],
            "heads": heads,
            "mask": ".".join("1" * len(heads)) or "none",
            "params": 1000,
            "flops": 2000,
            "wall_s": 30.0,
            "epochs": 3,
            "best_epoch": 2,
            "errors": ERRORS,
        }
    elif stage == "score":
        write_scores(folder, "batch")
        touch(folder, "maps.npz")
        metrics |= {"wall_s": 2.0, "epoch": 2, "batches": 3}
    elif stage == "prune":
        write_masks(folder, metrics, MASKS)
        return
    elif stage == "measure":
        touch(folder, "maps.npz")
        by_size = {mask: {"1": 1.5, "128": 12.0} for mask in MASKS}
        metrics |= {"latency_ms": by_size, "latency_spread_ms": by_size, "memory_mb": by_size}
    else:
        rows = [
            {
                "mask": mask,
                "phase": phase,
                "order": order,
                "errors": {"mse": 0.5 + order, "mae": 0.6},
            }
            for mask in MASKS
            for phase, order in (("pruned", 0), ("finetuned", 0), ("finetuned", 1))
        ]
        metrics |= {"target": "ETTh2", "data_sha256": "cd" * 32, "masks": rows, "wall_s": 3.0}
    write_record(folder, metrics | changes, written(folder))


def write_masks(folder: Path, about: dict[str, Any], masks: tuple[str, ...]) -> None:
    rows = []
    for mask in masks:
        place = f"masks/{mask}/order0"
        rows.append({"mask": mask, "order": 0, "phase": "finetuned", "sizes": {}})
        write_history(folder / place)
        touch(folder / place, *NETWORK, "untuned_losses.npy", "validation_losses.npy")
        metrics = {
            "mask": mask,
            "order": 0,
            "phase": "finetuned",
            "status": "ok",
            "params": 900,
            "flops": 1800,
            "dead_params": 0,
            "wall_s": 9.0,
            "epochs": 3,
            "best_epoch": 1,
            "errors": {"pruned": ERRORS, "finetuned": ERRORS},
        }
        write_record(folder / place, about | metrics, written(folder / place))
    write_record(folder, about | {"masks": rows}, name="manifest.json")


def write_selections(config: Config, stage: str, *rows: tuple[Any, ...]) -> None:
    folder = runs.folder(config, RUN, stage)
    folder.mkdir(parents=True)
    columns = ["criterion", "draw", "level", "ratio", "rule", "removed", "mask", "finetunings"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "selections.csv", index=False)
    about = {**records.header(config, stage, RUN), "digest": "d0" * 32}
    write_record(
        folder,
        {**about, "decisions": len(rows), "masks": 3, "path": [], "chosen": {}},
        written(folder),
    )


def written(folder: Path) -> list[str]:
    """The files of a job that are there, but for its records and pictures."""
    left_out = ("metrics.json", "manifest.json", "loss.png")
    return [p.name for p in folder.glob("*") if p.is_file() and p.name not in left_out]


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def record_again(folder: Path) -> None:
    """The record of a folder whose files a test has changed."""
    write_record(folder, Finished(folder).metrics, written(folder))


def write_history(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    epochs = pd.DataFrame({"epoch": [1, 2, 3], "train_mse": [0.6, 0.5, 0.4], "val_mse": [0.7] * 3})
    epochs = epochs.assign(val_mae=0.6, learning_rate=[1e-4, 5e-5, 2.5e-5], seconds=10.0)
    epochs.to_csv(folder / "history.csv", index=False)
    (folder / "loss.png").write_bytes(PIXEL)


def write_scores(folder: Path, by: str) -> None:
    """SEND of three epochs, or over all windows (batch -1) and in two batches."""
    frame = pd.DataFrame(
        [
            {by: i, "site": s, "name": name, "head": head, "criterion": "send", "value": s + 2 * i}
            for i in ((1, 2, 3) if by == "epoch" else (-1, 0, 1))
            for s, name in enumerate(SITES)
            for head in (-1, 0)
        ]
    )
    frame = frame if by == "epoch" else frame.assign(epoch=2)  # of the weights that were scored
    # A head's value must not enter the site's.
    folder.mkdir(parents=True, exist_ok=True)
    frame["value"] = np.where(frame["head"] == 0, 99.0, frame["value"])
    if by == "batch":
        frame["epoch"] = 2  # the kept one
    frame.to_parquet(folder / "scores.parquet")


def write_all(config: Config) -> None:
    for stage in STAGES:
        write_stage(config, RUN, stage)
    for name, content in (("main.md", b"| a |"), ("main.csv", b"a"), ("main.pdf", b"")):
        (config.folder / "tables").mkdir(exist_ok=True)
        (config.folder / "tables" / name).write_bytes(content)
    (config.folder / "figures").mkdir()
    (config.folder / "figures" / "pareto.png").write_bytes(PIXEL)


def log_all(config: Config) -> None:
    for stage in STAGES:
        tracking.log(config, RUN, stage)
    tracking.log_report(config)


def client(config: Config) -> Any:
    from mlflow import MlflowClient

    uri = f"sqlite:///{config.results.resolve() / 'mlflow.db'}"
    return MlflowClient(uri, uri)


def live(config: Config) -> dict[str, Any]:
    """The live runs by job; fails if a job has two."""
    store = client(config)
    experiment = store.get_experiment_by_name("spat/tried").experiment_id
    entries = store.search_runs([experiment])
    jobs = {run.data.tags["job"]: run for run in entries}
    assert len(jobs) == len(entries)
    return jobs


def shown(config: Config) -> dict[str, Any]:
    """All that the view says, without the ids that MLflow chooses and when the report was made."""
    store = client(config)
    names = {run.info.run_id: job for job, run in live(config).items()}
    return {
        job: {
            "name": run.info.run_name,
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time) if job != "report" else None,
            "params": run.data.params if job != "report" else None,
            "tags": {key: names.get(value, value) for key, value in run.data.tags.items()}
            if job != "report"
            else None,
            "metrics": {
                key: [(p.step, p.value, p.timestamp) for p in history]
                for key in run.data.metrics
                if (history := store.get_metric_history(run.info.run_id, key))
            },
            "inputs": [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs],
            "artifacts": sorted(
                file.path
                for top in store.list_artifacts(run.info.run_id)
                for file in (
                    store.list_artifacts(run.info.run_id, top.path) if top.is_dir else [top]
                )
            ),
        }
        for job, run in live(config).items()
    }


def in_a_new_process(code: str) -> str:
    """What Python prints that runs the code; this module can be imported there."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database: making its tables takes longer than a test should."""
    config = make_config(tmp_path_factory.mktemp("fresh"))
    config.results.mkdir()
    client(config).search_experiments()
    return config.results / "mlflow.db"


@pytest.fixture
def config(tmp_path: Path, fresh_store: Path) -> Config:
    # Both URIs must survive what users have in their paths.
    made = make_config(tmp_path / "my \"own\" 'results' größe $(touch F) [a] *;&| %20#")
    made.results.mkdir(parents=True)
    shutil.copy(fresh_store, made.results / "mlflow.db")
    return made


def test_a_run_is_a_parent_with_a_child_for_each_part(config: Config) -> None:
    write_all(config)
    log_all(config)
    jobs = live(config)
    parent = jobs[RUN.path]
    names = {
        run.info.run_name
        for run in jobs.values()
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    masks = {f"mask {mask}" for mask in MASKS}
    assert names == {"pretrain", "score", "measure", "transfer ETTh2"} | masks
    assert parent.info.run_name == RUN.path
    assert "mlflow.parentRunId" not in parent.data.tags
    assert set(jobs) - {RUN.path, "report"} == {
        f"{RUN.path}/{stage}" for stage in STAGES if stage != "prune"
    } | {f"{RUN.path}/prune/masks/{mask}/order0" for mask in MASKS}
    assert {run.info.status for run in jobs.values()} == {"FINISHED"}


def test_pretraining_shows_settings_losses_errors_costs_data_environment_and_figure(
    config: Config,
) -> None:
    write_all(config)
    log_all(config)
    view = shown(config)
    run = view[f"{RUN.path}/pretrain"]
    assert run["params"].items() >= {"d_model": "256", "heads": "8, 8", "dataset": "ETTh1"}.items()
    assert run["params"]["seed"] == "0"
    assert run["params"]["config"] == records.header(config, "pretrain")["config"]
    losses = run["metrics"]["epoch/train_mse"]
    assert [(step, value) for step, value, _ in losses] == [(1, 0.6), (2, 0.5), (3, 0.4)]
    start, end = run["times"]
    assert [stamp - start for *_, stamp in losses] == [10_000, 20_000, 30_000]
    assert end - start == 30_000
    assert [step for step, *_ in run["metrics"]["epoch/learning_rate"]] == [1, 2, 3]
    assert run["metrics"]["test/mse"] == [(0, 0.38, end)]
    assert run["metrics"]["resources/flops"] == [(0, 2000.0, end)]
    assert [point[:2] for point in run["metrics"]["send/encoder.1.self"]] == [
        (1, 3.0),
        (2, 5.0),
        (3, 7.0),
    ]
    assert run["inputs"] == [("ETTh1", ("ab" * 32)[:12])]
    assert run["tags"]["device"] == "cpu"
    assert run["tags"]["version.torch"] == records.versions()["torch"]
    assert run["tags"]["mlflow.source.git.commit"] == records.commit()
    assert run["tags"]["digest"] == "d0" * 32
    assert run["tags"]["data_sha256"] == "ab" * 32
    assert run["artifacts"] == ["figures/loss.png"]
    whole = view[RUN.path]
    assert whole["params"] == run["params"]
    assert whole["metrics"]["test/mse"] == run["metrics"]["test/mse"]
    assert "epoch/train_mse" not in whole["metrics"]


def test_the_other_jobs_show_their_numbers(config: Config) -> None:
    write_all(config)
    log_all(config)
    view = shown(config)
    score = view[f"{RUN.path}/score"]["metrics"]
    assert score["send/encoder.0.self"][0][:2] == (0, -2.0)  # over all windows: the one to rank by
    mask = view[f"{RUN.path}/prune/masks/0.1/order0"]
    assert mask["params"].items() >= {"mask": "0.1", "order": "0", "phase": "finetuned"}.items()
    assert {
        "test/mse",
        "validation/mae",
        "pruned/test/mse",
        "epoch/val_mse",
        "resources/params",
    } <= set(mask["metrics"])
    assert mask["artifacts"] == ["figures/loss.png"]
    measure = view[f"{RUN.path}/measure"]
    assert measure["metrics"]["latency_ms/batch 128/none left"][0][1] == 12.0
    assert measure["metrics"]["memory_mb/batch 1/all kept"][0][1] == 1.5
    assert measure["artifacts"] == ["measure.csv"]
    (table,) = (config.results / "mlartifacts").rglob("measure.csv")
    assert pd.read_csv(table).iloc[-1].to_list() == ["mask 0.0", 128, 12.0, 12.0, 12.0]
    transfer = view[f"{RUN.path}/transfer/ETTh2"]
    orders = transfer["metrics"]["mse/finetuned/none left"]
    assert [point[:2] for point in orders] == [(0, 0.5), (1, 1.5)]
    assert transfer["artifacts"] == ["transfer.csv"]
    assert transfer["inputs"] == [("ETTh2", ("cd" * 32)[:12])]
    assert view["report"]["artifacts"] == [
        "config.yaml",
        "figures/pareto.png",
        "tables/main.csv",
        "tables/main.md",
    ]


def test_masks_are_named_by_what_asked_for_them_and_compared_with_the_control(
    config: Config,
) -> None:
    write_all(config)
    write_selections(
        config,
        "select",
        ("control", 0, "site", None, "", 0, "1.1", 0),
        ("michel", 0, "site", 0.5, "", 1, "0.1", 0),
        ("send", 0, "site", 0.5, "", 1, "0.1", 0),
        ("send", 0, "site", None, "path", 2, "0.0", 0),
    )
    place = runs.folder(config, RUN, "prune") / "masks/0.1/order0"
    metrics = Finished(place).metrics
    metrics["errors"]["finetuned"]["test"]["mse"] = 0.19  # half of the control's
    write_record(place, metrics | {"flops": 1350}, written(place))
    log_all(config)
    by_mask = {mask: live(config)[f"{RUN.path}/prune/masks/{mask}/order0"] for mask in MASKS}
    names = [run.info.run_name for run in by_mask.values()]
    assert names == ["control · 1.1", "SPAT 50 % · 0.1", "mask 0.0"]
    wanted = {"method": "SPAT", "criterion": "send", "ratio": "0.5", "level": "site"}
    tags = by_mask["0.1"].data.tags
    assert tags.items() >= {**wanted, "removed": "1", "chosen_by": "ratio"}.items()
    measured = live(config)[f"{RUN.path}/measure"].data.metrics
    assert {"latency_ms/batch 1/SPAT 50", "memory_mb/batch 128/SPAT 50"} <= set(measured)
    assert "latency_ms/batch 1/michel 50" not in measured
    shown = by_mask["0.1"].data.metrics
    assert shown["test_mse"] == 0.19
    assert shown["test_mse_change_percent"] == pytest.approx(-50)
    assert shown["flops_change_percent"] == pytest.approx(-25)
    assert live(config)[RUN.path].data.metrics["test_mse"] == 0.38


def test_later_jobs_add_their_changes_to_the_runs_that_were_shown_before(config: Config) -> None:
    for stage in ("pretrain", "score", "prune"):
        write_stage(config, RUN, stage)
    place = runs.folder(config, RUN, "prune") / "masks/0.1/order0"
    write_record(place, Finished(place).metrics | {"flops": 1350}, written(place))
    for stage in ("pretrain", "score", "prune"):
        tracking.log(config, RUN, stage)
    job = f"{RUN.path}/prune/masks/0.1/order0"
    before = live(config)
    changes = {"test_mse_change_percent", "flops_change_percent", "latency_ms_change_percent"}
    assert changes - set(before[job].data.metrics) == {"latency_ms_change_percent"}
    assert not changes & set(before[RUN.path].data.metrics)
    write_selections(config, "decide", ("send", 0, "site", None, "validation", 1, "0.1", 0))
    write_stage(config, RUN, "measure")
    folder = runs.folder(config, RUN, "measure")
    metrics = Finished(folder).metrics
    metrics["latency_ms"]["0.1"] = {"1": 1.5, "128": 9.0}
    write_record(folder, metrics, written(folder))
    tracking.log(config, RUN, "measure")
    after = live(config)
    for name in (RUN.path, job):
        assert after[name].info.run_id == before[name].info.run_id, "a run is not written again"
        recorded = {key: after[name].data.metrics[key] for key in changes}
        assert recorded == pytest.approx(dict(zip(sorted(changes), (-25, -25, 0), strict=True)))
    assert after[job].data.metrics["latency_ms"] == 9.0
    assert set(before) | {f"{RUN.path}/measure"} == set(after)
    view = shown(config)
    tracking.rebuild(config)
    assert {key: value for key, value in shown(config).items() if key != "report"} == view


def test_the_experiment_has_a_view_with_the_useful_columns(config: Config) -> None:
    write_all(config)
    log_all(config)
    experiment = client(config).get_experiment_by_name("spat/tried")
    view = json.loads(experiment.tags["mlflow.sharedViewState.spat"])
    metrics = {key for run in live(config).values() for key in run.data.metrics}
    columns = [column.split("`")[1] for column in view["selectedColumns"]]
    assert {name for name in columns if "_" in name} <= metrics
    assert view["orderByKey"] in view["selectedColumns"]
    # The address in the README is that of the first experiment of a store.
    assert "/#/experiments/1/runs?viewStateShareKey=spat" in README
    assert experiment.experiment_id == "1"


def test_the_report_has_the_main_numbers_and_the_experiment_says_what_to_look_at(
    config: Config,
) -> None:
    write_all(config)
    keys = "dataset,model,variant,lookback,horizon,metric,method,mean,vs_control"
    lines = [
        "ETTh1,iTransformer,deep,96,96,MSE,control,0.4,0",
        "ETTh1,iTransformer,deep,96,96,MSE,SPAT (val.),0.38,-5",
        "ETTh1,iTransformer,deep,96,96,MAE,SPAT (val.),0.3,-1",
    ]
    (config.folder / "tables").mkdir(parents=True, exist_ok=True)
    (config.folder / "tables" / "main.csv").write_text("\n".join([keys, *lines]))
    log_all(config)
    cell = "ETTh1 iTransformer-deep l96-h96"
    assert live(config)["report"].data.metrics == {
        f"test_mse/{cell}/control": 0.4,
        f"test_mse/{cell}/SPAT val.": 0.38,
        f"change_percent/{cell}/SPAT val.": -5.0,
    }
    experiment = client(config).get_experiment_by_name(f"spat/{config.experiment}")
    assert "Start with the run `report`" in experiment.tags["mlflow.note.content"]


def test_a_rerun_replaces_its_run_and_keeps_the_others(config: Config) -> None:
    write_all(config)
    log_all(config)
    before = live(config)
    write_stage(config, RUN, "pretrain", digest="d1" * 32, settings=SETTINGS | {"d_model": 128})
    tracking.log(config, RUN, "pretrain")
    after = live(config)
    assert set(after) == set(before)
    replaced = {job for job in after if after[job].info.run_id != before[job].info.run_id}
    assert replaced == {RUN.path, f"{RUN.path}/pretrain"}
    assert after[RUN.path].data.params["d_model"] == "128"
    parents = {
        run.data.tags["mlflow.parentRunId"]
        for job, run in after.items()
        if job not in (RUN.path, "report")
    }
    assert parents == {after[RUN.path].info.run_id}


def test_masks_that_are_no_longer_asked_for_leave_the_view(config: Config) -> None:
    write_all(config)
    log_all(config)
    folder = runs.folder(config, RUN, "prune")
    manifest = Finished(folder).record("manifest.json")
    rows = manifest["masks"][:1]
    write_record(folder, manifest | {"masks": rows}, name="manifest.json")
    tracking.log(config, RUN, "prune")
    assert [job for job in live(config) if "/masks/" in job] == [
        f"{RUN.path}/prune/masks/1.1/order0"
    ]


def test_rebuilding_gives_the_same_view(config: Config) -> None:
    write_all(config)
    log_all(config)
    before = shown(config)
    (config.results / "mlflow.db").unlink()
    shutil.rmtree(config.results / "mlartifacts")
    # In a process of its own, as the command is: this one still holds the deleted database open.
    # The second time is over a full store.
    rebuilt = in_a_new_process(
        "from test_tracking import make_config, tracking, shown; import json, sys\n"
        f"config = make_config({str(config.results.parent)!r})\n"
        "counts = tracking.rebuild(config), tracking.rebuild(config)\n"
        "print(json.dumps([counts, shown(config)]))"
    )
    assert json.loads(rebuilt) == json.loads(json.dumps([[len(before)] * 2, before]))


def test_rebuilding_drops_runs_without_files_and_keeps_a_users_own_run(config: Config) -> None:
    write_all(config)
    log_all(config)
    store = client(config)
    experiment = store.get_experiment_by_name("spat/tried").experiment_id
    own = store.create_run(experiment, run_name="my own").info.run_id
    (runs.folder(config, RUN, "score") / "metrics.json").unlink()
    tracking.rebuild(config)
    entries = {run.info.run_name: run for run in store.search_runs([experiment])}
    assert "score" not in entries
    assert entries["my own"].info.run_id == own


def test_rebuilding_a_run_that_is_at_pretraining_again_shows_no_part_of_it(config: Config) -> None:
    write_all(config)
    (runs.folder(config, RUN, "pretrain") / "metrics.json").unlink()
    assert tracking.rebuild(config) == 1
    assert set(live(config)) == {"report"}


def test_a_diverged_run_is_shown_as_failed_without_its_errors(config: Config) -> None:
    nothing = {"mse": float("nan"), "mae": float("nan")}
    write_stage(
        config, RUN, "pretrain", status="diverged", errors={"validation": nothing, "test": nothing}
    )
    folder = runs.folder(config, RUN, "pretrain")
    path = folder / "history.csv"
    pd.read_csv(path).assign(train_mse=np.nan, val_mse=np.inf).to_csv(path, index=False)
    record_again(folder)
    tracking.log(config, RUN, "pretrain")
    run = live(config)[f"{RUN.path}/pretrain"]
    assert run.info.status == "FAILED"
    assert run.data.tags["status"] == "diverged"
    assert not {"test/mse", "epoch/train_mse", "epoch/val_mse"} & set(run.data.metrics)
    assert "epoch/learning_rate" in run.data.metrics


def test_a_model_that_does_not_train_has_no_epochs(config: Config) -> None:
    write_stage(config, RUN, "pretrain", sites=[], heads=[])
    folder = runs.folder(config, RUN, "pretrain")
    for name in ("history.csv", "scores.parquet"):
        path = folder / name
        read = pd.read_csv if path.suffix == ".csv" else pd.read_parquet
        columns = list(read(path).columns)
        empty = pd.DataFrame([], columns=columns)
        empty.to_csv(path, index=False) if path.suffix == ".csv" else empty.to_parquet(path)
    record_again(folder)
    tracking.log(config, RUN, "pretrain")
    run = live(config)[f"{RUN.path}/pretrain"]
    assert not [key for key in run.data.metrics if key.startswith(("epoch/", "send/"))]
    assert run.data.metrics["test/mse"] == 0.38


def test_values_beyond_the_limit_of_a_call_all_arrive(config: Config) -> None:
    write_stage(config, RUN, "pretrain", settings=SETTINGS | {f"h{i}": i for i in range(150)})
    folder = runs.folder(config, RUN, "pretrain")
    path = folder / "history.csv"
    row = pd.read_csv(path).iloc[[0]]
    pd.concat([row.assign(epoch=i + 1) for i in range(500)]).to_csv(path, index=False)
    record_again(folder)
    tracking.log(config, RUN, "pretrain")
    run = shown(config)[f"{RUN.path}/pretrain"]
    epochs = {key: values for key, values in run["metrics"].items() if key.startswith("epoch/")}
    assert len(epochs) == 5
    assert {len(values) for values in epochs.values()} == {500}
    assert {f"h{i}" for i in range(150)} <= set(run["params"])


def test_logging_a_job_of_eight_masks_takes_less_than_two_seconds(config: Config) -> None:
    import mlflow  # noqa: F401  (its import is not what is timed)

    write_stage(config, RUN, "pretrain", heads=[8, 8, 8])
    about = {**records.header(config, "prune", RUN), "digest": "d0" * 32}
    masks = tuple(f"{i:03b}".replace("", ".").strip(".") for i in range(8))
    write_masks(runs.folder(config, RUN, "prune"), about, masks)
    started = time.process_time()  # the machine may be busy with something else
    tracking.log(config, RUN, "prune")
    assert time.process_time() - started < 2
    assert len([job for job in live(config) if "/masks/" in job]) == 8


def _open_and_log(root: Path, seed: int, barrier: Any) -> None:
    config = make_config(root)
    run = Run("ETTh1", "iTransformer", "deep", "l96-h96", seed)
    write_stage(config, run, "pretrain")
    from spat.pipeline.tracking import store  # noqa: F401  (all have imported MLflow when they start)

    barrier.wait(300)
    tracking.log(config, run, "pretrain")


def test_six_jobs_that_open_a_fresh_store_at_once_land_in_one_experiment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(6)
    jobs = [context.Process(target=_open_and_log, args=(tmp_path, i, barrier)) for i in range(6)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(300)
    assert [job.exitcode for job in jobs] == [0] * 6
    config = make_config(tmp_path)
    assert len(live(config)) == 12  # six parents, six children
    assert not client(config).search_runs(["0"])  # MLflow's default experiment
    assert {e.name for e in client(config).search_experiments()} == {"Default", "spat/tried"}


@pytest.mark.parametrize(
    "uri", ["http://user:$SPAT_TEST_WORD@127.0.0.1:9", "sqlite:////proc/none/mlflow.db"]
)
def test_an_unreachable_store_causes_one_warning(
    tmp_path: Path, uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in tracking.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPAT_TEST_WORD", "secret")
    config = make_config(tmp_path, uri=uri)
    assert "secret" not in dump(config)
    write_stage(config, RUN, "pretrain")
    started = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        tracking.log(config, RUN, "pretrain")
    assert time.perf_counter() - started < 12
    (warning,) = [record.getMessage() for record in caplog.records]
    assert uri.replace("user:$SPAT_TEST_WORD@", "") in warning
    assert "secret" not in warning
    assert "python -m spat track --config FILE" in warning
    assert "\n" not in warning
    with pytest.raises(tracking.TrackingError, match="python -m spat track"):
        tracking.rebuild(config)


def test_unreadable_files_cause_one_warning(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    write_stage(config, RUN, "pretrain")
    path = runs.folder(config, RUN, "pretrain") / "metrics.json"
    path.write_text("{")
    tracking.log(config, RUN, "pretrain")
    assert str(path) in caplog.text


def test_results_that_moved_do_not_write_to_their_old_place(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_all(config)
    log_all(config)
    config.results.rename(tmp_path / "results")
    moved = make_config(tmp_path)
    tracking.log(moved, RUN, "pretrain")
    assert "delete the store" in caplog.text
    assert not config.results.exists()


def test_a_deleted_experiment_comes_back(config: Config) -> None:
    write_all(config)
    log_all(config)
    store = client(config)
    store.delete_experiment(store.get_experiment_by_name("spat/tried").experiment_id)
    tracking.rebuild(config)
    assert RUN.path in live(config)


def test_tracking_that_is_off_does_not_import_mlflow(tmp_path: Path) -> None:
    in_a_new_process(
        "from test_tracking import make_config, tracking, RUN; import sys\n"
        f"config = make_config({str(tmp_path)!r}, enabled=False)\n"
        "tracking.log(config, RUN, 'pretrain'); tracking.log_report(config)\n"
        "assert 'mlflow' not in sys.modules, 'imported'\n"
    )
    assert not (tmp_path / "results").exists()


def test_a_parent_whose_job_was_killed_while_it_wrote_is_written_again(config: Config) -> None:
    write_stage(config, RUN, "pretrain")
    tracking.log(config, RUN, "pretrain")
    first = live(config)[RUN.path].info.run_id
    tracking.log(config, RUN, "pretrain")
    assert live(config)[RUN.path].info.run_id == first  # a whole one is kept
    client(config).update_run(first, status="RUNNING")
    tracking.log(config, RUN, "pretrain")
    again = live(config)[RUN.path].info
    assert again.run_id != first and again.status == "FINISHED"


def _log_after(root: str, barrier: Any) -> None:
    barrier.wait()
    tracking.log(make_config(root), RUN, "pretrain")


def test_a_job_and_its_orphan_that_write_at_once_leave_one_run_each(config: Config) -> None:
    write_stage(config, RUN, "pretrain")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    root = str(config.results.parent)
    writers = [context.Process(target=_log_after, args=(root, barrier)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert {writer.exitcode for writer in writers} == {0}
    assert set(live(config)) == {RUN.path, f"{RUN.path}/pretrain"}


@pytest.mark.parametrize(
    "uri", [None, "sqlite:///{0}?timeout=9", "sqlite:///$SPAT_TEST_FOLDER/own.db"]
)
def test_a_store_of_another_version_says_what_to_do(
    uri: str | None,
    config: Config,
    fresh_store: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPAT_TEST_FOLDER", str(tmp_path))
    path = config.results / "mlflow.db"
    shown = str(path)
    if uri is not None:
        path = tmp_path / "own.db"
        shutil.copy(fresh_store, path)
        config = make_config(tmp_path, uri=uri.format(path))
        shown = "$SPAT_TEST_FOLDER/own.db" if "$" in uri else str(path)
    write_stage(config, RUN, "pretrain")
    with contextlib.closing(sqlite3.connect(path)) as store, store:
        store.execute("update alembic_version set version_num = '000000000000'")
    with caplog.at_level(logging.WARNING):
        tracking.log(config, RUN, "pretrain")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "another version of MLflow" in warning
    assert f"move {shown} away and run `python -m spat track" in warning
    path.rename(path.with_suffix(".old"))
    file = config.results / "tried.yaml"
    file.write_text(dump(config), encoding="utf-8")
    # MLflow keeps the database of a process open.
    code = f"from spat.pipeline.cli import main; main(['track', '--config', {str(file)!r}])"
    assert "3 MLflow runs were written" in in_a_new_process(code)  # with the report


@pytest.mark.parametrize(
    ("uri", "found", "says"),
    [
        (
            "postgresql://me:$SPAT_TEST_WORD@host/db",
            "451aebb31d03",  # the first version
            'run `mlflow db upgrade "postgresql://me:$SPAT_TEST_WORD@host/db"`, and then run ',
        ),
        ("mysql+pymysql://host/db", "ffffffffffff", "it is newer than this version: install"),
        ("https://host", "451aebb31d03", "ask its administrator to run `mlflow db upgrade`"),
        ("$SPAT_TEST_STORE", "ffffffffffff", "move the file of $SPAT_TEST_STORE away"),
    ],
)
def test_what_to_do_with_a_store_of_another_version_depends_on_the_store(
    uri: str, found: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPAT_TEST_WORD", "secret-word")
    monkeypatch.setenv("SPAT_TEST_STORE", f"sqlite:///{tmp_path}/secret-word.db")
    error = ValueError(f"Detected out-of-date database schema (found version {found}, but")
    shown = tracking._explain(make_config(tmp_path, uri=uri), error)
    assert says in shown
    assert "secret-word" not in shown


SECRETS = (
    "http://me:secret@host",
    "http://me:sec/ret@host",
    "http://secret@host",
    "postgresql://me:secret@host/db",
    "postgresql://host/db?user=me&password=secret",
    "https://host/?token=secret",
    "https://host/?auth=secret",
    "https://host/?a=b;sig=secret",
    "https://host/#access_token=secret",
    "mysql://host/db?credentials=secret",
    "https://me:a$B-secret@host",
    "me:secret@host",
)


@pytest.mark.parametrize("uri", SECRETS)
def test_a_password_in_the_configuration_is_refused_unseen(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write \\$NAME instead") as error:
        make_config(tmp_path, uri=uri)
    assert "secret" not in str(error.value)
    assert "sec/ret" not in str(error.value)


@pytest.mark.parametrize("key", ["url", "enabled"])
@pytest.mark.parametrize("uri", SECRETS)
def test_a_password_at_another_key_is_not_shown(key: str, uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(tmp_path, **{key: uri})
    assert f"tracking.{key}" in str(error.value)
    assert "secret" not in str(error.value)
    assert "sec/ret" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:$SPAT_TEST_WORD@127.0.0.1:9", "MLflow at http://127.0.0.1:9: "),
        ("$SPAT_TEST_WORD", "MLflow at $SPAT_TEST_WORD: "),
    ],
)
def test_a_password_in_a_variable_is_never_shown_or_written(
    uri: str,
    shown: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = "hush://me:ab@c/d@127.0.0.1:9"
    monkeypatch.setenv("SPAT_TEST_WORD", secret)
    config = make_config(tmp_path, uri=uri)
    write_stage(config, RUN, "pretrain")
    # An error that repeats the whole address.
    monkeypatch.setattr(tracking, "_open", lambda config: Path(secret).read_text("utf-8"))
    with pytest.raises(tracking.TrackingError, match="No such file") as error:
        tracking.rebuild(config)
    tracking.log(config, RUN, "pretrain")
    for message in (str(error.value), caplog.text):
        assert shown in message
        assert "ab@c" not in message
        assert "c/d" not in message
    assert error.value.__cause__ is None  # which `--debug` would show
    for path in (tmp_path / "results").rglob("*"):
        assert path.is_dir() or b"ab@c" not in path.read_bytes(), path


def test_a_variable_of_the_address_that_is_not_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPAT_TEST_WORD", raising=False)
    config = make_config(tmp_path, uri="http://me:$SPAT_TEST_WORD@127.0.0.1:9")
    with pytest.raises(tracking.TrackingError, match=r"tracking\.uri: .*\$SPAT_TEST_WORD is not"):
        tracking.rebuild(config)


def test_many_masks_do_not_wait_for_a_slow_server_one_after_the_other(tmp_path: Path) -> None:
    delay, count = 0.1, 32
    with FakeServer(delay) as server:
        config = make_config(tmp_path, uri=server.uri)
        write_stage(config, RUN, "pretrain", heads=[8] * 5)
        tracking.log(config, RUN, "pretrain")
        server.calls.clear()
        masks = tuple(".".join(f"{i:05b}") for i in range(count))
        about = {**records.header(config, "prune", RUN), "digest": "d0" * 32}
        write_masks(runs.folder(config, RUN, "prune"), about, masks)
        tracking.log(config, RUN, "prune")
        # Calls and how many overlap are counted: seconds would depend on what else runs.
        assert sum(server.calls.values()) < 5 * count + 10
        assert 4 < server.most_at_once <= 16
        shown = [run["info"]["status"] for run in server.runs.values()]
        assert shown == ["FINISHED"] * (2 + count)


def test_a_slow_server_delays_a_job_by_at_most_the_stated_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow  # noqa: F401  (its import is not what is timed)

    monkeypatch.setattr(tracking, "SERVER_TIMEOUT_S", 1)
    with FakeServer(drip=0.1) as server:
        config = make_config(tmp_path, uri=server.uri)
        write_stage(config, RUN, "pretrain")
        started = time.perf_counter()
        with caplog.at_level(logging.WARNING):
            tracking.log(config, RUN, "pretrain")
        # One answer alone would take longer, at a tenth of a second a byte.
        assert time.perf_counter() - started < 20
        assert server.calls
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "the server did not accept 1 runs within 2 seconds" in warning
    assert "python -m spat track --config FILE" in warning


def test_two_jobs_that_add_one_dataset_at_once_both_end(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = make_config(tmp_path, uri=server.uri)
        write_stage(config, RUN, "pretrain")
        server.failures["runs/log-inputs"] = "(psycopg2.errors.UniqueViolation) dataset_pk"
        tracking.log(config, RUN, "pretrain")
        shown = server.runs.values()
        assert [run["info"]["status"] for run in shown] == ["FINISHED"] * 2
        assert all(run["inputs"]["dataset_inputs"] for run in shown)
        assert server.calls["artifacts"] == 1  # what comes after the dataset
