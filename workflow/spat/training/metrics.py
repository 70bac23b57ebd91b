"""Errors of a forecaster over all windows of a split, whatever the batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spat.attention.modes import evaluating
from spat.data.windows import Batch, Windows

# Windows x channels x features of the widest layer in a batch. On a CPU larger batches leave the
# cache (PatchTST of width 512 evaluates 1.6 times faster with 32 windows than with 300); a GPU is
# filled with less than this even by narrow models, which count as `NARROW` features wide.
VALUES: Final = {"cpu": 2**19, "cuda": 2**22}
NARROW: Final = 256


@dataclass(frozen=True)
class Errors:
    """Errors in the standardised scale.

    `mse` and `mae` are means over all windows, steps and channels; `window_mse` and `window_mae`
    [N] are those of each window (float32, in the order of the split). Forecasts that are not finite
    give errors that are not finite.
    """

    mse: float
    mae: float
    window_mse: NDArray[np.float32]
    window_mae: NDArray[np.float32]


@torch.inference_mode()
def evaluate(model: nn.Module, windows: Windows, batch_size: int | None = None) -> Errors:
    """Errors of `model` on every window of `windows`, the last batch included.

    Sums run in float64 and stay on the device until the end, so that nothing waits for a batch. The
    mode (training or evaluation) of each module is what it was before. The batch size, by default
    chosen by the number of channels and the width of the model, is a matter of speed and memory
    alone.

    Raises:
        ValueError: if `batch_size` is not positive.
    """
    device = windows.device
    if batch_size is None:
        batch_size = _fitting(model, windows)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: give a positive number of windows")
    index = torch.arange(len(windows), device=device)
    with evaluating(model):
        parts = [_batch_errors(model, windows, part) for part in torch.split(index, batch_size)]
    errors = torch.cat(parts, dim=1).cpu()  # [2, N]
    mse, mae = errors.mean(dim=1).tolist()
    squared, absolute = errors.float().numpy()
    return Errors(mse, mae, squared, absolute)


def window_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of each window, float64 [B], with gradients."""
    error = model(batch.x, batch.past_marks, batch.future_marks) - batch.y
    return error.double().square().mean((1, 2))  # type: ignore[no-any-return]


def _fitting(model: nn.Module, windows: Windows) -> int:
    """How many windows a batch holds so that its widest activations stay near the arithmetic."""
    linear = (layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear))
    width = max(NARROW, *linear, 0)
    return max(1, VALUES[windows.device.type] // (windows.channels * width))


def _batch_errors(model: nn.Module, windows: Windows, index: Tensor) -> Tensor:
    """index [B] -> mean squared and absolute error of each window, float64 [2, B]."""
    batch = windows.batch(index)
    forecast = model(batch.x, batch.past_marks, batch.future_marks)
    error = (forecast.float() - batch.y).flatten(1)  # [B, H * C]
    squared = error.square().mean(dim=1, dtype=torch.float64)
    absolute = error.abs().mean(dim=1, dtype=torch.float64)
    return torch.stack([squared, absolute])
