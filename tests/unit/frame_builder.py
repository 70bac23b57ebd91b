"""Small, consistent frames of an experiment, as `collect` writes them."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from spat.attention.mask import Mask, all_site_masks
from spat.data.registry import DATASETS
from spat.pipeline import frames
from spat.pipeline.frames import RUN
from spat.pipeline.runs import control_of
from spat.study.pages.reader import WIDE, Frames, empty

HEADS = (4, 4, 4, 4)
FULL, EMPTY = Mask.full(HEADS).name, Mask.empty(HEADS).name
RATIOS = (0.25, 0.5, 0.75, 1.0)
CRITERIA = ("send", "send_reverse", "michel", "entropy", "magnitude")
HEAD_CRITERIA = ("send", "random", "michel")
ATTENTION = ("iTransformer", "PatchTST")
REFERENCES = ("DLinear", "RepeatLast", "SeasonalNaive")
ERRORS = {"DLinear": 0.01, "RepeatLast": 1.20, "SeasonalNaive": 0.60}
PARAMS_PER_HEAD, FLOPS_PER_HEAD = 10_000, 1_000_000
PARAMS_REST, FLOPS_REST = 240_000, 24_000_000
RUN_KEYS = ("experiment", "dataset", "model", "variant", "lookback", "horizon", "seed")
BATCHES, EPOCHS, KEPT, WINDOWS = 8, 5, 4, 600
# Sites 1 and 3 can be removed without harm. SEND removes site 1 first, its reverse removes it last.
WORTH = (0.004, -0.006, 0.002, -0.003)
SEND = (0.010, 0.002, 0.008, 0.004)


def noise(*key: object) -> float:
    """A reproducible number in (-1, 1)."""
    return zlib.crc32(repr(key).encode()) / 2**31 - 1.0


def base(dataset: str, model: str, horizon: int) -> float:
    """Dense test MSE without the effect of the seed."""
    return (
        0.30
        + 0.08 * abs(noise(dataset))
        + 0.01 * noise(model)
        + 0.05 * math.log(horizon / 96)
        + ERRORS.get(model, 0.0)
    )


def error(keys: dict[str, Any], mask: Mask, phase: str, target: str, order: int = 0) -> float:
    """Test MSE: the control is 0.001 better, and a removed site changes the MSE by its worth."""
    shift = 0.05 if target != keys["dataset"] else 0.0
    mse = base(target, keys["model"], keys["horizon"]) + shift + 0.002 * keys["seed"]
    lost = [(i, len(mask.bits[i])) for i, _ in mask.removed_heads]
    mse += sum(WORTH[i % 4] / heads for i, heads in lost)
    if phase == "finetuned":
        mse += -0.001 + 0.0002 * noise(keys["model"], keys["seed"], mask.name, order)
    if phase == "pruned":
        mse += 0.01 * len(lost)
    return mse


def wide(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as the wide frame `name` that the study reads, with what follows from their runs."""
    if rows.empty:
        return empty(name)
    stations = {dataset: DATASETS[dataset].station for dataset in rows["dataset"].unique()}
    controls = {variant: control_of(variant) for variant in rows["variant"].unique()}
    columns_of_all = rows.assign(
        source=rows["dataset"].map(stations).astype("str"),
        control_of=rows["variant"].map(controls).astype("str"),
    )
    columns = list(empty(name))
    assert set(columns_of_all) >= set(columns) - {"latency_spread_ms"}, set(columns) - set(
        columns_of_all
    )
    return columns_of_all.reindex(columns=columns)


