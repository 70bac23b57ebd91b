"""Causal language models as the body of a forecaster: the blocks of GPT-2 and of Llama.

The blocks use the layers of this package, so that their attention offers views, single heads can be
removed, and dropout uses the generator of the run. Tests compare the outputs with those of
`transformers`. `spat.models.layers.pretrained` loads the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from spat.attention.site import Site
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.training.device.kernels import Dropout, Linear
from spat.training.device.sublayers import observed


@dataclass(frozen=True)
class Architecture:
    """The sizes of a language model.

    Attributes:
        family: `gpt2` has learnt positions, LayerNorm, biases and GELU; `llama` has rotary
            positions, RMSNorm, no biases, SwiGLU, and may share keys and values between heads.
        width: Size of a token.
        inner: Hidden size of the feed-forward layer.
        layers: Number of blocks.
        heads: Number of heads of queries.
        groups: Number of heads of keys and values; equal to `heads` for `gpt2`.
        context: Length of the longest sequence (`gpt2`).
        dropout: Dropout rate of embeddings, attention and residual branches (`gpt2`).
        epsilon: Added to the variance in the norms.
        base: Base of the angles of the rotary positions (`llama`).
        vocabulary: Number of tokens in the token embedding; 0 if there is none.
    """

    family: Literal["gpt2", "llama"]
    width: int
    inner: int
    layers: int
    heads: int
    groups: int
    context: int
    dropout: float = 0.0
    epsilon: float = 1e-5
    base: float = 10000.0
    vocabulary: int = 0

    def norm(self) -> nn.Module:
        """Build a normalisation layer over the width."""
        kind = nn.LayerNorm if self.family == "gpt2" else nn.RMSNorm
        return kind(self.width, eps=self.epsilon)


class LanguageModel(nn.Module):
    """Pre-norm blocks that map embeddings to embeddings; there is no map to logits.

    `words` is the token embedding [vocabulary, width], which the blocks do not use.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.words = nn.Parameter(torch.zeros(a.vocabulary, a.width)) if a.vocabulary else None
        learnt = a.family == "gpt2"
        self.positions = nn.Parameter(torch.zeros(a.context, a.width)) if learnt else None
        self.dropout = Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        self.norm = a.norm()

    def sites(self) -> tuple[Site, ...]:
        """The attention of each block, in forward order."""
        return tuple(
            Site(f"block.{i}.self", block, "attention", self.architecture.heads, added_to="layer")
            for i, block in enumerate(self.blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [B, tokens, width] -> embeddings [B, tokens, width].

        Raises:
            ValueError: if there are more tokens than learnt positions.
        """
        x = self._placed(x, 0)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def reads_in_parts(self) -> bool:
        """Whether `last_part` computes what `forward` does, and nothing observes the difference.

        It does not compute the attention of all tokens in one call, so all attention must be
        computed by a plain `AttentionCore`. Hooks must see whole sequences: those of the probe, of
        masks and of discovery. So must dispatch modes, which count FLOPs: those of the published
        computation.
        """
        attentions = [b.attention for b in self._blocks() if b.attention is not None]
        return (
            all(type(attention.core) is AttentionCore for attention in attentions)
            and not observed(self)
            and _get_current_dispatch_mode() is None
        )

    def last_part(self, parts: Sequence[Tensor]) -> Tensor:
        """What `forward` returns at the tokens of the last part of a sequence, with less work.

        Since attention is causal, no part depends on a later one. With frozen weights, the backward
        pass therefore skips the earlier parts that have no gradient. An earlier part is read no
        further than to its keys and values in the last block with attention.

        Args:
            parts: Consecutive parts of the sequence, [B, tokens, width] each. An earlier part may
                be [1, tokens, width]: the same for all B sequences, and read once. With dropout,
                the sequences then share its random numbers.

        Returns:
            [B, tokens of the last part, width].

        Raises:
            ValueError: as `forward`.
        """
        starts = accumulate((part.shape[1] for part in parts), initial=0)
        *earlier, last = (self._placed(x, at) for x, at in zip(parts, starts, strict=False))
        blocks = self._blocks()
        deepest = max((i for i, b in enumerate(blocks) if b.attention is not None), default=-1)
        for depth, block in enumerate(blocks):
            past = None
            for i, x in enumerate(earlier):
                past = block.project(x, past)
                if depth < deepest:
                    earlier[i] = block.finish(x, past)
            last = block.finish(last, block.project(last, past))
        return self.norm(last)  # type: ignore[no-any-return]

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _placed(self, x: Tensor, start: int) -> Tensor:
        """Add the learnt positions from `start` on, and dropout."""
        if self.positions is not None:
            end = start + x.shape[1]
            if end > len(self.positions):
                raise ValueError(
                    f"{end} tokens exceed the context of the language model, "
                    f"{len(self.positions)}: choose a shorter lookback or a longer stride"
                )
            x = x + self.positions[start:end]
        return self.dropout(x)  # type: ignore[no-any-return]


class Projected(NamedTuple):
    """q [B, H, Q, D] of the last Q of K tokens, and k and v [B, H, K, D] of all K."""

    q: Tensor
    k: Tensor
    v: Tensor


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + feed_forward(norm(x)).

    If the attention is removed, its norm is not called.
    """

    attention: MultiHeadAttention | None

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.norm1 = a.norm()
        if a.family == "gpt2":
            self.attention = MultiHeadAttention(a.width, a.heads, dropout=a.dropout, causal=True)
            self.feed_forward: nn.Module = GeluLayer(a.width, a.inner)
        else:
            self.attention = RotaryAttention(a.width, a.heads, a.groups, a.base)
            self.feed_forward = SwishLayer(a.width, a.inner)
        self.norm2 = a.norm()
        self.dropout = Dropout(a.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> [B, tokens, width]."""
        if self.attention is not None:
            x = x + self.dropout(self.attention(self.norm1(x)))
        return self._fed(x)

    def project(self, x: Tensor, past: Projected | None) -> Projected | None:
        """q of the tokens x [B, tokens, width], and k and v of the tokens of `past` and of x.

        `past` is the result for the tokens before x, of B sequences or of one that all share. None
        if the attention is removed.
        """
        if self.attention is None:
            return None
        y = self.norm1(x)
        start = 0 if past is None else past.k.shape[2]
        if isinstance(self.attention, RotaryAttention):
            q, k, v = self.attention.project(y, start=start)
        else:
            q, k, v = self.attention.project(y)
        if past is not None:
            before = (t.expand(len(x), -1, -1, -1) for t in (past.k, past.v))
            k, v = (torch.cat(pair, dim=2) for pair in zip(before, (k, v), strict=True))
        return Projected(q, k, v)

    def finish(self, x: Tensor, projected: Projected | None) -> Tensor:
        """`forward` of the tokens x [B, tokens, width], given the result of `project`."""
        if self.attention is not None and projected is not None:
            x = x + self.dropout(self.attention.merge(self.attention.core(*projected)))
        return self._fed(x)

    def _fed(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.feed_forward(self.norm2(x)))  # type: ignore[no-any-return]


class GeluLayer(nn.Module):
    """The feed-forward layer of GPT-2, with the tanh approximation of GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = Linear(width, inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # type: ignore[no-any-return]


class SwishLayer(nn.Module):
    """The feed-forward layer of Llama: down(silu(gate(x)) * up(x)) (Shazeer 2020, 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = Linear(width, inner, bias=False)
        self.up = Linear(width, inner, bias=False)
        self.down = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class RotaryAttention(MultiHeadAttention):
    """Causal grouped-query attention with rotary positions.

    Rotary positions: Su et al. 2021, arXiv 2104.09864. Grouped queries: Ainslie et al. 2023, arXiv
    2305.13245; `group` gives the head of keys and values of each head of queries.
    """

    def __init__(self, width: int, heads: int, groups: int, base: float) -> None:
        nn.Module.__init__(self)
        self.heads, self.head_size, self.cross = heads, width // heads, False
        self.causal = True
        self.group = tuple(head * groups // heads for head in range(heads))
        self.base = base
        self.qkv = Linear(width, (heads + 2 * groups) * self.head_size, bias=False)
        self.core = AttentionCore(0.0, causal=True)
        self.out = Linear(heads * self.head_size, width, bias=False)

    @property
    def groups(self) -> int:
        """The number of heads of keys and values."""
        return max(self.group) + 1

    def project(
        self, x: Tensor, memory: Tensor | None = None, *, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [B, H, tokens, D] of x [B, tokens, width]; `memory` is not used.

        `start` is the position of the first token of x.
        """
        parts = self.qkv(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        q, k, v = parts.split([self.heads, self.groups, self.groups], dim=1)
        cosine, sine = _angles(start, x.shape[1], self.head_size, self.base, x)
        q, k = (t * cosine + _quarter_turn(t) * sine for t in (q, k))
        shared = list(self.group)
        return q, k[:, shared], v[:, shared]

    def head_weights(self) -> tuple[Tensor, Tensor]:
        """W_o [H, width, D] and W_v [H, D, width] by head of queries, float64."""
        W_o = self.out.weight.detach().double().view(-1, self.heads, self.head_size)
        fused = self.qkv.weight.detach().double().view(-1, self.head_size, self.qkv.in_features)
        return W_o.transpose(0, 1), fused[-self.groups :][list(self.group)]

    def query_key_rows(self) -> list[tuple[nn.Linear, list[slice]]]:
        """The fused projection, with the rows of q and those of k."""
        q = self.heads * self.head_size
        return [(self.qkv, [slice(0, q), slice(q, q + self.groups * self.head_size)])]

    @torch.no_grad()
    def keep_heads(self, kept: Sequence[int]) -> None:
        """Remove all heads of queries except `kept`, and keys and values that no kept head reads.

        Raises:
            ValueError: if `kept` is empty (remove the site instead) or names no head.
        """
        if not kept or not set(kept) <= set(range(self.heads)):
            raise ValueError(f"heads to keep {list(kept)}: give some of 0..{self.heads - 1}")
        heads = sorted(set(kept))
        read = sorted({self.group[head] for head in heads})
        keys = [self.heads + group for group in read]
        values = [self.heads + self.groups + group for group in read]

        def cut(weight: Tensor, dim: int, chosen: list[int]) -> nn.Parameter:
            places = [head * self.head_size + i for head in chosen for i in range(self.head_size)]
            left = weight.index_select(dim, torch.tensor(places, device=weight.device))
            return nn.Parameter(left, weight.requires_grad)

        self.qkv.weight = cut(self.qkv.weight, 0, heads + keys + values)
        self.qkv.out_features = len(self.qkv.weight)
        self.out.weight = cut(self.out.weight, 1, heads)
        self.out.in_features = self.out.weight.shape[1]
        self.group = tuple(read.index(self.group[head]) for head in heads)
        self.heads = len(heads)


def _angles(start: int, tokens: int, size: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation of each token from position `start`, both [tokens, size]."""
    speeds = base ** -(torch.arange(0, size, 2, device=like.device) / size)
    angles = torch.arange(start, start + tokens, device=like.device).unsqueeze(1) * speeds
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _quarter_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
