"""The properties of the runs of each task. This module does not import torch.

The task of a run is the task of its model. It determines the settings of a block of the grid, the
shape of the model, and the dependencies of the prepared data. The data themselves, which need
torch, are in the module of `spat.pipeline.stages` with the name of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Protocol

from spat.data.registry import IMAGES, TEXTS, TIME_FEATURES, DataError, borders
from spat.models.registry import MODELS, setup
from spat.models.settings import ImageShape, Shape, TextShape
from spat.pipeline import datasets
from spat.pipeline.config import Config, ConfigError, GridBlock
from spat.tasks.setting import IMAGES_IN_BLOCK, Context, Size, Window

if TYPE_CHECKING:
    from spat.models.registry import Setup
    from spat.pipeline.runs import Run


class Runs(Protocol):
    """The runs of one task."""

    def settings(self, config: Config, block: GridBlock, dataset: str) -> list[str]:
        """The settings of a block of the grid for one of its datasets.

        Raises:
            ConfigError: if the block has a key that this task does not have.
        """

    def setup(self, config: Config, run: Run, variant: str, changes: Mapping[str, Any]) -> Setup:
        """The row of the model registry for a variant of the registry, with changes.

        Raises:
            ValueError: see `spat.models.registry.setup`.
        """

    def shape(self, config: Config, run: Run, *, time_features: bool) -> Any:
        """The shape of the run's model, with or without time features."""

    def too_short(self, config: Config, run: Run) -> str | None:
        """The reason why a split of the run's dataset has no case of its setting, or None."""

    def block(self, run: Run) -> int:
        """The block length of the bootstrap in cases, at least the number of overlapping cases."""

    def epoch(self, config: Config, run: Run) -> tuple[Setup, float]:
        """A setup with a known time per epoch (`spat.pipeline.expected`), and a factor.

        The factor is the work of an epoch of the run over all training cases, as a multiple of that
        of the setup.
        """

    def data(self, config: Config, dataset: str) -> dict[str, Any]:
        """The dependencies of the prepared data, as plain values."""


def of(run: Run) -> Runs:
    """The task of a run."""
    return RUNS[MODELS[run.model].task]


class _Forecasting:
    # The known time per epoch is for ETTh1 at lookback and horizon 96.
    CHANNELS: Final = 7
    STEPS: Final = 192
    WINDOWS: Final = 8449
    # These models attend to time steps. Others have one or several tokens per channel.
    OVER_TIME: Final = frozenset(
        {"Transformer", "Nonstationary", "Informer", "Autoformer", "FEDformer"}
    )

    def settings(self, config: Config, block: GridBlock, dataset: str) -> list[str]:
        row = datasets.find(config, dataset)
        lookback = block.lookback or row.lookback
        return [str(Window(lookback, horizon)) for horizon in block.horizons or row.horizons]

    def setup(self, config: Config, run: Run, variant: str, changes: Mapping[str, Any]) -> Setup:
        season = datasets.find(config, run.dataset).season
        horizon = Window.parse(run.setting).horizon
        return setup(run.model, variant, run.dataset, horizon, changes, season)

    def shape(self, config: Config, run: Run, *, time_features: bool) -> Shape:
        row, window = datasets.find(config, run.dataset), Window.parse(run.setting)
        marks = len(TIME_FEATURES) if time_features and row.mark else 0
        return Shape(window.lookback, window.horizon, row.channels, marks)

    def too_short(self, config: Config, run: Run) -> str | None:
        row, window = datasets.find(config, run.dataset), Window.parse(run.setting)
        try:
            splits = borders(row, row.rows)
        except DataError as error:
            return str(error)
        # Windows of validation and test may start before their split.
        needed = {"train": sum(window), "validation": window.horizon, "test": window.horizon}
        for name, steps in needed.items():
            start, stop = getattr(splits, name)
            if stop - start < steps:
                custom = config.data.custom.get(row.name)
                file = f" ({custom.file})" if custom else ""
                return (
                    f"{row.name}{file} has {stop - start} rows for {name}, fewer than the {steps} "
                    "of a window: use a shorter horizon or lookback, or more rows"
                )
        return None

    def block(self, run: Run) -> int:
        return sum(Window.parse(run.setting))

    def epoch(self, config: Config, run: Run) -> tuple[Setup, float]:
        row, window = datasets.find(config, run.dataset), Window.parse(run.setting)
        known = setup(run.model, "published", "ETTh1", 96)
        first, last = borders(row, row.rows).train
        windows = max(1, last - first - sum(window) + 1) / self.WINDOWS
        steps = sum(window) / self.STEPS
        if run.model in self.OVER_TIME:
            return known, windows * steps
        tokens = row.channels / self.CHANNELS * (1.0 if run.model == "iTransformer" else steps)
        return known, windows * tokens

    def data(self, config: Config, dataset: str) -> dict[str, Any]:
        row = datasets.find(config, dataset)
        generated = row.format == "synthetic"
        return {
            "name": row.name,
            "format": row.format,
            "step": row.step,
            "mark": row.mark,
            "rows": row.rows,
            "channels": row.channels,
            "borders": asdict(borders(row, row.rows)),
            "gaps": asdict(row.gaps),
            "table": asdict(row.table),
            "generated": config.data.synthetic.model_dump(mode="json") if generated else {},
            # A file of the user is identified by its hash only.
            **({"sha256": row.sha256} if dataset in config.data.custom else {}),
        }


