"""Frames of runs with four sites and a known outcome, for the tests of the study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from frame_builder import wide
from scipy.signal import lfilter

from spat.attention.mask import Mask, all_site_masks
from spat.data.registry import DATASETS

HEADS = (2, 2, 2, 2)
FULL, EMPTY = Mask.full(HEADS).name, Mask.empty(HEADS).name
MASKS = tuple(mask.name for mask in all_site_masks(HEADS))
RATIOS = (0.25, 0.5, 0.75, 1.0)

Keys = dict[str, Any]
Error = Callable[[Keys, str, int], float]


def runs(
    datasets: Iterable[str] = ("ETTh1",),
    seeds: int = 3,
    horizons: Iterable[int] = (96,),
    model: str = "iTransformer",
) -> list[Keys]:
    """The keys of every run, seeds innermost."""
    return [
        {
            "experiment": "planted",
            "dataset": dataset,
            "source": DATASETS[dataset].station,
            "model": model,
            "variant": "deep",
            "lookback": 96,
            "horizon": horizon,
            "seed": seed,
        }
        for dataset, horizon, seed in itertools.product(datasets, horizons, range(seeds))
    ]


def additive(worth: Sequence[float], base: float = 1.0) -> Callable[[str], float]:
    """Error of a mask: every removed site adds its worth, which may be negative."""
    return lambda mask: base + sum(worth[i] for i in Mask.parse(mask, HEADS).sites_removed)


def results(
    of: Iterable[Keys],
    error: Error,
    *,
    orders: int = 1,
    masks: Sequence[str] = MASKS,
    phase: str = "finetuned",
    targets: Mapping[str, float] | None = None,
    flops: Callable[[str], int] = lambda mask: 1000,
) -> pd.DataFrame:
    """Test and validation errors `error(keys, mask, order)`; `targets` adds to that of a target."""
    rows = [
        {
            **keys,
            "order": order,
            "mask": mask,
            "phase": phase,
            "target": target,
            "split": split,
            "mse": error(keys, mask, order) + shift,
            "mae": 0.8,
            "params": 10,
            "flops": flops(mask),
            "latency_ms": flops(mask) / 1000,
            "memory_mb": 1.0,
            "wall_s": 1.0,
            "share": 1.0,
            "precision": "float32",
            "epochs": 3,
            "best_epoch": 1,
            "status": "ok",
            "device": "cpu",
            "commit": "0",
            "digest": "0",
        }
        for keys in of
        for order in range(orders)
        for mask in masks
        for target, shift in {keys["dataset"]: 0.0, **(targets or {})}.items()
        for split in (("validation", "test") if target == keys["dataset"] else ("test",))
    ]
    return _read("results", rows)


def selections(
    of: Iterable[Keys], values: Mapping[str, Callable[[Keys], Sequence[float]]]
) -> pd.DataFrame:
    """Site masks at `RATIOS` of each criterion, from its site scores; and the control."""
    rows = []
    for keys in of:
        rows.append(decision(keys, "control", FULL))
        for criterion, score in values.items():
            order = np.argsort(score(keys), kind="stable")
            for k, ratio in enumerate(RATIOS, start=1):
                mask = Mask.full(HEADS).without_sites([int(i) for i in order[:k]]).name
                rows.append(decision(keys, criterion, mask, ratio=ratio))
    return _read("selections", rows)


def decision(keys: Keys, criterion: str, mask: str, **changes: Any) -> Keys:
    """One row of `selections`."""
    row = {
        **keys, "criterion": criterion, "draw": 0, "level": "site", "ratio": math.nan, "rule": "",
        "removed": len(Mask.parse(mask, HEADS).sites_removed), "mask": mask, "finetunings": 0,
    }  # fmt: skip
    return {**row, **changes}


def scores(
    of: Iterable[Keys],
    values: Mapping[str, Callable[[Keys], Sequence[float]]],
    *,
    batches: int = 8,
    noise: float = 0.0,
    kept: int = 3,
    epochs: int = 5,
) -> pd.DataFrame:
    """Site and head scores: per batch, over all batches, and a trajectory of `send`.

    The trajectory runs from the reverse of the values (first epoch) to the values (later ones).
    """
    rng = np.random.default_rng(0)
    rows = []
    for keys in of:
        for criterion, score in values.items():
            own = np.asarray(score(keys), dtype=float)
            noisy = own + noise * rng.standard_normal((batches, len(own)))
            for site in range(len(own)):
                place = {
                    **keys, "site": site, "name": f"encoder.{site}.self", "criterion": criterion,
                }  # fmt: skip
                for head in (-1, 0, 1):
                    at = {**place, "head": head}
                    for batch, value in enumerate(noisy[:, site]):
                        rows.append({**at, "epoch": kept, "batch": batch, "value": value})
                    mean = noisy[:, site].mean()
                    rows.append({**at, "epoch": kept, "batch": -1, "value": mean})
                    for epoch in range(1, epochs + 1) if criterion == "send" else ():
                        if epoch != kept:
                            value = -mean if epoch == 1 else mean
                            rows.append({**at, "epoch": epoch, "batch": -1, "value": value})
    return _read("scores", rows)


def _read(name: str, rows: list[Keys]) -> pd.DataFrame:
    """The rows as the study reads them, checked against the schema of the frame."""
    return wide(name, pd.DataFrame(rows)).drop(columns="control_of")


def overlapping(n: int, seed: int, horizon: int = 96, memory: float = 0.0) -> np.ndarray:
    """Per-window losses: means over `horizon` steps of a noise with the given AR(1) memory."""
    noise = np.random.default_rng(seed).standard_normal(n + horizon - 1 + 500)
    steps = lfilter([1.0], [1.0, -memory], noise)[500:]
    return np.convolve(steps, np.full(horizon, 1 / horizon), "valid")
