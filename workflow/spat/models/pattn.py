"""PAttn (Tan et al., NeurIPS 2024, arXiv 2406.16964), in the version of the Time-Series-Library.

The model has one attention between the patches of one channel, and a linear head. The version of
the library differs from that of the paper: a whole encoder layer (feed-forward, biases, a final
normalisation) replaces the bare attention. The published settings are those of the library, so this
module implements the version of the library.

Channels are independent: the batch of the attention is windows x channels, as in `PatchTST`. If the
site is removed, the feed-forward maps each patch separately, and only the head joins patches.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster
from spat.models.layers.blocks import EncoderLayer, normalise
from spat.models.settings import PAttnSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Linear


class PAttn(Forecaster):
    """Overlapping patches without positions, one encoder layer, one head for all patches."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        """The end of a window is padded by one stride before it is cut into patches."""
        super().__init__(settings, shape)
        width = settings.d_model
        patches = (shape.lookback + settings.stride - settings.patch_len) // settings.stride + 1
        self.embedding = Linear(settings.patch_len, width)
        self.layer = EncoderLayer(width, settings.d_ff, settings.n_heads, settings.dropout)
        self.norm = nn.LayerNorm(width)
        self.head = Linear(patches * width, shape.horizon)

    def sites(self) -> tuple[Site, ...]:
        """The only attention; if it is removed, the forecast still depends on every patch."""
        return (Site("encoder.0.self", self.layer, "attention", self.settings.n_heads),)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        x, scale = normalise(x)
        channels = x.transpose(1, 2)  # [B, C, L]
        padded = F.pad(channels, (0, self.settings.stride), mode="replicate")
        patches = padded.unfold(-1, self.settings.patch_len, self.settings.stride)
        tokens = self.layer(self.embedding(patches.flatten(0, 1)))  # [B * C, patches, width]
        y = self.head(self.norm(tokens).flatten(1))  # [B * C, H]
        return scale.undo(y.unflatten(0, channels.shape[:2]).transpose(1, 2))
