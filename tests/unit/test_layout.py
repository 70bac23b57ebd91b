"""Samples, sequences and heads in the leading axes of attention maps, in any order."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

import spat
from spat.attention import tracing
from spat.attention.errors import AttentionWarning
from spat.attention.layout import Factor, factor_of, folded

STEPS, NODES, SAMPLES = 3, 5, 2
DEPTH = zoo.WIDTH // zoo.HEADS
# Criteria that depend on which maps belong to one sample and to one head.
SENSITIVE = ("send", "send_window", "michel", "fisher", "snip", "entropy", "cosine")


def batch(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Input and target, [B, T, N, width]."""
    generator = torch.Generator().manual_seed(1)
    x, y = (
        torch.randn(samples, STEPS, NODES, zoo.WIDTH, generator=generator).double()
        for _ in range(2)
    )
    return x, y


def loss(model: Any, given: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(given[0]), given[1], reduction="none").mean((1, 2, 3))


class Laid(nn.Module):
    """Attention between the nodes of each step, [B, T, N, width], with a mask on its weights.

    `order` are the leading axes of the maps: "hb t" are [H * B, T, N, N].
    """

    def __init__(self, order: str, fused: bool = False, heads: int = zoo.HEADS) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(zoo.WIDTH, 3 * zoo.WIDTH), nn.Linear(zoo.WIDTH, zoo.WIDTH)
        self.order, self.fused, self.heads = order, fused, heads
        self.mask: Tensor | None = None

    def laid(self, t: Tensor) -> Tensor:
        """[B, T, H, ...] -> the leading axes of `order`, ..."""
        sizes = dict(zip("bth", t.shape, strict=False))
        t = t.permute(*("bth".index(axis) for axis in self.order.replace(" ", "")), 3, 4)
        lead = [math.prod(sizes[axis] for axis in part) for part in self.order.split()]
        return t.reshape(*lead, *t.shape[3:])

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            t.unflatten(-1, (self.heads, -1)).transpose(2, 3) for t in self.qkv(x).chunk(3, -1)
        )
        q, k, v = map(self.laid, parts)
        if self.fused and self.mask is None:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            A = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
            if self.mask is not None:
                A = A * self.laid(self.mask.expand(*x.shape[:2], *self.mask.shape))
            y = A @ v
        letters = self.order.replace(" ", "")
        sizes = {"b": x.shape[0], "t": x.shape[1], "h": self.heads}
        y = y.reshape(*(sizes[axis] for axis in letters), *y.shape[-2:])
        y = y.permute(*(letters.index(axis) for axis in "bth"), 3, 4)
        out: Tensor = self.o(y.transpose(2, 3).flatten(3))
        return out


def explicit(model: nn.Module, attention: Any, given: Any, shape: tuple[int, ...]) -> Tensor:
    """The gradient of the mean loss by a mask of ones on A that samples and sequences share."""
    attention.mask = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    (S,) = torch.autograd.grad(loss(model, given).mean(), attention.mask)
    attention.mask = None
    return S


def shared(model: nn.Module, given: Any) -> Tensor:
    """S of the mean loss for a mask that samples and sequences share, [H, Q, K]."""
    (trace,) = tracing.traces(model, loss, given)
    return trace.mixing.S.sum(1).mean(0)


def assert_close(S: Tensor, exact: Tensor) -> None:
    assert S.shape == exact.shape
    assert float((S - exact).abs().max() / exact.abs().max()) < 1e-12


