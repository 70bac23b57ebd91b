"""pretrain(run): train and evaluate the dense model, and record SEND after every epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from spat.models.base import Network
from spat.models.registry import MODELS
from spat.pipeline import digests, records, runs, scores_frame
from spat.pipeline.cache import Kept, save_array, save_table, stage_lock
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.stages import common
from spat.pipeline.stages.common import Opened
from spat.scoring.names import offered
from spat.scoring.send import score_send
from spat.surgery import cut, storage
from spat.tasks.task import Task, case_losses
from spat.training.device import costs
from spat.training.loop import Fit, Seeds, fit
from spat.training.metrics import evaluate

OUTPUTS = (
    "model.safetensors",
    "architecture.json",
    "history.csv",
    "scores.parquet",
    "losses.npy",
    "forecasts.npz",
    "metrics.json",
)
TRAJECTORY = ("epoch", "site", "name", "head", "criterion", "value")


def pretrain(config: Config, run: Run) -> None:
    """Train the dense model, or use the kept result of an earlier job."""
    with stage_lock(config, run, "pretrain"):
        folder = common.stage_folder(config, run, "pretrain")
        opened = common.opened(config, run, "pretrain")
        digest = records.digest(
            digests.code_digest("pretrain", run.model),
            digests.settings(config, "pretrain", run),
            opened.data_sha256,
        )
        kept = Kept(folder / "kept", digest)
        rates = runs.learning_rates(config, run)
        several = len(rates) > 1
        states = {
            rate: kept.state.with_stem(f"state-{rate:g}") if several else kept.state
            for rate in rates
        }
        if not kept.done:
            _write(opened, [_train(opened, rate, state) for rate, state in states.items()], kept)
        for state in states.values():
            state.unlink(missing_ok=True)
        kept.publish(folder, OUTPUTS)


@dataclass(frozen=True)
class Trained:
    """A dense model that was trained with one learning rate."""

    learning_rate: float
    model: Network
    fitted: Fit

    @property
    def validation(self) -> float:
        """The validation error of the kept epoch; infinite if the first epoch diverged."""
        return self.fitted.best


def _train(opened: Opened, rate: float, state: Path) -> Trained:
    """Train with one learning rate; resumes from the file `state` if it exists."""
    run, task, splits = opened.run, opened.task, opened.splits
    model = opened.untrained()
    if not any(True for _ in model.parameters()):
        return Trained(rate, model, Fit("ok", 0, 0, math.inf, [], [], 0.0))
    settings = replace(opened.training, learning_rate=rate)
    recorded = "send" in offered(MODELS[run.model].views)

    def record(epoch: int, trained: Network) -> list[dict[str, Any]]:
        if not recorded or not trained.sites():
            return []
        scored = score_send(
            trained,
            splits.train,
            opened.batches,
            case_losses(task),
            batch_size=settings.batch_size,
        )
        frame = scores_frame.aggregate(scores_frame.frame(scored)).assign(epoch=epoch)
        return [
            dict(zip(TRAJECTORY, row, strict=True))
            for row in frame[list(TRAJECTORY)].itertuples(index=False)
        ]

    fitted = fit(
        model,
        task,
        splits,
        settings,
        Seeds(order=run.seed_for("order", 0), dropout=run.seed_for("dropout")),
        state=state,
        after_epoch=record,
        label=run.path,
    )
    return Trained(rate, model, fitted)


def _write(opened: Opened, tried: Sequence[Trained], kept: Kept) -> None:
    """Write the results of the learning rate with the best validation error."""
    best = min(tried, key=lambda trained: (trained.fitted.status != "ok", trained.validation))
    model, fitted = best.model, best.fitted
    task, splits = opened.task, opened.splits
    storage.save(model, kept.folder)
    history = pd.DataFrame(fitted.history, columns=_history(task))
    save_table(kept.folder / "history.csv", history)
    trajectory = pd.DataFrame(fitted.recorded, columns=list(TRAJECTORY))
    save_table(kept.folder / "scores.parquet", trajectory)
    validation = evaluate(model, task, splits.validation)
    test = evaluate(model, task, splits.test)
    batch = task.example(model.shape, device=opened.device)
    save_array(kept.folder / "losses.npy", test.losses)
    examples = common.data_of(opened.run).examples(model, task, splits.test)
    common.save_arrays(kept.folder / "forecasts.npz", examples)
    kept.finish(
        {
            **opened.header(),
            "status": fitted.status,
            "data_sha256": opened.data_sha256,
            "settings": asdict(model.settings),
            "recipe": asdict(replace(opened.setup.recipe, learning_rate=best.learning_rate)),
            "learning_rates": [
                {
                    "learning_rate": t.learning_rate,
                    "validation": t.validation if math.isfinite(t.validation) else None,
                    "epochs": t.fitted.epochs,
                    "status": t.fitted.status,
                }
                for t in tried
            ],
            "sites": [site.name for site in model.sites()],
            "heads": [site.heads for site in model.sites()],
            "mask": common.full_mask(cut.heads_of(model)),
            "params": costs.parameters(model),
            "flops": costs.flops(model, task, batch),
            "wall_s": fitted.seconds,
            "epochs": fitted.epochs,
            "best_epoch": fitted.best_epoch,
            "errors": {
                "validation": validation.means,
                "test": test.means,
            },
        }
    )


def _history(task: Task) -> list[str]:
    """The columns of the history, also for a model that is not trained."""
    names = [metric.name for metric in task.metrics]
    errors = [f"train_{names[0]}", *(f"val_{name}" for name in names)]
    return ["epoch", *errors, "learning_rate", "seconds"]
