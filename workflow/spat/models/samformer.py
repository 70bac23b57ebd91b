"""SAMformer (Ilbert et al., ICML 2024, arXiv 2402.10198): one attention between channels.

A token is the whole past of one channel. The attention has one head, queries and keys of `d_keys`
features, and values of the length of the lookback. There is no output projection, feed-forward or
dropout, and no normalisation except `RevIN`. The model is published with sharpness-aware training
(the recipe's `sam_rho`).

If the site is removed, the model is RLinear: one linear map of the normalised past, the same for
all channels. The model thus tests whether attention helps if everything else is unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster
from spat.models.layers.attention import AttentionCore
from spat.models.layers.blocks import RevIN
from spat.models.settings import SAMformerSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Linear


class ChannelAttention(nn.Module):
    """softmax(Q K^T / sqrt(d_keys)) V with one head; the values have the size of a token."""

    def __init__(self, length: int, d_keys: int) -> None:
        super().__init__()
        self.q = Linear(length, d_keys)
        self.k = Linear(length, d_keys)
        self.v = Linear(length, length)
        self.core = AttentionCore(dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> [B, C, L]."""
        q, k, v = (linear(x).unsqueeze(1) for linear in (self.q, self.k, self.v))  # one head
        return self.core(q, k, v).squeeze(1)  # type: ignore[no-any-return]

    def query_key_rows(self) -> list[tuple[nn.Linear, list[slice]]]:
        """The projections that compute q and k, each with all of its rows."""
        return [(self.q, [slice(None)]), (self.k, [slice(None)])]

    def head_weights(self) -> tuple[Tensor, Tensor]:
        """W_o, the identity, and W_v of the only head, both float64 [1, L, L]."""
        values = self.v.weight.detach().double().unsqueeze(0)
        return torch.eye(values.shape[-1]).to(values).unsqueeze(0), values


class SAMformer(Forecaster):
    """x + attention(x) over channels, then one linear map from the lookback to the horizon."""

    settings: Settings
    attention: ChannelAttention | None

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.norm = RevIN(shape.channels)
        self.attention = ChannelAttention(shape.lookback, settings.d_keys)
        self.head = Linear(shape.lookback, shape.horizon)

    def sites(self) -> tuple[Site, ...]:
        """The only attention, which can only be removed as a whole."""
        return (Site("encoder.0.self", self, "attention", heads=1),)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        x, scale = self.norm(x)
        tokens = x.transpose(1, 2)  # [B, C, L]
        if self.attention is not None:
            tokens = tokens + self.attention(tokens)
        return self.norm.undo(self.head(tokens).transpose(1, 2), scale)
