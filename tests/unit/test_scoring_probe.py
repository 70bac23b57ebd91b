"""The probe: S equals its definition, and probing does not change the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from scoring_cases import (
    ATTENTIVE,
    CHANNELS,
    MIXING,
    PLAIN,
    SOFTMAX,
    averaged,
    batches,
    mixed,
    score_frame,
    small,
    traces,
    windows,
)
from small_models import LOSSES
from torch import Tensor, nn

from spat.attention import views
from spat.attention.views import Mixing, MixingCore
from spat.models.base import Forecaster
from spat.models.informer import ProbSparseCore
from spat.models.layers.attention import AttentionCore
from spat.scoring.probe import attention_maps, loss_drops

FEW = torch.tensor([3, 50, 51, 120])


class MaskedReference(AttentionCore):
    """Attention written out by hand, with a mask M on A after the softmax."""

    def __init__(self, causal: bool) -> None:
        super().__init__(0.0, causal)
        self.M = torch.ones(())

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        queries, keys = logits.shape[2:]
        seen = [[float(k <= q or not self.causal) for k in range(keys)] for q in range(queries)]
        odds = logits.exp() * torch.tensor(seen, dtype=logits.dtype)
        A = odds / odds.sum(-1, keepdim=True)
        self.M = torch.ones_like(A, requires_grad=True)
        return torch.einsum("bhqk,bhkd->bhqd", A * self.M, v)


def summed_loss(model: Forecaster, index: Tensor) -> Tensor:
    batch = windows().batch(index)
    return ((model(batch.x) - batch.y) ** 2).flatten(1).mean(1).sum()


class MaskedSparse(MaskedReference):
    """The mask on the weights of the queries of an Informer that attend."""

    def __init__(self, core: ProbSparseCore) -> None:
        super().__init__(core.causal)
        self.core = core

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        A = self.core.weights(q, k)
        self.M = torch.ones_like(A, requires_grad=True)
        attends = self.core.allowed(q, k).any(-1, keepdim=True)
        return torch.where(attends, (A * self.M) @ v, self.core(q, k, v))


class MaskedWeights(nn.Module):
    """The mask on the weights that a `MixingCore` gets."""

    def __init__(self, core: MixingCore) -> None:
        super().__init__()
        self.core = core

    def forward(self, weights: Tensor, *values: Tensor) -> Tensor:
        self.M = torch.ones(weights.shape, dtype=torch.float64, requires_grad=True)
        mixed: Tensor = self.core(weights * self.M, *values)
        return mixed


def masked(core: nn.Module) -> Any:
    if isinstance(core, MixingCore):
        return MaskedWeights(core)
    if isinstance(core, ProbSparseCore):
        return MaskedSparse(core)
    assert type(core) in PLAIN
    return MaskedReference(core.causal)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_sensitivity_is_the_gradient_by_a_mask_of_ones_on_the_attention(name: str) -> None:
    model = small(name)
    records = traces(model, windows().batch(FEW))
    assert [r.name for r in records] == [site.name for site in model.sites()]
    shown = [trace for trace in records if trace.offers(Mixing)]
    assert len(shown) == len(records) or name not in MIXING
    scans = all(site.kind == "scan" for site in model.sites())
    assert bool(shown) != scans
    for trace in shown:
        reference = copy.deepcopy(model).eval()
        modules: Any = reference.sites()[trace.index].modules
        for module in modules:
            module.core = masked(module.core)
        summed_loss(reference, FEW).backward()
        first = 0
        for module in modules:  # the weights of several modules stand below each other
            expected = module.core.M.grad
            assert expected is not None and expected.abs().max() > 1e-6
            rows, keys = expected.shape[-2:]
            S = mixed(trace).S.flatten(0, 1)[..., first : first + rows, :keys]
            torch.testing.assert_close(S, expected, atol=1e-9, rtol=0)
            first += rows
        assert mixed(trace).S.shape[-2] == first


def test_the_cases_hold_self_causal_and_cross_attention_and_independent_channels() -> None:
    kinds = {
        (site.attention.cross, site.attention.core.causal, mixed(trace).S.shape[1])
        for name in SOFTMAX
        for model in [small(name)]
        for site, trace in zip(model.sites(), traces(model, windows().batch(FEW)), strict=True)
    }
    assert {(False, False, 1), (False, True, 1), (True, False, 1)} < kinds
    assert (False, False, CHANNELS) in kinds


@pytest.mark.parametrize("name", [*SOFTMAX, "Informer"])
def test_the_sum_of_sensitivities_is_the_gradient_by_gates(name: str) -> None:
    model = small(name)
    for trace in traces(model, windows().batch(FEW)):
        heads = mixed(trace).S.shape[2]
        gates = torch.ones(len(FEW), 1 + heads, dtype=torch.float64, requires_grad=True)

        def gated(_: nn.Module, __: Any, O: Tensor, gates: Tensor = gates) -> Tensor:  # noqa: E741
            each = (gates[:, :1] * gates[:, 1:]).repeat_interleave(len(O) // len(FEW), 0)
            return O * each[:, :, None, None]

        attention = model.sites()[trace.index].attention
        assert attention is not None
        model.eval()
        with attention.core.register_forward_hook(gated):
            (expected,) = torch.autograd.grad(summed_loss(model, FEW), gates)
        torch.testing.assert_close(trace.gate, expected, atol=1e-9, rtol=0)
        assert trace.heads is not None
        torch.testing.assert_close(trace.heads.gate, expected[:, 1:], atol=1e-9, rtol=0)
        # Queries of an Informer that do not attend get values without weights.
        by_mask = mixed(trace).S.sum((1, 3, 4))
        assert torch.allclose(by_mask, expected[:, 1:], atol=1e-9, rtol=0) == (name in SOFTMAX)
        # A gate on the output also scales its bias.
        bias = trace.output.dy @ attention.out.bias.detach()
        whole = expected[:, :1] + bias.flatten(1).sum(1, keepdim=True)
        torch.testing.assert_close(trace.output.gate, whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", [name for name in ATTENTIVE if name not in SOFTMAX])
def test_the_gate_of_a_site_without_heads_scales_its_output(name: str) -> None:
    model = small(name).eval()
    for trace in traces(model, windows().batch(FEW)):
        site = model.sites()[trace.index]
        if site.heads > 1:
            continue
        whole = len(site.modules) > 1 or not trace.offers(Mixing)
        # A site of weights has its gate on the sum of values, before the projection.
        last: Any = site.modules[-1]
        at = last if whole else last.core
        gates = torch.ones(len(FEW), 1, dtype=torch.float64, requires_grad=True)

        def gated(_: nn.Module, __: Any, y: Tensor, gates: Tensor = gates) -> Tensor:
            each = gates.repeat_interleave(len(y) // len(FEW), 0)
            return y * each.view(-1, *[1] * (y.ndim - 1))

        with at.register_forward_hook(gated):
            (expected,) = torch.autograd.grad(summed_loss(model, FEW), gates)
        assert expected.abs().min() > 1e-6
        torch.testing.assert_close(trace.gate[:, :1], expected, atol=1e-9, rtol=0)


class SharedReference(MaskedReference):
    """The sensitivity by one mask for all windows and independent channels."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        A = self.weights(q, k)
        self.M = torch.ones_like(A[0], requires_grad=True)
        return torch.einsum("bhqk,bhkd->bhqd", A * self.M, v)


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("name", SOFTMAX)
def test_send_is_the_printed_formula_of_one_mask_a_batch(name: str, size: int) -> None:
    model, cut = small(name), batches(40)
    scores = score_frame(model, windows(), cut, ["send"], batch_size=size)
    scores = scores[scores["criterion"].eq("send") & scores["batch"].eq(-1)]
    value = scores.set_index(["site", "head"])["value"]
    expected = dict.fromkeys(value.index, 0.0)
    for index in torch.split(cut[0], size):
        reference = copy.deepcopy(model).eval()
        cores = []
        for site in reference.sites():
            cores.append(SharedReference(site.attention.core.causal))
            site.attention.core = cores[-1]
        (summed_loss(reference, index) / len(index)).backward()  # type: ignore[no-untyped-call]
        for number, core in enumerate(cores):
            S = core.M.grad
            assert S is not None
            rows = []
            for query in range(S.shape[1]):
                keys = slice(0, query + 1 if core.causal else None)
                if S[:, query, keys].shape[1] > 1:
                    P = S[:, query, keys].abs().softmax(-1)
                    rows.append([P.mean(0).std(correction=0), *P.std(-1, correction=0)])
            for head, of_rows in enumerate(zip(*rows, strict=True), start=-1):
                share = len(index) / len(cut[0])
                expected[number, head] += share * float(torch.stack(of_rows).mean())
    assert value.to_dict() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", MIXING)
