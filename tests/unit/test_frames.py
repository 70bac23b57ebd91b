"""The check that aggregation makes: duplicates, gaps and unknown columns are refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from spat.pipeline import frames
from spat.study.pages.reader import Frames

ROW = {
    "experiment": "e",
    "task": "forecasting",
    "dataset": "ETTh1",
    "source": "ETT1",
    "model": "iTransformer",
    "variant": "deep",
    "control_of": None,
    "setting": "l96-h96",
    "seed": 0,
    "stage": "pretrain",
    "mask": "1.1",
    "order": 0,
    "epoch": 1,
    "quantity": "val_mse",
    "value": 0.4,
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
        (history({"setting": None}), "setting"),
    ],
    ids=["duplicate", "missing column", "unknown column", "gap"],
)
def test_a_bad_frame_is_refused_by_name(frame: pd.DataFrame, named: str) -> None:
    with pytest.raises(frames.FrameError, match=named):
        frames.checked("history", frame, source="results/e")


def test_a_diverged_epoch_may_have_no_losses() -> None:
    assert frames.checked("history", history({"value": None})).shape[0] == 1


@pytest.mark.parametrize("name", list(frames.COLUMNS))
def test_empty_frames_pass_their_own_check(name: str) -> None:
    assert frames.checked(name, frames.empty(name)).empty


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (frames.empty("scores"), "'batch' is unknown"),
        (frames.empty("networks").drop(columns="precision"), "'precision' is missing"),
        (frames.empty("networks").assign(extra=1), "'extra' is unknown"),
    ],
    ids=["another frame", "missing column", "unknown column"],
)
def test_a_file_of_another_frame_is_refused_when_it_is_read(
    frame: pd.DataFrame, named: str, tmp_path: Path
) -> None:
    for name in frames.COLUMNS:
        frames.empty(name).to_parquet(tmp_path / f"{name}.parquet")
    read = Frames.load(tmp_path)
    assert read.results.empty
    frame.to_parquet(tmp_path / "networks.parquet")
    with pytest.raises(
        ValueError, match=r"networks\.parquet: damaged \(not a frame `networks`"
    ) as e:
        Frames.load(tmp_path).results  # noqa: B018
    assert "snakemake --cores all" in str(e.value)
    assert named in str(e.value)
