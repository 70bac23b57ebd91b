"""Removal from any model: the pruned model equals the model with the attention set to zero."""

import copy
import json
import math
import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
import zoo
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import spat
from spat.attention.errors import (
    AttentionWarning,
    DeadParameters,
    InputLost,
    NoSites,
    NotDifferentiable,
    SharedOutput,
    Stochastic,
    UnknownSite,
)
from spat.surgery.foreign import Removal, Removed


def pruned(model: nn.Module, names: Any, **given: Any) -> nn.Module:
    """The pruned copy, without warnings, which other tests check."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttentionWarning)
        return spat.prune(model, names, zoo.loss, zoo.batch(), **given)


def record(model: nn.Module) -> Removal:
    """What was removed."""
    removal = model.spat_removal
    assert isinstance(removal, Removal)
    return removal


@pytest.mark.parametrize("name", zoo.REMOVABLE)
def test_every_site_alone_and_all_together_can_be_removed(name: str) -> None:
    maker, names = zoo.REMOVABLE[name]
    model = zoo.make(maker)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for chosen in [[one] for one in names] + [names]:
        small = pruned(model, chosen)
        with torch.no_grad():
            x = zoo.batch()[0]
            expected = zeroed(model, (*chosen, *branches(model, chosen)), x)
            assert torch.allclose(small.eval()(x), expected, atol=1e-12)
        assert record(small).after < record(small).before
    after = model.state_dict()
    assert model.training and before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def branches(model: nn.Module, names: list[str]) -> list[str]:
    """The modules that are removed with the sites of these names."""
    sites = spat.find_sites(model, zoo.loss, zoo.batch())
    return [part for site in sites if site.name in names for part in site.branch]


def zeroed(model: nn.Module, names: Any, x: Tensor) -> Tensor:
    """The output of a copy in which the outputs of these modules, with biases, are zero (R13).

    Arguments that they return stay as they are.
    """
    model = copy.deepcopy(model).eval()

    def zero(_module: nn.Module, args: Any, kwargs: Any, y: Any) -> Any:
        if isinstance(y, zoo.Result):
            return replace(y, y=y.y * 0)
        given = [*args, *kwargs.values()]
        return tree_map_only(
            Tensor, lambda t: t if any(t is one for one in given) else torch.zeros_like(t), y
        )

    for name in names:
        model.get_submodule(name).register_forward_hook(zero, with_kwargs=True)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.parametrize("name", zoo.REMOVABLE)
def test_the_loss_drop_of_a_site_is_that_of_its_removal(name: str) -> None:
    maker, names = zoo.REMOVABLE[name]
    model = zoo.make(maker)
    scores = spat.score(model, [zoo.batch()], zoo.loss, criterion="loss_drop")
    for one in names:
        small = pruned(model, [one])
        with torch.enable_grad():  # as in `loss_drop`: torch's fused layers round differently
            whole, less = (zoo.loss(m.eval(), zoo.batch()).mean().item() for m in (model, small))
        assert scores[one] == pytest.approx(less - whole, abs=1e-12)


def test_a_model_that_keeps_results_with_their_graph_can_be_pruned() -> None:
    class Keeping(zoo.Nano):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.last = {"y": [y]}
            return y

    for maker in (
        lambda: zoo.Layer(Keeping()),
        lambda: zoo.Layer(Normed()),
    ):
        model: Any = zoo.make(maker)
        zoo.loss(model, zoo.batch())  # as in training
        small: Any = pruned(nn.Sequential(model, zoo.make(maker)), ["1.attention"])
        with torch.no_grad():
            x = zoo.batch()[0]
            assert torch.equal(small[0].eval()(x), model.eval()(x))


def test_a_model_that_cannot_be_copied_is_pruned_in_place() -> None:
    class Whole(zoo.Layer):
        def __deepcopy__(self, _: Any) -> Any:
            raise TypeError("no copies")

    model = zoo.make(lambda: Whole(zoo.Nano()))
    with pytest.raises(TypeError, match="no copies") as raised:
        pruned(model, "attention")
    assert "pass inplace=True" in raised.value.__notes__[0]
    assert pruned(model, "attention", inplace=True) is model


class Normed(zoo.Nano):
    """Its weight is computed before each call, and kept."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(self.qkv)