# All orders of samples, steps and heads, as separate axes, with two joined, and with all joined.
ORDERS = [
    pattern.format(*axes)
    for axes in itertools.permutations("bth")
    for pattern in ("{} {} {}", "{}{} {}", "{} {}{}", "{}{}{}")
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_heads_and_samples_may_stand_in_any_axis(order: str, fused: bool) -> None:
    model: Any = zoo.make(lambda: zoo.Layer(Laid(order, fused))).eval()
    usual: Any = zoo.make(lambda: zoo.Layer(Laid("b t h", fused))).eval()
    given = batch()
    (site,) = spat.find_sites(model, loss, given)
    assert (site.heads, site.queries, site.keys) == (zoo.HEADS, NODES, NODES)
    shape = (zoo.HEADS, NODES, NODES)
    assert_close(shared(model, given), explicit(model, model.attention, given, shape))
    for criterion in SENSITIVE:
        a, b = (spat.score(m, [given], loss, criterion=criterion) for m in (model, usual))
        assert a.values == pytest.approx(b.values, rel=1e-9), criterion
        assert a.heads[0] == pytest.approx(b.heads[0], rel=1e-9), criterion


@pytest.mark.parametrize("order", ["b t h", "h b t", "bth"])
@pytest.mark.parametrize("fused", [False, True])
def test_one_head_is_not_taken_for_several(order: str, fused: bool) -> None:
    model: Any = zoo.make(lambda: zoo.Layer(Laid(order, fused, heads=1))).eval()
    (site,) = spat.find_sites(model, loss, batch())
    assert site.heads == 1
    exact = explicit(model, model.attention, batch(), (1, NODES, NODES))
    assert_close(shared(model, batch()), exact)


class Masked(nn.Module):
    """Attention over the tokens of [B, N, width], of a form of its own, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(zoo.WIDTH, 3 * zoo.WIDTH), nn.Linear(zoo.WIDTH, zoo.WIDTH)
        self.mask: Tensor | None = None

    def weighted(self, A: Tensor) -> Tensor:
        return A if self.mask is None else A * self.mask


class SlidingWindow(Masked):
    """Each query has keys of its own, [B, H, N, 1, 3]."""

    shape = (zoo.HEADS, NODES, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(zoo.split, self.qkv(x).chunk(3, -1))
        k, v = (F.pad(t, (0, 0, 1, 1)).unfold(2, 3, 1) for t in (k, v))
        A = self.weighted((q.unsqueeze(-2) @ k).softmax(-1))
        y: Tensor = self.o((A @ v.mT).squeeze(-2).transpose(1, 2).flatten(2))
        return y


class GroupedAxes(Masked):
    """Groups of heads that share keys and values, [B, groups, heads of each, N, N]."""

    shape = (2, zoo.HEADS // 2, NODES, NODES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(zoo.split, self.qkv(x).chunk(3, -1))
        q = q.unflatten(1, (2, -1))
        k, v = k[:, :2], v[:, :2]
        A = self.weighted(torch.einsum("bghqd,bgkd->bghqk", q, k).softmax(-1))
        y = torch.einsum("bghqk,bgkd->bqghd", A, v).flatten(2)
        out: Tensor = self.o(y)
        return out


class ChannelsFirst(Masked):
    """Convolutions in the place of linear maps, as in vision: A is [H * B, N, N]."""

    shape = (zoo.HEADS, NODES, NODES)

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv1d(zoo.WIDTH, 3 * zoo.WIDTH, 1)
        self.o = nn.Conv1d(zoo.WIDTH, zoo.WIDTH, 1)

    def weighted(self, A: Tensor) -> Tensor:
        if self.mask is None:
            return A
        return A * self.mask.repeat_interleave(len(A) // zoo.HEADS, 0)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x.mT).chunk(3, 1)
        q, k, v = (torch.cat(t.chunk(zoo.HEADS, 1)) for t in parts)
        y = v @ self.weighted((q.mT @ k).softmax(-1)).mT
        out: Tensor = self.o(torch.cat(y.chunk(zoo.HEADS), 1)).mT
        return out


class NormOfHeads(Masked):
    """A norm over the features of all heads stands before the output projection."""

    shape = (zoo.HEADS, 1, NODES, NODES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (zoo.split(t).transpose(0, 1) for t in self.qkv(x).chunk(3, -1))
        y = self.weighted((q @ k.mT).softmax(-1)) @ v  # [H, B, N, D]
        out: Tensor = self.o(F.layer_norm(y.permute(1, 2, 0, 3).flatten(2), (zoo.WIDTH,)))
        return out


class NoProjection(Masked):
    """Features are not projected: the output is the sum over keys."""

    shape = (zoo.HEADS, NODES, NODES)

    def weighted(self, A: Tensor) -> Tensor:
        if self.mask is None:
            return A
        return A * self.mask.repeat_interleave(len(A) // zoo.HEADS, 0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.cat(t.chunk(zoo.HEADS, -1)) for t in self.qkv(x).chunk(3, -1))
        return torch.cat((self.weighted((q @ k.mT).softmax(-1)) @ v).chunk(zoo.HEADS), -1)


class WithToken(Masked):
    """Heads first, and a learned token in front of the output of the attention."""

    shape = (zoo.HEADS, 1, NODES, NODES)

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, zoo.WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (zoo.split(t).transpose(0, 1) for t in self.qkv(x).chunk(3, -1))
        y = (self.weighted((q @ k.mT).softmax(-1)) @ v).permute(1, 2, 0, 3).flatten(2)
        out: Tensor = self.o(torch.cat([self.token.expand(len(x), -1, -1), y[:, 1:]], 1))
        return out


class FlatTokens(Masked):
    """Input and output are the tokens of all samples, [B * N, width]; A is [B * H, N, N]."""

    shape = (zoo.HEADS, NODES, NODES)

    def weighted(self, A: Tensor) -> Tensor:
        return A if self.mask is None else A * self.mask.repeat(len(A) // zoo.HEADS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x.reshape(-1, NODES, zoo.WIDTH)).chunk(3, -1)
        q, k, v = (zoo.split(t).flatten(0, 1) for t in parts)
        y = (self.weighted((q @ k.mT).softmax(-1)) @ v).unflatten(0, (-1, zoo.HEADS))
        out: Tensor = self.o(y.transpose(1, 2).reshape(x.shape))
        return out


class LearnedQueries(Masked):
    """Queries that are a parameter [H, 1, N, D]; A is [H, B, N, N]."""

    shape = (zoo.HEADS, 1, NODES, NODES)

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(zoo.HEADS, 1, NODES, DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        _, k, v = (zoo.split(t).transpose(0, 1) for t in self.qkv(x).chunk(3, -1))
        y = self.weighted((self.query @ k.mT).softmax(-1)) @ v
        out: Tensor = self.o(y.permute(1, 2, 0, 3).flatten(2))
        return out


class Landmarks(Masked):
    """The results of the second attention are values of the first one, as in Nystroem attention."""

    shape = (zoo.HEADS, 1, NODES, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (zoo.split(t).transpose(0, 1) for t in self.qkv(x).chunk(3, -1))
        few = q[:, :, :2]
        y = self.weighted((q @ few.mT).softmax(-1)) @ ((few @ k.mT).softmax(-1) @ v)
        out: Tensor = self.o(y.permute(1, 2, 0, 3).flatten(2))
        return out


FORMS = (SlidingWindow, GroupedAxes, ChannelsFirst, NormOfHeads, NoProjection, WithToken,
         FlatTokens, LearnedQueries, Landmarks)  # fmt: skip


class Flat(nn.Module):
    """The tokens of all steps and samples, [B, T, N, width] -> [B * T, N, width]."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.layer, self.form = zoo.Layer(form()), form

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(0, 2 if self.form is FlatTokens else 1))
        return y.reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.filterwarnings("error::spat.attention.errors.AttentionWarning")
