"""Views: the tensors of a site that criteria are computed from.

    Output    any sub-layer: its input, its output and the gradient of the loss by its output
    Residual  a sub-layer whose output is added to a stream of the same width
    Heads     a sub-layer with an axis of heads before an output projection
    Mixing    a sub-layer whose output is a sum of values with weights A, to which a mask M applies

Each criterion declares the view that it needs. A `Trace` holds the views of one site in W windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Final, Protocol, TypeAlias

import torch
from torch import Tensor, nn

# The largest number of elements of an array of attention size (one window may have more). On a CPU,
# half a megabyte stays in the cache; a GPU needs longer arrays. All windows of a pass together
# would take up to 1.5 GB (the channels of Traffic squared, times heads, in float64).
ELEMENTS: Final = {"cpu": 2**16, "cuda": 2**24}


@dataclass(frozen=True, eq=False)
class Output:
    """The view of any sub-layer. Each tensor is [W, R, tokens, width].

    R is the number of sequences of a window: the number of channels if channels are independent
    (PatchTST), else 1. The widths of input and output may differ.
    """

    x: Tensor  # input of the site; of width 0 if that has no floating tensor
    y: Tensor  # its output, before the residual sum
    dy: Tensor  # gradient of each window's loss by y

    @property
    def gate(self) -> Tensor:
        """Gradient of each window's loss with respect to a factor on y: <dy, y>, float64 [W, 1]."""
        return (self.dy.double() * self.y.double()).flatten(1).sum(1, keepdim=True)

    def cut(self, windows: slice) -> Output:
        """The view for a slice of the windows."""
        return type(self)(*(getattr(self, part.name)[windows] for part in fields(self)))


@dataclass(frozen=True, eq=False)
class Residual(Output):
    """The view of a sub-layer whose owner adds y to a residual stream of the same width."""

    # What y is added to: x, or what x is the norm of; a * x where the owner scales x.
    stream: Tensor
    total: Tensor  # the sum: stream + y, or stream + b * y where the owner scales y
    before: Tensor  # input of the layer that owns the site
    after: Tensor  # output of that layer


@dataclass(frozen=True, eq=False)
class Heads:
    """The output of H heads of size D before the projection to the width of the model.

    The projection y = sum over heads of W_o O + b; `W_v` maps the input of the site to the values.
    """

    O: Tensor  # noqa: E741  [W, R, H, Q, D]
    dO: Tensor  # noqa: N815  gradient of each window's loss by O
    W_o: Tensor  # float64 [H, width, D]
    W_v: Tensor  # float64 [H, D, width]

    @property
    def gate(self) -> Tensor:
        """Gradient of each window's loss with respect to a factor on each head, <dO, O>: float64
        [W, H]."""
        return (self.dO.double() * self.O.double()).sum((1, 3, 4))

    def cut(self, windows: slice) -> Heads:
        """The view for a slice of the windows."""
        return replace(self, O=self.O[windows], dO=self.dO[windows])


@dataclass(frozen=True, eq=False)
class Mixing:
    """Weights A over keys, and the sensitivity S of each window's loss to a mask on A.

    S = dL/dM at M = 1, where A * M replaces A. The sum of S over rows and keys is the gradient with
    respect to a factor on O = A V, so it equals `Heads.gate`.
    """

    A: Tensor  # [W, R, H, rows, keys]
    S: Tensor  # the same shape
    # The keys that a row may use, bool: [rows, keys] on the CPU, or with leading axes that
    # broadcast with those of A if the keys differ by window. Rows with fewer than two keys are left
    # out of all statistics over rows.
    allowed: Tensor
    _known: dict[Callable[[Mixing], Tensor], Tensor] = field(default_factory=dict, repr=False)

    def once(self, function: Callable[[Mixing], Tensor]) -> Tensor:
        """`function` of this view, computed at the first call and cached."""
        if function not in self._known:
            self._known[function] = function(self)
        return self._known[function]


class Source(Protocol):
    """Computes `Mixing` from the recorded tensors of a site, for some of the windows."""

    @property
    def elements(self) -> int:
        """The number of elements of A in one window."""

    def mixing(self, dtype: torch.dtype) -> Mixing:
        """A and S, computed in this precision."""

    def cut(self, windows: slice) -> Source:
        """The source for a slice of the windows."""


