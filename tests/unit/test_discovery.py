"""Attention found in the autograd graph: which modules, and S and A as autograd gives them."""

import gc
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from scoring_cases import batches, small, windows
from scoring_cases import traces as hook_traces
from small_models import LOSSES
from torch import Tensor, nn

import spat
from spat.attention import discovery
from spat.attention.errors import (
    AttentionWarning,
    InlineAttention,
    NoResidual,
    NoSites,
    NotDifferentiable,
    NotPerSample,
    SharedModule,
    SharedOutput,
    TooCoarse,
    UnknownSite,
)
from spat.scoring.scores import score as pipeline_score
from spat.surgery.foreign import Removal


def test_torch_has_the_internals_that_the_graph_is_read_with() -> None:
    assert hasattr(torch._C._autograd, "_get_sequence_nr")
    x = torch.rand(1, 1, 3, 2, requires_grad=True)
    fused = nn.functional.scaled_dot_product_attention(x, x, x).grad_fn
    softmax = x.softmax(-1).grad_fn
    names = ("query", "key", "value", "is_causal", "scale")
    for node, saved in ((fused, names), (softmax, ("result", "dim"))):
        for attribute in (
            *("register_prehook", "next_functions", "_sequence_nr", "name"),
            *(f"_saved_{name}" for name in saved),
        ):
            assert hasattr(node, attribute)


@pytest.mark.parametrize("name", zoo.REMOVABLE)
def test_sites_are_found_in_forward_order(name: str) -> None:
    maker, names = zoo.REMOVABLE[name]
    sites = spat.find_sites(zoo.make(maker), zoo.loss, zoo.batch())
    assert [site.name for site in sites] == names
    assert all(site.refusal is None and site.heads == zoo.HEADS for site in sites)
    assert {(site.queries, site.keys) for site in sites} == {(zoo.TOKENS, zoo.TOKENS)}


def test_a_site_has_its_calls_kind_parameters_and_branch() -> None:
    (site,) = spat.find_sites(zoo.make(zoo.Twice), zoo.loss, zoo.batch())
    size = sum(p.numel() for p in zoo.Nano().parameters())
    assert (site.calls, site.kind, site.parameters, site.branch) == (2, "self", size, ())
    sites = spat.find_sites(zoo.make(zoo.Beside), zoo.loss, zoo.batch())
    assert sites[0].branch == ("output.dense",)
    sites = spat.find_sites(zoo.make(zoo.Decoder), zoo.loss, zoo.batch())
    assert [site.kind for site in sites] == ["self"] * 3 + ["cross", "self", "cross"]


@pytest.mark.parametrize(
    ("maker", "refusal"),
    [
        (zoo.Inline, InlineAttention),
        (zoo.NoSum, NoResidual),
        (zoo.Uneven, SharedModule),
        (lambda: zoo.Layer(zoo.Local()), TooCoarse),
    ],
)
def test_a_site_that_cannot_be_removed_gives_the_reason(
    maker: Any, refusal: type[Exception]
) -> None:
    model = zoo.make(maker)
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert isinstance(site.refusal, refusal)
    with pytest.raises(refusal):
        spat.prune(model, [site], zoo.loss, zoo.batch())


class InPlace(zoo.Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x)
        y += x
        return y


class Holder:
    """A class that is neither a container nor a dataclass."""

    def __init__(self, y: Tensor) -> None:
        self.y = y


class Held(zoo.Nano):
    def forward(self, x: Tensor) -> Any:
        return Holder(super().forward(x))


class OfHeld(zoo.Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x).y


@pytest.mark.parametrize(
    ("maker", "refusal", "message"),
    [
        (lambda: InPlace(zoo.Nano()), NoResidual, "not in place"),
        (lambda: zoo.Biased(computed=True), SharedOutput, "'second' uses what 'first' computes"),
    ],
)
def test_a_site_that_cannot_be_removed_is_known_before_the_attempt(
    maker: Any, refusal: type[Exception], message: str
) -> None:
    sites = spat.find_sites(zoo.make(maker), zoo.loss, zoo.batch())
    assert isinstance(sites[0].refusal, refusal) and message in str(sites[0].refusal)
    assert not any(site.refusal for site in sites[1:])
    scores = spat.score(zoo.make(maker), [zoo.batch()], zoo.loss)
    assert scores.lowest(1.0) == tuple(site.name for site in sites[1:])