def test_heads_of_any_form_share_a_mask_each(form: Any, samples: int) -> None:
    model: Any = zoo.make(lambda: Flat(form)).eval()
    given = batch(samples)
    (site,) = spat.find_sites(model, loss, given)
    exact = explicit(model, model.layer.attention, given, form.shape)
    exact = exact.reshape(zoo.HEADS, -1, exact.shape[-1])
    queries = exact.shape[1]
    assert (site.heads, site.refusal) == (zoo.HEADS, None)
    # Landmarks have a second attention, whose rows and keys come after those of the first.
    assert_close(shared(model, given)[:, :queries, : exact.shape[-1]], exact)


@pytest.mark.parametrize("size", [1, 2])
def test_torch_einsum_may_move_axes_of_one_sample(size: int) -> None:
    model: Any = zoo.make(lambda: zoo.Layer(zoo.Einsum())).eval()
    given = zoo.batch(size=size)
    (site,) = spat.find_sites(model, zoo.loss, given)
    assert (site.heads, site.queries, site.keys) == (zoo.HEADS, zoo.TOKENS, zoo.TOKENS)
    (trace,) = tracing.traces(model, zoo.loss, given)
    assert trace.mixing.S.shape == (size, 1, zoo.HEADS, zoo.TOKENS, zoo.TOKENS)


