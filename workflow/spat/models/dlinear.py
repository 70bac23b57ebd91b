"""DLinear (Zeng et al., AAAI 2023, arXiv 2205.13504), as the Time-Series-Library publishes it.

LTSF-Linear, the code of the paper, leaves torch's initialisation of both maps instead.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.base import Forecaster
from spat.models.settings import DLinearSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Linear


class DLinear(Forecaster):
    """Trend (moving average) and remainder, each with one linear map shared by all channels."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        """Both maps start as the mean of the window, as in the Time-Series-Library."""
        super().__init__(settings, shape)
        self.trend = Linear(shape.lookback, shape.horizon)
        self.remainder = Linear(shape.lookback, shape.horizon)
        for linear in (self.trend, self.remainder):
            nn.init.constant_(linear.weight, 1 / shape.lookback)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        series = x.transpose(1, 2)  # [B, C, L]
        width = self.settings.moving_average
        padded = F.pad(series, (width // 2, width // 2), mode="replicate")
        trend = F.avg_pool1d(padded, width, stride=1)
        y = self.trend(trend) + self.remainder(series - trend)
        return y.transpose(1, 2)  # type: ignore[no-any-return]
