"""The entries for MLflow, read from the files of jobs. This module does not import MLflow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from spat.pipeline import records, runs
from spat.pipeline.cache import Finished
from spat.pipeline.config import Config, dump
from spat.pipeline.runs import Run
from spat.pipeline.scores_frame import SITE, aggregate
from spat.pipeline.stages.trained import Job, trained

REPORT = "report"
RESOURCES = (
    "params",
    "flops",
    "swept_params",
    "dead_params",
    "wall_s",
    "epochs",
    "best_epoch",
    "epoch",
    "batches",
)


class Point(NamedTuple):
    """One value of a metric; `time` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int


@dataclass(frozen=True)
class Entry:
    """The content of one MLflow run.

    `job` is unique among active runs: the folder of the files below the experiment's folder.
    `dataset` is its name and SHA-256; `artifacts` maps files to their artifact folders, `texts`
    artifact paths to contents; `start` and `end` are in milliseconds since 1970.
    """

    job: str
    name: str
    start: int
    end: int
    tags: dict[str, str]
    ok: bool = True
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    dataset: tuple[str, str] | None = None
    artifacts: dict[Path, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def store_uri(config: Config) -> str:
    """The tracking URI: the configured one, or SQLite in the folder of the results."""
    return config.tracking.uri or f"sqlite:///{config.results.resolve() / 'mlflow.db'}"


def finished(config: Config, run: Run) -> Iterator[str]:
    """The stages of a run (as for `children`) whose files exist.

    It is empty without the files of pre-training, which all other stages depend on.
    """
    if not (runs.folder(config, run, "pretrain") / "metrics.json").exists():
        return
    transfers = (f"transfer/{target}" for target in runs.targets(config, run))
    for stage in ("pretrain", "score", "prune", "robustness", "measure", *transfers):
        last = "manifest.json" if stage == "prune" else "metrics.json"
        if (runs.folder(config, run, stage) / last).exists():
            yield stage


def parent(config: Config, run: Run) -> Entry:
    """The entry of the whole run: its settings, dense results, and the changes by SPAT.

    The changes are those of the mask that validation chose, if it is known.

    Raises:
        FileNotFoundError: if the run was not pre-trained.
    """
    (dense,) = children(config, run, "pretrain")
    final = [p for p in dense.points if p.key.split("/")[0] in ("validation", "test", "resources")]
    # If pre-training runs again, there is a new parent.
    digest = records.digest(Finished(runs.folder(config, run, "pretrain")).metrics)
    tags = {**dense.tags, "job": run.path, "stage": "run", "digest": digest}
    errors = Finished(runs.folder(config, run, "pretrain")).metrics["errors"]
    primary = _primary(errors)
    final += [p._replace(key=f"test_{primary}") for p in final if p.key == f"test/{primary}"]
    final += _points(_of_chosen(config, run), dense.end)
    return replace(dense, job=run.path, name=run.path, tags=tags, points=final, artifacts={})


def children(config: Config, run: Run, stage: str) -> list[Entry]:
    """The entries of one job.

    Raises:
        FileNotFoundError: naming the first file that is missing.
        ValueError: if there is no such stage.
    """
    folder = runs.folder(config, run, stage)
    if stage == "prune":
        networks = trained(config, run)
        named, changes = _decided(config, run), _changes(config, run, networks)
        return [
            _mask(config, run, files, named, changes.get(job.mask, {}) if job.order == 0 else {})
            for job, files in networks
        ]
    readers = {
        "pretrain": _pretrain,
        "score": _score,
        "robustness": _robustness,
        "measure": _measure,
        "transfer": _transfer,
    }
    if (kind := stage.split("/")[0]) not in readers:
        raise ValueError(f"stage {stage!r} has no MLflow runs: expected one of {list(readers)}")
    return [readers[kind](config, run, Finished(folder))]


def amended(config: Config, run: Run, stage: str) -> dict[str, list[Point]]:
    """The metrics that a job adds to runs that were logged before, by their `job`.

    After `measure`, latencies and the mask that validation chose are known.
    """
    kind = stage.split("/")[0]
    if kind not in ("measure", "transfer") or "prune" not in finished(config, run):
        return {}
    shown = [parent(config, run), *(children(config, run, "prune") if kind == "measure" else ())]
    later = re.compile(r"latency_ms|.*_change_percent$")
    points = {e.job: [p for p in e.points if later.match(p.key)] for e in shown}
    return {job: values for job, values in points.items() if values}


def report(config: Config) -> Entry:
    """The entry of the whole experiment: its configuration, tables and figures."""
    about = records.header(config, REPORT)
    kinds = {"tables": (".md", ".csv", ".tex"), "figures": (".png",)}
    artifacts = {
        path: kind
        for kind, suffixes in kinds.items()
        for path in sorted((config.folder / kind).glob("*"))
        if path.suffix in suffixes
    }
    entry = _entry(about, job=REPORT, name=REPORT, stage=REPORT)
    return replace(
        entry,
        params=_texts(_keys(about)),
        points=list(_points(_main_numbers(config), entry.end)),
        artifacts=artifacts,
        texts={"config.yaml": dump(config)},
    )


def _main_numbers(config: Config) -> dict[str, float]:
    """The primary error of each method and the changes by SPAT, from the main table."""
    path = config.folder / "tables" / "main.csv"
    if not path.exists():
        return {}
    table = pd.read_csv(path)
    if not {"method", "metric", "mean", "vs_control"} <= set(table):
        return {}
    numbers: dict[str, float] = {}
    primary = str(table["metric"].iloc[0])  # the metrics are in the order of the task
    name = f"test_{primary.lower().replace(' ', '_')}"
    for row in table[table["metric"] == primary].to_dict("records"):
        cell = f"{row['dataset']} {row['model']}-{row['variant']}"
        if "horizon" in row:
            cell += f" l{row['lookback']}-h{row['horizon']}"
        method = _metric_name(str(row["method"]))
        numbers[f"{name}/{cell}/{method}"] = row["mean"]
        if method.startswith("SPAT"):
            numbers[f"change_percent/{cell}/{method}"] = row["vs_control"]
    return numbers


def _metric_name(text: str) -> str:
    """The text without characters that MLflow does not allow in the name of a metric."""
    return " ".join(re.sub(r"[^\w\-. :/]", "", text).split())


def _pretrain(config: Config, run: Run, files: Finished) -> Entry:
    metrics = files.metrics
    entry = _child(config, run, files, metrics, name="pretrain", stage="pretrain")
    settings = {
        **metrics["settings"],
        **metrics["recipe"],
        "sites": metrics["sites"],
        "heads": metrics["heads"],
    }
    trajectory = _scores(files.table("scores.parquet"), entry.end)
    return replace(
        entry,
        params={**entry.params, **_texts(settings)},
        points=[*entry.points, *trajectory],
        tags={**entry.tags, "data_sha256": metrics["data_sha256"]},
        dataset=(run.dataset, metrics["data_sha256"]),
    )


def _score(config: Config, run: Run, files: Finished) -> Entry:
    metrics = files.metrics
    entry = _child(config, run, files, metrics, name="score", stage="score")
    return replace(
        entry, points=[*entry.points, *_scores(files.table("scores.parquet"), entry.end)]
    )


def _mask(
    config: Config,
    run: Run,
    files: Finished,
    decided: Mapping[str, dict[str, str]],
    changes: Mapping[str, float | None],
) -> Entry:
    """A trained network, named by the decision for it, with its changes against the control."""
    metrics = files.metrics
    keys = {key: metrics[key] for key in ("mask", "order", "phase")}
    tags = decided.get(keys["mask"], {})
    name = f"{_title(tags)} · {keys['mask']}" if tags else f"mask {keys['mask']}"
    name += " scratch" if keys["phase"] == "scratch" else ""
    name += f" order {keys['order']}" if keys["order"] else ""
    entry = _child(config, run, files, metrics, name=name, stage="prune")
    errors = metrics["errors"]["finetuned"]
    primary = _primary(errors)
    own = {f"test_{primary}": errors["test"][primary], **changes}
    return replace(
        entry,
        tags={**entry.tags, **tags},
        params={**entry.params, **_texts(keys)},
        points=[*entry.points, *_points(own, entry.end)],
    )


def _primary(errors: Mapping[str, Any]) -> str:
    """The name of the primary metric, the first one in the errors of each split."""
    return str(next(iter(errors["test"])))


def _changes(
    config: Config, run: Run, trained: Sequence[tuple[Job, Finished]]
) -> dict[str, dict[str, float | None]]:
    """The latency of the largest batch and the changes against the control in percent, by mask.

    They are for fine-tuned networks of the first data order; empty without a control.
    """
    networks = {
        job.mask: files.metrics
        for job, files in trained
        if job.order == 0 and job.phase == "finetuned"
    }
    whole = next((mask for mask in networks if "0" not in mask), None)
    if whole is None:
        return {}
    measured = Finished(runs.folder(config, run, "measure"))
    done = (measured.folder / "metrics.json").exists()
    by_size = measured.metrics["latency_ms"] if done else {}
    latency = {mask: sizes[max(sizes, key=int)] for mask, sizes in by_size.items() if sizes}
    primary = _primary(networks[whole]["errors"]["finetuned"])
    error = {m: f["errors"]["finetuned"]["test"][primary] for m, f in networks.items()}
    flops = {mask: metrics["flops"] for mask, metrics in networks.items()}
    return {
        mask: {
            "latency_ms": latency.get(mask),
            **{
                f"{name}_change_percent": _percent(values.get(mask), values.get(whole))
                for name, values in (
                    (f"test_{primary}", error),
                    ("flops", flops),
                    ("latency_ms", latency),
                )
            },
        }
        for mask in networks
    }


def _of_chosen(config: Config, run: Run) -> dict[str, float | None]:
    """The changes of the mask that validation chose for SPAT; empty before it is known."""
    from spat.pipeline.stages import select

    if not (runs.folder(config, run, "decide") / "metrics.json").exists():
        return {}
    if "prune" not in finished(config, run):
        return {}
    rows = select.read(config, run, "decide")
    spat = rows["criterion"].eq("send") & rows["level"].eq("site") & rows["rule"].eq("validation")
    by_mask = _changes(config, run, trained(config, run))
    masks = [str(mask) for mask in rows.loc[spat, "mask"] if mask in by_mask]
    changes = by_mask[masks[0]] if masks else {}
    return {name: value for name, value in changes.items() if name != "latency_ms"}


def _percent(value: float | None, reference: float | None) -> float | None:
    return 100 * (value / reference - 1) if reference and value is not None else None


def _decided(config: Config, run: Run) -> dict[str, dict[str, str]]:
    """The decision for each mask, as tags; of several decisions SPAT's, else the first one.

    The decisions of `decide` are not known when the trained networks are logged.
    """
    from spat.pipeline.stages import select

    if not (runs.folder(config, run, "select") / "metrics.json").exists():
        return {}
    rows = select.read(config, run, "select")
    rows = rows[rows["rule"] != "path"]
    spat = rows["criterion"].eq("send") & rows["level"].eq("site") & rows["ratio"].notna()
    tags_of: dict[str, dict[str, str]] = {}
    for row in pd.concat([rows[spat], rows[~spat]]).to_dict("records"):
        by_spat = row["criterion"] == "send" and row["level"] == "site"
        tags = {
            "method": "SPAT" if by_spat else str(row["criterion"]),
            "criterion": str(row["criterion"]),
            "level": str(row["level"]),
            "removed": str(row["removed"]),
            "chosen_by": str(row["rule"]) or "ratio",
        }
        if not math.isnan(row["ratio"]):
            tags["ratio"] = f"{row['ratio']:g}"
        elif not row["rule"]:
            tags["chosen_by"] = "none"  # the control
        tags_of.setdefault(str(row["mask"]), tags)
    return tags_of


def _title(tags: Mapping[str, str]) -> str:
    """`SPAT 50 %`, `michel heads 25 %`, `SPAT gap`, `control`."""
    words = [tags["method"], *(["heads"] if tags["level"] == "head" else [])]
    if "ratio" in tags:
        words.append(f"{100 * float(tags['ratio']):g} %")
    elif tags["chosen_by"] != "none":
        words.append(tags["chosen_by"])
    return " ".join(words)


def _robustness(config: Config, run: Run, files: Finished) -> Entry:
    metrics = files.metrics
    entry = _child(config, run, files, metrics, name="robustness", stage="robustness")
    rows = files.table("robustness.parquet")
    return replace(entry, texts={"robustness.csv": rows.to_csv(index=False)})


def _measure(config: Config, run: Run, files: Finished) -> Entry:
    metrics = files.metrics
    entry = _child(config, run, files, metrics, name="measure", stage="measure")
    named = _decided(config, run)
    rows = [
        {
            "mask": mask,
            "batch_size": size,
            "latency_ms": latency,
            "latency_spread_ms": metrics.get("latency_spread_ms", {}).get(mask, {}).get(size),
            "memory_mb": metrics["memory_mb"].get(mask, {}).get(size),
        }
        for mask, by_size in metrics["latency_ms"].items()
        for size, latency in by_size.items()
    ]
    ends = {
        f"{key}/batch {row['batch_size']}/{end}": row[key]
        for row in rows
        if (end := _end(row["mask"], named))
        for key in ("latency_ms", "memory_mb")
    }
    return replace(
        entry, points=[*entry.points, *_points(ends, entry.end)], texts=_table("measure", rows)
    )


def _transfer(config: Config, run: Run, files: Finished) -> Entry:
    metrics = files.metrics
    target, rows = metrics["target"], metrics["masks"]
    named = _decided(config, run)
    entry = _child(
        config, run, files, metrics, name=f"transfer {target}", stage=f"transfer/{target}"
    )
    ends = [
        point
        for row in rows
        if (end := _end(row["mask"], named))
        for point in _points(
            {f"{name}/{row['phase']}/{end}": value for name, value in row["errors"].items()},
            entry.end,
            row["order"],  # the data orders of a mask are steps of one metric
        )
    ]
    return replace(
        entry,
        tags={**entry.tags, "data_sha256": metrics["data_sha256"]},
        params={**entry.params, "target": target},
        points=[*entry.points, *ends],
        dataset=(target, metrics["data_sha256"]),
        texts=_table("transfer", rows),
    )


def _end(mask: str, named: Mapping[str, dict[str, str]]) -> str | None:
    """The name of a mask whose values are logged as metrics, or None.

    These are the full mask, the empty mask and the masks of SPAT, which can be compared between
    models. Metrics for every mask would be hundreds of columns; all values are in a table.
    """
    if "0" not in mask:
        return "all kept"
    if "1" not in mask:
        return "none left"
    tags = named.get(mask, {})
    return _metric_name(_title(tags)) if tags.get("method") == "SPAT" else None


def _table(name: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    # Named like the runs of masks, since MLflow would show the mask `1.0` as the number 1.
    named = [{**row, "mask": f"mask {row['mask']}"} for row in rows]
    return {f"{name}.csv": pd.DataFrame(named).to_csv(index=False)}


def _child(
    config: Config, run: Run, files: Finished, metrics: Mapping[str, Any], *, name: str, stage: str
) -> Entry:
    """The parts of all entries of jobs: keys, environment, errors, costs, losses, figures."""
    job = files.folder.relative_to(config.folder).as_posix()
    entry = _entry(metrics, job=job, name=name, stage=stage)
    final = {f"resources/{key}": metrics[key] for key in RESOURCES if key in metrics}
    for moment, errors in _nested(metrics.get("errors")).items():
        # Metrics of the final weights have the same names in all runs, to compare runs.
        final[moment.removeprefix("finetuned/").removeprefix("scratch/")] = errors
    fitted = "history.csv" in metrics["files"]
    return replace(
        entry,
        tags={**entry.tags, "run": run.path},
        params=_texts({**run.keys, **_keys(metrics)}),
        points=[
            *_points(final, entry.end),
            *(_history(files.table("history.csv"), entry.start) if fitted else ()),
        ],
        artifacts=dict.fromkeys(sorted(files.folder.glob("*.png")), "figures"),
    )


def _entry(metrics: Mapping[str, Any], *, job: str, name: str, stage: str) -> Entry:
    end = round(datetime.fromisoformat(metrics["written"]).timestamp() * 1000)
    status = metrics.get("status", "ok")
    tags = {
        "job": job,
        "stage": stage,
        "status": status,
        "digest": metrics.get("digest") or records.digest(metrics),
        "device": metrics["device"],
        "machine": metrics["machine"],
        "mlflow.source.name": f"python -m spat {stage.split('/')[0]}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": metrics["commit"],
        **{f"version.{package}": version for package, version in metrics["versions"].items()},
    }
    start = end - round(1000 * (metrics.get("wall_s") or 0))
    return Entry(job=job, name=name, start=start, end=end, tags=tags, ok=status == "ok")


def _keys(metrics: Mapping[str, Any]) -> dict[str, str]:
    return {key: metrics[key] for key in ("experiment", "config", "commit")}


def _history(frame: pd.DataFrame, start: int) -> Iterator[Point]:
    """Losses, learning rate and seconds of each epoch, at the time the epoch ended."""
    elapsed = 0.0
    for row in frame.to_dict("records"):
        elapsed += row["seconds"]
        epoch = {f"epoch/{key}": value for key, value in row.items() if key != "epoch"}
        yield from _points(epoch, start + round(1000 * elapsed), int(row["epoch"]))


def _scores(frame: pd.DataFrame, time: int) -> Iterator[Point]:
    """The score of each site by each criterion; during pre-training the step is the epoch."""
    frame = aggregate(frame) if "batch" in frame else frame
    for row in frame[frame["head"] == SITE].to_dict("records"):
        key = f"{row['criterion']}/{row['name']}"
        yield from _points({key: row["value"]}, time, int(row.get("epoch", 0)))


def _points(values: Mapping[str, Any], time: int, step: int = 0) -> Iterator[Point]:
    """Points for the finite numbers among the values; losses of a diverged run are not finite."""
    for key, value in values.items():
        if value is not None and math.isfinite(value):
            yield Point(key, float(value), step, time)


def _nested(values: Any, prefix: str = "") -> dict[str, Any]:
    """``{"test": {"mse": 1}}`` -> ``{"test/mse": 1}``."""
    if not isinstance(values, Mapping):
        return {prefix: values} if prefix else {}
    inner = (
        _nested(value, f"{prefix}/{key}" if prefix else str(key)) for key, value in values.items()
    )
    return {key: value for part in inner for key, value in part.items()}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as text for MLflow; lists are joined by commas."""
    return {
        key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in values.items()
    }
