"""Every criterion against its definition, written out slowly."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from scoring_cases import ATTENTIVE, batches, mixed, score_frame, small, traces, windows
from small_models import LOSSES
from torch import Tensor

from spat.attention.views import Trace
from spat.models.base import Forecaster
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.pipeline.scores_frame import aggregate, frame
from spat.scoring.reductions import dispersion
from spat.scoring.scores import score

GRADIENT = (
    "send", "send_reverse", "send_window", "send_abs", "send_shared", "send_layer",
    "send_keys", "send_unit", "michel", "taylor", "fisher", "snip",
)  # fmt: skip
N = 40  # windows

Place = tuple[int, int]


def values(model: Forecaster, *criteria: str) -> list[dict[Place, float]]:
    """Of each criterion, (site, head) -> score."""
    return _values(aggregate(score_frame(model, windows(), batches(16), criteria)), criteria)


@cache
def scored(name: str) -> pd.DataFrame:
    return aggregate(score_frame(small(name), windows(), batches(16)))


def known(name: str, *criteria: str) -> list[dict[Place, float]]:
    """The same of a model as it is built, scored once."""
    return _values(scored(name), criteria)


@cache
def shown(name: str) -> list[Trace]:
    return traces(small(name), windows().batch(torch.cat(batches(16))))


def attention_of(name: str, trace: Trace) -> MultiHeadAttention:
    attention = small(name).sites()[trace.index].attention
    assert isinstance(attention, MultiHeadAttention)
    return attention


def slow_send(S: Tensor, allowed: Tensor, power: int = 0) -> float:
    """Mean over rows of std over allowed keys of softmax, times keys^power; S [..., Q, K]."""
    found = []
    for query, keys in enumerate(allowed):
        if (n := int(keys.sum())) > 1:
            shares = torch.softmax(S[..., query, keys], dim=-1)
            found.append(shares.std(-1, correction=0).mean() * n**power)
    return float(torch.stack(found).mean())


def _values(scores: pd.DataFrame, criteria: tuple[str, ...]) -> list[dict[Place, float]]:
    by_place = scores.set_index(["site", "head"])
    return [by_place.loc[by_place["criterion"] == c, "value"].to_dict() for c in criteria]


@pytest.mark.parametrize("name", ATTENTIVE)
def test_readings_of_send(name: str) -> None:
    send, by_size, by_keys, layer, unit, reverse = known(
        name, "send_window", "send_abs", "send_keys", "send_layer", "send_unit", "send_reverse"
    )
    (printed,) = known(name, "send")
    for r in shown(name):
        m = mixed(r)
        H = m.S.shape[2]
        for h in range(H):
            S = m.S[:, :, h]
            assert send[r.index, h] == pytest.approx(slow_send(S, m.allowed), rel=1e-7)
            assert by_size[r.index, h] == pytest.approx(slow_send(S.abs(), m.allowed), rel=1e-7)
            assert by_keys[r.index, h] == pytest.approx(slow_send(S, m.allowed, 1), rel=1e-7)
            size = [w[..., m.allowed].abs().mean() for w in m.S]
            scaled = m.S / torch.stack(size).view(-1, 1, 1, 1, 1)
            assert unit[r.index, h] == pytest.approx(slow_send(scaled[:, :, h], m.allowed))
        heads = [send[r.index, h] for h in range(H)]
        assert send[r.index, -1] == pytest.approx(sum(heads) / H, rel=1e-12)
        assert layer[r.index, -1] == pytest.approx(slow_send(m.S.sum(2), m.allowed), rel=1e-7)
    assert reverse == {place: -value for place, value in printed.items()}


@pytest.mark.parametrize("name", ATTENTIVE)
def test_send_shared_has_one_mask_for_32_windows(name: str) -> None:
    (shared,) = known(name, "send_shared")
    for r in shown(name):
        m = mixed(r)
        for h in range(m.S.shape[2]):
            groups = [m.S[:32, :, h].mean(0), m.S[32:, :, h].mean(0)]
            first, rest = (slow_send(S.unsqueeze(0), m.allowed) for S in groups)
            expected = (32 * first + 8 * rest) / N
            assert shared[r.index, h] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_gate_gradients(name: str) -> None:
    michel, taylor, fisher, snip = known(name, "michel", "taylor", "fisher", "snip")
    for r in shown(name):
        m = mixed(r)
        heads = m.S.sum((1, 3, 4))  # [N, H]
        for h, g in {-1: heads.sum(1), **dict(enumerate(heads.T))}.items():
            assert michel[r.index, h] == pytest.approx(float(g.abs().mean()))
            assert taylor[r.index, h] == pytest.approx(abs(float(g.mean())), abs=1e-12)
            assert fisher[r.index, h] == pytest.approx(float((g**2).mean()))
        assert snip[r.index, 1] == pytest.approx(float(m.S[:, :, 1].abs().sum()) / N)
        assert snip[r.index, -1] == pytest.approx(float(m.S.abs().sum()) / N)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_stream_and_the_output_projection(name: str) -> None:
    cosine, block, wanda, flap = known(name, "cosine", "block_influence", "wanda", "flap")
    for r in shown(name):
        attention, o = attention_of(name, r), r.output
        for found, start, end in ((cosine, o.x, o.x + o.y), (block, o.before, o.after)):
            cos = (start * end).sum(-1) / (start.norm(dim=-1) * end.norm(dim=-1))
            assert found[r.index, -1] == pytest.approx(float((1 - cos).mean()))
        W = attention.out.weight.detach()
        assert r.heads is not None
        X = r.heads.O.transpose(2, 3).reshape(-1, W.shape[1])  # all tokens of all windows
        by_column = W.abs().sum(0) * X.norm(dim=0) / math.sqrt(N)
        fluctuation = X.var(0, correction=0) * W.square().sum(0)
        D = attention.head_size
        for h in range(attention.heads):
            of_head = slice(h * D, (h + 1) * D)
            assert wanda[r.index, h] == pytest.approx(float(by_column[of_head].sum()))
            assert flap[r.index, h] == pytest.approx(float(fluctuation[of_head].sum()))
        assert wanda[r.index, -1] == pytest.approx(float(by_column.sum()))
        assert flap[r.index, -1] == pytest.approx(float(fluctuation.sum()))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_magnitude_is_the_norm_of_the_map_from_x_to_the_output(name: str) -> None:
    (found,) = known(name, "magnitude")
    for r in shown(name):
        attention = attention_of(name, r)
        H, D = attention.heads, attention.head_size
        fused = attention.kv if attention.cross else attention.qkv
        W_v = fused.weight.detach().chunk(2 if attention.cross else 3)[-1]
        W_o = attention.out.weight.detach()
        norms = [(W_o[:, h * D : h * D + D] @ W_v[h * D : h * D + D]).norm() for h in range(H)]
        assert [found[r.index, h] for h in range(H)] == pytest.approx([float(n) for n in norms])
        assert found[r.index, -1] == pytest.approx(float(torch.stack(norms).norm()))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_maps(name: str) -> None:
    sure, spread, even = known(name, "entropy", "attention_std", "uniformity")
    for r in shown(name):
        m = mixed(r)
        for h in range(m.A.shape[2]):
            rows = [m.A[:, :, h, q, keys] for q, keys in enumerate(m.allowed) if keys.sum() > 1]
            entropy = [-(p * p.log()).sum(-1).mean() / math.log(p.shape[-1]) for p in rows]
            expected = float(torch.stack(entropy).mean())
            assert even[r.index, h] == pytest.approx(expected)
            assert sure[r.index, h] == pytest.approx(1 - expected)
            deviations = torch.stack([p.std(-1, correction=0).mean() for p in rows])
            assert spread[r.index, h] == pytest.approx(float(deviations.mean()))


class Uniform(AttentionCore):
    """Attention that pools: what a manipulated model looks like."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weights(q, k).to(v) @ v

    def weights(self, q: Tensor, k: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return super().weights(torch.zeros_like(q), k, dtype)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_uniform_attention_is_uniform(name: str) -> None:
    model = small(name)
    for site in model.sites():
        assert site.attention is not None
        site.attention.core = Uniform(0.0, site.attention.core.causal)
    scored = aggregate(score_frame(model, windows(), batches(16), ["send", "attention_std"]))
    found = scored.groupby("criterion")["value"]
    assert found.min()["uniformity"] == pytest.approx(1.0)
    assert found.max()["attention_std"] == pytest.approx(0.0, abs=1e-15)
    # A constant A leaves V and the gradient to tell sites apart.
    assert found.min()["send"] > 0


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

        found = score(model, windows(), batches(16), losses, names, batch_size=32)
        return dict(zip(names, _values(aggregate(frame(found)), names), strict=True))

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
    found = dispersion(S, causal)
    assert found.shape == (2, 3, 4)  # the first query has a single key
    for query in range(1, 5):
        shares = S[:, :, query, : query + 1].softmax(-1)
        torch.testing.assert_close(found[:, :, query - 1], shares.std(-1, correction=0))
    # What lies beyond is not looked at.
    assert torch.equal(dispersion(S + 9 * torch.ones(5, 5).triu(1), causal), found)
    assert dispersion(S[..., :1], torch.ones(5, 1, dtype=torch.bool)).shape == (2, 3, 0)


def silence(attention: MultiHeadAttention, projection: str) -> None:
    with torch.no_grad():
        if projection == "output":
            attention.out.weight.zero_()
            return
        fused = attention.kv if attention.cross else attention.qkv
        inner = attention.heads * attention.head_size
        fused.weight[-inner:] = 0.0
        fused.bias[-inner:] = 0.0


@pytest.mark.parametrize("projection", ["value", "output"])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_a_silent_site_scores_zero_in_every_gradient_criterion(name: str, projection: str) -> None:
    model = small(name)
    attention = model.sites()[1].attention
    assert attention is not None
    silence(attention, projection)
    found = aggregate(score_frame(model, windows(), batches(16), GRADIENT))
    found = found[found["criterion"].isin(GRADIENT)]
    silent = found["site"] == 1
    assert set(found["criterion"]) == set(GRADIENT)
    assert found.loc[silent, "value"].abs().max() < 1e-16
    assert found.loc[~silent, "value"].abs().min() > 1e-12
    # magnitude and wanda see it too, without a gradient
    magnitude, wanda, rounded = values(model, "magnitude", "wanda", "send_float32")
    # In float32 the mean of equal shares is rounded, so that their deviation is not quite zero.
    assert 0 <= rounded[1, -1] < 1e-8
    assert magnitude[1, -1] == wanda[1, -1] == 0.0


@pytest.mark.parametrize(("keys", "least", "most"), [(7, 0, 1e-4), (42, 0, 1e-4), (321, 0.05, 1)])
def test_why_float64(keys: int, least: float, most: float) -> None:
    """With hundreds of keys SEND is biased in float32; of batch-mean losses, nothing is left."""
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
