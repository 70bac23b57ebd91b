"""Windows are views; batches equal slices; look-back crosses the borders of validation and test."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spat.data.registry import DATASETS, Borders, DataError
from spat.data.series import Prepared, prepare
from spat.data.synthetic import generate
from spat.data.windows import Windows, split


@pytest.fixture
def prepared() -> Prepared:
    dataset = replace(DATASETS["synthetic"], rows=400, channels=3)
    return prepare(dataset, generate(400, 3, seed=0, coupling=0.6, noise=0.3), "")


def counting(rows: int, channels: int = 2) -> torch.Tensor:
    """[rows, channels] with value 10 t + c at time t, channel c."""
    return 10.0 * torch.arange(rows)[:, None] + torch.arange(channels)


def test_a_batch_equals_slices() -> None:
    values, marks = counting(50), torch.rand(50, 4)
    windows = Windows(values, marks, 5, 45, lookback=8, horizon=3)
    assert len(windows) == 40 - 8 - 3 + 1
    assert (windows.lookback, windows.horizon, windows.channels) == (8, 3, 2)
    index = torch.tensor([7, 0, len(windows) - 1, 7])
    batch = windows.batch(index)
    assert batch.past_marks is not None
    assert batch.future_marks is not None
    for b, i in enumerate(index.tolist()):
        a = 5 + i
        assert torch.equal(batch.x[b], values[a : a + 8])
        assert torch.equal(batch.y[b], values[a + 8 : a + 11])
        assert torch.equal(batch.past_marks[b], marks[a : a + 8])
        assert torch.equal(batch.future_marks[b], marks[a + 8 : a + 11])


def test_every_window_lies_within_the_rows() -> None:
    windows = Windows(counting(50), None, 5, 45, lookback=8, horizon=3)
    batch = windows.batch(torch.arange(len(windows)))
    assert batch.x[0, 0, 0] == 50.0
    assert batch.y[-1, -1, 0] == 440.0
    assert batch.past_marks is None
    assert batch.future_marks is None
    with pytest.raises(IndexError):
        windows.batch(torch.tensor([len(windows)]))


def test_the_series_is_not_copied_and_a_batch_is() -> None:
    values = counting(50)
    windows = Windows(values, None, 5, 45, lookback=8, horizon=3)
    assert windows._past.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    assert windows._future.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    batch = windows.batch(torch.tensor([0]))
    batch.x.zero_()
    assert values[5, 0] == 50.0
    values[5, 0] = -1.0
    assert windows.batch(torch.tensor([0])).x[0, 0, 0] == -1.0


def test_splits_share_the_series(prepared: Prepared) -> None:
    splits = split(prepared, 24, 12)
    assert len({w._past.untyped_storage().data_ptr() for w in splits}) == 1
    assert splits.train._past.untyped_storage().data_ptr() == prepared.values.ctypes.data


def test_inputs_cross_the_border_of_a_split_and_targets_do_not(prepared: Prepared) -> None:
    lookback, horizon = 24, 12
    splits = split(prepared, lookback, horizon)
    values = torch.from_numpy(prepared.values)
    for windows, (start, stop) in zip(
        splits,
        (prepared.borders.train, prepared.borders.validation, prepared.borders.test),
        strict=True,
    ):
        first_target = max(start, lookback)
        assert len(windows) == stop - first_target - horizon + 1
        batch = windows.batch(torch.tensor([0, len(windows) - 1]))
        assert torch.equal(batch.x[0], values[first_target - lookback : first_target])
        assert torch.equal(batch.y[0], values[first_target : first_target + horizon])
        assert torch.equal(batch.y[1], values[stop - horizon : stop])


def test_marks_travel_with_the_values(prepared: Prepared) -> None:
    windows = split(prepared, 24, 12).validation
    batch = windows.batch(torch.tensor([3]))
    assert prepared.marks is not None
    assert batch.past_marks is not None
    assert batch.future_marks is not None
    border = prepared.borders.validation[0]
    marks = torch.cat([batch.past_marks[0], batch.future_marks[0]]).numpy()
    np.testing.assert_array_equal(marks, prepared.marks[border - 24 + 3 : border + 12 + 3])
    without = split(replace(prepared, marks=None), 24, 12).validation.batch(torch.tensor([3]))
    assert without.past_marks is None


@pytest.mark.parametrize(
    ("lookback", "horizon", "name"), [(24, 41, "validation"), (281, 1, "training")]
)
def test_too_few_rows_names_dataset_and_split(
    prepared: Prepared, lookback: int, horizon: int, name: str
) -> None:
    # 400 rows: 280 of training, 40 of validation, 80 of test.
    with pytest.raises(
        DataError,
        match=rf"synthetic, {name} split: \d+ rows are too few for lookback {lookback} \+ "
        rf"horizon {horizon}",
    ):
        split(prepared, lookback, horizon)


def test_the_longest_horizon_that_fits(prepared: Prepared) -> None:
    assert len(split(prepared, 24, 40).validation) == 1


def test_the_test_split_is_named_too(prepared: Prepared) -> None:
    short = replace(prepared, borders=Borders((0, 280), (280, 390), (390, 400)))
    with pytest.raises(DataError, match="synthetic, test split: 34 rows are too few"):
        split(short, 24, 12)


def test_rows_outside_the_series() -> None:
    with pytest.raises(DataError, match=r"rows \[0, 51\) lie outside a series of 50 rows"):
        Windows(counting(50), None, 0, 51, 8, 3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_windows_on_the_gpu(prepared: Prepared) -> None:
    index = torch.tensor([5, 0, 17])
    expected = split(prepared, 24, 12).train.batch(index)
    batch = split(prepared, 24, 12, "cuda").train.batch(index.cuda())
    for a, b in zip(expected, batch, strict=True):
        assert a is not None
        assert b is not None
        assert b.device.type == "cuda"
        assert torch.equal(a, b.cpu())
