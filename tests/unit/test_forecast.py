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
        (lambda f: f.assign(sun="a"), "'sun' is not numeric"),
        (lambda f: f.assign(sun=1j), "'sun' is not numeric"),
        (lambda f: f.drop(f.index[-4]), "comes after 2024-03-02 01:00:00.*insert missing rows"),
        (lambda f: f.iloc[::-1], "sort the rows by time"),
        (lambda f: rows(30, "30min"), "the step of the model is 0 days 01:00:00"),
        (lambda f: f.set_axis(f.index.astype(str)), "not of time stamps: use frame.set_index"),
        (lambda f: f.set_axis(range(0, 60, 2)), "step of the model is 1"),
    ],
)
def test_a_frame_that_does_not_fit_says_why(
    spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        forecaster().predict(spoil(rows()))


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
