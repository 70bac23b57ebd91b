"""Autoformer (Wu et al., NeurIPS 2021, arXiv 2106.13008): auto-correlation and decomposition.

Each sub-layer of encoder and decoder splits its output into a moving average (the trend) and the
remainder. The decoder sums the trends, and the layers pass the remainder on. Windows are not
normalised.

Auto-correlation replaces attention. A Fourier transform computes the correlation r of queries and
keys at each delay, averaged over features. The delays of the largest r are chosen. The output is
the sum of the values, rolled back by these delays and weighted by the softmax of their r. Delays
are chosen for each window in `eval()` and for the whole batch in training, so that training couples
the windows of a batch. The decoder has no mask.

All heads would have the same weights and are joined in order, so their number has no effect. There
is no setting for it, and a site can only be removed as a whole. The weights of a site belong to
delays, not to positions.

If a site is removed, the decomposition of its sub-layer stays. The last cross-attention is
protected, as in the `Transformer`: without it nothing reads the encoder, and the forecast would
depend on the steps before the label only through the mean of the lookback.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Site
from spat.attention.views import MixingCore
from spat.models.base import Forecaster, required
from spat.models.layers.blocks import (
    FeedForward,
    StepEmbedding,
    circular,
    encoder_decoder_sites,
    moving_average,
)
from spat.models.settings import AutoformerSettings as Settings
from spat.models.settings import DecompositionSettings, Shape
from spat.training.device.kernels import Dropout, Linear


class DelayCore(MixingCore):
    """Sums the values at chosen delays: O_t = sum over i of w_i v_(t + delay_i), circularly."""

    def forward(self, weights: Tensor, values: Tensor, delays: Tensor) -> Tensor:
        """weights [B, 1, 1, k], values [B, L, width], int64 delays [B, k] -> [B, L, width].

        The sum is a product with a circulant matrix, which is faster than k copies of v.
        """
        length = values.shape[1]
        steps = torch.arange(length, device=values.device).view(-1, 1)
        taken = (steps + delays.unsqueeze(1)) % length  # [B, L, k]
        matrix = values.new_zeros(len(values), length, length)
        matrix = matrix.scatter(-1, taken, weights.squeeze(1).expand(taken.shape).to(matrix.dtype))
        return matrix @ values


class AutoCorrelation(nn.Module):
    """Auto-correlation: projections around a `DelayCore`; with a memory, cross-correlation."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.core = DelayCore()
        self.out = Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x [B, Q, width], memory [B, K, width] -> [B, Q, width].

        A shorter memory is padded with zeros to Q steps, a longer one is cut to its first Q steps.
        """
        length = x.shape[1]
        k, v = self.kv(x if memory is None else memory).chunk(2, dim=-1)
        k, v = (F.pad(t, (0, 0, 0, length - t.shape[1])) for t in (k, v))
        r = correlation(self.q(x), k)
        count = max(1, min(int(self.factor * math.log(length)), length))
        if self.training:
            delays = r.mean(0).topk(count).indices.expand(len(r), -1)
        else:
            delays = r.topk(count, dim=-1).indices
        weights = r.gather(-1, delays).softmax(-1)
        return self.out(self.core(weights[:, None, None], v, delays))  # type: ignore[no-any-return]

    def head_weights(self) -> tuple[Tensor, Tensor]:
        """W_o and W_v, as those of one head, both float64 [1, width, width]."""
        values = self.kv.weight.detach().double().chunk(2)[1]
        return self.out.weight.detach().double().unsqueeze(0), values.unsqueeze(0)


def correlation(q: Tensor, k: Tensor) -> Tensor:
    """Circular correlation at each delay, mean over features: [B, L, width] twice -> [B, L]."""
    spectrum = torch.fft.rfft(real(q), dim=1) * torch.fft.rfft(real(k), dim=1).conj()
    return torch.fft.irfft(spectrum.mean(-1), n=q.shape[1])  # type: ignore[no-any-return]


def real(x: Tensor) -> Tensor:
    """Convert bfloat16, which has no Fourier transform in torch, to float32."""
    return x.float() if x.dtype == torch.bfloat16 else x


class CentredNorm(nn.Module):
    """Layer normalisation, then subtraction of the mean over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        x = self.norm(x)
        return x - x.mean(1, keepdim=True)


