"""collect: the files of all runs become tidy frames. Manifests are followed, never a glob."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spat.files import replacing
from spat.pipeline import frames, runs
from spat.pipeline.cache import Finished
from spat.pipeline.config import Config
from spat.pipeline.runs import Planned, Run
from spat.pipeline.stages import select
from spat.pipeline.stages.trained import Job, trained

# The pictures show attention maps of at most this many queries and keys.
LARGEST_MAP = 96

# Columns of `results` that stand in a job's `metrics.json` as they are.
MEASURED = (
    "params",
    "flops",
    "wall_s",
    "epochs",
    "best_epoch",
    "status",
    "device",
    "commit",
    "digest",
)


def collect(config: Config, *, finished: bool = False) -> None:
    """Write `data/<frame>.parquet` and, but for the per-window losses, `.csv`.

    With `finished`, runs that lack a job are left out (and named on stderr) instead of an error: a
    long experiment can be looked at before it ends.

    Raises:
        spat.pipeline.frames.FrameError: on duplicates, gaps, or an empty result.
        FileNotFoundError: naming the file of a run that is missing.
    """
    planned, studied = runs.plan(config), runs.studied(config)
    if finished:
        planned = tuple(p for p in planned if _finished(config, p))
        studied = tuple(run for run in studied if _manipulations(config, run).exists())
    gathered = {
        "results": _gather("results", (row for p in planned for row in _results(config, p))),
        "selections": _join("selections", (_selections(config, p) for p in planned)),
        "scores": _join("scores", (f for p in planned for f in _scores(config, p))),
        "history": _join("history", (f for p in planned for f in _history(config, p))),
        "losses": _gather("losses", (row for p in planned for row in _losses(config, p))),
        "robustness": _join("robustness", (_manipulated(config, run) for run in studied)),
        "examples": _join("examples", (f for p in planned for f in _examples(config, p))),
    }
    if gathered["results"].empty:
        raise frames.FrameError(f"{config.folder}: there is no result to collect")
    for name, frame in gathered.items():
        path = config.folder / "data" / f"{name}.parquet"
        with replacing(path) as temporary:
            frame.to_parquet(temporary, index=False)
        if name != "losses":
            with replacing(path.with_suffix(".csv")) as temporary:
                frame.to_csv(temporary, index=False)


def _finished(config: Config, planned: Planned) -> bool:
    stages = ["pretrain", *(f"transfer/{t}" for t in runs.targets(config, planned.run))]
    if planned.prune:
        stages += ["score", "select", "decide", "measure"]
    files = [runs.folder(config, planned.run, stage) / "metrics.json" for stage in stages]
    missing = next((file for file in files if not file.exists()), None)
    if missing:
        print(f"{planned.run.path}: left out, there is no {missing}", file=sys.stderr)
    return missing is None


def _keys(config: Config, run: Run) -> dict[str, Any]:
    return {"experiment": config.experiment, **run.keys}


def _gather(name: str, rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    found = list(rows)
    frame = pd.DataFrame(found) if found else frames.empty(name)
    return frames.checked(name, frame)


def _join(name: str, parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    found = [part for part in parts if not part.empty]
    return frames.checked(
        name, pd.concat(found, ignore_index=True) if found else frames.empty(name)
    )


def _files(config: Config, run: Run, stage: str) -> Finished:
    return Finished(runs.folder(config, run, stage))


def _masks(config: Config, planned: Planned) -> list[tuple[Job, Finished]]:
    """Each trained mask with its files."""
    return trained(config, planned.run) if planned.prune else []


def _results(config: Config, planned: Planned) -> Iterator[dict[str, Any]]:
    run = planned.run
    dense = _files(config, run, "pretrain").metrics
    costs = {"latency_ms": None, "memory_mb": None}
    base = {**_keys(config, run), "order": 0, "target": run.dataset}
    dense_row = {**base, **_measured(dense), **costs, "mask": dense["mask"], "phase": "dense"}
    measured = (
        _files(config, run, "measure").metrics
        if planned.prune
        else {"latency_ms": {}, "memory_mb": {}}
    )
    masks = {}
    yield from _splits(dense_row, dense["errors"])
    for job, files in _masks(config, planned):
        metrics = files.metrics
        row = {**base, **_measured(metrics), "mask": job.mask, "order": job.order}
        for column in costs:
            by_batch = measured[column].get(job.mask, {})
            row[column] = by_batch[max(by_batch, key=int)] if by_batch else None
        masks[job.mask, job.order, job.phase] = row
        if job.phase == "finetuned":
            pruned = {**row, "epochs": 0, "best_epoch": 0, "wall_s": 0.0, "status": "ok"}
            yield from _splits({**pruned, "phase": "pruned"}, metrics["errors"]["pruned"])
        yield from _splits({**row, "phase": job.phase}, metrics["errors"]["finetuned"])
    for target in runs.targets(config, run):
        found = _files(config, run, f"transfer/{target}").metrics
        for entry in found["masks"]:
            origin = (
                dense_row
                if entry["phase"] == "dense"
                else masks[entry["mask"], entry["order"], entry["phase"]]
            )
            errors = {"mse": entry["mse"], "mae": entry["mae"]}
            yield {**origin, "phase": entry["phase"], "target": target, "split": "test", **errors}


def _measured(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in MEASURED}


def _splits(row: dict[str, Any], errors: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for split in ("validation", "test"):
        yield {**row, "split": split, **errors[split]}


def _selections(config: Config, planned: Planned) -> pd.DataFrame:
    if not planned.prune:
        return frames.empty("selections")
    parts = [select.read(config, planned.run, stage) for stage in ("select", "decide")]
    found = [part for part in parts if not part.empty]
    if not found:  # the run left no weights
        return frames.empty("selections")
    frame = pd.concat(found, ignore_index=True)
    return frame.assign(**_keys(config, planned.run))


def _scores(config: Config, planned: Planned) -> Iterator[pd.DataFrame]:
    keys = _keys(config, planned.run)
    trajectory = _files(config, planned.run, "pretrain").table("scores.parquet")
    if planned.prune:
        scored = _files(config, planned.run, "score").table("scores.parquet")
        yield scored.assign(**keys)
        # `score` has the kept epoch from the same batches, criterion by criterion.
        trajectory = trajectory[~trajectory["epoch"].isin(scored["epoch"])]
    yield trajectory.assign(batch=-1, **keys)


def _history(config: Config, planned: Planned) -> Iterator[pd.DataFrame]:
    run = planned.run
    dense = _files(config, run, "pretrain")
    keys = _keys(config, run)
    mask = dense.metrics["mask"]
    yield dense.table("history.csv").assign(stage="pretrain", mask=mask, order=0, **keys)
    for job, files in _masks(config, planned):
        stage = "finetune" if job.phase == "finetuned" else "scratch"
        yield files.table("history.csv").assign(stage=stage, mask=job.mask, order=job.order, **keys)


def _losses(config: Config, planned: Planned) -> Iterator[dict[str, Any]]:
    run = planned.run
    dense = _files(config, run, "pretrain")
    base = {**_keys(config, run), "target": run.dataset}
    row = {**base, "order": 0, "mask": dense.metrics["mask"], "phase": "dense"}
    yield {**row, "mse": dense.array("losses.npy")}
    for job, files in _masks(config, planned):
        row = {**base, "order": job.order, "mask": job.mask, "phase": job.phase}
        yield {**row, "mse": files.array("losses.npy")}


def _manipulations(config: Config, run: Run) -> Path:
    return runs.folder(config, run, "robustness") / "robustness.parquet"


def _manipulated(config: Config, run: Run) -> pd.DataFrame:
    files = _files(config, run, "robustness")
    return files.table("robustness.parquet").assign(**_keys(config, run))


def _examples(config: Config, planned: Planned) -> Iterator[pd.DataFrame]:
    """Attention maps of SEND's lowest and highest site, and a few forecasts, of the first seed."""
    run = planned.run
    if run.seed != min(p.run.seed for p in runs.plan(config) if _same_cell(p.run, run)):
        return
    keys = _keys(config, run)
    stored = _files(config, run, "pretrain").arrays("forecasts.npz")
    for name, kept in (("input", "input"), ("truth", "truth"), ("dense", "forecast")):
        if np.isfinite(stored[kept]).all():  # not of a model that diverged
            yield _forecast(name, stored["window"], stored[kept]).assign(**keys)
    for job, files in _masks(config, planned):
        if job.order == 0 and job.phase == "finetuned" and _on_path(job.mask):
            stored = files.arrays("forecasts.npz")
            yield _forecast(job.mask, stored["window"], stored["forecast"]).assign(**keys)
    if planned.prune:
        yield from (frame.assign(**keys) for frame in _maps(config, run))


