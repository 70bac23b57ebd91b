"""Read a data file into a series: check its hash, parse it, mark missing values.

Symbols: T rows, C channels.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spat.data import raw, stamps
from spat.data.faults import LARGEST, MISSING, Layout, first_fault, shown
from spat.data.gaps import first_complete
from spat.data.registry import DataError, Dataset
from spat.data.series import Series

# Files of other formats, by their first bytes.
OTHERS = {
    b"PK\x03\x04": "a zip archive or an Excel file: save it as CSV",
    b"\x1f\x8b": "compressed by gzip twice: unpack it once",
    b"BZh": "compressed by bzip2: unpack it, or compress it by gzip or xz",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard: unpack it, or compress it by gzip or xz",
    b"PAR1": "a Parquet file: save it as CSV",
    b"\x89HDF": "an HDF5 file: save it as CSV",
    b"\x93NUMPY": "an array of NumPy: save it as CSV",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run `git lfs pull`",
}
# Byte order marks of encodings that are not UTF-8. The mark of UTF-32 begins with that of UTF-16,
# so it comes first.
MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read(dataset: Dataset, path: Path) -> Series:
    """Read a data file and check that its hash and sizes are those of the registry.

    The hash is computed from the bytes that are parsed, so a file that changed after its download
    is refused.

    Raises:
        DataError: naming the file, if it cannot be read, its hash is not one of the dataset, or its
            numbers of rows and columns differ from the registry; naming row, column and value, if a
            cell is not a finite number or not a time stamp; naming time stamps, if the rows are not
            one step apart.
    """
    series = parse(dataset, path)
    shape = series.values.shape
    if shape != (dataset.rows, dataset.channels):
        raise DataError(
            f"{path}: {shape[0]} rows x {shape[1]} channels, expected {dataset.rows} x "
            f"{dataset.channels}{' (truncated?)' if shape[0] < dataset.rows else ''}: "
            "delete it and download it again"
        )
    return series


def measured(dataset: Dataset, path: Path) -> Dataset:
    """The row of a user's dataset, completed by the rows, the channels and the hash of its file.

    Raises:
        DataError: as in `read`, and if the file holds no row or no channel.
    """
    series = parse(dataset, path)
    rows, channels = series.values.shape
    if not rows or not channels:
        raise DataError(f"{path}: {rows} rows x {channels} channels, but both must be at least 1")
    return replace(dataset, rows=rows, channels=channels, sha256=(series.sha256,))


def parse(dataset: Dataset, path: Path) -> Series:
    """Read a data file with any number of rows.

    Raises:
        DataError: as in `read`.
    """
    try:
        content, sha256 = raw.load(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except raw.READ_ERRORS as error:
        raise DataError(
            f"{path}: the compressed data end early or are damaged (truncated?): {error}"
        ) from None
    if raw.is_html(content):
        raise DataError(f"{path}: a web page (HTML), not data: delete it and download it again")
    if dataset.sha256 and sha256 not in dataset.sha256:
        raise DataError(
            f"{path}: SHA-256 {sha256} ({len(content)} bytes) is not the {dataset.name} that is "
            f"expected ({' or '.join(dataset.sha256)}): the file was changed or cut, or belongs to "
            "another dataset; delete it, and the next run fetches it again"
        )
    if dataset.format == "csv":
        series = _table(path, content, dataset)
    elif dataset.format == "solar":
        names = tuple(f"plant_{i}" for i in range(dataset.channels))
        series = Series(_numbers(path, content, Layout(names))[0], names, None)
    elif dataset.format == "pems":
        series = _pems(path, content)
    else:
        raise DataError(f"{path}: {dataset.name} is generated, not read from a file")
    return replace(series, sha256=sha256)


def _table(path: Path, content: bytes, dataset: Dataset) -> Series:
    table = dataset.table
    columns, body, lines = header(path, content, table.separator, table.encodings)
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise DataError(f"{path}: two columns are named {shown(twice[0])}: rename one of them")
    for name in (*table.date, *table.drop):
        if name not in columns:
            key = "date" if name in table.date else "drop"
            above = "; remove the lines above the header" if len(columns) == 1 else ""
            raise DataError(
                f"{path}: column {name!r} is missing: the header is {_listed(columns)}; "
                f"`{key}` names columns{above}"
            )
    layout = Layout(
        columns=columns,
        date=tuple(columns.index(name) for name in table.date),
        drop=tuple(i for i, name in enumerate(columns) if name in table.drop),
        date_formats=(table.date_format,) if table.date_format else stamps.FORMATS,
        separator=table.separator,
        decimal=table.decimal,
        lines=lines,
        missing=dataset.gaps.rule != "refuse",
    )
    names = tuple(columns[i] for i in layout.numbers)
    if "" in names:
        raise DataError(
            f"{path}: column {columns.index('') + 1} has no name, as the row numbers that pandas "
            "writes: leave it out with `drop: ['']`, or give it a name"
        )
    if dataset.channels and len(names) != dataset.channels:
        raise DataError(
            f"{path}: the header has {len(names)} channels, expected {dataset.channels}, so "
            f"{'a column is missing' if len(names) < dataset.channels else 'a column is extra'}: "
            f"{_listed(names)}"
        )
    values, times = _numbers(path, body, layout)
    if times is not None and len(times):
        if table.mean:
            values, times = stamps.means(path, values, times, dataset.step)
        else:
            values, times = stamps.regular(path, dataset, values, times)
    start = first_complete(values) if layout.missing else 0
    return Series(values[start:], names, None if times is None else times[start:], dropped=start)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(shown(name)[1:-1] for name in names[:12]) + (
        f" ... ({len(names)})" if len(names) > 12 else ""
    )


def header(
    path: Path, content: bytes, separator: str, encodings: tuple[str, ...]
) -> tuple[tuple[str, ...], bytes, int]:
    """The names of the columns, the bytes after the header, and the number of its lines.

    Raises:
        DataError: if there is no header, or it is written in another encoding or with another
            separator.
    """
    for mark, name in MARKS.items():
        if content.startswith(mark) and name not in encodings:
            raise DataError(f"{path}: the text is {name.upper()}: set `encoding: {name}`")
    for start, kind in OTHERS.items():
        if content.startswith(start):
            raise DataError(f"{path}: {kind}")
    # Numbers and separators are ASCII, so only an encoding that changes ASCII must be decoded.
    foreign = [name for name in encodings if "0;,\n".encode(name)[-4:] != b"0;,\n"]
    try:
        if foreign:
            text = content.decode(foreign[0]).removeprefix("\ufeff")
            content, encodings = text.encode(), ("utf-8",)
        if b"\0" in content[:4096]:
            raise DataError(f"{path}: not a text file: it holds bytes of value 0")
        # Latin-1 decodes any byte, and all encodings here have the same quotes and line ends.
        lines_of = io.TextIOWrapper(io.BytesIO(content), encoding="latin-1", newline="")
        reader = csv.reader(lines_of, delimiter=separator)
        next(reader, None)
        lines = reader.line_num
        match = re.match(rb"(?:[^\r\n]*(?:\r\n|\r|\n|\Z)){%d}" % lines, content)
        end = match.end() if match else 0
        cells = next(csv.reader([_decoded(content[:end], encodings)], delimiter=separator), [])
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not {error.encoding}: set `encoding` (such as "
            "latin-1, cp1252 or utf-16)"
        ) from None
    except csv.Error as error:
        raise DataError(f"{path}, header: not a table of numbers ({error})") from None
    if not any(cells):
        raise DataError(f"{path}: empty, or without a header in its first line")
    # A line above the header, such as `sep=;` or a title, has other separators than the rows.
    if len(cells) == 1 and not cells[0].startswith(("#", "sep=")):
        row = re.compile(rb"[\r\n]*([^\r\n]*)").match(content, end)
        for other, written in (
            (";", "';'"),
            ("\t", r'"\t"'),
            ("|", "'|'"),
            (",", "','"),
            (" ", "' '"),
        ):
            if (
                other != separator
                and other in cells[0].strip()
                and (not row or not row[1] or other.encode() in row[1])
            ):
                raise DataError(
                    f"{path}: the header {shown(cells[0])} is separated by {written}, not by "
                    f"{separator!r}: set `separator: {written}`"
                )
    # Some files pad their names with spaces, and some have names of several lines.
    return tuple(" ".join(cell.split()) for cell in cells), content[end:], lines


def _decoded(text: bytes, encodings: tuple[str, ...]) -> str:
    for encoding in encodings[:-1]:
        try:
            return text.decode(encoding).rstrip("\r\n")
        except UnicodeDecodeError:
            pass
    return text.decode(encodings[-1]).rstrip("\r\n")


def _pems(path: Path, content: bytes) -> Series:
    try:
        with np.load(io.BytesIO(content)) as archive:
            # [T, sensors, features]; feature 0 is the flow, which is forecast.
            values = archive["data"][:, :, 0].astype(np.float64)
    except KeyError:
        raise DataError(f"{path}: holds no array 'data'") from None
    except (*raw.READ_ERRORS, ValueError, IndexError, zipfile.BadZipFile) as error:
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
    path: Path, body: bytes, layout: Layout
) -> tuple[NDArray[np.float64], NDArray[np.datetime64] | None]:
    # Rows of text -> values [T, C] (NaN if missing), times [T]. Column names may repeat, so Arrow
    # gets numbers as names.
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow_csv

    keys = [str(i) for i in range(len(layout.columns))]
    dates = [keys[i] for i in layout.date]
    numbers = [keys[i] for i in layout.numbers]
    types = {key: pa.string() for key in keys} | dict.fromkeys(numbers, pa.float64())
    if not body.strip() or not numbers:
        return np.empty((0, len(numbers))), np.empty(0, dtype="M8[s]") if dates else None

    def refuse(otherwise: str, sound: int = 0) -> DataError:
        return DataError(f"{path}: {first_fault(body, layout, sound) or otherwise}")

    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(body),
            # Threads of Arrow abort a process if they still run when it ends.
            read_options=arrow_csv.ReadOptions(column_names=keys, use_threads=False),
            parse_options=arrow_csv.ParseOptions(delimiter=layout.separator),
            convert_options=arrow_csv.ConvertOptions(
                column_types=types,
                include_columns=dates + numbers,
                null_values=list(MISSING),
                decimal_point=layout.decimal,
            ),
        )
        times = None
        if dates:
            texts = pc.binary_join_element_wise(*(table.column(key) for key in dates), " ")
            times = stamps.parsed(texts, layout.date_formats)
    except pa.ArrowException as error:
        raise refuse(str(error)) from None
    columns = [table.column(key) for key in numbers]
    values = np.stack([column.to_numpy() for column in columns], axis=1)
    # A missing value is NaN here. Any other NaN or infinity in the file is refused.
    allowed = sum(column.null_count for column in columns) if layout.missing else 0
    # A comparison with NaN is false.
    if (~(np.abs(values) <= LARGEST)).sum() > allowed:
        raise refuse(f"a cell is empty, or not a number up to {LARGEST:g}")
    if times is not None and np.isnat(times).any():
        row = int(np.isnat(times).argmax())
        raise refuse(f"row {row + 1}: {shown(texts[row].as_py())} is not a time stamp", row)
    return values, times
