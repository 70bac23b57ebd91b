"""NLinear (Zeng et al., AAAI 2023, arXiv 2205.13504)."""

from __future__ import annotations

from torch import Tensor

from spat.models.base import Forecaster
from spat.models.settings import Settings, Shape
from spat.training.device.kernels import Linear


class NLinear(Forecaster):
    """One linear map, shared by all channels, of the distance to the last step."""

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.head = Linear(shape.lookback, shape.horizon)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        last = x[:, -1:]
        return self.head((x - last).transpose(1, 2)).transpose(1, 2) + last  # type: ignore[no-any-return]