def test_a_file_has_no_state_but_tensors(tmp_path: Path) -> None:
    class Stated(zoo.Nano):
        def get_extra_state(self) -> Any:
            return "text"

    with pytest.raises(TypeError, match="_extra_state in the state of the Stated is a str"):
        spat.save(Stated(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_of_an_earlier_version_is_read_or_named(version: int, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    maker, names = zoo.REMOVABLE["einsum"]
    small = pruned(zoo.make(maker), names)
    spat.save(small, path)
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["spat_removal"])
    assert {name: stub[3] for name, stub in values["removed"].items()} == {
        name: [] for name in names
    }
    assert [stub[:2] for stub in values["removed"].values()] == [[[0, "x", 0], None]] * len(names)
    values["removed"] = {name: [0, zoo.WIDTH, None, []][: version + 1] for name in names}
    values["version"] = version
    save_file(load_file(path), path, metadata={"spat_removal": json.dumps(values)})
    if version == 1:
        with pytest.raises(ValueError, match=r"has version 1, but this package reads \(2, 3, 4\)"):
            spat.load(maker().double(), path)
        return
    loaded = spat.load(maker().double(), path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(zoo.batch()[0]), small.eval()(zoo.batch()[0]))


def test_a_shared_module_is_removed_from_every_place() -> None:
    small: Any = pruned(zoo.make(zoo.Alias), ["a.attention"])
    assert isinstance(small.a.attention, Removed)
    assert small.a.attention is small.b.attention


def test_a_norm_that_only_the_attention_used_becomes_the_identity() -> None:  # R12
    small: Any = pruned(zoo.make(lambda: zoo.Layer(zoo.Nano())), ["attention"])
    assert isinstance(small.n1, nn.Identity) and isinstance(small.n2, nn.LayerNorm)
    assert record(small).identity == ("n1",) and record(small).dead == ()


def test_unused_parameters_are_named() -> None:  # R12
    class Positions(zoo.Layer):
        def __init__(self) -> None:
            super().__init__(zoo.Nano())
            self.positions = nn.Parameter(torch.randn(zoo.TOKENS, zoo.WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(self.n1(x) + self.positions)
            return x + self.mlp(self.n2(x))

    with pytest.warns(DeadParameters, match="positions"):
        small = spat.prune(zoo.make(Positions), ["attention"], zoo.loss, zoo.batch())
    assert record(small).dead == ("positions",)


def test_a_warning_names_an_input_that_is_no_longer_used() -> None:  # R11
    class Summary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = zoo.Layer(zoo.Nano())
            self.token = nn.Parameter(torch.randn(1, 1, zoo.WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, self.token.expand(len(x), -1, -1)], 1)
            return self.layer(x)[:, -1:].expand(-1, zoo.TOKENS, -1)

    with pytest.warns(InputLost, match="no longer depends"):
        spat.prune(zoo.make(Summary), ["layer.attention"], zoo.loss, zoo.batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputLost)
        spat.prune(zoo.make(zoo.Twice), ["layer.attention"], zoo.loss, zoo.batch())


def test_an_output_that_others_use_is_found_and_undone() -> None:  # R7
    model = zoo.make(zoo.Biased)
    before = zoo.loss(model.eval(), zoo.batch())
    with pytest.raises(SharedOutput, match="first"):
        pruned(model, ["first"], inplace=True)
    assert torch.equal(zoo.loss(model, zoo.batch()), before)
    assert not any(isinstance(module, Removed) for module in model.modules())
    pruned(model, ["second"])


def test_padded_samples_pass_without_gradients() -> None:  # R10
    model: Any = zoo.make(zoo.Padded, torch.float32).eval()
    x = zoo.batch(torch.float32)[0]
    for name in ("encoder.layers.0.self_attn", "encoder.layers.1.self_attn"):
        small = spat.prune(model, [name], zoo.loss, zoo.batch(torch.float32)).eval()
        with_gradients = small(x).detach()
        with torch.no_grad():
            assert torch.allclose(small(x), with_gradients, atol=1e-5)


def test_a_model_that_draws_is_verified_with_fixed_noise() -> None:
    model = zoo.make(zoo.Draws)
    state = torch.get_rng_state()
    small: Any = pruned(model, ["layer.attention"])
    assert isinstance(small.layer.attention, Removed)
    first, again = (spat.score(model, [zoo.batch()], zoo.loss).values for _ in range(2))
    assert first == pytest.approx(again, rel=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="accelerators have own generators")
def test_the_noise_is_fixed_without_the_slow_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.make(zoo.Draws)
    # A call takes a millisecond, and the verification of a deep model makes thousands of calls.
    monkeypatch.setattr(torch, "manual_seed", None)
    pruned(model, ["layer.attention"])


def test_a_model_with_noise_of_its_own_is_refused() -> None:
    class Own(zoo.Twice):
        def forward(self, x: Tensor) -> Tensor:
            self.count = getattr(self, "count", 0) + 1
            return super().forward(x) + self.count

    with pytest.raises(Stochastic, match="verify=False"):
        pruned(zoo.make(Own), ["layer.attention"])
    pruned(zoo.make(Own), ["layer.attention"], verify=False)


class Spare(nn.Module):
    """A model with a second one that it does not use."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.spare = model, copy.deepcopy(model)

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


@pytest.mark.parametrize(
    ("wrong", "refusal", "message"),
    [
        (lambda m, b: spat.prune(m, m.attention, zoo.loss, b), TypeError, "a Nano is not a site"),
        (
            lambda m, b: spat.prune(m, spat.score(m, [b], zoo.loss), zoo.loss, b),
            TypeError,
            "a Scores is not a site",
        ),
        (lambda m, b: spat.prune(m, [0], zoo.loss, b), TypeError, "a int is not a site.*lowest"),
        (
            lambda m, b: spat.find_sites(m, b, zoo.loss),
            TypeError,
            "the loss is a tuple: give a fun",
        ),
        (lambda m, b: spat.find_sites(m.state_dict(), zoo.loss, b), TypeError, "load its weights"),
        (lambda m, b: spat.find_sites(zoo.Nano, zoo.loss, b), TypeError, "is the class Nano, not"),
        (
            lambda m, b: spat.find_sites(torch.jit.trace(m, b[0]), zoo.loss, b),
            TypeError,
            "scripted or traced: give the module that it was made from",
        ),
        (
            lambda m, b: spat.score(nn.Sequential(torch.jit.trace(m, b[0]), m), [b], zoo.loss),
            TypeError,
            "the model: '0' is scripted or traced: give the module that it was made from",
        ),
        (
            lambda m, b: spat.find_sites(m, lambda m, b: zoo.loss(m, b).mean().item(), b),
            NotDifferentiable,
            "returned a float: return a tensor, without .item",
        ),
        (
            lambda m, b: spat.prune(m, "attention", lambda _, b: zoo.loss(m, b), b),
            NoSites,
            "did not call the model that it was given: use its first argument",
        ),
        (
            lambda m, b: spat.score(m, [tuple(t[:0] for t in b)], zoo.loss),
            ValueError,
            "no values: give a batch that is not empty",
        ),
        (
            lambda m, b: spat.find_sites(m, zoo.loss, b, units=[m.attention]),
            TypeError,
            "a Nano is not a name: give names of modules",
        ),
        (
            lambda m, b: spat.find_sites(Spare(m), zoo.loss, b, units="spare.attention"),
            NoSites,
            "the loss does not call spare.attention: name modules that take part",
        ),
        (
            lambda m, b: spat.score(pruned(m, "attention"), [b], zoo.loss),
            NoSites,
            "from this one spat.prune removed attention",
        ),
        (
            lambda m, b: pruned(pruned(nn.Sequential(m, Spare(m)), "0.attention"), "0.attention"),
            UnknownSite,
            "'0.attention' was removed before: leave it out",
        ),
        (
            lambda m, b: spat.prune(m, "attention", zoo.loss, b, tolerance=-1),
            ValueError,
            "tolerance=-1: give a number of at least 0",
        ),
        (
            lambda m, b: spat.score(m, zoo.loss, [b]),
            TypeError,
            "function: give .* model, batches, l",
        ),
        (lambda m, b: spat.score(m, "data", zoo.loss), TypeError, "batches is a str"),
        (
            lambda m, b: spat.score(m, [b], zoo.loss, criterion=["send"]),
            TypeError,
            "give one name, such as 'send'",
        ),
        (lambda m, b: spat.score(m, [b], zoo.loss, batches_max=0.5), ValueError, "a whole number"),
        (lambda m, b: spat.compare(m.state_dict(), m, b[0]), TypeError, "the dense model is a Ord"),
        (lambda m, b: spat.save("m.safetensors", m), TypeError, "is a str, not a torch.nn.Module"),
        (lambda m, b: spat.save(m, None), TypeError, "path is a NoneType: give the model first"),
        (lambda m, b: spat.save(m, Path()), IsADirectoryError, "give the name of a file"),
        (lambda m, b: spat.load("m.safetensors", m), TypeError, "is a str, not a torch.nn.Module"),
        (lambda m, b: spat.load(m, m), TypeError, "path is a Layer: give the model first"),
        (lambda m, b: spat.find_sites(m.forward, zoo.loss, b), TypeError, "a method, not a torch"),
        (lambda m, b: spat.score(m, b[0], zoo.loss), TypeError, "give an iterable of batches"),
        (lambda m, b: spat.score(m, {"x": b[0]}, zoo.loss), TypeError, "batches is a dict"),
        (lambda m, b: spat.score(m, [b], zoo.loss, batches_max=0), ValueError, "batches_max=0"),
        (lambda m, b: spat.score(m, [b], zoo.loss, criterion="SEND"), ValueError, "mean 'send'"),
        (lambda m, b: spat.compare(m, m, b[0], repeats=0), ValueError, "repeats=0"),
        (
            lambda m, b: spat.compare(m, m, b[0], repeats=1.5),
            ValueError,
            "repeats=1.5: give a whole",
        ),
        *(
            (
                lambda m, b, amount=amount: spat.score(m, [b], zoo.loss).lowest(amount),
                ValueError,
                re.escape(f"lowest({amount!r})"),
            )
            for amount in (True, None, "half", math.nan, math.inf, -1, 2, 1.5)
        ),
    ],
)
def test_contradictory_arguments_are_refused(wrong: Any, refusal: Any, message: str) -> None:
    with pytest.raises(refusal, match=message):
        wrong(zoo.make(lambda: zoo.Layer(zoo.Nano())), zoo.batch())


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        (
            lambda m, b: spat.find_sites(m, nn.MSELoss(), b),
            r"by loss\(model, batch\) with a Layer and a batch that is a tuple of \(torch.float64 "
            "tensor of 3 x 7 x 16, .*check the order",
        ),
        (lambda m, b: spat.find_sites(m, zoo.loss, [b[0].float(), b[1]]), "list of .*float32"),
        (lambda m, b: spat.compare(m, m, b), "give a tensor, .* without the target"),
    ],
)
def test_an_error_of_the_model_says_with_what_it_was_called(wrong: Any, note: str) -> None:
    with pytest.raises((TypeError, AttributeError, RuntimeError)) as raised:
        wrong(zoo.make(lambda: zoo.Layer(zoo.Nano())), zoo.batch())
    assert re.search(note, raised.value.__notes__[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(value: float) -> None:
    model = zoo.make(lambda: zoo.Layer(zoo.Nano()))
    x, y = zoo.batch()
    y[0, 0, 0] = value
    for call in (
        lambda: spat.find_sites(model, zoo.loss, (x, y)),
        lambda: spat.score(model, [zoo.batch(), (x, y)], zoo.loss),
        lambda: spat.score(model, [(x, y)], zoo.loss, criterion="loss_drop"),
        lambda: spat.prune(model, ["attention"], zoo.loss, (x, y)),
    ):
        with pytest.raises(ValueError, match=f"the loss of Layer is {value}"):
            call()


def test_one_site_and_one_unit_need_no_list() -> None:
    model = zoo.make(lambda: zoo.Layer(zoo.Nano()))
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch(), units="attention")
    for given in ("attention", site):
        assert record(pruned(model, given)).removed == ("attention",)
    scores = spat.score(model, [zoo.batch()], zoo.loss)
    assert scores.lowest(np.int64(1)) == ("attention",) and scores.lowest(np.int64(0)) == ()


def test_a_batch_in_the_place_of_batches_is_named() -> None:
    model = zoo.make(lambda: zoo.Layer(zoo.Nano()))
    with pytest.raises(Exception) as raised:
        spat.score(model, zoo.batch(), zoo.loss)
    assert "[batch] for a single batch" in raised.value.__notes__[-1]


def test_an_attribute_of_a_removed_module_is_named() -> None:
    small: Any = pruned(zoo.make(lambda: zoo.Layer(zoo.Nano())), ["attention"])
    with pytest.raises(AttributeError, match="removed by spat.prune.*no attribute 'qkv': change"):
        small.attention.qkv  # noqa: B018
    assert not hasattr(small.attention, "qkv")
    assert torch.equal(copy.deepcopy(small)(zoo.batch()[0]), small(zoo.batch()[0]))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownSite, match="did you mean 'layer.attention'"):
        pruned(zoo.make(zoo.Twice), ["layer.atention"])


def test_a_warning_names_layer_zero_of_a_cache_and_save_pretrained() -> None:  # R8, R9
    class Cached(zoo.Nano):
        def __init__(self) -> None:
            super().__init__()
            self.layer_idx = 0

    class Pretrained(zoo.Layer):
        def save_pretrained(self) -> None: ...

    with pytest.warns(AttentionWarning) as caught:
        spat.prune(zoo.make(lambda: Pretrained(Cached())), ["attention"], zoo.loss, zoo.batch())
    messages = " ".join(str(one.message) for one in caught)
    assert "layer 0" in messages and "save_pretrained" in messages


class Pretrained(zoo.Layer):
    """Keeps its weights as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__(zoo.Nano())

    def save_pretrained(self, path: Path) -> None:
        torch.save(self.state_dict(), path)


def test_save_pretrained_of_a_pruned_model_warns_at_its_call(tmp_path: Path) -> None:
    small = pruned(zoo.make(Pretrained), ["attention"])
    spat.save(small, tmp_path / "small.safetensors")
    loaded = spat.load(Pretrained().double(), tmp_path / "small.safetensors")
    for model in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small)), loaded):
        with pytest.warns(AttentionWarning, match="restores them with random") as caught:
            model.save_pretrained(tmp_path / "weights")
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.state_dict()
        spat.save(small, tmp_path / "small.safetensors")
        zoo.make(Pretrained).save_pretrained(tmp_path / "weights")


@pytest.mark.parametrize("name", zoo.REMOVABLE)
def test_a_file_gives_the_same_model(name: str, tmp_path: Path) -> None:
    maker, names = zoo.REMOVABLE[name]
    small = pruned(zoo.make(maker), names[:1]).eval()
    spat.save(small, tmp_path / "small.safetensors")
    torch.manual_seed(5)
    again = spat.load(maker().double(), tmp_path / "small.safetensors").eval()
    x = zoo.batch()[0]
    with torch.no_grad():
        assert torch.equal(small(x), again(x))
    assert record(again) == record(small)
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(small))(x), small(x))


