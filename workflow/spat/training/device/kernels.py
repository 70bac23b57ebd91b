"""Linear maps, dropout and attention that are faster on the CPU and draw resumable random numbers.

Measured with torch 2.13 on one core: on a Zen 5, matrix products through oneDNN run at 240 GFLOP/s,
while torch's default, MKL, uses only 256-bit vectors and reaches 107. On a Zen 4 oneDNN is faster
for large products only, and on an Ice Lake MKL is faster: a step of PatchTST takes a sixth less
time. Dropout costs 0.9 ns per element instead of 4.7 (Zen 5).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.flop_counter import register_flop_formula

# From this number of elements on, memory is saved on the CPU: dropout keeps one byte per element
# for the backward pass, and the attention weights of a window [H, Q, K] are recomputed in the
# backward pass, about `PART` elements at a time, which fit into the cache. The draws are the same,
# and the results are equal up to the rounding of products.
LARGE = 2**19
PART = 2**20

# With fewer keys, rows of attention weights are shorter than a vector register of the CPU.
SHORT = 16

# Held while torch's global generator is used or compared: all threads share it.
GLOBAL_GENERATOR = threading.Lock()


def keep_freed_memory() -> None:
    """Let glibc keep up to 2 GiB of freed memory for the next tensors of this process.

    By default glibc returns large blocks to the system at once, and each training step causes page
    faults for the same memory: up to a quarter of the time of a small PatchTST. With another C
    library this function does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)  # the largest value it takes


class Linear(nn.Linear):
    """y = x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        small = x.numel() * self.out_features < _LEAST.products
        if small or not plain or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


class Stochastic(nn.Module):
    """A module that draws random numbers in training, from `generator` or torch's generator."""

    generator: torch.Generator | None = None


def draw_from(model: nn.Module, generator: torch.Generator) -> None:
    """Let `model` draw all its random numbers from `generator` (on its device).

    The random numbers then do not depend on other code that draws, in this or other threads.
    """
    for module in model.modules():
        if isinstance(module, Stochastic):
            module.generator = generator


def draws_globally(model: nn.Module, forward: Callable[[], object], device: torch.device) -> bool:
    """Whether a forward pass in training draws from torch's global generator.

    `forward` calls the model on a batch. Modules of torch (`nn.Dropout`) and functions such as
    `F.dropout` draw from the global generator; modules of this library draw from their own
    generator. Weights, buffers, modes and generators are restored, except the generators that
    `draw_from` sets.
    """
    draw_from(model, torch.Generator(device))
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with GLOBAL_GENERATOR, torch.random.fork_rng(devices=cards(device)), torch.no_grad():
        before = global_generator(device).get_state()
        try:
            model.train()
            forward()
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, value in buffers:
                buffer.copy_(value)
        return not torch.equal(before, global_generator(device).get_state())


def cards(device: torch.device) -> list[int]:
    """The devices whose generators `torch.random.fork_rng` must save, in addition to the CPU."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


def global_generator(device: torch.device) -> torch.Generator:
    """The global generator of torch for a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[cards(device)[0]]
    return torch.default_generator


class Dropout(Stochastic):
    """Zeroes elements with probability `p` in training and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        return dropout(x, self.p, self.generator) if self.training else x

    def extra_repr(self) -> str:
        """The probability, for printing."""
        return f"p={self.p}"


def dropout(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Dropout of `x`, drawn from `generator` (on the device of x) or from torch's generator.

    On the CPU one 64-bit draw decides on four elements: an element is kept if its 16 bits, as a
    number, exceed a threshold. So p is rounded to a multiple of 1/65536, and the scale is computed
    from the rounded p.
    """
    dropped = round(p * 2**16)
    if not dropped:
        return x
    if x.device.type != "cpu":
        kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
        return _Masked.apply(x, kept, 1 / (1 - p))  # type: ignore[no-any-return, no-untyped-call]
    if x.numel() >= LARGE and x.requires_grad:
        kept = _kept(x.shape, dropped, generator)
        return _Kept.apply(x, kept, _scale(dropped))  # type: ignore[no-any-return, no-untyped-call]
    return x * _multiplier(x, dropped, generator)


