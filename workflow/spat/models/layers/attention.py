"""Multi-head attention whose heads can be removed, and its core, which hooks can observe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spat.training.device.kernels import Linear, Stochastic, attend, causal_mask, dropout


class AttentionCore(Stochastic):
    """O = softmax(q k^T / sqrt(d)) v, by a fused kernel if torch has one.

    The core is a module without parameters, so that a forward hook sees q, k, v and O. If it is
    causal, the Q queries are those of the last Q of the K tokens.
    """

    def __init__(self, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, Q, D]; k, v [B, H, K, D] -> O [B, H, Q, D]."""
        p = self.dropout if self.training else 0.0
        return attend(q, k, v, p, self.causal, self.generator)

    def mix(self, A: Tensor, v: Tensor) -> Tensor:
        """O = dropout(A) v for other weights A [..., Q, K]; v [B, H, K, D] -> O [B, H, Q, D]."""
        return dropout(A, self.dropout if self.training else 0.0, self.generator) @ v

    def visible(self, q: Tensor, k: Tensor) -> Tensor:
        """Which keys the causal mask leaves visible to each query: bool [Q, K], on the CPU."""
        queries, keys = q.shape[-2], k.shape[-2]
        if self.causal:
            return causal_mask(queries, keys)
        return torch.ones(queries, keys, dtype=torch.bool)

    def allowed(self, q: Tensor, k: Tensor) -> Tensor:
        """Which keys each query attends to: bool [Q, K], or [B, H, Q, K] if windows differ.

        Scores leave out queries with no key or one key.
        """
        return self.visible(q, k)

    def weights(self, q: Tensor, k: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """A = softmax(q k^T / sqrt(d)) over the allowed keys, computed in `dtype`: [..., Q, K].

        The scores use this A, so a core that computes another O has to return the A of this O.
        """
        q, k = q.to(dtype), k.to(dtype)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.causal:
            hidden = ~self.allowed(q, k).to(q.device)
            logits = logits.masked_fill(hidden, -math.inf)
        return logits.softmax(-1)


class MultiHeadAttention(nn.Module):
    """Projections around an `AttentionCore`; self-attention has one fused matrix for q, k, v."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dropout: float = 0.0,
        causal: bool = False,
        cross: bool = False,
        core: AttentionCore | None = None,
    ) -> None:
        """The size of a head is `width // heads`, as published.

        Args:
            width: Size of a token.
            heads: Number of heads.
            dropout: Share of the attention weights that training drops.
            causal: Whether a query only attends to keys up to its own position.
            cross: Whether keys and values are computed from a memory.
            core: Replaces the default core and its `dropout` and `causal`.

        Raises:
            ValueError: if `heads` is larger than `width`.
        """
        super().__init__()
        if heads > width:
            raise ValueError(f"n_heads {heads} exceeds d_model {width}: choose fewer heads")
        self.heads = heads
        self.causal = causal
        self.head_size = width // heads
        self.cross = cross
        inner = heads * self.head_size
        # The bound of the initial weights depends only on the number of inputs, so a fused matrix
        # is initialised like separate matrices.
        if cross:
            self.q = Linear(width, inner)
            self.kv = Linear(width, 2 * inner)
        else:
            self.qkv = Linear(width, 3 * inner)
        self.core = core or AttentionCore(dropout, causal)
        self.out = Linear(inner, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x [B, Q, width], memory [B, K, width] (cross-attention) -> [B, Q, width]."""
        q, k, v = self.project(x, memory)
        return self.merge(self.core(q, k, v))

    def project(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, Q, D], and k and v [B, H, K, D] of x, or of the memory in cross-attention.

        Raises:
            ValueError: if a cross-attention gets no memory.
        """
        if self.cross:
            if memory is None:
                raise ValueError("cross-attention needs a memory to attend to")
            projected = [self.q(x), *self.kv(memory).chunk(2, dim=-1)]
        else:
            projected = list(self.qkv(x).chunk(3, dim=-1))
        q, k, v = (p.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2) for p in projected)
        return q, k, v

    def merge(self, O: Tensor) -> Tensor:  # noqa: E741
        """Apply the output projection to the joined heads: O [B, H, Q, D] -> [B, Q, width]."""
        return self.out(O.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def head_weights(self) -> tuple[Tensor, Tensor]:
        """W_o [H, width, D] and W_v [H, D, width] by head, float64, without gradients.

        A site whose module has this method offers the view `Heads`.
        """
        out = self.out.weight.detach().double()
        fused = self._inputs()[-1][0].weight.detach()
        values = fused[-self.heads * self.head_size :].double()
        W_o = out.view(-1, self.heads, self.head_size).transpose(0, 1)
        return W_o, values.view(self.heads, self.head_size, -1)

    def query_key_rows(self) -> list[tuple[nn.Linear, list[slice]]]:
        """The projections that compute q and k, each with its rows of q, of k, or of both."""
        inner = self.heads * self.head_size
        q, k = slice(0, inner), slice(inner, 2 * inner)
        # q, k and v are fused in this order.
        return [(self.q, [q]), (self.kv, [q])] if self.cross else [(self.qkv, [q, k])]

    @torch.no_grad()
    def keep_heads(self, kept: Sequence[int]) -> None:
        """Remove all heads except `kept` from the weights, in place; the size of a head stays.

        Raises:
            ValueError: if `kept` is empty (remove the site instead) or names no head.
        """
        if not kept or not set(kept) <= set(range(self.heads)):
            raise ValueError(f"heads to keep {list(kept)}: give some of 0..{self.heads - 1}")
        rows = torch.tensor(
            [h * self.head_size + i for h in sorted(set(kept)) for i in range(self.head_size)]
        )
        for linear, parts in self._inputs():
            inner = self.heads * self.head_size
            chosen = torch.cat([part * inner + rows for part in range(parts)])
            trained = linear.weight.requires_grad
            linear.weight = nn.Parameter(linear.weight[chosen].clone(), trained)
            linear.bias = nn.Parameter(linear.bias[chosen].clone(), trained)
            linear.out_features = len(chosen)
        self.out.weight = nn.Parameter(
            self.out.weight[:, rows].clone(), self.out.weight.requires_grad
        )
        self.out.in_features = len(rows)
        self.heads = len(set(kept))

    def _inputs(self) -> list[tuple[nn.Linear, int]]:
        return [(self.q, 1), (self.kv, 2)] if self.cross else [(self.qkv, 3)]