def test_send_in_float32_is_close_to_that_of_the_default_precision(name: str) -> None:
    """The values are equal except for rounding, since S is large enough for float32."""
    names = ["send", "send_float32"]
    model = small(name, torch.float32)
    scores = score_frame(model, windows(torch.float32), batches(32), names, statistics=False)
    value = scores.pivot_table("value", ["batch", "site", "head"], "criterion")
    relative = (value["send_float32"] / value["send"] - 1).abs()
    assert 0 < relative.max() < 2e-2


@pytest.mark.parametrize("name", ATTENTIVE)
def test_sensitivity_of_a_window_does_not_depend_on_the_others(name: str) -> None:
    model = small(name)
    together = traces(model, windows().batch(FEW))
    alone = traces(model, windows().batch(FEW[2:3]))
    for one, all_ in zip(alone, together, strict=True):
        torch.testing.assert_close(one.output.dy[0], all_.output.dy[2], atol=1e-12, rtol=1e-9)
        assert one.offers(Mixing) == all_.offers(Mixing)
        if one.offers(Mixing):
            torch.testing.assert_close(mixed(one).S[0], mixed(all_).S[2], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_probing_does_not_change_the_model(name: str) -> None:
    model = small(name, torch.float32)
    model.get_submodule(next(n for n, _ in model.named_modules() if n)).eval()
    flags = {n: m.training for n, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    trained = [p.requires_grad for p in model.parameters()]
    batch = windows(torch.float32).batch(FEW)
    probed: list[Tensor] = []
    before = copy.deepcopy(model).eval()(batch.x)
    with model.register_forward_hook(lambda _module, _args, y: probed.append(y)):
        traces(model, batch)
    averaged(model, windows(torch.float32), batches(7), {"gate": lambda r: r.gate[:, 0]})
    loss_drops(model, windows(torch.float32), batches(7), LOSSES)
    assert torch.equal(probed[0], before)
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == trained
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_failed_forward_pass_does_not_change_the_model() -> None:
    model = small("iTransformer")
    batch = windows().batch(FEW)
    with pytest.raises(RuntimeError):
        traces(model, batch._replace(x=batch.x[:, 1:]))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_the_probe_works_without_gradients_and_on_a_frozen_model() -> None:
    model = small("iTransformer")
    expected = traces(model, windows().batch(FEW))
    with torch.no_grad():
        inside = traces(model, windows().batch(FEW))
    frozen = traces(model.requires_grad_(False), windows().batch(FEW))
    for one, two, three in zip(expected, inside, frozen, strict=True):
        assert torch.equal(mixed(one).S, mixed(two).S)
        torch.testing.assert_close(mixed(one).S, mixed(three).S, atol=1e-15, rtol=0)


def test_a_removed_site_is_left_out_and_the_others_keep_their_places() -> None:
    model = small("iTransformer")
    model.sites()[1].remove()
    assert [r.index for r in traces(model, windows().batch(FEW))] == [0, 2]


def test_a_listed_site_that_does_not_run_is_an_error() -> None:
    model = small("iTransformer")
    stray = copy.deepcopy(model).sites()[0]
    model.sites = lambda: (stray,)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"encoder\.0\.self.*did not call"):
        traces(model, windows().batch(FEW))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_loss_without_a_site_is_that_of_the_model_that_lost_it(name: str) -> None:
    model = small(name)
    drops = loss_drops(model, windows(), batches(7), LOSSES)
    batch = windows().batch(torch.cat(batches(7)))

    def losses(of: Forecaster) -> Tensor:
        with torch.no_grad():
            return ((of.eval()(batch.x) - batch.y) ** 2).mean((1, 2))

    for index, site in enumerate(model.sites()):
        assert site.attention is not None
        pruned = copy.deepcopy(model)
        pruned.sites()[index].remove()
        expected = losses(pruned) - losses(model)
        torch.testing.assert_close(torch.from_numpy(drops[index]), expected, atol=1e-9, rtol=0)
    model.sites()[0].remove()
    assert not loss_drops(model, windows(), batches(7), LOSSES)[0].any()


def test_means_are_those_of_the_windows_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cut = small("PatchTST"), batches(15)
    size = {"S": lambda r: mixed(r).S.abs().sum((1, 2, 3, 4))}
    (site, *_), whole = averaged(model, windows(), cut, size), torch.cat(cut)
    expected = size["S"](traces(model, windows().batch(whole))[0])
    assert (site.site, site.name) == (0, "encoder.0.self")
    means = [expected.mean(), *(part.mean() for part in torch.split(expected, 15))]
    torch.testing.assert_close(site.means["S"], torch.stack(means), rtol=1e-9, atol=0)
    # If arrays would be large, windows are processed in parts.
    monkeypatch.setitem(views.ELEMENTS, "cpu", 1)
    (again, *_) = averaged(model, windows(), cut, size)
    torch.testing.assert_close(again.means["S"], site.means["S"], rtol=1e-12, atol=0)


def test_attention_maps_are_mean_distributions() -> None:
    model = small("Transformer")
    maps = attention_maps(model, windows(), batches(16), LOSSES, batch_size=32)
    assert list(maps) == [site.name for site in model.sites()]
    for site in model.sites():
        assert site.attention is not None
        means = maps[site.name]
        assert means.shape[0] == site.heads
        assert means.sum(-1) == pytest.approx(1.0)
        if site.attention.core.causal:
            assert not means[:, 0, 1:].any()


@pytest.mark.parametrize("cut", [[], [torch.arange(3), torch.arange(0)]])
def test_a_batch_without_windows_is_an_error(cut: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        averaged(small("iTransformer"), windows(), cut, {})
