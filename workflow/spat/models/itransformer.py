"""iTransformer (Liu et al., ICLR 2024, arXiv 2310.06625): attention between variates.

A token is the whole past of one channel. With time features, each time feature is one more token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster, required
from spat.models.layers.blocks import EncoderLayer, encoder_sites, normalise
from spat.models.settings import ITransformerSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Dropout, Linear


class ITransformer(Forecaster):
    """Encoder over channels; its weights do not depend on the number or order of the channels."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.embedding = Linear(shape.lookback, settings.d_model)
        self.dropout = Dropout(settings.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(settings.d_model, settings.d_ff, settings.n_heads, settings.dropout)
            for _ in range(settings.e_layers)
        )
        self.norm = nn.LayerNorm(settings.d_model)
        self.head = Linear(settings.d_model, shape.horizon)

    def sites(self) -> tuple[Site, ...]:
        """The self-attention of each layer."""
        return encoder_sites(self.layers, self.settings.n_heads)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        channels = x.shape[-1]
        scale = None
        if self.settings.instance_norm:
            x, scale = normalise(x)
        # Only attention carries time features to the forecast, so their tokens are dropped after
        # the last attention.
        last = max((i for i, site in enumerate(self.sites()) if site.attention), default=None)
        if self.settings.time_features and last is not None:
            x = torch.cat([x, required(past_marks, "past_marks")], dim=-1)
        tokens = self.dropout(self.embedding(x.transpose(1, 2)))  # [B, C (+ F), width]
        for i, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if i == last:
                tokens = tokens[:, :channels]
        y = self.head(self.norm(tokens)).transpose(1, 2)
        return scale.undo(y) if scale else y
