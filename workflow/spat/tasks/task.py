"""The interface between a model and the training loop, the scores and the costs.

A *case* is one sample of a dataset: a window of a series, an image, a text. Training, evaluation,
scoring, surgery and the measurement of costs see models and cases only through a `Task`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

# A batch of cases: tensors [B, ...] with the cases along the first axis.
Batch: TypeAlias = Any


@dataclass(frozen=True)
class Metric:
    """An error of a case; lower is better. The error of a dataset is the mean over its cases."""

    name: str
    unit: str


class Cases(Protocol):
    """A dataset in memory, from which batches are gathered by index."""

    device: torch.device

    def __len__(self) -> int:
        """The number of cases."""

    def batch(self, index: Tensor) -> Batch:
        """The cases with the indices `index`, int64 [B], in this order."""


class Splits(Protocol):
    """The cases of one dataset. The test split is only for evaluation."""

    @property
    def train(self) -> Cases:
        """The cases for training."""

    @property
    def validation(self) -> Cases:
        """The cases for choosing the epoch, the ratio and the learning rate."""

    @property
    def test(self) -> Cases:
        """The cases for the reported errors."""


class Task(Protocol):
    """How a model is called on a batch, and how its losses and errors are computed.

    `metrics` are the errors that `errors` returns, in this order. The first metric is primary: the
    kept epoch and the validated ratio are chosen by it.
    """

    name: str
    metrics: tuple[Metric, ...]
    # The class of the shapes of its models, a frozen dataclass of integers.
    shape: type[Any]

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The output of the model for a batch, [B, ...]."""

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The loss of each case, float64 [B], with gradients. Scores differentiate it."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The mean loss in float32, a scalar. Training differentiates it."""

    def errors(self, output: Tensor, batch: Batch) -> Tensor:
        """Each metric of each case, float64 [metrics, B]."""

    def example(
        self,
        shape: Any,
        size: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """A batch of `size` random cases of the model's shape, the same at each call.

        The state of the global random generator is not changed.
        """

    def batch_size(self, model: nn.Module, cases: Cases) -> int:
        """The number of cases in a batch of an evaluation; it affects only the speed."""


def case_losses(task: Task) -> Callable[[nn.Module, Batch], Tensor]:
    """A function of model and batch that returns the loss of each case, float64 [B]."""

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        return task.losses(task.forward(model, batch), batch)

    return losses
