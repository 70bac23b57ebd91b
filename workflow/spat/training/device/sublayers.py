"""The two sub-layers of a post-norm encoder layer, fused for training on the CPU.

A training step of a small model consists of hundreds of short operators. Much of its time is spent
in copies, in Python and in autograd. Here a sub-layer is one function of autograd with its own
backward pass: it is one node of the graph instead of about ten, and q, k and v are copied once.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spat.training.device.kernels import multiplier, product, weight_gradient


class Fusable(nn.Module, ABC):
    """A module with a second forward pass, which training steps on the CPU use (`fused`)."""

    @abstractmethod
    def can_fuse(self) -> bool:
        """Whether `forward_fused` computes what `forward` does."""

    @abstractmethod
    def forward_fused(self, x: Tensor, **conditions: Tensor) -> Tensor:
        """As `forward`, up to the rounding of products, with the same random numbers."""


def fusable(model: nn.Module) -> list[Fusable]:
    """The modules of `model` that can be fused: no hook observes a part of them."""
    return [
        module
        for module in model.modules()
        if isinstance(module, Fusable) and module.can_fuse() and not observed(module)
    ]


@contextlib.contextmanager
def fused(modules: Sequence[Fusable]) -> Iterator[None]:
    """Context manager in which `modules` compute their fused forward passes."""
    try:
        for module in modules:
            module.__dict__["forward"] = module.forward_fused
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def observed(module: nn.Module) -> bool:
    """Whether the module or a part of it has a hook."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name) for part in module.modules() for name in hooks)


def attention_sublayer(
    x: Tensor,
    qkv: nn.Linear,
    out: nn.Linear,
    norm: nn.LayerNorm,
    heads: int,
    dropout: tuple[float, torch.Generator | None],
    weights_dropout: tuple[float, torch.Generator | None],
) -> Tensor:
    """norm(x + dropout(attention(x))), x [B, T, width] with few tokens T.

    `dropout` and `weights_dropout` are the probability and the generator of the dropout of the
    output and of the attention weights.
    """
    return _AttentionSublayer.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, *_of(qkv), *_of(out), *_of(norm), norm.eps, heads, dropout, weights_dropout
    )


def feed_forward_sublayer(
    x: Tensor,
    up: nn.Linear,
    down: nn.Linear,
    norm: nn.LayerNorm,
    dropout: tuple[float, torch.Generator | None],
) -> Tensor:
    """norm(x + dropout(down(dropout(gelu(up(x)))))), x [..., width].

    `dropout` is the probability and the generator of both dropouts.
    """
    return _FeedForwardSublayer.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, *_of(up), *_of(down), *_of(norm), norm.eps, dropout
    )


