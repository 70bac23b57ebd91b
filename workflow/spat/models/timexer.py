"""TimeXer (Wang et al., NeurIPS 2024, arXiv 2402.19072), forecasting all variates.

There are two kinds of tokens. A variate is cut into patches without overlap, followed by one learnt
global token of the variate; self-attention joins the tokens of one variate. Each series and each
time feature is also one exogenous token, which the global tokens read by cross-attention.
Information passes from one variate to another only through global tokens. Each channel has its own
global token (`fixed_channels`).

If a site is removed, the normalisation of its sub-layer stays. If all cross-attentions are removed,
nothing reads the exogenous tokens: they are not computed, and the sweep removes their embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster, required
from spat.models.layers.attention import MultiHeadAttention
from spat.models.layers.blocks import FeedForward, normalise, sinusoids
from spat.models.settings import Shape
from spat.models.settings import TimeXerSettings as Settings
from spat.training.device.kernels import Dropout, Linear


class TimeXerLayer(nn.Module):
    """Post-norm: self-attention of a variate, cross-attention of global tokens, feed-forward."""

    self_attention: MultiHeadAttention | None
    cross_attention: MultiHeadAttention | None

    def __init__(self, width: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.cross_attention = MultiHeadAttention(width, heads, dropout=dropout, cross=True)
        self.dropout = Dropout(dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner, dropout)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, exogenous: Tensor | None, channels: int) -> Tensor:
        """Tokens to tokens, both [B * C, patches + 1, width].

        Args:
            x: The patches of each variate, followed by its global token.
            exogenous: Exogenous tokens [B, C + F, width]; only the cross-attention reads them.
            channels: Number of channels C.
        """
        if self.self_attention is not None:
            x = x + self.dropout(self.self_attention(x))
        x = self.norm1(x)
        tokens = x[:, -1].reshape(-1, channels, x.shape[-1])  # global tokens [B, C, width]
        if self.cross_attention is not None:
            tokens = tokens + self.dropout(self.cross_attention(tokens, exogenous))
        tokens = self.norm2(tokens).flatten(0, 1).unsqueeze(1)
        x = torch.cat([x[:, :-1], tokens], dim=1)
        return self.norm3(x + self.feed_forward(x))  # type: ignore[no-any-return]


class TimeXer(Forecaster):
    """Patches and global tokens of each variate, exogenous tokens, one head for all tokens."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        """Steps at the end of a window that fill no patch are left out, as published."""
        super().__init__(settings, shape)
        width, dropout = settings.d_model, settings.dropout
        patches = shape.lookback // settings.patch_len
        self.patch = Linear(settings.patch_len, width, bias=False)
        self.register_buffer("position", sinusoids(patches, width), persistent=False)
        self.whole = nn.Parameter(torch.randn(shape.channels, 1, width))  # the global tokens
        self.exogenous = Linear(shape.lookback, width)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TimeXerLayer(width, settings.d_ff, settings.n_heads, dropout)
            for _ in range(settings.e_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width * (patches + 1), shape.horizon)

    def sites(self) -> tuple[Site, ...]:
        """The two attentions of each layer.

        If all are removed, a forecast still depends on the patches of its variate.
        """
        heads, sites = self.settings.n_heads, []
        for i, layer in enumerate(self.layers):
            sites.append(Site(f"encoder.{i}.self", layer, "self_attention", heads))
            sites.append(Site(f"encoder.{i}.cross", layer, "cross_attention", heads, kind="cross"))
        return tuple(sites)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C], past_marks [B, L, F] -> [B, H, C]."""
        x, scale = normalise(x)
        exogenous = None
        if any(layer.cross_attention is not None for layer in self.layers):
            series = x
            if self.settings.time_features:
                series = torch.cat([x, required(past_marks, "past_marks")], dim=-1)
            exogenous = self.dropout(self.exogenous(series.transpose(1, 2)))
        size = self.settings.patch_len
        patches = self.patch(x.transpose(1, 2).unfold(-1, size, size)) + self.position
        whole = self.whole.expand(len(x), -1, -1, -1)
        tokens = self.dropout(torch.cat([patches, whole], dim=2).flatten(0, 1))
        for layer in self.layers:
            tokens = layer(tokens, exogenous, x.shape[-1])
        # The columns of the head are ordered by feature, then token, as published.
        features = self.norm(tokens).transpose(1, 2).flatten(1)
        y = self.dropout(self.head(features)).unflatten(0, (-1, x.shape[-1]))
        return scale.undo(y.transpose(1, 2))
