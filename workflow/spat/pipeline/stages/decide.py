"""decide(run): choose among the trained masks by adaptive rules and validation losses."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from spat.attention.mask import Mask
from spat.models.registry import MODELS
from spat.pipeline import digests, records, runs, tasks
from spat.pipeline.cache import Finished, write_record
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.stages import select
from spat.pipeline.stages.trained import finetuned
from spat.surgery import choose


def decide(config: Config, run: Run) -> None:
    """Write `selections.csv`: one mask of SEND's nested path per adaptive rule."""
    folder = runs.folder(config, run, "decide")
    trained = Finished(runs.folder(config, run, "pretrain")).metrics
    decisions = select.read(config, run, "select")
    path = decisions.loc[decisions["rule"] == "path", "mask"].tolist()
    primary = records.METRICS[MODELS[run.model].task][0]
    losses = []
    for mask in path:
        files = finetuned(config, run, mask)
        mean = files.metrics["errors"]["finetuned"]["validation"][primary]
        losses.append(files.array("validation_losses.npy", mean))
    rules, draws = config.pruning.site.rules, config.statistics.bootstrap
    chosen = _chosen(run, losses, rules, draws) if path else {}
    heads = tuple(trained["heads"])
    rows = [
        select.ruled("send", Mask.parse(path[removed], heads), rule, finetunings=len(path))
        for rule, removed in chosen.items()
    ]
    select.write(folder / select.SELECTIONS, select.table(rows))
    write_record(
        folder,
        {
            **records.header(config, "decide", run, trained["device"]),
            "digest": digests.settings_digest(config, "decide", run),
            "path": path,
            "chosen": {rule: path[removed] for rule, removed in chosen.items()},
        },
        [select.SELECTIONS],
    )


def _chosen(
    run: Run, losses: Sequence[NDArray[np.float64]], rules: Collection[str], draws: int
) -> dict[str, int]:
    """The number of sites that each rule removes, from the validation losses along the path."""
    chosen = {}
    if "one_se" in rules:
        chosen["one_se"] = choose.one_standard_error(
            losses,
            block=tasks.of(run).block(run),
            draws=draws,
            seed=run.seed_for("bootstrap"),
        )
    if "validation" in rules:
        chosen["validation"] = choose.validation_minimum(
            [float(loss.mean(dtype=np.float64)) for loss in losses]
        )
    return chosen
