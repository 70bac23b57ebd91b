"""TimeMachine (Ahamed & Cheng, ECAI 2024, arXiv 2403.09898): four Mamba blocks at two widths.

Each channel of a window is mapped from L steps to n1 features, which two blocks read, and then to
n2 features, which two other blocks read. With `channel_independent`, one block of each pair sees
the features of a channel as one token (`mamba3`, `mamba2`) and the other as n1 or n2 tokens of
width 1 (`mamba4`, `mamba1`). Without it, the tokens of all four blocks are the channels.

A block that sees one token passes no state on, so its matrix A has no effect. The published code
keeps this matrix; here it is left out (139,264 of 1,425,858 parameters for ETTh1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster
from spat.models.layers.blocks import RevIN
from spat.models.layers.scan import Mamba
from spat.models.settings import Shape
from spat.models.settings import TimeMachineSettings as Settings
from spat.training.device.kernels import Dropout, Linear


class OverFeatures(Mamba):
    """A Mamba block of width 1 whose tokens are the n features of one token."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, n] -> [B, 1, n]."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ScanPair(nn.Module):
    """The sum of two blocks without a residual connection; zeros if both were removed."""

    whole: Mamba | None
    other: Mamba | None

    def __init__(self, width: int, settings: Settings) -> None:
        super().__init__()
        alone = settings.channel_independent
        states, kernel, expand = settings.d_state, settings.d_conv, settings.expand
        self.whole = Mamba(width, states=states, kernel=kernel, expand=expand, one_token=alone)
        kind, size = (OverFeatures, 1) if alone else (Mamba, width)
        self.other = kind(size, states=states, kernel=kernel, expand=expand)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, n] -> [B, tokens, n]."""
        scans = [scan(x) for scan in (self.whole, self.other) if scan is not None]
        return sum(scans, torch.zeros_like(x))


class TimeMachine(Forecaster):
    """Two pairs of selective scans; the normalisation has weights for each channel."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        n1, n2 = settings.n1, settings.n2
        self.norm = RevIN(shape.channels) if settings.revin else None
        self.map1 = Linear(shape.lookback, n1)
        self.outer = ScanPair(n1, settings)
        self.map2 = Linear(n1, n2)
        self.inner = ScanPair(n2, settings)
        self.map3 = Linear(n2, n1)
        self.head = Linear(2 * n1, shape.horizon)
        self.dropout = Dropout(settings.dropout)

    def sites(self) -> tuple[Site, ...]:
        """The four scans by their published names; none has a residual connection."""
        return (
            Site("mamba3", self.outer, "whole", 1, "scan", added_to="nothing"),
            Site("mamba4", self.outer, "other", 1, "scan", added_to="nothing"),
            Site("mamba2", self.inner, "whole", 1, "scan", added_to="nothing"),
            Site("mamba1", self.inner, "other", 1, "scan", added_to="nothing"),
        )

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        batch, _, channels = x.shape
        if self.norm is not None:
            x, scale = self.norm(x)
        x = x.transpose(1, 2)
        if self.settings.channel_independent:
            x = x.flatten(0, 1).unsqueeze(1)  # [B * C, 1, L]; else [B, C, L]
        a = self.map1(x)
        dropped = self.dropout(a)
        outer = self.outer(dropped)
        b = self.map2(dropped)
        inner = self.map3(b + self.inner(self.dropout(b)))
        y = self.head(torch.cat([inner + a, outer], dim=-1))
        y = y.reshape(batch, channels, -1).transpose(1, 2)
        return self.norm.undo(y, scale) if self.norm is not None else y