def _of(module: nn.Linear | nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return module.weight, module.bias


class _AttentionSublayer(torch.autograd.Function):
    """See `attention_sublayer`. Symbols: B windows, T tokens, H heads, D their size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        qkv_weight, qkv_bias, *end, eps, heads, dropout, weights_dropout = arguments
        B, T, width = x.shape
        rows = x.reshape(-1, width)
        projected = product(rows, qkv_weight, qkv_bias).view(B, T, 3, heads, -1)
        q, k, v = projected.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)  # [B * H, T, D]
        q.mul_(q.shape[-1] ** -0.5)
        # Neighbouring rows share the registers of the softmax, as in `kernels.attend`.
        A = _first(q @ k.transpose(1, 2)).softmax(0)  # [T, B * H * T]
        kept = multiplier(A, *weights_dropout)
        mixed = _last(A if kept is None else A * kept, T)  # [B * H, T, T]
        O = (mixed @ v).view(B, heads, T, -1).transpose(1, 2).reshape(len(rows), -1)  # noqa: E741
        y, saved = _forward_end(rows, O, end, eps, dropout)
        ctx.save_for_backward(rows, qkv_weight, q, k, v, A, kept, mixed, *saved)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, qkv_weight, q, k, v, A, kept, mixed, *saved = ctx.saved_tensors
        B, T, width = gradient.shape
        of_residual, of_O, of_end = _backward_end(gradient.reshape(rows.shape), *saved)
        of_O = of_O.view(B, T, -1, q.shape[-1]).transpose(1, 2).reshape(q.shape)
        of_mixed = _first(of_O @ v.transpose(1, 2))
        if kept is not None:
            of_mixed.mul_(kept)
        of_scores = _last(torch._softmax_backward_data(of_mixed, A, 0, A.dtype), T)
        of_projected = q.new_empty(3, *q.shape)
        torch.bmm(of_scores, k, out=of_projected[0]).mul_(q.shape[-1] ** -0.5)
        torch.bmm(of_scores.transpose(1, 2), q, out=of_projected[1])
        torch.bmm(mixed.transpose(1, 2), of_O, out=of_projected[2])
        by_window = of_projected.view(3, B, -1, T, q.shape[-1]).permute(1, 3, 0, 2, 4)
        of_rows = by_window.reshape(len(rows), -1)
        return (
            product(of_rows, qkv_weight.t()).add_(of_residual).view(B, T, width),
            weight_gradient(of_rows, rows),
            of_rows.sum(0),
            *of_end,
            *[None] * 4,
        )


def _first(scores: Tensor) -> Tensor:
    """Scores [B * H, T, T] with the keys along the first axis: [T, B * H * T]."""
    return scores.flatten(0, 1).t().contiguous()


def _last(weights: Tensor, tokens: int) -> Tensor:
    """The inverse of `_first`."""
    return weights.t().contiguous().view(-1, tokens, tokens)


class _FeedForwardSublayer(torch.autograd.Function):
    """See `feed_forward_sublayer`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        up_weight, up_bias, *end, eps, dropout = arguments
        rows = x.reshape(-1, x.shape[-1])
        inner = product(rows, up_weight, up_bias)
        hidden = F.gelu(inner)
        kept = multiplier(hidden, *dropout)
        if kept is not None:
            hidden.mul_(kept)
        y, saved = _forward_end(rows, hidden, end, eps, dropout)
        ctx.save_for_backward(rows, up_weight, inner, kept, *saved)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, up_weight, inner, kept, *saved = ctx.saved_tensors
        of_residual, of_hidden, of_end = _backward_end(gradient.reshape(rows.shape), *saved)
        if kept is not None:
            of_hidden.mul_(kept)
        of_inner = torch.ops.aten.gelu_backward(of_hidden, inner)
        return (
            product(of_inner, up_weight.t()).add_(of_residual).view(gradient.shape),
            weight_gradient(of_inner, rows),
            of_inner.sum(0),
            *of_end,
            *[None] * 2,
        )


def _forward_end(
    rows: Tensor,
    hidden: Tensor,
    end: Sequence[Tensor],
    eps: float,
    dropout: tuple[float, torch.Generator | None],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """norm(rows + dropout(hidden W^T + b)), and the tensors that `_backward_end` needs.

    `end` are the weight and bias of the linear map and of the norm.
    """
    weight, bias, norm_weight, norm_bias = end
    added = product(hidden, weight, bias)
    kept = multiplier(added, *dropout)
    if kept is not None:
        added.mul_(kept)
    added.add_(rows)
    y, mean, scale = torch.native_layer_norm(added, added.shape[-1:], norm_weight, norm_bias, eps)
    return y, (hidden, weight, norm_weight, norm_bias, kept, added, mean, scale)


def _backward_end(
    gradient: Tensor,
    hidden: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    kept: Tensor | None,
    added: Tensor,
    mean: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The gradients of the residual, of `hidden`, and of the weights and biases in their order."""
    of_added, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
        gradient, added, added.shape[-1:], mean, scale, norm_weight, norm_bias, [True] * 3
    )
    of_output = of_added if kept is None else of_added * kept
    of_end = (weight_gradient(of_output, hidden), of_output.sum(0), of_norm_weight, of_norm_bias)
    return of_added, product(of_output, weight.t()), of_end
