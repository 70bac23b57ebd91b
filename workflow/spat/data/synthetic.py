"""Generate series of known structure; equal arguments give equal series."""

from __future__ import annotations

import numpy as np

from spat.data.series import Series

PERIODS = (24, 168, 24 * 91)  # steps: a day, a week, a quarter of a year, at hourly rows
MAX_LAG = 48
START = np.datetime64("2020-01-01T00:00:00", "s")


def generate(rows: int, channels: int, seed: int, coupling: float, noise: float) -> Series:
    """Hourly series [rows, channels] of trend, seasons and noise, half of it coupled with a lag.

    Each channel has a trend, sines of the three `PERIODS` and of half the first, and white noise
    of standard deviation `noise`. Every second channel c is then replaced by a mixture with its
    left neighbour; the noise of the neighbour in it can be predicted only from the neighbour:

        x_c(t) <- coupling * x_{c-1}(t - lag_c) + (1 - coupling) * x_c(t),   1 <= lag_c <= 48

    The values of a channel do not depend on the number of channels.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    if rows < 1 or channels < 1:
        raise ValueError(f"rows {rows}, channels {channels}: both must be at least 1")
    if not 0.0 <= coupling <= 1.0 or noise < 0.0:
        raise ValueError(f"coupling {coupling} must be in [0, 1], noise {noise} at least 0")
    # The first MAX_LAG rows only serve the lags; they are not returned.
    t = np.arange(-MAX_LAG, rows, dtype=np.float64)
    own = np.empty((len(t), channels))  # [MAX_LAG + T, C]
    values = np.empty((rows, channels))  # [T, C]
    for c in range(channels):
        rng = np.random.default_rng([seed, c])
        own[:, c] = rng.uniform(-1.0, 1.0) * t / rows
        for period in (PERIODS[0] / 2, *PERIODS):
            amplitude, phase = rng.uniform(0.3, 1.0), rng.uniform(0.0, 2.0 * np.pi)
            own[:, c] += amplitude * np.sin(2.0 * np.pi * t / period + phase)
        lag = int(rng.integers(1, MAX_LAG + 1))
        own[:, c] += noise * rng.standard_normal(len(t))
        values[:, c] = own[MAX_LAG:, c]
        if c % 2 == 1:
            values[:, c] *= 1.0 - coupling
            values[:, c] += coupling * own[MAX_LAG - lag : MAX_LAG - lag + rows, c - 1]
    times = START + np.arange(rows).astype("timedelta64[h]")
    return Series(values, tuple(f"channel_{c}" for c in range(channels)), times)
