"""measure(run): latency and peak memory of the pruned networks, alone on the machine."""

from __future__ import annotations

import time

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
        source = runs.folder(config, run, "prune")
        manifest = records.read_json(source / "manifest.json")
        prepare_torch(config.training.precision)
        device = choose_device(config.training.device)
        models = {
            entry["mask"]: surgery.load(source / entry["folder"], device)
            for entry in manifest["masks"]
            if entry["order"] == 0 and entry["phase"] == "finetuned"
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
