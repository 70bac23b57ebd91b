"""Every criterion against its definition, written out slowly."""

from __future__ import annotations

import math
from functools import cache

import pandas as pd
import pytest
import torch
from scoring_cases import ATTENTIVE, batches, small, windows
from torch import Tensor

from spat.attention.views import SiteRecord
from spat.models.base import Forecaster
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.pipeline.scores_frame import aggregate
from spat.scoring import probe
from spat.scoring.probe import observe
from spat.scoring.reductions import dispersion
from spat.scoring.scores import score

GRADIENT = (
    "send", "send_abs", "send_shared", "send_layer", "send_keys", "send_unit", "send_reverse",
    "michel", "taylor", "fisher", "snip",
)  # fmt: skip
N = 40  # windows

Place = tuple[int, int]


def values(model: Forecaster, *criteria: str) -> list[dict[Place, float]]:
    """Of each criterion, (site, head) -> score."""
    return _values(aggregate(score(model, windows(), batches(16), criteria)), criteria)


@cache
def scored(name: str) -> pd.DataFrame:
    return aggregate(score(small(name), windows(), batches(16)))


def known(name: str, *criteria: str) -> list[dict[Place, float]]:
    """The same of a model as it is built, scored once."""
    return _values(scored(name), criteria)


@cache
def records(name: str) -> list[SiteRecord]:
    return observe(small(name), windows().batch(torch.cat(batches(16))))


def slow_send(S: Tensor, allowed: Tensor, power: int = 0) -> float:
    """Mean over rows of std over allowed keys of softmax, times keys^power; S [..., Q, K]."""
    found = []
    for query, keys in enumerate(allowed):
        if (n := int(keys.sum())) > 1:
            shares = torch.softmax(S[..., query, keys], dim=-1)
            found.append(shares.std(-1, correction=0).mean() * n**power)
    return float(torch.stack(found).mean())


def _values(frame: pd.DataFrame, criteria: tuple[str, ...]) -> list[dict[Place, float]]:
    by_place = frame.set_index(["site", "head"])
    return [by_place.loc[by_place["criterion"] == c, "value"].to_dict() for c in criteria]


@pytest.mark.parametrize("name", ATTENTIVE)
def test_send_and_its_readings(name: str) -> None:
    send, by_size, by_keys, layer, unit, reverse = known(
        name, "send", "send_abs", "send_keys", "send_layer", "send_unit", "send_reverse"
    )
    for r in records(name):
        H = r.S.shape[2]
        for h in range(H):
            S = r.S[:, :, h]
            assert send[r.index, h] == pytest.approx(slow_send(S, r.allowed), rel=1e-7)
            assert by_size[r.index, h] == pytest.approx(slow_send(S.abs(), r.allowed), rel=1e-7)
            assert by_keys[r.index, h] == pytest.approx(slow_send(S, r.allowed, 1), rel=1e-7)
            size = [w[..., r.allowed].abs().mean() for w in r.S]
            scaled = r.S / torch.stack(size).view(-1, 1, 1, 1, 1)
            assert unit[r.index, h] == pytest.approx(slow_send(scaled[:, :, h], r.allowed))
        heads = [send[r.index, h] for h in range(H)]
        assert send[r.index, -1] == pytest.approx(sum(heads) / H, rel=1e-12)
        assert layer[r.index, -1] == pytest.approx(slow_send(r.S.sum(2), r.allowed), rel=1e-7)
    assert reverse == {place: -value for place, value in send.items()}


