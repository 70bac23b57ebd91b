"""Non-stationary Transformer (Liu et al., NeurIPS 2022, arXiv 2205.14415).

This is the encoder-decoder `Transformer` on windows of zero mean and unit variance. Its attention
learns what the normalisation removed: A = softmax((tau q k^T + delta) / sqrt(d)). tau (one number
for a window) and delta (one number for each step of the lookback) are projections of the window
before normalisation and of its deviation or mean. The masked self-attention of the decoder uses
only tau, since its keys are not the steps of the lookback.

If a site is removed, the normalisation of its sub-layer stays, as in the `Transformer`. The last
cross-attention is protected, so tau and delta are always used.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from spat.models.layers.attention import MultiHeadAttention
from spat.models.layers.blocks import circular, normalise
from spat.models.settings import NonstationarySettings as Settings
from spat.models.settings import Shape
from spat.models.transformer import Transformer
from spat.training.device.kernels import Linear

# The largest log tau, as published; larger values could overflow in float32.
LARGEST_LOG_TAU = 80.0


class DestationaryAttention(MultiHeadAttention):
    """softmax((tau q k^T + delta) / sqrt(d)) v; masked self-attention does not use delta."""

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        tau: Tensor | None = None,
        delta: Tensor | None = None,
    ) -> Tensor:
        """x [B, Q, width], memory [B, K, width], tau [B, 1], delta [B, K] -> [B, Q, width]."""
        assert tau is not None and delta is not None
        q, k, v = self.project(x, memory)
        q = q * tau[:, None, None]
        if not self.causal:
            # With one more feature this is ordinary attention, whose A the core can compute:
            # [tau q, 1] . [k, delta] = tau q . k + delta. The core divides by sqrt(d + 1), so q is
            # multiplied by sqrt((d + 1) / d).
            d = q.shape[-1]
            one = torch.ones_like(q[..., :1])
            q = torch.cat([q, one], dim=-1) * math.sqrt((d + 1) / d)
            k = torch.cat([k, delta[:, None, :, None].expand(*k.shape[:-1], 1)], dim=-1)
        return self.merge(self.core(q, k, v))


class Projector(nn.Module):
    """Maps a window and a statistic of it to `out` numbers: a convolution, then an MLP.

    The convolution (circular, width 3) runs over channels, and its inputs are the steps.
    """

    def __init__(self, lookback: int, channels: int, hidden: int, layers: int, out: int) -> None:
        super().__init__()
        self.series = Linear(3 * lookback, 1, bias=False)
        sizes = [2 * channels, *[hidden] * layers]
        parts = [m for i, o in pairwise(sizes) for m in (Linear(i, o), nn.ReLU())]
        self.mlp = nn.Sequential(*parts, Linear(sizes[-1], out, bias=False))

    def forward(self, x: Tensor, statistic: Tensor) -> Tensor:
        """x [B, L, C], statistic [B, 1, C] -> [B, out]."""
        series = self.series(circular(x.transpose(1, 2)))  # [B, C, 1]
        return self.mlp(torch.cat([series.flatten(1), statistic.flatten(1)], dim=1))  # type: ignore[no-any-return]


class Nonstationary(Transformer):
    """The Transformer with de-stationary attention in all sites."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        sizes = shape.lookback, shape.channels, settings.projector_width, settings.projector_layers
        self.tau = Projector(*sizes, out=1)
        self.delta = Projector(*sizes, out=shape.lookback)

    def attention(self, *, causal: bool = False, cross: bool = False) -> MultiHeadAttention:
        """Build an attention module of the model's sizes."""
        width, heads, dropout = self.settings.d_model, self.settings.n_heads, self.settings.dropout
        return DestationaryAttention(width, heads, dropout=dropout, causal=causal, cross=cross)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C], past_marks [B, L, F], future_marks [B, H, F] -> [B, H, C]."""
        normal, scale = normalise(x)
        tau = self.tau(x, scale.deviation).clamp(max=LARGEST_LOG_TAU).exp()
        delta = self.delta(x, scale.mean)
        y = self.forecast(normal, past_marks, future_marks, tau=tau, delta=delta)
        return scale.undo(y)
