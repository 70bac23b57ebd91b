"""From a published file to a standardised series: read, split, standardise, save.

Symbols: T rows, C channels, F time features.
"""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spat.data.faults import TIME_FORMATS, first_fault
from spat.data.registry import Borders, DataError, Dataset, borders
from spat.data.timefeatures import marks
from spat.files import READ_ERRORS, is_html, opened, replacing

__all__ = ["DataError", "Prepared", "Series", "load", "prepare", "read", "save"]


@dataclass(frozen=True)
class Series:
    """A series as published: values float64 [T, C], channel names, time stamps [T] if known."""

    values: NDArray[np.float64]
    names: tuple[str, ...]
    times: NDArray[np.datetime64] | None


@dataclass(frozen=True)
class Prepared:
    """A series ready for training, cut to the rows that its splits use.

    Attributes:
        name: Dataset.
        values: Standardised, float32 [T, C].
        mean: Mean of the training rows, float64 [C].
        std: Their population standard deviation, float64 [C]; 1 for a constant channel.
        borders: Rows of each split.
        marks: Time features, float32 [T, F], or None without time stamps.
        sha256: Hash of what the series was made from.
    """

    name: str
    values: NDArray[np.float32]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    borders: Borders
    marks: NDArray[np.float32] | None
    sha256: str


def read(dataset: Dataset, path: Path) -> Series:
    """Read a published file.

    Raises:
        DataError: naming file, row, column and value: not the rows and columns of the registry (a
            truncated file), a cell that is no finite number, a time stamp in an unknown form, a
            web page instead of data.
    """
    if is_html(path):
        raise DataError(f"{path}: a web page (HTML), not data: delete it and download it again")
    if dataset.format == "csv":
        series = _read_csv(path, dataset.channels)
    elif dataset.format == "solar":
        series = _read_solar(path, dataset.channels)
    elif dataset.format == "pems":
        series = _read_pems(path)
    else:
        raise DataError(f"{path}: {dataset.name} is generated, not read from a file")
    found = series.values.shape
    if found != (dataset.rows, dataset.channels):
        raise DataError(
            f"{path}: {found[0]} rows x {found[1]} channels, expected {dataset.rows} x "
            f"{dataset.channels}{' (truncated?)' if found[0] < dataset.rows else ''}: "
            "delete it and download it again"
        )
    return series


def prepare(dataset: Dataset, series: Series, sha256: str) -> Prepared:
    """Split and standardise by mean and population standard deviation of the training rows.

    Raises:
        DataError: if the series is shorter than its splits, or a value is not finite.
    """
    split = borders(dataset, len(series.values))
    values = series.values[: split.test[1]]
    if len(bad := np.argwhere(~np.isfinite(values))):
        row, column = bad[0]
        raise DataError(
            f"{dataset.name}, row {row + 1}, column {series.names[column]!r}: "
            f"{values[row, column]} is not a finite number"
        )
    train = values[slice(*split.train)]
    mean = train.mean(axis=0)
    # Compared by value: rounding leaves a constant channel with a deviation of about 1e-17.
    std = np.where(np.ptp(train, axis=0) == 0.0, 1.0, train.std(axis=0))
    return Prepared(
        name=dataset.name,
        values=((values - mean) / std).astype(np.float32),
        mean=mean,
        std=std,
        borders=split,
        marks=None if series.times is None else marks(series.times[: split.test[1]]),
        sha256=sha256,
    )


