"""TiDE (Das et al., TMLR 2023, arXiv 2304.08424): a dense encoder and decoder per channel.

The published code ends in a layer normalisation over one number, whose output is always its bias:
encoder, decoder and time features get no gradient, and TiDE is one linear map. This normalisation
is left out here, so there are two parameters fewer than in the Time-Series-Library. The layer
normalisation over the two numbers to which the time features of a step are reduced is kept; of
these numbers it keeps only their order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.base import Forecaster, required
from spat.models.layers.blocks import normalise
from spat.models.settings import Shape
from spat.models.settings import TiDESettings as Settings
from spat.training.device.kernels import Dropout, Linear


class Residual(nn.Module):
    """norm(skip(x) + dropout(down(relu(up(x))))); an output of one number has no norm."""

    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.up = Linear(inputs, hidden)
        self.down = Linear(hidden, outputs)
        self.skip = Linear(inputs, outputs)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(outputs) if outputs > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.norm(self.skip(x) + self.dropout(self.down(F.relu(self.up(x)))))  # type: ignore[no-any-return]


class TiDE(Forecaster):
    """Dense blocks on the past and the time features of a channel, and a linear map of its past."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        width, dropout = settings.d_model, settings.dropout
        marks = settings.marks_width if settings.time_features else 0
        steps = shape.lookback + shape.horizon
        self.marks = Residual(shape.marks, width, marks, dropout) if marks else None
        inputs = [shape.lookback + steps * marks] + [width] * (settings.e_layers - 1)
        self.encoder = nn.Sequential(*(Residual(i, width, width, dropout) for i in inputs))
        outputs = [width] * (settings.d_layers - 1) + [shape.horizon * settings.step_width]
        self.decoder = nn.Sequential(*(Residual(width, width, o, dropout) for o in outputs))
        self.last = Residual(settings.step_width + marks, settings.d_ff, 1, dropout)
        self.linear = Linear(shape.lookback, shape.horizon)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C], past_marks [B, L, F], future_marks [B, H, F] -> [B, H, C]."""
        x, scale = normalise(x)
        series = x.transpose(1, 2)  # [B, C, L]
        channels, horizon = series.shape[1], self.shape.horizon
        context, future = series, None
        if self.marks is not None:
            given = [required(past_marks, "past_marks"), required(future_marks, "future_marks")]
            reduced = self.marks(torch.cat(given, 1)).unsqueeze(1).expand(-1, channels, -1, -1)
            context = torch.cat([series, reduced.flatten(2)], -1)
            future = reduced[:, :, -horizon:]  # [B, C, H, marks_width]
        steps = self.decoder(self.encoder(context)).unflatten(-1, (horizon, -1))
        if future is not None:
            steps = torch.cat([steps, future], -1)
        y = self.last(steps).squeeze(-1) + self.linear(series)
        return scale.undo(y.transpose(1, 2))
