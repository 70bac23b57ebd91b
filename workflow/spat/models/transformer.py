"""The encoder-decoder Transformer over time steps (Vaswani et al., 2017), one-shot decoding.

The decoder starts from the last `label_len` steps and zeros in place of the horizon (Zhou et al.,
2021, arXiv 2012.07436), as the Time-Series-Library publishes it. No normalisation per window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster, required
from spat.models.layers.blocks import DecoderLayer, EncoderLayer, StepEmbedding
from spat.models.settings import Shape
from spat.models.settings import TransformerSettings as Settings
from spat.training.device.kernels import Linear


class Transformer(Forecaster):
    """Self-attention in the encoder; masked self- and cross-attention in the decoder."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        """A `label_len` longer than the lookback is cut to it."""
        super().__init__(settings, shape)
        width, inner, heads, dropout = (
            settings.d_model,
            settings.d_ff,
            settings.n_heads,
            settings.dropout,
        )
        marks = shape.marks if settings.time_features else 0
        self.label = min(settings.label_len, shape.lookback)
        steps = self.label + shape.horizon
        self.source = StepEmbedding(shape.channels, width, shape.lookback, marks, dropout)
        self.target = StepEmbedding(shape.channels, width, steps, marks, dropout)
        self.encoder = nn.ModuleList(
            EncoderLayer(width, inner, heads, dropout) for _ in range(settings.e_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, inner, heads, dropout) for _ in range(settings.d_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.head = Linear(width, shape.channels)

    def sites(self) -> tuple[Site, ...]:
        """All attentions but the last cross-attention.

        Without that one, nothing but the label steps would join the output to the input.
        """
        heads = self.settings.n_heads
        found = [
            Site(f"encoder.{i}.self", layer, "attention", heads)
            for i, layer in enumerate(self.encoder)
        ]
        for i, layer in enumerate(self.decoder):
            found.append(Site(f"decoder.{i}.self", layer, "self_attention", heads))
            found.append(Site(f"decoder.{i}.cross", layer, "cross_attention", heads, kind="cross"))
        return tuple(found[:-1])

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C], past_marks [B, L, F], future_marks [B, H, F] -> [B, H, C]."""
        begun = x.shape[1] - self.label
        marks = None
        if self.settings.time_features:
            past_marks = required(past_marks, "past_marks")
            future_marks = required(future_marks, "future_marks")
            marks = torch.cat([past_marks[:, begun:], future_marks], dim=1)
        memory = self.source(x, past_marks)
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.encoder_norm(memory)
        y = self.target(F.pad(x[:, begun:], (0, 0, 0, self.shape.horizon)), marks)
        for layer in self.decoder:
            y = layer(y, memory)
        return self.head(self.decoder_norm(y[:, self.label :]))  # type: ignore[no-any-return]
