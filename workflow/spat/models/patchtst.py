"""PatchTST (Nie et al., ICLR 2023, arXiv 2211.14730), in the version of the Time-Series-Library.

Attention joins the patches of one channel. Channels are independent: the batch of the attention is
windows x channels, with the row `window * channels + channel` for each window and channel.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster
from spat.models.layers.blocks import EncoderLayer, encoder_sites, normalise, sinusoids
from spat.models.settings import PatchTSTSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Dropout, Linear


class PatchTST(Forecaster):
    """Overlapping patches, an encoder, batch normalisation and one linear head for all patches."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        """The end of a window is padded by one stride before it is cut into patches."""
        super().__init__(settings, shape)
        patches = (shape.lookback + settings.stride - settings.patch_len) // settings.stride + 1
        self.embedding = Linear(settings.patch_len, settings.d_model, bias=False)
        self.register_buffer("position", sinusoids(patches, settings.d_model), persistent=False)
        self.dropout = Dropout(settings.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(settings.d_model, settings.d_ff, settings.n_heads, settings.dropout)
            for _ in range(settings.e_layers)
        )
        self.norm = nn.BatchNorm1d(settings.d_model)
        self.head = Linear(patches * settings.d_model, shape.horizon)

    def sites(self) -> tuple[Site, ...]:
        """The self-attention of each layer."""
        return encoder_sites(self.layers, self.settings.n_heads)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        scale = None
        if self.settings.instance_norm:
            x, scale = normalise(x)
        channels = x.transpose(1, 2)  # [B, C, L]
        padded = F.pad(channels, (0, self.settings.stride), mode="replicate")
        patches = padded.unfold(-1, self.settings.patch_len, self.settings.stride).flatten(0, 1)
        tokens = self.dropout(self.embedding(patches) + self.position)  # [B * C, patches, width]
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens.flatten(0, 1)).view_as(tokens)
        y = self.dropout(self.head(tokens.flatten(1)))  # [B * C, H]
        y = y.unflatten(0, channels.shape[:2]).transpose(1, 2)
        return scale.undo(y) if scale else y
