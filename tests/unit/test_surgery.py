"""Surgery: the pruned network is the masked dense one, smaller, trainable and loadable."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from small_models import SHAPE, SIZES, flops_of, inputs_of, perturbed, prune, sized
from torch import Tensor, nn

from spat.attention.mask import Mask, all_site_masks
from spat.attention.site import Site
from spat.models.base import Forecaster
from spat.models.layers.attention import MultiHeadAttention
from spat.models.registry import FORECASTERS, Settings, Shape, build
from spat.surgery import cut, storage, sweep
from spat.training.device import costs

ATTENTION = [name for name, row in FORECASTERS.items() if row.role == "attention"]
# What only its sites use goes with the last of them: an embedding, the shared matrices, a norm in
# front of a site.
SWEPT = ("TimeXer", "FEDformer", "Mamba", "GPT4TS-random", "Time-LLM-random")


def dense(name: str, **changes: bool) -> Forecaster:
    return perturbed(lambda: build(name, sized(name, **changes), SHAPE), seed=1)


def called(model: Forecaster) -> Tensor:
    """The output of a model on any input."""
    return model(*inputs_of(model))  # type: ignore[no-any-return]


def masks_of(model: Forecaster) -> list[Mask]:
    """All site masks (of many sites, some); single heads; heads and sites together."""
    heads = cut.heads_of(model)
    full = Mask.full(heads)
    few = len(heads) <= 6
    removed = [[i] for i in range(len(heads))] + [[*range(i, len(heads))] for i in range(2)]
    masks = [*all_site_masks(heads)] if few else [full, *map(full.without_sites, removed)]
    parted = [i for i, count in enumerate(heads) if count > 1]
    masks += [full.without_heads([(i, h)]) for i in parted for h in (0, 2)]
    if len(parted) > 1:
        first, second, last = parted[0], parted[1], parted[-1]
        masks += [
            full.without_heads([(first, 1), (first, 3), (last, 0), (last, 1), (last, 2)]),
            full.without_heads([(first, 0), (second, 2), (second, 3)]).without_sites([last]),
        ]
    return masks


def pruned(model: Forecaster, mask: Mask) -> tuple[Forecaster, cut.Surgery]:
    smaller = copy.deepcopy(model)
    return smaller, prune(smaller, mask)


@pytest.mark.parametrize("time_features", [False, True])
@pytest.mark.parametrize("name", ATTENTION)
@torch.no_grad()
def test_pruned_is_masked_dense(name: str, time_features: bool) -> None:
    model = dense(name, time_features=time_features)
    inputs = inputs_of(model, 3)
    before = model(*inputs)
    for mask in masks_of(model):
        smaller, _ = pruned(model, mask)
        with cut.masked(model, mask) as reference:
            expected = reference(*inputs)
        torch.testing.assert_close(smaller(*inputs), expected, rtol=0, atol=1e-5, msg=mask.name)
        if not mask.is_full:
            assert (expected - before).abs().max() > 1e-4, mask.name
    # The reference was a loan: no hook stays.
    assert torch.equal(model(*inputs), before)


@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_are_those_of_the_masked_dense_network(name: str) -> None:
    model = dense(name)
    if name != "Informer":  # it samples in training, and fewer sites draw other samples
        model.train()  # without dropout; PatchTST normalises by the batch
    heads = cut.heads_of(model)
    mask = Mask.full(heads).without_sites([0])
    if len(heads) > 1 and heads[1] > 1:
        mask = mask.without_heads([(1, 1), (1, 2)])
    smaller, _ = pruned(model, mask)
    inputs = inputs_of(model, 4)
    smaller(*inputs).square().mean().backward()
    with cut.masked(model, mask):
        model(*inputs).square().mean().backward()
    reference = dict(model.named_parameters())
    for path, parameter in smaller.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, path
        if parameter.requires_grad and parameter.shape == reference[path].shape:
            torch.testing.assert_close(
                parameter.grad, reference[path].grad, rtol=1e-4, atol=1e-6, msg=path
            )


@pytest.mark.parametrize("name", ATTENTION)
def test_every_remaining_parameter_is_reached_and_can_be_trained(name: str) -> None:
    model = dense(name)
    assert sweep.unreached(model, partial(called, model))[0] == {}
    for mask in masks_of(model)[::3]:
        smaller, operation = pruned(model, mask)
        assert sweep.unreached(smaller, partial(called, smaller))[0] == {}, mask.name
        assert operation.dead == 0
        assert operation.swept == 0 or name in SWEPT
    before = [p.detach().clone() for p in smaller.parameters()]
    optimiser = torch.optim.Adam(smaller.parameters())
    smaller(*inputs_of(smaller, 4)).square().mean().backward()
    optimiser.step()
    assert all((p.grad is not None) == p.requires_grad for p in smaller.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, smaller.parameters(), strict=True))


@pytest.mark.parametrize("name", ATTENTION)
def test_parameters_and_flops_fall_by_what_is_removed(name: str) -> None:
    model = dense(name)
    width, sites = SIZES["d_model"], model.sites()
    head_size = width // SIZES["n_heads"]
    per_head = head_size * (4 * width + 3)  # rows of q, k, v with bias, columns of the output
    total, flops = costs.parameters(model), flops_of(model)
    for mask in masks_of(model)[::4]:
        smaller, operation = pruned(model, mask)
        gone = operation.swept
        for site, bits in zip(sites, mask.bits, strict=True):
            if site.heads > 1:
                gone += per_head * bits.count(False) + width * (not any(bits))
            elif not any(bits):
                gone += sum(costs.parameters(module) for module in site.modules)
        assert operation.params_before == total
        assert operation.params_after == costs.parameters(smaller) == total - gone
        assert (flops_of(smaller) < flops) != mask.is_full
        assert [s.attention is None for s in smaller.sites()] == [not any(b) for b in mask.bits]
        assert [s.name for s in smaller.sites()] == [s.name for s in sites]
        assert cut.heads_of(smaller) == mask.heads


@pytest.mark.parametrize("name", FORECASTERS)
def test_the_full_mask_changes_nothing(name: str) -> None:
    model = build(name, sized(name), SHAPE).train()
    before = dict(model.named_parameters())
    operation = prune(model, Mask.full(cut.heads_of(model)))
    assert operation.params_before == operation.params_after == costs.parameters(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[path] is before[path] for path in before)


def test_surgery_does_not_change_mode_gradients_or_random_state() -> None:
    model = dense("PatchTST").train()
    statistics = model.norm.running_mean.clone()
    random = torch.get_rng_state()
    prune(model, Mask.parse("1.0.0110", cut.heads_of(model)))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(model.norm.running_mean, statistics)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_surgery_refuses_a_pruned_model_and_a_mask_of_another_model() -> None:
    model = dense("iTransformer")
    with pytest.raises(ValueError, match=r"mask '1\.1' is of a model with heads \(4, 4\)"):
        prune(model, Mask.full((4, 4)))
    prune(model, Mask.parse("1.0.0110", cut.heads_of(model)))
    mask = Mask.parse("1.0.0", cut.heads_of(model))
    with pytest.raises(ValueError, match=r"encoder\.1\.self has 0 of its 4 heads"):
        prune(model, mask)
    with (
        pytest.raises(ValueError, match=r"encoder\.1\.self has 0 of its 4 heads"),
        cut.masked(model, mask),
    ):
        pass


@pytest.mark.parametrize("name", FORECASTERS)
def test_a_saved_network_is_loaded_unchanged(name: str, tmp_path: Path) -> None:
    model = build(name, sized(name), SHAPE).eval()
    for index, mask in enumerate(masks_of(model)[-3:] if name in ATTENTION else [Mask(())]):
        smaller, _ = pruned(model, mask)
        folder = tmp_path / str(index)
        random = torch.get_rng_state()
        storage.save(smaller, folder, mask)
        again = storage.load(folder)
        assert torch.equal(random, torch.get_rng_state())
        assert {path.name for path in folder.iterdir()} == {
            storage.WEIGHTS,
            storage.ARCHITECTURE,
        }
        written = json.loads((folder / storage.ARCHITECTURE).read_text())
        assert written["mask"] == mask.name
        assert written["model"] == name
        assert type(again) is type(smaller)
        assert not again.training
        assert (again.settings, again.shape) == (sized(name), SHAPE)
        inputs = inputs_of(model, 2)
        assert torch.equal(again(*inputs), smaller(*inputs))


def test_the_dense_model_needs_no_mask(tmp_path: Path) -> None:
    model = dense("iTransformer")
    storage.save(model, tmp_path)
    assert storage.architecture(storage.load(tmp_path))["mask"] == "1.1.1"


def test_a_file_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    model = dense("iTransformer")
    heads = cut.heads_of(model)
    prune(model, Mask.parse("1.0.1", heads))
    for wrong in (None, Mask.parse("1.1.0", heads), Mask.parse("1.0.0110", heads)):
        with pytest.raises(ValueError, match="pass the mask that it was pruned to"):
            storage.save(model, tmp_path, wrong)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    model = dense("iTransformer")
    with pytest.raises(FileNotFoundError, match=storage.ARCHITECTURE):
        storage.load(tmp_path)
    storage.save(model, tmp_path)
    weights = tmp_path / storage.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=str(tmp_path)):
        storage.load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=storage.WEIGHTS):
        storage.load(tmp_path)
    storage.save(model, tmp_path)
    values = storage.architecture(model)
    for change, message in (
        ({"mask": "1.0.1"}, r"layers\.1\.attention.*none in the network"),
        ({"model": "Nonsense"}, "Nonsense"),
        ({"shape": {"lookback": 96}}, "horizon"),
        ({"mask": "1.1"}, "2 sites, the model 3"),
        ({"mask": 1}, "mask: 1 is not a text"),
        ({"settings": {**values["settings"], "d_model": -1}}, "d_model: -1 is not a positive"),
        ({"settings": {**values["settings"], "d_model": "8"}}, "d_model: '8' is not of type int"),
        ({"settings": {**values["settings"], "n_heads": 10**4}}, "n_heads 10000 exceeds d_model"),
        ({"settings": [1]}, "another version"),
        ({"shape": {**values["shape"], "horizon": 0}}, "shape.horizon: 0 is not a whole number"),
        ({"shape": {**values["shape"], "marks": 1.5}}, "shape.marks: 1.5 is not a whole number"),
        ({"shape": {**values["shape"], "channels": 10**30}}, "shape.channels: 1000"),
        ({"shape": None}, "another version"),
    ):
        (tmp_path / storage.ARCHITECTURE).write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match=message):
            storage.load(tmp_path)


class Reader(nn.Module):
    """A layer that may read a memory through its attention."""

    attention: MultiHeadAttention | None

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(8, 2, dropout=0.0, cross=True)
        self.norm = nn.LayerNorm(8)


class Memory(Forecaster):
    """A forecaster of one's own, whose encoder is of use to one attention alone."""

    def __init__(self, lazy: bool) -> None:
        super().__init__(Settings(), Shape(6, 6, 8))
        self.lazy = lazy
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(6))
        self.encoder_attention: MultiHeadAttention | None = MultiHeadAttention(8, 2, dropout=0.0)
        self.reader = Reader()

    def sites(self) -> tuple[Site, ...]:
        return (
            Site("encoder.0.self", self, "encoder_attention", 2),
            Site("decoder.0.cross", self.reader, "attention", 2),
        )

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        y = x
        if self.reader.attention is not None or not self.lazy:
            memory = self.encoder(x)
            if self.encoder_attention is not None:
                memory = self.encoder_attention(memory)
            if self.reader.attention is not None:
                y = y + self.reader.attention(y, memory)
        return self.reader.norm(y)  # type: ignore[no-any-return]


