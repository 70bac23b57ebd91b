"""Training in bfloat16 on the CPU: close to float32, in float32 outside of the products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from frame_builder import build, long
from small_models import SHAPE, TASK, generated_splits, sized

from spat.data.windows import Splits
from spat.models import registry
from spat.models.base import Forecaster
from spat.pipeline import digests
from spat.pipeline.frames import FrameError
from spat.study.pages.reader import widened
from spat.training.device import bf16
from spat.training.device.kernels import draw_from
from spat.training.loop import Seeds, Settings, fit, prepare_torch
from spat.training.optimisation import adam
from spat.training.step import training_step

# Attention between channels (short rows), between patches, with a causal mask and with a memory.
TRAINED = ("iTransformer", "PatchTST", "Transformer", "Crossformer", "Autoformer", "DLinear")
SEEDS = Seeds(order=1, dropout=2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    prepare_torch("float32")


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tests on processors without bfloat16, too, which compute the same slowly."""
    monkeypatch.setattr(bf16, "supported", lambda: True)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return generated_splits(400)


def small(name: str, seed: int = 0) -> Forecaster:
    settings = sized(name, dropout=0.1, d_model=32, d_ff=64)
    return registry.build(name, settings, SHAPE, seed=seed).train()


def gradients(name: str, narrow: bool) -> torch.Tensor:
    model = small(name)
    torch.manual_seed(0)
    draw_from(model, torch.Generator().manual_seed(1))
    batch = TASK.example(SHAPE, 16, "cpu")
    if narrow:
        with bf16.products(model):
            output = TASK.forward(model, batch)
    else:
        output = TASK.forward(model, batch)
    TASK.loss(output, batch).backward()
    present = [p.grad for p in model.parameters() if p.grad is not None]
    assert {g.dtype for g in present} == {torch.float32}
    return torch.cat([g.flatten() for g in present])


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_close_to_those_of_float32(name: str) -> None:
    wide, narrow = gradients(name, False), gradients(name, True)
    off = float((wide - narrow).norm() / wide.norm())
    # A product of bfloat16 numbers is off by 0.4 %; equal to the bit would be float32 again.
    assert 0 < off < 0.02


@pytest.mark.parametrize("name", ["iTransformer", "PatchTST"])
def test_every_product_is_in_bfloat16_and_softmax_and_norm_are_not(name: str) -> None:
    model = small(name)
    with torch.profiler.profile(record_shapes=True) as profile, bf16.products(model):
        TASK.forward(model, TASK.example(SHAPE, 4, "cpu"))
    types: dict[str, set[str]] = {}
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.dtypes():
            types.setdefault(event.name(), set()).add(event.dtypes()[0])
    products = types["aten::linear"] | types["aten::addmm"] | types["aten::bmm"]
    assert products == {"c10::BFloat16"}
    assert types["aten::native_layer_norm"] == {"float"}


@pytest.mark.usefixtures("anywhere")
def test_weights_and_optimiser_stay_in_float32_and_the_model_computes_as_before(
    splits: Splits,
) -> None:
    model = small("iTransformer")
    optimiser = adam(model, 1e-3)
    generator = torch.Generator().manual_seed(0)
    with training_step(model, TASK, splits.train, optimiser, generator, "bf16") as step:
        assert torch.isfinite(step(torch.arange(8)))
    states = [value for state in optimiser.state.values() for value in state.values()]
    assert {t.dtype for t in (*model.parameters(), *states)} == {torch.float32}
    assert not any("forward" in vars(module) for module in model.modules())
    other = small("iTransformer")
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, SHAPE.lookback, SHAPE.channels)
    assert torch.equal(model.eval()(x), other.eval()(x))


@pytest.mark.usefixtures("anywhere")
def test_a_resumed_run_ends_with_bit_identical_weights(splits: Splits, tmp_path: Path) -> None:
    settings = Settings(learning_rate=1e-3, batch_size=32, epochs=3, precision="bf16")
    undisturbed, resumed = small("iTransformer"), small("iTransformer", seed=5)
    state = tmp_path / "state.pt"

    def stop(epoch: int, model: object) -> list[dict[str, object]]:
        if epoch == 2:
            raise KeyboardInterrupt
        return []

    whole = fit(undisturbed, TASK, splits, settings, SEEDS)
    with pytest.raises(KeyboardInterrupt):
        fit(small("iTransformer"), TASK, splits, settings, SEEDS, state=state, after_epoch=stop)
    assert state.exists()
    assert fit(resumed, TASK, splits, settings, SEEDS, state=state).best == whole.best
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_dropout_keeps_the_mean() -> None:
    x = torch.rand(400_000).add(1).bfloat16()
    dropped = bf16._dropped(x, 0.1, True, torch.Generator().manual_seed(0)).double()
    kept = dropped != 0
    assert float(kept.double().mean()) == pytest.approx(0.9, abs=2e-3)
    # As a bfloat16 tensor the scale would be 1.109375, off by 1.6e-3.
    assert float(dropped[kept].sum() / x.double()[kept].sum()) == pytest.approx(1 / 0.9, rel=1e-4)


def test_a_processor_without_bfloat16_is_refused(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    settings = Settings(learning_rate=1e-3, batch_size=32, epochs=1, precision="bf16")
    with pytest.raises(RuntimeError, match="neither AVX512_BF16 nor AMX.*use 'float32'"):
        fit(small("iTransformer"), TASK, splits, settings, SEEDS)


def test_float32_does_not_depend_on_the_code_of_bfloat16() -> None:
    module = "spat.training.device.bf16"
    assert module not in digests._modules("pretrain", "iTransformer")


def test_precisions_do_not_mix_in_a_comparison() -> None:
    frames = long(build())
    assert len(widened("results", frames.__getitem__))
    precision = frames["networks"]["precision"].to_numpy(copy=True)
    precision[np.arange(len(precision)) % 2 == 0] = "bf16"
    mixed = {**frames, "networks": frames["networks"].assign(precision=precision)}
    with pytest.raises(FrameError, match="trained in bf16 and float32"):
        widened("results", mixed.__getitem__)
