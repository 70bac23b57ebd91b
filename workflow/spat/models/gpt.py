"""A small causal language model: the blocks of GPT-2 (Radford et al. 2019) over bytes.

The embedding of the bytes is also the map from the last block to the logits, as in GPT-2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Network
from spat.models.layers.language import Architecture, LanguageModel
from spat.models.settings import GPTSettings as Settings
from spat.models.settings import TextShape

# The standard deviation of the initial embeddings and positions, as in GPT-2.
START = 0.02


class GPT(Network):
    """Embedding, pre-norm blocks, logits; each block has one attention site."""

    def __init__(self, settings: Settings, shape: TextShape) -> None:
        """Initialise the weights at random.

        Raises:
            ValueError: if the settings do not fit the shape.
        """
        super().__init__(settings, shape)
        self.language = LanguageModel(
            Architecture(
                "gpt2",
                settings.d_model,
                settings.d_ff,
                settings.e_layers,
                settings.n_heads,
                settings.n_heads,
                shape.context,
                dropout=settings.dropout,
            )
        )
        self.words = nn.Parameter(START * torch.randn(shape.vocabulary, settings.d_model))
        assert self.language.positions is not None
        nn.init.normal_(self.language.positions, std=START)

    def sites(self) -> tuple[Site, ...]:
        """The attention of each block."""
        return self.language.sites()

    def forward(self, x: Tensor) -> Tensor:
        """Bytes, int64 [B, T] -> logits of the byte after each byte, [B, T, V]."""
        return F.linear(self.language(F.embedding(x, self.words)), self.words)
