"""Helpers of several stages: the data of a run, its settings, batches and dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spat.attention.mask import Mask
from spat.data import series
from spat.data.series import Prepared
from spat.data.windows import Splits, Windows, split
from spat.files import replacing
from spat.models.registry import MODELS, Setup, Shape, build
from spat.pipeline import records, runs
from spat.pipeline.cache import Finished
from spat.pipeline.config import Config, FinetuneSection
from spat.pipeline.runs import Run
from spat.surgery import storage
from spat.tasks.registry import TASKS
from spat.tasks.task import Task
from spat.training.loop import Settings, choose_device, prepare_torch

if TYPE_CHECKING:
    from spat.models.base import Forecaster

# Test windows whose forecasts are kept for the pictures.
EXAMPLE_WINDOWS = 3


@dataclass(frozen=True)
class Opened:
    """A run as a job sees it: its data on the device, and its part of the configuration as values.

    A job opens it once. What the job calls takes values from here, and not the configuration.
    """

    run: Run
    task: Task
    splits: Splits
    data_sha256: str
    shape: Shape
    setup: Setup
    training: Settings  # of pre-training
    finetuning: Settings
    batches: list[torch.Tensor]  # the training windows that are scored
    header: Callable[[], dict[str, Any]]  # the part of a record that is the same for every job

    @property
    def device(self) -> torch.device:
        """Where the data are, and where the run is computed."""
        return self.splits.train.device

    def untrained(self) -> Forecaster:
        """The dense model with its initial weights."""
        settings, seed = self.setup.settings, self.run.seed_for("weights")
        return build(self.run.model, settings, self.shape, seed).to(self.device)


def opened(config: Config, run: Run, stage: str) -> Opened:
    """Read what a stage needs of a run.

    Raises:
        FileNotFoundError: after the stage `pretrain`, if pre-training has not chosen one of the
            learning rates of the run.
        ValueError: if the variant uses time features and the data have no time stamps.
    """
    prepared, splits = open_data(config, run.dataset, run)
    setup = runs.setup_of(config, run)
    rate = setup.recipe.learning_rate if stage == "pretrain" else None
    training = settings_of(config, run, rate)
    device = device_name(splits.train.device)
    return Opened(
        run,
        task_of(run),
        splits,
        prepared.sha256,
        shape_of(config, run, prepared),
        setup,
        training,
        _restarted(training, config.finetune),
        scoring_batches(config, run, splits.train),
        partial(records.header, config, stage, run, device),
    )


def open_data(config: Config, dataset: str, run: Run) -> tuple[Prepared, Splits]:
    """The prepared dataset and its windows on the training device, in the run's shape."""
    prepare_torch(config.training.precision)
    prepared = series.load(runs.prepared_file(config, dataset))
    device = choose_device(config.training.device)
    return prepared, split(prepared, run.lookback, run.horizon, device=str(device))


def task_of(run: Run) -> Task:
    """What the run's model is for."""
    return TASKS[MODELS[run.model].task]


def shape_of(config: Config, run: Run, prepared: Prepared) -> Shape:
    """The model's outer shape for a prepared dataset."""
    marks = 0
    if runs.setup_of(config, run).settings.uses_marks:
        if prepared.marks is None:
            raise ValueError(
                f"{run.path}: variant {run.variant!r} uses time features, but {prepared.name} has "
                "no time stamps; use the variant 'deep'"
            )
        marks = prepared.marks.shape[1]
    return Shape(run.lookback, run.horizon, prepared.values.shape[1], marks)


def settings_of(config: Config, run: Run, learning_rate: float | None = None) -> Settings:
    """How the run's dense model is pre-trained.

    Where a variant tries several learning rates and none is given, the one that pre-training chose.
    """
    recipe = runs.setup_of(config, run).recipe
    if learning_rate is None and len(runs.learning_rates(config, run)) > 1:
        trained = Finished(runs.folder(config, run, "pretrain")).metrics
        learning_rate = trained["recipe"]["learning_rate"]
    if learning_rate is not None:
        recipe = replace(recipe, learning_rate=learning_rate)
    return Settings(**asdict(recipe), precision=config.training.precision)


def finetuning_of(config: Config, run: Run) -> Settings:
    """How the run's pruned models are fine-tuned."""
    return _restarted(settings_of(config, run), config.finetune)


def _restarted(training: Settings, section: FinetuneSection) -> Settings:
    """The optimiser of pre-training, its schedule restarted, and no early stopping."""
    return replace(
        training,
        learning_rate=training.learning_rate * section.lr_scale,
        epochs=section.epochs,
        patience=None,
    )


def scoring_batches(config: Config, run: Run, windows: Windows) -> list[torch.Tensor]:
    """The batches that are scored: drawn once per run from its own seed, without replacement."""
    wanted = config.scoring.batches * config.scoring.batch_size
    generator = torch.Generator().manual_seed(run.seed_for("scoring"))
    drawn = torch.randperm(len(windows), generator=generator)[:wanted].to(windows.device)
    return list(torch.split(drawn, config.scoring.batch_size))


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the card."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@torch.inference_mode()
def example_forecasts(
    model: Forecaster, task: Task, windows: Windows
) -> dict[str, np.ndarray[Any, Any]]:
    """A few test windows, evenly spaced: the last channel's input, truth, forecast [W, steps]."""
    index = torch.linspace(0, len(windows) - 1, EXAMPLE_WINDOWS, device=windows.device).long()
    batch = windows.batch(index)
    forecast = task.forward(model.eval(), batch)
    return {
        "window": index.cpu().numpy(),
        "input": batch.x[..., -1].cpu().numpy(),
        "truth": batch.y[..., -1].cpu().numpy(),
        "forecast": forecast[..., -1].float().cpu().numpy(),
    }


def full_mask(heads: tuple[int, ...]) -> str:
    """The name of the mask that keeps everything: the control's."""
    return Mask.full(heads).name


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write named arrays as `.npz`, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(arrays))


def network(trained: Finished, device: str | torch.device) -> Forecaster:
    """The network of a finished folder, its files checked, in `eval()`.

    Raises:
        DamagedError: naming the file that is missing or damaged.
    """
    for name in (storage.ARCHITECTURE, storage.WEIGHTS):
        trained.path(name)
    return storage.load(trained.folder, device)


def stage_folder(config: Config, run: Run, stage: str) -> Path:
    """`results/<experiment>/<run>/<stage>`, made if need be."""
    folder = runs.folder(config, run, stage)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
