"""Training in mixed precision on the CPU: matrix products in bfloat16, the rest in float32.

Linear layers and attention multiply in bfloat16 and accumulate in float32. Weights, norms, softmax,
the loss and the optimiser use float32. The inputs and outputs of the other modules are float32
tensors. Only the forward pass within `products` is changed; evaluation and scores use float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.models.layers.blocks import FeedForward
from spat.training.device.kernels import Linear, attention_logits, fused_attention

Cast = Callable[[Tensor], Tensor]


def supported() -> bool:
    """Whether the processor has instructions for bfloat16 products (AVX512_BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def require_support() -> None:
    """Check that the processor has instructions for bfloat16.

    Raises:
        RuntimeError: if it has neither AVX512_BF16 nor AMX.
    """
    if not supported():
        raise RuntimeError(
            "training.precision is 'bf16', but this processor has neither AVX512_BF16 nor AMX, "
            "without which bfloat16 is slower than float32: use 'float32', or a CUDA device"
        )


@contextlib.contextmanager
def products(model: nn.Module) -> Iterator[None]:
    """Context manager in which linear layers and attention of `model` multiply in bfloat16.

    Each weight is cast once, and its gradient is in float32. Only the linear maps, feed-forward
    layers and plain attention of this library are changed; other modules use float32.
    """
    weights: dict[Tensor, Tensor] = {}

    def cast(parameter: Tensor) -> Tensor:
        half = weights.get(parameter)
        if half is None:
            half = weights[parameter] = parameter.bfloat16()
        return half

    changed = list(_forwards(model, cast))
    try:
        for module, forward in changed:
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, _ in changed:
            module.__dict__.pop("forward", None)


def _forwards(model: nn.Module, cast: Cast) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
    """The modules that have another forward pass in bfloat16, with this forward pass."""
    inside = set()
    for module in model.modules():
        if type(module) is MultiHeadAttention and type(module.core) is AttentionCore:
            inputs = (module.q, module.kv) if module.cross else (module.qkv,)
            inside |= set(inputs)
    for module in model.modules():
        if type(module) is Linear:
            yield module, _linear(module, cast, narrow=module in inside)
        elif type(module) is FeedForward:
            yield module, _feed_forward(module, cast)
        elif type(module) is AttentionCore:
            yield module, _attention(module)


def _linear(module: Linear, cast: Cast, narrow: bool) -> Callable[[Tensor], Tensor]:
    """[..., in] -> [..., out], in bfloat16 if `narrow`, else in float32."""

    def forward(x: Tensor) -> Tensor:
        return _product(module, cast, x, narrow)

    return forward


def _feed_forward(module: FeedForward, cast: Cast) -> Callable[[Tensor], Tensor]:
    """`FeedForward.forward` with the values between its two maps in bfloat16."""

    def forward(x: Tensor) -> Tensor:
        hidden = F.gelu(_product(module.up, cast, x, narrow=True))
        hidden = _dropped(hidden, module.dropout.p, module.training, module.dropout.generator)
        return module.dropout(_product(module.down, cast, hidden, narrow=False))  # type: ignore[no-any-return]

    return forward


def _attention(module: AttentionCore) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`AttentionCore.forward` with the softmax in float32 and O in bfloat16."""

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        if not (module.training and module.dropout):
            return fused_attention(q, k, v, module.causal)
        scores = attention_logits(q * q.shape[-1] ** -0.5, k, module.causal)
        if scores.shape[-1] < 16:  # as in `spat.training.device.kernels.attend`
            lying = scores.movedim(-1, 0).contiguous().softmax(0, dtype=torch.float32)
            kept = _dropped(lying.bfloat16(), module.dropout, True, module.generator)
            return kept.movedim(0, -1) @ v
        weights = scores.softmax(-1, dtype=torch.float32).bfloat16()
        return _dropped(weights, module.dropout, True, module.generator) @ v

    return forward


def _product(module: Linear, cast: Cast, x: Tensor, narrow: bool) -> Tensor:
    # Contiguous rows, since other layouts need a separate product for each window.
    rows = x.to(torch.bfloat16, memory_format=torch.contiguous_format)
    y = F.linear(rows, cast(module.weight), None if module.bias is None else cast(module.bias))
    return y if narrow else y.float()


class _Scaled(torch.autograd.Function):
    """x * kept * scale in bfloat16; `scale` is not rounded to bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None, None


def _dropped(x: Tensor, p: float, training: bool, generator: torch.Generator | None) -> Tensor:
    """Dropout of a bfloat16 tensor, with the draws of `spat.training.device.kernels.dropout`."""
    dropped = round(p * 2**16)
    if not (training and dropped):
        return x
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    draws.random_(-(2**63), None, generator=generator)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = bits.ge_(dropped - 2**15).to(torch.bfloat16)
    return _Scaled.apply(x, kept, 2**16 / (2**16 - dropped))  # type: ignore[no-any-return, no-untyped-call]
