"""What the probe collects of one site, and the sensitivities S that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from torch import Tensor, split

from spat.models.layers.attention import MultiHeadAttention
from spat.scoring.reductions import dispersion, with_sum

# Elements of an array of attention size, if one window does not have more: half a megabyte stays in
# the cache of a CPU, and a GPU wants long arrays. At once, the windows of a pass would take up to
# 1.5 GB (the channels of Traffic squared, times heads, in float64).
ELEMENTS: Final = {"cpu": 2**16, "cuda": 2**24}


@dataclass(frozen=True, eq=False)
class SiteRecord:
    """What one site did in W windows.

    Attention sees windows x R sequences: R is the number of channels where channels are independent
    (PatchTST), else 1. H heads of size D, Q queries, K keys.
    """

    index: int  # position in forward order
    name: str
    attention: MultiHeadAttention
    q: Tensor  # [W, R, H, Q, D]
    k: Tensor  # [W, R, H, K, D]
    v: Tensor  # [W, R, H, K, D]
    O: Tensor  # noqa: E741  [W, R, H, Q, D]
    grad: Tensor  # dL/dO, as O
    x: Tensor  # input of the attention, [W, R, Q, width]
    y: Tensor  # its output, before the residual sum
    before: Tensor  # input of the encoder or decoder layer round it, [W, R, Q, width]
    after: Tensor  # output of that layer

    @property
    def windows(self) -> int:
        """W."""
        return len(self.q)

    @cached_property
    def allowed(self) -> Tensor:
        """Which keys a query may attend to, bool [Q, K], on the CPU."""
        return self.attention.core.allowed(self.q.shape[-2], self.k.shape[-2])

    @cached_property
    def A(self) -> Tensor:  # noqa: N802
        """Post-softmax attention, float64 [W, R, H, Q, K]."""
        return self.attention.core.weights(self.q, self.k)

    @cached_property
    def S(self) -> Tensor:  # noqa: N802
        """Sensitivity of each window's loss to each attention weight, float64 [W, R, H, Q, K]."""
        return self.A * (self.grad.double() @ self.v.double().transpose(-1, -2))

    @cached_property
    def dispersion(self) -> Tensor:
        """Dispersion of S over keys, [W, R, H, rows]: see `reductions.dispersion`."""
        return dispersion(self.S, self.allowed)

    @cached_property
    def gate(self) -> Tensor:
        """Gradient g of each window's loss by a gate on the site, then on each head: [W, 1 + H].

        It is the sum of S over queries, keys and independent channels.
        """
        return with_sum(self.S.sum((1, 3, 4)))

    def parts(self) -> Iterator[SiteRecord]:
        """The record cut by windows, so that an array of attention size has few `ELEMENTS`."""
        elements = self.q[0, ..., 0].numel() * self.k.shape[-2]
        size = max(1, ELEMENTS.get(self.q.device.type, 2**16) // elements)
        tensors = ("q", "k", "v", "O", "grad", "x", "y", "before", "after")
        for part in zip(*(split(getattr(self, t), size) for t in tensors), strict=True):
            yield replace(self, **dict(zip(tensors, part, strict=True)))


@dataclass(frozen=True, eq=False)
class SharedMask:
    """One site under a mask that a group of windows shares: S of their mean loss."""

    index: int
    name: str
    S: Tensor  # [1, R, H, Q, K]; independent channels keep masks of their own
    allowed: Tensor
