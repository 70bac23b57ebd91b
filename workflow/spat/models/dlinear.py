"""DLinear (Zeng et al., AAAI 2023, arXiv 2205.13504): the lightweight reference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.base import Forecaster
from spat.models.registry import Hyperparameters, Shape
from spat.training.device.kernels import Linear


class DLinear(Forecaster):
    """Trend (moving average) and remainder, each with one linear map shared by all channels."""

    def __init__(self, hyper: Hyperparameters, shape: Shape) -> None:
        """Both maps start as the mean of the window, as published.

        Raises:
            ValueError: if the moving average has no centre.
        """
        super().__init__(hyper, shape)
        if hyper.moving_average % 2 == 0:
            raise ValueError(f"moving_average {hyper.moving_average}: choose an odd width")
        self.trend = Linear(shape.lookback, shape.horizon)
        self.remainder = Linear(shape.lookback, shape.horizon)
        for linear in (self.trend, self.remainder):
            nn.init.constant_(linear.weight, 1 / shape.lookback)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        series = x.transpose(1, 2)  # [B, C, L]
        width = self.hyper.moving_average
        padded = F.pad(series, (width // 2, width // 2), mode="replicate")
        trend = F.avg_pool1d(padded, width, stride=1)
        y = self.trend(trend) + self.remainder(series - trend)
        return y.transpose(1, 2)  # type: ignore[no-any-return]
