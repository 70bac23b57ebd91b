"""SparseTSF (Lin et al., ICML 2024, arXiv 2405.00946), linear or with a hidden layer.

A series of period w is cut into its w phases. One map forecasts every phase: it maps the past
values at one position of the period to the future values at this position.
"""

from __future__ import annotations

from torch import Tensor, nn

from spat.models.base import Forecaster
from spat.models.settings import Shape, SparseTSFMLPSettings, SparseTSFSettings
from spat.training.device.kernels import Linear


class SparseTSF(Forecaster):
    """One linear map without bias, shared by all phases and channels."""

    settings: SparseTSFSettings

    def __init__(self, settings: SparseTSFSettings, shape: Shape) -> None:
        super().__init__(settings, shape)
        around = settings.period // 2
        # The convolution adds to each step the steps of half a period on both sides.
        self.smooth = nn.Conv1d(1, 1, 1 + 2 * around, padding=around, bias=False)
        self.head = self.phase_map(
            shape.lookback // settings.period, shape.horizon // settings.period
        )

    def phase_map(self, past: int, future: int) -> nn.Module:
        """The map of one phase, [..., past] -> [..., future] (numbers of periods)."""
        return Linear(past, future, bias=False)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        windows, lookback, channels = x.shape
        mean = x.mean(1, keepdim=True)
        series = (x - mean).transpose(1, 2).reshape(-1, 1, lookback)
        series = series + self.smooth(series)
        phases = series.reshape(windows, channels, -1, self.settings.period).transpose(2, 3)
        y = self.head(phases).transpose(2, 3).reshape(windows, channels, self.shape.horizon)
        return y.transpose(1, 2) + mean  # type: ignore[no-any-return]


class SparseTSFMLP(SparseTSF):
    """Two maps with a ReLU between them, shared by all phases and channels."""

    settings: SparseTSFMLPSettings

    def phase_map(self, past: int, future: int) -> nn.Module:
        """The map of one phase, [..., past] -> [..., future] (numbers of periods)."""
        width = self.settings.d_model
        return nn.Sequential(Linear(past, width), nn.ReLU(), Linear(width, future))