@pytest.mark.parametrize("name", ATTENTIVE)
def test_send_shared_has_one_mask_for_32_windows(name: str) -> None:
    (shared,) = known(name, "send_shared")
    for r in records(name):
        for h in range(r.S.shape[2]):
            groups = [r.S[:32, :, h].mean(0), r.S[32:, :, h].mean(0)]
            first, rest = (slow_send(S.unsqueeze(0), r.allowed) for S in groups)
            expected = (32 * first + 8 * rest) / N
            assert shared[r.index, h] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_gate_gradients(name: str) -> None:
    michel, taylor, fisher, snip = known(name, "michel", "taylor", "fisher", "snip")
    for r in records(name):
        heads = r.S.sum((1, 3, 4))  # [N, H]
        for h, g in {-1: heads.sum(1), **dict(enumerate(heads.T))}.items():
            assert michel[r.index, h] == pytest.approx(float(g.abs().mean()))
            assert taylor[r.index, h] == pytest.approx(abs(float(g.mean())), abs=1e-12)
            assert fisher[r.index, h] == pytest.approx(float((g**2).mean()))
        assert snip[r.index, 1] == pytest.approx(float(r.S[:, :, 1].abs().sum()) / N)
        assert snip[r.index, -1] == pytest.approx(float(r.S.abs().sum()) / N)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_stream_and_the_output_projection(name: str) -> None:
    cosine, block, wanda, flap = known(name, "cosine", "block_influence", "wanda", "flap")
    for r in records(name):
        for found, start, end in ((cosine, r.x, r.x + r.y), (block, r.before, r.after)):
            cos = (start * end).sum(-1) / (start.norm(dim=-1) * end.norm(dim=-1))
            assert found[r.index, -1] == pytest.approx(float((1 - cos).mean()))
        W = r.attention.out.weight.detach()
        X = r.O.transpose(2, 3).reshape(-1, W.shape[1])  # all tokens of all windows
        by_column = W.abs().sum(0) * X.norm(dim=0) / math.sqrt(N)
        fluctuation = X.var(0, correction=0) * W.square().sum(0)
        D = r.attention.head_size
        for h in range(r.attention.heads):
            of_head = slice(h * D, (h + 1) * D)
            assert wanda[r.index, h] == pytest.approx(float(by_column[of_head].sum()))
            assert flap[r.index, h] == pytest.approx(float(fluctuation[of_head].sum()))
        assert wanda[r.index, -1] == pytest.approx(float(by_column.sum()))
        assert flap[r.index, -1] == pytest.approx(float(fluctuation.sum()))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_magnitude_is_the_norm_of_the_map_from_x_to_the_output(name: str) -> None:
    (found,) = known(name, "magnitude")
    for r in records(name):
        H, D = r.attention.heads, r.attention.head_size
        fused = r.attention.kv if r.attention.cross else r.attention.qkv
        W_v = fused.weight.detach().chunk(2 if r.attention.cross else 3)[-1]
        W_o = r.attention.out.weight.detach()
        norms = [(W_o[:, h * D : h * D + D] @ W_v[h * D : h * D + D]).norm() for h in range(H)]
        assert [found[r.index, h] for h in range(H)] == pytest.approx([float(n) for n in norms])
        assert found[r.index, -1] == pytest.approx(float(torch.stack(norms).norm()))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_maps(name: str) -> None:
    sure, spread, even = known(name, "entropy", "attention_std", "uniformity")
    for r in records(name):
        for h in range(r.A.shape[2]):
            rows = [r.A[:, :, h, q, keys] for q, keys in enumerate(r.allowed) if keys.sum() > 1]
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

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return super().weights(torch.zeros_like(q), k)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_uniform_attention_is_uniform(name: str) -> None:
    model = small(name)
    for site in model.sites():
        assert site.attention is not None
        site.attention.core = Uniform(0.0, site.attention.core.causal)
    frame = aggregate(score(model, windows(), batches(16), ["send", "attention_std"]))
    found = frame.groupby("criterion")["value"]
    assert found.min()["uniformity"] == pytest.approx(1.0)
    assert found.max()["attention_std"] == pytest.approx(0.0, abs=1e-15)
    # A constant A leaves V and the gradient to tell sites apart.
    assert found.min()["send"] > 0


def test_position() -> None:
    first, last = known("iTransformer", "depth_first", "depth_last")
    assert first == {(0, -1): 0.0, (1, -1): 1.0, (2, -1): 2.0}
    assert last == {(0, -1): 0.0, (1, -1): -1.0, (2, -1): -2.0}


def test_send_is_linear_in_the_scale_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("iTransformer")
    names = ("send", "send_keys", "send_unit", "michel", "fisher")
    losses = probe.window_losses

    def scaled(scale: float) -> dict[str, dict[Place, float]]:
        monkeypatch.setattr(probe, "window_losses", lambda m, b: scale * losses(m, b))
        return dict(zip(names, values(model, *names), strict=True))

    before, once, again = scaled(1.0), scaled(1e-3), scaled(1e-5)
    for place in before["send"]:
        # Where S is small the softmax is linear, to the first order in S.
        assert again["send"][place] == pytest.approx(1e-2 * once["send"][place], rel=1e-3)
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
    frame = aggregate(score(model, windows(), batches(16), GRADIENT))
    frame = frame[frame["criterion"].isin(GRADIENT)]
    silent = frame["site"] == 1
    assert set(frame["criterion"]) == set(GRADIENT)
    assert frame.loc[silent, "value"].abs().max() < 1e-16
    assert frame.loc[~silent, "value"].abs().min() > 1e-12
    # magnitude and wanda see it too, without a gradient
    magnitude, wanda = values(model, "magnitude", "wanda")
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
