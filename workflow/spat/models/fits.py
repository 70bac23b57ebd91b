"""FITS (Xu et al., ICLR 2024, arXiv 2307.03756): a forecast by interpolation of the spectrum.

One complex linear map, shared by all channels, maps the low frequencies of a window of L steps to
those of L + H steps. The loss is that of the forecast only (the published `train_mode` 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.base import Forecaster
from spat.models.settings import FITSSettings as Settings
from spat.models.settings import Shape


class ComplexLinear(nn.Module):
    """Y = X W^T + b on complex numbers, stored as real and imaginary parts.

    Adam treats the two parts of a complex parameter separately, so training is the same. The
    initial W and b are real, as published.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        start = nn.Linear(inputs, outputs)
        self.weight = nn.Parameter(torch.stack([start.weight, torch.zeros_like(start.weight)]))
        self.bias = nn.Parameter(torch.stack([start.bias, torch.zeros_like(start.bias)]))

    def forward(self, x: Tensor) -> Tensor:
        """Complex [..., in] -> complex [..., out]."""
        real, imaginary = self.weight
        whole = torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])
        y = F.linear(torch.cat([x.real, x.imag], -1), whole, self.bias.flatten())
        return torch.complex(*y.chunk(2, -1))


class FITS(Forecaster):
    """Normalises a window, extends its spectrum, and returns the last H steps of the inverse."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.kept, written = settings.frequencies(shape)
        self.spectrum = ComplexLinear(self.kept, written)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        lookback, steps = self.shape.lookback, self.shape.lookback + self.shape.horizon
        mean = x.mean(1, keepdim=True)
        x = x - mean
        deviation = (x.var(1, keepdim=True) + 1e-5).sqrt()  # sample variance, as published
        frequencies = torch.fft.rfft((x / deviation).transpose(1, 2))[..., : self.kept]
        # irfft fills missing frequencies with zeros.
        y = torch.fft.irfft(self.spectrum(frequencies), n=steps)[..., lookback:]
        y = y * (steps / lookback)  # irfft divides by `steps` instead of `lookback`
        return y.transpose(1, 2) * deviation + mean  # type: ignore[no-any-return]