class Channels(nn.Module):
    """Attention between the positions of [B, channels, positions]; the positions may vary."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(zoo.WIDTH, 8), nn.Linear(8, zoo.WIDTH)
        self.attention = self.Attention()

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.o = nn.Conv1d(8, 24, 1), nn.Conv1d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(1, (2, -1)).mT for t in self.qkv(x).chunk(3, 1))
            return self.o(F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x).mT
        return self.out((x + self.attention(x)).mT)


class Crossed(nn.Module):
    """Cross-attention with the context, and a mask that may be missing, before the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(zoo.WIDTH, zoo.WIDTH), nn.Linear(zoo.WIDTH, zoo.WIDTH)
        self.attention = self.Attention()

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv = nn.Linear(zoo.WIDTH, zoo.WIDTH), nn.Linear(zoo.WIDTH, 2 * zoo.WIDTH)

        def forward(self, mask: Tensor | None, context: Tensor, x: Tensor) -> Tensor:
            k, v = map(zoo.split, self.kv(context).chunk(2, -1))
            O = F.scaled_dot_product_attention(zoo.split(self.q(x)), k, v, attn_mask=mask)  # noqa: E741
            return O.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, context: Tensor | None = None, masked: bool = True) -> Tensor:
        context = x if context is None else context
        mask = x.new_zeros(x.shape[1], context.shape[1]) if masked else None
        context, x = self.inp(context), self.inp(x)
        if masked:
            return self.out(x + self.attention(mask, context, x))
        return self.out(x + self.attention(None, x=x, context=context))


