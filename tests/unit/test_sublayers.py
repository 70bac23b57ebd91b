"""Fused sub-layers equal the modules, and only training steps in float32 on the CPU use them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_models import SHAPE, TASK, generated_splits, sized
from torch import Tensor, nn

from spat.attention.mask import Mask
from spat.data.windows import Splits
from spat.models.base import Forecaster
from spat.models.layers import blocks
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.models.layers.blocks import EncoderLayer
from spat.models.registry import build
from spat.surgery import cut
from spat.training import step as steps
from spat.training.device import bf16, kernels
from spat.training.device.kernels import draw_from
from spat.training.device.sublayers import fusable, fused
from spat.training.loop import Fit, Seeds, Settings, fit, prepare_torch
from spat.training.metrics import evaluate
from spat.training.optimisation import adam
from spat.training.step import training_step


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    prepare_torch("float32")
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return generated_splits(400)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fused sub-layers that were computed, in order."""
    seen: list[str] = []

    def noted(name: str) -> Callable[..., Tensor]:
        original = getattr(blocks, name)

        def call(*arguments: Any) -> Tensor:
            seen.append(name.split("_")[0])
            return original(*arguments)  # type: ignore[no-any-return]

        return call

    for name in ("attention_sublayer", "feed_forward_sublayer"):
        monkeypatch.setattr(blocks, name, noted(name))
    yield seen


def layer(kept: int | None, dropout: float, heads: int = 4) -> EncoderLayer:
    """A layer of width 18, whose heads of size 4 do not fill it; `kept` heads are left."""
    made = EncoderLayer(18, 28, heads, dropout)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    if kept is None:
        made.attention = None
    elif kept < heads:
        assert made.attention is not None
        made.attention.keep_heads(range(kept))
    return made.train()


def results(made: EncoderLayer, x: Tensor, gradient: Tensor) -> tuple[list[Tensor], Tensor]:
    """The output and all gradients, and the state of the generator afterwards."""
    generator = torch.Generator().manual_seed(3)
    draw_from(made, generator)
    x = x.detach().requires_grad_()
    y = made(x)
    return [y, *torch.autograd.grad(y, (x, *made.parameters()), gradient)], generator.get_state()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("tokens", [1, 2, 7, 15])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kept", [None, 1, 3, 4])
def test_output_gradients_and_draws_equal_those_of_the_modules(
    kept: int | None, dropout: float, tokens: int, calls: list[str]
) -> None:
    made = layer(kept, dropout)
    x = torch.randn(5, tokens, 18)
    # A layer gets transposed inputs and gradients too.
    for arranged in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        for gradient in (torch.randn_like(x), torch.randn(18, tokens, 5).permute(2, 1, 0)):
            expected, state = results(made, arranged, gradient)
            assert not calls
            with fused([made]):
                actual, drawn = results(made, arranged, gradient)
            assert calls == (["feed"] if kept is None else ["attention", "feed"])
            calls.clear()
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
            assert torch.equal(drawn, state)


def test_float64_is_left_to_the_modules() -> None:
    made = layer(4, 0.0).double()
    x = torch.randn(2, 3, 18, dtype=torch.float64, requires_grad=True)
    with fused([made]):
        # float64 is left to the modules, which gradcheck needs.
        assert torch.autograd.gradcheck(made, (x,))


def test_a_model_computes_as_before_after_the_context() -> None:
    made = layer(4, 0.1)
    with pytest.raises(KeyboardInterrupt), fused([made]):
        assert "forward" in made.__dict__
        raise KeyboardInterrupt
    assert "forward" not in made.__dict__


