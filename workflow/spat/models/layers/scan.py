"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752), and the block around it.

With N states for each of D features, the scan maps x to y token by token:

    h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t,    y_t = C_t h_t,    h_0 = 0.

On CUDA, the fused kernel of the package `mamba_ssm` computes the scan if the package is installed.
Otherwise `_Scan` computes it in a loop over the tokens, with its own backward pass.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spat.training.device.kernels import Linear


class Mamba(nn.Module):
    """Linear, causal depthwise convolution, selective scan, gate, Linear.

    Its parts, initialisation and number of parameters are those of `mamba_ssm.Mamba`. As for all
    networks here, only matrix products (the projections and C_t h_t) count as FLOPs; the
    convolution and the update of the states are element-wise products.
    """

    def __init__(
        self,
        width: int,
        *,
        states: int,
        kernel: int,
        expand: int,
        backwards: bool = False,
        one_token: bool = False,
    ) -> None:
        """A block of D = expand x width features with `states` states each.

        Args:
            width: Size of a token.
            states: Number N of states of a feature.
            kernel: Number of tokens that the convolution sees, including the current one.
            expand: Ratio D / width.
            backwards: Whether the tokens are read from the last to the first.
            one_token: Whether all sequences have one token. No state is passed on then, so A would
                have no effect, and the block has no A.
        """
        super().__init__()
        features, rank = expand * width, math.ceil(width / 16)
        self.states, self.rank, self.backwards = states, rank, backwards
        self.input = Linear(width, 2 * features, bias=False)
        bound = kernel**-0.5  # as torch initialises a depthwise Conv1d
        self.kernel = nn.Parameter(torch.empty(kernel, features).uniform_(-bound, bound))
        self.kernel_bias = nn.Parameter(torch.empty(features).uniform_(-bound, bound))
        self.selection = Linear(features, rank + 2 * states, bias=False)
        self.delta = Linear(rank, features)
        self.log_A = None if one_token else nn.Parameter(_log_states(features, states))
        self.skip = nn.Parameter(torch.ones(features))
        self.out = Linear(features, width, bias=False)
        nn.init.uniform_(self.delta.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.delta.bias.copy_(_delta_bias(features))

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> [B, tokens, width].

        Raises:
            ValueError: if a block for one token gets more tokens.
        """
        if self.log_A is None and x.shape[1] != 1:
            raise ValueError(f"a Mamba block for one token got {x.shape[1]} tokens")
        if self.backwards:
            x = x.flip(1)
        x, gate = self.input(x).chunk(2, dim=-1)
        x = F.silu(_causal_convolution(x, self.kernel, self.kernel_bias))
        rank, B, C = self.selection(x).split([self.rank, self.states, self.states], dim=-1)
        delta = F.softplus(self.delta(rank))
        if self.log_A is None:
            y = delta * x * (B * C).sum(-1, keepdim=True)
        else:
            y = selective_scan(x, delta, -self.log_A.float().exp(), B, C)
        y = self.out((y + self.skip * x) * F.silu(gate))
        return y.flip(1) if self.backwards else y  # type: ignore[no-any-return]


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan, computed in float32, or in float64 if x is float64.

    Args:
        x: Inputs [W, tokens, D].
        delta: Step sizes, positive, [W, tokens, D].
        A: Rates of decay, negative, [D, N].
        B: Weights of the inputs, [W, tokens, N].
        C: Weights of the states, [W, tokens, N].

    Returns:
        y [W, tokens, D]. The fused kernel on CUDA sums gradients in no fixed order, so that the
        gradients can differ in the last bits from run to run.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    inputs = tuple(t.to(dtype) for t in (x, delta, A, B, C))
    if x.is_cuda and dtype == torch.float32 and (kernel := _fused_kernel()) is not None:
        return _fused(kernel, *inputs)
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
            return _Scan.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
        return _scan(*inputs, keep=False)[0]


class _Scan(torch.autograd.Function):
    """Saves the states for the backward pass, which computes exp(delta A) again.

    The arrays of states are [tokens, W, N, D], so that each token is contiguous in memory and the
    longest axis is last.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        y, states = _scan(*inputs, keep=True)
        ctx.save_for_backward(*inputs, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        *inputs, states = ctx.saved_tensors
        x, delta, A, B, C = _tokens_first(*inputs)
        dy = dy.transpose(0, 1).contiguous()
        u = delta * x
        # Gradients of u = delta x, of delta through the decay, and of B; then of A by window.
        du, ddelta, dB = torch.empty_like(u), torch.zeros_like(delta), torch.empty_like(B)
        dA = torch.zeros_like(states[0])
        dC = torch.empty_like(C)
        dh, decay = torch.zeros_like(states[0]), torch.empty_like(states[0])
        for t in reversed(range(len(states))):
            _sum_over_features(states[t], dy[t], out=dC[t])
            dh.addcmul_(dy[t].unsqueeze(1), C[t].unsqueeze(2))  # dL/dh_t is complete
            _sum_over_states(B[t], dh, out=du[t])
            _sum_over_features(dh, u[t], out=dB[t])
            if t:
                dh.mul_(torch.mul(delta[t].unsqueeze(1), A, out=decay).exp_())  # of dL/dh_{t-1}
                exponent = torch.mul(dh, states[t - 1], out=decay)  # dL/d(delta_t A)
                dA.addcmul_(exponent, delta[t].unsqueeze(1))
                torch.sum(exponent.mul_(A), 1, out=ddelta[t])
        by_token = (du * delta, ddelta + du * x, dB, dC)
        dx, ddelta, dB, dC = (gradient.transpose(0, 1) for gradient in by_token)
        return dx, ddelta, dA.sum(0).t(), dB, dC


def _scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor]:
    """y [W, tokens, D] and the states [tokens, W, N, D]; only the last one unless `keep`."""
    x, delta, A, B, C = _tokens_first(x, delta, A, B, C)
    tokens, windows, features = x.shape
    if x.is_meta:  # as many FLOPs in a single product
        states = x.new_empty(tokens, windows, len(A), features)
        return torch.matmul(C.unsqueeze(2), states).squeeze(2).transpose(0, 1), states
    u, y = delta * x, torch.empty_like(x)
    states = x.new_zeros(tokens if keep else 1, windows, len(A), features)
    state, decay = states[0], torch.empty_like(states[0])
    for t in range(tokens):
        torch.mul(delta[t].unsqueeze(1), A, out=decay).exp_().mul_(state)
        state = states[t if keep else 0]
        torch.addcmul(decay, u[t].unsqueeze(1), B[t].unsqueeze(2), out=state)
        torch.matmul(C[t].unsqueeze(1), state, out=y[t].unsqueeze(1))  # FLOPs that are counted
    return y.transpose(0, 1), states


# A matrix product over a single feature takes three times as long as a product of elements.
def _sum_over_states(weights: Tensor, states: Tensor, *, out: Tensor) -> None:
    """[W, N] and [W, N, D] -> [W, D]."""
    if states.shape[2] == 1:
        torch.sum(weights * states.squeeze(2), 1, keepdim=True, out=out)
    else:
        torch.matmul(weights.unsqueeze(1), states, out=out.unsqueeze(1))


def _sum_over_features(states: Tensor, weights: Tensor, *, out: Tensor) -> None:
    """[W, N, D] and [W, D] -> [W, N]."""
    if states.shape[2] == 1:
        torch.mul(states.squeeze(2), weights, out=out)
    else:
        torch.matmul(states, weights.unsqueeze(2), out=out.unsqueeze(2))


def _tokens_first(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> list[Tensor]:
    x, delta, B, C = (t.transpose(0, 1).contiguous() for t in (x, delta, B, C))
    return [x, delta, A.t().contiguous(), B, C]


@cache
def _fused_kernel() -> Callable[..., Tensor] | None:
    """`selective_scan_fn` of `mamba_ssm`, or None where that is not installed."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    return interface.selective_scan_fn  # type: ignore[no-any-return]


def _fused(
    kernel: Callable[..., Tensor], x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> Tensor:
    x, delta, B, C = (t.transpose(1, 2).contiguous() for t in (x, delta, B, C))
    return kernel(x, delta, A, B, C).transpose(1, 2)


def _causal_convolution(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """A depthwise convolution of x [W, tokens, D] with zeros before it; faster than a Conv1d."""
    y = torch.addcmul(bias, x, kernel[-1])
    for back in range(1, min(len(kernel), x.shape[1])):
        earlier = x[:, :-back] * kernel[-1 - back]
        y = y + F.pad(earlier, (0, 0, back, 0))
    return y


def _log_states(features: int, states: int) -> Tensor:
    """Log of -A: the states of a feature decay at rates 1 to N (S4D-real)."""
    return torch.arange(1, states + 1, dtype=torch.float32).log().repeat(features, 1)


def _delta_bias(features: int) -> Tensor:
    """The inverse softplus of step sizes that are log-uniform in [0.001, 0.1]."""
    low, high = math.log(0.001), math.log(0.1)
    delta = torch.empty(features).uniform_(low, high).exp().clamp(min=1e-4)
    return delta + torch.log(-torch.expm1(-delta))
