"""Views of sites that are not one softmax attention, and of cases that are padded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spat.attention.site import Place, Site
from spat.attention.views import (
    Mixing,
    MixingCore,
    Output,
    QueryKey,
    Residual,
    SharedMask,
    Trace,
    Weighted,
)
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.scoring import criteria, send
from spat.scoring.names import VIEWS, offered
from spat.scoring.probe import loss_drops, observe
from spat.scoring.reductions import dispersion, over_rows
from spat.scoring.scores import SiteScores, score

WIDTH, TOKENS = 6, 5


class Cases:
    """Random windows [N, TOKENS, WIDTH]; the first half of a batch's loss is no different."""

    def __init__(self, count: int = 12) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(count, TOKENS, WIDTH, generator=generator, dtype=torch.float64)

    def batch(self, index: Tensor) -> Tensor:
        return self.x[index]


def losses(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - 1).square().mean((1, 2))  # type: ignore[no-any-return]


class Delays(MixingCore):
    """Sums rolled values under one row of weights a window, which all heads share."""

    def forward(self, weights: Tensor, values: Tensor) -> Tensor:
        rolled = torch.stack([values.roll(i, 1) for i in range(weights.shape[-1])])
        return torch.einsum("bk,kbtw->btw", weights[:, 0, 0], rolled)


class Correlation(nn.Module):
    """A site whose weights come from the input, but from no queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 1)
        self.core = Delays()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(1).transpose(1, 2).unsqueeze(1)[..., :3]
        return self.core(weights, x)  # type: ignore[no-any-return]


class Scan(nn.Module):
    """A site without weights: a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.cumsum(1) / torch.arange(1, x.shape[1] + 1).unsqueeze(1)


class Layer(nn.Module):
    """x + inner(x), where `inner` may be removed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: nn.Module | None = inner

    def forward(self, x: Tensor) -> Tensor:
        return x if self.inner is None else x + self.inner(x)


class Router(nn.Module):
    """Tokens write to two routers and read from them."""

    def __init__(self) -> None:
        super().__init__()
        self.routers = nn.Parameter(torch.randn(1, 2, WIDTH))
        self.sender: nn.Module | None = MultiHeadAttention(WIDTH, 2, dropout=0.0, cross=True)
        self.receiver: nn.Module | None = MultiHeadAttention(WIDTH, 2, dropout=0.0, cross=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.sender is None or self.receiver is None:
            return x
        held = self.sender(self.routers.expand(len(x), -1, -1), x)
        return x + self.receiver(x, held)  # type: ignore[no-any-return]


class Stack(nn.Module):
    """A model of one's own: layers one after the other, and the sites in them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]


