"""Every criterion against a slow implementation of its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from scoring_cases import (
    ATTENTIVE,
    MIXING,
    SOFTMAX,
    batches,
    mixed,
    score_frame,
    small,
    traces,
    windows,
)
from small_models import LOSSES
from torch import Tensor

from spat.attention.site import Site
from spat.attention.views import Residual, Trace
from spat.models.base import Forecaster
from spat.models.layers.attention import AttentionCore
from spat.models.registry import MODELS
from spat.pipeline.scores_frame import aggregate, frame
from spat.scoring.names import offered
from spat.scoring.reductions import dispersion
from spat.scoring.scores import score

GRADIENT = (
    "send", "send_reverse", "send_window", "send_abs", "send_shared", "send_layer",
    "send_keys", "send_unit", "michel", "taylor", "fisher", "snip",
)  # fmt: skip
N = 40  # windows

Place = tuple[int, int]


def values(model: Forecaster, *criteria: str) -> list[dict[Place, float]]:
    """(site, head) -> score, for each criterion."""
    return _values(aggregate(score_frame(model, windows(), batches(16), criteria)), criteria)


@cache
def scored(name: str) -> pd.DataFrame:
    return aggregate(score_frame(small(name), windows(), batches(16)))


def known(name: str, *criteria: str) -> list[dict[Place, float]]:
    """The scores of a newly built model, computed once."""
    return _values(scored(name), criteria)


@cache
def shown(name: str) -> list[Trace]:
    return traces(small(name), windows().batch(torch.cat(batches(16))))


def attention_of(name: str, trace: Trace) -> Any:
    """The module that gives the output of a site."""
    return small(name).sites()[trace.index].modules[-1]


def scored_heads(trace: Trace) -> range:
    """The heads of a site that have scores of their own."""
    return range(mixed(trace).A.shape[2] if trace.by_head else 0)


def mean_of_rows(values: Tensor, allowed: Tensor, measure: Callable[[Tensor], Tensor]) -> float:
    """Mean of a measure of rows [..., keys] with several allowed keys; values [W, R, Q, K].

    `allowed` is [Q, K], or of the shape of the values: then windows may have other rows.
    """
    if allowed.ndim == 2:
        rows = [values[..., q, keys] for q, keys in enumerate(allowed) if keys.sum() > 1]
        return float(torch.stack([measure(row).mean() for row in rows]).mean())
    windows = []
    for value, window in zip(values, allowed.expand_as(values), strict=True):
        pairs = zip(value.flatten(0, -2), window.flatten(0, -2), strict=True)
        measured = [measure(row[keys]) for row, keys in pairs if keys.sum() > 1]
        windows.append(torch.stack(measured).mean() if measured else torch.zeros(()).double())
    return float(torch.stack(windows).mean())


def slow_send(S: Tensor, allowed: Tensor, power: int = 0) -> float:
    """Mean over rows of std over allowed keys of softmax, times keys^power; S [W, R, Q, K]."""

    def measure(row: Tensor) -> Tensor:
        return row.softmax(-1).std(-1, correction=0) * row.shape[-1] ** power

    return mean_of_rows(S, allowed, measure)


def of_head(allowed: Tensor, head: int) -> Tensor:
    if allowed.ndim == 2:
        return allowed
    return allowed[:, :, min(head, allowed.shape[2] - 1)]


def _values(scores: pd.DataFrame, criteria: tuple[str, ...]) -> list[dict[Place, float]]:
    by_place = scores.set_index(["site", "head"])
    return [by_place.loc[by_place["criterion"] == c, "value"].to_dict() for c in criteria]


@pytest.mark.parametrize("name", MIXING)
def test_readings_of_send(name: str) -> None:
    send, by_size, by_keys, layer, unit, reverse = known(
        name, "send_window", "send_abs", "send_keys", "send_layer", "send_unit", "send_reverse"
    )
    (printed,) = known(name, "send")
    for r in shown(name):
        m = mixed(r)
        H = m.S.shape[2]
        every = m.allowed.expand_as(m.S)
        size = torch.stack([w[of].abs().mean() for w, of in zip(m.S, every, strict=True)])
        scaled = m.S / size.view(-1, 1, 1, 1, 1)
        slow: list[list[float]] = []
        for h in range(H):
            S, of = m.S[:, :, h], of_head(m.allowed, h)
            readings = slow_send(S, of), slow_send(S.abs(), of), slow_send(S, of, 1)
            slow.append([*readings, slow_send(scaled[:, :, h], of)])
            if r.by_head:
                values = [reading[r.index, h] for reading in (send, by_size, by_keys, unit)]
                assert values == pytest.approx(slow[-1], rel=1e-7)
        whole = [reading[r.index, -1] for reading in (send, by_size, by_keys, unit)]
        assert whole == pytest.approx([sum(heads) / H for heads in zip(*slow, strict=True)])
        of = m.allowed if m.allowed.ndim == 2 else m.allowed.any(2)
        assert layer[r.index, -1] == pytest.approx(slow_send(m.S.sum(2), of), rel=1e-7)
    assert reverse == {place: -value for place, value in printed.items()}


@pytest.mark.parametrize("name", MIXING)
def test_send_shared_has_one_mask_for_32_windows(name: str) -> None:
    (shared,) = known(name, "send_shared")
    for r in shown(name):
        m = mixed(r)
        heads = []
        for h in range(m.S.shape[2]):
            groups = []
            for windows_of in (slice(0, 32), slice(32, N)):
                S, of = m.S[windows_of, :, h], of_head(m.allowed, h)
                if of.ndim > 2 and len(of) > 1:
                    of = of[windows_of].any(0, keepdim=True)
                groups.append(slow_send(S.mean(0, keepdim=True), of))
            heads.append((32 * groups[0] + 8 * groups[1]) / N)
        assert shared[r.index, -1] == pytest.approx(sum(heads) / len(heads), rel=1e-7)
        for h in scored_heads(r):
            assert shared[r.index, h] == pytest.approx(heads[h], rel=1e-7)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_gate_gradients(name: str) -> None:
    michel, taylor, fisher, snip = known(name, "michel", "taylor", "fisher", "snip")
    for r in shown(name):
        gates = dict(enumerate(r.gate.T, start=-1))
        if name in SOFTMAX:
            heads = mixed(r).S.sum((1, 3, 4))  # [N, H]
            gates = {-1: heads.sum(1), **dict(enumerate(heads.T))}
        for h, g in gates.items():
            if h >= 0 and not r.by_head:
                continue
            assert michel[r.index, h] == pytest.approx(float(g.abs().mean()))
            assert taylor[r.index, h] == pytest.approx(abs(float(g.mean())), abs=1e-12)
            assert fisher[r.index, h] == pytest.approx(float((g**2).mean()))
        if name not in MIXING:
            continue
        m = mixed(r)
        assert snip[r.index, -1] == pytest.approx(float(m.S.abs().sum()) / N)
        for h in scored_heads(r):
            assert snip[r.index, h] == pytest.approx(float(m.S[:, :, h].abs().sum()) / N)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_stream_and_the_output_projection(name: str) -> None:
    cosine, block, wanda, flap = known(name, "cosine", "block_influence", "wanda", "flap")
    for r in shown(name):
        attention, o = attention_of(name, r), r.output
        pairs = []
        if isinstance(o, Residual):
            pairs = [(cosine, o.stream, o.stream + o.y), (block, o.before, o.after)]
        assert pairs or "Residual" not in MODELS[name].views
        assert bool(pairs) == (r.index in {place for place, _ in cosine})
        for scores, start, end in pairs:
            cos = (start * end).sum(-1) / (start.norm(dim=-1) * end.norm(dim=-1))
            cos = cos.nan_to_num()  # zero has no direction
            cos[(start == 0).all(-1) & (end == 0).all(-1)] = 1  # a zero vector does not turn
            assert scores[r.index, -1] == pytest.approx(float((1 - cos).mean()))
        assert r.heads is not None or name not in MIXING
        if r.heads is None:
            continue
        H = len(r.heads.W_o)
        W = attention.out.weight.detach() if hasattr(attention, "out") else r.heads.W_o[0]
        X = r.heads.O.transpose(2, 3).reshape(-1, W.shape[1])  # all tokens of all windows
        by_column = W.abs().sum(0) * X.norm(dim=0) / math.sqrt(N)
        fluctuation = X.var(0, correction=0) * W.square().sum(0)
        D = W.shape[1] // H
        for h in scored_heads(r):
            columns = slice(h * D, (h + 1) * D)
            assert wanda[r.index, h] == pytest.approx(float(by_column[columns].sum()))
            assert flap[r.index, h] == pytest.approx(float(fluctuation[columns].sum()))
        assert wanda[r.index, -1] == pytest.approx(float(by_column.sum()))
        assert flap[r.index, -1] == pytest.approx(float(fluctuation.sum()))


@pytest.mark.parametrize("name", MIXING)
def test_magnitude_is_the_norm_of_the_map_from_x_to_the_output(name: str) -> None:
    (scores,) = known(name, "magnitude")
    for r in shown(name):
        attention = attention_of(name, r)
        if hasattr(attention, "v"):  # SAMformer has no output projection
            W_v = attention.v.weight.detach()
            W_o = torch.eye(len(W_v), dtype=W_v.dtype)
        else:
            fused = attention.qkv if hasattr(attention, "qkv") else attention.kv
            W_v = fused.weight.detach().chunk(3 if hasattr(attention, "qkv") else 2)[-1]
            W_o = attention.out.weight.detach()
        H = getattr(attention, "heads", 1)
        D = len(W_v) // H
        norms = [(W_o[:, h * D : h * D + D] @ W_v[h * D : h * D + D]).norm() for h in range(H)]
        for h in scored_heads(r):
            assert scores[r.index, h] == pytest.approx(float(norms[h]))
        assert scores[r.index, -1] == pytest.approx(float(torch.stack(norms).norm()))


@pytest.mark.parametrize("name", MIXING)
def test_the_maps(name: str) -> None:
    sure, spread, even = known(name, "entropy", "attention_std", "uniformity")
    for r in shown(name):
        m = mixed(r)
        H = m.A.shape[2]
        entropies, deviations = [], []
        for h in range(H):
            A, of = m.A[:, :, h], of_head(m.allowed, h)
            entropies.append(mean_of_rows(A, of, relative_entropy))
            deviations.append(mean_of_rows(A, of, lambda p: p.std(-1, correction=0)))
        for h in scored_heads(r):
            assert even[r.index, h] == pytest.approx(entropies[h])
            assert sure[r.index, h] == pytest.approx(1 - entropies[h])
            assert spread[r.index, h] == pytest.approx(deviations[h])
        assert even[r.index, -1] == pytest.approx(sum(entropies) / H)
        assert spread[r.index, -1] == pytest.approx(sum(deviations) / H)


def relative_entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1) / math.log(p.shape[-1])


class Uniform(AttentionCore):
    """Attention that pools: what a manipulated model looks like."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weights(q, k).to(v) @ v

    def weights(self, q: Tensor, k: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return super().weights(torch.zeros_like(q), k, dtype)


@pytest.mark.parametrize("name", MIXING)
def test_uniform_attention_is_uniform(name: str) -> None:
    model = small(name)
    for site in model.sites():
        modules: Any = site.modules
        for module in modules:
            if name == "Autoformer":  # without queries all delays correlate alike
                torch.nn.init.zeros_(module.q.weight)
                torch.nn.init.zeros_(module.q.bias)
            else:
                module.core = Uniform(0.0, module.core.causal)
    scored = aggregate(score_frame(model, windows(), batches(16), ["send", "attention_std"]))
    values = scored.groupby("criterion")["value"]
    assert values.min()["uniformity"] == pytest.approx(1.0)
    assert values.max()["attention_std"] == pytest.approx(0.0, abs=1e-15)
    # A constant A leaves V and the gradient to tell sites apart.
    assert values.min()["send"] > 0


def test_position() -> None:
    first, last = known("iTransformer", "depth_first", "depth_last")
    assert first == {(0, -1): 0.0, (1, -1): 1.0, (2, -1): 2.0}
    assert last == {(0, -1): 0.0, (1, -1): -1.0, (2, -1): -2.0}


def test_send_is_linear_in_the_scale_of_the_loss() -> None:
    model = small("iTransformer")
    names = ("send", "send_window", "send_keys", "send_unit", "michel", "fisher")

    def scaled(scale: float) -> dict[str, dict[Place, float]]:
        def losses(of: Any, batch: Any) -> Tensor:
            return scale * LOSSES(of, batch)

        scores = score(model, windows(), batches(16), losses, names, batch_size=32)
        return dict(zip(names, _values(aggregate(frame(scores)), names), strict=True))

    before, once, again = scaled(1.0), scaled(1e-3), scaled(1e-5)
    for place in before["send"]:
        # Where S is small the softmax is linear, to the first order in S.
        for reading in ("send", "send_window"):
            expected = 1e-2 * once[reading][place]
            assert again[reading][place] == pytest.approx(expected, rel=1e-3)
        assert again["send_keys"][place] == pytest.approx(1e-2 * once["send_keys"][place], rel=1e-3)
        assert again["michel"][place] == pytest.approx(1e-5 * before["michel"][place])
        assert again["fisher"][place] == pytest.approx(1e-10 * before["fisher"][place])
        assert again["send_unit"][place] == pytest.approx(before["send_unit"][place])


def test_rows_count_the_keys_that_a_query_may_attend_to() -> None:
    S = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    deviations = dispersion(S, causal)
    assert deviations.shape == (2, 3, 4)  # the first query has a single key
    for query in range(1, 5):
        shares = S[:, :, query, : query + 1].softmax(-1)
        torch.testing.assert_close(deviations[:, :, query - 1], shares.std(-1, correction=0))
    # Later keys are not used.
    assert torch.equal(dispersion(S + 9 * torch.ones(5, 5).triu(1), causal), deviations)
    assert dispersion(S[..., :1], torch.ones(5, 1, dtype=torch.bool)).shape == (2, 3, 0)


def silence(site: Site, projection: str) -> None:
    attention: Any = site.modules[-1]
    with torch.no_grad():
        if site.kind in ("router", "fourier"):
            attention.out.bias.zero_()  # their gate is on the whole output
        if projection == "output" and hasattr(attention, "out"):
            attention.out.weight.zero_()
        elif site.kind == "scan":  # it reads what its convolution gives
            attention.kernel.zero_()
            attention.kernel_bias.zero_()
        elif site.kind == "fourier":  # it transforms queries
            attention.q.weight.zero_()
            attention.q.bias.zero_()
        elif hasattr(attention, "v"):
            attention.v.weight.zero_()
            attention.v.bias.zero_()
        else:
            fused = attention.qkv if hasattr(attention, "qkv") else attention.kv
            inner = attention.out.in_features
            fused.weight[-inner:] = 0.0
            fused.bias[-inner:] = 0.0


@pytest.mark.parametrize("projection", ["value", "output"])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_a_silent_site_scores_zero_in_every_gradient_criterion(name: str, projection: str) -> None:
    model = small(name)
    index = min(1, len(model.sites()) - 1)
    silence(model.sites()[index], projection)
    gradient = [criterion for criterion in GRADIENT if criterion in offered(MODELS[name].views)]
    assert gradient == list(GRADIENT) or name not in MIXING
    scores = aggregate(score_frame(model, windows(), batches(16), gradient))
    scores = scores[scores["criterion"].isin(gradient)]
    silent = scores["site"] == index
    assert set(scores["criterion"]) == set(gradient)
    assert scores.loc[silent, "value"].abs().max() < 1e-16
    assert not (scores.loc[~silent, "value"].abs() <= 1e-12).any()
    if name not in MIXING:
        return
    # magnitude and wanda notice it, too, without a gradient
    magnitude, wanda, rounded = values(model, "magnitude", "wanda", "send_float32")
    # In float32 the mean of equal shares is rounded, so that their deviation is not quite zero.
    assert 0 <= rounded[index, -1] < 1e-8
    assert magnitude[index, -1] == wanda[index, -1] == 0.0


@pytest.mark.parametrize(("keys", "least", "most"), [(7, 0, 1e-4), (42, 0, 1e-4), (321, 0.05, 1)])
def test_send_needs_float64_for_hundreds_of_keys(keys: int, least: float, most: float) -> None:
    """With hundreds of keys SEND is biased in float32, and lost with a mean loss over the batch."""
    # As in an iTransformer: A and dL/dO are both divided by the number of variates.
    S = 0.01 / keys**2 * torch.randn(256, keys, generator=torch.Generator().manual_seed(0)).double()
    exact = dispersion(S, torch.ones(256, keys, dtype=torch.bool))
    # The softmax is linear here, which gives the truth without one.
    torch.testing.assert_close(exact, S.std(-1, correction=0) / keys, rtol=1e-3, atol=0)

    def in_float32(values: Tensor) -> Tensor:
        return values.float().softmax(-1).std(-1, correction=0).double()

    assert least <= abs(in_float32(S).mean() / exact.mean() - 1) < most
    left = in_float32(S / 32).mean() / (exact.mean() / 32)
    assert left < 0.1 if keys == 321 else abs(left - 1) < 0.05
