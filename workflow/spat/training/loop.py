"""The training loop: epochs, early stopping on validation, and resumption after each epoch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spat.models.settings import Schedule
from spat.tasks.task import Cases, Splits, Task
from spat.training.device.concurrency import is_one_of_several
from spat.training.device.kernels import (
    cards,
    draws_globally,
    global_generator,
    keep_freed_memory,
)
from spat.training.metrics import evaluate
from spat.training.optimisation import adam, rate_at, set_rate
from spat.training.options import Device, Precision
from spat.training.state import Progress, restore, save
from spat.training.step import training_step

# Seconds between two saved states: on a GPU an epoch may take less time than writing the state.
SAVE_EVERY: Final = {"cpu": 0.0, "cuda": 20.0}


@dataclass(frozen=True)
class Restart:
    """After this many epochs the learning-rate schedule restarts with this rate."""

    after: int
    learning_rate: float


@dataclass(frozen=True)
class Settings:
    """Settings of training: those of a `Recipe`, and the device and precision.

    If `patience` is None, all epochs are trained.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    patience: int | None = None
    schedule: Schedule = "type1"
    weight_decay: float = 0.0
    sam_rho: float | None = None
    share: float = 1.0
    precision: Precision = "float32"
    restart: Restart | None = None

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch (1, 2, ...)."""
        if self.restart is not None and epoch > self.restart.after:
            after = epoch - self.restart.after
            return rate_at(after, self.restart.learning_rate, self.schedule)
        return rate_at(epoch, self.learning_rate, self.schedule)


@dataclass(frozen=True)
class Seeds:
    """Seeds of training: `order` for the batches, `dropout` for random numbers in the model."""

    order: int
    dropout: int


@dataclass(frozen=True)
class Fit:
    """The result of training; the model itself holds the weights of the best epoch.

    `status` is `ok`, or `diverged` if a loss was not finite. `recorded` contains the values that
    `after_epoch` returned, of all epochs.
    """

    status: str
    epochs: int
    best_epoch: int
    best: float
    history: list[dict[str, float]]
    recorded: list[dict[str, Any]]
    seconds: float


AfterEpoch = Callable[[int, Any], list[dict[str, Any]]]


def choose_device(wanted: Device) -> torch.device:
    """CUDA if `wanted` allows it and it is available, else the CPU.

    Raises:
        RuntimeError: if `wanted` is "cuda" and CUDA is not available.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "training.device is 'cuda', but torch finds no CUDA device: use 'auto' or 'cpu'"
        )
    name = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    return torch.device(name)


def prepare_torch(precision: Precision) -> None:
    """Set torch to reproducible arithmetic: one CPU thread, deterministic kernels, no TF32.

    TF32 is used only if `precision` is "tf32".
    """
    torch.set_num_threads(1)
    # Equals `use_deterministic_algorithms`, which would import the compiler and take over a second.
    torch.set_deterministic_debug_mode("warn")
    # Deterministic mode would also fill new tensors with NaN, a tenth of a step of a small model.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    # cuDNN convolutions would use TF32 by default, independently of the matmul precision.
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def fit(
    model: nn.Module,
    task: Task,
    splits: Splits,
    settings: Settings,
    seeds: Seeds,
    *,
    state: Path | None = None,
    after_epoch: AfterEpoch | None = None,
    label: str = "",
) -> Fit:
    """Train on `splits.train` and choose the epoch by `splits.validation`.

    The test split is not read. With `state`, progress is saved to this file after epochs
    (`SAVE_EVERY`), and training resumes from it.

    If the model draws from torch's global generator (`nn.Dropout`), this generator is seeded with
    `seeds.dropout` and is part of the saved state; the caller's random numbers do not change.

    Raises:
        ValueError: if the model draws from the global generator, and the process has several
            workers (`spat.training.device.concurrency.Workers`), which share the generator.
    """
    device = splits.train.device
    first = splits.train.batch(torch.arange(min(2, len(splits.train)), device=device))
    if not draws_globally(model, lambda: task.forward(model, first), device):
        return _fit(model, task, splits, settings, seeds, {}, state, after_epoch, label)
    if is_one_of_several():
        raise ValueError(
            f"{label or type(model).__name__}: the model draws random numbers from torch's global "
            "generator (as `nn.Dropout` does), which all workers of a process share, so the result "
            "would depend on other workers: train it with `--concurrency 1`, or build the model "
            "with `spat.training.device.kernels.Dropout`"
        )
    with torch.random.fork_rng(devices=cards(device)):
        shared = global_generator(device)
        shared.manual_seed(seeds.dropout)
        return _fit(
            model, task, splits, settings, seeds, {"global": shared}, state, after_epoch, label
        )


