"""prune(run): prune and fine-tune each distinct mask once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from spat.attention.mask import Mask
from spat.pipeline import digests, records, runs
from spat.pipeline.cache import (
    MANIFEST,
    SITES,
    DamagedError,
    Finished,
    Kept,
    save_array,
    save_table,
    stage_lock,
    write_record,
)
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.stages import common, select
from spat.pipeline.stages.common import Opened
from spat.pipeline.stages.trained import Job, files_of, manifest_of_sites
from spat.surgery import cut, storage
from spat.training.device import costs
from spat.training.device.concurrency import Execute, in_turn
from spat.training.loop import Restart, Seeds, Settings, fit
from spat.training.metrics import Errors, evaluate


def prune(
    config: Config,
    run: Run,
    orders: int = 1,
    execute: Execute = in_turn,
    *,
    only_sites: bool = False,
) -> None:
    """Train every mask that `select` chose and list them in `manifest.json`.

    If single heads are pruned, too, the masks of whole sites are also listed in `sites.json`; with
    `only_sites`, only these are trained. `execute` runs the jobs, in turn or concurrently; the
    results do not depend on it.
    """
    with stage_lock(config, run, "prune"):
        decisions = select.read(config, run, "select")
        jobs = required(decisions, orders, scratch=config.pruning.scratch)
        whole = set(decisions.loc[decisions["level"] == "site", "mask"])
        sites = [job for job in jobs if job.mask in whole]
        execute([partial(train_mask, config, run, job) for job in (sites if only_sites else jobs)])
        if manifest_of_sites(config) == SITES:
            _list(config, run, sites, SITES)
        if not only_sites:
            _list(config, run, jobs, MANIFEST)


def _list(config: Config, run: Run, jobs: Sequence[Job], name: str) -> None:
    """Write a manifest, unless `sites.json` has the same content.

    For Snakemake, a new `sites.json` would be a reason to run the jobs that depend on it again.
    """
    folder = common.stage_folder(config, run, "prune")
    values = {
        "digest": digests.settings_digest(config, "prune", run),
        "masks": [
            {
                "mask": job.mask,
                "order": job.order,
                "phase": job.phase,
                "sizes": files_of(config, run, job).sizes,
            }
            for job in jobs
        ],
    }
    if name == SITES:
        with contextlib.suppress(FileNotFoundError, DamagedError):
            before = Finished(folder, folder / name).record(name)
            if {key: before[key] for key in values} == values:
                return
    write_record(folder, {**records.header(config, "prune", run), **values}, name=name)


def required(decisions: pd.DataFrame, orders: int, *, scratch: bool) -> list[Job]:
    """The distinct networks behind the decisions of `select`, the control first.

    Masks of whole sites are fine-tuned with `orders` data orders. With `scratch`, SEND's masks and
    the control are also trained from random weights.
    """
    masks = decisions["mask"].drop_duplicates()
    jobs = [Job(mask, 0, "finetuned") for mask in masks]
    # Replicates measure the noise of differences between masks, for which site masks are enough.
    sites = decisions.loc[decisions["level"] == "site", "mask"].drop_duplicates()
    jobs += [Job(mask, order, "finetuned") for order in range(1, orders) for mask in sites]
    if scratch:
        chosen = decisions["criterion"].isin(["send", "control"]) & (decisions["level"] == "site")
        masks = decisions.loc[chosen, "mask"].drop_duplicates()
        jobs += [Job(mask, 0, "scratch") for mask in masks]
    return jobs


def train_mask(config: Config, run: Run, job: Job) -> None:
    """Prune, evaluate, fine-tune and evaluate a mask; the result is kept with a digest."""
    source = Finished(runs.folder(config, run, "pretrain"))
    # The name is checked before a folder of that name is opened or removed.
    dense_metrics = source.metrics
    mask = Mask.parse(job.mask, dense_metrics["heads"])
    opened = common.opened(config, run, "prune")
    digest = records.digest(
        digests.code_digest("prune", run.model),
        digests.settings(config, "finetune", run),
        opened.data_sha256,
        dense_metrics["files"][storage.WEIGHTS],
        job.mask,
        job.order,
        job.phase,
    )
    kept = Kept(files_of(config, run, job).folder, digest)
    if not kept.done:
        _train(opened, source, mask, job, kept)


def _train(opened: Opened, source: Finished, mask: Mask, job: Job, kept: Kept) -> None:
    """Train the network of a job, from the dense model in `source` or from scratch."""
    run, task, splits = opened.run, opened.task, opened.splits
    scratch = job.phase == "scratch"
    model = opened.untrained() if scratch else common.network(source, opened.device)
    batch = task.example(model.shape, device=opened.device)
    removed = cut.prune(model, mask, lambda: task.forward(model, batch))
    untuned = evaluate(model, task, splits.validation), evaluate(model, task, splits.test)
    fitted = fit(
        model,
        task,
        splits,
        _from_scratch(opened, source.metrics["epochs"]) if scratch else opened.finetuning,
        Seeds(
            order=run.seed_for("order", "finetune", job.order),
            dropout=run.seed_for("dropout", job.mask, job.order),
        ),
        state=kept.state,
        label=f"{run.path} {job.folder}",
    )
    tuned = evaluate(model, task, splits.validation), evaluate(model, task, splits.test)
    storage.save(model, kept.folder, mask)
    save_table(kept.folder / "history.csv", pd.DataFrame(fitted.history))
    save_array(kept.folder / "validation_losses.npy", tuned[0].losses)
    save_array(kept.folder / "losses.npy", tuned[1].losses)
    save_array(kept.folder / "untuned_losses.npy", untuned[1].losses)
    examples = common.data_of(run).examples(model, task, splits.test)
    common.save_arrays(kept.folder / "forecasts.npz", examples)
    kept.finish(
        {
            **opened.header(),
            "mask": job.mask,
            "order": job.order,
            "phase": job.phase,
            "status": fitted.status,
            "params": costs.parameters(model),
            "flops": costs.flops(model, task, batch),
            "swept_params": removed.swept,
            "dead_params": removed.dead,
            "wall_s": fitted.seconds,
            "epochs": fitted.epochs,
            "best_epoch": fitted.best_epoch,
            "errors": {"pruned": _errors(untuned), "finetuned": _errors(tuned)},
        }
    )


def _from_scratch(opened: Opened, before: int) -> Settings:
    """The steps and learning rates of pre-training, which took `before` epochs, and fine-tuning."""
    tuning = opened.finetuning
    return replace(
        opened.training,
        epochs=before + tuning.epochs,
        patience=None,
        restart=Restart(before, tuning.learning_rate),
    )


def _errors(errors: tuple[Errors, Errors]) -> dict[str, dict[str, float]]:
    return {
        "validation": errors[0].means,
        "test": errors[1].means,
    }