def _same_cell(one: Run, other: Run) -> bool:
    return {**one.keys, "seed": 0} == {**other.keys, "seed": 0}


def _on_path(mask: str) -> bool:
    """Masks whose forecasts are shown: everything kept, and everything removed."""
    return "0" not in mask or "1" not in mask


def _maps(config: Config, run: Run) -> Iterator[pd.DataFrame]:
    files = _files(config, run, "score")
    scores = files.table("scores.parquet")
    send = scores[
        (scores["criterion"] == "send") & (scores["batch"] == -1) & (scores["head"] == -1)
    ].set_index("name")["value"]
    if send.empty:  # the run left no weights
        return
    maps = files.arrays("maps.npz")
    for name in dict.fromkeys([send.idxmin(), send.idxmax()]):
        mean = maps[str(name)].mean(axis=0)[:LARGEST_MAP, :LARGEST_MAP]
        row, column = np.indices(mean.shape)
        yield pd.DataFrame(
            {
                "kind": "map",
                "name": name,
                "head": -1,
                "row": row.ravel(),
                "column": column.ravel(),
                "value": mean.ravel().astype(np.float64),
            }
        )


def _forecast(
    name: str, window: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
) -> pd.DataFrame:
    """values [W, steps] -> one row per (window, step); `column` -1 is the last channel."""
    count, steps = values.shape
    return pd.DataFrame(
        {
            "kind": "forecast",
            "name": name,
            "head": np.repeat(window, steps),
            "row": np.tile(np.arange(steps), count),
            "column": -1,
            "value": values.ravel().astype(np.float64),
        }
    )
