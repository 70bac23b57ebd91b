"""Costs equal those counted by hand, and measurements do not change the model."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_models import flops_of, latency_of, memory_of, prune, sized
from torch import Tensor, nn

from spat.attention.mask import Mask
from spat.models.base import Forecaster
from spat.models.registry import FORECASTERS, Settings, Shape, build
from spat.surgery.cut import heads_of
from spat.training.device import costs

SHAPE = Shape(lookback=24, horizon=12, channels=5)
WIDTH, INNER = 16, 32


class Chain(Forecaster):
    """Three maps of the time axis, one after the other: their memory can be counted by hand."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__(Settings(), Shape(widths[0], widths[-1], 1))
        self.maps = nn.ModuleList(
            nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)
        )

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        y = x.squeeze(-1)
        for linear in self.maps:
            y = linear(y)
        return y.unsqueeze(-1)


class Fused(Forecaster):
    """Attention between the time steps by torch's own module."""

    def __init__(self) -> None:
        super().__init__(Settings(), Shape(6, 6, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


def itransformer() -> Settings:
    return sized("iTransformer", d_model=WIDTH, d_ff=INNER)


def itransformer_flops(kept: list[int]) -> int:
    """FLOPs counted by hand, two per multiply-add, with `kept` heads of size 4 per layer."""
    tokens, width, inner = SHAPE.channels, WIDTH, INNER
    total = tokens * SHAPE.lookback * width + tokens * width * SHAPE.horizon
    for heads in kept:
        size = 4 * heads
        total += tokens * width * 3 * size  # q, k, v
        total += 2 * tokens * tokens * size  # q k^T and A v
        total += tokens * size * width  # output
        total += 2 * tokens * width * inner  # feed-forward
    return 2 * total


def test_flops_of_a_dense_itransformer_are_the_formula() -> None:
    assert flops_of(build("iTransformer", itransformer(), SHAPE)) == itransformer_flops([4, 4, 4])


def test_flops_of_a_pruned_itransformer_are_the_formula() -> None:
    model = build("iTransformer", itransformer(), SHAPE)
    prune(model, Mask.parse("1.0.0110", heads_of(model)))
    assert flops_of(model) == itransformer_flops([4, 0, 2])


def test_fused_attention_is_counted() -> None:
    # Six steps of width 8 through torch's own attention, whose fast path counts as nothing:
    # q, k, v and output of 8 x 8, and two products of 6 x 6 x 8.
    assert flops_of(Fused()) == 2 * (4 * 6 * 8 * 8 + 2 * 6 * 6 * 8)


@pytest.mark.parametrize("name", FORECASTERS)
def test_every_model_has_costs(name: str) -> None:
    model = build(name, sized(name), SHAPE)
    assert costs.parameters(model) == sum(p.numel() for p in model.parameters())
    assert (flops_of(model) > 0) == (FORECASTERS[name].role != "naive")
    assert memory_of(model, 2, "cpu") > 0


def test_measuring_does_not_change_the_model() -> None:
    model = build("PatchTST", sized("PatchTST"), SHAPE).train()
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    flops_of(model)
    latency_of({"dense": model}, 2, 2, "cpu")
    memory_of(model, 2, "cpu")
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_latencies_are_measured_in_turn() -> None:
    calls: list[str] = []
    models = {name: Chain((8, 8)) for name in ("dense", "half", "none")}
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: calls.append(name))
    measured = latency_of(models, 1, 5, "cpu")
    assert list(measured) == ["dense", "half", "none"]
    assert all(timing.milliseconds > 0 <= timing.spread for timing in measured.values())
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) in {costs.WARM_UP + 5 * n for n in range(1, costs.ATTEMPTS + 1)}
    assert all(sorted(turn) == sorted(models) for turn in rounds)
    assert len({turn[0] for turn in rounds}) == 3