ENCODER = 8 * 8 + 8 + 2 * 6
ATTENTION_PARAMETERS = 4 * (8 * 8 + 8)


def test_modules_that_are_neither_reached_nor_called_are_removed() -> None:
    model = Memory(lazy=True)
    inputs = inputs_of(model, 2)
    mask = Mask.parse("1.0", (2, 2))
    model.eval()
    with cut.masked(model, mask), torch.no_grad():
        expected = model(*inputs)
    operation = prune(model, mask)
    assert operation.swept == ENCODER + ATTENTION_PARAMETERS
    assert operation.dead == 0
    assert operation.params_after == costs.parameters(model) == 2 * 8
    assert all(site.attention is None for site in model.sites())
    assert torch.equal(model(*inputs), expected)
    assert sweep.unreached(model, partial(called, model))[0] == {}


def test_modules_that_are_called_without_effect_are_counted_and_kept() -> None:
    model = Memory(lazy=False)
    operation = prune(model, Mask.parse("1.0", (2, 2)))
    assert operation.swept == 0
    assert operation.dead == ENCODER + ATTENTION_PARAMETERS
    assert operation.params_after == operation.params_before - ATTENTION_PARAMETERS
    model(*inputs_of(model))


def test_a_model_outside_the_registry_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Memory is not in the model registry"):
        storage.save(Memory(lazy=True), tmp_path)
