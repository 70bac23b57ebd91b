"""Temporary manipulations of one attention site of a trained model.

A manipulation changes the output of a site in a known way, to test whether a criterion notices it:

    uniform, identity, pattern   another attention A in place of softmax(q k^T / sqrt(d))
    gate:FACTOR                  the output of the site times FACTOR; 1 leaves it intact
    noise:SIZE                   SIZE standard deviations of noise on the weights of q and of k

The probe reads a manipulated site like any other site: a replaced core returns its own A, and
changed weights are the weights of the module within the block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spat.attention.site import Site

# allowed bool [Q, K], heads, generator -> A, float64 [heads or 1, Q, K].
Shares = Callable[[Tensor, int, torch.Generator], Tensor]


class Core(Protocol):
    """A core whose attention can be replaced: it can sum values with any weights."""

    training: bool

    def mix(self, A: Tensor, v: Tensor) -> Tensor:
        """O from A [..., Q, K] and v [..., K, D], with the dropout of the core."""

    def visible(self, q: Tensor, k: Tensor) -> Tensor:
        """The keys that the attention mask leaves to each query, bool [Q, K]."""


@contextlib.contextmanager
def manipulated(site: Site, manipulation: str, seed: int) -> Iterator[None]:
    """Context manager that manipulates the site, in evaluation and in training.

    A manipulation stays in place while the model is trained: training cannot change a pattern, and
    a gate multiplies the output of the trained weights. Noise is a fixed shift of the weights,
    which training may undo. `seed` determines patterns and noise; the noise of a seed has the same
    direction at every size. After the block the module has its trained tensors, bit-identical.

    Raises:
        ValueError: if the site was removed or cannot be manipulated in this way (see `obstacle`),
            or if the manipulation is unknown.
    """
    attention = site.attention
    if attention is None:
        raise ValueError(f"site {site.name} was removed: there is nothing to manipulate")
    if reason := obstacle(site, manipulation):
        raise ValueError(f"{manipulation} at site {site.name}: {reason}")
    kind, _, size = manipulation.partition(":")
    with contextlib.ExitStack() as stack:
        if kind == "gate":
            last = _last(attention)
            for tensor in [name for name in ("weight", "bias") if getattr(last, name) is not None]:
                stack.enter_context(_changed(last, tensor, _Times(float(size))))
        elif kind == "noise":
            for linear, noise in _noise(attention.query_key_rows(), seed):
                stack.enter_context(_changed(linear, "weight", _Plus(float(size) * noise)))
        else:
            core = FixedCore(attention.core, _SHARES[kind], seed)
            stack.enter_context(_replaced(attention, core))
        yield


def obstacle(site: Site, manipulation: str) -> str:
    """The reason why a site cannot be manipulated in this way, as a clause; empty if it can be.

    Raises:
        ValueError: if there is no such manipulation.
    """
    kind = manipulation.partition(":")[0]
    if kind not in (*_SHARES, "gate", "noise"):
        raise ValueError(f"manipulation {manipulation!r}: expected one of {', '.join(KINDS)}")
    if site.attention is None:
        return ""
    if kind == "gate":
        part = _last(site.attention)
    else:
        needed = "query_key_rows" if kind == "noise" else "core"
        part = getattr(site.attention, needed, None)
    if len(site.modules) > 1 or part is None or (kind in _SHARES and not hasattr(part, "mix")):
        return f"a site of kind {site.kind} is not one softmax attention of queries and keys"
    if kind == "identity" and site.kind == "cross":
        return "queries and keys of a cross-attention are different tokens, so no key is its own"
    return ""


def _last(attention: Any) -> Any:
    """The projection that scales the output: the output projection, else that of the values.

    Without an output projection (SAMformer), the output A v is linear in the values.
    """
    return getattr(attention, "out", getattr(attention, "v", None))


class FixedCore(nn.Module):
    """Attention that does not depend on q and k: the same A for all windows, O = A v."""

    def __init__(self, core: Core, shares: Shares, seed: int) -> None:
        """Replaces `core`, with the dropout and the allowed keys of `core`."""
        super().__init__()
        self.core = core
        self.training = core.training
        self._shares = shares
        self._seed = seed
        self._made: dict[tuple[int, int, int], Tensor] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, Q, D]; k, v [B, H, K, D] -> O [B, H, Q, D]."""
        return self.core.mix(self.weights(q, k).to(v.dtype), v)

    def allowed(self, q: Tensor, k: Tensor) -> Tensor:
        """Which keys a query may attend to, bool [Q, K]."""
        return self.core.visible(q, k)

    def weights(self, q: Tensor, k: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """A, [..., H, Q, K], made in float64 and rounded to `dtype`."""
        heads, keys = q.shape[-3], k.shape[-2]
        shape = heads, q.shape[-2], keys
        if shape not in self._made:  # cached, since a captured step cannot copy from the host again
            # The first call may run under inference mode, whose tensors cannot serve training.
            with torch.inference_mode(False):
                generator = torch.Generator().manual_seed(self._seed)
                A = self._shares(self.allowed(q, k), heads, generator)
                self._made[shape] = A.to(q.device)
        return self._made[shape].to(dtype).expand(*q.shape[:-1], keys)


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
        scaled = weight * self.factor
        # torch also selects the kernel of a product by this flag; a factor of 1 keeps all bits.
        return scaled if torch.is_grad_enabled() else scaled.requires_grad_(weight.requires_grad)


class _Plus(nn.Module):
    shift: Tensor

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.shift


def _noise(
    projections: list[tuple[nn.Linear, list[slice]]], seed: int
) -> Iterator[tuple[nn.Linear, Tensor]]:
    """Noise for the rows that compute q and the rows that compute k, scaled by their deviations."""
    generator = torch.Generator().manual_seed(seed)
    for linear, parts in projections:
        weight = linear.weight.detach()
        noise = torch.zeros_like(weight)
        for rows in parts:
            drawn = torch.randn(weight[rows].shape, generator=generator).to(weight)
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
def _replaced(attention: Any, core: FixedCore) -> Iterator[None]:
    intact, attention.core = attention.core, core
    try:
        yield
    finally:
        attention.core = intact
