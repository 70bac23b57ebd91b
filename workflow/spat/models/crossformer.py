"""Crossformer (Zhang & Yan, ICLR 2023, openreview vSVLM2j9eie), as in the Time-Series-Library.

A token is a segment of steps of one channel; positions are learnt for each channel and segment
(`fixed_channels`). There are no time features, and windows are not normalised. A two-stage layer
joins tokens twice: `time` is self-attention of the segments of a channel; `router` joins the
channels of a segment through a few learnt routers, which first read all channels (send) and which
all channels then read (receive). The encoder merges two neighbouring segments between its layers.
Layer i of the decoder reads scale i of the encoder, and the forecast is the sum of the predictions
of all decoder layers.

A router site is a pair: the sender, with its routers, and the receiver are removed together. If a
site is removed, the normalisation of its sub-layer stays. Three attentions are not sites:

    decoder.0.time and decoder.0.router read the learnt positions of the forecast, which are the
    same for all windows, so that their scores would not depend on the data;
    the last cross-attention is protected: without all cross-attentions, the forecast would not
    depend on the input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Place, Site
from spat.models.base import Forecaster
from spat.models.layers.attention import MultiHeadAttention
from spat.models.layers.blocks import FeedForward, sinusoids
from spat.models.settings import CrossformerSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Dropout, Linear


class Sender(MultiHeadAttention):
    """Cross-attention whose queries are learnt, `routers` for each segment."""

    def __init__(
        self, width: int, heads: int, segments: int, routers: int, *, dropout: float
    ) -> None:
        super().__init__(width, heads, dropout=dropout, cross=True)
        self.routers = nn.Parameter(torch.randn(segments, routers, width))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x [B * segments, C, width] -> [B * segments, routers, width]."""
        queries = self.routers.repeat(len(x) // len(self.routers), 1, 1)
        return super().forward(queries, x)


class TwoStageLayer(nn.Module):
    """Post-norm: attention over time and feed-forward, routed attention and feed-forward."""

    time: MultiHeadAttention | None
    send: Sender | None
    receive: MultiHeadAttention | None

    def __init__(
        self, width: int, inner: int, heads: int, dropout: float, segments: int, routers: int
    ) -> None:
        super().__init__()
        self.time = MultiHeadAttention(width, heads, dropout=dropout)
        self.send = Sender(width, heads, segments, routers, dropout=dropout)
        self.receive = MultiHeadAttention(width, heads, dropout=dropout, cross=True)
        self.dropout = Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.feed_forwards = nn.ModuleList(FeedForward(width, inner, 0.0) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, segments, width] -> the same shape."""
        windows = len(x)
        x = x.flatten(0, 1)  # segments of a channel
        if self.time is not None:
            x = x + self.dropout(self.time(x))
        x = self._fed(self.norms[0](x), 0)
        x = _windows(x, windows).transpose(1, 2).flatten(0, 1)  # channels of a segment
        if self.send is not None and self.receive is not None:
            x = x + self.dropout(self.receive(x, self.send(x)))
        x = self._fed(self.norms[2](x), 1)
        return _windows(x, windows).transpose(1, 2)

    def _fed(self, x: Tensor, stage: int) -> Tensor:
        y = x + self.dropout(self.feed_forwards[stage](x))
        return self.norms[2 * stage + 1](y)  # type: ignore[no-any-return]


class Merging(nn.Module):
    """Merges pairs of neighbouring segments of a channel; an odd last one pairs with itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.map = Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, segments, width] -> [B, C, ceil(segments / 2), width]."""
        if x.shape[2] % 2:
            x = torch.cat([x, x[:, :, -1:]], dim=2)
        pairs = x.reshape(*x.shape[:2], -1, 2 * x.shape[-1])
        return self.map(self.norm(pairs))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """A two-stage layer, cross-attention to one scale of the encoder, feed-forward, prediction."""

    cross_attention: MultiHeadAttention | None

    def __init__(self, settings: Settings, segments: int) -> None:
        super().__init__()
        width, heads, dropout = settings.d_model, settings.n_heads, settings.dropout
        sizes = width, settings.d_ff, heads, dropout, segments, settings.routers
        self.own = TwoStageLayer(*sizes)
        self.cross_attention = MultiHeadAttention(width, heads, dropout=dropout, cross=True)
        self.dropout = Dropout(dropout)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, width, 0.0)
        self.norm2 = nn.LayerNorm(width)
        self.prediction = Linear(width, settings.segment)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, S, width], memory [B, C, K, width] -> x, and predictions [B, C, S * segment]."""
        channels = x.shape[1]
        x, memory = self.own(x).flatten(0, 1), memory.flatten(0, 1)
        if self.cross_attention is not None:
            x = x + self.dropout(self.cross_attention(x, memory))
        x = self.norm1(x)
        x = self.norm2(x + self.feed_forward(x))
        x = _windows(x, len(x) // channels)
        return x, self.prediction(x).flatten(-2)


class Crossformer(Forecaster):
    """Segments of each channel, a pyramid of two-stage layers, and a decoder over its scales."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        """The last step of the lookback is repeated until it fills a segment."""
        super().__init__(settings, shape)
        width, size = settings.d_model, settings.segment
        scales = [-(-shape.lookback // size)]
        while len(scales) < settings.e_layers:
            scales.append(-(-scales[-1] // 2))
        ahead = -(-shape.horizon // size)
        self.embedding = Linear(size, width, bias=False)
        self.register_buffer("position", sinusoids(scales[0], width), persistent=False)
        self.past = nn.Parameter(torch.randn(shape.channels, scales[0], width))
        self.norm = nn.LayerNorm(width)
        sizes = width, settings.d_ff, settings.n_heads, settings.dropout
        self.encoder = nn.ModuleList(
            TwoStageLayer(*sizes, segments, settings.routers) for segments in scales
        )
        self.merging = nn.ModuleList(Merging(width) for _ in scales[1:])
        self.future = nn.Parameter(torch.randn(shape.channels, ahead, width))
        self.decoder = nn.ModuleList(
            DecoderLayer(settings, ahead) for _ in range(settings.e_layers + 1)
        )

    def sites(self) -> tuple[Site, ...]:
        """Time and router of each layer that depends on the input, and cross-attentions.

        The last cross-attention is left out.
        """
        heads, sites = self.settings.n_heads, []
        for i, layer in enumerate(self.encoder):
            sites += _two_stage(f"encoder.{i}", layer, heads)
        for i, layer in enumerate(self.decoder):
            if i:
                sites += _two_stage(f"decoder.{i}", layer.own, heads)
            sites.append(Site(f"decoder.{i}.cross", layer, "cross_attention", heads, kind="cross"))
        return tuple(sites[:-1])

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        size = self.settings.segment
        channels = F.pad(x.transpose(1, 2), (0, -x.shape[1] % size), mode="replicate")
        tokens = self.embedding(channels.unfold(-1, size, size)) + self.position + self.past
        tokens = self.norm(tokens)  # [B, C, segments, width]
        scales = [tokens]
        for i, layer in enumerate(self.encoder):
            tokens = layer(self.merging[i - 1](tokens) if i else tokens)
            scales.append(tokens)
        y, steps = self.future.expand(len(x), -1, -1, -1), []
        for layer, memory in zip(self.decoder, scales, strict=True):
            y, predicted = layer(y, memory)
            steps.append(predicted)
        forecast = torch.stack(steps).sum(0)[..., : self.shape.horizon]
        return forecast.transpose(1, 2)


def _windows(x: Tensor, windows: int) -> Tensor:
    """[windows * n, ...] -> [windows, n, ...]."""
    return x.view(windows, -1, *x.shape[1:])


def _two_stage(name: str, layer: Any, heads: int) -> list[Site]:
    receive = (Place(layer, "receive"),)
    return [
        Site(f"{name}.time", layer, "time", heads),
        Site(f"{name}.router", layer, "send", heads=1, kind="router", others=receive),
    ]
