"""The forecasters with attention: their published sizes and their formulas."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import SHAPE, inputs, inputs_of
from torch import Tensor, nn

from spat.models.autoformer import AutoCorrelation, Autoformer, DelayCore
from spat.models.base import Forecaster
from spat.models.crossformer import Sender
from spat.models.fedformer import FourierBlock, FourierCrossAttention, Modes
from spat.models.informer import Distilling, ProbSparseCore
from spat.models.layers.attention import MultiHeadAttention
from spat.models.layers.blocks import StepEmbedding, circular, moving_average, normalise
from spat.models.nonstationary import DestationaryAttention
from spat.models.registry import Shape, build, setup
from spat.models.samformer import ChannelAttention
from spat.models.settings import (
    AutoformerSettings,
    CrossformerSettings,
    FEDformerSettings,
    InformerSettings,
    NonstationarySettings,
    PAttnSettings,
    SAMformerSettings,
    Settings,
    TimeXerSettings,
)
from spat.surgery.sweep import unreached as unreached_by
from spat.training.device.costs import parameters

STACK = {"d_model": 16, "d_ff": 24, "e_layers": 3, "d_layers": 2, "dropout": 0.0}
DECODED = {**STACK, "label_len": 12, "time_features": True}
SMALL: dict[str, Settings] = {
    "PAttn": PAttnSettings(16, 24, 4, 0.0, patch_len=8, stride=4),
    "SAMformer": SAMformerSettings(d_keys=4),
    "TimeXer": TimeXerSettings(16, 24, 2, 4, 0.0, patch_len=8, time_features=True),
    "Nonstationary": NonstationarySettings(
        **DECODED, n_heads=4, projector_width=8, projector_layers=2
    ),
    "Informer": InformerSettings(**DECODED, n_heads=4, factor=1),
    "Autoformer": AutoformerSettings(**DECODED, moving_average=5, factor=1),
    "FEDformer": FEDformerSettings(**DECODED, moving_average=5, n_heads=4, modes=4),
    "Crossformer": CrossformerSettings(16, 24, 2, 4, 0.0, segment=4, routers=3),
}
ATTENTIONS = (
    MultiHeadAttention,
    ChannelAttention,
    AutoCorrelation,
    FourierBlock,
    FourierCrossAttention,
)
# The modules of embeddings and of heads.
EMBEDDINGS = ("embedding", "source", "target", "patch", "whole", "exogenous", "past", "future")
HEADS = ("head", "prediction")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small(name: str, **changes: Any) -> Forecaster:
    return build(name, replace(SMALL[name], **changes), SHAPE)


def unreached(model: Forecaster) -> dict[str, nn.Parameter]:
    return unreached_by(model, lambda: model(*inputs_of(model)))[0]


def attentions(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every attention of a model, sites or not, with the module that holds it."""
    return [
        (owner, name)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, ATTENTIONS)
    ]


# The sizes of the published code, measured by building it.


PUBLISHED = list(csv.DictReader(Path(__file__).with_name("published_sizes.csv").open()))


def published(row: dict[str, str]) -> tuple[Settings, Shape]:
    shape = Shape(*(int(row[name]) for name in ("lookback", "horizon", "channels")), marks=4)
    return setup(row["model"], "published", row["dataset"], shape.horizon).settings, shape


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row['model']}-{row['dataset']}")
def test_parameters_are_those_of_the_published_code(row: dict[str, str]) -> None:
    with torch.device("meta"):
        settings, shape = published(row)
        model = build(row["model"], settings, shape)
        sizes = {name: int(row[name] or 0) for name in row if row[name].isdigit()}
        # The published FEDformer also has keys and values that nothing reads; those that the
        # published Crossformer does not use are weights of a softmax over a single router.
        left_out = sizes["unused"] if row["model"] == "FEDformer" else 0
        assert parameters(model) == sizes["parameters"] - left_out
        parts = dict.fromkeys(("attention", "embedding", "head"), 0)
        inside = {p for owner, name in attentions(model) for p in getattr(owner, name).parameters()}
        for name, parameter in model.named_parameters():
            path = name.split(".")
            if (parameter in inside and path[-1] != "routers") or "modes" in path[0]:
                parts["attention"] += parameter.numel()
            elif path[0] in EMBEDDINGS:
                parts["embedding"] += parameter.numel()
            elif path[0] in HEADS or path[-2] in HEADS:
                parts["head"] += parameter.numel()
        assert parts == {name: sizes[name] - left_out * (name == "attention") for name in parts}

        seen: list[str] = []
        for owner, name in attentions(model):
            getattr(owner, name).register_forward_hook(lambda _, x, y: seen.append(tokens(x, y)))
        y = model(*inputs(shape, 2))
        assert y.shape == (2, shape.horizon, shape.channels)
        assert seen == row["tokens"].split()


