"""The two training loops as contestants: a lap is an epoch of a short series."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import conventional
import networks
import torch
from cases import Case
from torch import nn

from spat.evaluation.metrics import evaluate
from spat.training.loop import Seeds, Settings, fit, prepare_torch


class OurLoop:
    """`spat.training.fit`: training and a validation pass."""

    def __init__(self, case: Case) -> None:
        self.model = case.build()
        self._splits = case.splits
        self._settings = Settings(case.hyper.learning_rate, case.hyper.batch_size, epochs=1)
        self._turn = 0

    def __call__(self) -> float:
        """An epoch; its training windows."""
        prepare_torch("float32")
        self._turn += 1
        seeds = Seeds(order=self._turn, dropout=self._turn)
        with contextlib.redirect_stderr(io.StringIO()):  # a line an epoch
            fit(self.model, self._splits, self._settings, seeds)
        return float(len(self._splits.train))


class ConventionalLoop:
    """The loop of the field: training, a validation and a test pass. It starts from our weights."""

    def __init__(self, case: Case, workers: int, threads: int = 1) -> None:
        self.model = networks.twin(case.build())
        self._rate = case.hyper.learning_rate
        self._threads = threads
        self._windows = len(case.splits.train)
        self._data = conventional.loaders(
            case.prepared, case.lookback, case.horizon, case.hyper.batch_size, workers
        )

    def __call__(self) -> float:
        """An epoch; its training windows."""
        with as_published(self._threads):
            conventional.train(self.model, self._data, self._rate, epochs=1)
        return float(self._windows)


def validation_mse(model: nn.Module, case: Case) -> float:
    """Of either network, on the validation windows of the case."""
    return evaluate(model, case.splits.validation).mse


@contextlib.contextmanager
def as_published(threads: int) -> Iterator[None]:
    """Torch as the field leaves it, but for the number of threads."""
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    yield
    prepare_torch("float32")
