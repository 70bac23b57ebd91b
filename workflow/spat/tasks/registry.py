"""The tasks, by name."""

from __future__ import annotations

from typing import Final

from spat.tasks.forecasting import Forecasting
from spat.tasks.task import Task

# By the name that a row of the model registry gives.
TASKS: Final[dict[str, Task]] = {task.name: task for task in (Forecasting(),)}