def tokens(x: tuple[Tensor, ...], y: Tensor) -> str:
    """The numbers of queries and of keys."""
    memory = x[1] if len(x) > 1 and isinstance(x[1], Tensor) else x[0]
    return f"{y.shape[1]}x{memory.shape[1]}"


@pytest.mark.parametrize("name", SMALL)
def test_parameters_unused_without_attention_are_those_of_the_published_code(name: str) -> None:
    dataset = "Weather" if name == "Crossformer" else "ETTh1"  # the others of it are large
    row = next(r for r in PUBLISHED if (r["model"], r["dataset"]) == (name, dataset))
    settings, shape = published(row)
    model = build(name, settings, shape)
    routers = sum(p.numel() for n, p in model.named_parameters() if n.endswith(".routers"))
    for owner, attribute in attentions(model):
        setattr(owner, attribute, None)
    dead = sum(p.numel() for p in unreached(model).values())
    # The matrices that sites of FEDformer share are still there, for the sweep to remove.
    shared = sum(parameters(m) for m in model.modules() if isinstance(m, Modes))
    # The routers of Crossformer are removed with their site; the published code keeps them unused.
    assert parameters(model) == int(row["without_sites"]) - routers + shared
    assert dead == int(row["dead"]) - routers + shared


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("PAttn", ["encoder.0.self"]),
        ("SAMformer", ["encoder.0.self"]),
        ("TimeXer", [f"encoder.{i}.{kind}" for i in range(2) for kind in ("self", "cross")]),
        *(
            (
                name,
                [
                    *(f"encoder.{i}.self" for i in range(3)),
                    *("decoder.0.self", "decoder.0.cross", "decoder.1.self"),
                ],
            )
            for name in ("Nonstationary", "Informer", "Autoformer", "FEDformer")
        ),
        (
            "Crossformer",
            [
                *(f"encoder.{i}.{kind}" for i in range(2) for kind in ("time", "router")),
                "decoder.0.cross",
                *(f"decoder.1.{kind}" for kind in ("time", "router", "cross")),
                *(f"decoder.2.{kind}" for kind in ("time", "router")),
            ],
        ),
    ],
)
def test_sites(name: str, sites: list[str]) -> None:
    model, order = small(name), []
    names = {site.attention: site.name for site in model.sites()}
    for attention in names:
        attention.register_forward_hook(lambda module, *_: order.append(names[module]))
    model(*inputs())
    assert order == [site.name for site in model.sites()] == sites


# Blocks.


