"""Each format is read, invalid files are refused with one clear error, series are prepared."""

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from spat.data.reading import read
from spat.data.registry import DATASETS, DataError, Dataset, Shares, Table
from spat.data.series import Series, load, prepare, save
from spat.data.windows import split

SHARED = Path(__file__).parents[3] / "shared" / "datasets"

# Windows of each split at the standard lookback and the shortest horizon; first and last time.
REAL = {
    "ETTh1": ((8449, 2785, 2785), "2016-07-01T00:00:00", "2018-06-26T19:00:00"),
    "ETTh2": ((8449, 2785, 2785), "2016-07-01T00:00:00", "2018-06-26T19:00:00"),
    "ETTm1": ((34369, 11425, 11425), "2016-07-01T00:00:00", "2018-06-26T19:45:00"),
    "ETTm2": ((34369, 11425, 11425), "2016-07-01T00:00:00", "2018-06-26T19:45:00"),
    "Weather": ((36696, 5175, 10444), "2020-01-01T00:10:00", "2021-01-01T00:00:00"),
    "Exchange": ((5120, 665, 1422), "1990-01-01T00:00:00", "2010-10-10T00:00:00"),
    "ILI": ((617, 74, 170), "2002-01-01T00:00:00", "2020-06-30T00:00:00"),
    "Appliances": ((13623, 1879, 3852), "2016-01-11T17:00:00", "2016-05-27T18:00:00"),
    "BeijingPM25": ((30468, 4286, 8665), "2010-01-02T00:00:00", "2014-12-31T23:00:00"),
    "HouseholdPower": ((24021, 3365, 6822), "2006-12-16T17:00:00", "2010-11-26T21:00:00"),
}
# Last channel, where it is not OT; rows dropped, rows filled, longest gap.
LAST = {"Appliances": "Tdewpoint", "BeijingPM25": "Ir", "HouseholdPower": "Sub_metering_3"}
GAPS = {"BeijingPM25": (24, 2043, 155), "HouseholdPower": (0, 421, 119)}


def real(name: str) -> Path:
    path = SHARED / DATASETS[name].file
    if not path.exists():
        pytest.skip(f"no copy of {path.name} in {SHARED}")
    return path


def toy(rows: int = 20, channels: int = 2) -> Dataset:
    """A small hourly dataset with the CSV format, whose hash is not known."""
    return replace(
        DATASETS["Appliances"],
        name="toy",
        file="toy.csv",
        sha256=(),
        rows=rows,
        channels=channels,
        step="1h",
        season=2,
        table=Table(),
    )


