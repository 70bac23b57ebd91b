"""Errors are exact for every batch size, and their computation does not change the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import TASK
from torch import Tensor, nn

from spat.data.windows import Windows
from spat.training.metrics import Errors, evaluate

ROWS, CHANNELS, LOOKBACK, HORIZON = 300, 3, 24, 12


class Mixer(nn.Module):
    """A small network with dropout, so that its mode shows in its errors."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(LOOKBACK, 32)
        self.out = nn.Linear(32, HORIZON)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        hidden = torch.relu(self.hidden(x.transpose(1, 2)))
        return self.out(self.dropout(hidden)).transpose(1, 2)


class Constant(nn.Module):
    """Forecasts one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        return x.new_full((len(x), HORIZON, x.shape[-1]), self.value)


class NeedsMarks(Constant):
    """Fails unless both kinds of time features arrive."""

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        assert past_marks is not None and past_marks.shape == (len(x), LOOKBACK, 4)
        assert future_marks is not None and future_marks.shape == (len(x), HORIZON, 4)
        return super().forward(x)


VALUES = torch.randn(ROWS, CHANNELS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def windows() -> Windows:
    return Windows(VALUES, torch.zeros(ROWS, 4), 10, ROWS, LOOKBACK, HORIZON)


@pytest.fixture
def model() -> Mixer:
    torch.manual_seed(1)
    return Mixer()


def by_hand(windows: Windows, value: float) -> tuple[np.ndarray, np.ndarray]:
    values = VALUES.double().numpy()[10:]
    truth = np.stack([values[i + LOOKBACK :][:HORIZON] for i in range(len(windows))])
    error = value - truth
    return (error**2).mean(axis=(1, 2)), np.abs(error).mean(axis=(1, 2))


def test_errors_are_means_over_all_windows_steps_and_channels(windows: Windows) -> None:
    errors = evaluate(Constant(0.25), TASK, windows, batch_size=64)
    squared, absolute = by_hand(windows, 0.25)
    assert len(windows) % 64 != 0, "the last batch must be a smaller one"
    assert errors.means["mse"] == pytest.approx(squared.mean(), rel=1e-6)
    assert errors.means["mae"] == pytest.approx(absolute.mean(), rel=1e-6)
    np.testing.assert_allclose(errors.cases["mse"], squared, rtol=1e-5)
    np.testing.assert_allclose(errors.cases["mae"], absolute, rtol=1e-5)
    assert errors.cases["mse"].dtype == errors.cases["mae"].dtype == np.float32
    assert errors.cases["mse"].shape == (len(windows),)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_does_not_matter(windows: Windows, model: Mixer, batch_size: int) -> None:
    whole = evaluate(model, TASK, windows, batch_size=len(windows))
    errors = evaluate(model, TASK, windows, batch_size=batch_size)
    assert errors.means["mse"] == pytest.approx(whole.means["mse"], rel=1e-6)
    assert errors.means["mae"] == pytest.approx(whole.means["mae"], rel=1e-6)
    np.testing.assert_allclose(errors.cases["mse"], whole.cases["mse"], rtol=1e-5)


def test_sums_run_in_float64() -> None:
    # Squares of these numbers are exact in float32, and their sums are not.
    whole = np.random.default_rng(0).integers(1, 4096, (ROWS, CHANNELS))
    windows = Windows(torch.tensor(whole).float(), None, 0, ROWS, LOOKBACK, HORIZON)
    truth = np.stack([whole[i + LOOKBACK :][:HORIZON] for i in range(len(windows))])
    errors = evaluate(Constant(0.0), TASK, windows, batch_size=7)
    assert errors.means["mse"] == pytest.approx((truth**2).mean(), rel=1e-12)
    assert errors.means["mae"] == pytest.approx(truth.mean(), rel=1e-12)


def test_dropout_is_off_and_every_module_keeps_its_mode(windows: Windows, model: Mixer) -> None:
    model.train()
    model.hidden.eval()
    first, second = evaluate(model, TASK, windows), evaluate(model, TASK, windows)
    assert first.means["mse"] == second.means["mse"]
    assert model.training and model.dropout.training and not model.hidden.training
    model.eval()
    evaluate(model, TASK, windows)
    assert not model.training and not model.dropout.training


def test_the_mode_comes_back_after_a_failure(windows: Windows) -> None:
    class Broken(Mixer):
        def forward(self, *inputs: Tensor | None) -> Tensor:
            raise RuntimeError("broken")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(broken, TASK, windows)
    assert broken.training


def test_no_gradient_is_recorded_and_training_continues(windows: Windows, model: Mixer) -> None:
    evaluate(model, TASK, windows)
    batch = windows.batch(torch.arange(4))
    model.train()(batch.x).square().mean().backward()
    assert model.out.weight.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_forecasts_that_are_not_finite_give_errors_that_are_not_finite(
    windows: Windows, value: float
) -> None:
    errors = evaluate(Constant(value), TASK, windows)
    assert not np.isfinite(errors.means["mse"])
    assert not np.isfinite(errors.cases["mse"]).any()


def test_marks_reach_the_model(windows: Windows) -> None:
    assert isinstance(evaluate(NeedsMarks(0.0), TASK, windows), Errors)


def test_a_batch_size_that_is_not_positive_is_refused(windows: Windows, model: Mixer) -> None:
    with pytest.raises(ValueError, match="batch_size 0"):
        evaluate(model, TASK, windows, batch_size=0)


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu(windows: Windows, model: Mixer) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = evaluate(model, TASK, windows).means["mse"]
    there = Windows(VALUES.cuda(), None, 10, ROWS, LOOKBACK, HORIZON)
    assert evaluate(model.cuda(), TASK, there).means["mse"] == pytest.approx(expected, rel=1e-5)
