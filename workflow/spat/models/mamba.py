"""A plain Mamba forecaster over time steps (block: Gu & Dao 2023, arXiv 2312.00752).

It follows `MambaSimple` of the Time-Series-Library up to its head: normalised windows, a token per
step, layers x + Mamba(RMSNorm(x)), a final RMSNorm and a map to the channels. Two parts differ:

- The head. The published head takes the last H of the L outputs. Therefore the horizon cannot be
  longer than the lookback, and a step of the forecast depends only on the steps up to H steps
  before it. Here one linear map, shared by all channels, maps the L steps of a channel to H steps.
  It has L H + H more parameters and allows every horizon.
- The initialisation of the step sizes is that of `mamba_ssm` and not torch's default.
"""

from __future__ import annotations

from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster, required
from spat.models.layers.blocks import StepEmbedding, normalise
from spat.models.layers.scan import Mamba
from spat.models.settings import MambaSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Linear


class MambaLayer(nn.Module):
    """Pre-norm: x + scan(norm(x)); if the scan is removed, the norm is not called."""

    scan: Mamba | None

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(settings.d_model, eps=1e-5)
        self.scan = Mamba(
            settings.d_model,
            states=settings.d_state,
            kernel=settings.d_conv,
            expand=settings.expand,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        return x if self.scan is None else x + self.scan(self.norm(x))


class MambaForecaster(Forecaster):
    """Selective scans over the steps of a window, then one linear map over time."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        marks = shape.marks if settings.time_features else 0
        self.embedding = StepEmbedding(
            shape.channels, settings.d_model, shape.lookback, marks, settings.dropout
        )
        self.layers = nn.ModuleList(MambaLayer(settings) for _ in range(settings.e_layers))
        self.norm = nn.RMSNorm(settings.d_model, eps=1e-5)
        self.channels = Linear(settings.d_model, shape.channels, bias=False)
        self.steps = Linear(shape.lookback, shape.horizon)

    def sites(self) -> tuple[Site, ...]:
        """The scan of each layer."""
        return tuple(
            Site(f"encoder.{i}.scan", layer, "scan", 1, "scan", added_to="layer")
            for i, layer in enumerate(self.layers)
        )

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C], past_marks [B, L, F] -> [B, H, C]."""
        x, scale = normalise(x)
        if self.settings.time_features:
            past_marks = required(past_marks, "past_marks")
        tokens = self.embedding(x, past_marks)
        for layer in self.layers:
            tokens = layer(tokens)
        outputs = self.channels(self.norm(tokens))  # [B, L, C]
        return scale.undo(self.steps(outputs.transpose(1, 2)).transpose(1, 2))
