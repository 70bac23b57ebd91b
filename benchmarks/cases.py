"""The measured cases: published networks on ETTh1, or small ones on a short generated series."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from spat.data import reading, series
from spat.data.download import DownloadError, fetch
from spat.data.registry import DATASETS, Borders
from spat.data.series import Prepared
from spat.data.synthetic import generate
from spat.data.windows import Splits, Windows, split
from spat.models.base import Forecaster
from spat.models.registry import Recipe, Settings, Shape, build, setup
from spat.pipeline.config import DataSection
from spat.tasks.forecasting import Forecasting
from spat.training.loop import prepare_torch

ROOT = Path(__file__).parents[1]
TASK = Forecasting()


@dataclass(frozen=True)
class Network:
    """A network whose steps are measured in several precisions; `target` is that of bf16."""

    model: str
    width: int
    channels: int
    batch: int
    batches: int  # of a lap
    target: float | None = None

    @property
    def name(self) -> str:
        """As it stands in the name of a figure."""
        return f"{self.model}-{self.width}-{self.channels}"

    @property
    def changes(self) -> dict[str, int]:
        """The settings that differ from the published ones."""
        inner = 4 * self.width if self.model == "PatchTST" else self.width
        return {"d_model": self.width, "d_ff": inner}


@dataclass(frozen=True)
class Size:
    """The size of a measurement; `batches` are the training batches of a lap, by model."""

    dataset: str
    rows: int  # of the generated series that replaces an unavailable dataset
    models: tuple[str, ...]
    lookback: int
    horizon: int
    rounds: int
    batches: Mapping[str, int]
    evaluated: Mapping[str, int]  # windows of an evaluation lap
    workers: tuple[int, ...]  # of the conventional DataLoader
    scored: tuple[int, int]  # batches x windows
    epochs: int  # of the pre-training that scoring is compared with
    pruned: tuple[tuple[str, str], ...]
    pruned_batch: int
    calls: int  # rounds of whole processes
    patience: float  # wall-clock seconds to wait for a machine without other work
    streams: int  # runs at the same time on a card
    wide: tuple[str, ...]  # datasets whose width and published settings are used
    wide_batch: int
    wide_batches: int
    mixed: tuple[Network, ...]
    generated: int  # rows of the generated series
    multiples: tuple[int, ...]


FULL = Size(
    dataset="ETTh1",
    rows=14400,
    models=("iTransformer", "PatchTST"),
    lookback=96,
    horizon=96,
    rounds=4,
    # A lap takes one or two seconds. PatchTST with d_model 512 needs twenty times the FLOPs.
    batches={"iTransformer": 48, "PatchTST": 4},
    evaluated={"iTransformer": 2920, "PatchTST": 292},
    workers=(0, 2, 10),
    scored=(16, 32),
    epochs=10,
    pruned=(
        ("iTransformer", "deep"),
        ("PatchTST", "deep"),
        ("iTransformer", "published"),
        ("PatchTST", "published"),
    ),
    pruned_batch=128,
    calls=3,
    patience=60.0,
    streams=16,
    wide=("ETTh1", "Weather", "Electricity", "Traffic"),
    wide_batch=4,
    wide_batches=2,
    mixed=(
        Network("iTransformer", 256, 7, 32, 24, 1.6),
        Network("iTransformer", 256, 321, 4, 4, 1.6),
        Network("iTransformer", 512, 321, 4, 3, 1.8),
        Network("PatchTST", 512, 7, 8, 4, 1.8),
    ),
    generated=6000,
    multiples=(1, 2, 4, 8),
)

QUICK = Size(
    dataset="synthetic",
    rows=700,
    models=("iTransformer", "PatchTST"),
    lookback=48,
    horizon=24,
    rounds=2,
    batches={"iTransformer": 2, "PatchTST": 2},
    evaluated={"iTransformer": 64, "PatchTST": 64},
    workers=(0, 1),
    scored=(2, 16),
    epochs=2,
    pruned=(("iTransformer", "published"),),
    pruned_batch=16,
    calls=1,
    patience=0.0,
    streams=2,
    wide=("ETTh1",),
    wide_batch=2,
    wide_batches=1,
    mixed=(Network("iTransformer", 16, 3, 4, 1),),
    generated=1500,
    multiples=(1, 2),
)


@dataclass(frozen=True)
class Case:
    """A network and the series that it is trained on."""

    model: str
    variant: str
    settings: Settings
    recipe: Recipe
    prepared: Prepared
    lookback: int
    horizon: int

    @property
    def name(self) -> str:
        """As it stands in the name of a figure."""
        return f"{self.model}-{self.variant}"

    @property
    def shape(self) -> Shape:
        """The outer shape."""
        marks = self.prepared.marks
        width = 0 if marks is None or not self.settings.uses_marks else marks.shape[1]
        return Shape(self.lookback, self.horizon, self.prepared.values.shape[1], width)

    @cached_property
    def splits(self) -> Splits:
        """The windows, on the CPU."""
        return self.splits_on("cpu")

    def splits_on(self, device: str) -> Splits:
        """The windows on a device."""
        return split(self.prepared, self.lookback, self.horizon, device=device)

    def build(self, seed: int = 0) -> Forecaster:
        """The network; the same weights for the same seed."""
        network = build(self.model, self.settings, self.shape, seed)
        assert isinstance(network, Forecaster)
        return network

    def short(self, batches: int) -> Case:
        """The same with so many training batches an epoch, and a third as many in other splits."""
        train = batches * self.recipe.batch_size
        other = max(1, train // 3)
        # N windows of a split need N + horizon - 1 rows, and the first split its lookback.
        a = self.lookback + train + self.horizon - 1
        b = a + other + self.horizon - 1
        c = b + other + self.horizon - 1
        borders = Borders(train=(0, a), validation=(a, b), test=(b, c))
        return replace(self, prepared=replace(self.prepared, borders=borders))

    def windows(self, count: int) -> Windows:
        """The first `count` windows of the series."""
        prepared = self.prepared
        values = torch.from_numpy(prepared.values)
        marks = None if prepared.marks is None else torch.from_numpy(prepared.marks)
        stop = count + self.lookback + self.horizon - 1
        return Windows(values, marks, 0, stop, self.lookback, self.horizon)


def open_series(size: Size) -> Prepared:
    """The dataset, or, with a notice, a generated series of the same width."""
    row = DATASETS[size.dataset]
    if row.file:
        section = DataSection()
        mirrors = [ROOT / mirror for mirror in section.mirrors]
        try:
            path = fetch(row, ROOT / section.cache, mirrors)
            return series.prepare(row, reading.read(row, path), row.sha256[0])
        except DownloadError as error:
            print(f"{error}\nMeasuring on GENERATED DATA of the same size.", file=sys.stderr)
    content = generate(size.rows, row.channels or 7, seed=0, coupling=0.6, noise=0.3)
    return series.prepare(DATASETS["synthetic"], content, "generated")


def open_case(size: Size, prepared: Prepared, model: str, variant: str = "published") -> Case:
    """A network with its registered sizes for the dataset."""
    prepare_torch("float32")
    chosen = setup(model, variant, size.dataset, size.horizon)
    return Case(
        model, variant, chosen.settings, chosen.recipe, prepared, size.lookback, size.horizon
    )


def wide_case(
    size: Size,
    model: str,
    channels: int,
    changes: Mapping[str, int] | None = None,
    batch: int | None = None,
    dataset: str = "ETTh1",
) -> Case:
    """A network with the published settings for `dataset`, on a generated series of any width."""
    prepare_torch("float32")
    content = generate(size.generated, channels, seed=0, coupling=0.6, noise=0.3)
    prepared = series.prepare(DATASETS["synthetic"], content, "generated")
    published = setup(model, "published", dataset, 96, changes or {})
    recipe = replace(published.recipe, batch_size=batch or published.recipe.batch_size)
    lookback, horizon = size.lookback, size.horizon
    return Case(model, "published", published.settings, recipe, prepared, lookback, horizon)