class Channels(nn.Module):
    """Channels in the axis of the batch, outside or inside of the samples."""

    def __init__(self, attention: nn.Module, inner: bool) -> None:
        super().__init__()
        self.layer, self.inner = zoo.Layer(attention), inner

    def forward(self, x: Tensor) -> Tensor:
        axis = 0 if self.inner else 1
        z = torch.stack([x * (1 + c) for c in range(4)], axis)
        return self.layer(z.flatten(0, 1)).unflatten(0, z.shape[:2]).mean(axis)


class Sigmoid(zoo.Nano):
    """Attention of another form, which only has an output."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(zoo.split, self.qkv(x).chunk(3, -1))
        y: Tensor = self.o(((q @ k.mT).sigmoid() @ v).transpose(1, 2).flatten(2))
        return y


def several_heads() -> nn.Module:
    """Its maps are [B * H, N, N]."""
    return nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True)


@pytest.mark.parametrize("maker", [zoo.Nano, zoo.Einsum, Sigmoid, several_heads])
def test_the_sequences_of_a_sample_need_not_stand_side_by_side(maker: Any) -> None:
    outer, inner = (zoo.make(lambda i=i: Channels(maker(), i)) for i in (False, True))
    given = [zoo.batch(), zoo.batch(size=4)]
    for criterion in ("michel", "fisher", "cosine") if maker is Sigmoid else SENSITIVE:
        a, b = (
            spat.score(m, given, zoo.loss, criterion=criterion, units="layer.attention")
            for m in (outer, inner)
        )
        assert a.per_batch == pytest.approx(b.per_batch, rel=1e-9), criterion
        assert a.heads[0] == pytest.approx(b.heads[0], rel=1e-9), criterion


def test_steps_may_stand_before_samples_within_a_module() -> None:
    class Inner(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(zoo.WIDTH, zoo.HEADS, batch_first=True)
            self.turned = turned

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1) if self.turned else x
            z = x.flatten(0, 1)
            y = self.inner(z, z, z, need_weights=False)[0].view(x.shape)
            return y.transpose(0, 1) if self.turned else y

    first, second = (zoo.make(lambda t=t: zoo.Layer(Inner(t))) for t in (False, True))
    for criterion in SENSITIVE:
        a, b = (spat.score(m, [batch()], loss, criterion=criterion) for m in (first, second))
        assert a.values == pytest.approx(b.values, rel=1e-9), criterion


def test_tokens_of_all_samples_may_be_one_axis_with_samples_inside() -> None:
    class Turned(nn.Module):
        """[T, B, width] -> one axis of tokens, also in the input of the site."""

        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.o = nn.Linear(zoo.WIDTH, 3 * zoo.WIDTH), nn.Linear(zoo.WIDTH, zoo.WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            parts = self.qkv(x).unflatten(0, (zoo.TOKENS, -1)).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (zoo.HEADS, -1)).permute(1, 2, 0, 3) for t in parts)
            A = (q @ k.mT / math.sqrt(DEPTH)).softmax(-1)
            y: Tensor = self.o((A @ v).permute(2, 0, 1, 3).reshape(x.shape))
            return y

    def turned(model: Any, given: Any) -> Tensor:
        x = given[0].transpose(0, 1)
        y = model(x.flatten(0, 1)).view(x.shape).transpose(0, 1)
        return F.mse_loss(y, given[1], reduction="none").mean((1, 2))

    class Usual(zoo.Nano):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = map(zoo.split, self.qkv(x).chunk(3, -1))
            out: Tensor = self.o(
                ((q @ k.mT / math.sqrt(DEPTH)).softmax(-1) @ v).transpose(1, 2).flatten(2)
            )
            return out

    first, second = (zoo.make(lambda form=form: zoo.Layer(form())) for form in (Usual, Turned))
    for criterion in SENSITIVE:
        a = spat.score(first, [zoo.batch()], zoo.loss, criterion=criterion)
        b = spat.score(second, [zoo.batch()], turned, criterion=criterion)
        assert a.values == pytest.approx(b.values, rel=1e-9), criterion


def test_a_model_that_returns_its_loss_has_sites() -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(zoo.WIDTH, 3 * zoo.WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return ((q @ k.mT).softmax(-1) @ v).square().mean()

    model = zoo.make(Scalar)
    (site,) = spat.find_sites(model, lambda m, b: m(b[0]), zoo.batch())
    assert (site.heads, site.queries) == (1, zoo.TOKENS)


def test_samples_whose_loss_depends_on_others_are_warned_of() -> None:
    def contrast(model: Any, given: Any) -> Tensor:
        y = model(given[0]).flatten(1)
        return F.cross_entropy(y @ y.T / 1000, torch.arange(len(y)), reduction="none")

    model = zoo.make(lambda: Channels(zoo.Nano(), False))
    with pytest.warns(AttentionWarning, match="depends on other samples.*12 x 4 x 7 x 7"):
        spat.score(model, [zoo.batch()], contrast)
    with warnings.catch_warnings():  # one sequence a sample: the order is clear
        warnings.simplefilter("error", AttentionWarning)
        spat.score(zoo.make(lambda: zoo.Layer(zoo.Nano())), [zoo.batch()], contrast)


def over_steps(_: Any, y: Tensor) -> Tensor:
    """The mean over steps is taken before the output projection."""
    return y.mean(1, keepdim=True).expand_as(y)


def over_heads(_: Any, y: Tensor) -> Tensor:
    """The mean over heads is taken, as in a temporal fusion transformer."""
    return y.mean(2, keepdim=True)


def over_queries(m: Any, y: Tensor) -> Tensor:
    """A linear map over the queries stands before the output projection."""
    out: Tensor = m.over(y.mT).mT
    return out


class Between(Laid):
    """Something is computed from the results of the heads before the output projection."""

    def __init__(self, function: Any) -> None:
        super().__init__("b t h")
        self.function, self.over = function, nn.Linear(NODES, NODES)
        if function is over_heads:
            self.o = nn.Linear(DEPTH, zoo.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        q, k, v = (t.transpose(2, 3) for t in parts)
        y = self.function(self, (q @ k.mT).softmax(-1) @ v)
        out: Tensor = self.o(y.transpose(2, 3).flatten(3))
        return out


@pytest.mark.parametrize("function", [over_steps, over_heads, over_queries])
def test_heads_that_the_output_does_not_tell_are_warned_of(function: Any) -> None:
    model = zoo.make(lambda: zoo.Layer(Between(function)))
    with pytest.warns(AttentionWarning, match="2 x 3 x 4 x 5 x 5 are heads; taken to be 4 heads"):
        spat.score(model, [batch()], loss)


def test_the_order_of_samples_is_found_once_for_batches_of_one_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, found = [], tracing._touched
    monkeypatch.setattr(tracing, "_touched", lambda *given: calls.append(1) or found(*given))
    for maker, count in ((lambda: Channels(zoo.Nano(), True), 2), (zoo.Twice, 0)):
        calls.clear()
        spat.score(zoo.make(maker), [*[zoo.batch()] * 3, zoo.batch(size=2)], zoo.loss)
        assert len(calls) == count


def test_factors_of_an_axis() -> None:
    parts = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    for axis, factor in enumerate((Factor(2, 12), Factor(3, 4), Factor(4, 1))):
        for index in range(2):
            first = parts.movedim(axis, 0)[(slice(None), *[index] * 2)]
            marked = torch.zeros(24, dtype=torch.bool)
            marked[first] = True
            assert factor_of(marked) == factor
            assert not factor.joins(marked)
            one = torch.zeros(24, dtype=torch.bool)
            one[parts.movedim(axis, 0)[index].flatten()] = True
            assert factor.joins(one)
    for places in ([], [0, 1, 3], [1, 2], [0, 5], [2, 3, 4]):
        marked = torch.zeros(24, dtype=torch.bool)
        marked[places] = True
        assert factor_of(marked) is None
    t = torch.rand(24, 5, 6)
    laid = folded(t, Factor(3, 4), Factor(2, 12))
    assert laid.shape == (3, 4, 2, 5, 6)
    assert torch.equal(laid, t.reshape(2, 3, 4, 5, 6).permute(1, 2, 0, 3, 4))
    assert torch.equal(folded(t, Factor(1, 24), Factor(1, 1))[0, :, 0], t)
