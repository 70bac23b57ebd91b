"""Forecasters without parameters, which a trained forecaster should beat."""

from __future__ import annotations

import torch
from torch import Tensor

from spat.models.base import Forecaster
from spat.models.settings import SeasonalNaiveSettings


class RepeatLast(Forecaster):
    """Repeats the last step."""

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        return x[:, -1:].expand(-1, self.shape.horizon, -1)


class SeasonalNaive(Forecaster):
    """Repeats the last season (`settings.season` steps), or the last step of a shorter lookback."""

    settings: SeasonalNaiveSettings

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        lookback = x.shape[1]
        season = self.settings.season if self.settings.season <= lookback else 1
        steps = torch.arange(self.shape.horizon, device=x.device) % season
        return x[:, lookback - season + steps]
