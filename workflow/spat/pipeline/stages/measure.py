"""measure(run): measure latency, peak memory and attention maps of the pruned networks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from numpy.typing import NDArray

from spat.attention.mask import Mask
from spat.models.base import Network
from spat.pipeline import digests, records, runs
from spat.pipeline.cache import RESULT, DamagedError, Finished, stage_lock, write_record
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.stages import common, select
from spat.pipeline.stages.trained import Job, trained
from spat.scoring.probe import attention_maps
from spat.tasks.task import case_losses
from spat.training.device import costs
from spat.training.loop import choose_device, prepare_torch

MAPS = "maps.npz"


def measure(config: Config, run: Run) -> None:
    """Time all masks of the run in alternation in one process; write `metrics.json`, `maps.npz`.

    `latency_ms` holds lower quartiles and `latency_spread_ms` interquartile ranges, by mask and
    batch size. `uncertain` lists the batch sizes at which the spread of a mask remained wide, since
    other work ran on the machine; a warning is written to stderr.

    `maps.npz` holds the mean attention [heads, Q, K] of the control and of SEND's masks, by
    `MASK SITE`, over the training cases that `score` uses for the maps of the dense model.
    """
    with stage_lock(config, run, "measure"):
        started = time.perf_counter()
        folder = common.stage_folder(config, run, "measure")
        prepare_torch(config.training.precision)
        device = choose_device(config.training.device)
        models = {
            mask: common.network(files, device)
            for mask, files in _timed(trained(config, run)).items()
        }
        task = common.task_of(run)
        latency: dict[str, dict[str, float]] = {mask: {} for mask in models}
        spread: dict[str, dict[str, float]] = {mask: {} for mask in models}
        uncertain: list[int] = []
        memory: dict[str, dict[str, float]] = {mask: {} for mask in models}
        # A run whose dense model diverged in the first epoch has no masks.
        shapes = [model.shape for model in models.values()][:1]
        for batch_size, shape in product(config.measure.batch_sizes, shapes):
            batch = task.example(shape, batch_size, device)
            timed = costs.latency(models, task, batch, config.measure.repeats, device)
            for mask, model in models.items():
                latency[mask][str(batch_size)] = timed[mask].milliseconds
                spread[mask][str(batch_size)] = timed[mask].spread
                memory[mask][str(batch_size)] = costs.peak_memory(model, task, batch, device)
            if any(timing.is_wide for timing in timed.values()):
                uncertain.append(batch_size)
                widest = max(timing.spread / timing.milliseconds for timing in timed.values())
                print(
                    f"{run.path}: latencies at batch size {batch_size} are uncertain: passes of a "
                    f"network differ by {widest:.0%}, so other work ran on the machine. Delete "
                    f"{folder / RESULT} and run the same command again when the machine is idle",
                    file=sys.stderr,
                    flush=True,
                )
        common.save_arrays(folder / MAPS, _maps(config, run, models))
        write_record(
            folder,
            {
                **records.header(config, "measure", run, common.device_name(device)),
                "digest": digests.settings_digest(config, "measure", run),
                "latency_ms": latency,
                "latency_spread_ms": spread,
                "uncertain": uncertain,
                "memory_mb": memory,
                "wall_s": time.perf_counter() - started,
            },
            [MAPS],
        )


def _maps(config: Config, run: Run, models: Mapping[str, Network]) -> dict[str, NDArray[Any]]:
    """The attention maps of the control and of SEND's site masks, by `MASK SITE`."""
    decisions = select.read(config, run, "select")
    sites = decisions[decisions["level"] == "site"]
    own = sites.loc[sites["criterion"].isin(["control", "send"]), "mask"].drop_duplicates()
    shown = [name for name in own if name in models and not Mask.parse(name).is_empty]
    if not shown:
        return {}
    opened = common.opened(config, run, "measure")
    losses = case_losses(opened.task)
    return {
        f"{name} {site}": weights
        for name in shown
        for site, weights in attention_maps(
            models[name],
            opened.splits.train,
            opened.batches[:1],
            losses,
            batch_size=opened.training.batch_size,
        ).items()
    }


def is_measured(config: Config, run: Run) -> bool:
    """Whether all networks were measured in their current state and with these settings."""
    try:
        metrics = Finished(runs.folder(config, run, "measure")).metrics
    except (FileNotFoundError, DamagedError):
        return False
    networks = _timed(trained(config, run))
    return (
        metrics["digest"] == digests.settings_digest(config, "measure", run)
        and metrics["latency_ms"].keys() == networks.keys()
        and all(network.metrics["written"] <= metrics["written"] for network in networks.values())
    )


def _timed(networks: Iterable[tuple[Job, Finished]]) -> dict[str, Finished]:
    """The files of each mask to time; replicates and networks from scratch have the same speed."""
    return {
        job.mask: files for job, files in networks if job.order == 0 and job.phase == "finetuned"
    }