def test_an_output_without_tensors_has_no_scores() -> None:
    model = zoo.make(lambda: OfHeld(Held()))
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert "'attention' returns a Holder" in str(site.refusal)
    with pytest.raises(TooCoarse, match="returns a Holder, in which no tensor is found"):
        spat.score(model, [zoo.batch()], zoo.loss)


@pytest.mark.parametrize("units", [(), ("*.attention",)])
def test_cosine_compares_the_residual_stream_and_not_its_norm(units: tuple[str, ...]) -> None:
    model = zoo.make(zoo.REMOVABLE["nanoGPT"][0]).eval()  # there is a norm before the attention
    streams: dict[str, Tensor] = {}
    for i in range(2):
        layer: Any = model.get_submodule(str(i))
        layer.register_forward_pre_hook(lambda _m, x, i=i: streams.update({f"x{i}": x[0]}))
        layer.attention.register_forward_hook(lambda _m, _x, y, i=i: streams.update({f"y{i}": y}))
    with torch.no_grad():
        model(zoo.batch()[0])
    x, y = (torch.stack([streams[f"{name}{i}"] for i in range(2)]) for name in "xy")
    expected = (1 - torch.cosine_similarity(x, x + y, dim=-1)).mean((1, 2))
    scores = spat.score(model, [zoo.batch()], zoo.loss, criterion="cosine", units=units)
    assert scores.values == pytest.approx(expected.numpy(), rel=1e-9)