def test_a_pruned_model_takes_what_the_dense_one_takes(tmp_path: Path) -> None:
    small = pruned(zoo.make(Channels), "attention")
    spat.save(small, tmp_path / "small")
    for one in (small, spat.load(Channels().double(), tmp_path / "small")):
        for tokens in (zoo.TOKENS, 3, 20):
            x = torch.randn(2, tokens, zoo.WIDTH).double()
            assert torch.equal(one(x), one.out(one.inp(x)))
    crossed = pruned(zoo.make(Crossed), "attention")
    spat.save(crossed, tmp_path / "crossed")
    x, context = zoo.batch()[0], torch.randn(zoo.SAMPLES, 2, zoo.WIDTH).double()
    for one in (crossed, spat.load(Crossed().double(), tmp_path / "crossed")):
        expected = one.out(one.inp(x))
        for masked in (True, False):
            assert torch.equal(one(x, context, masked), expected)
    with pytest.raises(ValueError, match="without its argument x, whose shape its zeros have"):
        crossed.attention(None, context)


def test_a_pruned_model_can_be_trained_where_the_dense_one_can() -> None:
    class InPlace(zoo.Layer):
        def __init__(self, attention: nn.Module) -> None:
            super().__init__(attention)
            self.drop = nn.Dropout(0.1, inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.drop(self.attention(self.n1(x)))
            return x + self.mlp(self.n2(x))

    class Checkpointed(zoo.Layer):
        def forward(self, x: Tensor) -> Tensor:
            y = self.n1(x)
            if self.training:
                y = torch.utils.checkpoint.checkpoint(self.attention, y, use_reentrant=True)
            else:
                y = self.attention(y)
            x = x + y
            return x + self.mlp(self.n2(x))

    for layer in (InPlace, Checkpointed):
        model = zoo.make(
            lambda layer=layer: nn.Sequential(zoo.Layer(zoo.Nano()), layer(zoo.Nano()))
        )
        for one in (model, pruned(model, "1.attention")):
            zoo.loss(one.train(), zoo.batch()).mean().backward()
            assert all(p.grad is not None for p in one[0].parameters())


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_a_model_that_returns_its_maps_can_be_pruned(first: bool, kept: bool) -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.o = nn.Linear(zoo.WIDTH, 3 * zoo.WIDTH), nn.Linear(zoo.WIDTH, zoo.WIDTH)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            q, k, v = map(zoo.split, self.qkv(x).chunk(3, -1))
            A = (q @ k.mT).softmax(-1)
            return self.o((A @ v).transpose(1, 2).flatten(2)), A

    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Mapped() for _ in range(3))
            self.out = nn.Linear(zoo.WIDTH, zoo.WIDTH)

        def forward(self, x: Tensor) -> dict[str, Any]:
            maps = []
            for layer in self.layers:
                y, A = layer(x)
                x = x + y
                maps += [A] if kept or A is not None else []
            outputs = {"y": self.out(x), "maps": maps}
            return dict(reversed(outputs.items())) if first else outputs

    def loss(model: Any, batch: Any) -> Tensor:
        return (model(batch[0])["y"] - batch[1]).square().mean((1, 2))

    model = zoo.make(Returning)
    for names in (["layers.0"], ["layers.1"], ["layers.0", "layers.2"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttentionWarning)
            small = spat.prune(model, names, loss, zoo.batch())
        assert record(small).removed == tuple(names)


def test_a_norm_with_a_second_argument_is_kept() -> None:
    class Masked(nn.LayerNorm):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(x) if mask is None else super().forward(x) * mask[..., None]

    class Masking(zoo.Layer):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(self.n1(x, torch.ones(x.shape[:2], dtype=torch.bool)))
            return x + self.mlp(self.n2(x))

    model: Any = zoo.make(lambda: Masking(zoo.Nano()))
    model.n1 = Masked(zoo.WIDTH).double()
    assert record(pruned(model, "attention")).identity == ()


def test_a_generator_of_sites_is_read_once() -> None:
    maker, names = zoo.REMOVABLE["nanoGPT"]
    assert record(pruned(zoo.make(maker), (name for name in names))).removed == tuple(names)


def test_a_state_whose_tensors_share_a_part_of_their_memory_is_saved(tmp_path: Path) -> None:
    class Tables(zoo.Layer):
        def __init__(self) -> None:
            super().__init__(zoo.Nano())
            self.register_buffer("table", torch.randn(9, zoo.WIDTH).double())
            self.register_buffer("part", self.table[: zoo.TOKENS])

    spat.save(small := pruned(zoo.make(Tables), "attention"), tmp_path / "small")
    again = spat.load(Tables().double(), tmp_path / "small")
    for name, value in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_model_can_be_pruned_in_two_steps(tmp_path: Path) -> None:
    maker, names = zoo.REMOVABLE["nanoGPT"]
    small = pruned(pruned(zoo.make(maker), names[:1]), names[1:])
    assert record(small).removed == tuple(names)
    assert set(record(small).identity) == {"0.n1", "1.n1"}
    spat.save(small, tmp_path / "small")
    again = spat.load(maker().double(), tmp_path / "small")
    assert torch.equal(again.eval()(zoo.batch()[0]), small.eval()(zoo.batch()[0]))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    with pytest.raises(FileNotFoundError, match="small"):
        spat.load(zoo.Twice(), path)
    spat.save(pruned(zoo.make(zoo.Twice), ["layer.attention"]), path)
    with pytest.raises(ValueError, match="weights of a Twice.*build the model that was saved"):
        spat.load(zoo.Alias(), path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of spat.save"):
        spat.load(zoo.Twice(), path)


@pytest.mark.parametrize("name", zoo.CONTAINERS)
def test_the_container_of_an_output_does_not_change_scores(name: str) -> None:
    inside, bare = (
        spat.score(zoo.make(maker), [zoo.batch()], zoo.loss, criterion=criterion).values
        for criterion in ("send",)
        for maker in (
            lambda: zoo.Unwrapping(*zoo.CONTAINERS[name]),
            lambda: zoo.Layer(zoo.Nano()),
        )
    )
    assert inside == pytest.approx(bare, rel=1e-12)


@pytest.mark.parametrize(
    "given", ["subprocess:Popen", "unloaded_module:Pair", "zoo:Missing", "zoo:as_pair"]
)
def test_a_file_names_no_class_but_a_container_that_is_loaded(given: str, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    maker, names = zoo.REMOVABLE["returns a named tuple"]
    spat.save(pruned(zoo.make(maker), names), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert "zoo:Pair" in metadata["spat_removal"]
    text = metadata["spat_removal"].replace("zoo:Pair", given)
    save_file(load_file(path), path, metadata={"spat_removal": text})
    with pytest.raises(ValueError, match=f"{path}: 'attention': no container"):
        spat.load(maker(), path)


def test_costs_are_compared() -> None:  # R6
    maker, names = zoo.REMOVABLE["TransformerEncoder post-norm"]
    model = zoo.make(maker, torch.float32)
    small = spat.prune(model, names, zoo.loss, zoo.batch(torch.float32))
    report = spat.compare(model, small, zoo.batch(torch.float32)[0], repeats=2)
    width, tokens = zoo.WIDTH, zoo.TOKENS
    projections, products = 8 * tokens * width**2, 4 * tokens**2 * width
    gone = len(names) * zoo.SAMPLES * (projections + products)
    assert report.flops[0] - report.flops[1] == gone
    assert report.parameters[0] - report.parameters[1] == 3 * (4 * width**2 + 4 * width)
    assert "milliseconds" in str(report) and len(report.table()) == 4
    # The parameters of the fused layer of the dense model count, too.
    assert report.megabytes[1] < report.megabytes[0]


def test_models_that_take_and_give_mappings_are_compared() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = zoo.Layer(zoo.Nano())

        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.layer(x)}

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch)["y"].square().mean((1, 2))

    model, batch = zoo.make(Named), {"x": zoo.batch()[0]}
    small = spat.prune(model, ["layer.attention"], loss, batch)
    report = spat.compare(model, small, batch, repeats=2)
    assert all(pruned < dense for dense, pruned in (report.parameters, report.flops))
    assert str(report).splitlines()[1].startswith("parameters")


HUGGING_FACE: dict[str, Any] = {
    "Bert": {"num_hidden_layers": 2, "intermediate_size": 24},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 4},
    "Llama": {"num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 24},
    "Mixtral": {"num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 24},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_models_of_transformers(name: str, attention: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 4, **HUGGING_FACE[name]}
    if "n_embd" in sizes:
        del sizes["hidden_size"], sizes["num_attention_heads"]
    config = getattr(transformers, f"{name}Config")(**sizes, attn_implementation=attention)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config)
    ids = torch.randint(0, 50, (3, 6))

    def loss(model: Any, ids: Tensor) -> Tensor:
        return (model(ids).last_hidden_state * torch.arange(16.0)).mean((1, 2))

    sites = spat.find_sites(model, loss, ids)
    assert len(sites) == 2
    assert all(site.refusal is None and site.heads == 4 for site in sites)
    assert (spat.score(model, [ids], loss).values > 0).all()
    with pytest.warns(AttentionWarning, match="save_pretrained"):
        small = spat.prune(model, sites, loss, ids)
    assert record(small).after < record(small).before


ENCODER_DECODER = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
VISION = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2,
          "intermediate_size": 24, "image_size": 8, "patch_size": 4}  # fmt: skip
IDS = torch.arange(3, 27).reshape(3, 8)
PIXELS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0))
# settings, inputs, removable sites of all
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Tensor], tuple[int, int]]] = {
    "T5": (
        {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_heads": 4},
        {"input_ids": IDS, "decoder_input_ids": IDS},
        (7, 9),  # the first blocks compute the position bias of the others
    ),
    "Bart": (
        {"vocab_size": 50, **ENCODER_DECODER},
        {"input_ids": IDS, "decoder_input_ids": IDS},
        (6, 6),
    ),
    "Whisper": (
        {"vocab_size": 50, "num_mel_bins": 8, "max_source_positions": 16, **ENCODER_DECODER},
        {"input_features": SOUND, "decoder_input_ids": IDS},
        (6, 6),
    ),
    "ViT": (VISION, {"pixel_values": PIXELS}, (2, 2)),
    # Attention over time is added to all tokens but the first one.
    "Timesformer": (
        {**VISION, "num_frames": 2},
        {"pixel_values": torch.stack([PIXELS, PIXELS.flip(0)], 1)},
        (4, 4),
    ),
    # The stream is multiplied by a learned vector.
    "Doge": (
        {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2,
         "num_key_value_heads": 2, "intermediate_size": 24},
        {"input_ids": IDS},
        (2, 2),
    ),
    # The attention of the last layer returns a bias, which the layer adds.
    "GPTNeoXJapanese": (
        {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2,
         "intermediate_multiple_size": 2},
        {"input_ids": IDS},
        (1, 2),
    ),
    "Longformer": (
        {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2,
         "intermediate_size": 24, "attention_window": 4, "max_position_embeddings": 64},
        {"input_ids": IDS},
        (2, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore::spat.attention.errors.AttentionWarning")
def test_families_of_transformers(name: str, attention: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    settings, inputs, (free, count) = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    kind = getattr(transformers, f"{name}Model")
    if attention == "sdpa" and not kind._supports_sdpa:
        pytest.skip(f"{name} has no fused attention")
    model = kind._from_config(config, attn_implementation=attention).eval()

    def loss(model: Any, inputs: Any) -> Tensor:
        hidden = model(**inputs).last_hidden_state
        return (hidden * torch.arange(16.0)).mean((1, 2))

    sites = spat.find_sites(model, loss, inputs)
    names = [site.name for site in sites if site.refusal is None]
    assert (len(names), len(sites)) == (free, count)
    assert all(isinstance(site.refusal, SharedOutput | None) for site in sites)
    assert (spat.score(model, [inputs], loss).values > 0).all()
    for criterion in ("cosine", "block_influence"):
        scores = spat.score(model, [inputs], loss, criterion=criterion)
        assert all(scores[one] > 0 for one in names)
    for chosen in [[one] for one in names] + [names]:
        small = spat.prune(model, chosen, loss, inputs)
        assert record(small).after < record(small).before


def test_a_pruned_llama_is_kept_only_by_spat_save(tmp_path: Path) -> None:  # R8, R9
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "num_attention_heads": 4, **HUGGING_FACE["Llama"]}
    config = transformers.LlamaConfig(vocab_size=50, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()

    def loss(model: Any, ids: Tensor) -> Tensor:
        return F.cross_entropy(model(ids[:, :-1]).logits.mT, ids[:, 1:], reduction="none").mean(1)

    with pytest.warns(AttentionWarning, match="pass the positions explicitly"):
        small = spat.prune(model, ["model.layers.0.self_attn"], loss, IDS)
    with pytest.warns(AttentionWarning, match="with random weights: use spat.save"):
        small.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    wanted = small(IDS).logits
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    assert not torch.allclose(theirs(IDS).logits, wanted, atol=1e-4)
    spat.save(small, tmp_path / "ours")
    loaded = spat.load(transformers.LlamaForCausalLM(config), tmp_path / "ours").eval()
    assert torch.equal(loaded(IDS).logits, wanted)
    options = {"max_new_tokens": 4, "do_sample": False}
    tokens = [loaded.generate(IDS, use_cache=cached, **options) for cached in (True, False)]  # type: ignore[operator]
    assert torch.equal(*tokens)
    # By hand, the cache counts no tokens, unless the positions are given.
    with torch.no_grad():
        for positions, same in ((None, False), (torch.tensor([[7]] * 3), True)):
            cache = loaded(IDS[:, :-1], use_cache=True).past_key_values
            step = loaded(IDS[:, -1:], past_key_values=cache, position_ids=positions).logits
            assert torch.allclose(step[:, -1], wanted[:, -1], atol=1e-6) == same
