"""The data of imaging runs: prepared images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spat.data import images
from spat.data.images import ImageCases, Splits
from spat.models.base import Network
from spat.pipeline import runs
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.tasks.task import Task


def opened(config: Config, dataset: str, run: Run, device: torch.device) -> tuple[str, Splits]:
    """The hash of the data, and the images of each split."""
    prepared = images.load(runs.prepared_file(config, dataset))
    splits = images.split(prepared.train, prepared.test, prepared.borders, device=device)
    return prepared.sha256, splits


def examples(model: Network, task: Task, cases: ImageCases) -> dict[str, np.ndarray[Any, Any]]:
    """No arrays, since no figure shows single images."""
    return {}
