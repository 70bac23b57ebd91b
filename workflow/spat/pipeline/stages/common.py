"""Functions that several stages use: the data of a run, its settings, batches and dense model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from spat.attention.mask import Mask
from spat.files import replacing
from spat.models.base import Network
from spat.models.registry import MODELS, Setup, build
from spat.pipeline import records, runs, tasks
from spat.pipeline.cache import Finished
from spat.pipeline.config import Config, FinetuneSection
from spat.pipeline.runs import Run
from spat.surgery import storage
from spat.tasks.registry import task_named
from spat.tasks.task import Cases, Splits, Task
from spat.training.loop import Settings, choose_device, prepare_torch


class Data(Protocol):
    """The interface to the data of a task, such as `spat.pipeline.stages.forecasting`."""

    def opened(
        self, config: Config, dataset: str, run: Run, device: torch.device
    ) -> tuple[str, Splits]:
        """The hash of a prepared dataset, and its cases on a device for the run's setting."""

    def examples(self, model: Network, task: Task, cases: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Named arrays of a few cases of the test split, for figures."""


@dataclass(frozen=True)
class Opened:
    """A run opened by a job: its data on the device, and its settings as plain values.

    A job opens its run once. Functions that the job calls take values from here instead of the
    configuration.
    """

    run: Run
    task: Task
    splits: Splits
    data_sha256: str
    shape: Any  # the shape of the model
    setup: Setup
    training: Settings  # settings of pre-training
    finetuning: Settings
    batches: list[torch.Tensor]  # the training cases that are scored
    header: Callable[[], dict[str, Any]]  # the part of a record that all jobs have

    @property
    def device(self) -> torch.device:
        """The device of the data and of the computation."""
        return self.splits.train.device

    def untrained(self) -> Network:
        """The dense model with its initial weights."""
        settings, seed = self.setup.settings, self.run.seed_for("weights")
        return build(self.run.model, settings, self.shape, seed).to(self.device)


def opened(config: Config, run: Run, stage: str) -> Opened:
    """Open a run for a stage.

    Raises:
        FileNotFoundError: in stages after `pretrain`, if pre-training has not yet chosen among the
            learning rates of the run.
    """
    sha256, splits = open_data(config, run.dataset, run)
    setup = runs.setup_of(config, run)
    rate = setup.recipe.learning_rate if stage == "pretrain" else None
    training = settings_of(config, run, rate)
    device = device_name(splits.train.device)
    return Opened(
        run,
        task_of(run),
        splits,
        sha256,
        shape_of(config, run),
        setup,
        training,
        _restarted(training, config.finetune),
        scoring_batches(config, run, splits.train),
        partial(records.header, config, stage, run, device),
    )


def open_data(config: Config, dataset: str, run: Run) -> tuple[str, Splits]:
    """The hash of a prepared dataset, and its cases on the training device for the run's setting.

    `dataset` is the dataset of the run, or one that the run is transferred to.

    Raises:
        FileNotFoundError: naming the file of the dataset, if it was not prepared.
    """
    prepare_torch(config.training.precision)
    device = choose_device(config.training.device)
    try:
        return data_of(run).opened(config, dataset, run, device)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} does not exist. With Snakemake or `grid`, run the same command "
            f"again. By hand, first run `python -m spat prepare --config FILE --dataset {dataset}`"
        ) from None


def data_of(run: Run) -> Data:
    """The module of the run's task.

    It is imported by name, so that the code digest of a run has no code of other tasks.
    """
    return cast(Data, importlib.import_module(f"spat.pipeline.stages.{MODELS[run.model].task}"))


def task_of(run: Run) -> Task:
    """The task of the run's model."""
    return task_named(MODELS[run.model].task)


def shape_of(config: Config, run: Run) -> Any:
    """The shape of the run's model."""
    settings = runs.setup_of(config, run).settings
    return tasks.of(run).shape(config, run, time_features=settings.uses_marks)


def settings_of(config: Config, run: Run, learning_rate: float | None = None) -> Settings:
    """The settings of pre-training of the run's dense model.

    If the variant tries several learning rates and `learning_rate` is None, the rate is the one
    that pre-training chose.
    """
    recipe = runs.setup_of(config, run).recipe
    if learning_rate is None and len(runs.learning_rates(config, run)) > 1:
        trained = Finished(runs.folder(config, run, "pretrain")).metrics
        learning_rate = trained["recipe"]["learning_rate"]
    if learning_rate is not None:
        recipe = replace(recipe, learning_rate=learning_rate)
    return Settings(**asdict(recipe), precision=config.training.precision)


def _restarted(training: Settings, section: FinetuneSection) -> Settings:
    """The settings of pre-training with the schedule restarted and without early stopping."""
    return replace(
        training,
        learning_rate=training.learning_rate * section.lr_scale,
        epochs=section.epochs,
        patience=None,
    )


def scoring_batches(config: Config, run: Run, cases: Cases) -> list[torch.Tensor]:
    """The batches that are scored, drawn without replacement with a seed of the run."""
    wanted = config.scoring.batches * config.scoring.batch_size
    generator = torch.Generator().manual_seed(run.seed_for("scoring"))
    drawn = torch.randperm(len(cases), generator=generator)[:wanted].to(cases.device)
    return list(torch.split(drawn, config.scoring.batch_size))


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def full_mask(heads: tuple[int, ...]) -> str:
    """The name of the mask that keeps everything (the control)."""
    return Mask.full(heads).name


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write named arrays as `.npz`, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(arrays))


def network(trained: Finished, device: str | torch.device) -> Network:
    """The network of a finished folder, its files checked, in `eval()`.

    Raises:
        DamagedError: naming the file that is missing or damaged.
    """
    for name in (storage.ARCHITECTURE, storage.WEIGHTS):
        trained.path(name)
    try:
        return storage.load(trained.folder, device)
    except storage.DamagedNetworkError as error:
        raise trained.wrong(str(error)) from None


def stage_folder(config: Config, run: Run, stage: str) -> Path:
    """The folder `results/<experiment>/<run>/<stage>`, created if it does not exist."""
    folder = runs.folder(config, run, stage)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