@pytest.mark.parametrize(
    ("busy", "attempts", "wide"),
    [
        (lambda turn: False, 1, False),
        (lambda turn: turn % 10 == 0, 1, False),
        (lambda turn: turn < 90, 3, False),  # for the first two attempts
        (lambda turn: 15 < turn < 45, 2, False),
        (lambda turn: turn % 2 == 0, 4, True),
    ],
    ids=["free", "a tenth", "at first", "in part", "always"],
)
def test_networks_of_equal_cost_agree(
    busy: Callable[[int], bool], attempts: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three networks, of which two cost the same, on a machine that others use too.
    cost = {"a": 2.0, "b": 2.0, "c": 3.0}
    models = {name: Chain((2, 2)) for name in cost}
    names = {model: name for name, model in models.items()}
    generator = np.random.default_rng(0)
    passes = []

    def timed(model: Chain, *_: object) -> float:
        turn = len(passes) - 3 * costs.WARM_UP
        passes.append(turn)
        slower = generator.uniform(1.0, 4.0) if busy(turn) else 1.0
        return cost[names[model]] * slower * generator.uniform(1.0, 1.02)

    monkeypatch.setattr(costs, "_milliseconds", timed)
    latencies = latency_of(models, 1, 15, "cpu")
    assert len(passes) == 3 * (costs.WARM_UP + 15 * attempts)
    assert any(timing.is_wide for timing in latencies.values()) == wide
    assert latencies["a"].milliseconds == pytest.approx(latencies["b"].milliseconds, rel=0.03)
    assert latencies["c"].milliseconds == pytest.approx(1.5 * latencies["a"].milliseconds, rel=0.03)


def test_the_spread_of_a_single_round_is_unknown() -> None:
    calls: list[str] = []
    model = Chain((8, 8))
    model.register_forward_hook(lambda *_: calls.append("pass"))
    timing = latency_of({"dense": model}, 1, 1, "cpu")["dense"]
    assert len(calls) == costs.WARM_UP + 1
    assert timing.milliseconds > 0
    assert math.isnan(timing.spread)
    assert timing.is_wide


def test_peak_memory_counts_tensors_that_exist_at_the_same_time() -> None:
    batch, widths = 10, (50, 400, 300, 20)
    weights = 50 * 400 + 400 * 300 + 300 * 20
    # The input is held by the caller; the second map reads 400 and writes 300 numbers a window.
    expected = 4 * (weights + batch * (50 + 400 + 300))
    assert memory_of(Chain(widths), batch, "cpu") == pytest.approx(expected / 1e6)


def test_peak_memory_falls_with_attention() -> None:
    dense, pruned = (build("iTransformer", itransformer(), SHAPE) for _ in range(2))
    prune(pruned, Mask.empty(heads_of(pruned)))
    assert memory_of(pruned, 8, "cpu") < memory_of(dense, 8, "cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_costs_on_cuda() -> None:
    dense, pruned = (build("iTransformer", itransformer(), SHAPE) for _ in range(2))
    prune(pruned, Mask.empty(heads_of(pruned)))
    flops = flops_of(dense)
    measured = latency_of({"dense": dense, "pruned": pruned}, 8, 15, "cuda")
    assert min(timing.milliseconds for timing in measured.values()) > 0
    assert flops_of(dense) == flops
    weights = 4 * costs.parameters(dense) / 1e6
    held = memory_of(dense, 64, "cuda")
    assert weights < held
    assert memory_of(pruned, 64, "cuda") < held
    other = torch.empty(10**7, device="cuda")  # other tensors on the card are not counted
    assert memory_of(dense, 64, "cuda") == pytest.approx(held)
    del other


def test_neither_training_nor_measuring_imports_the_compiler_of_torch() -> None:
    # The import would take more than a second in every job.
    code = """
import sys, torch
from spat.models.registry import Shape, build
from spat.models.settings import ITransformerSettings
from spat.tasks.forecasting import Forecasting
from spat.training.device import costs
from spat.training.loop import prepare_torch
from spat.training.optimisation import adam

prepare_torch("float32")
settings = ITransformerSettings(8, 8, 1, 2, 0.0, False, True)
model = build("iTransformer", settings, Shape(24, 12, 5))
optimiser = adam(model, 1e-3)
optimiser.zero_grad()
model(torch.randn(2, 24, 5), None, None).sum().backward()
optimiser.step()
optimiser.load_state_dict(optimiser.state_dict())
task = Forecasting()
batch = task.example(model.shape, 2)
costs.flops(model, task, batch), costs.peak_memory(model, task, batch, "cpu")
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