def multiplier(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor | None:
    """What `dropout` multiplies `x` by on the CPU: 0 for dropped, 1 / (1 - p) for kept elements.

    It has the shape and type of `x`; it is None if p is rounded to 0.
    """
    dropped = round(p * 2**16)
    return _multiplier(x, dropped, generator) if dropped else None


def _multiplier(x: Tensor, dropped: int, generator: torch.Generator | None) -> Tensor:
    kept = _drawn(x.numel(), dropped, generator).view(x.shape)
    return kept.to(x.dtype).mul_(_scale(dropped))


def _scale(dropped: int) -> float:
    """1 / (1 - p) for p = dropped / 65536."""
    return 2**16 / (2**16 - dropped)


def _drawn(count: int, dropped: int, generator: torch.Generator | None) -> Tensor:
    """0 for dropped and 1 for kept elements, int16 [count]."""
    draws = torch.empty(-(-count // 4), dtype=torch.int64)
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:count].ge_(dropped - 2**15)


def _kept(shape: Sequence[int], dropped: int, generator: torch.Generator | None) -> Tensor:
    """Like `_drawn`, but int8 with the shape `shape`, drawn in parts to save memory.

    The size of a part is a multiple of 4, so that the draws are those of `_drawn` for all at once.
    """
    kept = torch.empty(shape, dtype=torch.int8)
    for part in torch.split(kept.view(-1), PART):
        part.copy_(_drawn(len(part), dropped, generator))
    return kept


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: float,
    causal: bool,
    generator: torch.Generator | None = None,
) -> Tensor:
    """O = dropout(softmax(q k^T / sqrt(d))) v.

    q [..., Q, d], k and v [..., K, d] -> [..., Q, d]. If `causal`, the queries are those of the
    last Q of the K tokens. It uses torch's fused kernel, except with dropout (which that kernel can
    only draw from torch's generator) and if rows of keys are shorter than a vector register of the
    CPU. With dropout on the CPU and at least `LARGE` weights per window, no weights are kept for
    the backward pass.
    """
    short = q.device.type == "cpu" and k.shape[-2] < SHORT
    if not (p or short):
        return fused_attention(q, k, v, causal)
    large = q.dim() == 4 and q.shape[1] * q.shape[2] * k.shape[2] >= LARGE
    if large and q.device.type == "cpu" and q.shape[:2] == k.shape[:2]:
        return _Attention.apply(q, k, v, p, causal, generator)  # type: ignore[no-any-return, no-untyped-call]
    scores = attention_logits(q * q.shape[-1] ** -0.5, k, causal)
    if not short:
        return dropout(scores.softmax(-1), p, generator) @ v
    # The fused kernel computes short rows element by element (12 ns each, instead of 0.7); here
    # neighbouring rows share the registers.
    weights = dropout(scores.movedim(-1, 0).contiguous().softmax(0), p, generator)
    return weights.movedim(0, -1) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """`attend` without dropout, by torch's fused kernel."""
    if not causal or q.shape[-2] == k.shape[-2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    # The causal mask of the kernel belongs to the queries of the first Q tokens.
    seen = causal_mask(q.shape[-2], k.shape[-2], q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def attention_logits(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """q k^T [..., Q, K], minus infinity where the causal mask hides a key."""
    scores = q @ k.transpose(-1, -2)
    if causal:
        hidden = scores.new_full(scores.shape[-2:], -torch.inf)
        scores = scores + hidden.triu(1 + k.shape[-2] - q.shape[-2])
    return scores


def causal_mask(queries: int, keys: int, device: torch.device | str | None = None) -> Tensor:
    """The keys up to the token of each query, bool [Q, K], for the queries of the last Q tokens."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class _Attention(torch.autograd.Function):
    """`attend` with dropout; the backward pass recomputes the attention weights.

    It keeps q, k, v, and one byte per weight: whether dropout kept it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        p: float,
        causal: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        dropped = round(p * 2**16)
        ctx.causal, ctx.scale = causal, _scale(dropped)
        kept = _kept((*q.shape[:3], k.shape[2]), dropped, generator)
        ctx.save_for_backward(q, k, v, kept)
        output = _like(v, q.shape[2])
        for part in _parts(kept):
            weights = attention_logits(q[part] * q.shape[-1] ** -0.5, k[part], causal).softmax(-1)
            output[part] = weights.mul_(_factor(kept[part], weights, ctx.scale)) @ v[part]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept = ctx.saved_tensors
        of_q, of_k, of_v = (_like(x, x.shape[2]) for x in (q, k, v))
        for part in _parts(kept):
            scaled = q[part] * q.shape[-1] ** -0.5
            weights = attention_logits(scaled, k[part], ctx.causal).softmax(-1)
            factor = _factor(kept[part], weights, ctx.scale)
            of_v[part] = (weights * factor).transpose(-1, -2) @ gradient[part]
            of_weights = (gradient[part] @ v[part].transpose(-1, -2)).mul_(factor)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q[part] = (of_scores @ k[part]).mul_(q.shape[-1] ** -0.5)
            of_k[part] = of_scores.transpose(-1, -2) @ scaled
        return of_q, of_k, of_v, None, None, None


def _parts(weights: Tensor) -> Iterator[tuple[int, slice]]:
    """Window and heads of each part of weights [B, H, Q, K] of about `PART` elements."""
    windows, heads = weights.shape[:2]
    size = max(1, PART // math.prod(weights.shape[2:]))
    for window, first in itertools.product(range(windows), range(0, heads, size)):
        yield window, slice(first, first + size)


def _like(x: Tensor, rows: int) -> Tensor:
    """A new tensor [B, H, rows, D] for x [B, H, *, D]; the heads of a row are adjacent."""
    windows, heads, _, width = x.shape
    return x.new_empty(windows, rows, heads, width).transpose(1, 2)


class _Kept(torch.autograd.Function):
    """x * kept * scale, with one byte per element kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _factor(kept, x, scale).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _factor(kept, gradient, ctx.scale).mul_(gradient), None, None


def _factor(kept: Tensor, x: Tensor, scale: float) -> Tensor:
    """`kept` as a multiplier of `x`: 0 and `scale`."""
    return kept.to(x.dtype).mul_(scale)


class _Masked(torch.autograd.Function):
    """x * mask * scale in one pass, with a mask of one byte per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.ops.aten.native_dropout_backward(x, mask, scale)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(gradient, mask, ctx.scale), None, None


class _Product(torch.autograd.Function):
    """x W^T + b and its gradients, computed by oneDNN where it is faster."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, x_rows = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if wants_x else None,
            weight_gradient(rows, x_rows) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for float32 rows on the CPU, without a graph for the backward pass."""
    if x.numel() * weight.shape[0] < _LEAST.products:
        return F.linear(x, weight, bias)
    return _through_onednn(x, weight, bias)


def weight_gradient(rows: Tensor, x_rows: Tensor) -> Tensor:
    """The gradient of W [out, in], of the gradient of `product` [N, out] and its x [N, in]."""
    if rows.shape[1] * x_rows.shape[1] < _LEAST.weights:
        return rows.t() @ x_rows
    # The patches of a single series share memory, which oneDNN does not accept as 2nd operand.
    (shorter, size), (longer, _) = sorted(zip(x_rows.stride(), x_rows.shape, strict=True))
    if 0 < longer < shorter * size:
        x_rows = x_rows.clone(memory_format=torch.contiguous_format)
    # oneDNN copies a transposed first operand, so the narrow operand comes first.
    if rows.shape[1] > 2 * x_rows.shape[1]:
        return _through_onednn(x_rows.t(), rows.t()).t()
    return _through_onednn(rows.t(), x_rows.t())


def _through_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class Least(NamedTuple):
    """The least sizes of what oneDNN computes; torch's default, MKL, computes what is smaller."""

    products: float  # multiply-adds of a product, in x W^T and in the gradient of x
    weights: float  # elements of W, in the gradient of W


def _least() -> Least:
    """The sizes for the processor.

    A Zen 4 (family 25) has vector units of 256 bits, so MKL is as fast there, and oneDNN takes 20
    microseconds more for each call. The sizes are where oneDNN became faster for 224 to 10,752 rows
    and widths of 16 to 2048.
    """
    never, always = Least(math.inf, math.inf), Least(0, 0)
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return never
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (_HAS_ONEDNN and wide and mkl) or "GenuineIntel" in processor:
        return never
    zen4 = "AuthenticAMD" in processor and re.search(r"cpu family\s*:\s*25\b", processor)
    return Least(2**24, 2**19) if zen4 else always


_HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
_LEAST = _least()

if _HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]
