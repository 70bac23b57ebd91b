"""transfer(run, target): compute zero-shot errors on the test split of another dataset.

Nothing is trained. The scaler is that of the target (mean and deviation of its training rows).
"""

from __future__ import annotations

import time
from typing import Any

import pandas as pd

from spat.pipeline import digests, records, runs
from spat.pipeline.cache import Finished, stage_lock, write_record
from spat.pipeline.config import Config
from spat.pipeline.runs import Planned
from spat.pipeline.stages import common, select
from spat.pipeline.stages.trained import finetuned
from spat.training.metrics import evaluate


def transfer(config: Config, planned: Planned, target: str) -> None:
    """Evaluate the dense model and, if the run is pruned, the control and SEND's masks."""
    run = planned.run
    stage = f"transfer/{target}"
    with stage_lock(config, run, stage):
        started = time.perf_counter()
        folder = common.stage_folder(config, run, stage)
        sha256, splits = common.open_data(config, target, run)
        device = splits.test.device
        dense = Finished(runs.folder(config, run, "pretrain"))
        networks = [(dense.metrics["mask"], "dense", dense)]
        if planned.prune:
            decisions = pd.concat([select.read(config, run, s) for s in ("select", "decide")])
            chosen = decisions["criterion"].isin(["control", "send"])
            networks += [
                (mask, "finetuned", finetuned(config, run, mask))
                for mask in decisions.loc[chosen, "mask"].drop_duplicates()
            ]
        rows: list[dict[str, Any]] = []
        for mask, phase, files in networks:
            errors = evaluate(common.network(files, device), common.task_of(run), splits.test)
            rows.append({"mask": mask, "phase": phase, "order": 0, "errors": errors.means})
        write_record(
            folder,
            {
                **records.header(config, "transfer", run, common.device_name(device)),
                "digest": digests.settings_digest(config, "transfer", run),
                "target": target,
                "data_sha256": sha256,
                "masks": rows,
                "wall_s": time.perf_counter() - started,
            },
        )
