"""SEND in float32 and training in bfloat16: the committed tables, and what explains the errors."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scoring_cases import MIXING, batches, small, traces, windows

from spat.study import float32, precision

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
COMMITTED = REFERENCE / "precision"
BOTH = [COMMITTED / name / "data" for name in precision.PRECISIONS]


def test_the_table_has_every_case() -> None:
    table = precision.errors_of_float32()
    assert list(zip(table["keys"], table["loss"], strict=True)) == [
        (keys, loss) for keys in (7, 42, 321) for loss in float32.LOSSES
    ]
    assert set(float32.CASES) == {7, 42, 321}


@pytest.mark.parametrize("keys", float32.CASES)
def test_the_table_is_what_the_command_prints(keys: int) -> None:
    table = precision.errors_of_float32()
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


def stored(folder: Path, trained_in: str, factor: float = 1.0, spread: float = 0.0) -> Path:
    """The frames of the experiment `scratch`, as if trained in a precision with other errors."""
    folder.mkdir()
    source = REFERENCE / "scratch" / "data"
    rows = pd.read_parquet(source / "measurements.parquet")
    noise = np.random.default_rng(0).normal(0, spread, len(rows))
    rows["value"] = rows["value"] * (factor + noise)
    rows.to_parquet(folder / "measurements.parquet")
    networks = pd.read_parquet(source / "networks.parquet").assign(precision=trained_in)
    networks.to_parquet(folder / "networks.parquet")
    return folder


def compared(tmp_path: Path, factor: float, spread: float) -> pd.DataFrame:
    wide = stored(tmp_path / "float32", "float32")
    narrow = stored(tmp_path / "bf16", "bf16", factor, spread)
    return precision.equivalence_of_bf16(precision.changes_by_bf16(wide, narrow))


def test_runs_are_the_unit_and_every_mask_counts(tmp_path: Path) -> None:
    table = compared(tmp_path, 1.001, 1e-4).set_index(["dataset", "networks", "metric"])
    row = table.loc[precision.ALL, precision.PHASES["finetuned"], "mse"]
    frame = pd.read_parquet(tmp_path / "bf16" / "measurements.parquet")
    asked = frame[(frame["split"] == "test") & (frame["metric"] == "mse")]
    tuned = asked[asked["phase"] == "finetuned"]
    assert (row["runs"], row["pairs"]) == (10, len(tuned))
    assert row["pairs"] > row["runs"]
    assert row["mean"] == pytest.approx(0.1, abs=0.01)
    assert row["low"] < row["mean"] < row["high"] <= row["largest"]
    assert table.loc[precision.ALL, "dense", "mae"]["pairs"] == 10


@pytest.mark.parametrize(
    ("factor", "spread", "expected"),
    [(1.001, 1e-4, True), (1.004, 1e-4, False), (0.996, 1e-4, False), (1.0, 0.02, False)],
)
def test_equivalence_needs_a_small_change_and_a_small_error(
    factor: float, spread: float, expected: bool, tmp_path: Path
) -> None:
    table = compared(tmp_path, factor, spread)
    whole = table[(table["dataset"] == precision.ALL) & (table["networks"] == "dense")]
    assert whole["equivalent"].tolist() == [expected] * 2
    inside = (table["low"] > -precision.MARGIN) & (table["high"] < precision.MARGIN)
    assert table["equivalent"].tolist() == inside.tolist()


def test_a_network_that_is_missing_in_one_folder_is_an_error(tmp_path: Path) -> None:
    wide, narrow = stored(tmp_path / "a", "float32"), stored(tmp_path / "b", "bf16")
    rows = pd.read_parquet(narrow / "measurements.parquet")
    rows[rows["seed"] != 2].to_parquet(narrow / "measurements.parquet")
    with pytest.raises(ValueError, match="/b: .* are missing.*'seed': 2"):
        precision.changes_by_bf16(wide, narrow)


def test_folders_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    wide, narrow = stored(tmp_path / "a", "float32"), stored(tmp_path / "b", "bf16")
    with pytest.raises(ValueError, match="trained in bf16 instead of float32"):
        precision.changes_by_bf16(narrow, wide)


def test_the_committed_table_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert precision.main([str(folder) for folder in BOTH]) == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    pd.testing.assert_frame_equal(pd.read_csv(COMMITTED / "bf16.csv"), printed, rtol=1e-4)
    runs = printed.loc[printed["dataset"] == precision.ALL, "runs"]
    assert set(runs) == {6}
    assert printed["equivalent"].all()