class MixingCore(nn.Module):
    """A module without parameters that computes weighted sums of values: core(weights, values).

    A site whose attribute `core` is a `MixingCore` has the view `Mixing`, with S = weights *
    dL/dweights. The weights are [B, H, rows, keys], where B is windows x R, the sequences of a
    window next to each other. H may be 1 if heads share the weights. O is [B, H, Q, D], or
    [B, Q, D] without heads.
    """

    def allowed(self, weights: Tensor) -> Tensor:
        """The keys that a row may use, bool [rows, keys] or [B, H or 1, rows, keys]; here all."""
        return torch.ones(weights.shape[-2:], dtype=torch.bool)


class QueryKeyCore(Protocol):
    """The methods that `QueryKey` needs of a core that is called as core(q, k, v)."""

    def weights(self, q: Tensor, k: Tensor, dtype: torch.dtype = ...) -> Tensor:
        """A, [..., H, Q, K], computed in `dtype`."""

    def allowed(self, q: Tensor, k: Tensor) -> Tensor:
        """The keys that a query may attend to, bool [Q, K], or with the leading axes of q."""


@dataclass(frozen=True, eq=False)
class QueryKey:
    """S = A * (dL/dO V^T) from q, k, v and dL/dO, with A recomputed from q and k.

    Nothing is inserted into the forward pass, which still uses the fused kernel.
    """

    q: Tensor  # [W, R, H, Q, D]
    k: Tensor  # [W, R, H, K, D]
    v: Tensor  # [W, R, H, K, D]
    dO: Tensor  # noqa: N815  [W, R, H, Q, D]
    core: QueryKeyCore

    @property
    def elements(self) -> int:
        """The number of elements of A in one window."""
        return self.q[0, ..., 0].numel() * self.k.shape[-2]

    def mixing(self, dtype: torch.dtype) -> Mixing:
        """A and S, computed in this precision."""
        A = self.core.weights(self.q, self.k, dtype)
        S = A * (self.dO.to(dtype) @ self.v.to(dtype).transpose(-1, -2))
        return Mixing(A, S, self.core.allowed(self.q, self.k))

    def cut(self, windows: slice) -> QueryKey:
        """The source for a slice of the windows."""
        q, k, v, dO = (t[windows] for t in (self.q, self.k, self.v, self.dO))
        return QueryKey(q, k, v, dO, self.core)


@dataclass(frozen=True, eq=False)
class Weighted:
    """S = W * dL/dW from the weights of a `MixingCore` and their gradient.

    For complex weights, S is the derivative with respect to a real mask, and A the absolute value.
    """

    weights: Tensor  # [W, R, H, rows, keys]
    gradient: Tensor  # the same shape
    allowed: Tensor  # as in `Mixing`

    @property
    def elements(self) -> int:
        """The number of elements of A in one window."""
        return self.weights[0].numel()

    def mixing(self, dtype: torch.dtype) -> Mixing:
        """A and S, computed in this precision."""
        W, dW = self.weights, self.gradient
        if W.is_complex():
            wide = torch.complex128 if dtype == torch.float64 else torch.complex64
            W, dW = W.to(wide), dW.to(wide)
            return Mixing(W.abs(), (W * dW.conj()).real, self.allowed)
        return Mixing(W.to(dtype), W.to(dtype) * dW.to(dtype), self.allowed)

    def cut(self, windows: slice) -> Weighted:
        """The source for a slice of the windows."""
        allowed = self.allowed
        if allowed.ndim > 2 and len(allowed) > 1:
            allowed = allowed[windows]
        return Weighted(self.weights[windows], self.gradient[windows], allowed)


@dataclass(frozen=True, eq=False)
class Joined:
    """Several mixings of one site, concatenated along the rows.

    A shared block is called several times in a forward pass, and a router pair has two modules. If
    the parts differ in their number of keys, the missing keys are not allowed. If they differ in
    their number of sequences or heads, these become rows.
    """

    parts: tuple[Source, ...]

    @property
    def elements(self) -> int:
        """The number of elements of A in one window."""
        return sum(part.elements for part in self.parts)

    def mixing(self, dtype: torch.dtype) -> Mixing:
        """A and S, computed in this precision."""
        parts = [part.mixing(dtype) for part in self.parts]
        if len({part.A.shape[1:3] for part in parts}) > 1:
            apart = len({part.A.shape[2] for part in parts}) > 1
            parts = [_rows(part, apart) for part in parts]
        keys = max(part.A.shape[-1] for part in parts)
        axes = max(part.allowed.ndim for part in parts)
        lead = (*parts[0].A.shape[:3],) if axes > 2 else ()
        return Mixing(
            torch.cat([_padded(part.A, keys) for part in parts], dim=-2),
            torch.cat([_padded(part.S, keys) for part in parts], dim=-2),
            torch.cat([_padded(_led(part.allowed, part.A, lead), keys) for part in parts], dim=-2),
        )

    def cut(self, windows: slice) -> Joined:
        """The source for a slice of the windows."""
        return Joined(tuple(part.cut(windows) for part in self.parts))


