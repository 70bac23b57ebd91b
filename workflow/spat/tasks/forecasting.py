"""Forecasting: a model maps a past window of a series to the steps that follow it.

Symbols: B windows, L lookback, H horizon, C channels, F time features.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.settings import Shape
from spat.tasks.task import Cases, Metric

# Windows x channels x features of the widest layer in a batch of an evaluation. On a CPU larger
# batches do not fit into the cache (PatchTST of width 512 evaluates 1.6 times faster with 32
# windows than with 300). On a GPU this is enough even for narrow models, which count as `NARROW`
# features wide.
VALUES: Final = {"cpu": 2**19, "cuda": 2**22}
NARROW: Final = 256


class Batch(NamedTuple):
    """A batch of windows: the input, the steps that follow it, and their time features."""

    x: Tensor  # [B, L, C]
    y: Tensor  # [B, H, C]
    past_marks: Tensor | None  # [B, L, F]
    future_marks: Tensor | None  # [B, H, F]


class Forecasting:
    """The task of forecasting: errors are means over steps and channels, in standardised scale."""

    name = "forecasting"
    metrics: tuple[Metric, ...] = (
        Metric("mse", "squared standard deviations"),
        Metric("mae", "standard deviations"),
    )
    shape = Shape

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The forecast, [B, H, C]."""
        return model(batch.x, batch.past_marks, batch.future_marks)  # type: ignore[no-any-return]

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of each window, float64 [B]."""
        return (output - batch.y).double().square().mean((1, 2))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over all windows, steps and channels, a float32 scalar."""
        return F.mse_loss(output.float(), batch.y)

    def errors(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared and mean absolute error of each window, float64 [2, B]."""
        error = (output.float() - batch.y).flatten(1)  # [B, H * C]
        squared = error.square().mean(dim=1, dtype=torch.float64)
        absolute = error.abs().mean(dim=1, dtype=torch.float64)
        return torch.stack([squared, absolute])

    def example(
        self,
        shape: Shape,
        size: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """Standard normal inputs and time features of a shape.

        The future is an expanded constant without allocated memory, so that measurements of memory
        do not count it.
        """
        generator = torch.Generator().manual_seed(0)

        def draw(steps: int, width: int) -> Tensor:
            drawn = torch.randn(size, steps, width, generator=generator)
            return drawn.to(device=device, dtype=dtype)

        x = draw(shape.lookback, shape.channels)
        past = draw(shape.lookback, shape.marks) if shape.marks else None
        future = draw(shape.horizon, shape.marks) if shape.marks else None
        y = x[:1, :1, :1].expand(size, shape.horizon, shape.channels)
        return Batch(x, y, past, future)

    def batch_size(self, model: nn.Module, cases: Cases) -> int:
        """The number of windows in a batch of an evaluation (see `VALUES`)."""
        linear = (layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear))
        width = max(NARROW, *linear, 0)
        channels = cases.batch(torch.zeros(1, dtype=torch.int64, device=cases.device)).x.shape[-1]
        windows: int = VALUES[cases.device.type] // (channels * width)
        return max(1, windows)
