"""Manipulations of one attention site of a trained model, and the model as it was afterwards.

What a site computes is changed in a known way, so that one can ask whether a criterion notices:

    uniform, identity, pattern   another attention A in place of softmax(q k^T / sqrt(d))
    gate:FACTOR                  the output of the site times FACTOR; 1 leaves it intact
    noise:SIZE                   SIZE standard deviations of noise on the weights of q and of k

The probe sees a manipulated site as it sees any other: the core that computes another O also says
its A, and changed weights stand in the place of the trained ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spat.attention.site import Site
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.training.device.kernels import dropout

# allowed bool [Q, K], heads, generator -> A, float64 [heads or 1, Q, K].
Shares = Callable[[Tensor, int, torch.Generator], Tensor]


@contextlib.contextmanager
def manipulated(site: Site, manipulation: str, seed: int) -> Iterator[None]:
    """The site manipulated within the block, in evaluation and in training alike.

    A manipulation stays in place while the model is trained: a pattern is not learnt away, and a
    gate multiplies whatever the weights become. Noise is a fixed shift of the weights, which
    training may undo. `seed` fixes patterns and noise; the noise of a seed has the same direction
    at every size. Leaving the block gives the trained tensors back, to the bit.

    Raises:
        ValueError: if the site was removed, or cannot be manipulated so (`obstacle`), or there is
            no such manipulation.
    """
    attention = site.attention
    if attention is None:
        raise ValueError(f"site {site.name} was removed: there is nothing to manipulate")
    if reason := obstacle(site, manipulation):
        raise ValueError(f"{manipulation} at site {site.name}: {reason}")
    kind, _, size = manipulation.partition(":")
    with contextlib.ExitStack() as stack:
        if kind == "gate":
            for tensor in ("weight", "bias"):
                stack.enter_context(_changed(attention.out, tensor, _Times(float(size))))
        elif kind == "noise":
            for linear, noise in _noise(attention, seed):
                stack.enter_context(_changed(linear, "weight", _Plus(float(size) * noise)))
        elif kind in _SHARES:
            core = FixedCore(attention.core, _SHARES[kind], seed)
            stack.enter_context(_replaced(attention, core))
        else:
            raise ValueError(f"manipulation {manipulation!r}: expected one of {', '.join(KINDS)}")
        yield


def obstacle(site: Site, manipulation: str) -> str:
    """Why a site cannot be manipulated so; empty where it can."""
    crosses = site.attention is not None and site.attention.cross
    if manipulation == "identity" and crosses:
        return "queries and keys of a cross-attention are different tokens: there is no own key"
    return ""


class FixedCore(AttentionCore):
    """Attention that looks at neither q nor k: the same A for all windows, O = A v."""

    def __init__(self, core: AttentionCore, shares: Shares, seed: int) -> None:
        """In place of `core`, with its dropout and the keys it allows."""
        super().__init__(core.dropout, core.causal)
        self.train(core.training)
        self._shares = shares
        self._seed = seed
        self._made: dict[tuple[int, int, int], Tensor] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, Q, D]; k, v [B, H, K, D] -> O [B, H, Q, D]."""
        p = self.dropout if self.training else 0.0
        A = self.weights(q, k).to(v.dtype)
        return dropout(A, p, self.generator) @ v

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """A, float64 [..., H, Q, K]."""
        shape = heads, queries, keys = q.shape[-3], q.shape[-2], k.shape[-2]
        if shape not in self._made:  # kept: a captured step cannot copy from the host again
            generator = torch.Generator().manual_seed(self._seed)
            A = self._shares(self.allowed(queries, keys), heads, generator)
            self._made[shape] = A.to(q.device)
        return self._made[shape].expand(*q.shape[:-1], keys)


def _uniform(allowed: Tensor, _heads: int, _generator: torch.Generator) -> Tensor:
    return (allowed / allowed.sum(-1, keepdim=True, dtype=torch.float64)).unsqueeze(0)


def _identity(allowed: Tensor, _heads: int, _generator: torch.Generator) -> Tensor:
    return torch.eye(len(allowed), dtype=torch.float64).unsqueeze(0)


def _pattern(allowed: Tensor, heads: int, generator: torch.Generator) -> Tensor:
    logits = torch.randn(heads, *allowed.shape, dtype=torch.float64, generator=generator)
    return logits.masked_fill(~allowed, -torch.inf).softmax(-1)


_SHARES: Final[dict[str, Shares]] = {
    "uniform": _uniform,
    "identity": _identity,
    "pattern": _pattern,
}

KINDS: Final = (*_SHARES, "gate:FACTOR", "noise:SIZE")


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


class _Plus(nn.Module):
    shift: Tensor

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.shift


def _noise(attention: MultiHeadAttention, seed: int) -> Iterator[tuple[nn.Linear, Tensor]]:
    """Noise on the rows that make q and those that make k, each in units of their own deviation."""
    generator = torch.Generator().manual_seed(seed)
    inner = attention.heads * attention.head_size
    # q, k and v are fused in this order: the parts of each matrix that are not v.
    linears = [(attention.q, 1), (attention.kv, 1)] if attention.cross else [(attention.qkv, 2)]
    for linear, parts in linears:
        weight = linear.weight.detach()
        noise = torch.zeros_like(weight)
        for start in range(0, parts * inner, inner):
            rows = slice(start, start + inner)
            drawn = torch.randn(inner, weight.shape[1], generator=generator).to(weight)
            noise[rows] = weight[rows].std(correction=0) * drawn
        yield linear, noise


@contextlib.contextmanager
def _changed(module: nn.Module, tensor: str, change: nn.Module) -> Iterator[None]:
    parametrize.register_parametrization(module, tensor, change)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=False)


@contextlib.contextmanager
def _replaced(attention: MultiHeadAttention, core: AttentionCore) -> Iterator[None]:
    intact, attention.core = attention.core, core
    try:
        yield
    finally:
        attention.core = intact
