"""The conventional training loop, with which the speed of this project is compared.

The loop is written like published code (the Time-Series-Library and the repositories of the two
papers): a Dataset that slices numpy for each window, with time features and decoder input, a
DataLoader with workers, `.item()` in each step, Adam with its defaults, a validation and a test
pass after every epoch. Its networks are in `networks.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from spat.data.series import Prepared

# The published scripts give the decoder half a lookback of known steps, even if the model has no
# decoder, and use ten workers.
LABEL = 48
WORKERS = 10
warnings.filterwarnings("ignore", message="This DataLoader will create 10 worker")

Item = tuple[NDArray[np.float64], ...]


class WindowDataset(Dataset[Item]):
    """Windows of stride 1 within the rows of a split; each is cut out of the arrays separately."""

    def __init__(
        self, prepared: Prepared, rows: tuple[int, int], lookback: int, horizon: int
    ) -> None:
        """`rows` are the borders of a split; inputs of all but the first split begin before it."""
        if prepared.marks is None:
            raise ValueError(f"{prepared.name}: the conventional loop needs time stamps")
        chosen = slice(max(0, rows[0] - lookback), rows[1])
        self.values = prepared.values[chosen].astype(np.float64)
        self.marks = prepared.marks[chosen].astype(np.float64)
        self.lookback, self.horizon = lookback, horizon
        self.label = min(LABEL, lookback)

    def __len__(self) -> int:
        return len(self.values) - self.lookback - self.horizon + 1

    def __getitem__(self, index: int) -> Item:
        """Past [L, C], label and future [label + H, C], and the marks of both."""
        middle = index + self.lookback
        past = slice(index, middle)
        future = slice(middle - self.label, middle + self.horizon)
        return self.values[past], self.values[future], self.marks[past], self.marks[future]


class Loaders(NamedTuple):
    """The three splits."""

    train: DataLoader[Item]
    validation: DataLoader[Item]
    test: DataLoader[Item]


def loaders(
    prepared: Prepared, lookback: int, horizon: int, batch_size: int, workers: int = WORKERS
) -> Loaders:
    """Shuffled training batches, the other splits in order; no window is dropped.

    Workers are kept from epoch to epoch, so that the conventional loop starts them only once.
    """

    def of(rows: tuple[int, int], shuffle: bool) -> DataLoader[Item]:
        dataset = WindowDataset(prepared, rows, lookback, horizon)
        return DataLoader(
            dataset, batch_size, shuffle, num_workers=workers, persistent_workers=workers > 0
        )

    split = prepared.borders
    return Loaders(of(split.train, True), of(split.validation, False), of(split.test, False))


class Epoch(NamedTuple):
    """Mean losses over the batches of each split."""

    train: float
    validation: float
    test: float


def train(model: nn.Module, data: Loaders, learning_rate: float, epochs: int) -> list[Epoch]:
    """The training loop, with a validation and a test pass after every epoch."""
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    return [
        Epoch(
            train_epoch(model, data.train, optimiser),
            validate(model, data.validation),
            validate(model, data.test),
        )
        for _ in range(epochs)
    ]


def train_epoch(
    model: nn.Module, loader: DataLoader[Item], optimiser: torch.optim.Optimizer
) -> float:
    """One pass over the training windows."""
    model.train()
    losses = [step(model, _moved(batch, model), optimiser) for batch in loader]
    return float(np.average(losses))


def validate(model: nn.Module, loader: DataLoader[Item]) -> float:
    """One pass without gradients."""
    model.eval()
    with torch.no_grad():
        losses = [loss_of(model, _moved(batch, model)).item() for batch in loader]
    return float(np.average(losses))


def _moved(batch: Sequence[Tensor], model: nn.Module) -> list[Tensor]:
    """The batch in single precision on the device of the model."""
    device = next(model.parameters()).device
    return [part.float().to(device) for part in batch]


def step(model: nn.Module, batch: Sequence[Tensor], optimiser: torch.optim.Optimizer) -> float:
    """Train one step on a batch; return the loss."""
    optimiser.zero_grad()
    loss = loss_of(model, batch)
    value = loss.item()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return value


def loss_of(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Mean squared error of the forecast of (past, label and future, marks of both)."""
    past, future, past_marks, future_marks = batch
    horizon = future.shape[1] - min(LABEL, past.shape[1])
    known, truth = future[:, :-horizon], future[:, -horizon:]
    decoder_input = torch.cat([known, torch.zeros_like(truth)], dim=1)
    forecast = model(past, past_marks, decoder_input, future_marks)
    return F.mse_loss(forecast[:, -horizon:], truth)
