"""Models with attention written in common styles, without any use of this package."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, TOKENS, SAMPLES = 16, 4, 7, 3


def split(t: Tensor, heads: int = HEADS) -> Tensor:
    """[B, T, width] -> [B, H, T, D]."""
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


class Einsum(nn.Module):
    """Attention by einsum, with the axis of heads after that of tokens; returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)) for f in (self.q, self.k, self.v))
        A = torch.softmax(torch.einsum("blhe,bshe->bhls", q, k) / math.sqrt(q.shape[-1]), -1)
        return self.o(torch.einsum("bhls,bshd->blhd", A, v).flatten(2)), None


class Nano(nn.Module):
    """Causal fused attention with one matrix for q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(split, self.qkv(x).chunk(3, -1))
        O = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E741
        return self.o(O.transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Two heads of k and v for four of q."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        k, v = (split(t, 2) for t in self.kv(x).chunk(2, -1))
        q = split(self.q(x))
        O = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)  # noqa: E741
        return self.o(O.transpose(1, 2).flatten(2))


class Sloped(Nano):
    """ALiBi: a bias of the logits that falls with the distance, and a mask, in one."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(split, self.qkv(x).chunk(3, -1))
        steps = torch.arange(x.shape[1]).to(x)
        bias = (steps - steps[:, None]).masked_fill(steps > steps[:, None], -math.inf)
        slopes = 0.5 ** torch.arange(1, HEADS + 1).to(x)[:, None, None]
        O = F.scaled_dot_product_attention(q, k, v, attn_mask=slopes * bias)  # noqa: E741
        return self.o(O.transpose(1, 2).flatten(2))


class Null(Nano):
    """A last key that is always present and has the value 0: A is padded before its product."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(split, self.qkv(x).chunk(3, -1))
        A = F.pad((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1), (0, 1))
        return self.o((A @ F.pad(v, (0, 0, 0, 1))).transpose(1, 2).flatten(2))


class HeadByHead(nn.Module):
    """Each head is a module."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH // HEADS)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return (q @ k.mT).softmax(-1) @ v

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(self.Head() for _ in range(HEADS))
        self.o = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.cat([head(x) for head in self.each], -1))


class Windows(Nano):
    """Attention within windows of tokens; the tokens are rolled by half a window first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        parts = x.roll(-(self.size // 2), 1).reshape(-1, self.size, WIDTH)
        return super().forward(parts).reshape(x.shape).roll(self.size // 2, 1)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(x)
        several = isinstance(self.attention, nn.MultiheadAttention)
        y = self.attention(y, y, y) if several else self.attention(y)
        x = x + (y[0] if isinstance(y, tuple) else y)
        return x + self.mlp(self.n2(x))


class Modulated(Layer):
    """The residual sum is one operation with the gate of the branch."""

    def __init__(self) -> None:
        super().__init__(Nano())
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x.mean(1, keepdim=True))
        x = torch.addcmul(x, gate, self.attention(self.n1(x)))
        return x + self.mlp(self.n2(x))


class Difference(Layer):
    """The output of the attention is subtracted."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class Interpolated(Layer):
    """The residual sum is a weighted mean."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.lerp(x, self.attention(self.n1(x)), 0.3)
        return x + self.mlp(self.n2(x))


class Pair(NamedTuple):
    """An output as a named tuple; its first element, the weights, is not used."""

    weights: Tensor | None
    y: Tensor


@dataclass
class Result:
    """An output as a dataclass."""

    y: Tensor
    heads: int = HEADS


class Wrapped(Nano):
    """Attention that returns its output in a container."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


