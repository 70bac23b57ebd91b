"""The generated series: reproducible, and with the documented structure."""

from dataclasses import replace

import numpy as np
import pytest

from spat.data.registry import DATASETS
from spat.data.series import prepare
from spat.data.synthetic import MAX_LAG, generate
from spat.data.windows import split

ARGUMENTS = {"rows": 1000, "channels": 4, "seed": 3, "coupling": 0.6, "noise": 0.3}


def test_deterministic() -> None:
    first, second = generate(**ARGUMENTS), generate(**ARGUMENTS)
    np.testing.assert_array_equal(first.values, second.values)
    other = generate(**(ARGUMENTS | {"seed": 4}))
    assert not np.isclose(first.values, other.values).any(axis=None)


@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (10, 1), (500, 2), (300, 25)])
def test_any_length_and_width(rows: int, channels: int) -> None:
    series = generate(rows, channels, seed=0, coupling=0.6, noise=0.3)
    assert series.values.shape == (rows, channels)
    assert len(series.names) == channels
    assert np.isfinite(series.values).all()
    assert series.times is not None
    assert len(series.times) == rows
    assert (np.diff(series.times) == np.timedelta64(1, "h")).all()


def test_a_channel_does_not_depend_on_the_width() -> None:
    wide = generate(**(ARGUMENTS | {"channels": 9}))
    np.testing.assert_array_equal(wide.values[:, :4], generate(**ARGUMENTS).values)


def test_seasons_without_noise() -> None:
    values = generate(24 * 91 * 2, 1, seed=0, coupling=0.0, noise=0.0).values[:, 0]
    values = values - np.polyval(
        np.polyfit(np.arange(len(values)), values, 1), np.arange(len(values))
    )
    power = np.abs(np.fft.rfft(values)) ** 2
    strongest = np.argsort(power)[-4:]
    periods = sorted(round(len(values) / k) for k in strongest)
    assert periods == [12, 24, 168, 24 * 91]


def test_there_is_a_trend() -> None:
    values = generate(24 * 91 * 4, 8, seed=0, coupling=0.0, noise=0.0).values
    quarter = 24 * 91  # The means are over whole seasons, so their difference is the trend.
    rise = values[-quarter:].mean(0) - values[:quarter].mean(0)
    assert (np.abs(rise) > 0.05).sum() >= 6
    assert (np.abs(rise) <= 1.0).all()


def lag_found(series: np.ndarray) -> tuple[int, float]:
    """The lag at which channel 1 follows channel 0 most, and their correlation at it."""
    leader, follower = np.diff(series, n=2, axis=0).T
    lags = range(1, MAX_LAG + 1)
    r = [np.corrcoef(leader[:-lag], follower[lag:])[0, 1] for lag in lags]
    best = int(np.argmax(r))
    return lags[best], r[best]


def test_followers_repeat_their_leader_with_a_lag() -> None:
    full = generate(3000, 2, seed=0, coupling=1.0, noise=0.5).values
    lag, correlation = lag_found(full)
    assert correlation > 0.99
    np.testing.assert_allclose(full[lag:, 1], full[:-lag, 0], atol=1e-12)
    lag_of_mixture, correlation = lag_found(
        generate(3000, 2, seed=0, coupling=0.6, noise=0.5).values
    )
    assert lag_of_mixture == lag
    assert 0.5 < correlation < 0.99
    _, none = lag_found(generate(3000, 2, seed=0, coupling=0.0, noise=0.5).values)
    assert none < 0.2


def test_half_of_the_channels_follow() -> None:
    apart = generate(200, 7, seed=0, coupling=0.0, noise=0.3).values
    coupled = generate(200, 7, seed=0, coupling=0.6, noise=0.3).values
    changed = [c for c in range(7) if not np.array_equal(apart[:, c], coupled[:, c])]
    assert changed == [1, 3, 5]


def test_noise_has_the_deviation_asked_for() -> None:
    quiet = generate(20000, 1, seed=0, coupling=0.0, noise=0.0).values
    noisy = generate(20000, 1, seed=0, coupling=0.0, noise=0.3).values
    assert np.std(noisy - quiet) == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("rows", 0), ("channels", 0), ("coupling", 1.1), ("coupling", -0.1), ("noise", -1.0)],
)
def test_arguments_out_of_range_are_named(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{argument} {value}"):
        generate(**(ARGUMENTS | {argument: value}))


def test_default_shape_holds_every_standard_horizon() -> None:
    dataset = DATASETS["synthetic"]
    series = generate(dataset.rows, dataset.channels, seed=0, coupling=0.6, noise=0.3)
    prepared = prepare(replace(dataset, name="synthetic2"), series, "")
    assert prepared.marks is not None
    for horizon in dataset.horizons:
        assert all(len(windows) > 0 for windows in split(prepared, dataset.lookback, horizon))
