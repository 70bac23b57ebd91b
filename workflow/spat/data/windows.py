"""Windows of a series in memory: views without copies, from which batches are gathered by index.

Symbols: T rows, C channels, L lookback, H horizon, F time features, N windows, B windows a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spat.data.registry import DataError
from spat.data.series import Prepared
from spat.tasks.forecasting import Batch


class Windows:
    """All windows of stride 1 within the rows [start, stop) of a series; none is left out."""

    def __init__(
        self,
        values: Tensor,
        marks: Tensor | None,
        start: int,
        stop: int,
        lookback: int,
        horizon: int,
    ) -> None:
        """Take the windows of values [T, C] and marks [T, F], which are on one device.

        Raises:
            DataError: if the rows do not hold a single window.
        """
        if not 0 <= start <= stop <= len(values):
            raise DataError(f"rows [{start}, {stop}) lie outside a series of {len(values)} rows")
        if stop - start < lookback + horizon:
            raise DataError(
                f"{stop - start} rows are too few for lookback {lookback} + horizon {horizon}: "
                "choose a shorter lookback or horizon, or a longer series"
            )
        self.device = values.device
        self.lookback = lookback
        self.horizon = horizon
        self.channels = values.shape[1]
        self._past, self._future = _views(values[start:stop], lookback, horizon)
        self._marks = None if marks is None else _views(marks[start:stop], lookback, horizon)

    def __len__(self) -> int:
        return len(self._past)

    def batch(self, index: Tensor) -> Batch:
        """The windows numbered `index`, int64 [B] within 0..N-1, in that order."""
        past_marks, future_marks = (
            (None, None) if self._marks is None else (self._marks[0][index], self._marks[1][index])
        )
        return Batch(self._past[index], self._future[index], past_marks, future_marks)


class Splits(NamedTuple):
    """The windows of one dataset. The test split is only for evaluation."""

    train: Windows
    validation: Windows
    test: Windows


def split(
    prepared: Prepared, lookback: int, horizon: int, device: str | torch.device = "cpu"
) -> Splits:
    """The windows of each split; inputs of validation and test may begin in the split before.

    The series is moved to the device once; the three splits share it.

    Raises:
        DataError: naming dataset and split, if a split holds no window.
    """
    values = torch.from_numpy(prepared.values).to(device)
    marks = None if prepared.marks is None else torch.from_numpy(prepared.marks).to(device)

    def windows(name: str, border: tuple[int, int], look_back: int) -> Windows:
        try:
            return Windows(values, marks, border[0] - look_back, border[1], lookback, horizon)
        except DataError as error:
            raise DataError(f"{prepared.name}, {name} split: {error}") from None

    return Splits(
        train=windows("training", prepared.borders.train, 0),
        validation=windows("validation", prepared.borders.validation, lookback),
        test=windows("test", prepared.borders.test, lookback),
    )


def _views(rows: Tensor, lookback: int, horizon: int) -> tuple[Tensor, Tensor]:
    # rows [R, K] -> views [N, L, K] and [N, H, K] on the same memory.
    windows = rows.unfold(0, lookback + horizon, 1).transpose(1, 2)
    return windows[:, :lookback], windows[:, lookback:]