class Unwrapping(Layer):
    """A layer that takes the output out of the container."""

    def __init__(self, wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> None:
        super().__init__(Wrapped(wrap))
        self.unwrap = unwrap

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.unwrap(self.attention(self.n1(x)))
        return x + self.mlp(self.n2(x))


def as_pair(y: Tensor) -> Pair:
    """A named tuple whose first tensor is not used."""
    return Pair(y.softmax(-1), y)


def as_mapping(y: Tensor) -> dict[str, Any]:
    """A dictionary."""
    return {"weights": None, "y": y}


def as_ordered(y: Tensor) -> OrderedDict[str, Any]:
    """A mapping of another class."""
    return OrderedDict(y=y, heads=HEADS)


def as_list(y: Tensor) -> list[Any]:
    """A list with its tensor in the second place."""
    return [None, y]


def field_y(value: Any) -> Tensor:
    """The field y of a named tuple or dataclass."""
    y: Tensor = value.y
    return y


def item_y(value: Any) -> Tensor:
    """The value of the key y."""
    y: Tensor = value["y"]
    return y


def second(value: Any) -> Tensor:
    """The second value."""
    y: Tensor = value[1]
    return y


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "named tuple": (as_pair, field_y),
    "dataclass": (Result, field_y),
    "dict": (as_mapping, item_y),
    "OrderedDict": (as_ordered, item_y),
    "list": (as_list, second),
}


class Beside(nn.Module):
    """The output projection and the residual sum are in a second module."""

    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            return self.norm(self.dense(y) + x)

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.output = Nano(), self.Output()

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.inner(x), x)


class Inline(nn.Module):
    """Attention in the forward of the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(split, self.qkv(x).chunk(3, -1))
        O = F.scaled_dot_product_attention(q, k, v)  # noqa: E741
        return x + self.o(O.transpose(1, 2).flatten(2))


class NoSum(nn.Module):
    """The output of the attention has no residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.f = Nano(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.attention(x)).relu()