View: TypeAlias = type[Output] | type[Residual] | type[Heads] | type[Mixing]


@dataclass(frozen=True, eq=False)
class Trace:
    """The views of one site in W windows; a view that the site does not offer is None."""

    index: int  # position in forward order
    name: str
    output: Output
    heads: Heads | None = None
    source: Source | None = None
    # Whether the heads of the site can be removed one by one, so that they have scores.
    by_head: bool = True
    # Whether the site has several modules (a router pair): then the gate is that of the output.
    several: bool = False
    # Whether O has parts that are not weighted sums: then the gate is that of the heads.
    partial: bool = False

    @property
    def windows(self) -> int:
        """W."""
        return len(self.output.x)

    @cached_property
    def mixing(self) -> Mixing:
        """The view `Mixing` in float64.

        Raises:
            ValueError: if the site does not offer it.
        """
        if self.source is None:
            raise ValueError(f"site {self.name!r} does not offer the view Mixing")
        return self.source.mixing(torch.float64)

    @cached_property
    def gate(self) -> Tensor:
        """Gradient g of each window's loss with respect to a gate on the site and on each head.

        [W, 1 + H], the site first. It is the sum of S over rows, keys and independent channels if O
        is a weighted sum; otherwise <dO, O> if there are heads; otherwise <dy, y>, [W, 1].
        """
        if self.several:
            return self.output.gate
        if self.source is not None and not self.partial:
            heads = self.mixing.S.sum((1, 3, 4))
        elif self.heads is not None:
            heads = self.heads.gate
        else:
            return self.output.gate
        return torch.cat([heads.sum(-1, keepdim=True), heads], dim=-1)

    def offers(self, view: View) -> bool:
        """Whether the site has this view."""
        if view is Mixing:
            return self.source is not None
        if view is Heads:
            return self.heads is not None
        return isinstance(self.output, view)

    def parts(self) -> Iterator[Trace]:
        """The trace in slices of windows whose arrays of attention size have few `ELEMENTS`."""
        size = self.windows
        if self.source is not None:
            few = ELEMENTS.get(self.output.x.device.type, ELEMENTS["cpu"])
            size = max(1, few // self.source.elements)
        for start in range(0, self.windows, size):
            windows = slice(start, start + size)
            yield replace(
                self,
                output=self.output.cut(windows),
                heads=self.heads.cut(windows) if self.heads is not None else None,
                source=self.source.cut(windows) if self.source is not None else None,
            )


@dataclass(frozen=True, eq=False)
class SharedMask:
    """One site with a mask that a group of windows shares: S of their mean loss."""

    index: int
    name: str
    S: Tensor  # [1, R, H, rows, keys]; each independent channel has its own mask
    allowed: Tensor  # as in `Mixing`: the keys that any window of the group allows


def _rows(mixing: Mixing, heads: bool) -> Mixing:
    """A mixing whose sequences (and heads) are rows: [W, 1, H or 1, R (H) rows, keys]."""
    W, _, H, _, keys = mixing.A.shape

    def joined(t: Tensor) -> Tensor:
        return t.transpose(1, 2).reshape(W, 1, 1 if heads else H, -1, keys)

    allowed = mixing.allowed.to(mixing.A.device).expand_as(mixing.A)
    return Mixing(joined(mixing.A), joined(mixing.S), joined(allowed))


def _padded(values: Tensor, keys: int) -> Tensor:
    missing = keys - values.shape[-1]
    return nn.functional.pad(values, (0, missing)) if missing else values


def _led(allowed: Tensor, like: Any, lead: tuple[int, ...]) -> Tensor:
    return allowed.to(like.device).expand(*lead, *allowed.shape[-2:]) if lead else allowed
