"""The check that aggregation makes: duplicates, gaps and unknown columns are refused."""

from __future__ import annotations

import pandas as pd
import pytest

from spat.pipeline import frames

ROW = {
    "experiment": "e",
    "dataset": "ETTh1",
    "model": "iTransformer",
    "variant": "deep",
    "lookback": 96,
    "horizon": 96,
    "seed": 0,
    "stage": "pretrain",
    "mask": "1.1",
    "order": 0,
    "epoch": 1,
    "train_mse": 0.5,
    "val_mse": 0.4,
    "val_mae": 0.3,
    "learning_rate": 1e-4,
    "seconds": 2.0,
}


def history(*changes: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame([{**ROW, **change} for change in changes])


def test_a_good_frame_comes_back_ordered_and_typed() -> None:
    shuffled = history({}, {"epoch": 2})[sorted(ROW)]
    checked = frames.checked("history", shuffled)
    assert list(checked) == list(frames.COLUMNS["history"])
    assert checked["epoch"].dtype == "int64"


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (history({}, {}), "epoch"),
        (history({}).drop(columns="seed"), "seed"),
        (history({}).assign(extra=1), "extra"),
        (history({"seconds": None}), "seconds"),
    ],
    ids=["duplicate", "missing column", "unknown column", "gap"],
)
def test_a_bad_frame_is_refused_by_name(frame: pd.DataFrame, named: str) -> None:
    with pytest.raises(frames.FrameError, match=named):
        frames.checked("history", frame, source="results/e")


def test_a_diverged_epoch_may_have_no_losses() -> None:
    assert frames.checked("history", history({"train_mse": None, "val_mse": None})).shape[0] == 1


@pytest.mark.parametrize("name", list(frames.COLUMNS))
def test_empty_frames_pass_their_own_check(name: str) -> None:
    assert frames.checked(name, frames.empty(name)).empty