def built(*layers: nn.Module) -> Stack:
    torch.manual_seed(0)
    model = Stack(*layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def inner_site(model: Stack, index: int, kind: Any, heads: int = 1) -> Site:
    return Site(f"layer.{index}", model.layers[index], "inner", heads, kind)


def scored(model: nn.Module, sites: list[Site], *names: str) -> dict[str, list[SiteScores]]:
    index = torch.arange(12)
    asked = list(names) or None
    scores = score(model, Cases(), [index], losses, asked, batch_size=6, sites=sites)
    return {
        name: [one for one in scores if one.criterion == name]
        for name in {s.criterion for s in scores}
    }


def gated(model: nn.Module, module: nn.Module) -> Tensor:
    """Gradient of each window's loss by a factor on the output of a module, [W]."""
    x = Cases().x
    gate = torch.ones(len(x), 1, 1, dtype=torch.float64, requires_grad=True)
    with module.register_forward_hook(lambda _module, _args, y: y * gate):
        (gradient,) = torch.autograd.grad(losses(model, x).sum(), gate)
    return gradient.flatten()


def test_a_mixing_core_shows_its_weights_and_their_sensitivity() -> None:
    model = built(Layer(Correlation()))
    sites = [inner_site(model, 0, "correlation")]
    (trace,) = observe(model, Cases().x, losses, sites)
    assert trace.mixing.S.shape == (12, 1, 1, 1, 3)
    # S = dL/dM for a mask on the weights, and its sum is the gradient by a gate on the output.
    mask = torch.ones(12, 1, 1, 3, dtype=torch.float64, requires_grad=True)
    core = sites[0].attention.core
    with core.register_forward_pre_hook(lambda _module, args: (args[0] * mask, args[1])):
        (expected,) = torch.autograd.grad(losses(model, Cases().x).sum(), mask)
    torch.testing.assert_close(trace.mixing.S[:, 0], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(trace.gate[:, 0], gated(model, sites[0].attention))
    torch.testing.assert_close(trace.gate[:, :1], trace.output.gate)
    # Heads share the weights, so only the site has a score.
    values = scored(model, sites, "send", "michel", "entropy")
    assert {one.value.shape for scores in values.values() for one in scores} == {(2, 1)}


def test_a_frozen_mixing_core_shows_the_same() -> None:
    model = built(Layer(Correlation()))
    sites = [inner_site(model, 0, "correlation")]
    expected = observe(model, Cases().x, losses, sites)[0].gate
    model.requires_grad_(False)
    torch.testing.assert_close(observe(model, Cases().x, losses, sites)[0].gate, expected)


def test_complex_weights_have_the_sensitivity_of_a_real_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    W, other = torch.randn(2, 1, 1, 4, 6, dtype=torch.complex128, generator=generator)

    def loss(weights: Tensor) -> Tensor:
        return (weights * other).sum().abs().square()

    mask = torch.ones(W.shape, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(W * mask), mask)
    weights = W.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(weights), weights)
    allowed = torch.ones(4, 6, dtype=torch.bool)
    mixing = Weighted(W, gradient, allowed).mixing(torch.float64)
    torch.testing.assert_close(mixing.S, expected)
    torch.testing.assert_close(mixing.A, W.abs())


def test_a_site_without_weights_is_scored_by_its_output_alone() -> None:
    model = built(Layer(Scan()), Layer(Correlation()))
    sites = [inner_site(model, 0, "scan"), inner_site(model, 1, "correlation")]
    traces = observe(model, Cases().x, losses, sites)
    assert [t.offers(view) for t in traces for view in (Output, Mixing)] == [
        True,
        False,
        True,
        True,
    ]
    torch.testing.assert_close(traces[0].gate[:, 0], gated(model, sites[0].attention))
    by_criterion = scored(model, sites)
    narrow = set(offered(["Output", "Residual"])) - {"random", "loss_drop_val"}
    assert {name for name, scores in by_criterion.items() if len(scores) == 2} == narrow
    assert {"send", "uniformity", "snip"} <= by_criterion.keys()
    assert [one.site for one in by_criterion["send"]] == [1]
    with pytest.raises(
        ValueError, match=r"'send' needs the view Mixing, which site 'layer\.0'"
    ) as e:
        scored(model, sites, "send")
    assert "choose from block_influence, cosine, depth_first" in str(e.value)
    sites[0].remove()
    assert sites[0].attention is None
    assert [trace.index for trace in observe(model, Cases().x, losses, sites)] == [1]


def test_a_router_pair_is_one_site_of_two_modules() -> None:
    model = built(Router())
    router = model.layers[0]
    site = Site("layer.0", router, "sender", 1, "router", (Place(router, "receiver"),))
    assert site.modules == (router.sender, router.receiver)
    assert site.owners == (router,)
    (trace,) = observe(model, Cases().x, losses, [site])
    # Two rows of five keys, and five rows of two.
    assert trace.mixing.A.shape == (12, 1, 2, 2 + TOKENS, TOKENS)
    assert trace.mixing.allowed.sum(-1).tolist() == 2 * [TOKENS] + TOKENS * [2]
    torch.testing.assert_close(trace.mixing.A.sum(-1), torch.ones(12, 1, 2, 7).double())
    torch.testing.assert_close(trace.gate[:, 0], gated(model, router.receiver))
    dropped = loss_drops(model, Cases(), [torch.arange(12)], losses, [site])[0]
    scores = scored(model, [site], "send", "michel", "loss_drop")
    assert {one.value.shape[1] for (one,) in scores.values()} == {1}
    with torch.no_grad():
        before = losses(model, Cases().x)
        site.remove()
        assert router.sender is router.receiver is None
        np.testing.assert_allclose(dropped, losses(model, Cases().x) - before)


def test_a_shared_module_is_one_site_that_is_called_twice() -> None:
    shared = MultiHeadAttention(WIDTH, 2, dropout=0.0)
    model = built(Layer(shared), Layer(shared))
    places = tuple(Place(layer, "inner") for layer in model.layers)
    site = Site("layers", *places[0], 2, others=places[1:])
    assert site.modules == (shared,)
    assert site.owners == tuple(model.layers)
    (trace,) = observe(model, Cases().x, losses, [site])
    assert trace.heads is not None
    assert trace.mixing.S.shape == (12, 1, 2, 2 * TOKENS, TOKENS)
    torch.testing.assert_close(trace.output.gate[:, 0], gated(model, shared))
    torch.testing.assert_close(trace.mixing.S.sum((1, 3, 4)), trace.heads.gate)
    site.remove()
    assert [layer.inner for layer in model.layers] == [None, None]


class Sparse(AttentionCore):
    """The first query attends in some windows and heads; the others get the mean of the values."""

    def allowed(self, q: Tensor, k: Tensor) -> Tensor:
        attends = q[..., 0].sum(-1) > 0  # [..., H]
        rows = torch.arange(q.shape[-2]) == 0
        joint = attends[..., None, None] & rows.unsqueeze(-1)
        return joint.expand(*q.shape[:-1], k.shape[-2])

    def weights(self, q: Tensor, k: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return super().weights(q, k, dtype) * self.allowed(q, k)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        none = ~self.allowed(q, k)[..., :1]
        return self.weights(q, k).to(v) @ v + none * v.mean(-2, keepdim=True)


def test_queries_that_do_not_attend_are_rows_without_keys() -> None:
    attention = MultiHeadAttention(WIDTH, 2, core=Sparse(0.0))
    model = built(Layer(attention))
    site = inner_site(model, 0, "self", 2)
    (trace,) = observe(model, Cases().x, losses, [site])
    allowed = trace.mixing.allowed
    assert allowed.shape == (12, 1, 2, TOKENS, TOKENS)
    assert not allowed[..., 1:, :].any()
    assert 0 < int(allowed[..., 0, 0].sum()) < 24
    assert not trace.mixing.S[~allowed].any()
    rows = trace.mixing.S[..., 0, :].softmax(-1).std(-1, correction=0) * allowed[..., 0, 0]
    torch.testing.assert_close(send.send_window(trace)[:, 1:], rows.squeeze(1))
    values = scored(model, [site], "send", "send_window", "entropy", "send_unit", "send_float32")
    assert all(np.isfinite(one.value).all() for scores in values.values() for one in scores)


class Whole(Correlation):
    """A correlation whose values and output are projected without an axis of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def head_weights(self) -> tuple[Tensor, Tensor]:
        return self.out.weight.detach().unsqueeze(0), self.value.weight.detach().unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(1).transpose(1, 2).unsqueeze(1)[..., :3]
        return self.out(self.core(weights, self.value(x)))  # type: ignore[no-any-return]


def test_a_site_of_one_head_offers_its_projection() -> None:
    model = built(Layer(Whole()))
    site = inner_site(model, 0, "correlation")
    (trace,) = observe(model, Cases().x, losses, [site])
    assert trace.heads is not None
    assert trace.heads.O.shape == (12, 1, 1, TOKENS, WIDTH)
    torch.testing.assert_close(trace.heads.gate, trace.mixing.S.sum((1, 3, 4)))
    scores = scored(model, [site])
    assert scores.keys() >= set(offered(VIEWS)) - {"random", "loss_drop_val", "send_train"}
    W_o, W_v = (linear.weight.detach() for linear in (site.attention.out, site.attention.value))
    expected = (W_o @ W_v).norm()
    assert scores["magnitude"][0].value[0, 0] == pytest.approx(float(expected))


class Bare(nn.Module):
    """A model that holds its only site itself, with another number of tokens at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: nn.Module | None = MultiHeadAttention(WIDTH, 2)
        self.head = nn.Linear(TOKENS, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.inner is None else x + self.inner(x)
        return self.head(x.transpose(1, 2))  # type: ignore[no-any-return]


def test_without_a_surrounding_layer_a_site_is_its_own_block() -> None:
    torch.manual_seed(0)
    model = Bare().double()
    site = Site("encoder.0.self", model, "inner", 2)
    scores = scored(model, [site], "cosine", "block_influence")
    np.testing.assert_array_equal(scores["cosine"][0].value, scores["block_influence"][0].value)


class PreNorm(nn.Module):
    """x + inner(norm(x)), then a map, so that the layer is more than its site."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inner: nn.Module | None = MultiHeadAttention(WIDTH, 2)
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.inner is not None:
            x = x + self.inner(self.norm(x))
        return self.map(x)  # type: ignore[no-any-return]


def test_after_a_norm_a_site_is_compared_with_the_residual_stream() -> None:
    model = built(PreNorm(), PreNorm())
    sites = [
        Site(f"{i}", layer, "inner", 2, added_to="layer") for i, layer in enumerate(model.layers)
    ]
    summed: list[Tensor] = []
    for layer in model.layers:
        layer.map.register_forward_hook(lambda _m, args, _y: summed.append(args[0]))
    for trace, expected in zip(observe(model, Cases().x, losses, sites), summed, strict=True):
        output = trace.output
        assert isinstance(output, Residual)
        torch.testing.assert_close((output.stream + output.y)[:, 0], expected)
        assert not torch.allclose(output.x, output.stream)


class Widening(nn.Module):
    """A site whose output has another width, and that is added to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: nn.Module | None = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], 2 * WIDTH) if self.inner is None else self.inner(x)


def test_a_site_without_a_residual_is_not_compared_with_its_input() -> None:
    model = built(Widening(), nn.Linear(2 * WIDTH, WIDTH))
    site = Site("layer.0", model.layers[0], "inner", 1, "cross", added_to="nothing")
    (trace,) = observe(model, Cases().x, losses, [site])
    assert trace.output.y.shape == (12, 1, TOKENS, 2 * WIDTH)
    assert [trace.offers(view) for view in (Output, Residual, Mixing)] == [True, False, False]
    expected = set(offered(["Output"])) - {"random", "loss_drop_val"}
    assert scored(model, [site]).keys() == expected
    with pytest.raises(
        ValueError, match=r"'cosine' needs the view Residual, which site 'layer\.0'"
    ):
        scored(model, [site], "cosine")


# Cases that are padded: the keys that a row may use differ by window.


def random_mixing(allowed: Tensor, windows: int = 4, rows: int = 5) -> Mixing:
    shape = (windows, 1, 2, rows, 5)
    generator = torch.Generator().manual_seed(1)
    A, S = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    hidden = ~allowed
    A = A.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0.0)
    return Mixing(A, S.masked_fill(hidden, 0.0), allowed)


