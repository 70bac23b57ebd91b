"""Informer (Zhou et al., AAAI 2021, arXiv 2012.07436), with the sizes of the Time-Series-Library.

This is the encoder-decoder `Transformer` with two changes:

- ProbSparse attention: only the queries whose attention would be far from uniform attend. The
  output of the other queries is the mean of all values (in the masked self-attention, the sum of
  the values up to the query).
- Distilling: between two encoder layers, a convolution and a max-pooling halve the number of steps,
  96 -> 49 (the library pads by two; in Informer2020 it is 48).

The queries that attend are chosen by means of sampled keys. In training, the sample is drawn again
at each step from the generator of the run. In `eval()` the sample is fixed, so that a forecast and
the scores of a batch are reproducible (the published code also samples in evaluation).

The outputs of the heads are joined in the order of the heads. The library reads the outputs in
another order than it writes them (in all sites; Informer2020 does so in the masked self-attention,
unless `mix` is off), so that no single head could be removed. The number of parameters is the same.

If a site is removed, the normalisation of its sub-layer and the distilling stay.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.models.settings import InformerSettings as Settings
from spat.models.settings import Shape
from spat.models.transformer import Transformer


class ProbSparseCore(AttentionCore):
    """softmax(q k^T / sqrt(d)) v for the queries of largest `measure`, mean values for the others.

    `factor` ceil(ln K) keys are sampled and `factor` ceil(ln Q) queries attend, or all of them if
    there are fewer.
    """

    # The outputs of queries that do not attend are not sums under the weights A.
    partial = True

    def __init__(self, factor: int, causal: bool = False) -> None:
        """There is no dropout: the published code builds a dropout module and does not apply it."""
        super().__init__(dropout=0.0, causal=causal)
        self.factor = factor
        self._fixed: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, Q, D]; k, v [B, H, K, D] -> O [B, H, Q, D]."""
        rows = self._attending(q, k, self._sample(q, k) if self.training else self._same(q, k))
        attended = self._logits(q, k, rows).softmax(-1) @ v
        if self.causal:
            others = v.cumsum(-2)
        else:
            others = v.mean(-2, keepdim=True).expand(*q.shape[:-1], v.shape[-1])
        return others.scatter(-2, rows.unsqueeze(-1).expand(attended.shape), attended)

    def allowed(self, q: Tensor, k: Tensor) -> Tensor:
        """Which keys a query may attend to in `eval()`, bool [B, H, Q, K].

        The row of a query that does not attend is False.
        """
        rows = self._attending(q, k, self._same(q, k)).unsqueeze(-1)
        keys = torch.arange(k.shape[-2], device=k.device)
        seen = keys <= rows if self.causal else keys >= torch.zeros_like(rows)
        none = torch.zeros(*q.shape[:-1], len(keys), dtype=torch.bool, device=q.device)
        return none.scatter(-2, rows.expand(seen.shape), seen)

    def weights(self, q: Tensor, k: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """A in `eval()`, [B, H, Q, K] in `dtype`; 0 in the rows of queries that do not attend."""
        rows = self._attending(q, k, self._same(q, k))
        A = self._logits(q.to(dtype), k.to(dtype), rows).softmax(-1)
        none = A.new_zeros(*q.shape[:-1], k.shape[-2])
        return none.scatter(-2, rows.unsqueeze(-1).expand(A.shape), A)

    def _logits(self, q: Tensor, k: Tensor, rows: Tensor) -> Tensor:
        """q k^T / sqrt(d) of the chosen rows [B, H, u] -> [B, H, u, K]; -inf where hidden."""
        chosen = q.gather(-2, rows.unsqueeze(-1).expand(*rows.shape, q.shape[-1]))
        logits = chosen @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.causal:
            later = torch.arange(k.shape[-2], device=k.device) > rows.unsqueeze(-1)
            logits = logits.masked_fill(later, -math.inf)
        return logits

    @torch.no_grad()
    def _attending(self, q: Tensor, k: Tensor, sample: Tensor) -> Tensor:
        """The queries that attend, int64 [B, H, u]: those of the largest max - sum / K of q k^T.

        Maximum and sum run over the sampled keys, `sample`, int64 [Q, U]. All products are computed
        and then sampled, which is cheaper at these lengths than a gather of keys for each query.
        """
        products = q @ k.transpose(-1, -2)
        sampled = products.gather(-1, sample.expand(*products.shape[:-1], -1))
        measure = sampled.amax(-1) - sampled.sum(-1) / k.shape[-2]
        return measure.topk(self._count(q.shape[-2]), dim=-1).indices

    def _count(self, length: int) -> int:
        return max(1, min(self.factor * math.ceil(math.log(length)), length))

    def _sample(self, q: Tensor, k: Tensor) -> Tensor:
        """Keys drawn with replacement, the same for all windows and heads: int64 [Q, U]."""
        keys = k.shape[-2]
        size = q.shape[-2], self._count(keys)
        return torch.randint(keys, size, device=k.device, generator=self.generator)

    def _same(self, q: Tensor, k: Tensor) -> Tensor:
        """As `_sample`, but the same keys at each call, from a separate generator of seed 0."""
        queries, keys = q.shape[-2], k.shape[-2]
        key = queries, keys, k.device
        if key not in self._fixed:
            own = torch.Generator().manual_seed(0)
            size = queries, self._count(keys)
            drawn = torch.randint(keys, size, device="cpu", generator=own)
            self._fixed[key] = drawn.to(k.device)
        return self._fixed[key]


class Distilling(nn.Module):
    """Convolution (circular, width 3), batch normalisation, ELU and a max-pooling by two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, padding=2, padding_mode="circular")
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, L // 2 + 1, width]."""
        x = self.norm(self.convolution(x.transpose(1, 2)))
        return F.max_pool1d(F.elu(x), 3, stride=2, padding=1).transpose(1, 2)


class Informer(Transformer):
    """The Transformer with ProbSparse attention in all sites and distilling in its encoder."""

    settings: Settings

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.distilling = nn.ModuleList(
            Distilling(settings.d_model) for _ in range(settings.e_layers - 1)
        )

    def attention(self, *, causal: bool = False, cross: bool = False) -> MultiHeadAttention:
        """Build an attention module of the model's sizes."""
        core = ProbSparseCore(self.settings.factor, causal)
        return MultiHeadAttention(
            self.settings.d_model, self.settings.n_heads, cross=cross, core=core
        )

    def encode(self, tokens: Tensor, **conditions: Tensor) -> Tensor:
        """[B, L, width] -> [B, K, width]; each layer except the last about halves the steps."""
        for i, layer in enumerate(self.encoder):
            tokens = layer(tokens, **conditions)
            if i < len(self.distilling):
                tokens = self.distilling[i](tokens)
        return self.encoder_norm(tokens)  # type: ignore[no-any-return]