class Scaled(zoo.Layer):
    """The owner scales the branch (ReZero)."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


@pytest.mark.parametrize("units", [(), ("attention",)])
def test_cosine_compares_the_sum_that_the_owner_computes(units: tuple[str, ...]) -> None:
    model = zoo.make(lambda: Scaled(zoo.Nano())).eval()
    x = zoo.batch()[0]
    with torch.no_grad():
        total = x + model.scale * model.attention(model.n1(x))
    expected = float((1 - torch.cosine_similarity(x, total, dim=-1)).mean())
    scores = spat.score(model, [zoo.batch()], zoo.loss, criterion="cosine", units=units)
    assert scores.values == pytest.approx([expected], rel=1e-9)


def test_windows_and_heads_that_are_modules() -> None:
    x, y = (torch.randn(zoo.SAMPLES, 8, zoo.WIDTH).double() for _ in range(2))
    model = zoo.make(lambda: zoo.Layer(zoo.Windows(4)))
    (site,) = spat.find_sites(model, zoo.loss, (x, y))
    assert (site.queries, site.keys, site.heads, site.refusal) == (4, 4, zoo.HEADS, None)
    (trace,) = discovery.traces(model, zoo.loss, (x, y))
    assert trace.mixing.S.shape == (zoo.SAMPLES, 2, zoo.HEADS, 4, 4)
    model = zoo.make(lambda: zoo.Layer(zoo.HeadByHead()))
    (site,) = spat.find_sites(model, zoo.loss, (x, y))
    assert (site.name, site.kind, site.calls) == ("attention", "self", zoo.HEADS)
    for one in (model, zoo.make(lambda: zoo.Layer(zoo.Windows(4)))):
        small = spat.prune(one, ["attention"], zoo.loss, (x, y))
        assert isinstance(small.spat_removal, Removal) and small.spat_removal.removed


class SampleBySample(zoo.Nano):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(SampleBySample, self).forward(one[None]) for one in x])


def test_attention_of_one_sample_at_a_time_is_found_and_has_no_scores() -> None:
    model = zoo.make(lambda: zoo.Layer(SampleBySample()))
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert site.calls == zoo.SAMPLES
    with pytest.raises(NotPerSample, match="the attention of all samples in one call"):
        spat.score(model, [zoo.batch()], zoo.loss)


def test_a_model_without_attention_has_no_sites() -> None:
    for model in (zoo.make(zoo.Gates), zoo.make(lambda: nn.Linear(zoo.WIDTH, zoo.WIDTH))):
        with pytest.raises(NoSites, match="_orig_mod.*another form .* as units="):
            spat.find_sites(model, zoo.loss, zoo.batch())


def test_a_loss_without_gradient_is_refused() -> None:
    model = zoo.make(zoo.Twice)
    with pytest.raises(NotDifferentiable, match="detach"):
        spat.find_sites(model, lambda m, b: zoo.loss(m, b).detach(), zoo.batch())
    with torch.inference_mode(), pytest.raises(NotDifferentiable, match="inference"):
        spat.find_sites(model, zoo.loss, zoo.batch())


def test_a_scalar_loss_finds_sites_but_gives_no_scores() -> None:
    model = zoo.make(zoo.Twice)
    mean = lambda m, b: zoo.loss(m, b).mean()  # noqa: E731
    assert len(spat.find_sites(model, mean, zoo.batch())) == 1
    with pytest.raises(NotPerSample, match=r"shape \(\)"):
        spat.score(model, [zoo.batch()], mean)
    with pytest.raises(NotPerSample, match="3 "):
        spat.score(model, [zoo.batch()], lambda m, b: zoo.loss(m, b).repeat(2)[:2])
    # One value would count as one sample, whose maps are those of all.
    with pytest.raises(NotPerSample, match="1 values.*no axis of the batch"):
        spat.score(model, [zoo.batch()], lambda m, b: zoo.loss(m, b).mean()[None])
    small = spat.prune(model, ["layer.attention"], mean, zoo.batch())
    assert isinstance(small.spat_removal, Removal) and small.spat_removal.removed


def test_units_replace_discovery() -> None:
    model = zoo.make(lambda: nn.Sequential(zoo.Layer(zoo.Local()), zoo.Layer(zoo.Local())))
    sites = spat.find_sites(model, zoo.loss, zoo.batch(), units=["*.attention"])
    assert [site.name for site in sites] == ["0.attention", "1.attention"]
    assert all(site.refusal is None and site.calls == 1 for site in sites)
    with pytest.raises(UnknownSite, match="did you mean '0.attention'"):
        spat.find_sites(model, zoo.loss, zoo.batch(), units=["0.atention"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sites_of_a_frozen_model_of_any_precision_are_found_without_a_change(
    dtype: torch.dtype,
) -> None:
    model = zoo.make(lambda: zoo.Layer(zoo.Nano()), dtype).requires_grad_(False)
    with torch.no_grad():
        assert len(spat.find_sites(model, zoo.loss, zoo.batch(dtype))) == 1
        spat.score(model, [zoo.batch(dtype)], zoo.loss)
    assert model.training
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def masked_attention(mask: Tensor) -> Any:
    """F.scaled_dot_product_attention with an explicit mask of ones on A."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *_: Any, **given: Any
    ) -> Tensor:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        if given.get("is_causal"):
            logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -math.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            logits = logits + attn_mask
        return (logits.softmax(-1) * mask) @ v

    return attention