class Given:
    """A source that returns what it was given."""

    def __init__(self, mixing: Mixing) -> None:
        self._mixing = mixing
        self.elements = mixing.A[0].numel()

    def mixing(self, dtype: torch.dtype) -> Mixing:
        return self._mixing

    def cut(self, windows: slice) -> Given:
        raise NotImplementedError


def trace_of(mixing: Mixing) -> Trace:
    x = torch.zeros(len(mixing.A), 1, 1, 1)
    return Trace(0, "padded", Output(x, x, x), None, Given(mixing))


PER_WINDOW = {
    "send_window": send.send_window,
    "send_abs": send.send_abs,
    "send_layer": send.send_layer,
    "send_keys": send.send_keys,
    "send_unit": send.send_unit,
    "uniformity": criteria.uniformity,
    "attention_std": criteria.attention_std,
}


@pytest.mark.parametrize("name", PER_WINDOW)
def test_a_leading_axis_of_equal_masks_changes_nothing(name: str) -> None:
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    plain, led = random_mixing(causal), random_mixing(causal.expand(4, 1, 1, 5, 5))
    expected = PER_WINDOW[name](trace_of(plain))
    torch.testing.assert_close(PER_WINDOW[name](trace_of(led)), expected)


@pytest.mark.parametrize("function", [send.send, send.send_float32, send.send_shared])
def test_a_shared_mask_allows_what_any_window_allows(function: Any) -> None:
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    S = torch.randn(1, 3, 2, 5, 5, dtype=torch.float64)
    expected = function(SharedMask(0, "site", S, causal))
    for lead in ((1, 1, 1), (1, 3, 1), (1, 3, 2)):
        led = causal.expand(*lead, 5, 5)
        torch.testing.assert_close(function(SharedMask(0, "site", S, led)), expected)


