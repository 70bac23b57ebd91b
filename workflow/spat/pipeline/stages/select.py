"""select(run): choose masks by scores, without training and without importing torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from spat.attention.mask import Mask
from spat.models.registry import MODELS
from spat.pipeline import digests, records, runs, scores_frame, tasks
from spat.pipeline.cache import Finished, make_way, save_table, write_record
from spat.pipeline.config import Config, PruningSection
from spat.pipeline.runs import Run
from spat.scoring.names import CRITERIA, offered
from spat.surgery import choose
from spat.surgery.choose import Decision, Level

LOSS_DROPS = "loss_drops.npy"
SELECTIONS = "selections.csv"


def scorable(trained: Mapping[str, Any]) -> bool:
    """Whether pre-training saved weights, which it does unless it diverged in the first epoch."""
    return bool(trained["status"] == "ok" or trained["best_epoch"] > 0)


def select(config: Config, run: Run) -> None:
    """Write `selections.csv`: the control, and all decisions that need no fine-tuned masks.

    If pre-training saved no weights, nothing is selected.
    """
    folder = runs.folder(config, run, "select")
    trained = Finished(runs.folder(config, run, "pretrain")).metrics
    if scorable(trained):
        scored = Finished(runs.folder(config, run, "score"))
        scores = scored.table("scores.parquet")
        bounded = None
        if "loss_drop_bound" in config.pruning.site.rules:
            bounded = choose.loss_drop_bound(
                scored.array(LOSS_DROPS),
                block=tasks.of(run).block(run),
                draws=config.statistics.bootstrap,
                confidence=config.statistics.confidence,
                seed=run.seed_for("bootstrap"),
            )
        frame = requested(
            scores[scores["batch"] == scores_frame.ALL],
            trained["heads"],
            config.pruning,
            seed=run.seed_for("masks"),
            bounded=bounded,
            possible=offered(MODELS[run.model].views),
        )
        control = table([ruled("control", Mask.full(trained["heads"]))])
        frame = pd.concat([control, frame], ignore_index=True)
    else:
        frame = table([])
    write(folder / SELECTIONS, frame)
    write_record(
        folder,
        {
            **records.header(config, "select", run, trained["device"]),
            "digest": digests.settings_digest(config, "select", run),
            "decisions": len(frame),
            "masks": int(frame["mask"].nunique()),
        },
        [SELECTIONS],
    )


def requested(
    scores: pd.DataFrame,
    heads: Sequence[int],
    section: PruningSection,
    seed: int,
    bounded: Sequence[int] | None = None,
    possible: Collection[str] = tuple(CRITERIA),
) -> pd.DataFrame:
    """The decisions for a section of the configuration: see `choose.requested`.

    `scores` has one row per (site, head, criterion) with its value, and head -1 for the whole site.
    `possible` are the criteria that the sites offer; other criteria are left out, and so are
    adaptive rules that follow them.
    """
    return table(
        choose.requested(
            scores_frame.by_place(scores),
            heads,
            site=Level([n for n in section.site.criteria if n in possible], section.site.fixed),
            head=Level([n for n in section.head.criteria if n in possible], section.head.fixed),
            rules=section.site.rules if choose.RULED in possible else (),
            draws=section.draws,
            exhaustive=section.exhaustive,
            seed=seed,
            bounded=bounded,
        )
    )


def ruled(criterion: str, mask: Mask, rule: str = "", finetunings: int = 0) -> Decision:
    """A decision for whole sites that was not made by a fixed ratio."""
    removed = len(mask.sites_removed)
    return Decision(criterion, 0, "site", math.nan, rule, removed, mask.name, finetunings)


def table(decisions: Iterable[Decision]) -> pd.DataFrame:
    """One row per decision; all columns exist even without decisions."""
    frame = pd.DataFrame(list(decisions), columns=[field.name for field in fields(Decision)])
    return frame.astype({"ratio": "float64", "draw": "int64", "removed": "int64"})


def write(path: Path, decisions: pd.DataFrame) -> None:
    """Write decisions as CSV."""
    make_way(path.parent)
    save_table(path, decisions)


def read(config: Config, run: Run, stage: str) -> pd.DataFrame:
    """Read the decisions that `select` or `decide` wrote.

    Raises:
        DamagedError: naming the file, if it is damaged or has a mask that does not fit the run.
    """
    folder = runs.folder(config, run, stage)
    files = Finished(folder)
    frame = files.table(SELECTIONS, dtype={"mask": str, "rule": str})
    heads = Finished(runs.folder(config, run, "pretrain")).metrics["heads"]
    try:
        for name in frame["mask"].unique():
            Mask.parse(str(name), heads)
    except ValueError as error:
        raise files.damaged(f"{folder / SELECTIONS}: {error}") from None
    return frame.assign(rule=frame["rule"].fillna(""))
