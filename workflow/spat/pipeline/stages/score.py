"""score(run): compute all requested criteria of the kept checkpoint in one pass."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray

from spat.models.registry import MODELS
from spat.pipeline import digests, records, runs, scores_frame
from spat.pipeline.cache import Finished, save_array, save_table, stage_lock, write_record
from spat.pipeline.config import Config, LevelSection, PruningSection
from spat.pipeline.runs import Run
from spat.pipeline.stages import common
from spat.pipeline.stages.common import Opened
from spat.pipeline.stages.select import LOSS_DROPS, scorable
from spat.scoring import probe, scores
from spat.scoring.names import CRITERIA, offered
from spat.tasks.task import case_losses

COLUMNS = ("epoch", "batch", "site", "name", "head", "criterion", "value")


def computed(section: PruningSection, model: str) -> tuple[str, ...]:
    """The criteria of both levels, and `send` for the figures, if the model offers them."""
    asked = ("send", *section.site.criteria, *section.head.criteria)
    possible = offered(MODELS[model].views)
    return tuple(
        name
        for name in dict.fromkeys(asked)
        if name in possible and CRITERIA[name].origin != "draws"
    )


def not_offered(section: PruningSection, model: str) -> list[str]:
    """The criteria of a configuration that need a view that the model's sites do not offer."""
    asked = (*section.site.criteria, *section.head.criteria)
    possible = offered(MODELS[model].views)
    return [name for name in dict.fromkeys(asked) if name not in possible]


def score(config: Config, run: Run) -> None:
    """Write `scores.parquet`, `maps.npz` and, if needed, `loss_drops.npy`.

    If pre-training saved no weights, scores and maps are empty.
    """
    with stage_lock(config, run, "score"):
        started = time.perf_counter()
        folder = common.stage_folder(config, run, "score")
        source = Finished(runs.folder(config, run, "pretrain"))
        trained = source.metrics
        if scorable(trained):
            opened = common.opened(config, run, "score")
            names = computed(config.pruning, run.model)
            with_drops = _needs_drops(config.pruning.site)
            frame, maps = _scored(
                opened, source, names, folder / LOSS_DROPS if with_drops else None
            )
            batches = len(opened.batches)
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
                "not_offered": not_offered(config.pruning, run.model),
                "wall_s": time.perf_counter() - started,
            },
            ["scores.parquet", "maps.npz", *drops],
        )


def _needs_drops(section: LevelSection) -> bool:
    """Whether a criterion or rule needs the losses of validation windows without each site."""
    return "loss_drop_val" in section.criteria or "loss_drop_bound" in section.rules


def _scored(
    opened: Opened, source: Finished, names: Collection[str], drops_file: Path | None
) -> tuple[pd.DataFrame, dict[str, NDArray[Any]]]:
    """The scores, and the attention maps by site.

    If `drops_file` is given, the per-window validation losses without each site minus with it are
    written to it, [sites, windows] in the order of the windows.
    """
    splits, batches, batch_size = opened.splits, opened.batches, opened.training.batch_size
    model = common.network(source, opened.device)
    losses = case_losses(opened.task)
    drops = None
    if drops_file is not None:
        index = torch.arange(len(splits.validation), device=opened.device)
        drops = probe.loss_drops(model, splits.validation, [index], losses)
        save_array(drops_file, drops)
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
    return scores_frame.joined(frames), maps
