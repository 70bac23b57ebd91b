"""The data of forecasting runs: prepared series, and example forecasts for figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spat.data import series
from spat.data.windows import Splits, Windows, split
from spat.models.base import Network
from spat.pipeline import runs
from spat.pipeline.config import Config
from spat.pipeline.records import EXAMPLE_WINDOWS
from spat.pipeline.runs import Run
from spat.tasks.setting import Window
from spat.tasks.task import Task


def opened(config: Config, dataset: str, run: Run, device: torch.device) -> tuple[str, Splits]:
    """The hash of the data, and the windows of the run's lookback and horizon."""
    prepared = series.load(runs.prepared_file(config, dataset))
    window = Window.parse(run.setting)
    return prepared.sha256, split(prepared, window.lookback, window.horizon, device=str(device))


@torch.inference_mode()
def examples(model: Network, task: Task, windows: Windows) -> dict[str, np.ndarray[Any, Any]]:
    """Input, truth and forecast [W, steps] of the last channel in evenly spaced test windows.

    W is `EXAMPLE_WINDOWS`.
    """
    index = torch.linspace(0, len(windows) - 1, EXAMPLE_WINDOWS, device=windows.device).long()
    batch = windows.batch(index)
    forecast = task.forward(model.eval(), batch)
    return {
        "window": index.cpu().numpy(),
        "input": batch.x[..., -1].cpu().numpy(),
        "truth": batch.y[..., -1].cpu().numpy(),
        "forecast": forecast[..., -1].float().cpu().numpy(),
    }
