"""A series as it was read, and as it is prepared for training: split, filled, standardised, saved.

Symbols: T rows, C channels, F time features.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spat.data import arrays as arrays_of_file
from spat.data.gaps import Filled, fill
from spat.data.registry import Borders, DataError, Dataset, borders
from spat.data.timefeatures import marks


@dataclass(frozen=True)
class Series:
    """A series as it was read.

    Attributes:
        values: float64 [T, C]; missing values are NaN.
        names: Names of the channels.
        times: Time stamps [T], or None if they are not known.
        dropped: Number of rows before the first complete row; `values` does not contain them.
        sha256: Hash of the file; empty if the series was generated.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    times: NDArray[np.datetime64] | None
    dropped: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Prepared:
    """A series ready for training, cut to the rows that its splits use.

    Attributes:
        name: Dataset.
        values: Standardised, float32 [T, C].
        mean: Mean of the training rows, float64 [C].
        std: Population standard deviation of the training rows, float64 [C]; 1 if they are
            constant.
        borders: Rows of each split.
        marks: Time features, float32 [T, F], or None without time stamps.
        filled: The record of filled missing values.
        sha256: Hash of the raw data.
    """

    name: str
    values: NDArray[np.float32]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    borders: Borders
    marks: NDArray[np.float32] | None
    sha256: str
    filled: Filled = field(default_factory=Filled)


def prepare(dataset: Dataset, series: Series, sha256: str) -> Prepared:
    """Split a series, fill its gaps and standardise it.

    Mean and population standard deviation are those of the training rows. `sha256` is the hash of
    the raw data.

    Raises:
        DataError: if the series is shorter than its splits, a value is not finite, or a gap cannot
            be filled by the rule of the dataset.
    """
    split = borders(dataset, len(series.values))
    values = series.values[: split.test[1]]
    allowed = np.isnan(values) & (dataset.gaps.rule != "refuse")
    if len(bad := np.argwhere(~np.isfinite(values) & ~allowed)):
        row, column = bad[0]
        raise DataError(
            f"{dataset.name}, row {row + 1}, column {series.names[column]!r}: "
            f"{values[row, column]} is not a finite number"
        )
    try:
        values, filled = fill(
            values,
            dataset.gaps,
            split,
            names=series.names,
            times=series.times,
            dropped=series.dropped,
        )
    except DataError as error:
        raise DataError(f"{dataset.name}, {error}") from None
    train = values[slice(*split.train)]
    mean = train.mean(axis=0)
    # Rounding gives a constant channel a deviation of about 1e-17, so the range is compared.
    std = np.where(np.ptp(train, axis=0) == 0.0, 1.0, train.std(axis=0))
    return Prepared(
        name=dataset.name,
        values=((values - mean) / std).astype(np.float32),
        mean=mean,
        std=std,
        borders=split,
        marks=None if series.times is None else marks(series.times[: split.test[1]]),
        sha256=sha256,
        filled=filled,
    )


def save(prepared: Prepared, path: Path) -> None:
    """Write a prepared series as .npz, atomically."""
    split = prepared.borders
    arrays: dict[str, Any] = {
        "name": np.array(prepared.name),
        "values": prepared.values,
        "mean": prepared.mean,
        "std": prepared.std,
        "borders": np.array([split.train, split.validation, split.test], dtype=np.int64),
        "sha256": np.array(prepared.sha256),
        "filled": np.array(json.dumps(asdict(prepared.filled))),
    }
    if prepared.marks is not None:
        arrays["marks"] = prepared.marks
    arrays_of_file.save(path, arrays)


def load(path: Path) -> Prepared:
    """Read what `save` wrote.

    Raises:
        DataError, FileNotFoundError: as `spat.data.arrays.load`.
    """
    return arrays_of_file.load(path, "a prepared series", _prepared)


def _prepared(kept: dict[str, Any]) -> Prepared:
    return Prepared(
        name=str(kept["name"]),
        values=kept["values"],
        mean=kept["mean"],
        std=kept["std"],
        borders=arrays_of_file.borders(kept["borders"]),
        marks=kept.get("marks"),
        sha256=str(kept["sha256"]),
        filled=Filled(**json.loads(str(kept["filled"]))),
    )
