"""A training step keeps to its device, and what is captured of it trains as the plain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fake_card
import pytest
import torch
from small_models import SHAPE, TASK, sized
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spat.data import series, synthetic
from spat.data.registry import DATASETS
from spat.data.windows import Windows, split
from spat.models.base import Forecaster
from spat.models.registry import build
from spat.training import step as steps
from spat.training.optimisation import adam
from spat.training.step import CapturedStep, training_step

TRAINED = ("iTransformer", "PatchTST", "Transformer", "DLinear")
RHO = (None, 0.05)


def small(name: str, dropout: float = 0.1) -> Forecaster:
    return build(name, sized(name, dropout=dropout), SHAPE, seed=0).train()


class KeepsTo(TorchDispatchMode):
    """Refuses every operator that reads or makes a tensor elsewhere than on one device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in _pytree.tree_leaves((args, kwargs, out)):
            if isinstance(value, Tensor):
                assert value.device.type == self.device, f"{func} has a tensor on {value.device}"
        self.seen += 1
        return out


@pytest.mark.parametrize("rho", RHO)
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_does_not_synchronise_or_copy_to_its_device(name: str, rho: float | None) -> None:
    # Tensors without storage: to read a value of theirs is an error, as it is under capture.
    rows = torch.zeros(100, SHAPE.channels, device="meta")
    marks = torch.zeros(100, SHAPE.marks, device="meta")
    windows = Windows(rows, marks, 0, 100, SHAPE.lookback, SHAPE.horizon)
    model = small(name).to("meta")
    index = torch.zeros(8, dtype=torch.int64, device="meta")
    optimiser = torch.optim.SGD(model.parameters())  # fused Adam knows no such device
    with (
        training_step(model, TASK, windows, optimiser, torch.Generator(), sam_rho=rho) as step,
        KeepsTo("meta") as watch,
    ):
        loss = step(index)
    assert loss.shape == ()
    assert all(p.grad is not None for p in model.parameters())
    assert watch.seen > 10


def test_the_watch_notices_tensors_of_another_device() -> None:
    with pytest.raises(AssertionError, match="cpu"), KeepsTo("meta"):
        torch.zeros(3, device="meta") + torch.tensor(1.0)


@pytest.mark.cuda
@pytest.mark.parametrize("rho", RHO)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", TRAINED)
def test_the_captured_step_trains_like_the_plain_one(
    name: str, dropout: float, rho: float | None
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("captured steps need a CUDA device")
    content = synthetic.generate(700, SHAPE.channels, seed=3, coupling=0.5, noise=0.2)
    prepared = series.prepare(DATASETS["synthetic"], content, "test")
    train = split(prepared, SHAPE.lookback, SHAPE.horizon, device="cuda").train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).cuda()
    losses: dict[bool, list[Tensor]] = {False: [], True: []}
    for captured in losses:
        model = small(name, dropout).cuda()
        drawn = torch.Generator("cuda").manual_seed(5)
        with training_step(model, TASK, train, adam(model, 1e-3), drawn, sam_rho=rho) as step:
            assert isinstance(step, CapturedStep)
            taken = step if captured else step._step
            losses[captured] = [taken(index) for index in order.split(32)]
            assert (step._graph is not None) == captured
    expected, actual = torch.stack(losses[False]), torch.stack(losses[True])
    assert expected[-2] < 0.9 * expected[0]  # the last batch is a smaller one
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "captured"), [("DLinear", True), ("Time-LLM-random", False)])
def test_a_model_that_computes_on_the_cpu_too_is_not_captured(
    name: str, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_card.install(monkeypatch)
    monkeypatch.setattr(steps.CapturedStep, "release", lambda _self: None)

    class OnACard:
        device = fake_card.CARD

    model = small(name)
    with training_step(model, TASK, OnACard(), adam(model, 1e-3), torch.Generator()) as step:
        assert isinstance(step, CapturedStep) == captured
        assert torch.cuda.current_stream() != fake_card.DEFAULT