@pytest.mark.parametrize("name", PER_WINDOW)
def test_padded_cases_score_like_unpadded_ones(name: str) -> None:
    lengths = [5, 3, 4, 2]
    real = torch.stack([torch.arange(5) < n for n in lengths])
    # Rows and keys beyond the length of a case do not exist.
    allowed = (real.unsqueeze(-1) & real.unsqueeze(-2))[:, None, None]
    mixing = random_mixing(allowed)
    value = PER_WINDOW[name](trace_of(mixing))
    for w, n in enumerate(lengths):
        whole = torch.ones(n, n, dtype=torch.bool)
        cut = Mixing(mixing.A[w : w + 1, ..., :n, :n], mixing.S[w : w + 1, ..., :n, :n], whole)
        torch.testing.assert_close(value[w : w + 1], PER_WINDOW[name](trace_of(cut)))


def test_padded_rows_do_not_count() -> None:
    values = torch.randn(3, 1, 2, 4, 6, dtype=torch.float64)
    allowed = torch.ones(3, 1, 2, 4, 6, dtype=torch.bool)
    allowed[0, :, :, 1] = False  # no key
    allowed[1, :, 0, 2, 1:] = False  # one key
    mean = over_rows(dispersion(values, allowed), allowed)
    assert mean.isfinite().all()
    full = torch.ones(3, 6, dtype=torch.bool)
    kept = [0, 2, 3]
    expected = over_rows(dispersion(values[:1, :, :, kept], full), full)
    torch.testing.assert_close(mean[:1], expected)
    kept = [0, 1, 3]
    torch.testing.assert_close(
        mean[1, :1], over_rows(dispersion(values[1:2, :, :1, kept], full), full)[0]
    )
    nothing = torch.zeros(3, 1, 1, 4, 6, dtype=torch.bool)
    assert not over_rows(dispersion(values, nothing), nothing).any()


def test_a_trace_is_cut_by_windows() -> None:
    model = built(Layer(MultiHeadAttention(WIDTH, 2, dropout=0.0)), Layer(Correlation()))
    sites = [inner_site(model, 0, "self", 2), inner_site(model, 1, "correlation")]
    for trace in observe(model, Cases().x, losses, sites):
        assert trace.source is not None
        part = trace.source.cut(slice(4, 7)).mixing(torch.float64)
        whole = trace.source.mixing(torch.float64)
        torch.testing.assert_close(part.S, whole.S[4:7])
        torch.testing.assert_close(part.A, whole.A[4:7])
    assert isinstance(observe(model, Cases().x, losses, sites)[0].source, QueryKey)
