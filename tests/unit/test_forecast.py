"""Forecasts of a data frame in its own units, from the files of a dense or pruned network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import prune, sized

import spat
from spat.attention.mask import Mask
from spat.data import series
from spat.data.registry import Borders, DataError
from spat.data.timefeatures import marks
from spat.files import read_json, write_json
from spat.models.registry import Shape, build
from spat.surgery import storage
from spat.surgery.forecast import FORECASTER

COLUMNS = ("load", "wind speed", "sun")
MEAN, STD = np.array([1e4, 5.0, 0.0]), np.array([300.0, 2.0, 1.0])
SHAPE = Shape(24, 12, 3)


def forecaster(name: str = "iTransformer", shape: Shape = SHAPE, **settings: bool) -> spat.Forecast:
    model = build(name, sized(name, **settings), shape).eval()
    mask = Mask.full([site.heads for site in model.sites()])
    return spat.Forecast(model, mask, COLUMNS, "1h", MEAN, STD)


def rows(count: int = 30, step: str = "h") -> pd.DataFrame:
    values = MEAN + STD * np.random.default_rng(0).standard_normal((count, 3))
    index = pd.date_range("2024-03-01", periods=count, freq=step, name="time")
    return pd.DataFrame(values, index, list(COLUMNS))


def test_forecasts_are_the_networks_in_original_units_and_continue_the_frame() -> None:
    forecast, frame = forecaster(), rows()
    predicted = forecast.predict(frame)
    x = torch.from_numpy(((frame.to_numpy()[-24:] - MEAN) / STD).astype(np.float32))[None]
    with torch.no_grad():
        expected = forecast.model(x)[0].numpy() * STD + MEAN
    np.testing.assert_allclose(predicted.to_numpy(), expected, rtol=1e-6)
    assert list(predicted.columns) == list(COLUMNS)
    assert predicted.index.equals(pd.date_range("2024-03-02 06:00", periods=12, freq="h"))
    assert predicted.index.name == "time"
    assert (forecast.lookback, forecast.horizon) == (24, 12)


def test_time_features_are_those_of_the_stamps() -> None:
    forecast = forecaster(shape=Shape(24, 12, 3, 4), time_features=True)
    frame = rows(24)
    times = pd.date_range("2024-03-01", periods=36, freq="h").to_numpy()
    x, past = (
        torch.from_numpy(part.astype(np.float32))[None]
        for part in ((frame.to_numpy() - MEAN) / STD, marks(times)[:24])
    )
    with torch.no_grad():
        expected = forecast.model(x, past)[0].numpy() * STD + MEAN
    np.testing.assert_allclose(forecast.predict(frame).to_numpy(), expected, rtol=1e-6)
    with pytest.raises(DataError, match="not of time stamps"):
        forecast.predict(frame.reset_index(drop=True))


def test_other_columns_and_another_order_change_nothing() -> None:
    forecast, frame = forecaster(), rows()
    other = frame.assign(note="x")[["sun", "note", "wind speed", "load"]]
    other = other.rename(columns={"wind speed": " wind  speed"})
    predicted = forecast.predict(other)
    np.testing.assert_array_equal(predicted.to_numpy(), forecast.predict(frame).to_numpy())
    assert list(predicted.columns) == ["load", " wind  speed", "sun"]


def test_stamps_with_a_time_zone_and_whole_numbers_are_continued() -> None:
    forecast, frame = forecaster(), rows()
    zoned = forecast.predict(frame.tz_localize("Europe/Berlin"))
    assert str(zoned.index[0]) == "2024-03-02 06:00:00+01:00"
    counted = forecast.predict(frame.reset_index(drop=True))
    assert counted.index.tolist() == list(range(30, 42))
    np.testing.assert_array_equal(zoned.to_numpy(), counted.to_numpy())


def missing(frame: pd.DataFrame) -> pd.DataFrame:
    frame.iloc[-3, 1] = np.nan
    return frame


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.drop(columns="sun"), "no column 'sun'.*trained on load, wind speed, sun"),
        (lambda f: pd.concat([f, f[["sun"]]], axis=1), "2 columns 'sun'"),
        (lambda f: f.iloc[:20], "20 rows, but a forecast needs 24"),
        (missing, "'wind speed' has no finite number at 2024-03-02 03:00:00: fill it"),
        (lambda f: f.iloc[:0], "0 rows, but a forecast needs 24"),
        (lambda f: f.iloc[:23], "23 rows, but a forecast needs 24"),
        (lambda f: pd.DataFrame(), "no column 'load'.*and the frame has no columns"),
        (lambda f: f.rename(columns=str.upper), "and the frame has LOAD, WIND SPEED, SUN"),
        (lambda f: pd.DataFrame(f.to_numpy(), f.index), "and the frame has 0, 1, 2"),
        (lambda f: f.assign(sun="a"), "'sun' is not numeric but str"),
        (lambda f: f.assign(sun=1j), "'sun' is not numeric but complex128"),
        (lambda f: f.assign(sun=f.index), "'sun' is not numeric but datetime64"),
        (lambda f: f.assign(sun=pd.Categorical([1.0] * 30)), "'sun' is not numeric but category"),
        (lambda f: f.astype(object), r"not numeric but object.*pandas.to_numeric\(frame\['load'\]"),
        (
            lambda f: f.replace(f.iloc[-2, 0], np.inf),
            "'load' has no finite number at 2024-03-02 04",
        ),
        (
            lambda f: f.replace(f.iloc[-2, 2], np.nan).astype("Float64"),
            "'sun' has no finite number",
        ),
        (
            lambda f: f.replace(f.iloc[-2, 0], 1e38),
            "forecast is not finite: column 'load' is 1e.38 at 2024-03-02 04:00:00, but its mean "
            "in the training data is 10000.*check the value and its unit",
        ),
        (lambda f: f.drop(f.index[-4]), "comes after 2024-03-02 01:00:00.*insert missing rows"),
        (lambda f: f.iloc[::-1], "sort the rows by time"),
        (lambda f: f.sample(frac=1, random_state=0), r"sort the rows.*frame.sort_index\(\)"),
        (lambda f: pd.concat([f, f.iloc[-1:]]), "2024-03-02 05.*05:00:00 .*keep one row of each"),
        (lambda f: pd.concat([f, f]).sort_index(), r"frame\[~frame.index.duplicated\(\)\]"),
        (
            lambda f: rows(30, "30min"),
            "the step of the model is 0 days 01:00:00: give rows of this",
        ),
        (lambda f: rows(30, "2h"), r"give rows of this step, for example with frame.resample"),
        (lambda f: rows(30, "MS"), "the step of the model is 0 days 01:00:00"),
        (
            lambda f: f.set_axis(f.index[:-1].append(f.index[-1:] + pd.Timedelta("1s"))),
            "05:00:01 comes after.*round the time stamps",
        ),
        (
            lambda f: f.set_axis(f.index[:-1].append(pd.DatetimeIndex([pd.NaT]))),
            "no time stamp in one of the last 24 rows: fill or remove",
        ),
        (lambda f: f.set_axis(f.index.astype(str)), "not of time stamps: use frame.set_index"),
        (
            lambda f: f.set_axis(pd.Index(list(f.index), dtype=object)),
            r"set frame.index = pd.to_datetime\(frame.index\)",
        ),
        (lambda f: f.to_period("h"), r"is a PeriodIndex of .*: use frame.to_timestamp\(\)"),
        (lambda f: f.set_axis(np.arange(30.0)), "of float64, not of time stamps"),
        (lambda f: f.set_axis(pd.MultiIndex.from_arrays([f.index, range(30)])), "is a MultiIndex"),
        (
            lambda f: f.set_axis(range(0, 60, 2)),
            "step of the model is 1: number the rows one by one",
        ),
    ],
)
def test_a_frame_that_does_not_fit_says_why(
    spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        forecaster().predict(spoil(rows()))


@pytest.mark.parametrize(
    "other", [np.zeros((24, 3)), rows()["load"], {"load": [1.0]}, [[1.0]], None, "my.csv", 3]
)
def test_what_is_no_data_frame_is_named(other: object) -> None:
    name = type(other).__name__
    with pytest.raises(TypeError, match=rf"the frame is a {name}, not .*pandas.DataFrame\(values"):
        forecaster().predict(other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "same",
    [
        lambda f: f.iloc[-24:],
        lambda f: f.convert_dtypes(),
        lambda f: f.assign(sun=pd.arrays.SparseArray(f.sun)),
        lambda f: f.set_axis(f.index.as_unit("s")),
        lambda f: f.drop(f.index[2]),
        lambda f: pd.concat([f.iloc[:3], f.iloc[2:]]),
    ],
)
def test_a_frame_in_another_form_gives_the_same_forecast(
    same: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    forecast, frame = forecaster(), rows()
    given, wanted = forecast.predict(same(frame)), forecast.predict(frame)
    np.testing.assert_array_equal(given.to_numpy(), wanted.to_numpy())
    assert list(given.index) == list(wanted.index) and list(given) == list(wanted)


def test_an_hour_of_summer_time_is_no_gap() -> None:
    stamps = pd.date_range("2024-03-30 12:00", periods=30, freq="h", tz="Europe/Berlin")
    predicted = forecaster().predict(rows().set_axis(stamps))
    assert str(stamps[14]) == "2024-03-31 03:00:00+02:00"
    assert str(predicted.index[0]) == "2024-03-31 19:00:00+02:00"
    with pytest.raises(DataError, match="03:00:00 comes after 2024-03-31 01:00:00.*insert missing"):
        forecaster().predict(rows().set_axis(stamps.tz_localize(None)))


def test_rows_before_the_lookback_are_not_used() -> None:
    forecast, frame = forecaster(), rows()
    expected = forecast.predict(frame)
    frame.iloc[:6] = np.nan
    np.testing.assert_array_equal(forecast.predict(frame).to_numpy(), expected.to_numpy())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("columns", None, "columns: None is not a list of names"),
        ("columns", ["a", 1, "c"], "is not a list of names"),
        ("columns", ["a", "a", "c"], "has a name twice"),
        ("columns", [], "is empty"),
        ("columns", ["a"], "mean: .* is not a list of 1 numbers"),
        ("step", 3, "expected string"),
        ("step", "fast", "fast"),
        ("mean", [0.0, 0.0], "mean: .* is not a list of 3 numbers"),
        ("mean", [0.0, 0.0, None], "mean: None is not a finite number"),
        ("std", [1.0, 1.0, 0.0], "std: 0.0 is not a finite number above 0"),
        ("std", 1.0, "std: 1.0 is not a list"),
        ("lookback", 25, "lookback is 25, but that of the network is 24"),
        ("horizon", "x", "horizon is 'x', but that of the network is 12"),
        ("files", {}, "has no 'architecture.json'"),
        ("files", [], "list indices"),
        ("version", None, "version None"),
    ],
)
def test_a_folder_with_wrong_values_is_named(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    forecaster().save(tmp_path)
    values = read_json(tmp_path / FORECASTER)
    write_json(tmp_path / FORECASTER, {**values, key: value})
    with pytest.raises(ValueError, match=rf"forecaster.json: .*{message}"):
        spat.Forecast.from_folder(tmp_path)


def test_a_path_may_be_text_or_start_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecaster().save(tmp_path / "a")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "a", str(tmp_path / "a"), f"{tmp_path}/a/", "a", "~/a", Path("~/a")):
        assert spat.Forecast.from_folder(path).columns == COLUMNS


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (None, TypeError, "folder is a NoneType: give its path"),
        (3, TypeError, "folder is a int"),
        ("", FileNotFoundError, "'': there is no such folder"),
        ("none", FileNotFoundError, "none': there is no such folder"),
        ("a/model.safetensors", NotADirectoryError, "is a file: give its folder, .*a$"),
        (".", FileNotFoundError, "forecaster.json: no such file.*such as .*a$"),
        ("other", FileNotFoundError, "is not in the results .*give a folder of `python -m spat ad"),
    ],
)
def test_a_path_that_is_no_forecaster_is_named(
    path: object, error: type[Exception], message: str, tmp_path: Path
) -> None:
    forecaster().save(tmp_path / "a")
    (tmp_path / "other").mkdir()
    given = str(tmp_path / path) if isinstance(path, str) and path else path
    with pytest.raises(error, match=message):
        spat.Forecast.from_folder(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, b"", b"half", b"\xff\xfe", "folder"])
@pytest.mark.parametrize("name", [FORECASTER, storage.ARCHITECTURE, storage.WEIGHTS])
def test_a_damaged_file_is_named(name: str, content: object, tmp_path: Path) -> None:
    forecaster().save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        spat.Forecast.from_folder(tmp_path)


def test_a_device_that_torch_cannot_use_is_named(tmp_path: Path) -> None:
    forecaster().save(tmp_path)
    with pytest.raises(ValueError, match="device='gpu': Expected one of cpu.*give 'cpu'"):
        spat.Forecast.from_folder(tmp_path, "gpu")


def test_a_folder_gives_the_same_forecaster(tmp_path: Path) -> None:
    forecast = forecaster("PatchTST")
    mask = forecast.mask.without_sites([1])
    prune(forecast.model, mask)
    pruned = spat.Forecast(forecast.model, mask, COLUMNS, "1h", MEAN, STD)
    pruned.save(tmp_path)
    again = spat.Forecast.from_folder(tmp_path)
    assert again.mask == mask and again.columns == COLUMNS and again.step == "1h"
    np.testing.assert_array_equal(
        again.predict(rows()).to_numpy(), pruned.predict(rows()).to_numpy()
    )
    weights = tmp_path / storage.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"forecaster.json: model.safetensors has changed"):
        spat.Forecast.from_folder(tmp_path)
    two = {"columns": list(COLUMNS[:2]), "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    pruned.save(tmp_path)
    write_json(tmp_path / FORECASTER, {**read_json(tmp_path / FORECASTER), **two})
    with pytest.raises(ValueError, match="3 channels.*do not belong together"):
        spat.Forecast.from_folder(tmp_path)
    write_json(tmp_path / FORECASTER, {"version": 2})
    with pytest.raises(ValueError, match="version 2"):
        spat.Forecast.from_folder(tmp_path)


def test_the_folders_of_the_pipeline_are_read(tmp_path: Path) -> None:
    forecast = forecaster()
    run = tmp_path / "results" / "mine" / "station" / "iTransformer-deep" / "l24-h12" / "seed0"
    folder = run / "prune" / "masks" / "1.1.1" / "order0"
    storage.save(forecast.model, folder)
    with pytest.raises(FileNotFoundError, match="not in the results of an experiment"):
        spat.Forecast.from_folder(folder)
    file = tmp_path / "results" / "mine" / "prepared" / "station.npz"
    borders = Borders((0, 60), (60, 80), (80, 100))
    values = np.zeros((100, 3), np.float32)
    series.save(series.Prepared("station", values, MEAN, STD, borders, None, ""), file)
    write_json(file.with_suffix(".json"), {"step": "1h"})
    with pytest.raises(ValueError, match="without names of the columns"):
        spat.Forecast.from_folder(folder)
    write_json(file.with_suffix(".json"), {"step": "1h", "names": COLUMNS})
    for above in (run, run / "prune", folder.parent):  # a run holds several networks
        with pytest.raises(FileNotFoundError, match="architecture.json.*such as .*1.1.1/order0$"):
            spat.Forecast.from_folder(above)
    read = spat.Forecast.from_folder(folder)
    np.testing.assert_array_equal(
        read.predict(rows()).to_numpy(), forecast.predict(rows()).to_numpy()
    )
    write_json(file.with_suffix(".json"), {"step": "1h", "names": COLUMNS[:2]})
    with pytest.raises(ValueError, match="is not a list of 2 numbers: run `python -m spat prepare"):
        spat.Forecast.from_folder(folder)


def test_arrays_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(23, 3\); expected \(24, 3\)"):
        forecaster().forecast(np.zeros((23, 3)))
    with pytest.raises(ValueError, match="pass `times`"):
        forecaster(shape=Shape(24, 12, 3, 4), time_features=True).forecast(np.zeros((24, 3)))
