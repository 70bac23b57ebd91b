"""The rules for missing values: the filled values, and that no later split leaks into one."""

import numpy as np
import pytest

from spat.data.gaps import Filled, fill, first_complete
from spat.data.registry import Borders, DataError, GapRule, Gaps

NAN = float("nan")
BORDERS = Borders(train=(0, 6), validation=(6, 9), test=(9, 12))


def filled(values: list[float], rule: GapRule, limit: int = 12) -> list[float]:
    column = np.array(values)[:, None]
    done, _ = fill(column, Gaps(rule, limit), BORDERS, names=["a"], times=None, dropped=0)
    return done[:, 0].tolist()


# 12 rows: training 0-5, validation 6-8, test 9-11.
@pytest.mark.parametrize(
    ("values", "forward", "interpolate"),
    [
        ([0, NAN, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 0, 2], [0, 1, 2]),
        ([0, NAN, NAN, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 0, 0, 3], [0, 1, 2, 3]),
        # The gap ends the training rows; the line must not use the neighbour in validation.
        ([0, 1, 2, 3, 4, NAN, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 4]),
        # From training into validation, which begins with a gap.
        (
            [0, 1, 2, 3, 4, NAN, NAN, 7, 8, 9, 10, 11],
            [0, 1, 2, 3, 4, 4, 4, 7],
            [0, 1, 2, 3, 4, 4, 4, 7],
        ),
        # All of validation.
        (
            [0, 1, 2, 3, 4, 5, NAN, NAN, NAN, 9, 10, 11],
            [0, 1, 2, 3, 4, 5, 5, 5, 5, 9],
            [0, 1, 2, 3, 4, 5, 5, 5, 5, 9],
        ),
        # Within test, and at its end.
        ([*range(10), NAN, 11], [*range(10), 9, 11], [*range(10), 10, 11]),
        ([*range(11), NAN], [*range(11), 10], [*range(11), 10]),
    ],
)
def test_values_are_filled_by_each_rule(
    values: list[float], forward: list[float], interpolate: list[float]
) -> None:
    assert filled(values, "forward")[: len(forward)] == forward
    assert filled(values, "interpolate")[: len(interpolate)] == interpolate


@pytest.mark.parametrize("rule", ["forward", "interpolate"])
@pytest.mark.parametrize("seed", range(5))
def test_no_split_contains_values_of_a_later_split(rule: GapRule, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=12)
    values[rng.random(12) < 0.5] = NAN
    values[0] = 1.0
    before = filled(values.tolist(), rule)
    for border in (6, 9):
        later = values.copy()
        later[border:] += 100.0
        assert filled(later.tolist(), rule)[:border] == before[:border]


def test_the_rule_forward_looks_only_backwards() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=12)
    values[[3, 4, 8]] = NAN
    before = filled(values.tolist(), "forward")
    for row in range(1, 12):
        later = values.copy()
        later[row:] += 100.0
        assert filled(later.tolist(), "forward")[:row] == before[:row]


def test_filled_values_are_counted() -> None:
    values = np.arange(24.0).reshape(12, 2)
    values[2:5, 0] = values[4:6, 1] = NAN
    done, record = fill(
        values, Gaps("forward", 3), BORDERS, names=["a", "b"], times=None, dropped=7
    )
    assert record == Filled("forward", 3, dropped=7, steps=4, values=5, longest=3)
    assert np.isfinite(done).all()
    whole, record = fill(done, Gaps(), BORDERS, names=["a", "b"], times=None, dropped=0)
    assert whole is done
    assert record == Filled()


@pytest.mark.parametrize(
    ("rows", "gaps", "message"),
    [
        (
            [3],
            Gaps(),
            r"row 4 \(2021-01-01T03\), column 'b': a value is missing; set `gaps: forward`",
        ),
        ([3, 4, 5], Gaps("forward", 2), r"row 6 .*'b': a gap of more than 2 steps.*`gap_limit`"),
        ([0], Gaps("interpolate", 2), r"row 1 .*'b': a value is missing"),
    ],
)
def test_gaps_that_cannot_be_filled_are_named(rows: list[int], gaps: Gaps, message: str) -> None:
    values = np.zeros((12, 2))
    values[rows, 1] = NAN
    times = np.datetime64("2021-01-01T00") + np.arange(12)
    with pytest.raises(DataError, match=message):
        fill(values, gaps, BORDERS, names=["a", "b"], times=times, dropped=0)


def test_the_first_complete_row() -> None:
    values = np.zeros((4, 2))
    assert first_complete(values) == 0
    values[0, 1] = values[1, 0] = NAN
    assert first_complete(values) == 2
    assert first_complete(np.full((3, 1), NAN)) == 3
