"""Errors of a model over all cases of a split, for any batch size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spat.attention.modes import evaluating
from spat.tasks.task import Cases, Task


@dataclass(frozen=True)
class Errors:
    """Errors by the name of the metric, the primary one first.

    `means` are means over all cases. `cases` are the errors of each case, float32 [N], in the order
    of the split. Outputs that are not finite give errors that are not finite.
    """

    means: dict[str, float]
    cases: dict[str, NDArray[np.float32]]

    @property
    def primary(self) -> float:
        """The mean of the primary metric."""
        return next(iter(self.means.values()))

    @property
    def losses(self) -> NDArray[np.float32]:
        """The primary metric of each case, [N]."""
        return next(iter(self.cases.values()))


@torch.inference_mode()
def evaluate(model: nn.Module, task: Task, cases: Cases, batch_size: int | None = None) -> Errors:
    """Errors of `model` on every case of `cases`, the last batch included.

    Sums are in float64 and stay on the device until the end, so that batches need no
    synchronisation. The mode (training or evaluation) of each module is restored. The batch size
    affects only speed and memory; by default the task chooses it.

    Raises:
        ValueError: if `batch_size` is not positive.
    """
    if batch_size is None:
        batch_size = task.batch_size(model, cases)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: give a positive number of cases")
    index = torch.arange(len(cases), device=cases.device)
    parts = []
    with evaluating(model):
        for part in torch.split(index, batch_size):
            batch = cases.batch(part)
            parts.append(task.errors(task.forward(model, batch), batch))
    errors = torch.cat(parts, dim=1).cpu()  # [metrics, N]
    names = [metric.name for metric in task.metrics]
    return Errors(
        dict(zip(names, errors.mean(dim=1).tolist(), strict=True)),
        dict(zip(names, errors.float().numpy(), strict=True)),
    )
