"""A table of all forecasters at their published settings for a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from spat.data.registry import DATASETS, TIME_FEATURES, WITHOUT_TIME
from spat.models.registry import FORECASTERS, Model, Setup, Shape, build, setup
from spat.tasks.registry import task_named
from spat.training.device import costs

COLUMNS: Final = (
    "name", "role", "task", "settings", "recipe", "source", "parameters", "flops", "sites", "views",
    "note",
)  # fmt: skip


def overview(dataset: str, horizon: int, lookback: int | None = None) -> Iterator[dict[str, str]]:
    """A row of `COLUMNS` for each forecaster of the registry.

    Without `lookback`, the lookback is that of the dataset. `flops` are those of one window. If a
    model cannot be built, `note` gives the reason.

    Raises:
        ValueError: if the dataset is unknown or not a time series, or a length is not from 1 to the
            number of its rows.
    """
    if dataset in WITHOUT_TIME:
        raise ValueError(
            f"dataset {dataset!r} is not a time series, and only forecasters are listed: choose "
            f"one of {', '.join(DATASETS)}"
        )
    rows = DATASETS[dataset].rows if dataset in DATASETS else None
    for name, steps in (("horizon", horizon), ("lookback", lookback)):
        if rows and steps is not None and not 1 <= steps <= rows:
            raise ValueError(
                f"{name} {steps}: give a number from 1 to {rows}, the rows of {dataset}"
            )
    for model in FORECASTERS.values():
        published = setup(model.name, "published", dataset, horizon)
        row = DATASETS[dataset]
        shape = Shape(
            lookback or row.lookback, horizon, row.channels, len(TIME_FEATURES) if row.mark else 0
        )
        described = {
            "name": model.name,
            "role": model.role,
            "task": model.task,
            "settings": _shown(asdict(published.settings)),
            "recipe": _shown(asdict(published.recipe)) if model.role != "naive" else "",
            "source": published.source,
        }
        yield dict.fromkeys(COLUMNS, "") | described | _built(model, published, shape)


def _built(model: Model, published: Setup, shape: Shape) -> dict[str, str]:
    try:
        network = build(model.name, published.settings, shape)
    except (ValueError, ImportError, OSError) as error:
        return {"note": str(error)}
    task = task_named(model.task)
    return {
        "parameters": str(costs.parameters(network)),
        "flops": str(costs.flops(network, task, task.example(shape))),
        "sites": " ".join(site.name for site in network.sites()),
        "views": " ".join(model.views),
    }


def _shown(values: dict[str, object]) -> str:
    return "; ".join(f"{name}={value}" for name, value in values.items() if value is not None)