@pytest.mark.parametrize("maker", [
    lambda: zoo.Layer(zoo.Nano()),
    lambda: zoo.Layer(zoo.Grouped()),
    lambda: nn.TransformerEncoderLayer(zoo.WIDTH, zoo.HEADS, 24, 0.0, batch_first=True),
])  # fmt: skip
def test_fused_sensitivity_is_the_gradient_by_a_mask_of_ones(
    maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = zoo.make(maker).eval(), zoo.batch()
    (trace,) = discovery.traces(model, zoo.loss, given)
    S = trace.mixing.S[:, 0]
    mask = torch.ones(*S.shape, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", masked_attention(mask))
    (exact,) = torch.autograd.grad(zoo.loss(model, given).sum(), mask)
    assert float((S - exact).abs().max() / exact.abs().max()) < 1e-12


def test_sensitivity_of_a_softmax_is_the_gradient_by_a_mask_of_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, given = zoo.make(lambda: zoo.Layer(zoo.Einsum())), zoo.batch()
    (trace,) = discovery.traces(model, zoo.loss, given)
    S = trace.mixing.S[:, 0]
    mask = torch.ones(*S.shape, dtype=torch.float64, requires_grad=True)
    plain = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda t, dim: plain(t, dim) * mask)
    (exact,) = torch.autograd.grad(zoo.loss(model, given).sum(), mask)
    assert float((S - exact).abs().max() / exact.abs().max()) < 1e-12


def test_hidden_keys_do_not_count() -> None:  # R3
    model = zoo.make(lambda: zoo.Layer(zoo.Nano()))
    (trace,) = discovery.traces(model, zoo.loss, zoo.batch())
    expected = torch.ones(zoo.TOKENS, zoo.TOKENS, dtype=torch.bool).tril()
    assert torch.equal(trace.mixing.allowed, expected)
    trace = discovery.traces(zoo.make(zoo.Padded), zoo.loss, zoo.batch())[0]
    kept = trace.mixing.allowed[:, 0, 0, 0].sum(-1).tolist()
    assert kept == [zoo.TOKENS, zoo.TOKENS - 2, 2]


@pytest.mark.parametrize(
    "attention",
    [zoo.Nano, lambda: nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True)],
)
def test_channels_in_the_batch_are_sequences_of_a_window(attention: Any) -> None:  # R2
    model = zoo.make(lambda: zoo.ByChannel(attention()))
    (trace,) = discovery.traces(model, zoo.loss, zoo.batch())
    assert trace.mixing.S.shape == (zoo.SAMPLES, 5, zoo.HEADS, zoo.TOKENS, zoo.TOKENS)


def test_heads_that_are_joined_with_the_batch_are_told_apart() -> None:
    model = zoo.make(
        lambda: zoo.Layer(nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True))
    )
    (trace,) = discovery.traces(model, zoo.loss, zoo.batch())
    assert trace.mixing.S.shape == (zoo.SAMPLES, 1, zoo.HEADS, zoo.TOKENS, zoo.TOKENS)


def test_a_batch_in_the_second_axis_gives_the_same_scores() -> None:
    first = zoo.make(
        lambda: zoo.Layer(nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True))
    )
    second = zoo.make(lambda: zoo.Layer(nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS)))
    second.load_state_dict(first.state_dict())

    def turned(model: Any, given: Any) -> Tensor:
        y = model(given[0].transpose(0, 1)).transpose(0, 1)
        return F.mse_loss(y, given[1], reduction="none").mean((1, 2))

    a = spat.score(first, [zoo.batch()], zoo.loss).values
    b = spat.score(second, [zoo.batch()], turned).values
    assert a == pytest.approx(b, rel=1e-12)


class TokensFirst(nn.Module):
    """Attention with tokens in the first axis, which may turn them there itself."""

    def __init__(self, turns: bool, weights: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS)
        self.turns, self.weights = turns, weights

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.turns else x
        y: Tensor = self.inner(x, x, x, need_weights=self.weights)[0]
        return y.transpose(0, 1) if self.turns else y


@pytest.mark.parametrize("size", [3, 4, 8, 16])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("turns", [True, False])
def test_the_axis_of_the_batch_is_known_within_a_module_too(
    turns: bool, weights: bool, size: int
) -> None:
    tokens = 8  # a multiple of some sizes of the batch
    given = tuple(torch.randn(size, tokens, zoo.WIDTH).double() for _ in range(2))
    inner = nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True)
    first = zoo.make(lambda: zoo.Layer(inner))
    other = zoo.make(lambda: zoo.Layer(TokensFirst(turns, weights)))
    names = {name.replace("attention.", "attention.inner."): w
             for name, w in first.state_dict().items()}  # fmt: skip
    other.load_state_dict(names)

    def loss(model: Any, given: Any) -> Tensor:
        axes = (0, 0) if model is first or turns else (0, 1)
        y = model(given[0].transpose(*axes)).transpose(*axes)
        return F.mse_loss(y, given[1], reduction="none").mean((1, 2))

    for criterion in ("send", "send_window", "michel", "fisher", "cosine", "block_influence"):
        a, b = (spat.score(m, [given], loss, criterion=criterion) for m in (first, other))
        assert a.sites[0].heads == b.sites[0].heads == zoo.HEADS
        assert a.values == pytest.approx(b.values, rel=1e-9), criterion


