"""measure(run): latency and peak memory of the pruned networks, alone on the machine."""

from __future__ import annotations

import time
from pathlib import Path

from spat.files import read_json, write_json
from spat.pipeline import digests, records, runs
from spat.pipeline.cache import stage_lock
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.stages import common
from spat.surgery import storage
from spat.training.device import costs
from spat.training.loop import choose_device, prepare_torch


def measure(config: Config, run: Run) -> None:
    """Time all masks of the run in alternation in one process; write `metrics.json`."""
    with stage_lock(config, run, "measure"):
        started = time.perf_counter()
        folder = common.stage_folder(config, run, "measure")
        prepare_torch(config.training.precision)
        device = choose_device(config.training.device)
        models = {
            mask: storage.load(source, device) for mask, source in _networks(config, run).items()
        }
        latency: dict[str, dict[str, float]] = {mask: {} for mask in models}
        memory: dict[str, dict[str, float]] = {mask: {} for mask in models}
        for batch_size in config.measure.batch_sizes:
            timed = costs.latency(models, batch_size, config.measure.repeats, device)
            for mask, model in models.items():
                latency[mask][str(batch_size)] = timed[mask]
                memory[mask][str(batch_size)] = costs.peak_memory(model, batch_size, device)
        write_json(
            folder / "metrics.json",
            {
                **records.header(config, "measure", run, common.device_name(device)),
                "digest": digests.settings_digest(config, "measure", run),
                "latency_ms": latency,
                "memory_mb": memory,
                "wall_s": time.perf_counter() - started,
            },
        )


def is_measured(config: Config, run: Run) -> bool:
    """Whether the networks that there are were measured, as they are and by these settings."""
    found = runs.folder(config, run, "measure") / "metrics.json"
    if not found.exists():
        return False
    metrics, networks = read_json(found), _networks(config, run)
    return (
        metrics["digest"] == digests.settings_digest(config, "measure", run)
        and metrics["latency_ms"].keys() == networks.keys()
        and all(
            read_json(folder / "metrics.json")["written"] <= metrics["written"]
            for folder in networks.values()
        )
    )


def _networks(config: Config, run: Run) -> dict[str, Path]:
    """The folder of each mask that is timed: replicates and networks from scratch are as fast."""
    folder = runs.folder(config, run, "prune")
    return {
        entry["mask"]: folder / entry["folder"]
        for entry in read_json(folder / "manifest.json")["masks"]
        if entry["order"] == 0 and entry["phase"] == "finetuned"
    }
