"""decide(run): the adaptive rules that look at fine-tuned validation choose among trained masks."""

from __future__ import annotations

import numpy as np

from spat import provenance, records, runs
from spat.config import Config
from spat.pruning import selection
from spat.pruning.masks import Mask
from spat.runs import Run
from spat.stages import select
from spat.stages.prune import mask_folder


def decide(config: Config, run: Run) -> None:
    """Write `selections.csv` with one row per such rule, all along SEND's nested path."""
    folder = runs.folder(config, run, "decide")
    trained = records.read_json(runs.folder(config, run, "pretrain") / "metrics.json")
    decisions = select.read(config, run, "select")
    path = decisions.loc[decisions["rule"] == "path", "mask"].tolist()
    chosen = _chosen(config, run, path) if path else {}
    heads = tuple(trained["heads"])
    rows = [
        select.ruled("send", Mask.parse(path[removed], heads), rule, finetunings=len(path))
        for rule, removed in chosen.items()
    ]
    select.write(folder / "selections.csv", select.table(rows))
    records.write_json(
        folder / "metrics.json",
        {
            **records.header(config, "decide", run, trained["device"]),
            "digest": provenance.settings_digest(config, "decide", run),
            "path": path,
            "chosen": {rule: path[removed] for rule, removed in chosen.items()},
        },
    )


def _chosen(config: Config, run: Run, path: list[str]) -> dict[str, int]:
    """How many sites each rule removes."""
    losses = [np.load(mask_folder(config, run, mask) / "validation_losses.npy") for mask in path]
    rules = config.pruning.site.rules
    chosen = {}
    if "one_se" in rules:
        chosen["one_se"] = selection.one_standard_error(
            losses,
            block=run.lookback + run.horizon,
            draws=config.statistics.bootstrap,
            seed=run.seed_for("bootstrap"),
        )
    if "validation" in rules:
        chosen["validation"] = selection.validation_minimum(
            [float(loss.mean(dtype=np.float64)) for loss in losses]
        )
    return chosen
