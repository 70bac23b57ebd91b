"""The moving-block bootstrap: its spread, centre, pairing and blocks."""

from __future__ import annotations

import numpy as np
import pytest
from planted import overlapping

from spat.blocks import block_means

BLOCK = 192


def drawn(series: np.ndarray, block: int, draws: int = 2000, seed: int = 1) -> np.ndarray:
    return block_means(series, block, draws, np.random.default_rng(seed))


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_the_standard_error_of_overlapping_windows(memory: float) -> None:
    n = 2785
    samples = [overlapping(n, seed, memory=memory) for seed in range(200)]
    truth = np.std([x.mean() for x in samples])
    estimate = np.mean([drawn(x, BLOCK, 300).std(ddof=1) for x in samples[:60]])
    naive = np.mean([x.std() / np.sqrt(n) for x in samples])
    assert truth / naive > 5, "windows must overlap enough for this test to mean something"
    assert 0.75 * truth < estimate < 1.15 * truth


def test_independent_values_have_the_ordinary_standard_error() -> None:
    x = np.random.default_rng(0).standard_normal(4000)
    assert drawn(x, 1).std() == pytest.approx(x.std() / np.sqrt(4000), rel=0.05)


def test_draws_are_centred_and_leading_axes_are_paired() -> None:
    # With a trend, the values at the ends, which are in few blocks, are far from the mean.
    series = np.cumsum(np.random.default_rng(0).normal(size=(2, 300)), axis=1) + np.arange(300.0)
    series[1] *= -1
    for block in (70, 100, 150):  # whole blocks and a shorter last one
        means = drawn(series, block, 4000)
        assert means.shape == (2, 4000)
        error = means.std(-1) / np.sqrt(4000)
        assert np.all(np.abs(means.mean(-1) - series.mean(-1)) < 5 * error)
        apart = drawn(series[0] - series[1], block, 4000)
        np.testing.assert_allclose(means[0] - means[1], apart, atol=1e-9)


def test_blocks_are_consecutive_windows() -> None:
    # With one block a draw, a bootstrap mean is the mean of consecutive windows, centred.
    x = np.arange(200.0) ** 2
    singles = np.convolve(x, np.full(100, 1 / 100), "valid")
    means = drawn(x, 100, 50) - x.mean() + singles.mean()
    assert all(np.isclose(singles, mean).any() for mean in means)


def test_a_series_of_one_block_is_refused() -> None:
    with pytest.raises(ValueError, match="300 values are fewer than two blocks of 192"):
        drawn(np.ones(300), BLOCK)
