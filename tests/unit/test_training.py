"""The loop: schedule, resume to the bit, divergence, early stopping, and that it learns."""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import TASK, generated_splits, sized

from spat.data.windows import Splits
from spat.models.base import Forecaster
from spat.models.registry import FORECASTERS, Shape, build, setup
from spat.models.settings import Schedule
from spat.training import loop, state
from spat.training.device.concurrency import Workers
from spat.training.device.kernels import draws_globally
from spat.training.loop import (
    Fit,
    Restart,
    Seeds,
    Settings,
    choose_device,
    fit,
    prepare_torch,
)
from spat.training.metrics import evaluate
from spat.training.optimisation import SharpnessAware, adam, rate_at, set_rate
from spat.training.state import Progress, restore, save

LOOKBACK, HORIZON, CHANNELS = 24, 12, 3
SEEDS = Seeds(order=1, dropout=2)


def of_rows(count: int) -> Splits:
    prepare_torch("float32")
    return generated_splits(count, Shape(LOOKBACK, HORIZON, CHANNELS))


@pytest.fixture(scope="module")
def splits() -> Splits:
    return of_rows(700)


@pytest.fixture(scope="module")
def few() -> Splits:
    """Few windows, for tests of every model: an epoch has several batches."""
    few = of_rows(250)
    assert len(few.train) > 4 * settings().batch_size
    return few


def small(seed: int = 0, **changes: int | float) -> Forecaster:
    chosen = setup(
        "iTransformer",
        "deep",
        "synthetic",
        HORIZON,
        {"d_model": 16, "d_ff": 16, "e_layers": 2, "n_heads": 2, "dropout": 0.1, **changes},
    )
    return build("iTransformer", chosen.settings, Shape(LOOKBACK, HORIZON, CHANNELS, 0), seed)


def settings(**changes: object) -> Settings:
    values = {"learning_rate": 1e-3, "batch_size": 32, "epochs": 4, **changes}
    return Settings(**values)  # type: ignore[arg-type]


