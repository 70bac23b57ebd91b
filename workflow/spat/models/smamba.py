"""S-Mamba (Wang et al. 2024, arXiv 2403.11144): two selective scans over variates.

As in iTransformer, a token is the whole past of one channel. With time features, each time feature
is one more token. Two Mamba blocks replace attention: one reads the tokens from the first to the
last, the other from the last to the first. The forecast thus depends on the order of the channels.

The published code also builds two more Mamba blocks and an attention in each layer, which it never
uses. They are left out here (4,928 of 1,150,624 parameters for ETTh1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster, required
from spat.models.layers.blocks import FeedForward, normalise
from spat.models.layers.scan import Mamba
from spat.models.settings import Shape
from spat.models.settings import SMambaSettings as Settings
from spat.training.device.kernels import Dropout, Linear


class ScanLayer(nn.Module):
    """Post-norm: x = norm(x + scan(x) + backward scan(x)), then x = norm(x + feed_forward(x)).

    The scans have no dropout, as published.
    """

    forward_scan: Mamba | None
    backward_scan: Mamba | None

    def __init__(self, settings: Settings) -> None:
        super().__init__()

        def mamba(backwards: bool) -> Mamba:
            return Mamba(
                settings.d_model,
                states=settings.d_state,
                kernel=settings.d_conv,
                expand=settings.expand,
                backwards=backwards,
            )

        self.forward_scan = mamba(backwards=False)
        self.backward_scan = mamba(backwards=True)
        self.norm1 = nn.LayerNorm(settings.d_model)
        self.feed_forward = FeedForward(settings.d_model, settings.d_ff, settings.dropout)
        self.norm2 = nn.LayerNorm(settings.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> [B, tokens, width]."""
        scans = [scan(x) for scan in (self.forward_scan, self.backward_scan) if scan is not None]
        x = self.norm1(sum(scans, x))
        return self.norm2(x + self.feed_forward(x))  # type: ignore[no-any-return]


class SMamba(Forecaster):
    """Encoder over channels; its weights do not depend on the number of channels."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.embedding = Linear(shape.lookback, settings.d_model)
        self.dropout = Dropout(settings.dropout)
        self.layers = nn.ModuleList(ScanLayer(settings) for _ in range(settings.e_layers))
        self.norm = nn.LayerNorm(settings.d_model)
        self.head = Linear(settings.d_model, shape.horizon)

    def sites(self) -> tuple[Site, ...]:
        """The two scans of each layer."""
        return tuple(
            Site(f"encoder.{i}.{direction}", layer, f"{direction}_scan", 1, "scan")
            for i, layer in enumerate(self.layers)
            for direction in ("forward", "backward")
        )

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        channels = x.shape[-1]
        scale = None
        if self.settings.instance_norm:
            x, scale = normalise(x)
        # Time features come after the channels, so only backward scans carry them to the channels.
        # Their tokens are dropped after the last backward scan.
        backward = [i for i, layer in enumerate(self.layers) if layer.backward_scan is not None]
        last = max(backward, default=None)
        if self.settings.time_features and last is not None:
            x = torch.cat([x, required(past_marks, "past_marks")], dim=-1)
        tokens = self.dropout(self.embedding(x.transpose(1, 2)))  # [B, C (+ F), width]
        for i, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if i == last:
                tokens = tokens[:, :channels]
        y = self.head(self.norm(tokens)).transpose(1, 2)
        return scale.undo(y) if scale else y