class Local(Nano):
    """Attention plus a linear map of its input, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.local(x)


class Gates(nn.Module):
    """A dense mixture of experts: the softmax of a router times the outputs, as a product."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(WIDTH, 5))
        self.experts = nn.Parameter(torch.randn(5, WIDTH, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        each = torch.einsum("btd,edf->btef", x, self.experts)
        gates = torch.einsum("btd,de->bte", x, self.router).softmax(-1)
        return x + torch.einsum("bte,btef->btf", gates, each)


class Biased(nn.Module):
    """The first layer's attention computes a bias that the second uses too."""

    class Attention(nn.Module):
        def __init__(self, makes: bool) -> None:
            super().__init__()
            self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.bias = nn.Parameter(torch.randn(TOKENS, TOKENS)) if makes else None

        def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            bias = self.bias if self.bias is not None else bias
            q, k, v = map(split, self.qkv(x).chunk(3, -1))
            logits = q @ k.mT if bias is None else q @ k.mT + bias
            return self.o((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)), bias

    class Computing(Attention):
        """The bias is computed, so that the graph shows which modules use it."""

        def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            y, bias = super().forward(x, bias)
            return y, None if bias is None else 2 * bias

    def __init__(self, computed: bool = False) -> None:
        super().__init__()
        self.first = (self.Computing if computed else self.Attention)(True)
        self.second = self.Attention(False)

    def forward(self, x: Tensor) -> Tensor:
        y, bias = self.first(x, None)
        x = x + y
        return x + self.second(x, bias)[0]


class Passing(nn.Module):
    """Each attention returns the bias that it was given, and the next one uses what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(Biased.Attention(False) for _ in range(3))
        self.f = nn.Linear(WIDTH, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        bias: Tensor | None = self.f(x)[:, None]
        for i, attention in enumerate(self.each):
            y, bias = attention(x, bias) if i else attention(x, bias=bias)
            assert bias is not None
            x = x + y
        return x


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer(Nano())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Alias(nn.Module):
    """One attention under two names, in two layers."""

    def __init__(self) -> None:
        super().__init__()
        shared = Nano()
        self.a, self.b = Layer(shared), Layer(shared)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Uneven(nn.Module):
    """One attention, called once with a residual sum and once without."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.f = Nano(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.attention(x + self.attention(x)))


class ByChannel(nn.Module):
    """Independent channels: [B, T, C, width] -> attention over [B * C, T, width]."""

    def __init__(self, attention: nn.Module | None = None, channels: int = 5) -> None:
        super().__init__()
        self.layer, self.channels = Layer(attention or Nano()), channels

    def forward(self, x: Tensor) -> Tensor:
        each = torch.stack([x * (1 + c) for c in range(self.channels)], 1).flatten(0, 1)
        return self.layer(each).unflatten(0, (-1, self.channels)).mean(1)


class Padded(nn.Module):
    """An encoder whose samples have different lengths."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([[TOKENS], [TOKENS - 2], [2]])[: len(x)]
        hidden = torch.arange(TOKENS) >= lengths
        return self.encoder(x, src_key_padding_mask=hidden).masked_fill(hidden[..., None], 0.0)


class Decoder(nn.Module):
    """An encoder-decoder whose source is its target, shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(WIDTH, HEADS, 2, 2, 24, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x + 1, x)


class Draws(nn.Module):
    """Attention with random numbers, also in evaluation, before another such module."""

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    class Sampled(Nano):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.randn_like(x))

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.noise = Layer(self.Sampled()), self.Noise()

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(self.layer(x))


def _encoder(first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, 0.1, batch_first=True, norm_first=first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def _mha() -> nn.Module:
    return Layer(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))


# name -> maker, names of the sites in forward order.
REMOVABLE: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "MultiheadAttention with weights": (
        lambda: nn.Sequential(_mha(), _mha()),
        ["0.attention", "1.attention"],
    ),
    "TransformerEncoder post-norm": (
        lambda: _encoder(False),
        [f"layers.{i}.self_attn" for i in range(3)],
    ),
    "TransformerEncoder pre-norm": (
        lambda: _encoder(True),
        [f"layers.{i}.self_attn" for i in range(3)],
    ),
    "Transformer": (
        Decoder,
        [
            *(f"both.encoder.layers.{i}.self_attn" for i in range(2)),
            *(
                f"both.decoder.layers.{i}.{name}"
                for i in range(2)
                for name in ("self_attn", "multihead_attn")
            ),
        ],
    ),
    "padded": (Padded, ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]),
    "einsum": (
        lambda: nn.Sequential(Layer(Einsum()), Layer(Einsum())),
        ["0.attention", "1.attention"],
    ),
    "nanoGPT": (
        lambda: nn.Sequential(Layer(Nano()), Layer(Nano())),
        ["0.attention", "1.attention"],
    ),
    "grouped queries": (lambda: Layer(Grouped()), ["attention"]),
    "ALiBi": (lambda: Layer(Sloped()), ["attention"]),
    "null key": (lambda: Layer(Null()), ["attention"]),
    "modulated": (lambda: nn.Sequential(Modulated(), Modulated()), ["0.attention", "1.attention"]),
    "projection beside": (lambda: nn.Sequential(Beside(), Beside()), ["0.inner", "1.inner"]),
    "gates": (lambda: nn.Sequential(Layer(Nano()), Gates()), ["0.attention"]),
    "returns its argument": (Passing, [f"each.{i}" for i in range(3)]),
    "called twice": (Twice, ["layer.attention"]),
    "alias": (Alias, ["a.attention"]),
    "difference": (lambda: Difference(Nano()), ["attention"]),
    "weighted mean": (lambda: Interpolated(Nano()), ["attention"]),
    **{
        f"returns a {name}": (partial(Unwrapping, *pair), ["attention"])
        for name, pair in CONTAINERS.items()
    },
    "channels": (ByChannel, ["layer.attention"]),
}  # fmt: skip


def make(maker: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model with weights of seed 0, in training mode."""
    torch.manual_seed(0)
    return maker().to(dtype)


def batch(dtype: torch.dtype = torch.float64, size: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Input and target, [B, T, width] each."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(size, TOKENS, WIDTH, generator=generator) for _ in range(2))
    return x.to(dtype), y.to(dtype)


def loss(model: Any, given: tuple[Tensor, Tensor]) -> Tensor:
    """Mean square error of each sample, [B]."""
    return F.mse_loss(model(given[0]), given[1], reduction="none").mean((1, 2))