OTHER: dict[str, Callable[[EncoderLayer, Tensor], Tensor]] = {
    "evaluation": lambda made, x: made.eval()(x),
    "many tokens": lambda made, x: made(x[:, :1].expand(-1, kernels.SHORT, -1)),
    "large": lambda made, x: made(x[:1].expand(kernels.LARGE // (28 * 7) + 1, -1, -1)),
    "float64": lambda made, x: made.double()(x.double()),
    "autocast": lambda made, x: torch.autocast("cpu", torch.bfloat16)(made)(x),
    "another device": lambda made, x: made.to("meta")(x.to("meta")),
}


@pytest.mark.parametrize("case", OTHER)
def test_modules_compute_what_is_not_fused(case: str, calls: list[str]) -> None:
    made = layer(4, 0.0)
    with fused([made]):
        OTHER[case](made, torch.randn(5, 7, 18))
        assert not calls
    made = layer(4, 0.0)
    with fused([made]):
        made(torch.randn(5, 7, 18))
    assert calls == ["attention", "feed"]


class Doubled(AttentionCore):
    """A core that computes something else."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * super().forward(q, k, v)


def test_other_parts_masks_and_hooks_are_not_fused() -> None:
    usual = layer(4, 0.1)
    assert fusable(usual) == [usual]
    other = MultiHeadAttention(18, 3, core=Doubled(0.1))
    causal = MultiHeadAttention(18, 3, dropout=0.1, causal=True)
    for attention in (other, causal):
        assert not fusable(EncoderLayer(18, 28, 3, 0.1, attention))
    replaced = layer(4, 0.1)
    replaced.norm1 = nn.Identity()  # type: ignore[assignment]
    assert not fusable(replaced)
    assert usual.attention is not None
    hook = usual.attention.core.register_forward_hook(lambda *_: None)
    assert not fusable(usual)
    hook.remove()
    assert fusable(usual) == [usual]


def small(name: str, mask: str | None = None) -> Forecaster:
    model = build(name, sized(name, dropout=0.1), SHAPE, seed=0)
    if mask is not None:
        batch = TASK.example(SHAPE)
        cut.prune(model, Mask.parse(mask, (4, 4, 4)), lambda: TASK.forward(model, batch))
    return model


@pytest.mark.parametrize("name", ["iTransformer", "PatchTST"])
def test_training_steps_are_fused_and_validation_is_not(
    name: str, splits: Splits, calls: list[str]
) -> None:
    model = small(name)
    with training_step(model, TASK, splits.train, adam(model, 1e-3), torch.Generator()) as step:
        model.train()
        step(torch.arange(8))
        assert calls == ["attention", "feed"] * 3
        evaluate(model, TASK, splits.validation)
        assert len(calls) == 6
    TASK.forward(model.train(), splits.train.batch(torch.arange(8)))
    assert len(calls) == 6


def test_bfloat16_has_its_own_forward_passes(
    splits: Splits, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bf16, "supported", lambda: True)
    model = small("iTransformer").train()
    optimiser = adam(model, 1e-3)
    with training_step(
        model, TASK, splits.train, optimiser, torch.Generator(), precision="bf16"
    ) as step:
        step(torch.arange(8))
    assert not calls


def trained(model: Forecaster, splits: Splits, seed: int = 0) -> Fit:
    return fit(model, TASK, splits, Settings(1e-3, 16, 3), Seeds(order=seed, dropout=seed))


@pytest.mark.parametrize("mask", ["1.1.1", "0.1.1", "0.0110.0", "0.0.0"])
@pytest.mark.parametrize("name", ["iTransformer", "PatchTST"])
def test_a_run_ends_as_one_of_the_modules(
    name: str, mask: str, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(name, mask)
    plain = copy.deepcopy(model)
    here = trained(model, splits)
    monkeypatch.setattr(steps, "fusable", lambda _model: [])
    there = trained(plain, splits)
    assert (here.status, here.best_epoch) == (there.status, there.best_epoch)
    for a, b in zip(here.history, there.history, strict=True):
        for key in ("train_mse", "val_mse", "val_mae"):
            assert a[key] == pytest.approx(b[key], rel=1e-5)
    errors = [evaluate(m, TASK, splits.test).primary for m in (model, plain)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)
