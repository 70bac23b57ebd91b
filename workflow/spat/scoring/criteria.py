"""The competitors of SEND, each a small function of what the probe collected.

A function maps the record of a site in W windows to values per window: [W, 1] for the site alone,
or [W, 1 + H] with the site in front of its heads. Their mean over windows is the score, a high one
meaning keep; where something has to be done after that mean, the registry names the finish, and
the values may be moments of another shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spat.attention.views import SiteRecord
from spat.models.layers.attention import MultiHeadAttention
from spat.scoring.reductions import deviation, over_rows, several_keys, with_mean, with_sum


def michel(record: SiteRecord) -> Tensor:
    """|g|, the gradient by a gate at 1: Michel et al. 2019 (arXiv 1905.10650), equation 2.

    The gate of a site is common to its heads, so their gradients add up before the absolute value.
    """
    return record.gate.abs()


def taylor(record: SiteRecord) -> Tensor:
    """g; finished by the absolute value of its mean: Molchanov et al. 2017 (arXiv 1611.06440)."""
    return record.gate


def fisher(record: SiteRecord) -> Tensor:
    """g^2, twice the loss change under the empirical Fisher: Theis et al. 2018 (1801.05787)."""
    return record.gate.square()


def snip(record: SiteRecord) -> Tensor:
    """Sum of |S|, connections being attention weights: SNIP (Lee et al. 2019, arXiv 1810.02340)."""
    return with_sum(record.S.abs().sum((1, 3, 4)))


def cosine(record: SiteRecord) -> Tensor:
    """1 - cos(x, x + attention(x)) before the norm: LLM-Drop (He et al. 2024, arXiv 2406.15786)."""
    return _turn(record.x, record.x + record.y)


def block_influence(record: SiteRecord) -> Tensor:
    """1 - cos of a layer's input and output: ShortGPT (Men et al. 2024, arXiv 2403.03853).

    Two sites in one decoder layer have the same.
    """
    return _turn(record.before, record.after)


def magnitude(record: SiteRecord) -> Tensor:
    """Frobenius norm of W_o W_v, the linear map of a head (magnitude: Han et al. 2015, 1506.02626).

    That of a site is the norm of its heads' maps side by side.
    """
    W_o, W_v = _output_weight(record.attention), _value_weight(record.attention)
    # |W_o W_v|^2 = trace(W_o^T W_o W_v W_v^T), of the size of a head.
    squares = ((W_o.mT @ W_o) * (W_v @ W_v.mT)).sum((-1, -2)).clamp(min=0)
    return with_sum(squares).sqrt().expand(record.windows, -1)


def wanda(record: SiteRecord) -> Tensor:
    """(|W_o| |X|)^2 for each column of the output projection: Wanda (Sun et al. 2023, 2306.11695).

    [W, H, D], with |X| the norm of the input column over the tokens of a window. Finished by root
    and sum over columns: the sum over weights of |W_ij| |X_j|, X the root mean square over windows.
    """
    columns = record.O.double().square().sum((1, 3))
    return _output_weight(record.attention).abs().sum(1).square() * columns


def flap(record: SiteRecord) -> Tensor:
    """First two moments of each input column of the output projection, [W, H, D, 2].

    Finished by their variance: the fluctuation metric of FLAP (An et al. 2023, arXiv 2312.11983),
    var(X_j) |W_j|^2, summed over columns (the published code squares before it sums).
    """
    columns = record.O.double() * _output_weight(record.attention).norm(dim=1).unsqueeze(1)
    return torch.stack([columns.mean((1, 3)), columns.square().mean((1, 3))], dim=-1)


def uniformity(record: SiteRecord) -> Tensor:
    """Row entropy of A over the logarithm of the number of keys: 1 is uniform, 0 a single key.

    Rows that may attend to a single key are left out. Finished by its complement, how sure a head
    is (confidence: Voita et al. 2019, arXiv 1905.09418).
    """
    A, allowed = several_keys(record.A, record.allowed)
    most = allowed.sum(-1).to(A).log()
    return with_mean(over_rows(torch.special.entr(A).sum(-1) / most))


def attention_std(record: SiteRecord) -> Tensor:
    """Standard deviation of A over the allowed keys: what SEND is without the gradient."""
    return with_mean(over_rows(deviation(record.A, record.allowed)))


def depth(record: SiteRecord) -> Tensor:
    """The index in forward order; negative, the deepest go first (Tyukin et al., 2407.15516)."""
    return record.A.new_full((record.windows, 1), record.index)


def mean(means: Tensor) -> Tensor:
    """The score is the mean over windows itself."""
    return means


def negative(means: Tensor) -> Tensor:
    """Minus the mean: the ranking upside down."""
    return -means


def complement(means: Tensor) -> Tensor:
    """1 - mean."""
    return 1 - means


def absolute(means: Tensor) -> Tensor:
    """|mean|: windows that pull in opposite directions cancel."""
    return means.abs()


def root_sum(means: Tensor) -> Tensor:
    """Root of each column's mean square, summed: [..., H, D] -> [..., 1 + H]."""
    return with_sum(means.sqrt().sum(-1))


def variance_sum(means: Tensor) -> Tensor:
    """Variance of each column from its two moments, summed: [..., H, D, 2] -> [..., 1 + H]."""
    variance = means[..., 1] - means[..., 0].square()
    return with_sum(variance.clamp(min=0).sum(-1))


def _turn(start: Tensor, end: Tensor) -> Tensor:
    """1 - cos, mean over the tokens of a window: [W, R, tokens, width] -> [W, 1]."""
    turn = 1 - torch.cosine_similarity(start.double(), end.double(), dim=-1)
    return turn.mean((1, 2)).unsqueeze(1)


def _output_weight(attention: MultiHeadAttention) -> Tensor:
    """W_o by head, float64 [H, width, D]."""
    weight = attention.out.weight.detach().double()
    return weight.view(-1, attention.heads, attention.head_size).transpose(0, 1)


def _value_weight(attention: MultiHeadAttention) -> Tensor:
    """W_v by head, float64 [H, D, width]: the last rows of the fused projection."""
    fused = attention.kv if attention.cross else attention.qkv
    rows = fused.weight.detach().double()[-attention.heads * attention.head_size :]
    return rows.view(attention.heads, attention.head_size, -1)
