"""Time features against the calendar."""

import numpy as np
import pandas as pd
import pytest

from spat.data.registry import TIME_FEATURES
from spat.data.timefeatures import marks


def at(*times: str) -> np.ndarray:
    return marks(np.array(times, dtype="datetime64[s]"))


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        # hour / 23, weekday / 6 (Monday 0), (day of month - 1) / 30, (day of year - 1) / 365; - 1/2
        ("2018-01-01T00:00:00", (-0.5, -0.5, -0.5, -0.5)),  # a Monday
        ("2023-12-31T23:59:59", (0.5, 0.5, 0.5, 364 / 365 - 0.5)),  # a Sunday
        ("2020-12-31T12:30:00", (12 / 23 - 0.5, 0.0, 0.5, 0.5)),  # Thursday of a leap year
        ("1969-12-30T06:00:00", (6 / 23 - 0.5, 1 / 6 - 0.5, 29 / 30 - 0.5, 363 / 365 - 0.5)),
    ],
)
def test_known_days(time: str, expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(at(time)[0], expected, atol=1e-7)


def test_against_the_calendar_of_pandas() -> None:
    index = pd.date_range("1999-12-27 00:10", "2005-01-03", freq="7h13min")
    features = marks(index.to_numpy().astype("datetime64[s]"))
    assert features.shape == (len(index), len(TIME_FEATURES))
    assert features.dtype == np.float32
    expected = np.stack(
        [
            index.hour / 23 - 0.5,
            index.day_of_week / 6 - 0.5,
            (index.day - 1) / 30 - 0.5,
            (index.day_of_year - 1) / 365 - 0.5,
        ],
        axis=1,
    )
    np.testing.assert_allclose(features, expected, atol=1e-7)
    assert features.min() == -0.5
    assert features.max() == 0.5


def test_minutes_do_not_change_the_features() -> None:
    np.testing.assert_array_equal(at("2020-05-05T07:00:00"), at("2020-05-05T07:59:59"))