def test_a_loss_that_hardly_depends_on_attention_is_warned_of() -> None:  # R5
    model = zoo.make(lambda: nn.Sequential(zoo.Layer(zoo.Nano()), nn.LayerNorm(zoo.WIDTH)))
    flat = lambda m, b: 0 * m(b[0]).square().mean((1, 2)) + 1  # noqa: E731
    with pytest.warns(AttentionWarning, match="rounding noise"):
        spat.score(model, [zoo.batch()], flat)


@pytest.mark.parametrize("name", ["iTransformer", "PatchTST", "Transformer"])
def test_discovery_agrees_with_the_hooks_of_the_own_models(name: str) -> None:  # R1, R4
    model, cases, cut = small(name), windows(), batches(20)
    given = cases.batch(cut[0])
    hooked, discovered = hook_traces(model, given), discovery.traces(model, LOSSES, given)
    # The last cross-attention of Transformer is no site of the pipeline.
    assert len(discovered) - len(hooked) == (name == "Transformer")
    for hook, own in zip(hooked, discovered, strict=False):
        for part in ("S", "A"):
            a, b = getattr(hook.mixing, part), getattr(own.mixing, part)
            assert a.shape == b.shape
            assert float((a - b).abs().max() / a.abs().max()) < 1e-12
        assert float((hook.output.y - own.output.y).abs().max()) < 1e-12
        assert float((hook.output.dy - own.output.dy).abs().max()) < 1e-12
    for criterion in ("send", "send_window", "michel", "cosine", "block_influence"):
        wanted = pipeline_score(model, cases, cut, LOSSES, [criterion], batch_size=20)
        wanted = [one.value for one in wanted if one.criterion == criterion]
        scores = spat.score(model, map(cases.batch, cut), LOSSES, criterion=criterion)
        for values, whole, each in zip(wanted, scores.values, scores.per_batch, strict=False):
            assert whole == pytest.approx(values[0, 0], rel=1e-12)
            assert each == pytest.approx(values[1:, 0], rel=1e-12)


@pytest.mark.parametrize("name", ["einsum", "nanoGPT"])
def test_scores_leave_no_tensor_in_memory(name: str) -> None:
    model = zoo.make(zoo.REMOVABLE[name][0])

    def held() -> int:
        gc.collect()
        return sum(issubclass(type(one), Tensor) for one in gc.get_objects())

    spat.score(model, [zoo.batch()], zoo.loss)
    before = held()
    spat.score(model, [zoo.batch()] * 3, zoo.loss)
    assert held() == before


def test_scores_are_a_table_and_give_the_lowest() -> None:
    model = zoo.make(zoo.REMOVABLE["TransformerEncoder pre-norm"][0])
    scores = spat.score(model, [zoo.batch()] * 5, zoo.loss, batches_max=2)
    assert scores.per_batch.shape == (3, 2)
    order = sorted(scores.sites, key=lambda site: scores[site.name])
    assert scores.lowest(1) == (order[0].name,)
    assert scores.lowest(0.5) == (order[0].name, order[1].name)
    assert "queries x keys" in str(scores) and "layers.0.self_attn" in str(scores)
    assert len(scores.table()) == 3 * (1 + zoo.HEADS)
    with pytest.raises(UnknownSite, match="did you mean"):
        scores["layers.0.self_atn"]
    with pytest.raises(ValueError, match="only 3 sites"):
        scores.lowest(4)
    with pytest.raises(ValueError, match="choose from"):
        spat.score(model, [zoo.batch()], zoo.loss, criterion="magnitude")