def long(made: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The frames of `spat.pipeline.frames` that are read as the wide frames `made`."""
    by_name = {}
    for name, rows in made.items():
        setting = [f"l{a}-h{b}" for a, b in zip(rows["lookback"], rows["horizon"], strict=True)]
        by_name[name] = rows.drop(columns=["lookback", "horizon"]).assign(
            task="forecasting", setting=setting
        )
    results, history = by_name.pop("results"), by_name.pop("history", pd.DataFrame())
    errors, costs = ["mse", "mae"], list(WIDE["results"][7:])
    by_name["measurements"] = results.drop(columns=costs).melt(
        [c for c in results if c not in (*errors, *costs)], errors, "metric", "value"
    )
    key = [*RUN, "order", "mask", "phase"]
    by_name["networks"] = results[[*key, *costs]].drop_duplicates(key)
    if len(history):
        quantities = list(WIDE["history"][4:])
        key = [column for column in history if column not in quantities]
        by_name["history"] = history.melt(key, quantities, "quantity", "value")
    for rows in by_name.values():
        for column in ("head", "batch", "channel"):
            if column in rows:
                values = rows[column].astype("Int64")
                rows[column] = values.mask(values == -1)
    names = {"losses": {"mse": "losses"}, "maps": {"row": "query", "column": "key"}}
    return {
        name: frames.checked(name, rows.rename(columns=names.get(name, {})))
        for name, rows in by_name.items()
    }


def run_keys(
    datasets: Sequence[str],
    models: Sequence[str],
    horizons: Sequence[int],
    seeds: Sequence[int],
    variant: str,
) -> Iterator[dict[str, Any]]:
    for dataset, model, horizon, seed in itertools.product(datasets, models, horizons, seeds):
        yield {
            "experiment": "made",
            "dataset": dataset,
            "model": model,
            "variant": variant,
            "lookback": 96,
            "horizon": horizon,
            "seed": seed,
        }


def nested(criterion: str, ratio: float) -> Mask:
    """The site mask of a criterion at a ratio."""
    order = sorted(range(4), key=lambda i: score(criterion, i, -1))
    return Mask.full(HEADS).without_sites(order[: math.floor(ratio * 4 + 0.5)])


def score(criterion: str, site: int, head: int) -> float:
    value = SEND[site] * (1 + 0.1 * head)
    return {
        "send": value,
        "send_reverse": -value,
        "michel": 1 - value,
        "uniformity": 0.9 - 20 * value,
    }.get(criterion, abs(noise(criterion, site, head)))


def head_mask(criterion: str, ratio: float, draw: int = 0) -> Mask:
    pairs = [(i, h) for i in range(4) for h in range(4)]
    if criterion == "random":
        pairs.sort(key=lambda pair: noise("head", draw, pair))
    else:
        pairs.sort(key=lambda pair: score(criterion, *pair))
    return Mask.full(HEADS).without_heads(pairs[: math.floor(ratio * 16 + 0.5)])


def _decisions(exhaustive: bool) -> list[tuple[str, int, str, float, str, Mask]]:
    """(criterion, draw, level, ratio, rule, mask) of one attention run."""
    full = Mask.full(HEADS)
    decisions = [("control", 0, "site", math.nan, "", full)]
    for ratio in RATIOS:
        decisions += [(c, 0, "site", ratio, "", nested(c, ratio)) for c in CRITERIA]
        for draw in range(3):
            sites = sorted(range(4), key=lambda i: noise("site", draw, i))
            mask = full.without_sites(sites[: math.floor(ratio * 4 + 0.5)])
            decisions.append(("random", draw, "site", ratio, "", mask))
            decisions.append(("random", draw, "head", ratio, "", head_mask("random", ratio, draw)))
        decisions += [
            (c, 0, "head", ratio, "", head_mask(c, ratio)) for c in HEAD_CRITERIA if c != "random"
        ]
    if exhaustive:
        masks = enumerate(all_site_masks(HEADS))
        decisions += [("exhaustive", i, "site", math.nan, "exhaustive", mask) for i, mask in masks]
    decisions.append(("send", 0, "site", math.nan, "validation", nested("send", 0.5)))
    return decisions


def _measurement(
    keys: dict[str, Any], mask: Mask, phase: str, target: str, split: str, order: int = 0
) -> dict[str, Any]:
    kept = sum(HEADS) - len(mask.removed_heads) if mask.bits else 0
    mse = error(keys, mask, phase, target, order) * (0.9 if split == "validation" else 1.0)
    flops = FLOPS_REST + kept * FLOPS_PER_HEAD if mask.bits else 1_000_000
    dense = phase == "dense"
    if phase == "scratch":
        mse += 0.01
    return {
        **keys,
        "order": order,
        "mask": mask.name,
        "phase": phase,
        "target": target,
        "split": split,
        "mse": mse,
        "mae": 0.8 * mse + 0.1,
        "params": PARAMS_REST + kept * PARAMS_PER_HEAD if mask.bits else 20_000,
        "flops": flops,
        # The costs of the dense network are those of the control, which has the same architecture.
        "latency_ms": math.nan if dense else 2.0 + flops / 1e7,
        "memory_mb": math.nan if dense else 50.0 + flops / 1e6,
        "wall_s": 10.0,
        "share": 1.0,
        "precision": "float32",
        "epochs": 3,
        "best_epoch": 2,
        "status": "ok",
        "device": "cpu",
        "commit": "0" * 12,
        "digest": "0" * 64,
    }


def _results(
    runs: list[dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
    masks: set[Mask],
    orders: int,
    scratch: bool,
) -> Iterator[dict[str, Any]]:
    path = {Mask.full(HEADS), *(nested("send", ratio) for ratio in RATIOS)}
    for keys in runs:
        own = keys["dataset"]
        attention = keys["model"] in ATTENTION
        dense = Mask.full(HEADS) if attention else Mask(())
        for target in [own, *(target for source, target in pairs if source == own)]:
            for split in ("validation", "test") if target == own else ("test",):
                cell = (target, split)
                yield _measurement(keys, dense, "dense", *cell)
                tuned = masks if target == own else path
                for mask in sorted(tuned, key=lambda m: m.name) if attention else ():
                    for order in range(orders if target == own else 1):
                        yield _measurement(keys, mask, "finetuned", *cell, order)
                    if target == own:
                        yield _measurement(keys, mask, "pruned", *cell)
                        if scratch and mask in path:
                            yield _measurement(keys, mask, "scratch", *cell)


def _scores(keys: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for site, head in itertools.product(range(4), range(-1, 4)):
        row = {**keys, "site": site, "name": f"encoder.{site}.self", "head": head}
        for criterion in (*CRITERIA, "uniformity"):
            values = [
                score(criterion, site, head)
                * (1 + 0.3 * noise(criterion, site, batch, keys["seed"], keys["model"]))
                for batch in range(BATCHES)
            ]
            yield {
                **row, "criterion": criterion, "epoch": KEPT, "batch": -1,
                "value": float(np.mean(values)),
            }  # fmt: skip
            for batch, value in enumerate(values):
                yield {**row, "criterion": criterion, "epoch": KEPT, "batch": batch, "value": value}
        # `score` scores the kept epoch again by every other criterion.
        for epoch in (e for e in range(1, EPOCHS + 1) if e != KEPT):
            value = score("send", site, head) * (1 + 1 / epoch)
            yield {**row, "criterion": "send", "epoch": epoch, "batch": -1, "value": value}


def _history(keys: dict[str, Any]) -> Iterator[dict[str, Any]]:
    stages = [("pretrain", FULL, EPOCHS)]
    if keys["model"] in ATTENTION:
        stages += [("finetune", mask, 3) for mask in (FULL, EMPTY, nested("send", 0.5).name)]
    else:
        stages = [("pretrain", "none", EPOCHS)]
    for stage, mask, epochs in stages:
        for epoch in range(1, epochs + 1):
            start = 0.4 if stage == "pretrain" else 0.3
            yield {
                **keys, "stage": stage, "mask": mask, "order": 0, "epoch": epoch,
                "train_mse": start / epoch**0.5, "val_mse": start / epoch**0.4 + 0.02,
                "val_mae": start / epoch**0.4, "learning_rate": 1e-3 / epoch, "seconds": 2.0,
            }  # fmt: skip


def _losses(results: pd.DataFrame) -> pd.DataFrame:
    rows = results[(results["split"] == "test") & (results["target"] == results["dataset"])]
    key = [*RUN_KEYS, "order", "mask", "phase", "target"]
    steps = np.arange(WINDOWS)
    return rows[key].assign(
        mse=[(value * (1 + 0.2 * np.sin(steps / 5))).astype(np.float32) for value in rows["mse"]]
    )


def _forecasts(keys: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if keys["seed"] != 0:
        return
    for window in (0, 20):
        for step in range(96):
            wave = math.sin(step / 24 * 2 * math.pi)
            row = {**keys, "window": window, "step": step, "channel": -1}
            yield {**row, "name": "input", "value": wave}
            if step < keys["horizon"]:
                names = ("truth", "dense", FULL, EMPTY, nested("send", 0.5).name)
                for name in names if keys["model"] in ATTENTION else names[:2]:
                    yield {**row, "name": name, "value": wave + 0.1 * noise(name, step, window)}


def _maps(keys: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if keys["seed"] != 0:
        return
    for name, sharpness in (("encoder.1.self", 0.5), ("encoder.0.self", 4.0)):
        logits = -sharpness * np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
        maps = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        left = nested("send", 0.5).name
        for network in ("dense", FULL, left):
            if network == left and not Mask.parse(left).bits[int(name[8])][0]:
                continue
            for (query, key), value in np.ndenumerate(maps):
                where = {"network": network, "name": name, "head": -1, "row": query, "column": key}
                yield {**keys, **where, "value": float(value)}


def build(
    datasets: Sequence[str] = ("ETTh1", "ETTh2"),
    models: Sequence[str] = (*ATTENTION, *REFERENCES),
    horizons: Sequence[int] = (96,),
    seeds: Sequence[int] = (0, 1, 2),
    pairs: Sequence[tuple[str, str]] = (("ETTh1", "ETTh2"), ("ETTh2", "ETTh1")),
    *,
    variant: str = "deep",
    exhaustive: bool = True,
    orders: int = 1,
    scratch: bool = False,
    controls: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, pd.DataFrame]:
    """The wide frames that the study reads.

    `controls` adds dense runs of the variant with a plus and each name, their errors this much
    larger.
    """
    runs = list(run_keys(datasets, models, horizons, seeds, variant))
    attention = [keys for keys in runs if keys["model"] in ATTENTION]
    decisions = _decisions(exhaustive)
    masks = {decision[5] for decision in decisions}
    results = pd.DataFrame(_results(runs, pairs, masks, orders, scratch))
    untuned = results[(results["phase"] == "dense") & results["model"].isin(ATTENTION)]
    untuned = untuned[untuned["target"] == untuned["dataset"]]
    others = [
        untuned.assign(variant=f"{variant}+{name}", mse=untuned["mse"] + worse)
        for name, worse in controls.items()
    ]
    results = pd.concat([results, *others], ignore_index=True)
    training = pd.DataFrame(row for keys in runs for row in _history(keys))
    training = pd.concat([training, *(training.assign(variant=f"{variant}+{c}") for c in controls)])
    selections = [
        {
            **keys, "criterion": criterion, "draw": draw, "level": level, "ratio": ratio,
            "rule": rule, "mask": mask.name, "finetunings": 4 if rule else 0,
            "removed": len(mask.sites_removed) if level == "site" else len(mask.removed_heads),
        }
        for keys in attention
        for criterion, draw, level, ratio, rule, mask in decisions
    ]  # fmt: skip
    made = {
        "results": results,
        "selections": pd.DataFrame(selections),
        "scores": pd.DataFrame(row for keys in attention for row in _scores(keys)),
        "history": training,
        "losses": _losses(results),
        "maps": pd.DataFrame(row for keys in attention for row in _maps(keys)),
        "forecasts": pd.DataFrame(row for keys in runs for row in _forecasts(keys)),
    }
    return {name: wide(name, frame) for name, frame in made.items()}


def frames_of(**changes: Any) -> Frames:
    """The built frames as the study functions take them; keywords as for `build`.

    The same keywords give the same object, which knows what was computed before.
    """
    key = repr(sorted(changes.items()))
    if key not in _BUILT:
        _BUILT[key] = Frames.of(**build(**changes))
    return _BUILT[key]


_BUILT: dict[str, Frames] = {}
