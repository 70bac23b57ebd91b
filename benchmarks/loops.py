"""The two training loops as contestants. A lap is an epoch of a short series."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import conventional
import networks
import torch
from cases import TASK, Case
from torch import nn

from spat.training.loop import Seeds, Settings, fit, prepare_torch
from spat.training.metrics import evaluate


class OurLoop:
    """The loop `spat.training.fit`: training and a validation pass."""

    def __init__(self, case: Case, device: str = "cpu", epochs: int = 1) -> None:
        """On a card, several epochs of a lap share one capture of the step, as in a run."""
        self.model = case.build().to(device)
        self._splits = case.splits if device == "cpu" else case.splits_on(device)
        self._settings = Settings(case.recipe.learning_rate, case.recipe.batch_size, epochs)
        self._turn = 0

    def __call__(self) -> float:
        """Train the epochs; return the number of training windows."""
        with quiet():
            return self.train()

    def train(self) -> float:
        """Train the epochs and print a line for each; return the number of training windows."""
        prepare_torch("float32")
        self._turn += 1
        seeds = Seeds(order=self._turn, dropout=self._turn)
        fit(self.model, TASK, self._splits, self._settings, seeds)
        return float(len(self._splits.train) * self._settings.epochs)


class ConventionalLoop:
    """The conventional loop: training, a validation and a test pass, from the same weights."""

    def __init__(self, case: Case, workers: int, threads: int = 1, device: str = "cpu") -> None:
        self.model = networks.twin(case.build()).to(device)
        self._rate = case.recipe.learning_rate
        self._threads = threads
        self._windows = len(case.splits.train)
        self._data = conventional.loaders(
            case.prepared, case.lookback, case.horizon, case.recipe.batch_size, workers
        )

    def __call__(self) -> float:
        """Train an epoch; return the number of training windows."""
        with as_published(self._threads):
            conventional.train(self.model, self._data, self._rate, epochs=1)
        return float(self._windows)


def validation_mse(model: nn.Module, case: Case) -> float:
    """The error of either network on the validation windows of the case."""
    return evaluate(model, TASK, case.splits.validation).primary


def quiet() -> contextlib.AbstractContextManager[object]:
    """Context manager: drop what all threads write to stderr."""
    return contextlib.redirect_stderr(io.StringIO())


@contextlib.contextmanager
def as_published(threads: int) -> Iterator[None]:
    """Context manager: torch with its default settings, except the number of threads."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(threads)
    yield
    prepare_torch("float32")