def weights(model: torch.nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


@pytest.mark.parametrize(
    ("schedule", "epochs", "shares"),
    [
        ("constant", (1, 2, 30), (1, 1, 1)),
        ("type1", (1, 2, 3, 4), (1, 1, 0.5, 0.25)),
        ("type3", (1, 4, 5, 7), (1, 1, 0.9, 0.729)),
        ("sparsetsf", (1, 4, 5, 7), (1, 1, 0.8, 0.512)),
        ("fits", (1, 2, 3, 5), (1, 1, 0.95, 0.857375)),
        ("cosine", (1, 11, 21), (1, 0.5, 0)),
        ("step25", (1, 25, 26, 100), (1, 1, 0.1, 0.1)),
    ],
)
def test_schedules_are_those_of_the_published_code(
    schedule: Schedule, epochs: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    rates = [rate_at(epoch, 0.8, schedule) for epoch in epochs]
    assert rates == pytest.approx([0.8 * share for share in shares], abs=1e-8)


def test_every_schedule_of_a_recipe_has_its_rates() -> None:
    assert all(rate_at(1, 0.8, schedule) == 0.8 for schedule in get_args(Schedule))


def test_training_follows_a_named_schedule_and_its_weight_decay(splits: Splits) -> None:
    plain, decayed = small(), small()
    fitted = fit(plain, TASK, splits, settings(schedule="fits"), SEEDS)
    assert [row["learning_rate"] for row in fitted.history] == [
        rate_at(epoch, 1e-3, "fits") for epoch in (1, 2, 3, 4)
    ]
    fit(decayed, TASK, splits, settings(schedule="fits", weight_decay=1.0), SEEDS)
    assert np.linalg.norm(weights(decayed)) < 0.95 * np.linalg.norm(weights(plain))


def test_a_restarted_schedule_is_that_of_fine_tuning_after_that_of_pretraining() -> None:
    whole = settings(learning_rate=0.8, epochs=6, restart=Restart(3, 0.4))
    assert [whole.rate(e) for e in range(1, 7)] == [0.8, 0.8, 0.4, 0.4, 0.4, 0.2]


def test_training_follows_the_schedule(splits: Splits) -> None:
    fitted = fit(small(), TASK, splits, settings(epochs=4, restart=Restart(1, 1e-4)), SEEDS)
    assert [row["learning_rate"] for row in fitted.history] == [1e-3, 1e-4, 1e-4, 5e-5]


def test_set_rate_changes_tensor_and_float_rates() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    plain = torch.optim.Adam([parameter], lr=1.0)
    tensor = torch.optim.Adam([parameter], lr=torch.tensor(1.0), capturable=False)
    for optimiser in (plain, tensor):
        set_rate(optimiser, 0.25)
        assert float(optimiser.param_groups[0]["lr"]) == 0.25


def test_training_beats_the_untrained_model(splits: Splits) -> None:
    model = small()
    before = evaluate(model, TASK, splits.validation).means["mse"]
    fitted = fit(model, TASK, splits, settings(), SEEDS)
    after = evaluate(model, TASK, splits.validation).means["mse"]
    assert after < 0.8 * before
    assert fitted.status == "ok"
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4]
    assert after == pytest.approx(min(row["val_mse"] for row in fitted.history))


def test_the_same_seeds_give_the_same_weights(splits: Splits) -> None:
    one, two, other = small(), small(), small()
    fit(one, TASK, splits, settings(epochs=2), SEEDS)
    fit(two, TASK, splits, settings(epochs=2), SEEDS)
    fit(other, TASK, splits, settings(epochs=2), Seeds(order=9, dropout=2))
    assert np.array_equal(weights(one), weights(two))
    assert not np.array_equal(weights(one), weights(other))


class Killed(Exception):
    """Stands for a kill -9 between two epochs."""


@pytest.mark.parametrize("name", [n for n, model in FORECASTERS.items() if model.role != "naive"])
def test_a_resumed_run_ends_with_weights_bit_identical_to_an_uninterrupted_run(
    name: str, few: Splits, tmp_path: Path
) -> None:
    def made(seed: int = 0) -> Forecaster:
        return build(name, sized(name, dropout=0.1), Shape(LOOKBACK, HORIZON, CHANNELS), seed)

    undisturbed = made()
    whole = fit(undisturbed, TASK, few, settings(), SEEDS, state=tmp_path / "whole.pt")

    def die(epoch: int, _: Forecaster) -> list[dict[str, object]]:
        if epoch == 3:  # after the state of epoch 2 was written, before that of epoch 3
            raise Killed
        return []

    state = tmp_path / "state.pt"
    with pytest.raises(Killed):
        fit(made(), TASK, few, settings(), SEEDS, state=state, after_epoch=die)
    torch.manual_seed(77)  # the world has moved on
    torch.rand(5)
    resumed = made(seed=5)  # other weights: all must come from the state
    rest = fit(resumed, TASK, few, settings(), SEEDS, state=state)
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    same = ("epoch", "train_mse", "val_mse", "val_mae", "learning_rate")
    assert [[row[k] for k in same] for row in whole.history] == [
        [row[k] for k in same] for row in rest.history
    ]


class Foreign(torch.nn.Module):
    """A network of another library: its random numbers come from torch's global generator."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.functional = functional
        self.inner = torch.nn.Linear(LOOKBACK, 16)
        self.norm = torch.nn.BatchNorm1d(CHANNELS)
        self.dropout = torch.nn.Identity() if functional else torch.nn.Dropout(0.3)
        self.outer = torch.nn.Linear(16, HORIZON)

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        h = self.dropout(self.norm(self.inner(x.transpose(1, 2)).relu()))
        h = F.dropout(h, 0.3, self.training) if self.functional else h
        return self.outer(h).transpose(1, 2)


def foreign(functional: bool = False) -> Foreign:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Foreign(functional)


@pytest.mark.parametrize("functional", [False, True])
def test_a_foreign_model_with_dropout_resumes_with_bit_identical_weights(
    functional: bool, splits: Splits, tmp_path: Path
) -> None:
    undisturbed, resumed = foreign(functional), foreign(functional)
    torch.manual_seed(1)
    fitted = fit(undisturbed, TASK, splits, settings(), SEEDS)

    def kill(epoch: int, _: Any) -> list[dict[str, Any]]:
        if epoch == 3:
            raise Killed
        return []

    path = tmp_path / "state.pt"
    with pytest.raises(Killed):
        fit(foreign(functional), TASK, splits, settings(), SEEDS, state=path, after_epoch=kill)
    assert path.exists()
    torch.manual_seed(99)  # another process has other random numbers
    before = torch.get_rng_state()
    again = fit(resumed, TASK, splits, settings(), SEEDS, state=path)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(weights(undisturbed), weights(resumed))
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    errors = [{k: v for k, v in r.items() if k != "seconds"} for r in fitted.history]
    assert errors == [{k: v for k, v in r.items() if k != "seconds"} for r in again.history]
    other = foreign(functional)
    fit(other, TASK, splits, settings(), Seeds(order=SEEDS.order, dropout=3))
    assert not np.array_equal(weights(undisturbed), weights(other))


def test_our_own_models_leave_the_global_generator_alone(splits: Splits) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = small()
    assert not draws_globally(
        model, lambda: TASK.forward(model, splits.train.batch(torch.arange(2))), torch.device("cpu")
    )
    fit(model, TASK, splits, settings(epochs=1), SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_foreign_model_with_dropout_is_refused_with_other_workers(splits: Splits) -> None:
    def work() -> None:
        fit(foreign(), TASK, splits, settings(epochs=1), SEEDS, label="theirs")

    with pytest.raises(ValueError, match=r"theirs: .* global generator .*--concurrency 1"):
        Workers(torch.device("cpu"), 2).map([work, work])
    Workers(torch.device("cpu"), 1).map([work])
    fit(foreign(), TASK, splits, settings(epochs=1), SEEDS)


def test_states_are_not_written_more_often_than_a_device_asks(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.SAVE_EVERY, "cpu", 1e9)
    fit(small(), TASK, splits, settings(epochs=2), SEEDS, state=tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())


def test_early_stopping_counts_epochs_without_a_better_validation(splits: Splits) -> None:
    model = small()
    frozen = settings(learning_rate=1e-12, epochs=10, patience=2)
    fitted = fit(model, TASK, splits, frozen, SEEDS)
    assert fitted.epochs < 10
    assert fitted.epochs - fitted.best_epoch == 2


def test_divergence_is_a_result(splits: Splits) -> None:
    fitted = fit(small(), TASK, splits, settings(learning_rate=1e18), SEEDS)
    assert fitted.status == "diverged"
    assert fitted.epochs < 4


def test_results_of_after_epoch_survive_a_resume(splits: Splits, tmp_path: Path) -> None:
    def record(epoch: int, _: Forecaster) -> list[dict[str, object]]:
        return [{"epoch": epoch}]

    state = tmp_path / "state.pt"
    fit(small(), TASK, splits, settings(epochs=2), SEEDS, state=state, after_epoch=record)
    fitted: Fit = fit(small(), TASK, splits, settings(), SEEDS, state=state, after_epoch=record)
    assert [row["epoch"] for row in fitted.recorded] == [1, 2, 3, 4]


def test_a_full_disk_names_the_file_and_keeps_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    optimiser, drawn = adam(model, 1e-3), {"order": torch.Generator()}
    path = tmp_path / "state.pt"
    save(path, Progress(epoch=1), model, optimiser, drawn)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"state\.pt.*No space left"):
        save(path, Progress(epoch=2), model, optimiser, drawn)
    monkeypatch.undo()
    assert restore(path, model, optimiser, drawn).epoch == 1
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def resaved(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The content of a state file with its values changed, under a checksum that is right."""
    length = len(state._checksum(b""))
    values = torch.load(io.BytesIO(content[length:]), weights_only=True)
    change(values)
    file = io.BytesIO()
    torch.save(values, file)
    return state._checksum(file.getvalue()) + file.getvalue()


def flipped(content: bytes, place: float, bit: int = 0) -> bytes:
    index = int(place * (len(content) - 1))
    return content[:index] + bytes([content[index] ^ 1 << bit]) + content[index + 1 :]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda c: b"", "damaged"),
    "truncated": (lambda c: c[: len(c) // 2], "damaged"),
    "cut by a byte": (lambda c: c[:-1], "damaged"),
    "longer": (lambda c: c + b"x", "damaged"),
    "zeros": (lambda c: bytes(len(c)), "damaged"),
    "zeros at the end": (lambda c: c[:-4096] + bytes(4096), "damaged"),
    "text": (lambda c: b"not a state", "damaged"),
    "without a checksum": (lambda c: c[len(state._checksum(b"")) :], "damaged"),
    **{f"flipped at {p}": (lambda c, p=p: flipped(c, p), "damaged") for p in (0, 0.3, 0.6, 1)},
    **{
        f"without {key}": (lambda c, key=key: resaved(c, lambda v: v.pop(key)), key)
        for key in ("device", "progress", "model", "optimiser", "generators")
    },
    "another model": (lambda c: resaved(c, lambda v: v["model"].popitem()), "Missing key"),
    "no groups": (lambda c: resaved(c, lambda v: v["optimiser"].pop("param_groups")), "groups"),
    "progress of another version": (
        lambda c: resaved(c, lambda v: v["progress"].update(patience=1)),
        "patience",
    ),
    "a short generator": (
        lambda c: resaved(c, lambda v: v["generators"].update(order=torch.zeros(3).byte())),
        "RNG state",
    ),
    "another device": (
        lambda c: resaved(c, lambda v: v.update(device="cuda")),
        "saved on cuda; its random state cannot be restored on cpu",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_state_that_cannot_be_used_restarts_the_training(
    kind: str, splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, reason = DAMAGE[kind]
    state = tmp_path / "state.pt"
    fit(small(), TASK, splits, settings(epochs=1), SEEDS, state=state)
    state.write_bytes(damage(state.read_bytes()))
    capsys.readouterr()
    model, alone = small(), small()
    fitted = fit(model, TASK, splits, settings(epochs=2), SEEDS, state=state)
    shown = capsys.readouterr().err
    fit(alone, TASK, splits, settings(epochs=2), SEEDS)
    assert fitted.epochs == 2
    assert len(fitted.history) == 2
    assert np.array_equal(weights(model), weights(alone))
    assert shown.startswith(f"{state}: ")
    (line,) = [line for line in shown.splitlines() if line.endswith("Restarting from epoch 0.")]
    assert reason in line
    # The damaged file was replaced: the next start continues.
    assert fit(small(), TASK, splits, settings(epochs=2), SEEDS, state=state).epochs == 2
    assert "Restarting" not in capsys.readouterr().err


def test_sharpness_aware_gradient_is_the_one_at_the_ascended_weights() -> None:
    layer = torch.nn.Linear(3, 1, bias=False)
    x = torch.randn(8, 3)
    start = layer.weight.detach().clone()

    def loss() -> torch.Tensor:
        return layer(x).square().mean()

    SharpnessAware(layer, rho=0.1).backward(loss)
    actual = layer.weight.grad
    assert actual is not None
    gradient = torch.autograd.grad(loss(), layer.weight)[0]
    with torch.no_grad():
        layer.weight.add_(0.1 * gradient / gradient.norm())
    expected = torch.autograd.grad(loss(), layer.weight)[0]
    torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        layer.weight.copy_(start)


def test_every_window_is_trained_on_once_an_epoch(splits: Splits) -> None:
    from spat.training.loop import _batches

    count = len(splits.train)
    batches = _batches(splits.train, count, 32, torch.Generator().manual_seed(0))
    seen = torch.cat(batches).sort().values
    assert torch.equal(seen, torch.arange(len(splits.train)))
    assert len(batches[-1]) == len(splits.train) % 32


def test_a_share_of_the_windows_is_drawn_anew_for_each_epoch(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training error that is reported is the mean over the windows that were drawn."""
    seen: list[list[int]] = []

    def drawn(*arguments: Any) -> tuple[torch.Tensor, ...]:
        result = batches(*arguments)
        seen.append([int(i) for batch in result for i in batch])
        return result

    batches = loop._batches
    monkeypatch.setattr(loop, "_batches", drawn)
    result = fit(small(dropout=0.0), TASK, splits, settings(epochs=3, share=0.25), SEEDS)
    assert {len(set(epoch)) for epoch in seen} == {math.ceil(len(splits.train) / 4)}
    assert len(set(map(tuple, seen))) == 3
    whole = fit(small(dropout=0.0), TASK, splits, settings(epochs=1), SEEDS)
    ratio = result.history[0]["train_mse"] / whole.history[0]["train_mse"]
    assert 0.8 < ratio < 1.6, "a mean over a quarter of the windows, early in training"


def test_a_missing_card_that_is_requested_by_name_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is present")
    with pytest.raises(RuntimeError, match="cuda"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