class EncoderLayer(nn.Module):
    """x = seasonal(x + dropout(attention(x))), then x = seasonal(x + feed_forward(x))."""

    attention: nn.Module | None

    def __init__(
        self, width: int, inner: int, dropout: float, average: int, attention: nn.Module
    ) -> None:
        super().__init__()
        self.average = average
        self.attention = attention
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(width, inner, dropout, bias=False)

    def forward(self, x: Tensor, *shared: Any) -> Tensor:
        """[B, L, width] -> [B, L, width]; `shared` are further arguments of the attention."""
        if self.attention is not None:
            x = x + self.dropout(self.attention(x, *shared))
        x = x - moving_average(x, self.average)
        x = x + self.feed_forward(x)
        return x - moving_average(x, self.average)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the encoder and feed-forward, each decomposed.

    The sum of the three trends is mapped to the channels by a circular convolution of width 3.
    """

    self_attention: nn.Module | None
    cross_attention: nn.Module | None

    def __init__(
        self,
        width: int,
        inner: int,
        dropout: float,
        average: int,
        attentions: tuple[nn.Module, nn.Module],
        channels: int,
    ) -> None:
        super().__init__()
        self.average = average
        self.self_attention, self.cross_attention = attentions
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(width, inner, dropout, bias=False)
        self.trend = Linear(3 * width, channels, bias=False)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        own: Sequence[Any] = (),
        crossed: Sequence[Any] = (),
    ) -> tuple[Tensor, Tensor]:
        """x [B, Q, width], memory [B, K, width] -> remainder [B, Q, width], trend [B, Q, C].

        `own` and `crossed` are further arguments of the self-attention and the cross-attention.
        """
        if self.self_attention is not None:
            x = x + self.dropout(self.self_attention(x, *own))
        trend = moving_average(x, self.average)
        x = x - trend
        if self.cross_attention is not None:
            x = x + self.dropout(self.cross_attention(x, memory, *crossed))
        second = moving_average(x, self.average)
        x = x - second
        x = x + self.feed_forward(x)
        third = moving_average(x, self.average)
        return x - third, self.trend(circular(trend + second + third))


class Autoformer(Forecaster):
    """Encoder and decoder with decomposition, and a trend to which the decoder adds.

    `FEDformer` is a subclass with other attention modules.
    """

    settings: DecompositionSettings
    positions = False  # whether the embeddings contain the positions

    def __init__(self, settings: DecompositionSettings, shape: Shape) -> None:
        """A `label_len` longer than the lookback is cut to it."""
        super().__init__(settings, shape)
        width, dropout = settings.d_model, settings.dropout
        marks = shape.marks if settings.time_features else 0
        self.label = min(settings.label_len, shape.lookback)
        self.steps = self.label + shape.horizon  # tokens of the decoder
        lengths = (shape.lookback, self.steps) if self.positions else (None, None)
        self.source = StepEmbedding(shape.channels, width, lengths[0], marks, dropout)
        self.target = StepEmbedding(shape.channels, width, lengths[1], marks, dropout)
        sizes = width, settings.d_ff, dropout, settings.moving_average
        self.encoder = nn.ModuleList(
            EncoderLayer(*sizes, self.attention()) for _ in range(settings.e_layers)
        )
        self.encoder_norm = CentredNorm(width)
        self.decoder = nn.ModuleList(
            DecoderLayer(*sizes, (self.attention(), self.attention(cross=True)), shape.channels)
            for _ in range(settings.d_layers)
        )
        self.decoder_norm = CentredNorm(width)
        self.head = Linear(width, shape.channels)

    def attention(self, *, cross: bool = False) -> nn.Module:
        """Build an attention module of the model's sizes."""
        assert isinstance(self.settings, Settings)
        return AutoCorrelation(self.settings.d_model, self.settings.factor)

    def shared(self) -> tuple[Sequence[Any], ...]:
        """Further arguments of the self-attentions (encoder, decoder) and the cross-attentions."""
        return (), (), ()

    def sites(self) -> tuple[Site, ...]:
        """All attentions except the last cross-attention; each can only be removed as a whole."""
        return encoder_decoder_sites(self.encoder, self.decoder, heads=1, kind="correlation")

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C], past_marks [B, L, F], future_marks [B, H, F] -> [B, H, C]."""
        begun, horizon = x.shape[1] - self.label, self.shape.horizon
        marks = None
        if self.settings.time_features:
            past_marks = required(past_marks, "past_marks")
            future_marks = required(future_marks, "future_marks")
            marks = torch.cat([past_marks[:, begun:], future_marks], dim=1)
        of_encoder, of_decoder, crossed = self.shared()
        memory = self.source(x, past_marks)
        for layer in self.encoder:
            memory = layer(memory, *of_encoder)
        memory = self.encoder_norm(memory)
        smooth = moving_average(x, self.settings.moving_average)
        mean = x.mean(1, keepdim=True).expand(-1, horizon, -1)
        trend = torch.cat([smooth[:, begun:], mean], dim=1)
        y = self.target(F.pad((x - smooth)[:, begun:], (0, 0, 0, horizon)), marks)
        for layer in self.decoder:
            y, part = layer(y, memory, of_decoder, crossed)
            trend = trend + part
        y = self.head(self.decoder_norm(y)) + trend
        return y[:, self.label :]  # type: ignore[no-any-return]
