"""The data of runs of language models: prepared texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spat.data import texts
from spat.data.texts import Splits, TextCases
from spat.models.base import Network
from spat.pipeline import runs
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.tasks.setting import Context
from spat.tasks.task import Task


def opened(config: Config, dataset: str, run: Run, device: torch.device) -> tuple[str, Splits]:
    """The hash of the data, and the sequences of each split."""
    prepared = texts.load(runs.prepared_file(config, dataset))
    context = Context.parse(run.setting).bytes
    return prepared.sha256, texts.split(prepared.content, prepared.borders, context, device)


def examples(model: Network, task: Task, cases: TextCases) -> dict[str, np.ndarray[Any, Any]]:
    """No arrays, since no figure shows single sequences."""
    return {}