def save(prepared: Prepared, path: Path) -> None:
    """Write a prepared series as .npz, whole or not at all."""
    split = prepared.borders
    arrays: dict[str, Any] = {
        "name": np.array(prepared.name),
        "values": prepared.values,
        "mean": prepared.mean,
        "std": prepared.std,
        "borders": np.array([split.train, split.validation, split.test], dtype=np.int64),
        "sha256": np.array(prepared.sha256),
    }
    if prepared.marks is not None:
        arrays["marks"] = prepared.marks
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> Prepared:
    """Read what `save` wrote.

    Raises:
        DataError: naming the file, if it is damaged.
    """
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        train, validation, test = ((int(a), int(b)) for a, b in arrays["borders"])
        return Prepared(
            name=str(arrays["name"]),
            values=arrays["values"],
            mean=arrays["mean"],
            std=arrays["std"],
            borders=Borders(train, validation, test),
            marks=arrays.get("marks"),
            sha256=str(arrays["sha256"]),
        )
    except FileNotFoundError:
        raise
    except (*READ_ERRORS, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a prepared series ({error}): delete it and run the job again"
        ) from None


def _read_csv(path: Path, channels: int) -> Series:
    with opened(path) as file:
        line = file.readline()
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = line.decode("latin-1")
    columns = next(csv.reader([text.rstrip("\r\n")]), [])
    if not columns:
        raise DataError(f"{path}: empty, or without a header in its first line")
    if columns[0] != "date":
        raise DataError(
            f"{path}: column 'date' is missing: the first column of the header is {columns[0]!r}"
        )
    if len(columns) != channels + 1:
        raise DataError(
            f"{path}: the header has {len(columns) - 1} channels, expected {channels}, so a column "
            f"is {'missing' if len(columns) <= channels else 'too many'}: {', '.join(columns[1:])}"
        )
    values, times = _numbers(path, columns, header=True, timed=True)
    return Series(values, tuple(columns[1:]), times)


def _read_solar(path: Path, channels: int) -> Series:
    names = tuple(f"plant_{i}" for i in range(channels))
    values, _ = _numbers(path, names, header=False, timed=False)
    return Series(values, names, None)


def _read_pems(path: Path) -> Series:
    try:
        with opened(path) as file, np.load(file) as archive:
            # [T, sensors, features]; feature 0 is the flow, the one that is forecast.
            values = archive["data"][:, :, 0].astype(np.float64)
    except KeyError:
        raise DataError(f"{path}: holds no array 'data'") from None
    except (*READ_ERRORS, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not an .npz file with an array 'data' [rows, sensors, features] "
            f"(truncated?): {error}"
        ) from None
    if len(bad := np.argwhere(~np.isfinite(values))):
        row, column = bad[0]
        raise DataError(
            f"{path}, row {row + 1}, column {column} of 'data': {values[row, column]} is not a "
            "finite number"
        )
    return Series(values, tuple(f"sensor_{i}" for i in range(values.shape[1])), None)


def _numbers(
    path: Path, columns: tuple[str, ...] | list[str], *, header: bool, timed: bool
) -> tuple[NDArray[np.float64], NDArray[np.datetime64] | None]:
    # Comma-separated text -> values [T, C], times [T]. Column names may repeat or be odd: Arrow
    # gets numbers for names.
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    keys = [str(i) for i in range(len(columns))]
    types = dict.fromkeys(keys, pa.float64())
    if timed:
        types[keys[0]] = pa.timestamp("s")

    def refuse(otherwise: str) -> DataError:
        fault = first_fault(path, columns, header=header, timed=timed)
        return DataError(f"{path}: {fault or otherwise}")

    try:
        with opened(path) as file:
            table = arrow_csv.read_csv(
                file,
                read_options=arrow_csv.ReadOptions(column_names=keys, skip_rows=int(header)),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=types, timestamp_parsers=list(TIME_FORMATS)
                ),
            )
    except (pa.ArrowException, *READ_ERRORS) as error:
        raise refuse(str(error)) from None
    times = table.column(0).to_numpy().astype("datetime64[s]") if timed else None
    numbers = table.columns[1:] if timed else table.columns
    values = np.stack([column.to_numpy() for column in numbers], axis=1)
    if not np.isfinite(values).all() or (times is not None and np.isnat(times).any()):
        raise refuse("a cell is empty or not a finite number")
    return values, times
