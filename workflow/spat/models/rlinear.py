"""RLinear (Li et al. 2023, arXiv 2305.10721)."""

from __future__ import annotations

from torch import Tensor

from spat.models.base import Forecaster
from spat.models.layers.blocks import RevIN
from spat.models.settings import RLinearSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Dropout, Linear


class RLinear(Forecaster):
    """Reversible instance normalisation around one linear map that all channels share."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.norm = RevIN(shape.channels)
        self.dropout = Dropout(settings.dropout)
        self.head = Linear(shape.lookback, shape.horizon)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        x, scale = self.norm(x)
        y = self.head(self.dropout(x).transpose(1, 2)).transpose(1, 2)
        return self.norm.undo(y, scale)
