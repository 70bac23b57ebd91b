"""Attention found in the autograd graph: which modules, and S and A as autograd gives them."""

import gc
import itertools
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
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
from spat.attention import nodes, tracing
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
from spat.attention.views import Residual
from spat.scoring.scores import score as pipeline_score
from spat.surgery.foreign import Removal


def internal_nodes() -> dict[Any, tuple[str, ...]]:
    """Backward nodes, and what `spat.attention.nodes` reads of them."""
    x = torch.rand(1, 1, 3, 2, requires_grad=True)
    product: Any = (x[0] @ x[0].mT).grad_fn
    fused = ("query", "key", "value", "is_causal", "scale", "attn_mask")
    return {
        F.scaled_dot_product_attention(x, x, x).grad_fn: fused,
        x.softmax(-1).grad_fn: ("result", "dim"),
        x.sum(-1).grad_fn: ("dim",),
        x.log_softmax(-1).grad_fn: ("dim",),
        x.logsumexp(-1).grad_fn: ("dim",),
        product.next_functions[0][0]: ("self", "mat2"),
        torch.baddbmm(x[0].mT @ x[0], x[0].mT, x[0]).grad_fn: ("batch1", "batch2"),
        (x + x).grad_fn: ("alpha",),
        (x * x).grad_fn: ("self", "other"),
        (x / x).grad_fn: ("other",),
        x.lerp(2 * x, 0.5).grad_fn: ("weight",),
        x.permute(3, 2, 1, 0).grad_fn: ("dims",),
        x.transpose(0, 1).grad_fn: ("dim0", "dim1"),
        x.unsqueeze(0).grad_fn: ("dim",),
    }


def test_torch_has_the_internals_that_the_graph_is_read_with() -> None:
    problems = []
    if not hasattr(torch._C._autograd, "_get_sequence_nr"):
        problems.append("torch has no sequence number of autograd nodes (_get_sequence_nr)")
    if not hasattr(torch._C._functorch, "is_functorch_wrapped_tensor"):
        problems.append("torch does not tell the tensors of torch.func apart")
    for node, saved in internal_nodes().items():
        needed = ("next_functions", "_sequence_nr", "_input_metadata", "name")
        for attribute in (*needed, *(f"_saved_{name}" for name in saved)):
            if not hasattr(node, attribute):
                kind = type(node).__name__
                problems.append(f"the backward node {kind} has no attribute {attribute}")
    assert problems == []


def test_one_module_reads_the_internals_of_torch() -> None:
    folder = Path(nodes.__file__).parent.parent
    internals = re.compile(r"\b_saved_\w+|\b_sequence_nr|\b_input_metadata|\b_get_sequence_nr")
    found = {
        path.relative_to(folder).as_posix(): set(internals.findall(path.read_text("utf-8")))
        for path in folder.rglob("*.py")
    }
    read = found.pop("attention/nodes.py")
    assert {path: names for path, names in found.items() if names} == {}
    # Whatever it reads is in the test above. `attn_bias` is the mask of the kernel for CUDA.
    known = {f"_saved_{name}" for saved in internal_nodes().values() for name in saved}
    assert read >= {"_sequence_nr", "_get_sequence_nr", "_input_metadata", "_saved_query"}
    assert {name for name in read if name.startswith("_saved_")} - known == {"_saved_attn_bias"}


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


class WithVector(zoo.Nano):
    """Attention that returns its bias, which the layer adds, or another result."""

    def __init__(self, result: bool) -> None:
        super().__init__()
        self.bias, self.result = nn.Parameter(torch.randn(zoo.WIDTH)), result

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y, 2 * y if self.result else self.bias


class Unless(nn.Linear):
    """It does without its input."""

    def forward(self, x: Tensor | None) -> Tensor:
        return self.bias if x is None else super().forward(x)


class Rescaled(zoo.Layer):
    """The output of the attention is changed in place before the sum."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.n1(x))
        y *= 0.5
        x = x + y
        return x + self.mlp(self.n2(x))


class Forces(nn.Module):
    """Its output is the gradient of an energy, as in models of molecules."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = zoo.Layer(zoo.Einsum())

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(self.energy(x).square().sum(), x, create_graph=True)
        return force