def lines(rows: int = 20) -> list[str]:
    """A valid toy file: header, then hourly rows."""
    body = [f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00:00,{i}.5,{-i}e-1" for i in range(rows)]
    return ["date,load,OT", *body]


def write(path: Path, text: list[str], end: str = "\n", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(line + end for line in text).encode(encoding))
    return path


@pytest.mark.parametrize("name", REAL)
def test_real_files_follow_the_protocol(name: str) -> None:
    dataset, path = DATASETS[name], real(name)
    counts, first, last = REAL[name]
    series = read(dataset, path)
    assert series.values.shape == (dataset.rows, dataset.channels)
    assert series.names[-1] == LAST.get(name, "OT")
    assert series.times is not None
    assert (str(series.times[0]), str(series.times[-1])) == (first, last)
    prepared = prepare(dataset, series, series.sha256)
    assert prepared.sha256 in dataset.sha256
    filled = prepared.filled
    assert (filled.dropped, filled.steps, filled.longest) == GAPS.get(name, (0, 0, 0))
    splits = split(prepared, dataset.lookback, dataset.horizons[0])
    assert tuple(map(len, splits)) == counts
    train = prepared.values[slice(*prepared.borders.train)].astype(np.float64)
    np.testing.assert_allclose(train.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1.0, atol=1e-5)


def test_values_are_read_to_the_last_bit() -> None:
    path = real("ETTh1")
    with path.open() as file:
        expected = [[float(cell) for cell in line.split(",")[1:]] for line in list(file)[1:]]
    np.testing.assert_array_equal(read(DATASETS["ETTh1"], path).values, expected)


def test_weather_keeps_its_sentinels_and_its_odd_header() -> None:
    series = read(DATASETS["Weather"], real("Weather"))
    sentinels = (series.values == -9999).sum(axis=0)
    counts = {name: int(n) for name, n in zip(series.names, sentinels, strict=True) if n}
    assert counts == {"wv (m/s)": 1, "max. PAR (\ufffdmol/m\ufffd/s)": 30, "OT": 50}
    assert series.times is not None
    assert (np.diff(series.times) == np.timedelta64(0, "s")).sum() == 1  # the doubled time stamp


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_line_ends_and_header_encodings(tmp_path: Path, end: str, encoding: str) -> None:
    text = ["date,SWDR (W/m²),OT", *lines()[1:]]
    series = read(toy(), write(tmp_path / "toy.csv", text, end, encoding))
    assert series.names == ("SWDR (W/m²)", "OT")
    np.testing.assert_array_equal(series.values[:, 0], np.arange(20) + 0.5)
    np.testing.assert_allclose(series.values[:, 1], -np.arange(20) / 10)


@pytest.mark.parametrize(
    "stamp", ["2016-07-09 05:00:00", "2016/7/9 5:00", "2016-07-09", "2016/7/9", "2016/07/09 05:00"]
)
def test_time_stamps_in_every_published_form(tmp_path: Path, stamp: str) -> None:
    series = read(toy(rows=1), write(tmp_path / "toy.csv", ["date,load,OT", f"{stamp},1,2"]))
    assert series.times is not None
    expected = "2016-07-09T05:00:00" if "5:00" in stamp else "2016-07-09T00:00:00"
    assert str(series.times[0]) == expected


@pytest.mark.parametrize("name", ["Electricity", "Traffic"])
def test_the_largest_files_at_their_real_shape(tmp_path: Path, name: str) -> None:
    dataset = replace(DATASETS[name], sha256=())
    rng = np.random.default_rng(0)
    values = np.round(rng.random((dataset.rows, dataset.channels)), 3)
    times = np.datetime64("2016-07-01T02:00:00") + np.arange(dataset.rows).astype("m8[h]")
    columns = {"date": pa.array(times).cast(pa.string())}
    names = [*map(str, range(dataset.channels - 1)), "OT"]
    columns |= {n: pa.array(values[:, i].copy()) for i, n in enumerate(names)}
    path = tmp_path / dataset.file
    pa.csv.write_csv(pa.table(columns), path)
    series = read(dataset, path)
    path.unlink()
    assert series.names == tuple(names)
    np.testing.assert_array_equal(series.values, values)
    np.testing.assert_array_equal(series.times, times)
    prepared = prepare(dataset, series, "")
    assert prepared.values.shape == values.shape
    assert tuple(map(len, split(prepared, 96, 96))) == tuple(
        b - a - 96 - 96 + 1 + (96 if a else 0)
        for a, b in (
            prepared.borders.train,
            prepared.borders.validation,
            prepared.borders.test,
        )
    )


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_solar_has_no_header_and_no_times(tmp_path: Path, packed: bool) -> None:
    dataset = replace(DATASETS["Solar"], sha256=(), rows=50)
    values = np.round(np.random.default_rng(0).random((50, 137)) * 30, 2)
    text = "".join(",".join(map(repr, row)) + "\n" for row in values.tolist()).encode()
    path = tmp_path / "solar_AL.txt"
    path.write_bytes(gzip.compress(text) if packed else text)
    series = read(dataset, path)
    np.testing.assert_array_equal(series.values, values)
    assert len(series.names) == 137
    assert series.times is None
    assert prepare(dataset, series, "").marks is None


@pytest.mark.parametrize("features", [1, 3])
def test_pems_takes_the_flow(tmp_path: Path, features: int) -> None:
    dataset = replace(DATASETS["PEMS08"], sha256=(), rows=30)
    data = np.random.default_rng(0).random((30, 170, features)).astype(np.float32)
    np.savez_compressed(tmp_path / "PEMS08.npz", data=data)
    series = read(dataset, tmp_path / "PEMS08.npz")
    np.testing.assert_array_equal(series.values, data[:, :, 0])
    assert series.values.dtype == np.float64
    assert series.times is None


# A change of a valid file of 20 rows -> the error.
BAD: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "empty": (lambda t: [], "empty, or without a header"),
    "header only": (lambda t: t[:1], "0 rows x 2 channels, expected 20 x 2 (truncated?)"),
    "rows cut off": (lambda t: t[:15], "14 rows x 2 channels, expected 20 x 2 (truncated?)"),
    "too many rows": (
        lambda t: [*t, "2020-01-01 20:00:00,1,2"],
        "21 rows x 2 channels, expected 20 x 2: delete",
    ),
    "cut within a row": (
        lambda t: [*t[:15], t[15][:22]],
        "row 15 (line 16), column 'OT': missing; 2 of 3 cells (truncated?)",
    ),
    "no date": (
        lambda t: [line.split(",", 1)[1] for line in t],
        "column 'date' is missing: the header is load, OT; `date` names columns",
    ),
    "missing column": (
        lambda t: [line.rsplit(",", 1)[0] for line in t],
        "the header has 1 channels, expected 2, so a column is missing: load",
    ),
    "additional column": (
        lambda t: [line + ",1" for line in t],
        "the header has 3 channels, expected 2, so a column is extra: load, OT, 1",
    ),
    "too many cells": (
        lambda t: [*t[:4], t[4] + ",7", *t[5:]],
        "row 4 (line 5), column 4: 4 cells where the table has 3 columns",
    ),
    "not a number": (
        lambda t: [*t[:9], t[9].replace("8.5", "8.5.1"), *t[10:]],
        "row 9 (line 10), column 'load': '8.5.1' is not a number",
    ),
    "nan": (
        lambda t: [*t[:3], t[3].replace("2.5", "NaN"), *t[4:]],
        "row 3 (line 4), column 'load': 'NaN' is not a finite number",
    ),
    "infinity": (
        lambda t: [*t[:3], t[3].replace("-2e-1", "-inf"), *t[4:]],
        "row 3 (line 4), column 'OT': '-inf' is not a finite number",
    ),
    "overflow": (
        lambda t: [*t[:3], t[3].replace("-2e-1", "1e999"), *t[4:]],
        "row 3 (line 4), column 'OT': '1e999' is not a finite number",
    ),
    "empty cell": (
        lambda t: [*t[:3], t[3].replace(",2.5,", ",,"), *t[4:]],
        "row 3 (line 4), column 'load': empty; every cell must be a number",
    ),
    "not available": (
        lambda t: [*t[:3], t[3].replace("2.5", "N/A"), *t[4:]],
        "row 3 (line 4), column 'load': 'N/A' is not a number",
    ),
    "time stamp": (
        lambda t: [*t[:3], t[3].replace("2020-01", "2020-13"), *t[4:]],
        "row 3 (line 4), column 'date': '2020-13-01 02:00:00' is not a time stamp",
    ),
    "no time stamp": (
        lambda t: [*t[:3], t[3][19:], *t[4:]],
        "row 3 (line 4), column 'date': '' is not a time stamp",
    ),
    "HTML": (lambda t: ["<!DOCTYPE html>", "<html></html>"], "a web page (HTML), not data"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_csv_gets_one_clear_error(tmp_path: Path, case: str) -> None:
    spoil, message = BAD[case]
    path = write(tmp_path / "toy.csv", spoil(lines()))
    with pytest.raises(DataError, match=f"^{re.escape(f'{path}: {message}')}") as caught:
        read(toy(), path)
    assert "\n" not in str(caught.value)


def test_the_valid_file_is_read(tmp_path: Path) -> None:
    assert read(toy(), write(tmp_path / "toy.csv", lines())).values.shape == (20, 2)


def test_a_real_file_cut_short_is_refused(tmp_path: Path) -> None:
    content = real("ETTh1").read_bytes()
    path = tmp_path / "ETTh1.csv"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"ETTh1\.csv: SHA-256 .* the file was changed or cut"):
        read(DATASETS["ETTh1"], path)
    with pytest.raises(DataError, match=r"ETTh1\.csv: .*truncated\?"):
        read(replace(DATASETS["ETTh1"], sha256=()), path)


def test_bad_solar_files(tmp_path: Path) -> None:
    dataset = replace(DATASETS["Solar"], sha256=(), rows=3, channels=3)
    path = tmp_path / "solar_AL.txt"
    path.write_text("1,2,3\n4,x,6\n7,8,9\n")
    with pytest.raises(DataError, match=r"row 2 \(line 2\), column 'plant_1': 'x' is not a number"):
        read(dataset, path)
    path.write_text("1,2,3\n4,5\n")
    with pytest.raises(DataError, match=r"row 2 \(line 2\), column 'plant_2': missing"):
        read(dataset, path)
    noise = np.random.default_rng(0).random((2000, 3))
    text = "\n".join(",".join(map(str, row)) for row in noise)
    path.write_bytes(gzip.compress(text.encode())[:20000])
    with pytest.raises(DataError, match="compressed data end early or are damaged"):
        read(replace(dataset, rows=2000), path)


def test_bad_pems_files(tmp_path: Path) -> None:
    dataset = replace(DATASETS["PEMS08"], sha256=(), rows=6, channels=4)
    path = tmp_path / "PEMS08.npz"
    data = np.ones((6, 4, 3))

    def refuses(message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            read(dataset, path)
        assert str(path) in str(caught.value)

    np.savez(path, flow=data)
    refuses("holds no array 'data'")
    np.savez(path, data=data[:, :, 0])
    refuses("not an .npz file with an array 'data'")
    np.savez(path, data=np.array([object()]))
    refuses("not an .npz file with an array 'data'")
    np.savez(path, data=data[:5])
    refuses(r"5 rows x 4 channels, expected 6 x 4 \(truncated\?\)")
    np.savez(path, data=data)
    path.write_bytes(path.read_bytes()[:300])
    refuses("truncated")
    path.write_bytes(b"<html>")
    refuses("web page")
    data[3, 2, 0] = np.nan
    np.savez(path, data=data)
    refuses("row 4, column 2 of 'data': nan is not a finite number")


def test_generated_data_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1\n")
    with pytest.raises(DataError, match="synthetic is generated"):
        read(DATASETS["synthetic"], tmp_path / "x")


def series_of(values: np.ndarray, timed: bool = True) -> Series:
    times = np.datetime64("2020-01-01", "s") + np.arange(len(values)).astype("m8[h]")
    names = tuple(f"c{i}" for i in range(values.shape[1]))
    return Series(values.astype(np.float64), names, times if timed else None)


def test_values_are_standardised_by_the_training_rows_only() -> None:
    values = np.random.default_rng(1).normal(50, 7, (100, 3))
    prepared = prepare(toy(100, 3), series_of(values), "abc")
    np.testing.assert_allclose(prepared.mean, values[:70].mean(0), rtol=1e-13)
    np.testing.assert_allclose(prepared.std, values[:70].std(0, ddof=0), rtol=1e-13)
    expected = (values - values[:70].mean(0)) / values[:70].std(0)
    np.testing.assert_allclose(prepared.values, expected, atol=1e-6)
    assert prepared.values.dtype == np.float32
    values[70:] += 1000.0
    np.testing.assert_array_equal(prepare(toy(100, 3), series_of(values), "").mean, prepared.mean)


@pytest.mark.parametrize("constant", [0.0, 0.1, -9999.0, 1e9 / 3])
def test_a_constant_channel_keeps_scale_one(constant: float) -> None:
    values = np.random.default_rng(1).normal(size=(100, 2))
    values[:70, 1] = constant
    values[70:, 1] = constant + 2.0
    prepared = prepare(toy(100, 2), series_of(values), "")
    assert prepared.std[1] == 1.0
    np.testing.assert_allclose(prepared.values[:70, 1], 0.0, atol=1e-6)
    np.testing.assert_allclose(prepared.values[70:, 1], 2.0, atol=1e-6)


def test_rows_after_the_test_split_are_dropped() -> None:
    values = np.random.default_rng(1).normal(size=(14500, 7))
    values[14400:] = np.nan  # not used
    prepared = prepare(DATASETS["ETTh1"], series_of(values), "")
    assert prepared.values.shape == (14400, 7)
    assert prepared.marks is not None
    assert prepared.marks.shape == (14400, 4)


def test_prepare_refuses_what_cannot_be_used() -> None:
    values = np.ones((100, 2))
    with pytest.raises(DataError, match="ETTh1: 100 rows, but its splits need the first 14400"):
        prepare(DATASETS["ETTh1"], series_of(values), "")
    values[41, 1] = np.inf
    with pytest.raises(DataError, match="toy, row 42, column 'c1': inf is not a finite number"):
        prepare(toy(100, 2), series_of(values), "")


@pytest.mark.parametrize("timed", [True, False], ids=["marks", "no marks"])
def test_saved_and_loaded_unchanged(tmp_path: Path, timed: bool) -> None:
    values = np.random.default_rng(2).normal(size=(50, 3))
    prepared = prepare(toy(50, 3), series_of(values, timed), "f" * 64)
    save(prepared, tmp_path / "new" / "toy.npz")
    again = load(tmp_path / "new" / "toy.npz")
    assert (again.name, again.sha256, again.borders) == ("toy", "f" * 64, prepared.borders)
    for key in ("values", "mean", "std", "marks"):
        before, after = getattr(prepared, key), getattr(again, key)
        np.testing.assert_array_equal(before, after)
        assert (before is None and after is None) or before.dtype == after.dtype
    assert (again.marks is not None) is timed
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["toy.npz"]


def test_the_same_series_gives_the_same_bytes(tmp_path: Path) -> None:
    prepared = prepare(toy(50, 3), series_of(np.random.default_rng(2).normal(size=(50, 3))), "")
    save(prepared, tmp_path / "a.npz")
    save(prepared, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_failed_save_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(toy(50, 3), series_of(np.random.default_rng(2).normal(size=(50, 3))), "")
    path = tmp_path / "toy.npz"
    save(prepared, path)
    before = path.read_bytes()

    def full(file: object, **_: object) -> None:
        file.write(b"PK")  # type: ignore[attr-defined]
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        save(prepared, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.npz"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_a_damaged_prepared_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "toy.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: not a prepared series .*delete"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.npz")


def test_shares_leave_no_row_out() -> None:
    for rows in range(10, 200):
        values = np.random.default_rng(rows).normal(size=(rows, 1))
        dataset = replace(toy(rows, 1), split=Shares(train=0.6, test=0.2))
        assert len(prepare(dataset, series_of(values), "").values) == rows