class _Imaging:
    def settings(self, config: Config, block: GridBlock, dataset: str) -> list[str]:
        if block.lookback is not None or block.horizons is not None:
            raise ConfigError(
                f"{dataset} has images, which have no `lookback` and no `horizons`: leave them out"
            )
        row = IMAGES[dataset]
        return [str(Size(row.height, row.width))]

    def setup(self, config: Config, run: Run, variant: str, changes: Mapping[str, Any]) -> Setup:
        return setup(run.model, variant, run.dataset, None, changes)

    def shape(self, config: Config, run: Run, *, time_features: bool) -> ImageShape:
        row, size = IMAGES[run.dataset], Size.parse(run.setting)
        return ImageShape(size.height, size.width, row.channels, row.classes)

    def too_short(self, config: Config, run: Run) -> str | None:
        row = IMAGES[run.dataset]
        own = str(Size(row.height, row.width))
        return None if run.setting == own else f"the images of {row.name} have {own} pixels"

    def block(self, run: Run) -> int:
        return IMAGES_IN_BLOCK

    def epoch(self, config: Config, run: Run) -> tuple[Setup, float]:
        known, own = IMAGES["FashionMNIST"], IMAGES[run.dataset]
        pixels = own.height * own.width / (known.height * known.width)
        images = own.split.train / known.split.train
        return setup(run.model, "deep", known.name, None), pixels * images

    def data(self, config: Config, dataset: str) -> dict[str, Any]:
        return asdict(IMAGES[dataset])


class _Text:
    def settings(self, config: Config, block: GridBlock, dataset: str) -> list[str]:
        if block.horizons is not None:
            raise ConfigError(f"{dataset} is a text, which has no `horizons`: leave them out")
        return [str(Context(block.lookback or TEXTS[dataset].lookback))]

    def setup(self, config: Config, run: Run, variant: str, changes: Mapping[str, Any]) -> Setup:
        return setup(run.model, variant, run.dataset, None, changes)

    def shape(self, config: Config, run: Run, *, time_features: bool) -> TextShape:
        return TextShape(Context.parse(run.setting).bytes)

    def too_short(self, config: Config, run: Run) -> str | None:
        row, needed = TEXTS[run.dataset], Context.parse(run.setting).bytes + 1
        for name, (start, stop) in asdict(borders(row, row.size)).items():
            if stop - start < needed:
                return (
                    f"{row.name} has {stop - start} bytes for {name}, fewer than the {needed} of a "
                    "sequence and the byte after it: use a shorter lookback"
                )
        return None

    def block(self, run: Run) -> int:
        return 1  # a sequence does not overlap with the next one

    def epoch(self, config: Config, run: Run) -> tuple[Setup, float]:
        known = TEXTS["PythonTopics"]
        return setup(run.model, "deep", known.name, None), TEXTS[run.dataset].size / known.size

    def data(self, config: Config, dataset: str) -> dict[str, Any]:
        return asdict(TEXTS[dataset])


RUNS: Final[dict[str, Runs]] = {
    "forecasting": _Forecasting(),
    "imaging": _Imaging(),
    "text": _Text(),
}