def test_circular_is_a_convolution() -> None:
    x, convolution = torch.randn(2, 7, 3), nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular")
    weight = convolution.weight.transpose(1, 2).flatten(1)  # [out, neighbour x in]
    expected = convolution(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(circular(x) @ weight.T + convolution.bias, expected)


def test_moving_average_repeats_the_ends() -> None:
    x = torch.randn(2, 9, 3)
    smooth = moving_average(x, 5)
    torch.testing.assert_close(smooth[:, 4], x[:, 2:7].mean(1))
    torch.testing.assert_close(smooth[:, 0], x[:, [0, 0, 0, 1, 2]].mean(1))
    torch.testing.assert_close(smooth[:, 8], x[:, [6, 7, 8, 8, 8]].mean(1))


def test_an_embedding_without_positions_follows_a_shift() -> None:
    x = torch.randn(2, 10, 3)
    embedding = StepEmbedding(3, 8, None, 0, 0.0)
    torch.testing.assert_close(embedding(x.roll(2, 1), None), embedding(x, None).roll(2, 1))


# PAttn and SAMformer.


def test_pattn_keeps_channels_apart() -> None:
    model, (x, *_) = small("PAttn").eval(), inputs()
    changed = x.clone()
    changed[1, :12, 2] += 1
    moved = torch.zeros(3, 5, dtype=torch.bool)
    moved[1, 2] = True
    assert torch.equal((model(x) - model(changed)).abs().amax(1) > 0, moved)


def test_samformer_equals_its_formula() -> None:
    model, (x, *_) = small("SAMformer"), inputs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    attention = model.attention
    z, scale = model.norm(x)
    z = z.transpose(1, 2)
    q, k, v = attention.q(z), attention.k(z), attention.v(z)
    mixed = z + torch.softmax(q @ k.transpose(1, 2) / math.sqrt(4), dim=-1) @ v
    expected = model.norm.undo(model.head(mixed).transpose(1, 2), scale)
    torch.testing.assert_close(model(x), expected)


def test_samformer_without_its_site_is_a_linear_map_of_the_normalised_past() -> None:
    model, (x, *_) = small("SAMformer"), inputs()
    model.sites()[0].remove()
    normal, scale = normalise(x)
    expected = scale.undo(model.head(normal.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(model(x), expected)


# TimeXer.


def test_channels_of_timexer_are_joined_only_by_cross_attention() -> None:
    x, past, future = inputs()
    for removed, others_move in ((0, True), (1, False)):
        model = small("TimeXer", e_layers=1).eval()
        model.sites()[removed].remove()
        changed = x.clone()
        changed[:, :12, 2] += torch.randn(12)
        moved = (model(x, past, future) - model(changed, past, future)).abs().amax((0, 1)) > 1e-6
        assert moved[2]
        # The global token of another channel changes, and the head reads it.
        assert moved[[0, 1, 3, 4]].all() == others_move == moved[[0, 1, 3, 4]].any()


def test_timexer_without_cross_attention_needs_no_marks() -> None:
    model, (x, *_) = small("TimeXer"), inputs()
    with pytest.raises(ValueError, match="past_marks"):
        model(x)
    for index in (1, 3):
        model.sites()[index].remove()
    assert model(x).shape == (3, 12, 5)
    assert {name.split(".")[0] for name in unreached(model)} == {"exogenous"}


def test_steps_that_fill_no_patch_are_left_out_by_timexer() -> None:
    shape = replace(SHAPE, lookback=27)
    model = build("TimeXer", replace(SMALL["TimeXer"], time_features=False), shape)
    seen: list[Tensor] = []
    model.patch.register_forward_hook(lambda _, x, __: seen.append(x[0]))
    x, *_ = inputs(shape)
    model(x)
    normal = normalise(x)[0]
    torch.testing.assert_close(seen[0][1, 3, 2], normal[1, 16:24, 3])
    assert seen[0].shape == (3, 5, 3, 8)


# The Non-stationary Transformer.


@pytest.mark.parametrize(("causal", "cross"), [(False, False), (True, False), (False, True)])
def test_destationary_attention_equals_its_formula(causal: bool, cross: bool) -> None:
    attention = DestationaryAttention(16, 4, dropout=0.0, causal=causal, cross=cross)
    x, memory = torch.randn(3, 7, 16), torch.randn(3, 9, 16) if cross else None
    tau, delta = torch.rand(3, 1) + 0.5, torch.randn(3, 9 if cross else 7)
    q, k, v = attention.project(x, memory)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * tau[:, None, None]
    if causal:
        logits = logits + torch.full((7, 7), -torch.inf).triu(1)
    else:
        logits = logits + delta[:, None, None]
    A = (logits / 2).softmax(-1)  # heads of size 4
    seen: list[tuple[Tensor, ...]] = []
    attention.core.register_forward_hook(lambda _, args, __: seen.append(args))
    y = attention(x, memory, tau=tau, delta=delta)
    torch.testing.assert_close(y, attention.merge(A @ v), atol=1e-5, rtol=1e-4)
    # The core computes its own A from its queries and keys.
    torch.testing.assert_close(
        attention.core.weights(*seen[0][:2]), A.double(), atol=1e-6, rtol=1e-4
    )


def test_projectors_read_the_window_before_normalisation() -> None:
    model, (x, *_) = small("Nonstationary"), inputs()
    projector = model.tau
    scale = normalise(x)[1]
    kernel = projector.series.weight.unflatten(1, (3, 24)).transpose(1, 2)  # [1, steps, 3]
    series = F.conv1d(F.pad(x, (1, 1), mode="circular"), kernel)  # the steps are its channels
    hidden = torch.cat([series, scale.deviation], dim=1).flatten(1)
    for layer in projector.mlp[:-1]:
        hidden = layer(hidden)
    expected = hidden @ projector.mlp[-1].weight.T
    torch.testing.assert_close(projector(x, scale.deviation), expected)
    assert projector.mlp[-1].bias is None


def test_an_enormous_tau_stays_finite() -> None:
    model, batch = small("Nonstationary"), inputs()
    with torch.no_grad():
        for parameter in model.tau.parameters():
            parameter.abs_().add_(100)
    batch[0].abs_()
    assert torch.isfinite(model(*batch)).all()


# Informer.


def reference_rows(q: Tensor, k: Tensor, sample: Tensor, count: int) -> list[int]:
    """The queries of one head that attend: q [Q, D], k [K, D], sampled keys [Q, U]."""
    measures = []
    for query, sampled in zip(q, sample, strict=True):
        products = torch.stack([query @ k[i] for i in sampled])
        measures.append(products.max() - products.sum() / len(k))
    return torch.stack(measures).topk(count).indices.tolist()


@pytest.mark.parametrize("causal", [False, True])
def test_prob_sparse_attention_equals_its_formula(causal: bool) -> None:
    core = ProbSparseCore(factor=2, causal=causal).eval()
    q, k, v = torch.randn(2, 3, 10, 4), torch.randn(2, 3, 10, 4), torch.randn(2, 3, 10, 4)
    O, A, allowed = core(q, k, v), core.weights(q, k), core.allowed(q, k)  # noqa: E741
    sample = core._same(q, k)
    assert sample.shape == (10, 2 * math.ceil(math.log(10)))
    for window in range(2):
        for head in range(3):
            at = window, head
            rows = reference_rows(q[at], k[at], sample, 6)
            for i in range(10):
                seen = i + 1 if causal else 10
                if i in rows:
                    weights = (q[at][i] @ k[at][:seen].T / 2).softmax(-1)
                    torch.testing.assert_close(O[at][i], weights @ v[at][:seen])
                    torch.testing.assert_close(A[at][i, :seen].float(), weights)
                    assert allowed[at][i].tolist() == [True] * seen + [False] * (10 - seen)
                else:
                    values = v[at][: i + 1].sum(0) if causal else v[at].mean(0)
                    torch.testing.assert_close(O[at][i], values)
                    assert not allowed[at][i].any()
                    assert not A[at][i].any()


def test_informer_has_a_fixed_sample_only_in_evaluation() -> None:
    model, batch = small("Informer"), inputs()
    assert not torch.equal(model(*batch), model(*batch))
    torch.manual_seed(5)
    first = model(*batch)
    torch.manual_seed(5)
    assert torch.equal(model(*batch), first)
    model.eval()
    assert torch.equal(model(*batch), model(*batch))


def test_distilling_halves_the_steps() -> None:
    layer, x = Distilling(4), torch.randn(2, 10, 4)
    y = layer(x)
    assert y.shape == (2, 6, 4)
    # The output for step t is at position t + 1, since the first output wraps around.
    kernel = layer.convolution.weight.transpose(1, 2).flatten(1)
    steps = circular(x) @ kernel.T + layer.convolution.bias
    steps = torch.cat([steps[:, -1:], steps, steps[:, :1]], dim=1)
    spread = (steps.var((0, 1), unbiased=False) + 1e-5).sqrt()
    steps = F.elu((steps - steps.mean((0, 1))) / spread)
    torch.testing.assert_close(y[:, 0], steps[:, :2].amax(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y[:, 3], steps[:, 5:8].amax(1), atol=1e-5, rtol=1e-4)


# Autoformer.


def test_delays_roll_the_values_back() -> None:
    weights, values = torch.rand(2, 1, 1, 3), torch.randn(2, 8, 4)
    delays = torch.tensor([[0, 3, 7], [5, 1, 2]])
    expected = torch.stack(
        [
            sum(w * v.roll(-int(d), 0) for w, d in zip(ws[0, 0], ds, strict=True))
            for ws, ds, v in zip(weights, delays, values, strict=True)
        ]
    )
    torch.testing.assert_close(DelayCore()(weights, values, delays), expected)


@pytest.mark.parametrize("keys", [6, 10, 15])
@pytest.mark.parametrize("training", [False, True])
def test_auto_correlation_equals_its_formula(keys: int, training: bool) -> None:
    attention = AutoCorrelation(8, factor=1).train(training)
    x, memory = torch.randn(3, 10, 8), torch.randn(3, keys, 8)
    q, (k, v) = attention.q(x), attention.kv(memory).chunk(2, -1)
    zeros = torch.zeros(3, 10, 8)
    k, v = (torch.cat([t, zeros], dim=1)[:, :10] if keys < 10 else t[:, :10] for t in (k, v))
    r = torch.stack([(q * k.roll(delay, 1)).sum(1).mean(-1) for delay in range(10)], dim=1)
    torch.testing.assert_close(r, autocorrelated(q, k), atol=1e-5, rtol=1e-4)
    rows = []
    for window in range(3):
        chosen = (r.mean(0) if training else r[window]).topk(2).indices  # int(ln 10)
        weights = r[window][chosen].softmax(0)
        rolled = [w * v[window].roll(-int(d), 0) for w, d in zip(weights, chosen, strict=True)]
        rows.append(torch.stack(rolled).sum(0))
    expected = attention.out(torch.stack(rows))
    torch.testing.assert_close(attention(x, memory), expected, atol=1e-5, rtol=1e-4)


def autocorrelated(q: Tensor, k: Tensor) -> Tensor:
    """By the definition: r(delay) = mean over features of sum over t of q_t k_(t - delay)."""
    length = q.shape[1]
    shifted = torch.stack([k[:, (torch.arange(length) - d) % length] for d in range(length)], 1)
    return (q.unsqueeze(1) * shifted).sum(2).mean(-1)


def test_the_decoder_of_autoformer_starts_from_trend_and_remainder() -> None:
    model, (x, past, future) = small("Autoformer").eval(), inputs()
    seen: list[tuple[Tensor, Tensor]] = []
    model.target.register_forward_hook(lambda _, args, __: seen.append(args))
    for layer in model.decoder:
        layer.trend.weight.data.zero_()
    model.head.weight.data.zero_()
    y = model(x, past, future)
    begun, marks = seen[0]
    smooth = moving_average(x, 5)
    torch.testing.assert_close(begun[:, :12], (x - smooth)[:, 12:])
    assert torch.equal(begun[:, 12:], torch.zeros(3, 12, 5))
    assert torch.equal(marks, torch.cat([past[:, 12:], future], 1))
    expected = x.mean(1, keepdim=True) + model.head.bias
    torch.testing.assert_close(y, expected.expand(3, 12, 5))


def test_autoformer_has_no_positions_and_fedformer_has() -> None:
    x, past, _ = inputs()
    for name, moves in (("Autoformer", False), ("FEDformer", True)):
        model = small(name).eval()
        assert isinstance(model, Autoformer)
        embedded = model.source(x.roll(3, 1), past.roll(3, 1)).roll(-3, 1)
        assert torch.allclose(embedded, model.source(x, past), atol=1e-6) != moves


# FEDformer.


def reference_series(modes: dict[int, Tensor], length: int) -> Tensor:
    """Steps [length] of one head and feature from frequency -> complex amplitude."""
    full = torch.zeros(length // 2 + 1, dtype=torch.complex64)
    for frequency, value in modes.items():
        full[frequency] = value
    return torch.fft.irfft(full, n=length)


def test_the_self_site_of_fedformer_equals_its_formula() -> None:
    block, modes = FourierBlock(8, heads=2), Modes(length=12, modes=4, width=8, heads=2)
    assert (modes.index.sort().values == modes.index).all()
    assert len(set(modes.index.tolist())) == 4 and modes.index.max() < 6
    x = torch.randn(3, 12, 8)
    q = block.q(x).unflatten(-1, (2, 4))  # [B, L, H, D]
    W = torch.view_as_complex(modes.weight.detach())
    out = torch.zeros(3, 2, 4, 12)
    for b in range(3):
        for h in range(2):
            X = torch.fft.rfft(q[b, :, h], dim=0)  # [frequencies, D]
            Y = [X[frequency] @ W[i, h] for i, frequency in enumerate(modes.index)]
            for o in range(4):
                # The i-th kept frequency becomes the i-th lowest.
                out[b, h, o] = reference_series({i: y[o] for i, y in enumerate(Y)}, 12)
    expected = block.out(out.flatten(1).view(3, 12, 8))
    torch.testing.assert_close(block(x, modes), expected, atol=1e-5, rtol=1e-4)


def test_the_cross_site_of_fedformer_equals_its_formula() -> None:
    block, modes = FourierCrossAttention(8, heads=2), Modes(length=14, modes=5, width=8, heads=2)
    x, memory, keys = torch.randn(3, 14, 8), torch.randn(3, 12, 8), torch.tensor([0, 2, 5])
    with torch.no_grad():
        modes.weight.mul_(1e3)  # the published initial weights are too small for the comparison
    q, k = block.q(x).unflatten(-1, (2, 4)), block.k(memory).unflatten(-1, (2, 4))
    W = torch.view_as_complex(modes.weight.detach())
    out = torch.zeros(3, 2, 4, 14)
    for b in range(3):
        for h in range(2):
            Q = torch.fft.rfft(q[b, :, h], dim=0)[modes.index]
            K = torch.fft.rfft(k[b, :, h], dim=0)[keys]
            products = Q @ K.T
            A = torch.complex(products.real.tanh(), products.imag.tanh())
            Z = A @ K
            for o in range(4):
                kept = {int(f): Z[i] @ W[i, h, :, o] / 64 for i, f in enumerate(modes.index)}
                out[b, h, o] = reference_series(kept, 14)
    expected = block.out(out.flatten(1).view(3, 14, 8))
    torch.testing.assert_close(block(x, memory, modes, keys), expected, atol=1e-6, rtol=1e-3)


def test_layers_of_fedformer_share_their_matrices() -> None:
    model = small("FEDformer")
    assert sum(isinstance(module, Modes) for module in model.modules()) == 3
    lost = unreached(model)
    assert lost == {}
    for site in model.sites()[:3]:
        assert not unreached(model)
        site.remove()
    assert set(unreached(model)) == {"encoder_modes.weight"}


def test_frequencies_are_drawn_by_the_seed_and_saved() -> None:
    settings = SMALL["FEDformer"]
    first, second = (build("FEDformer", settings, SHAPE, seed=s).state_dict() for s in (0, 1))
    assert any(not torch.equal(first[n], second[n]) for n in first if n.endswith("index"))
    assert {"encoder_modes.index", "cross_modes.index", "keys"} <= first.keys()


# Crossformer.


def test_each_segment_has_its_own_routers() -> None:
    sender = Sender(8, 2, segments=3, routers=2, dropout=0.0)
    x = torch.randn(4 * 3, 5, 8)  # windows x segments
    y = sender(x)
    assert y.shape == (12, 2, 8)
    plain = MultiHeadAttention(8, 2, cross=True)
    plain.load_state_dict({n: p for n, p in sender.state_dict().items() if n != "routers"})
    for i in range(12):
        expected = plain(sender.routers[i % 3 : i % 3 + 1], x[i : i + 1])
        torch.testing.assert_close(y[i : i + 1], expected)


def test_a_router_site_is_a_pair() -> None:
    model = small("Crossformer")
    site = next(site for site in model.sites() if site.kind == "router")
    before = parameters(model)
    site.remove()
    layer = model.encoder[0]
    assert layer.send is layer.receive is None
    pair = 2 * (4 * 16 * 16 + 4 * 16)
    assert before - parameters(model) == pair + 6 * 3 * 16  # and the routers of six segments
    assert not unreached(model)


def test_attentions_of_crossformer_that_are_not_sites_do_not_depend_on_the_window() -> None:
    model, (x, *_) = small("Crossformer").eval(), inputs()
    seen: dict[str, Tensor] = {}
    own = model.decoder[0].own
    own.register_forward_hook(lambda _, __, y: seen.update(first=y))
    model.decoder[1].own.register_forward_hook(lambda _, __, y: seen.update(second=y))
    model(x)
    assert torch.equal(seen["first"][0], seen["first"][1])
    assert not torch.allclose(seen["second"][0], seen["second"][1])


def test_crossformer_pads_the_end_and_pairs_an_odd_segment_with_itself() -> None:
    model = build("Crossformer", replace(SMALL["Crossformer"], segment=5), SHAPE).eval()
    seen: list[Tensor] = []
    model.embedding.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    model.merging[0].norm.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    x, *_ = inputs()
    y = model(x)
    assert y.shape == (3, 12, 5)
    segments, pairs = seen
    assert segments.shape == (3, 5, 5, 5) and pairs.shape == (3, 5, 3, 32)
    padded = torch.cat([x, x[:, -1:]], dim=1)
    assert torch.equal(segments[0, 2, 4], padded[0, 20:25, 2])
    assert torch.equal(pairs[:, :, 2, :16], pairs[:, :, 2, 16:])


def test_the_forecast_of_crossformer_is_the_sum_of_its_layers() -> None:
    model, (x, *_) = small("Crossformer").eval(), inputs()
    predicted: list[Tensor] = []
    for layer in model.decoder:
        layer.register_forward_hook(lambda _, __, y: predicted.append(y[1]))
    y = model(x)
    torch.testing.assert_close(y, sum(predicted).transpose(1, 2)[:, :12])
