"""measure(run): latency and peak memory of the pruned networks, alone on the machine."""

from __future__ import annotations

import time
from pathlib import Path

from spat import provenance, records, runs
from spat.config import Config
from spat.keeping import alone
from spat.pruning import costs, surgery
from spat.runs import Run
from spat.stages import common
from spat.training.loop import choose_device, prepare_torch


def measure(config: Config, run: Run) -> None:
    """Time all masks of the run in alternation in one process; write `metrics.json`."""
    with alone(config, run, "measure"):
        started = time.perf_counter()
        folder = common.stage_folder(config, run, "measure")
        prepare_torch(config.training.precision)
        device = choose_device(config.training.device)
        models = {
            mask: surgery.load(source, device) for mask, source in _networks(config, run).items()
        }
        latency: dict[str, dict[str, float]] = {mask: {} for mask in models}
        memory: dict[str, dict[str, float]] = {mask: {} for mask in models}
        for batch_size in config.measure.batch_sizes:
            timed = costs.latency(models, batch_size, config.measure.repeats, device)
            for mask, model in models.items():
                latency[mask][str(batch_size)] = timed[mask]
                memory[mask][str(batch_size)] = costs.peak_memory(model, batch_size, device)
        records.write_json(
            folder / "metrics.json",
            {
                **records.header(config, "measure", run, common.device_name(device)),
                "digest": provenance.settings_digest(config, "measure", run),
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
    metrics, networks = records.read_json(found), _networks(config, run)
    return (
        metrics["digest"] == provenance.settings_digest(config, "measure", run)
        and metrics["latency_ms"].keys() == networks.keys()
        and all(
            records.read_json(folder / "metrics.json")["written"] <= metrics["written"]
            for folder in networks.values()
        )
    )


def _networks(config: Config, run: Run) -> dict[str, Path]:
    """The folder of each mask that is timed: replicates and networks from scratch are as fast."""
    folder = runs.folder(config, run, "prune")
    return {
        entry["mask"]: folder / entry["folder"]
        for entry in records.read_json(folder / "manifest.json")["masks"]
        if entry["order"] == 0 and entry["phase"] == "finetuned"
    }
