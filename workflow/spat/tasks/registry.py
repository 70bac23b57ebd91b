"""The tasks, by name. The module of a task is imported at its first use."""

from __future__ import annotations

import importlib
from typing import Final, cast

from spat.tasks.task import Task

# The class of each task, in the module of the same name.
CLASSES: Final = {"forecasting": "Forecasting", "imaging": "Imaging", "text": "Text"}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        KeyError: if there is no such task.
    """
    return cast(Task, getattr(importlib.import_module(f"spat.tasks.{name}"), CLASSES[name])())
