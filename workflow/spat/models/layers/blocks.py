"""The layers that the forecasters share: post-norm encoder layers, embeddings, normalisation.

Linear maps replace the pointwise convolutions of the published code: they compute the same numbers
with fewer copies.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Kind, Site
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.training.device.kernels import LARGE, SHORT, Dropout, Linear
from spat.training.device.sublayers import Fusable, attention_sublayer, feed_forward_sublayer


class FeedForward(nn.Module):
    """The position-wise sub-layer: Linear, GELU, Linear, with dropout after each."""

    def __init__(self, width: int, inner: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.up = Linear(width, inner, bias)
        self.down = Linear(inner, width, bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.dropout(self.down(self.dropout(F.gelu(self.up(x)))))  # type: ignore[no-any-return]


class EncoderLayer(Fusable):
    """Post-norm: x = norm(x + dropout(attention(x))), then x = norm(x + feed_forward(x))."""

    attention: MultiHeadAttention | None

    def __init__(
        self,
        width: int,
        inner: int,
        heads: int,
        dropout: float,
        attention: MultiHeadAttention | None = None,
    ) -> None:
        """`attention` replaces the default attention module and its `heads`."""
        super().__init__()
        self.attention = attention or MultiHeadAttention(width, heads, dropout=dropout)
        self.dropout = Dropout(dropout)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner, dropout)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, **conditions: Tensor) -> Tensor:
        """[B, tokens, width] -> [B, tokens, width].

        The `conditions` are keyword arguments of the attention.
        """
        if self.attention is not None:
            x = x + self.dropout(self.attention(x, **conditions))
        x = self.norm1(x)
        return self.norm2(x + self.feed_forward(x))  # type: ignore[no-any-return]

    def can_fuse(self) -> bool:
        """Whether the layer has the usual parts, and its attention has no causal mask."""
        causal = self.attention is not None and self.attention.causal
        return not causal and set(map(type, self.modules())) <= _USUAL

    def forward_fused(self, x: Tensor, **conditions: Tensor) -> Tensor:
        """As `forward`, fused for few tokens in small float32 tensors on the CPU."""
        width = max(x.shape[-1], self.feed_forward.up.out_features)
        small = x.shape[-2] < SHORT and math.prod(x.shape[:-1]) * width < LARGE
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        plain = plain and not torch.is_autocast_enabled("cpu")
        if conditions or not (small and plain and self.training):
            return EncoderLayer.forward(self, x, **conditions)
        if (attention := self.attention) is None:
            x = self.norm1(x)
        else:
            x = attention_sublayer(
                x,
                attention.qkv,
                attention.out,
                self.norm1,
                attention.heads,
                (self.dropout.p, self.dropout.generator),
                (attention.core.dropout, attention.core.generator),
            )
        feed_forward = self.feed_forward
        return feed_forward_sublayer(
            x,
            feed_forward.up,
            feed_forward.down,
            self.norm2,
            (feed_forward.dropout.p, feed_forward.dropout.generator),
        )


# The modules whose forward passes `EncoderLayer.forward_fused` replaces.
_USUAL: Final = {
    *(EncoderLayer, FeedForward, MultiHeadAttention, AttentionCore),
    *(Linear, Dropout, nn.LayerNorm),
}


class DecoderLayer(nn.Module):
    """Post-norm: masked self-attention, cross-attention to the encoder, feed-forward."""

    self_attention: MultiHeadAttention | None
    cross_attention: MultiHeadAttention | None

    def __init__(
        self,
        width: int,
        inner: int,
        dropout: float,
        self_attention: MultiHeadAttention,
        cross_attention: MultiHeadAttention,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.dropout = Dropout(dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner, dropout)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, **conditions: Tensor) -> Tensor:
        """x [B, Q, width], memory [B, K, width] -> [B, Q, width].

        The `conditions` are keyword arguments of both attentions.
        """
        if self.self_attention is not None:
            x = x + self.dropout(self.self_attention(x, **conditions))
        x = self.norm1(x)
        if self.cross_attention is not None:
            x = x + self.dropout(self.cross_attention(x, memory, **conditions))
        x = self.norm2(x)
        return self.norm3(x + self.feed_forward(x))  # type: ignore[no-any-return]


def encoder_sites(layers: nn.ModuleList, heads: int, kind: Kind = "self") -> tuple[Site, ...]:
    """The attention of each encoder layer, in forward order."""
    return tuple(
        Site(f"encoder.{i}.self", layer, "attention", heads, kind) for i, layer in enumerate(layers)
    )


def encoder_decoder_sites(
    encoder: nn.ModuleList, decoder: nn.ModuleList, heads: int, kind: Kind | None = None
) -> tuple[Site, ...]:
    """The attentions of an encoder and a decoder in forward order, except the last.

    `kind` is the kind of all sites; with None it is `self` or `cross`.
    """
    sites = [*encoder_sites(encoder, heads, kind or "self")]
    for i, layer in enumerate(decoder):
        sites += [
            Site(f"decoder.{i}.self", layer, "self_attention", heads, kind or "self"),
            Site(f"decoder.{i}.cross", layer, "cross_attention", heads, kind or "cross"),
        ]
    return tuple(sites[:-1])


class Scale(NamedTuple):
    """Location and scale of each window and channel, both [B, 1, C]."""

    mean: Tensor
    deviation: Tensor

    def undo(self, y: Tensor) -> Tensor:
        """Scale a forecast [B, H, C] back to the scale of the input."""
        return y * self.deviation + self.mean


def normalise(x: Tensor) -> tuple[Tensor, Scale]:
    """Scale x [B, L, C] to zero mean and unit (population) variance per window and channel.

    This is the non-stationary normalisation of Liu et al. (2022), as in iTransformer and PatchTST.
    """
    mean = x.mean(1, keepdim=True).detach()
    x = x - mean
    deviation = (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return x / deviation, Scale(mean, deviation)


class RevIN(nn.Module):
    """Reversible instance normalisation (Kim et al., ICLR 2022) with a gain and a bias per channel.

    A forecast is scaled back by (y - bias) / (gain + 1e-10), as published.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Scale]:
        """x [B, L, C] -> normalised x of the same shape, and what `undo` needs."""
        x, scale = normalise(x)
        return x * self.weight + self.bias, scale

    def undo(self, y: Tensor, scale: Scale) -> Tensor:
        """Scale a forecast [B, H, C] back to the scale of the input."""
        return scale.undo((y - self.bias) / (self.weight + 1e-10))


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed positions [length, width] of Vaswani et al. (2017): sine and cosine interleaved."""
    angles = torch.arange(length).unsqueeze(1) * torch.exp(
        torch.arange(0, width, 2) * (-math.log(10000.0) / width)
    )
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


def circular(x: Tensor) -> Tensor:
    """Each step between its neighbours, in a circle: [B, L, C] -> [B, L, 3 C].

    A linear map of the result is a circular convolution of width 3.
    """
    return torch.cat([x.roll(1, 1), x, x.roll(-1, 1)], dim=-1)


def moving_average(x: Tensor, width: int) -> Tensor:
    """Mean over the `width` steps around each step, an odd number; the ends are repeated.

    [B, L, C] -> [B, L, C].
    """
    padded = F.pad(x.transpose(1, 2), (width // 2, width // 2), mode="replicate")
    return F.avg_pool1d(padded, width, stride=1).transpose(1, 2)


class StepEmbedding(nn.Module):
    """A token per time step: circular convolution of width 3, position, and time features."""

    def __init__(
        self, channels: int, width: int, length: int | None, marks: int, dropout: float
    ) -> None:
        """`marks` is the number of time features, which may be 0; without `length` no positions."""
        super().__init__()
        # The convolution is one matrix over the step and its two neighbours, initialised as
        # published (Kaiming normal over 3 x channels inputs).
        self.value = Linear(3 * channels, width, bias=False)
        nn.init.kaiming_normal_(self.value.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.time = Linear(marks, width, bias=False) if marks else None
        self.dropout = Dropout(dropout)
        position = sinusoids(length, width) if length is not None else None
        self.register_buffer("position", position, persistent=False)

    def forward(self, x: Tensor, marks: Tensor | None) -> Tensor:
        """x [B, length, C], marks [B, length, F] -> [B, length, width]."""
        tokens = self.value(circular(x))
        if self.position is not None:
            tokens = tokens + self.position
        if self.time is not None:
            tokens = tokens + self.time(marks)
        return self.dropout(tokens)  # type: ignore[no-any-return]