class OfVector(zoo.Layer):
    def __init__(self, result: bool, other: type[nn.Linear] = nn.Linear) -> None:
        super().__init__(WithVector(result))
        self.other = other(zoo.WIDTH, zoo.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y, more = self.attention(self.n1(x))
        if self.attention.result:
            self.other(more)  # the loss does not depend on it
        else:
            y = y + more
        x = x + y
        return x + self.mlp(self.n2(x))


@pytest.mark.parametrize(
    ("maker", "refusal", "message"),
    [
        (lambda: InPlace(zoo.Nano()), NoResidual, "not in place"),
        (
            lambda: nn.Sequential(OfVector(True), zoo.Layer(zoo.Nano())),
            SharedOutput,
            "'0.other' uses what '0.attention' computes",
        ),
        (
            lambda: nn.Sequential(OfVector(False), zoo.Layer(zoo.Nano())),
            SharedOutput,
            "'0' uses what '0.attention' computes",
        ),
        (lambda: zoo.Biased(computed=True), SharedOutput, "'second' uses what 'first' computes"),
        (
            lambda: nn.Sequential(Rescaled(zoo.Nano()), zoo.Layer(zoo.Nano())),
            SharedOutput,
            "the output of '0.attention' is changed in place",
        ),
        (Forces, SharedOutput, "computes gradients in its forward pass"),
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


def test_a_module_that_does_without_more_of_the_output_does_not_keep_a_site() -> None:
    model = zoo.make(lambda: OfVector(True, Unless))
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert site.refusal is None
    assert isinstance(spat.prune(model, [site], zoo.loss, zoo.batch()).spat_removal, Removal)


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
    (trace,) = tracing.traces(model, zoo.loss, (x, y))
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


def test_sites_print_as_a_table_with_the_refusals() -> None:
    model = zoo.make(lambda: nn.Sequential(zoo.Beside(), zoo.NoSum()))
    sites = spat.find_sites(model, zoo.loss, zoo.batch())
    lines = str(sites).splitlines()
    head = "site kind heads queries x keys parameters removed with it refusal"
    assert lines[0].split() == head.split()
    assert lines[1].split() == ["0.inner", "self", "4", "7", "x", "7", "1,360", "0.output.dense"]
    assert lines[2].split()[-1] == "NoResidual"
    assert (
        lines[3].startswith("NoResidual: '1.attention': there is no residual") and len(lines) == 4
    )
    assert sites == tuple(sites) and repr(sites) == str(sites)


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


def test_a_compiled_model_is_read_as_it_was_written() -> None:
    model = zoo.make(lambda: nn.Sequential(zoo.Layer(zoo.Nano()), zoo.Layer(zoo.Nano())))
    names = ["0.attention", "1.attention"]
    for compiled, prefix in (
        (torch.compile(model, backend="eager"), "_orig_mod."),
        (nn.Sequential(torch.compile(model[0], backend="eager"), model[1]), ""),
    ):
        sites = spat.find_sites(compiled, zoo.loss, zoo.batch())  # type: ignore[arg-type]
        found = [site.name for site in sites]
        assert found == (
            [prefix + n for n in names] if prefix else ["0._orig_mod.attention", names[1]]
        )
        scores = spat.score(compiled, [zoo.batch()], zoo.loss)  # type: ignore[arg-type]
        assert scores.values == pytest.approx(spat.score(model, [zoo.batch()], zoo.loss).values)
        small: Any = spat.prune(compiled, found, zoo.loss, zoo.batch())  # type: ignore[arg-type]
        plain = spat.prune(model, names, zoo.loss, zoo.batch())
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            assert torch.equal(small.eval()(zoo.batch()[0]), plain.eval()(zoo.batch()[0]))


def test_scores_of_a_quantised_model_are_refused() -> None:
    attention = zoo.Nano()
    model = nn.Sequential(zoo.Layer(attention), zoo.Layer(zoo.Nano()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attention.o = torch.ao.quantization.quantize_dynamic(  # type: ignore[attr-defined]
            nn.Sequential(attention.o), {nn.Linear}, torch.qint8
        )
        given = zoo.batch(torch.float32)
        sites = spat.find_sites(model, zoo.loss, given)
        assert [site.name for site in sites] == ["0.attention", "1.attention"]
        with pytest.raises(NotDifferentiable, match=r"'0.attention.o.0' has an op.*loss_drop"):
            spat.score(model, [given], zoo.loss)
        scores = spat.score(model, [given], zoo.loss, criterion="loss_drop")
        (lowest,) = scores.lowest(1)
        assert isinstance(spat.prune(model, lowest, zoo.loss, given).spat_removal, Removal)


def test_heads_of_one_sequence_without_a_batch_are_counted() -> None:
    model = zoo.make(lambda: zoo.Layer(nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS)))
    x, y = (t[0] for t in zoo.batch())
    mean = lambda m, b: F.mse_loss(m(b[0]), b[1])  # noqa: E731
    (site,) = spat.find_sites(model, mean, (x, y))
    assert (site.heads, site.queries, site.refusal) == (zoo.HEADS, zoo.TOKENS, None)


class Several(nn.Module):
    """A weighted sum of attentions, which begins with 0."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(zoo.Nano() for _ in range(2))
        self.gate = nn.Linear(zoo.WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x).softmax(-1)
        return sum((gates[..., [i]] * one(x) for i, one in enumerate(self.each)), torch.tensor(0))


def test_attention_in_a_weighted_sum_is_compared_with_the_stream() -> None:
    first = nn.Linear(zoo.WIDTH, zoo.WIDTH)
    model: Any = zoo.make(lambda: nn.Sequential(first, zoo.Layer(Several()))).eval()
    names = [site.name for site in spat.find_sites(model, zoo.loss, zoo.batch())]
    assert names == ["1.attention.each.0", "1.attention.each.1"]
    with torch.no_grad():
        x = model[0](zoo.batch()[0])
        y = model[1].n1(x)
        gates = model[1].attention.gate(y).softmax(-1)
        totals = [x + gates[..., [i]] * one(y) for i, one in enumerate(model[1].attention.each)]
    expected = [float((1 - torch.cosine_similarity(x, t, dim=-1)).mean()) for t in totals]
    scores = spat.score(model, [zoo.batch()], zoo.loss, criterion="cosine")
    assert scores.values == pytest.approx(expected, rel=1e-9)


def test_a_loss_of_one_sample_at_a_time_by_vmap_is_refused() -> None:
    model = zoo.make(lambda: zoo.Layer(zoo.Einsum()))

    def loss(model: Any, given: Any) -> Tensor:
        return torch.vmap(lambda x, y: F.mse_loss(model(x[None])[0], y))(*given)

    for call in (
        lambda: spat.find_sites(model, loss, zoo.batch()),
        lambda: spat.score(model, [zoo.batch()], loss),
    ):
        with pytest.raises(NotDifferentiable, match=r"inside torch.vmap.*call the model on the wh"):
            call()


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
    (trace,) = tracing.traces(model, zoo.loss, given)
    S = trace.mixing.S[:, 0]
    mask = torch.ones(*S.shape, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", masked_attention(mask))
    (exact,) = torch.autograd.grad(zoo.loss(model, given).sum(), mask)
    assert float((S - exact).abs().max() / exact.abs().max()) < 1e-12


def test_sensitivity_of_a_softmax_is_the_gradient_by_a_mask_of_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, given = zoo.make(lambda: zoo.Layer(zoo.Einsum())), zoo.batch()
    (trace,) = tracing.traces(model, zoo.loss, given)
    S = trace.mixing.S[:, 0]
    mask = torch.ones(*S.shape, dtype=torch.float64, requires_grad=True)
    plain = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda t, dim: plain(t, dim) * mask)
    (exact,) = torch.autograd.grad(zoo.loss(model, given).sum(), mask)
    assert float((S - exact).abs().max() / exact.abs().max()) < 1e-12


def test_hidden_keys_do_not_count() -> None:  # R3
    model = zoo.make(lambda: zoo.Layer(zoo.Nano()))
    (trace,) = tracing.traces(model, zoo.loss, zoo.batch())
    expected = torch.ones(zoo.TOKENS, zoo.TOKENS, dtype=torch.bool).tril()
    assert torch.equal(trace.mixing.allowed, expected)
    trace = tracing.traces(zoo.make(zoo.Padded), zoo.loss, zoo.batch())[0]
    kept = trace.mixing.allowed[:, 0, 0, 0].sum(-1).tolist()
    assert kept == [zoo.TOKENS, zoo.TOKENS - 2, 2]


@pytest.mark.parametrize(
    "attention",
    [zoo.Nano, lambda: nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True)],
)
def test_channels_in_the_batch_are_sequences_of_a_window(attention: Any) -> None:  # R2
    model = zoo.make(lambda: zoo.ByChannel(attention()))
    (trace,) = tracing.traces(model, zoo.loss, zoo.batch())
    assert trace.mixing.S.shape == (zoo.SAMPLES, 5, zoo.HEADS, zoo.TOKENS, zoo.TOKENS)


def test_heads_that_are_joined_with_the_batch_are_told_apart() -> None:
    model = zoo.make(
        lambda: zoo.Layer(nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True))
    )
    (trace,) = tracing.traces(model, zoo.loss, zoo.batch())
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
    hooked, discovered = hook_traces(model, given), tracing.traces(model, LOSSES, given)
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


class Mapped(zoo.Nano):
    """Attention whose weights are computed in a way of their own; a mask may multiply them."""

    def __init__(self, function: Any, maps: int = 1, **parts: Any) -> None:
        super().__init__()
        self.function, self.maps, self.mask = function, maps, None
        self.qk = nn.Linear(zoo.WIDTH, 2 * maps * zoo.WIDTH)
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        v = zoo.split(self.qkv(x).chunk(3, -1)[2])
        q, k = (zoo.split(t, zoo.HEADS * self.maps) for t in self.qk(x).chunk(2, -1))
        A = self.function(self, q @ k.mT)
        A = A if self.mask is None else A * self.mask
        y: Tensor = self.o((A @ v).transpose(1, 2).flatten(2))
        return y


def exp_over_sum(_: Any, x: Tensor) -> Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def masked_exp_over_sum(_: Any, x: Tensor) -> Tensor:
    hidden = torch.ones(x.shape[-2:]).triu(1).bool()
    e = x.exp().masked_fill(hidden, 0.0)
    return e * (e.sum(-1)[..., None] + 1e-9).reciprocal()


def to_heads_last(function: Any) -> Any:
    """A map over the last axis, which is applied to the axis of heads."""
    return lambda x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def subtracted(m: Any, x: Tensor) -> Tensor:
    first, second = x.softmax(-1).chunk(2, 1)
    return first - m.scale.exp() * second


def interleaved(m: Any, x: Tensor) -> Tensor:
    A = x.softmax(-1).unflatten(1, (zoo.HEADS, 2))
    return A[:, :, 0] - m.scale * A[:, :, 1]


def renormalised(m: Any, x: Tensor) -> Tensor:
    A = x.softmax(-1) * m.scale
    return A / A.sum(-1, keepdim=True)


def with_sink(m: Any, x: Tensor) -> Tensor:
    """The weights of a key without a value, which are left out."""
    sink = m.sink.expand(*x.shape[:-1], 1)
    return torch.cat([x, sink], -1).softmax(-1)


HEADS_SQUARED = (zoo.HEADS, zoo.HEADS)
# name -> maker of attention whose weights are not a plain softmax
FORMS: dict[str, Any] = {
    "exp over sum": lambda: Mapped(exp_over_sum),
    "exp over sum with a mask": lambda: Mapped(masked_exp_over_sum),
    "exp of log_softmax": lambda: Mapped(lambda _, x: F.log_softmax(x, -1).exp()),
    "exp less logsumexp": lambda: Mapped(lambda _, x: (x - x.logsumexp(-1)[..., None]).exp()),
    "over all keys and one more": lambda: Mapped(
        lambda _, x: x.exp() / (1 + x.exp().sum(-1, keepdim=True))
    ),
    "talking heads after": lambda: Mapped(
        lambda m, x: to_heads_last(m.mix)(x.softmax(-1)), mix=nn.Linear(*HEADS_SQUARED)
    ),
    "talking heads before": lambda: Mapped(
        lambda m, x: to_heads_last(m.mix)(x).softmax(-1), mix=nn.Linear(*HEADS_SQUARED)
    ),
    "talking heads before and after": lambda: Mapped(
        lambda m, x: torch.einsum(
            "bhqk,hg->bgqk", torch.einsum("bhqk,hg->bgqk", x, m.before).softmax(-1), m.after
        ),
        before=torch.randn(HEADS_SQUARED),
        after=torch.randn(HEADS_SQUARED),
    ),
    "talking heads by convolution": lambda: Mapped(
        lambda m, x: m.mix(x.softmax(-1)), mix=nn.Conv2d(*HEADS_SQUARED, 1)
    ),
    "mixed heads and their norm": lambda: Mapped(
        lambda m, x: to_heads_last(m.norm)(torch.einsum("bhqk,hg->bgqk", x.softmax(-1), m.mix)),
        mix=torch.randn(HEADS_SQUARED),
        norm=nn.LayerNorm(zoo.HEADS),
    ),
    "difference": lambda: Mapped(subtracted, 2, scale=torch.tensor(0.3)),
    "difference of neighbours": lambda: Mapped(interleaved, 2, scale=torch.tensor(0.3)),
    "softmax by hand, then mixed": lambda: Mapped(
        lambda m, x: to_heads_last(m.mix)(exp_over_sum(m, x)), mix=nn.Linear(*HEADS_SQUARED)
    ),
    "normalised again": lambda: Mapped(renormalised, scale=torch.rand(zoo.TOKENS) + 0.5),
    "sink": lambda: Mapped(lambda m, x: with_sink(m, x)[..., :-1], sink=torch.randn(4, 1, 1)),
    "sink that is split off": lambda: Mapped(
        lambda m, x: with_sink(m, x).split([zoo.TOKENS, 1], -1)[0], sink=torch.randn(4, 1, 1)
    ),
    "sink in front of turned axes": lambda: Mapped(
        lambda m, x: with_sink(m, x).permute(3, 0, 1, 2)[1:].permute(1, 2, 3, 0),
        sink=torch.randn(4, 1, 1),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_weights_of_any_form_are_found_with_their_sensitivity(name: str) -> None:
    model: Any = zoo.make(lambda: zoo.Layer(FORMS[name]())).eval()
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert (site.name, site.calls, site.heads, site.kind) == ("attention", 1, zoo.HEADS, "self")
    assert (site.queries, site.keys, site.refusal) == (zoo.TOKENS, zoo.TOKENS, None)
    (trace,) = tracing.traces(model, zoo.loss, zoo.batch())
    attention, S = model.attention, trace.mixing.S[:, 0]
    attention.mask = torch.ones(*S.shape, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(zoo.loss(model, zoo.batch()).sum(), attention.mask)
    assert float((S - exact).abs().max() / exact.abs().max()) < 1e-12
    # The sum of S is the gradient by a gate on O = A V.
    gate = model.attention.o.weight, trace.gate[:, 0]
    assert gate[1] == pytest.approx(exact.flatten(1).sum(1), rel=1e-9)
    attention.mask = None
    small = spat.prune(model, ["attention"], zoo.loss, zoo.batch())
    assert isinstance(small.spat_removal, Removal)
    assert small.spat_removal.removed == ("attention",)
    for criterion in ("send", "michel", "cosine", "attention_std", "snip"):
        values = spat.score(model, [zoo.batch()], zoo.loss, criterion=criterion).values
        assert math.isfinite(values[0]), criterion


class Latents(nn.Module):
    """Queries that are a parameter, and tokens that the results are added to."""

    def __init__(self, shape: tuple[int, ...], rule: str, weigh: str) -> None:
        super().__init__()
        self.query, self.mask = nn.Parameter(torch.randn(shape)), None
        self.kv, self.rule, self.weigh = nn.Linear(zoo.WIDTH, 2 * zoo.WIDTH), rule, weigh

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, -1)
        if "h" in self.rule:
            k, v = zoo.split(k), zoo.split(v)
        A = torch.einsum(self.rule, self.query, k).softmax(-1)
        y = torch.einsum(self.weigh, A if self.mask is None else A * self.mask, v)
        return y.unsqueeze(1).expand_as(x) if y.ndim == 2 else y


# shape of the query, logits, product with v, expected heads and queries
LATENTS = {
    "latents": ((zoo.TOKENS, zoo.WIDTH), "qd,bkd->bqk", "bqk,bkd->bqd", (1, zoo.TOKENS)),
    "one query": ((zoo.WIDTH,), "d,bkd->bk", "bk,bkd->bd", (1, 1)),
    "latents of heads": (
        (zoo.HEADS, zoo.TOKENS, zoo.WIDTH // zoo.HEADS),
        "hqd,bhkd->bhqk",
        "bhqk,bhkd->bqhd",
        (zoo.HEADS, zoo.TOKENS),
    ),
}


@pytest.mark.parametrize("name", LATENTS)
def test_queries_may_be_a_parameter(name: str) -> None:
    shape, rule, weigh, (heads, queries) = LATENTS[name]

    class Flat(Latents):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.flatten(2) if y.ndim > 3 else y

    model: Any = zoo.make(lambda: zoo.Layer(Flat(shape, rule, weigh))).eval()
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert (site.name, site.kind, site.refusal) == ("attention", "cross", None)
    assert (site.heads, site.queries, site.keys) == (heads, queries, zoo.TOKENS)
    (trace,) = tracing.traces(model, zoo.loss, zoo.batch())
    S = trace.mixing.S
    given = S[:, 0] if heads > 1 else S[:, 0, 0] if queries > 1 else S[:, 0, 0, 0]
    model.attention.mask = torch.ones(given.shape, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(zoo.loss(model, zoo.batch()).sum(), model.attention.mask)
    assert float((given - exact).abs().max() / exact.abs().max()) < 1e-12
    model.attention.mask = None
    small = spat.prune(model, ["attention"], zoo.loss, zoo.batch())
    assert isinstance(small.spat_removal, Removal) and small.spat_removal.removed


class NoAttention(nn.Module):
    """A softmax that weighs something, but not values by queries and keys."""

    def __init__(self, function: Any, **parts: Any) -> None:
        super().__init__()
        self.function, self.f = function, nn.Linear(zoo.WIDTH, zoo.WIDTH)
        self.experts = nn.Parameter(torch.randn(5, zoo.WIDTH, zoo.WIDTH) / 4)
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.function(self, self.f(x))
        return y


def experts(m: Any, x: Tensor, gates: Tensor) -> Tensor:
    return torch.einsum("bte,btef->btf", gates, torch.einsum("btd,edf->btef", x, m.experts))


def pooled(scores: Tensor, x: Tensor) -> Tensor:
    return (scores.softmax(1).mT @ x).mean(1, keepdim=True)


def expert_norm(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


OTHERS: dict[str, tuple[Any, str]] = {
    "router": (
        lambda: NoAttention(
            lambda m, x: experts(m, x, (x @ m.router).softmax(-1)),
            router=torch.randn(zoo.WIDTH, 5),
        ),
        "not of a product of q and k",
    ),
    "router by hand": (
        lambda: NoAttention(
            lambda m, x: experts(m, x, exp_over_sum(m, x @ m.router)),
            router=torch.randn(zoo.WIDTH, 5),
        ),
        "not of a product of q and k",
    ),
    "router by cosine": (
        lambda: NoAttention(
            lambda m, x: experts(m, x, (expert_norm(x) @ expert_norm(m.router).mT).softmax(-1)),
            router=torch.randn(5, zoo.WIDTH),
        ),
        "other values in each row, as a mixture of experts",
    ),
    "pooling by scores": (
        lambda: NoAttention(lambda m, x: pooled(m.score(x), x), score=nn.Linear(zoo.WIDTH, 1)),
        "not of a product of q and k",
    ),
    "token learner": (
        lambda: NoAttention(
            lambda m, x: pooled(m.score(x), x), score=nn.Linear(zoo.WIDTH, 3, bias=False)
        ),
        "not of a product of q and k",
    ),
    "gated pooling": (
        lambda: NoAttention(
            lambda m, x: pooled(m.score(x.tanh() * m.gate(x).sigmoid()), x),
            score=nn.Linear(zoo.WIDTH, 1),
            gate=nn.Linear(zoo.WIDTH, zoo.WIDTH),
        ),
        "not of a product of q and k",
    ),
    "gated features": (
        lambda: NoAttention(lambda m, x: m.f(x).softmax(-1) * x),
        "not of a product of q and k",
    ),
    "memory": (
        lambda: NoAttention(
            lambda m, x: (x @ m.keys).softmax(-1) @ m.values,
            keys=torch.randn(zoo.WIDTH, 5),
            values=torch.randn(5, zoo.WIDTH),
        ),
        "not of a product of q and k",
    ),
    "similarities": (
        lambda: NoAttention(lambda m, x: (x @ x.mT).softmax(-1).mean(-1, keepdim=True)),
        "not multiplied with values",
    ),
    "mixed keys": (
        lambda: NoAttention(
            lambda m, x: m.mix((x @ x.mT).softmax(-1)) @ x, mix=nn.Linear(zoo.TOKENS, zoo.TOKENS)
        ),
        "not as weights of its own keys",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_softmax_that_is_not_attention_is_named_but_is_no_site(name: str) -> None:
    maker, reason = OTHERS[name]
    with pytest.raises(NoSites, match=r"units=") as raised:
        spat.find_sites(zoo.make(maker), zoo.loss, zoo.batch())
    assert "in 'NoAttention' " in str(raised.value) and reason in str(raised.value)
    # Beside attention only a map that may be attention of another form is worth a warning.
    model = zoo.make(lambda: nn.Sequential(maker(), zoo.Layer(zoo.Nano())))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert site.name == "1.attention"
    messages = [str(one.message) for one in caught]
    if name == "mixed keys":
        assert len(messages) == 1 and "units=" in messages[0] and "in '0' " in messages[0]
    else:
        assert messages == []


class OwnSoftmax(torch.autograd.Function):
    """A softmax with a backward pass of its own, as that of DeBERTa's relatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        A = x.softmax(-1)
        ctx.save_for_backward(A)
        return A

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (A,), (g,) = ctx.saved_tensors, gradients
        return A * (g - (A * g).sum(-1, keepdim=True))


def test_a_softmax_with_its_own_backward_pass_is_named_and_ranked_as_a_unit() -> None:
    model = zoo.make(
        lambda: zoo.Layer(Mapped(lambda _, x: OwnSoftmax.apply(x)))  # type: ignore[no-untyped-call]
    )
    with pytest.raises(NoSites, match="'attention' has a softmax with a backward pass of its own"):
        spat.find_sites(model, zoo.loss, zoo.batch())
    given: Any = {"units": "attention"}
    scores = spat.score(model, [zoo.batch()], zoo.loss, criterion="loss_drop", **given)
    small = spat.prune(model, scores.lowest(1), zoo.loss, zoo.batch(), **given)
    assert isinstance(small.spat_removal, Removal) and small.spat_removal.removed


def test_a_softmax_over_classes_is_no_attention() -> None:
    model = zoo.make(lambda: nn.Sequential(zoo.Layer(zoo.Nano()), nn.Linear(zoo.WIDTH, 5)))

    def loss(model: Any, given: Any) -> Tensor:
        shares = model(given[0]).softmax(-1)
        return (shares @ shares.mT).square().mean((1, 2))  # a product of two activations

    assert [site.name for site in spat.find_sites(model, loss, zoo.batch())] == ["0.attention"]


def test_a_unit_of_another_form_is_ranked_by_its_output_and_not_by_its_map() -> None:
    model = zoo.make(lambda: nn.Sequential(zoo.Layer(Sigmoid()), zoo.Layer(FORMS["difference"]())))
    given: Any = {"units": ["*.attention"]}
    scores = spat.score(model, [zoo.batch()], zoo.loss, criterion="cosine", **given)
    assert [site.name for site in scores.sites] == ["0.attention", "1.attention"]
    with pytest.raises(ValueError, match=r"0.attention.*no softmax"):
        spat.score(model, [zoo.batch()], zoo.loss, criterion="send", **given)
    small = spat.prune(model, ["0.attention"], zoo.loss, zoo.batch(), **given)
    assert isinstance(small.spat_removal, Removal)
    assert small.spat_removal.removed == ("0.attention",)
    # A unit with attention of a form that is found has the score of the site.
    unnamed = spat.score(model, [zoo.batch()], zoo.loss)
    named = spat.score(model, [zoo.batch()], zoo.loss, units="1.attention")
    assert named.values == pytest.approx(unnamed.values, rel=1e-12)


class RootNorm(nn.Module):
    """A norm by hand, whose epsilon is added to a mean that comes from the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(zoo.WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class NormedWithin(zoo.Nano):
    """The norm stands before the output projection, as in BitNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RootNorm()
        self.o = nn.Sequential(self.norm, self.o)  # type: ignore[assignment]


class NormedAfter(zoo.Layer):
    """The output of the attention is normed before the sum, as in Gemma 2."""

    def __init__(self) -> None:
        super().__init__(zoo.Nano())
        self.after = RootNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.after(self.attention(self.n1(x)))
        return x + self.mlp(self.n2(x))


class Parallel(zoo.Layer):
    """Attention and MLP read the same stream, and their sum is added to it, as in GPT-J."""

    def forward(self, x: Tensor) -> Tensor:
        both = self.mlp(self.n2(x))
        both = both + self.attention(self.n1(x))
        return x + both


class WindowsOutside(zoo.Layer):
    """The layer cuts the stream into windows and joins them again, as in Swin."""

    def forward(self, x: Tensor) -> Tensor:
        parts = self.n1(x).unfold(1, 4, 4).mT.flatten(0, 1)
        x = x + self.attention(parts).reshape(x.shape)
        return x + self.mlp(self.n2(x))


# name -> maker of a layer, what the layer adds to its input
STREAMS: dict[str, tuple[Any, Any]] = {
    "norm within": (
        lambda: zoo.Layer(NormedWithin()),
        lambda m, x: m.attention(m.n1(x)),
    ),
    "norm after": (NormedAfter, lambda m, x: m.after(m.attention(m.n1(x)))),
    "parallel": (lambda: Parallel(zoo.Nano()), lambda m, x: m.attention(m.n1(x))),
    "windows": (
        lambda: WindowsOutside(zoo.Nano()),
        lambda m, x: m.attention(m.n1(x).unfold(1, 4, 4).mT.flatten(0, 1)).reshape(x.shape),
    ),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("first", [True, False])
def test_the_stream_is_what_the_attention_reads_from(name: str, first: bool) -> None:
    maker, branch = STREAMS[name]
    given = tuple(torch.randn(zoo.SAMPLES, 8, zoo.WIDTH).double() for _ in range(2))
    before = nn.Identity() if first else nn.Linear(zoo.WIDTH, zoo.WIDTH)
    model: Any = zoo.make(lambda: nn.Sequential(before, maker())).eval()
    (site,) = spat.find_sites(model, zoo.loss, given)
    assert (site.name, site.refusal) == ("1.attention", None)
    assert site.branch == (("1.after",) if name == "norm after" else ())
    with torch.no_grad():
        x = model[0](given[0])
        total = x + branch(model[1], x)
    expected = float((1 - torch.cosine_similarity(x, total, dim=-1)).mean())
    scores = spat.score(model, [given], zoo.loss, criterion="cosine")
    assert scores.values == pytest.approx([expected], rel=1e-9)
    assert isinstance(spat.prune(model, [site], zoo.loss, given).spat_removal, Removal)


class Added(nn.Module):
    """Attention whose output is added in a way of its own, before another module."""

    def __init__(self, rule: Any, shown: bool) -> None:
        super().__init__()
        self.attention, self.norm = zoo.Nano(), nn.LayerNorm(zoo.WIDTH)
        self.shown, self.sum = shown, nn.Identity()
        self.scale, self.extra = (nn.Parameter(torch.rand(zoo.WIDTH) + 0.5) for _ in range(2))
        self.last, self.rule = nn.Linear(zoo.WIDTH, zoo.WIDTH), rule

    def branch(self, x: Tensor) -> Tensor:
        return self.attention(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.rule(self, x)[1]
        if self.shown:  # a module has the sum as its input
            total = self.sum(total)
        return self.last(total[:, : x.shape[1]].sin())


def first_token(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.cat([m.scale.expand(len(x), 1, -1), x], 1)
    return x, x + m.branch(x)


def merged(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The means of pairs of tokens."""
    x = x.unflatten(1, (-1, 2)).mean(2)
    return x, x + m.branch(x)


def of_rolled_parts(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.cat([x[:, :2], x[:, 2:].roll(1, 1)[:, :5]], 1)
    return x, x + m.branch(x)


def of_two_branches(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.branch(x)
    stream, total = m.scale * x, m.scale * x + m.extra * y
    return stream, total + 0 * x.tanh()


# what the layer computes from x: the stream, and the sum of stream and attention
ADDED: dict[str, Any] = {
    "scaled": lambda m, x: (m.scale * x, m.scale * x + m.branch(x)),
    "both scaled": lambda m, x: (m.scale * x, m.scale * x + m.extra * m.branch(x)),
    "both scaled by numbers": lambda m, x: (0.5 * x, 0.5 * x + 0.25 * m.branch(x)),
    "divided": lambda m, x: (x / m.scale, x / m.scale + m.branch(x) / 3),
    "gated": lambda m, x: (
        (1 - m.scale.sigmoid()) * x,
        (1 - m.scale.sigmoid()) * x + m.scale.sigmoid() * m.branch(x),
    ),
    "gate of the input": lambda m, x: (
        x.sigmoid() * x,
        x.sigmoid() * x + m.branch(x),
    ),
    "interpolated": lambda m, x: (x * (1 - m.scale), torch.lerp(x, m.branch(x), m.scale)),
    "interpolated from": lambda m, x: (x * m.scale, torch.lerp(m.branch(x), x, m.scale)),
    "added to": lambda m, x: (0.3 * x, torch.add(m.branch(x), x, alpha=0.3)),
    "subtracted from": lambda m, x: (-x, m.branch(x) - x),
    "product and sum": lambda m, x: (x, torch.addcmul(x, m.branch(x), m.scale)),
    "part": lambda m, x: (x[:, 1:], x[:, 1:] + m.branch(x[:, 1:])),
    "first token": first_token,
    "merged": merged,
    "rolled parts": of_rolled_parts,
    "with another sum": of_two_branches,
}
# Without a node, x is not told apart from a constant here.
CONSTANT = ("subtracted from", "with another sum")


@pytest.mark.parametrize(
    ("name", "first"), [(n, f) for n in ADDED for f in (True, False) if not f or n not in CONSTANT]
)
@pytest.mark.parametrize("units", [(), ("1.attention",)])
def test_the_stream_of_a_sum_may_be_scaled_cut_and_joined(
    name: str, units: tuple[str, ...], first: bool
) -> None:
    given = tuple(torch.randn(zoo.SAMPLES, 8, zoo.WIDTH).double() for _ in range(2))

    def loss(model: Any, given: Any) -> Tensor:
        y = model(given[0])
        return F.mse_loss(y, given[1][:, : y.shape[1]], reduction="none").mean((1, 2))

    # An input of the model has no backward node, so that only the sum tells what is added.
    before = nn.Identity() if first else nn.Linear(zoo.WIDTH, zoo.WIDTH)
    model: Any = zoo.make(lambda: nn.Sequential(before, Added(ADDED[name], first))).eval()
    (site,) = spat.find_sites(model, loss, given, units=units)
    assert (site.name, site.refusal) == ("1.attention", None)
    with torch.no_grad():
        stream, total = ADDED[name](model[1], model[0](given[0]))
    (trace,) = tracing.traces(model, loss, given, units)
    assert isinstance(trace.output, Residual)
    assert torch.allclose(trace.output.stream[:, 0], stream, rtol=1e-12, atol=1e-13)
    assert torch.allclose(trace.output.total[:, 0], total, rtol=1e-12, atol=1e-13)
    expected = float((1 - torch.cosine_similarity(stream, total, dim=-1)).mean())
    scores = spat.score(model, [given], loss, criterion="cosine", units=units)
    assert scores.values == pytest.approx([expected], rel=1e-9)
    # What is left is the stream.
    small: Any = spat.prune(model, [site], loss, given, units=units).eval()
    with torch.no_grad():
        left = small(given[0])
        assert torch.allclose(left, model[1].last(stream[:, :8].sin()), atol=1e-12)


class AllButOne(zoo.Layer):
    """Attention is added to all tokens but the first one, as in TimeSformer."""

    def forward(self, x: Tensor) -> Tensor:
        rest = x[:, 1:] + self.attention(self.n1(x[:, 1:]))
        x = torch.cat([x[:, :1], rest], 1)
        return x + self.mlp(self.n2(x))


def test_block_influence_compares_layers_whose_attention_sees_some_tokens() -> None:
    first = nn.Linear(zoo.WIDTH, zoo.WIDTH)
    model: Any = zoo.make(
        lambda: nn.Sequential(first, AllButOne(zoo.Nano()), AllButOne(zoo.Nano()))
    ).eval()
    with torch.no_grad():
        states = [model[0](zoo.batch()[0])]
        for layer in model[1:]:
            states.append(layer(states[-1]))
    expected = [
        float((1 - torch.cosine_similarity(a, b, dim=-1)).mean())
        for a, b in itertools.pairwise(states)
    ]
    scores = spat.score(model, [zoo.batch()], zoo.loss, criterion="block_influence")
    assert scores.values == pytest.approx(expected, rel=1e-9)
    cosines = spat.score(model, [zoo.batch()], zoo.loss, criterion="cosine").values
    assert (cosines != scores.values).all()


class Depth(nn.Module):
    """Attention over the states of earlier layers, with a learned query, as the next input."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(zoo.WIDTH))

    def forward(self, states: Tensor) -> Tensor:
        states = F.normalize(states, dim=-1)
        return ((states @ self.query).softmax(-1).unsqueeze(-2) @ states).squeeze(-2)


class OverDepth(nn.Module):
    """Each branch reads from all earlier states; the sum has only the latest one."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between, self.after = Depth(), Depth(), Depth()
        self.attention = zoo.Nano()
        self.mlp = nn.Sequential(nn.Linear(zoo.WIDTH, 24), nn.GELU(), nn.Linear(24, zoo.WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        states = torch.stack([x, 2 * x.sin()], 2)
        x = x + self.attention(self.before(states))
        states = torch.cat([states, x.unsqueeze(2)], 2)
        x = x + self.mlp(self.between(states))
        return self.after(torch.cat([states, x.unsqueeze(2)], 2))


def test_attention_that_only_feeds_a_branch_is_not_its_site() -> None:
    """As in block attention residuals: what stands before a branch has no sum of its own."""
    model = zoo.make(OverDepth)
    sites = {site.name: site for site in spat.find_sites(model, zoo.loss, zoo.batch())}
    assert list(sites) == ["before", "attention", "between", "after"]
    assert sites["attention"].refusal is None and sites["attention"].branch == ()
    for name, message in {
        "before": "whole input of 'attention', which has the residual",
        "between": r"feed-forward network \(mlp\) stands between",
        "after": "no residual connection around",
    }.items():
        assert isinstance(sites[name].refusal, NoResidual) and sites[name].branch == ()
        assert re.search(message, str(sites[name].refusal)), name
    scores = spat.score(model, [zoo.batch()], zoo.loss)
    assert scores.lowest(1.0) == ("attention",) and (scores.values > 0).all()
    assert isinstance(spat.prune(model, "attention", zoo.loss, zoo.batch()).spat_removal, Removal)


def test_a_parameter_that_is_added_is_a_stream_only_if_the_attention_reads_it() -> None:
    class Placed(nn.Module):
        """A learned position is added to the output, or is what the queries come from."""

        def __init__(self, latent: bool) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True)
            self.places = nn.Parameter(torch.randn(1, zoo.TOKENS, zoo.WIDTH))
            self.latent, self.last = latent, nn.Linear(zoo.WIDTH, zoo.WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            places = self.places.expand_as(x)
            y = self.attention(places if self.latent else x, x, x)[0]
            return self.last(places + y)

    (site,) = spat.find_sites(zoo.make(lambda: Placed(False)), zoo.loss, zoo.batch())
    assert isinstance(site.refusal, NoResidual)
    model: Any = zoo.make(lambda: Placed(True))
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert site.refusal is None
    (trace,) = tracing.traces(model, zoo.loss, zoo.batch())
    assert isinstance(trace.output, Residual)
    assert torch.equal(trace.output.stream[0, 0], model.places[0])


def test_a_constant_that_is_added_to_attention_is_no_residual_stream() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.f = zoo.Nano(), nn.Linear(3, zoo.WIDTH)
            self.register_buffer("places", torch.randn(1, zoo.TOKENS, zoo.WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.f(x)) + self.places

    x, y = zoo.batch()
    (site,) = spat.find_sites(zoo.make(Placed), zoo.loss, (x[..., :3], y))
    assert isinstance(site.refusal, NoResidual)


def test_a_site_that_cannot_be_removed_does_not_keep_others_from_a_score() -> None:
    model = zoo.make(lambda: nn.Sequential(zoo.NoSum(), zoo.Layer(zoo.Nano())))
    scores = spat.score(model, [zoo.batch()] * 2, zoo.loss, criterion="cosine")
    assert math.isnan(scores["0.attention"]) and scores["1.attention"] > 0
    assert scores.per_batch.shape == (2, 2) and scores.lowest(1.0) == ("1.attention",)
    assert len(scores.table()) == 2 and "nan" in str(scores)
    alone = spat.score(nn.Sequential(model[1]), [zoo.batch()], zoo.loss, criterion="cosine")
    assert alone.values > 0
    assert (spat.score(model, [zoo.batch()], zoo.loss).values > 0).all()
    model = zoo.make(lambda: nn.Sequential(OfHeld(Held()), zoo.Layer(zoo.Nano())))
    scores = spat.score(model, [zoo.batch()] * 2, zoo.loss, criterion="loss_drop")
    assert math.isnan(scores["0.attention"]) and math.isfinite(scores["1.attention"])
    with pytest.raises(TooCoarse, match="returns a Holder"):
        spat.score(model[:1], [zoo.batch()], zoo.loss, criterion="loss_drop")


class Embedded(nn.Module):
    """Attention of token ids, or of learned vectors without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.attention = nn.Embedding(zoo.TOKENS, zoo.WIDTH), zoo.Nano()

    def forward(self, ids: Tensor | None) -> Tensor:
        x = self.embedding.weight[None] if ids is None else self.embedding(ids)
        y: Tensor = self.attention(x)
        return y


class AddsEmbedded(nn.Module):
    def __init__(self, given: Tensor | None) -> None:
        super().__init__()
        self.embedded, self.layer, self.given = Embedded(), zoo.Layer(zoo.Nano()), given

    def forward(self, x: Tensor) -> Tensor:
        ids = None if self.given is None else self.given[: len(x)]
        return self.layer(x + self.embedded(ids))


def test_a_site_without_a_floating_input_does_not_keep_others_from_a_score() -> None:
    ids = torch.arange(zoo.SAMPLES * zoo.TOKENS).reshape(zoo.SAMPLES, -1) % zoo.TOKENS
    # The learned vectors are one sequence, also in the last batch of one sample.
    given = [zoo.batch(), zoo.batch(size=1)]
    for maker in (lambda: AddsEmbedded(ids), lambda: AddsEmbedded(None)):
        model: Any = zoo.make(maker)
        sites = spat.find_sites(model, zoo.loss, given[0])
        assert [type(site.refusal) for site in sites] == [TooCoarse, type(None)]
        for criterion in ("send", "michel", "depth_first"):
            scores = spat.score(model, given, zoo.loss, criterion=criterion)
            assert math.isfinite(scores["layer.attention"]), criterion
            assert math.isnan(scores["embedded"]) == (model.given is None), criterion
    with pytest.raises(NotPerSample, match="'embedded' computes 7 x 1 x 16, which cannot"):
        spat.score(model, given, zoo.loss, units="embedded")


class AlongBoth(nn.Module):
    """One attention along the tokens of each channel, and along the channels of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = zoo.Einsum()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x, 2 * x, 3 * x], 1)  # [B, C, T, width]
        size = x.shape
        x = x + self.attention(x.flatten(0, 1))[0].reshape(size)
        x = x.transpose(1, 2)
        y = self.attention(x.flatten(0, 1))[0].reshape(x.shape)
        return (x + y).mean(2)


def test_calls_of_a_shared_module_may_have_other_numbers_of_sequences() -> None:
    model = zoo.make(AlongBoth)
    (site,) = spat.find_sites(model, zoo.loss, zoo.batch())
    assert (site.calls, site.refusal) == (2, None)
    (trace,) = tracing.traces(model, zoo.loss, zoo.batch())
    # 3 channels x 7 queries x 7 keys, then 7 tokens x 3 queries x 3 keys.
    rows = 3 * zoo.TOKENS + zoo.TOKENS * 3
    assert trace.mixing.S.shape == (zoo.SAMPLES, 1, zoo.HEADS, rows, zoo.TOKENS)
    assert trace.gate[:, 0] == pytest.approx(
        trace.output.gate[:, 0] - _bias(trace, model), rel=1e-9
    )
    for criterion in ("send", "michel", "attention_std"):
        assert spat.score(model, [zoo.batch()], zoo.loss, criterion=criterion).values > 0


def _bias(trace: Any, model: Any) -> Tensor:
    """The part of <dy, y> that is due to the bias of the output projection."""
    return (trace.output.dy * model.attention.o.bias).flatten(1).sum(1).detach()


class Fairseq(zoo.Nano):
    """[tokens, batch, width], without an attribute that says so; heads join the batch."""

    def forward(self, x: Tensor) -> Tensor:
        T, B, _ = x.shape
        parts = self.qkv(x).view(T, B * zoo.HEADS, -1).transpose(0, 1).chunk(3, -1)
        q, k, v = parts
        y: Tensor = self.o(((q @ k.mT).softmax(-1) @ v).transpose(0, 1).reshape(T, B, -1))
        return y


@pytest.mark.parametrize("size", [2, 3, 14])
def test_tokens_may_stand_in_the_first_axis_of_any_module(size: int) -> None:
    model = zoo.make(lambda: zoo.Layer(Fairseq()))
    given = tuple(torch.randn(zoo.TOKENS, size, zoo.WIDTH).double() for _ in range(2))

    def loss(model: Any, given: Any) -> Tensor:
        return F.mse_loss(model(given[0]), given[1], reduction="none").mean((0, 2))

    (site,) = spat.find_sites(model, loss, given)
    assert (site.heads, site.queries) == (zoo.HEADS, zoo.TOKENS)
    whole = spat.score(model, [given], loss, criterion="michel").values
    each = [
        spat.score(model, [tuple(t[:, [i]] for t in given)], loss, criterion="michel").values
        for i in range(size)
    ]
    assert whole == pytest.approx(sum(each) / size, rel=1e-9)


def test_attention_without_a_residual_is_not_compared_with_its_input() -> None:
    model = zoo.make(zoo.NoSum)
    assert spat.score(model, [zoo.batch()], zoo.loss, criterion="michel").values > 0
    with pytest.raises(ValueError, match="view Residual.*what its output is added to"):
        spat.score(model, [zoo.batch()], zoo.loss, criterion="cosine")
