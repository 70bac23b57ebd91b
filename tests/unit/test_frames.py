"""The check of frames: duplicates, gaps and unknown columns are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spat.pipeline import frames
from spat.study.pages.reader import Frames

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "default" / "data"
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


def test_a_valid_frame_is_returned_sorted_and_typed() -> None:
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


@pytest.fixture(scope="module")
def collected() -> dict[str, pd.DataFrame]:
    """All frames of a few runs, as `collect` left them."""
    return {name: pd.read_parquet(REFERENCE / f"{name}.parquet") for name in frames.COLUMNS}


@pytest.mark.parametrize("name", list(frames.COLUMNS))
def test_a_written_frame_is_read_without_loss(
    collected: dict[str, pd.DataFrame], name: str, tmp_path: Path
) -> None:
    for frame in (collected[name], frames.empty(name)):
        frames.write(name, frame, path := tmp_path / "frame.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(path, page_checksum_verification=True), frame)


def test_losses_take_less_room_than_with_the_defaults(
    collected: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    frames.write("losses", losses := collected["losses"], tmp_path / "ours.parquet")
    losses.to_parquet(tmp_path / "defaults.parquet")
    ours, defaults = ((tmp_path / f"{w}.parquet").stat().st_size for w in ("ours", "defaults"))
    assert ours < 0.75 * defaults


def put(folder: Path, **others: pd.DataFrame) -> Frames:
    for name in frames.COLUMNS:
        if name in others:
            others[name].to_parquet(folder / f"{name}.parquet")
        else:
            (folder / f"{name}.parquet").symlink_to(REFERENCE / f"{name}.parquet")
    return Frames.load(folder)


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (frames.empty("scores"), "'batch' is unknown"),
        (frames.empty("networks").drop(columns="precision"), "'precision' is missing"),
        (frames.empty("networks").assign(extra=1), "'extra' is unknown"),
        (frames.empty("networks"), "no rows"),
    ],
    ids=["another frame", "missing column", "unknown column", "empty"],
)
def test_a_file_of_another_frame_is_refused_when_it_is_read(
    frame: pd.DataFrame, named: str, tmp_path: Path
) -> None:
    assert len(Frames.load(REFERENCE).results)
    with pytest.raises(ValueError, match=r"networks\.parquet: damaged \(") as e:
        put(tmp_path, networks=frame).results  # noqa: B018
    assert "snakemake --cores all" in str(e.value)
    assert named in str(e.value)


# A frame, and changes of an additional row -> the error.
STRANGERS: list[tuple[str, dict[str, Any], str]] = [
    ("measurements", {"mask": "0.1.1.1.1"}, "of no network in `networks`, such as .* 0.1.1.1.1"),
    ("measurements", {"mask": "all"}, "column 'mask': 'all' is not of the form none"),
    ("measurements", {"metric": "rmse"}, "column 'metric': 'rmse' is not one of mse, mae, cross"),
    ("measurements", {"metric": "error_rate"}, "metric 'error_rate' in .* is not one of forecast"),
    ("measurements", {"phase": "tuned"}, "column 'phase': 'tuned' is not one of dense, pruned"),
    ("measurements", {"split": "train"}, "1 networks in `measurements` lack a metric"),
    ("measurements", {"target": "elsewhere"}, "1 networks .* lack a metric, .* target elsewhere"),
    ("measurements", {"seed": 77}, "of no network in `networks`, such as .* seed 77"),
    ("measurements", {"task": "sorting"}, "column 'task': 'sorting' is not one of forecasting"),
    ("measurements", {"model": "LSTM"}, "column 'model': 'LSTM' is not one of iTransformer"),
    ("measurements", {"setting": "96"}, "column 'setting': '96' is not of the form l"),
    ("measurements", {"order": 9, "value": -1.0}, "column 'value': .*-1.0.* at least 0"),
    ("measurements", {"order": 9, "value": math.inf}, "column 'value': inf is not a finite number"),
    ("measurements", {"control_of": "deep"}, "of no network in `networks`, such as"),
    ("networks", {"seed": 77}, "networks have no errors in `measurements`, such as .* seed 77"),
    ("networks", {"order": 9, "status": "fine"}, "'status': 'fine' is not one of ok, diverged"),
    ("networks", {"order": 9, "params": -5}, "column 'params': -5.0 is not a finite number"),
    ("selections", {"draw": 99, "mask": "1.1"}, "of no network in `networks`, such as .* mask 1.1"),
    ("selections", {"draw": 99, "criterion": "mine"}, "'criterion': 'mine' is not one of send"),
    ("selections", {"draw": 99, "level": "block"}, "'level': 'block' is not one of site, head"),
    ("scores", {"site": 9}, "a site that its network does not have, such as .* site 9"),
    ("scores", {"site": 9, "criterion": "mine"}, "column 'criterion': 'mine' is not one of"),
    ("history", {"epoch": 99}, "have other epochs than the network was trained for, such as"),
    ("history", {"mask": "0.1.1.1.1"}, "of no network in `networks`"),
    ("history", {"quantity": "train_loss "}, "column 'quantity': 'train_loss ' is not of the form"),
    ("losses", {"order": 9}, "1 rows in `losses` of no network in `networks`, such as .* order 9"),
    ("maps", {"network": "sparse"}, "column 'network': 'sparse' is not of the form"),
    ("maps", {"seed": 77}, "of no network in `networks`, such as .* seed 77"),
    ("forecasts", {"variant": "mine"}, "of no network in `networks`, such as .* variant mine"),
]


@pytest.mark.parametrize(("name", "change", "says"), STRANGERS)
def test_a_row_with_unknown_values_is_refused_when_it_is_read(
    name: str,
    change: dict[str, Any],
    says: str,
    collected: dict[str, pd.DataFrame],
    tmp_path: Path,
) -> None:
    stranger = collected[name].iloc[:1].assign(**change)
    rows = pd.concat([collected[name], stranger], ignore_index=True)
    read = put(tmp_path, **{name: rows})
    wanted = {"networks": "results", "measurements": "results"}.get(name, name)
    with pytest.raises(ValueError, match=rf"\.parquet: damaged \((?s:.)*{says}") as error:
        getattr(read, wanted)
    assert "run `snakemake --cores all`" in str(error.value)


@pytest.mark.parametrize("lost", ["all", "first", "last"])
def test_rows_of_measurements_that_are_missing_are_refused(
    lost: str, collected: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    kept = {"all": slice(0), "first": slice(1, None), "last": slice(-1)}[lost]
    rows = collected["measurements"].iloc[kept]
    with pytest.raises(ValueError, match=r"measurements\.parquet: damaged \(.* such as ex"):
        put(tmp_path, measurements=rows).results  # noqa: B018
