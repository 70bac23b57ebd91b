"""Calendar features of the time stamps, for the models that use them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def marks(times: NDArray[np.datetime64]) -> NDArray[np.float32]:
    """times datetime64 [T] -> features float32 [T, 4], each from -0.5 (first) to 0.5 (last).

    This is the encoding `timeF` at frequency `h` of Informer (Zhou et al., AAAI 2021), which the
    published settings use for data of every step. A week begins on Monday; a year has 366 days.
    """
    day, month, year = (times.astype(f"datetime64[{unit}]") for unit in "DMY")
    hour = (times.astype("datetime64[h]") - day).astype(np.int64)
    weekday = (day.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    day_of_month = (day - month.astype("datetime64[D]")).astype(np.int64)
    day_of_year = (day - year.astype("datetime64[D]")).astype(np.int64)
    scaled = (hour / 23, weekday / 6, day_of_month / 30, day_of_year / 365)
    return (np.stack(scaled, axis=1) - 0.5).astype(np.float32)
