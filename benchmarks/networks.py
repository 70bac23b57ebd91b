"""The networks of the conventional loop: iTransformer and PatchTST with the published operators.

The feed-forward layers are convolutions of width 1, q, k and v have separate projections, and
attention uses einsum. The networks compute the same numbers as those of `spat.models`, whose
weights `twin` copies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.base import Forecaster
from spat.models.itransformer import ITransformer
from spat.models.layers.blocks import EncoderLayer
from spat.models.patchtst import PatchTST


class FullAttention(nn.Module):
    """Attention as einsum, softmax, dropout, einsum."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, tokens, H, D] -> [B, tokens, H, D]."""
        scores = torch.einsum("blhe,bshe->bhls", q, k)
        weights = self.dropout(torch.softmax(scores / math.sqrt(q.shape[-1]), dim=-1))
        return torch.einsum("bhls,bshd->blhd", weights, v).contiguous()


class AttentionLayer(nn.Module):
    """Separate projections around `FullAttention`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        inner = width // heads * heads
        self.heads = heads
        self.attention = FullAttention(dropout)
        self.q = nn.Linear(width, inner)
        self.k = nn.Linear(width, inner)
        self.v = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> [B, tokens, width]."""
        batch, tokens, _ = x.shape
        q, k, v = (p(x).view(batch, tokens, self.heads, -1) for p in (self.q, self.k, self.v))
        return self.out(self.attention(q, k, v).view(batch, tokens, -1))  # type: ignore[no-any-return]


class ConvEncoderLayer(nn.Module):
    """Post-norm encoder layer whose feed-forward is two convolutions of width 1."""

    def __init__(self, width: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = AttentionLayer(width, heads, dropout)
        self.conv1 = nn.Conv1d(width, inner, kernel_size=1)
        self.conv2 = nn.Conv1d(inner, width, kernel_size=1)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> [B, tokens, width]."""
        x = self.norm1(x + self.dropout(self.attention(x)))
        y = self.dropout(F.gelu(self.conv1(x.transpose(-1, 1))))
        y = self.dropout(self.conv2(y).transpose(-1, 1))
        return self.norm2(x + y)  # type: ignore[no-any-return]


class ConventionalITransformer(nn.Module):
    """One token per channel and per time feature; the forecasts of time features are dropped."""

    def __init__(self, model: ITransformer) -> None:
        super().__init__()
        settings, shape = model.settings, model.shape
        self.marks = settings.time_features
        self.horizon = shape.horizon
        self.embedding = nn.Linear(shape.lookback, settings.d_model)
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = _layers(model)
        self.norm = nn.LayerNorm(settings.d_model)
        self.projection = nn.Linear(settings.d_model, shape.horizon)

    def forward(self, x: Tensor, x_marks: Tensor, *_decoder: Tensor) -> Tensor:
        """x [B, L, C], marks [B, L, F] -> [B, H, C]."""
        channels = x.shape[-1]
        x, mean, deviation = _normalised(x)
        tokens = x.permute(0, 2, 1)
        if self.marks:
            tokens = torch.cat([tokens, x_marks.permute(0, 2, 1)], dim=1)
        tokens = self.dropout(self.embedding(tokens))
        for layer in self.layers:
            tokens = layer(tokens)
        y = self.projection(self.norm(tokens)).permute(0, 2, 1)[:, :, :channels]
        return _restored(y, mean, deviation, self.horizon)


class ConventionalPatchTST(nn.Module):
    """Patches of each channel; the head reads [width, patches] in that order."""

    def __init__(self, model: PatchTST) -> None:
        super().__init__()
        settings, shape = model.settings, model.shape
        self.patch, self.stride, self.horizon = settings.patch_len, settings.stride, shape.horizon
        self.padding = nn.ReplicationPad1d((0, settings.stride))
        self.embedding = nn.Linear(settings.patch_len, settings.d_model, bias=False)
        self.register_buffer("position", model.get_buffer("position").clone())
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = _layers(model)
        self.norm = nn.BatchNorm1d(settings.d_model)
        self.head = nn.Linear(model.head.in_features, shape.horizon)
        self.head_dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, x_marks: Tensor, *_decoder: Tensor) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        x, mean, deviation = _normalised(x)
        batch, _, channels = x.shape
        patches = self.padding(x.permute(0, 2, 1)).unfold(-1, self.patch, self.stride)
        patches = patches.reshape(batch * channels, *patches.shape[2:])
        tokens = self.dropout(self.embedding(patches) + self.position)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens.transpose(1, 2))  # [B * C, width, patches]
        y = self.head_dropout(self.head(tokens.reshape(batch, channels, -1)))
        return _restored(y.permute(0, 2, 1), mean, deviation, self.horizon)


def twin(model: Forecaster) -> nn.Module:
    """The conventional network with the weights of a dense forecaster of `spat.models`.

    Raises:
        TypeError: if it is neither an iTransformer nor a PatchTST.
    """
    if isinstance(model, ITransformer):
        inverted = ConventionalITransformer(model)
        _copy(model, inverted, {"projection": model.head})
        return inverted
    if isinstance(model, PatchTST):
        patched = ConventionalPatchTST(model)
        _copy(model, patched, {})
        with torch.no_grad():
            # [H, patches, width]
            by_patch = model.head.weight.reshape(model.shape.horizon, -1, model.settings.d_model)
            patched.head.weight.copy_(by_patch.transpose(1, 2).flatten(1))
            patched.head.bias.copy_(model.head.bias)
        return patched
    raise TypeError(f"{type(model).__name__} has no conventional twin: iTransformer or PatchTST")


def _layers(model: Any) -> nn.ModuleList:
    settings = model.settings
    return nn.ModuleList(
        ConvEncoderLayer(settings.d_model, settings.d_ff, settings.n_heads, settings.dropout)
        for _ in range(settings.e_layers)
    )


@torch.no_grad()
def _copy(model: Any, published: Any, renamed: dict[str, nn.Module]) -> None:
    for name, module in {"embedding": model.embedding, "norm": model.norm, **renamed}.items():
        getattr(published, name).load_state_dict(module.state_dict())
    for layer, source in zip(published.layers, model.layers, strict=True):
        _copy_layer(layer, source)


def _copy_layer(layer: ConvEncoderLayer, source: EncoderLayer) -> None:
    attention = source.attention
    if attention is None:
        raise ValueError("the conventional network is a dense one: an attention was removed")
    weights = attention.qkv.weight.chunk(3)
    for name, weight, bias in zip("qkv", weights, attention.qkv.bias.chunk(3), strict=True):
        getattr(layer.attention, name).load_state_dict({"weight": weight, "bias": bias})
    layer.attention.out.load_state_dict(attention.out.state_dict())
    for conv, linear in (
        (layer.conv1, source.feed_forward.up),
        (layer.conv2, source.feed_forward.down),
    ):
        conv.load_state_dict({"weight": linear.weight.unsqueeze(-1), "bias": linear.bias})
    layer.norm1.load_state_dict(source.norm1.state_dict())
    layer.norm2.load_state_dict(source.norm2.state_dict())


def _normalised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # x [B, L, C] -> itself scaled, mean and deviation [B, 1, C].
    mean = x.mean(1, keepdim=True).detach()
    x = x - mean
    deviation = torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5)
    return x / deviation, mean, deviation


def _restored(y: Tensor, mean: Tensor, deviation: Tensor, horizon: int) -> Tensor:
    return y * deviation.repeat(1, horizon, 1) + mean.repeat(1, horizon, 1)
