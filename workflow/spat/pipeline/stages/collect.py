"""collect: read the files of all runs, as listed in manifests, into tidy frames."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spat.attention.mask import Mask
from spat.files import replacing
from spat.models.registry import MODELS
from spat.pipeline import frames, runs, scores_frame
from spat.pipeline.cache import MANIFEST, RESULT, Finished, make_way
from spat.pipeline.config import Config
from spat.pipeline.records import METRICS
from spat.pipeline.runs import Planned, Run
from spat.pipeline.stages import select
from spat.pipeline.stages.trained import Job, finetuned, manifest_of_sites, trained

# Figures show attention maps of at most this number of queries and keys.
LARGEST_MAP = 96

# Columns of `networks`: from the `metrics.json` of `measure`, by mask and batch size.
MEASURED = ("latency_ms", "latency_spread_ms", "memory_mb")

# Columns of `networks`: from the `metrics.json` of the job that trained the network.
RECORDED = (
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


def collect(
    config: Config, *, finished: bool = False, sites: bool = False, folder: Path | None = None
) -> None:
    """Write `data/<frame>.parquet` and, except for the per-window losses, `data/<frame>.csv`.

    `folder` replaces the experiment's folder `data/`.

    With `finished`, incomplete runs are left out (and named on stderr) instead of an error, so that
    a long experiment can be examined before it ends. With `sites`, latencies, transfer and masks of
    single heads are not needed: `measurements`, `networks` and `selections` have the results of
    training and `decide` for whole sites, and the other frames are empty.

    Raises:
        spat.pipeline.frames.FrameError: if there are duplicates, gaps, or no rows.
        FileNotFoundError: naming the missing file of a run.
    """
    planned, studied = runs.plan(config), runs.studied(config)
    if finished:
        planned = tuple(p for p in planned if _finished(config, p))
        studied = tuple(run for run in studied if _manipulations(config, run).is_file())
    measurements = (row for p in planned for row in _measurements(config, p, sites=sites))
    networks = (row for p in planned for row in _networks(config, p, sites=sites))
    gathered = {
        "measurements": _gather("measurements", measurements),
        "networks": _gather("networks", networks),
        "selections": _join("selections", (_selections(config, p, sites=sites) for p in planned)),
    }
    if sites:
        rest = set(frames.COLUMNS) - set(gathered)
        gathered |= {name: frames.empty(name) for name in rest}
    else:
        gathered |= _details(config, planned, studied)
    if gathered["measurements"].empty:
        raise frames.FrameError(
            f"{config.folder}: no finished run to collect: run the pipeline first"
        )
    for name, frame in gathered.items():
        frames.agreeing(name, frame, gathered["networks"])
    make_way(place := folder or config.folder / "data")
    for name, frame in gathered.items():
        path = place / f"{name}.parquet"
        with replacing(path) as temporary:
            frames.write(name, frame, temporary)
        if name != "losses":
            with replacing(path.with_suffix(".csv")) as temporary:
                frame.to_csv(temporary, index=False)


def _details(
    config: Config, planned: Sequence[Planned], studied: Sequence[Run]
) -> dict[str, pd.DataFrame]:
    """The frames besides `measurements`, `networks` and `selections`."""
    return {
        "scores": _join("scores", (f for p in planned for f in _scores(config, p))),
        "history": _join("history", (f for p in planned for f in _history(config, p))),
        "losses": _gather("losses", (row for p in planned for row in _losses(config, p))),
        "robustness": _join("robustness", (_manipulated(config, run) for run in studied)),
        "maps": _join("maps", (f for p in planned for f in _maps(config, p))),
        "forecasts": _join("forecasts", (f for p in planned for f in _forecasts(config, p))),
    }


def _finished(config: Config, planned: Planned) -> bool:
    stages = ["pretrain", *(f"transfer/{t}" for t in runs.targets(config, planned.run))]
    if planned.prune:
        stages += ["score", "select", "decide", "measure"]
    files = [runs.folder(config, planned.run, stage) / RESULT for stage in stages]
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        print(f"{planned.run.path}: left out, there is no {missing}", file=sys.stderr)
    return missing is None


def _gather(name: str, rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    entries = list(rows)
    frame = pd.DataFrame(entries) if entries else frames.empty(name)
    return frames.checked(name, frame)


def _join(name: str, parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    filled = [part for part in parts if not part.empty]
    return frames.checked(
        name, pd.concat(filled, ignore_index=True) if filled else frames.empty(name)
    )


def _files(config: Config, run: Run, stage: str) -> Finished:
    return Finished(runs.folder(config, run, stage))


def _masks(config: Config, planned: Planned, *, sites: bool = False) -> list[tuple[Job, Finished]]:
    """Each trained mask with its files, after a check that all masks of `select` were trained."""
    if not planned.prune:
        return []
    manifest = manifest_of_sites(config) if sites else MANIFEST
    networks = trained(config, planned.run, manifest)
    decisions = select.read(config, planned.run, "select")
    chosen = decisions.loc[_of_level(decisions, sites=sites), "mask"]
    listed = {job.mask for job, _ in networks if job.order == 0 and job.phase == "finetuned"}
    if missing := sorted(set(chosen) - listed):
        folder = runs.folder(config, planned.run, "prune")
        raise Finished(folder, folder / manifest).damaged(
            f"{folder / manifest}: 'masks' does not list {missing[0]}, which `select` chose",
            manifest,
        )
    return networks


def _of_level(decisions: pd.DataFrame, *, sites: bool) -> pd.Series[bool]:
    """Which decisions are collected: those for whole sites, or all."""
    return (decisions["level"] == "site") | (not sites)


def _networks(config: Config, planned: Planned, *, sites: bool) -> Iterator[dict[str, Any]]:
    """The costs of each network; fine-tuning does not change those of a pruned network.

    With `sites`, only networks without whole sites, and without latency and memory.
    """
    run = planned.run
    trained = {
        "share": runs.setup_of(config, run).recipe.share,
        "precision": config.training.precision,
    }
    keys = {**runs.columns(config, run), "order": 0, **trained}
    dense = _files(config, run, "pretrain").metrics
    unmeasured = dict.fromkeys(MEASURED)
    yield {**keys, **_recorded(dense), **unmeasured, "mask": dense["mask"], "phase": "dense"}
    if not planned.prune:
        return
    networks = _masks(config, planned, sites=sites)
    costs = {} if sites else _measured(config, run, networks)
    for job, files in networks:
        row = {**keys, **_recorded(files.metrics), "mask": job.mask, "order": job.order}
        for column in MEASURED:
            by_batch = costs.get(column, {}).get(job.mask, {})
            row[column] = by_batch[max(by_batch, key=int)] if by_batch else None
        if job.phase == "finetuned":
            untrained = {"epochs": 0, "best_epoch": 0, "wall_s": 0.0, "status": "ok"}
            yield {**row, **untrained, "phase": "pruned"}
        yield {**row, "phase": job.phase}


def _measured(config: Config, run: Run, networks: Sequence[tuple[Job, Finished]]) -> dict[str, Any]:
    """The record of `measure`: it has the masks that were trained, and no others."""
    files = _files(config, run, "measure")
    measured = files.metrics["latency_ms"].keys()
    wanted = {job.mask for job, _ in networks if job.order == 0 and job.phase == "finetuned"}
    if odd := sorted(measured ^ wanted):
        state = "has no latency of" if odd[0] in wanted else "has the latency of an unknown"
        raise files.damaged(f"{files.folder / RESULT}: 'latency_ms' {state} mask {odd[0]}")
    return files.metrics


def _measurements(config: Config, planned: Planned, *, sites: bool) -> Iterator[dict[str, Any]]:
    """The errors of each network on its own dataset and on transfer targets.

    With `sites`, only networks without whole sites, on their own dataset.
    """
    run = planned.run
    base = {**runs.columns(config, run), "order": 0, "target": run.dataset}
    dense = _files(config, run, "pretrain").metrics
    yield from _splits({**base, "mask": dense["mask"], "phase": "dense"}, dense["errors"])
    for job, files in _masks(config, planned, sites=sites):
        row = {**base, "mask": job.mask, "order": job.order}
        errors = files.metrics["errors"]
        if job.phase == "finetuned":
            yield from _splits({**row, "phase": "pruned"}, errors["pruned"])
        yield from _splits({**row, "phase": job.phase}, errors["finetuned"])
    for target in () if sites else runs.targets(config, run):
        for entry in _transferred(config, planned, target):
            where = {name: entry[name] for name in ("mask", "phase", "order")}
            row = {**base, **where, "target": target, "split": "test"}
            yield from _metrics(row, entry["errors"])


def _transferred(config: Config, planned: Planned, target: str) -> list[dict[str, Any]]:
    """The networks that were evaluated on a target: the dense one, the control, SEND's masks."""
    files = _files(config, planned.run, f"transfer/{target}")
    entries: list[dict[str, Any]] = files.metrics["masks"]
    decisions = _selections(config, planned)
    chosen = decisions.loc[decisions["criterion"].isin(["control", "send"]), "mask"]
    dense = _files(config, planned.run, "pretrain").metrics
    errors = {(entry["mask"], entry["phase"]): entry["errors"] for entry in entries}
    known = {(job.mask, job.phase) for job, _ in _masks(config, planned)}
    known.add((dense["mask"], "dense"))
    for mask, phase in errors:
        if (mask, phase) not in known:
            problem = f"'masks' has an unknown {phase} network {mask}"
            raise files.damaged(f"{files.folder / RESULT}: {problem}")
    for mask, phase in [(dense["mask"], "dense"), *((mask, "finetuned") for mask in chosen)]:
        if (mask, phase) not in errors:
            raise files.damaged(f"{files.folder / RESULT}: 'masks' has no {phase} network {mask}")
        network = dense if phase == "dense" else finetuned(config, planned.run, mask).metrics
        if None in errors[mask, phase].values() and network["status"] == "ok":
            problem = f"'masks' has no errors of the {phase} network {mask}, which did not diverge"
            raise files.damaged(f"{files.folder / RESULT}: {problem}")
    return entries


