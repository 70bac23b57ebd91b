"""SEND in float32: the command prints the committed table, and rounding explains its errors."""

from __future__ import annotations

import math

import pytest
import torch
from scoring_cases import MIXING, batches, small, traces, windows

from spat.study import float32
from spat.study.precision import errors_of_float32


def test_the_table_has_every_case() -> None:
    table = errors_of_float32()
    assert list(zip(table["keys"], table["loss"], strict=True)) == [
        (keys, loss) for keys in (7, 42, 321) for loss in float32.LOSSES
    ]
    assert set(float32.CASES) == {7, 42, 321}


@pytest.mark.parametrize("keys", float32.CASES)
def test_the_table_is_what_the_command_prints(keys: int) -> None:
    table = errors_of_float32()
    committed = table[table["keys"] == keys].to_dict("records")
    for row, expected in zip(float32.case(keys), committed, strict=True):
        assert row["model"] == expected["model"]
        # Rounding in another order (another processor) moves the errors a little.
        for name in ("bias", "sd", "worst", "erased"):
            assert row[name] == pytest.approx(expected[name], rel=0.15, abs=2e-5), name


def test_the_case_has_as_many_keys_as_it_says() -> None:
    assert float32.CASES[42] == ("PatchTST", 336, 7)
    patches = (336 - 16) // 8 + 2  # the end is padded by one stride
    assert patches == 42


@pytest.mark.parametrize("name", MIXING)
def test_errors_vanish_in_the_limit_and_grow_as_the_sensitivities_shrink(name: str) -> None:
    for record in traces(small(name), windows().batch(torch.cat(batches(8, 8)))):
        near, far = (float32.errors(record, scale) for scale in (1.0, 1e4))
        assert near.shape == (2, 8)
        assert float(near[0].abs().max()) < 1e-2
        assert float(near[0].abs().mean()) < float(far[0].abs().mean())
        # If S is far below the resolution of float32, no digit is right.
        gone = float32.errors(record, 1e12)
        assert float(gone[1].min()) > 0.2
        assert math.isfinite(float(gone[0].sum()))
