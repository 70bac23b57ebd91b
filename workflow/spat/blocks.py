"""Block bootstrap of the mean of a series whose neighbouring values are dependent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def block_means(series: Array, block: int, draws: int, rng: np.random.Generator) -> Array:
    """Moving-block bootstrap (Kuensch 1989) of the mean: series [..., N] -> [..., draws].

    Leading axes are resampled together. Each draw takes one block fewer than the series contains
    (Rao and Wu 1988); otherwise the variance would be underestimated if there are few blocks. The
    draws are centred on the sample mean, since windows at the ends are in fewer blocks.

    Raises:
        ValueError: if the series is shorter than two blocks.
    """
    n = series.shape[-1]
    if n < 2 * block:
        raise ValueError(f"{n} values are fewer than two blocks of {block}: use a longer series")
    drawn = n - block
    lengths = np.full(-(-drawn // block), block)
    lengths[-1] = drawn - block * (len(lengths) - 1)
    running = np.concatenate([np.zeros_like(series[..., :1]), series.cumsum(axis=-1)], axis=-1)
    first = np.arange(n - block + 1)
    # Sums of a block at each start: of a whole block, and of the last one, which may be shorter.
    whole, last = (
        running[..., first + length] - running[..., first] for length in (block, lengths[-1])
    )
    expected = sum([whole.mean(axis=-1)] * (len(lengths) - 1)) + last.mean(axis=-1)
    starts = rng.integers(0, n - block + 1, size=(draws, len(lengths)))
    starts[:, -1] += len(first)
    sums = np.concatenate([whole, last], axis=-1)[..., starts]
    means = (sums.sum(axis=-1) - np.asarray(expected)[..., None]) / drawn
    return np.asarray(means + series.mean(axis=-1, keepdims=True))