def _recorded(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in RECORDED}


def _splits(row: dict[str, Any], errors: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for split in ("validation", "test"):
        yield from _metrics({**row, "split": split}, errors[split])


def _metrics(row: dict[str, Any], errors: dict[str, float]) -> Iterator[dict[str, Any]]:
    for metric, value in errors.items():
        yield {**row, "metric": metric, "value": value}


def _selections(config: Config, planned: Planned, *, sites: bool = False) -> pd.DataFrame:
    if not planned.prune:
        return frames.empty("selections")
    parts = [select.read(config, planned.run, stage) for stage in ("select", "decide")]
    filled = [part for part in parts if not part.empty]
    if not filled:  # pre-training saved no weights
        return frames.empty("selections")
    frame = pd.concat(filled, ignore_index=True)
    frame = frame[_of_level(frame, sites=sites)]
    return frame.assign(**runs.columns(config, planned.run))


def _scores(config: Config, planned: Planned) -> Iterator[pd.DataFrame]:
    keys = runs.columns(config, planned.run)
    trajectory = _files(config, planned.run, "pretrain").table("scores.parquet")
    if planned.prune:
        scored = _files(config, planned.run, "score").table("scores.parquet")
        yield _missing(scored).assign(**keys)
        # For the kept epoch, `score` has all criteria on the same batches.
        trajectory = trajectory[~trajectory["epoch"].isin(scored["epoch"])]
    yield _missing(trajectory.assign(batch=scores_frame.ALL)).assign(**keys)


def _missing(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with a missing `head` for whole sites, a missing `batch` for all batches."""
    head, batch = scores["head"].astype("Int64"), scores["batch"].astype("Int64")
    return scores.assign(
        head=head.mask(head == scores_frame.SITE), batch=batch.mask(batch == scores_frame.ALL)
    )


def _history(config: Config, planned: Planned) -> Iterator[pd.DataFrame]:
    run = planned.run
    dense = _files(config, run, "pretrain")
    keys = runs.columns(config, run)
    mask = dense.metrics["mask"]
    yield _long(dense).assign(stage="pretrain", mask=mask, order=0, **keys)
    for job, files in _masks(config, planned):
        stage = "finetune" if job.phase == "finetuned" else "scratch"
        yield _long(files).assign(stage=stage, mask=job.mask, order=job.order, **keys)


def _long(files: Finished) -> pd.DataFrame:
    """The history of a network, which has a row for each of its epochs."""
    history, epochs = files.table("history.csv"), files.metrics["epochs"]
    if history["epoch"].tolist() != list(range(1, epochs + 1)):
        raise files.wrong(
            f"{files.folder / 'history.csv'}: {len(history)} rows, but 'epochs' of {RESULT} is "
            f"{epochs}"
        )
    return history.melt("epoch", var_name="quantity", value_name="value")


def _losses(config: Config, planned: Planned) -> Iterator[dict[str, Any]]:
    run = planned.run
    dense = _files(config, run, "pretrain")
    base = {**runs.columns(config, run), "target": run.dataset}
    primary = METRICS[MODELS[run.model].task][0]
    row = {**base, "order": 0, "mask": dense.metrics["mask"], "phase": "dense"}
    mean = dense.metrics["errors"]["test"][primary]
    yield {**row, "losses": dense.array("losses.npy", mean)}
    for job, files in _masks(config, planned):
        row = {**base, "order": job.order, "mask": job.mask, "phase": job.phase}
        mean = files.metrics["errors"]["finetuned"]["test"][primary]
        yield {**row, "losses": files.array("losses.npy", mean)}


def _manipulations(config: Config, run: Run) -> Path:
    return runs.folder(config, run, "robustness") / "robustness.parquet"


def _manipulated(config: Config, run: Run) -> pd.DataFrame:
    files = _files(config, run, "robustness")
    return files.table("robustness.parquet").assign(**runs.columns(config, run))


def _forecasts(config: Config, planned: Planned) -> Iterator[pd.DataFrame]:
    """A few forecasts of the first seed of each cell."""
    run = planned.run
    if not _is_first_seed(config, run):
        return
    keys = runs.columns(config, run)
    stored = _files(config, run, "pretrain").arrays("forecasts.npz")
    if not stored:  # the task has no forecasts
        return
    for name, kept in (("input", "input"), ("truth", "truth"), ("dense", "forecast")):
        if np.isfinite(stored[kept]).all():  # not of a model that diverged
            yield _steps(name, stored["window"], stored[kept]).assign(**keys)
    shown = _shown(config, planned)
    for job, files in _masks(config, planned):
        if job.order == 0 and job.phase == "finetuned" and job.mask in shown:
            stored = files.arrays("forecasts.npz")
            yield _steps(job.mask, stored["window"], stored["forecast"]).assign(**keys)


def _is_first_seed(config: Config, run: Run) -> bool:
    cell = [p.run for p in runs.plan(config) if replace(p.run, seed=run.seed) == run]
    return run.seed == min(other.seed for other in cell)


def _shown(config: Config, planned: Planned) -> set[str]:
    """Masks whose forecasts are shown: all kept, none kept, and those that a rule chose."""
    decisions = _selections(config, planned)
    chosen = decisions.loc[decisions["rule"] != "", "mask"]
    masks = {job.mask: Mask.parse(job.mask) for job, _ in _masks(config, planned)}
    return {*chosen, *(name for name, mask in masks.items() if mask.is_full or mask.is_empty)}


def _maps(config: Config, planned: Planned) -> Iterator[pd.DataFrame]:
    """Attention maps of the dense model, the control and SEND's masks, of one seed of each cell."""
    run = planned.run
    if not planned.prune or not _is_first_seed(config, run):
        return
    files = _files(config, run, "score")
    scores = files.table("scores.parquet")
    names = scores.loc[scores["criterion"].eq("send"), "name"].unique()
    if not len(names):  # pre-training saved no weights, or the sites have no attention maps
        return
    maps = {("dense", name): weights for name, weights in files.arrays("maps.npz", names).items()}
    control = _files(config, run, "pretrain").metrics["mask"]
    pruned = _files(config, run, "measure").arrays("maps.npz", [f"{control} {n}" for n in names])
    for key, weights in pruned.items():
        mask, _, name = key.partition(" ")
        maps[mask, name] = weights
    for (network, name), weights in maps.items():
        mean = weights.mean(axis=0)[:LARGEST_MAP, :LARGEST_MAP]
        query, key = np.indices(mean.shape)
        yield pd.DataFrame(
            {
                "network": network,
                "name": name,
                "head": pd.NA,
                "query": query.ravel(),
                "key": key.ravel(),
                "value": mean.ravel().astype(np.float64),
            }
        ).assign(**runs.columns(config, run))


def _steps(name: str, window: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> pd.DataFrame:
    """values [W, steps] -> one row per (window, step)."""
    count, steps = values.shape
    return pd.DataFrame(
        {
            "name": name,
            "window": np.repeat(window, steps),
            "step": np.tile(np.arange(steps), count),
            "channel": pd.NA,
            "value": values.ravel().astype(np.float64),
        }
    )
