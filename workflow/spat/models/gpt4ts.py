"""GPT4TS, or One-Fits-All (Zhou et al., NeurIPS 2023, arXiv 2302.11939): patches read by GPT-2.

A linear map turns the patches of each channel into tokens, the first blocks of a language model
read the tokens, and another linear map turns the outputs into the forecast. Both maps, the norms
and the positions of the language model are trained; its attention and feed-forward layers are
frozen.

The suffix of the name gives the weights: `GPT4TS-gpt2` has those of GPT-2 small, as published,
`GPT4TS-smollm2` has blocks of SmolLM2, and `GPT4TS-random` has the blocks of GPT-2 with random
weights, the ablation of Tan et al. (2024, arXiv 2406.16964). The token embedding of the language
model, which the published code loads but does not use, is left out (38,597,376 of its 85,022,304
parameters for ETTh1).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from spat.attention.site import Site
from spat.models.base import Forecaster
from spat.models.layers.blocks import normalise
from spat.models.layers.language import LanguageModel
from spat.models.layers.pretrained import language_model
from spat.models.settings import GPT4TSRandomSettings, PatchedLanguageSettings, Shape
from spat.training.device.kernels import Linear


class GPT4TS(Forecaster):
    """A linear map, blocks of a language model, and a linear map; channels are independent."""

    settings: PatchedLanguageSettings

    def __init__(self, settings: PatchedLanguageSettings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.language, self.base = self._language_model()
        width = self.language.architecture.width
        for name, parameter in self.language.named_parameters():
            parameter.requires_grad_("norm" in name or name == "positions")
        self.embedding = Linear(settings.patch_len, width)
        self.head = Linear(settings.patches(shape) * width, shape.horizon)

    def _language_model(self) -> tuple[LanguageModel, str | None]:
        return language_model(self.settings.backbone, self.settings.llm_layers)

    def sites(self) -> tuple[Site, ...]:
        """The attention of each block of the language model."""
        return self.language.sites()

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        x, scale = normalise(x)
        channels = x.transpose(1, 2)  # [B, C, L]
        padded = F.pad(channels, (0, self.settings.stride), mode="replicate")
        patches = padded.unfold(-1, self.settings.patch_len, self.settings.stride).flatten(0, 1)
        tokens = self.language(self.embedding(patches))  # [B * C, patches, width]
        y = self.head(tokens.flatten(1)).unflatten(0, channels.shape[:2])
        return scale.undo(y.transpose(1, 2))


class GPT4TSGPT2(GPT4TS):
    """GPT4TS with the weights of GPT-2."""


class GPT4TSSmolLM2(GPT4TS):
    """GPT4TS with the weights of SmolLM2."""


class GPT4TSRandom(GPT4TS):
    """GPT4TS with random weights."""

    settings: GPT4TSRandomSettings

    def _language_model(self) -> tuple[LanguageModel, str | None]:
        s = self.settings
        return language_model(
            s.backbone,
            s.llm_layers,
            width=s.llm_width,
            heads=s.llm_heads,
            dropout=s.dropout,
        )