def _fit(
    model: nn.Module,
    task: Task,
    splits: Splits,
    settings: Settings,
    seeds: Seeds,
    shared: Mapping[str, torch.Generator],
    state: Path | None,
    after_epoch: AfterEpoch | None,
    label: str,
) -> Fit:
    optimiser = adam(model, settings.learning_rate, settings.weight_decay)
    order = torch.Generator().manual_seed(seeds.order)
    dropout = torch.Generator(splits.train.device).manual_seed(seeds.dropout)
    primary = task.metrics[0].name
    drawn = {"order": order, "dropout": dropout, **shared}
    progress = restore(state, model, optimiser, drawn) if state else Progress()
    with training_step(
        model, task, splits.train, optimiser, dropout, settings.precision, settings.sam_rho
    ) as step:
        saved, pause = time.monotonic(), SAVE_EVERY[splits.train.device.type]
        cases = math.ceil(settings.share * len(splits.train))
        report = _Reporter(label, settings.epochs, cases, primary)
        while not _finished(progress, settings):
            started = time.perf_counter()
            rate = settings.rate(progress.epoch + 1)
            set_rate(optimiser, rate)
            model.train()
            batches = _batches(splits.train, cases, settings.batch_size, order)
            losses = [step(index) for index in report.steps(batches)]
            train_loss = float(torch.stack(losses).double().sum()) / cases
            validation = evaluate(model, task, splits.validation)
            row = {
                "epoch": progress.epoch + 1,
                f"train_{primary}": train_loss,
                **{f"val_{name}": mean for name, mean in validation.means.items()},
                "learning_rate": rate,
                "seconds": time.perf_counter() - started,
            }
            progress.add(row, model, train_loss, validation.primary)
            report.epoch(row)
            if after_epoch is not None and progress.status == "ok":
                progress.recorded += after_epoch(progress.epoch, model)
            if state is not None and time.monotonic() - saved >= pause:
                save(state, progress, model, optimiser, drawn)
                saved = time.monotonic()
    if progress.best_weights:
        model.load_state_dict(progress.best_weights)
    return Fit(
        status=progress.status,
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        best=progress.best,
        history=progress.history,
        recorded=progress.recorded,
        seconds=sum(row["seconds"] for row in progress.history),
    )


def _finished(progress: Progress, settings: Settings) -> bool:
    out_of_patience = settings.patience is not None and progress.waited >= settings.patience
    return progress.epoch >= settings.epochs or out_of_patience or progress.status != "ok"


def _batches(
    cases: Cases, drawn: int, batch_size: int, order: torch.Generator
) -> tuple[Tensor, ...]:
    """The first `drawn` cases of a new random order; the last batch may be smaller."""
    shuffled = torch.randperm(len(cases), generator=order)[:drawn].to(cases.device)
    return torch.split(shuffled, batch_size)


class _Reporter:
    """Reports progress: a bar in a terminal, or one line per epoch in a log."""

    def __init__(self, label: str, epochs: int, cases: int, metric: str) -> None:
        self._label, self._epochs, self._cases, self._metric = label, epochs, cases, metric
        self._interactive = sys.stderr.isatty()

    def steps(self, batches: tuple[Tensor, ...]) -> Iterator[Tensor]:
        return iter(tqdm(batches, desc=self._label, leave=False, disable=not self._interactive))

    def epoch(self, row: dict[str, float]) -> None:
        left = (self._epochs - row["epoch"]) * row["seconds"]
        print(
            f"{self._label} epoch {row['epoch']:.0f}/{self._epochs}: "
            f"train {self._metric} {row[f'train_{self._metric}']:.4f}, "
            f"validation {self._metric} {row[f'val_{self._metric}']:.4f}, "
            f"{self._cases / row['seconds']:.0f} cases/s, at most {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