class Sigmoid(zoo.Nano):
    """Attention of another form, which only `units` can specify."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (zoo.split(t) for t in self.qkv(x).chunk(3, -1))
        y: Tensor = self.o(((q @ k.mT).sigmoid() @ v).transpose(1, 2).flatten(2))
        return y


def test_attention_of_any_form_is_ranked_by_the_loss_without_it() -> None:
    model = zoo.make(lambda: nn.Sequential(zoo.Layer(Sigmoid()), zoo.Layer(Sigmoid())))
    with pytest.raises(NoSites):
        spat.score(model, [zoo.batch()], zoo.loss, criterion="loss_drop")
    units = ("*.attention",)
    pair = [zoo.batch(), zoo.batch(size=2)]
    scores = spat.score(model, pair, zoo.loss, criterion="loss_drop", units=units)
    (lowest,) = scores.lowest(1)
    small = spat.prune(model, [lowest], zoo.loss, zoo.batch(), units=units)
    changes = [zoo.loss(small.eval(), one) - zoo.loss(model.eval(), one) for one in pair]
    assert scores[lowest] == pytest.approx(torch.cat(changes).mean().item(), abs=1e-12)
    with pytest.raises(ValueError, match="no batches"):
        spat.score(model, [], zoo.loss, criterion="loss_drop", units=units)
    with pytest.raises(NotPerSample):
        spat.score(model, [zoo.batch()], _scalar, criterion="loss_drop", units=units)


def _scalar(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return zoo.loss(model, batch).mean()


ALONE = """
import sys
for name in ("pandas", "pydantic", "snakemake", "mlflow"):
    sys.modules[name] = None
import spat
assert "torch" not in sys.modules
sys.path.insert(0, sys.argv[1])
import zoo
model = zoo.make(lambda: zoo.Layer(zoo.Nano()))
scores = spat.score(model, [zoo.batch()], zoo.loss)
small = spat.prune(model, scores.lowest(1), zoo.loss, zoo.batch())
print(scores, report := spat.compare(model, small, zoo.batch()[0], repeats=1))
for table in (scores.table, report.table):
    try:
        table()
    except ImportError as error:
        assert "pip install pandas" in str(error)
    else:
        raise AssertionError("a table without pandas")
"""


def test_the_library_needs_neither_pandas_nor_the_pipeline() -> None:
    folder = zoo.__file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "attention" in done.stdout and "flops" in done.stdout


class Talking(nn.Module):
    """Heads whose attention maps are mixed by a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(zoo.WIDTH, 3 * zoo.WIDTH), nn.Linear(zoo.WIDTH, zoo.WIDTH)
        self.mix = nn.Linear(zoo.HEADS, zoo.HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(zoo.split, self.qkv(x).chunk(3, -1))
        A = self.mix((q @ k.mT).softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.o((A @ v).transpose(1, 2).flatten(2))


class Latent(nn.Module):
    """A query that is a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(zoo.TOKENS, zoo.WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (self.query @ x.mT).softmax(-1) @ x


@pytest.mark.parametrize("maker", [Talking, Latent])
def test_attention_of_another_form_is_not_taken_for_softmax_of_q_k_times_v(maker: Any) -> None:
    model = zoo.make(lambda: nn.Sequential(zoo.Layer(maker()), zoo.Layer(zoo.Nano())))
    sites = spat.find_sites(model, zoo.loss, zoo.batch())
    assert [site.name for site in sites] == ["1.attention"]
    with pytest.raises(NoSites):
        spat.find_sites(zoo.make(lambda: zoo.Layer(maker())), zoo.loss, zoo.batch())
    # As a unit it can be removed, and ranked by its output, but not by its attention map.
    given: Any = {"units": ["*.attention"]}
    scores = spat.score(model, [zoo.batch()], zoo.loss, criterion="cosine", **given)
    assert [site.name for site in scores.sites] == ["0.attention", "1.attention"]
    with pytest.raises(ValueError, match=r"0.attention.*no softmax"):
        spat.score(model, [zoo.batch()], zoo.loss, criterion="send", **given)
    small = spat.prune(model, ["0.attention"], zoo.loss, zoo.batch(), **given)
    assert isinstance(small.spat_removal, Removal)
    assert small.spat_removal.removed == ("0.attention",)


def test_attention_without_a_residual_is_not_compared_with_its_input() -> None:
    model = zoo.make(zoo.NoSum)
    assert spat.score(model, [zoo.batch()], zoo.loss, criterion="michel").values > 0
    with pytest.raises(ValueError, match="view Residual.*its output is added to"):
        spat.score(model, [zoo.batch()], zoo.loss, criterion="cosine")
