"""A small vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929).

It differs from the published model in two ways. Its layers are the post-norm layers that the
forecasters of this project share, so that a comparison with them does not also compare two kinds
of layer. The logits are computed from the mean of the tokens, not from a class token, which would
not depend on the image if all attentions were removed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Network
from spat.models.layers.blocks import EncoderLayer, encoder_sites
from spat.models.settings import ImageShape
from spat.models.settings import ViTSettings as Settings
from spat.training.device.kernels import Dropout, Linear


class ViT(Network):
    """Encoder over square patches with learnt positions; each layer has one attention site."""

    settings: Settings
    shape: ImageShape

    def __init__(self, settings: Settings, shape: ImageShape) -> None:
        """Initialise the weights at random.

        Raises:
            ValueError: if the settings do not fit the shape.
        """
        super().__init__(settings, shape)
        patch = settings.patch_size
        tokens = (shape.height // patch) * (shape.width // patch)
        self.embedding = Linear(shape.channels * patch * patch, settings.d_model)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, settings.d_model))
        self.dropout = Dropout(settings.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(settings.d_model, settings.d_ff, settings.n_heads, settings.dropout)
            for _ in range(settings.e_layers)
        )
        self.head = Linear(settings.d_model, shape.classes)

    def sites(self) -> tuple[Site, ...]:
        """The self-attention of each layer."""
        return encoder_sites(self.layers, self.settings.n_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        patch = self.settings.patch_size
        pieces = x.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, h, w, patch, patch]
        tokens = pieces.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        tokens = self.dropout(self.embedding(tokens) + self.position)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))  # type: ignore[no-any-return]
