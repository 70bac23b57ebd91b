"""From a published file to a standardised series: read, split, standardise, save.

Symbols: T rows, C channels, F time features.
"""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spat.data.faults import MISSING, TIME_FORMATS, Layout, first_fault
from spat.files import READ_ERRORS, is_html, opened, replacing
from spat.data.gaps import Filled, fill, first_complete
from spat.data.registry import Borders, DataError, Dataset, borders, step_seconds
from spat.data.timefeatures import marks

__all__ = ["DataError", "Prepared", "Series", "load", "prepare", "read", "save"]


@dataclass(frozen=True)
class Series:
    """A series as published: values float64 [T, C], channel names, time stamps [T] if known.

    Missing values are NaN. `dropped` counts the rows before the first complete one, which are not
    in `values`.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    times: NDArray[np.datetime64] | None
    dropped: int = 0


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
        filled: What was done about missing values.
        sha256: Hash of what the series was made from.
    """

    name: str
    values: NDArray[np.float32]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    borders: Borders
    marks: NDArray[np.float32] | None
    sha256: str
    filled: Filled = Filled()


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
        series = _read_csv(path, dataset)
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
    """Split, fill gaps, standardise by mean and population deviation of the training rows.

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
        values, filled = fill(values, dataset.gaps, split, series.dropped)
    except DataError as error:
        raise DataError(f"{dataset.name}, {error}") from None
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
        filled=filled,
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
        "filled": np.array(json.dumps(asdict(prepared.filled))),
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
            filled=Filled(**json.loads(str(arrays["filled"]))),
        )
    except FileNotFoundError:
        raise
    except (*READ_ERRORS, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a prepared series ({error}): delete it and run the job again"
        ) from None


def _read_csv(path: Path, dataset: Dataset) -> Series:
    columns = _header(path)
    table = dataset.table
    for name in (*table.date, *table.drop):
        if name not in columns:
            raise DataError(
                f"{path}: column {name!r} is missing: the header is {', '.join(columns)}"
            )
    layout = Layout(
        columns=columns,
        date=tuple(columns.index(name) for name in table.date),
        drop=tuple(columns.index(name) for name in table.drop),
        date_formats=(table.date_format,) if table.date_format else TIME_FORMATS,
        header=True,
        missing=dataset.gaps.rule != "refuse",
    )
    if len(layout.numbers) != dataset.channels:
        names = [columns[i] for i in layout.numbers]
        raise DataError(
            f"{path}: the header has {len(names)} channels, expected {dataset.channels}, so a "
            f"column is {'missing' if len(names) < dataset.channels else 'too many'}: "
            f"{', '.join(names)}"
        )
    values, times = _numbers(path, layout)
    if table.mean and times is not None:
        values, times = _means(values, times, dataset.step)
    start = first_complete(values) if layout.missing else 0
    return Series(
        values[start:],
        tuple(columns[i] for i in layout.numbers),
        None if times is None else times[start:],
        dropped=start,
    )


def _header(path: Path) -> tuple[str, ...]:
    with opened(path) as file:
        line = file.readline()
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = line.decode("latin-1")
    columns = next(csv.reader([text.rstrip("\r\n")]), [])
    if not columns:
        raise DataError(f"{path}: empty, or without a header in its first line")
    return tuple(columns)


def _means(
    values: NDArray[np.float64], times: NDArray[np.datetime64], step: str
) -> tuple[NDArray[np.float64], NDArray[np.datetime64]]:
    # Means over the steps, of the values that are there: [T, C] -> [S, C]; NaN where none is.
    width = np.timedelta64(step_seconds(step), "s")
    number = (times - times.min().astype("M8[D]")) // width
    number -= (first := number.min())
    steps = int(number.max()) + 1
    known = np.isfinite(values)
    means = np.full((steps, values.shape[1]), np.nan)
    for channel in range(values.shape[1]):
        at = known[:, channel]
        counts = np.bincount(number[at], minlength=steps)
        sums = np.bincount(number[at], weights=values[at, channel], minlength=steps)
        np.divide(sums, counts, out=means[:, channel], where=counts > 0)
    start = times.min().astype("M8[D]") + first * width
    return means, (start + np.arange(steps) * width).astype("M8[s]")


def _read_solar(path: Path, channels: int) -> Series:
    names = tuple(f"plant_{i}" for i in range(channels))
    values, _ = _numbers(path, Layout(names, header=False))
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
    path: Path, layout: Layout
) -> tuple[NDArray[np.float64], NDArray[np.datetime64] | None]:
    # Comma-separated text -> values [T, C], times [T]. Column names may repeat or be odd: Arrow
    # gets numbers for names.
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow_csv

    keys = [str(i) for i in range(len(layout.columns))]
    stamps = [keys[i] for i in layout.date]
    numbers = [keys[i] for i in layout.numbers]
    types = {key: pa.string() for key in keys} | dict.fromkeys(numbers, pa.float64())
    if len(stamps) == 1:
        types[stamps[0]] = pa.timestamp("s")

    def refuse(otherwise: str) -> DataError:
        return DataError(f"{path}: {first_fault(path, layout) or otherwise}")

    try:
        with opened(path) as file:
            table = arrow_csv.read_csv(
                file,
                read_options=arrow_csv.ReadOptions(column_names=keys, skip_rows=int(layout.header)),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=types,
                    include_columns=stamps + numbers,
                    timestamp_parsers=list(layout.date_formats),
                    null_values=list(MISSING),
                ),
            )
        times = None
        if len(stamps) == 1:
            times = table.column(stamps[0]).to_numpy().astype("M8[s]")
        elif stamps:
            texts = pc.binary_join_element_wise(*(table.column(key) for key in stamps), " ")
            parsed = pc.strptime(texts, format=layout.date_formats[0], unit="s")
            times = parsed.to_numpy().astype("M8[s]")
    except (pa.ArrowException, *READ_ERRORS) as error:
        raise refuse(str(error)) from None
    columns = [table.column(key) for key in numbers]
    values = np.stack([column.to_numpy() for column in columns], axis=1)
    # A missing value is NaN here; a written NaN or infinity that is not a missing value is refused.
    allowed = sum(column.null_count for column in columns) if layout.missing else 0
    if (times is not None and np.isnat(times).any()) or (~np.isfinite(values)).sum() > allowed:
        raise refuse("a cell is empty or not a finite number")
    return values, times
