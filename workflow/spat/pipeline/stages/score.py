"""score(run): every criterion that is asked for, from one pass over the kept checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from spat.data.windows import Windows
from spat.models.base import Forecaster
from spat.models.registry import MODELS
from spat.pipeline import digests, records, runs, scores_frame
from spat.pipeline.cache import Finished, save_array, save_table, stage_lock, write_record
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.stages import common
from spat.pipeline.stages.select import LOSS_DROPS, scorable
from spat.scoring import probe, scores
from spat.scoring.names import CRITERIA, offered
from spat.scoring.probe import Losses
from spat.tasks.task import case_losses

COLUMNS = ("epoch", "batch", "site", "name", "head", "criterion", "value")


def wanted(config: Config, run: Run) -> tuple[str, ...]:
    """The criteria of both levels, and `send`, which the figures show, where the model has it."""
    asked = ("send", *config.pruning.site.criteria, *config.pruning.head.criteria)
    possible = offered(MODELS[run.model].view)
    return tuple(
        name
        for name in dict.fromkeys(asked)
        if name in possible and CRITERIA[name].origin != "draws"
    )


def not_offered(config: Config, run: Run) -> list[str]:
    """The criteria that are asked for and need a view that the sites of the model do not offer."""
    asked = (*config.pruning.site.criteria, *config.pruning.head.criteria)
    possible = offered(MODELS[run.model].view)
    return [name for name in dict.fromkeys(asked) if name not in possible]


def score(config: Config, run: Run) -> None:
    """Write `scores.parquet`, `maps.npz` and, where it is needed, `loss_drops.npy`.

    A run that left no weights has neither scores nor maps.
    """
    with stage_lock(config, run, "score"):
        started = time.perf_counter()
        folder = common.stage_folder(config, run, "score")
        source = Finished(runs.folder(config, run, "pretrain"))
        trained = source.metrics
        if scorable(trained):
            frame, maps, batches = _scored(config, run, folder, source)
        else:
            frame, maps, batches = pd.DataFrame(columns=list(COLUMNS)), {}, 0
        frame = frame.assign(epoch=trained["best_epoch"])[list(COLUMNS)]
        save_table(folder / "scores.parquet", frame)
        common.save_arrays(folder / "maps.npz", maps)
        drops = [LOSS_DROPS] if (folder / LOSS_DROPS).exists() else []
        write_record(
            folder,
            {
                **records.header(config, "score", run, trained["device"]),
                "digest": digests.settings_digest(config, "score", run),
                "epoch": trained["best_epoch"],
                "batches": batches,
                "not_offered": not_offered(config, run),
                "wall_s": time.perf_counter() - started,
            },
            ["scores.parquet", "maps.npz", *drops],
        )


def _scored(
    config: Config, run: Run, folder: Path, source: Finished
) -> tuple[pd.DataFrame, dict[str, NDArray[Any]], int]:
    """The scores, the attention maps by site, and how many batches there were.

    The loss drops go to their file.
    """
    _, splits = common.open_data(config, run.dataset, run)
    model = common.network(source, splits.train.device)
    batches = common.scoring_batches(config, run, splits.train)
    losses = case_losses(common.task_of(run))
    drops = _loss_drops(config, model, splits.validation, losses)
    if drops is not None:
        save_array(folder / LOSS_DROPS, drops)
    batch_size = common.settings_of(config, run).batch_size
    names = wanted(config, run)
    scored = scores.score(
        model,
        splits.train,
        batches,
        losses,
        [name for name in names if CRITERIA[name].origin != "pretraining"],
        batch_size=batch_size,
        validation=drops,
    )
    frames = [scores_frame.frame(scored)]
    if "send_train" in names:
        frames.append(scores_frame.send_train(source.table("scores.parquet")))
    maps = probe.attention_maps(model, splits.train, batches[:1], losses, batch_size=batch_size)
    return scores_frame.joined(frames), maps, len(batches)


def _loss_drops(
    config: Config, model: Forecaster, validation: Windows, losses: Losses
) -> NDArray[np.float64] | None:
    """Per-window validation losses without each site minus with it [sites, windows], in order."""
    site = config.pruning.site
    if "loss_drop_val" not in site.criteria and "loss_drop_bound" not in site.rules:
        return None
    index = torch.arange(len(validation), device=validation.device)
    return probe.loss_drops(model, validation, [index], losses)
