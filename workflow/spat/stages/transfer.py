"""transfer(run, target): zero-shot errors on another dataset's test split; nothing is trained.

The scaler is the target's own (mean and deviation of its training rows).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd

from spat import provenance, records, runs
from spat.config import Config
from spat.evaluation.metrics import evaluate
from spat.keeping import alone
from spat.pruning import surgery
from spat.runs import Planned
from spat.stages import common, select
from spat.stages.prune import mask_folder


def transfer(config: Config, planned: Planned, target: str) -> None:
    """Evaluate the dense model and, where the run is pruned, the control and SEND's masks."""
    run = planned.run
    stage = f"transfer/{target}"
    with alone(config, run, stage):
        started = time.perf_counter()
        folder = common.stage_folder(config, run, stage)
        prepared, splits = common.open_data(config, target, run)
        device = splits.test.device
        dense = runs.folder(config, run, "pretrain")
        rows: list[dict[str, Any]] = []
        for mask, phase, source in _networks(config, planned, dense):
            errors = evaluate(surgery.load(source, device), splits.test)
            rows.append({"mask": mask, "phase": phase, "order": 0, **common.errors_row(errors)})
        records.write_json(
            folder / "metrics.json",
            {
                **records.header(config, "transfer", run, common.device_name(device)),
                "digest": provenance.settings_digest(config, "transfer", run),
                "target": target,
                "data_sha256": prepared.sha256,
                "masks": rows,
                "wall_s": time.perf_counter() - started,
            },
        )


def _networks(config: Config, planned: Planned, dense: Path) -> list[tuple[str, str, Path]]:
    """(mask, phase, folder) of what is evaluated: the dense model, the control, SEND's masks."""
    run = planned.run
    found = [(records.read_json(dense / "metrics.json")["mask"], "dense", dense)]
    if not planned.prune:
        return found
    decisions = pd.concat([select.read(config, run, stage) for stage in ("select", "decide")])
    ours = decisions["criterion"].isin(["control", "send"])
    return found + [
        (mask, "finetuned", mask_folder(config, run, mask))
        for mask in decisions.loc[ours, "mask"].drop_duplicates()
    ]
