"""The encoder-decoder Transformer over time steps (Vaswani et al., 2017), one-shot decoding.

The input of the decoder is the last `label_len` steps, and zeros for the horizon (Zhou et al.,
2021, arXiv 2012.07436), as in the Time-Series-Library. Windows are not normalised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster, required
from spat.models.layers.attention import MultiHeadAttention
from spat.models.layers.blocks import (
    DecoderLayer,
    EncoderLayer,
    StepEmbedding,
    encoder_decoder_sites,
)
from spat.models.settings import Shape
from spat.models.settings import TransformerSettings as Settings
from spat.training.device.kernels import Linear


class Transformer(Forecaster):
    """Self-attention in the encoder; masked self- and cross-attention in the decoder.

    `Informer` and `Nonstationary` are subclasses with other attention modules.
    """

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        """A `label_len` longer than the lookback is cut to it."""
        super().__init__(settings, shape)
        width, inner, dropout = settings.d_model, settings.d_ff, settings.dropout
        marks = shape.marks if settings.time_features else 0
        self.label = min(settings.label_len, shape.lookback)
        steps = self.label + shape.horizon
        self.source = StepEmbedding(shape.channels, width, shape.lookback, marks, dropout)
        self.target = StepEmbedding(shape.channels, width, steps, marks, dropout)
        self.encoder = nn.ModuleList(
            EncoderLayer(width, inner, settings.n_heads, dropout, self.attention())
            for _ in range(settings.e_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            DecoderLayer(
                width, inner, dropout, self.attention(causal=True), self.attention(cross=True)
            )
            for _ in range(settings.d_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.head = Linear(width, shape.channels)

    def attention(self, *, causal: bool = False, cross: bool = False) -> MultiHeadAttention:
        """Build an attention module of the model's sizes."""
        width, heads, dropout = self.settings.d_model, self.settings.n_heads, self.settings.dropout
        return MultiHeadAttention(width, heads, dropout=dropout, causal=causal, cross=cross)

    def sites(self) -> tuple[Site, ...]:
        """All attentions except the last cross-attention.

        Without the last cross-attention, the output would depend on the input only through the
        label steps.
        """
        return encoder_decoder_sites(self.encoder, self.decoder, self.settings.n_heads)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C], past_marks [B, L, F], future_marks [B, H, F] -> [B, H, C]."""
        return self.forecast(x, past_marks, future_marks)

    def forecast(
        self,
        x: Tensor,
        past_marks: Tensor | None,
        future_marks: Tensor | None,
        **conditions: Tensor,
    ) -> Tensor:
        """As `forward`; the `conditions` are keyword arguments of every attention."""
        begun = x.shape[1] - self.label
        marks = None
        if self.settings.time_features:
            past_marks = required(past_marks, "past_marks")
            future_marks = required(future_marks, "future_marks")
            marks = torch.cat([past_marks[:, begun:], future_marks], dim=1)
        memory = self.encode(self.source(x, past_marks), **conditions)
        y = self.target(F.pad(x[:, begun:], (0, 0, 0, self.shape.horizon)), marks)
        for layer in self.decoder:
            y = layer(y, memory, **conditions)
        return self.head(self.decoder_norm(y[:, self.label :]))  # type: ignore[no-any-return]

    def encode(self, tokens: Tensor, **conditions: Tensor) -> Tensor:
        """[B, L, width] -> the steps that the decoder reads, [B, K, width]."""
        for layer in self.encoder:
            tokens = layer(tokens, **conditions)
        return self.encoder_norm(tokens)  # type: ignore[no-any-return]
