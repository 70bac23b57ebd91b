"""Resampling of series whose neighbours depend on each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def block_means(series: Array, block: int, draws: int, rng: np.random.Generator) -> Array:
    """Moving-block bootstrap (Kuensch 1989) of the mean: series [..., N] -> [..., draws].

    Leading axes are resampled together. One block less than the series holds is drawn (Rao and Wu
    1988), without which the variance of few blocks comes out too small, and the draws are centred
    on the sample mean, since windows at the ends are in fewer blocks.

    Raises:
        ValueError: if the series does not hold two blocks.
    """
    n = series.shape[-1]
    if n < 2 * block:
        raise ValueError(f"{n} values do not hold two blocks of {block}")
    drawn = n - block
    lengths = np.full(-(-drawn // block), block)
    lengths[-1] = drawn - block * (len(lengths) - 1)
    running = np.concatenate([np.zeros_like(series[..., :1]), series.cumsum(axis=-1)], axis=-1)

    def sums(starts: NDArray[np.int64], length: int | NDArray[np.int64]) -> Array:
        return np.asarray(running[..., starts + length] - running[..., starts])

    first = np.arange(n - block + 1)
    expected = sum(sums(first, int(length)).mean(axis=-1) for length in lengths)
    starts = rng.integers(0, n - block + 1, size=(draws, len(lengths)))
    means = (sums(starts, lengths).sum(axis=-1) - np.asarray(expected)[..., None]) / drawn
    return np.asarray(means + series.mean(axis=-1, keepdims=True))
