"""The criteria that are compared with SEND, each a function of the `Trace` of a site.

A function maps the `Trace` of a site in W windows to values per window: [W, 1] for the site, or
[W, 1 + H] for the site and its heads. The mean over windows is the score, and a high score means
keep. If the mean needs a further step, the criterion declares it as `finish`, and the values may
have another shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spat.attention.views import Heads, Mixing, Output, Residual, Trace
from spat.scoring.criterion import (
    absolute,
    complement,
    criterion,
    negative,
    root_sum,
    variance_sum,
)
from spat.scoring.reductions import deviation, over_rows, several_keys, with_mean, with_sum


@criterion("michel", needs=Output, heads=True, source="Michel et al. 2019, arXiv 1905.10650")
def michel(trace: Trace) -> Tensor:
    """|g|, the gradient by a gate at 1: Michel et al. 2019 (arXiv 1905.10650), equation 2.

    The gate of a site acts on all its heads, so gradients are summed before the absolute value.
    """
    return trace.gate.abs()


@criterion(
    "taylor",
    needs=Output,
    heads=True,
    source="Molchanov et al. 2017, arXiv 1611.06440",
    finish=absolute,
)
def taylor(trace: Trace) -> Tensor:
    """g; the score is the absolute value of its mean: Molchanov et al. 2017 (arXiv 1611.06440)."""
    return trace.gate


@criterion("fisher", needs=Output, heads=True, source="Theis et al. 2018, arXiv 1801.05787")
def fisher(trace: Trace) -> Tensor:
    """g^2, twice the loss change under the empirical Fisher: Theis et al. 2018 (1801.05787)."""
    return trace.gate.square()


@criterion("snip", needs=Mixing, heads=True, source="SNIP, Lee et al. 2019, arXiv 1810.02340")
def snip(trace: Trace) -> Tensor:
    """Sum of |S|, with attention weights as connections: SNIP (Lee et al. 2019, 1810.02340)."""
    return with_sum(trace.mixing.S.abs().sum((1, 3, 4)))


@criterion("cosine", needs=Residual, source="LLM-Drop, He et al. 2024, arXiv 2406.15786")
def cosine(trace: Trace) -> Tensor:
    """1 - cos(x, x + attention), x the residual stream: LLM-Drop (He et al. 2024, 2406.15786)."""
    assert isinstance(trace.output, Residual)
    return _turn(trace.output.stream, trace.output.total)


@criterion("block_influence", needs=Residual, source="ShortGPT, Men et al. 2024, arXiv 2403.03853")
def block_influence(trace: Trace) -> Tensor:
    """1 - cos of a layer's input and output: ShortGPT (Men et al. 2024, arXiv 2403.03853).

    The value is the same for both sites of a decoder layer.
    """
    assert isinstance(trace.output, Residual)
    return _turn(trace.output.before, trace.output.after)


@criterion("magnitude", needs=Heads, heads=True, source="Han et al. 2015, arXiv 1506.02626")
def magnitude(trace: Trace) -> Tensor:
    """Frobenius norm of W_o W_v, the linear map of a head (magnitude: Han et al. 2015, 1506.02626).

    The value of a site is the norm of the concatenated maps of its heads.
    """
    W_o, W_v = _heads(trace).W_o, _heads(trace).W_v
    # |W_o W_v|^2 = trace(W_o^T W_o W_v W_v^T), a product of matrices of the head's size.
    squares = ((W_o.mT @ W_o) * (W_v @ W_v.mT)).sum((-1, -2)).clamp(min=0)
    return with_sum(squares).sqrt().expand(trace.windows, -1)


@criterion(
    "wanda",
    needs=Heads,
    heads=True,
    source="Wanda, Sun et al. 2023, arXiv 2306.11695",
    finish=root_sum,
)
def wanda(trace: Trace) -> Tensor:
    """(|W_o| |X|)^2 for each column of the output projection: Wanda (Sun et al. 2023, 2306.11695).

    [W, H, D], where |X| is the norm of the input column over the tokens of a window. The score is
    the root of the mean, summed over columns: the sum over weights of |W_ij| |X_j|, where |X_j| is
    the root mean square over windows.
    """
    heads = _heads(trace)
    columns = heads.O.double().square().sum((1, 3))
    return heads.W_o.abs().sum(1).square() * columns


@criterion(
    "flap",
    needs=Heads,
    heads=True,
    source="FLAP, An et al. 2023, arXiv 2312.11983",
    finish=variance_sum,
)
def flap(trace: Trace) -> Tensor:
    """First two moments of each input column of the output projection, [W, H, D, 2].

    The score is computed from their variance: the fluctuation metric of FLAP (An et al. 2023, arXiv
    2312.11983), var(X_j) |W_j|^2, summed over columns (the published code squares before it sums).
    """
    heads = _heads(trace)
    columns = heads.O.double() * heads.W_o.norm(dim=1).unsqueeze(1)
    return torch.stack([columns.mean((1, 3)), columns.square().mean((1, 3))], dim=-1)


@criterion("uniformity", needs=Mixing, heads=True, source="SPAT, arXiv 2505.08768")
@criterion(
    "entropy",
    needs=Mixing,
    heads=True,
    source="Voita et al. 2019, arXiv 1905.09418",
    finish=complement,
)
def uniformity(trace: Trace) -> Tensor:
    """Row entropy of A over the logarithm of the number of keys: 1 is uniform, 0 a single key.

    Rows that may attend to a single key are left out. The criterion `entropy` is 1 minus the mean,
    the confidence of a head (Voita et al. 2019, arXiv 1905.09418).
    """
    mixing = trace.mixing
    A, allowed = several_keys(mixing.A, mixing.allowed)
    # Rows with fewer than two keys are still there only if `over_rows` does not count them.
    most = allowed.sum(-1).clamp(min=2).to(A).log()
    return with_mean(over_rows(torch.special.entr(A).sum(-1) / most, allowed))


@criterion("attention_std", needs=Mixing, heads=True, source="SEND without the gradient")
def attention_std(trace: Trace) -> Tensor:
    """Standard deviation of A over the allowed keys: SEND without the gradient."""
    mixing = trace.mixing
    return with_mean(over_rows(deviation(mixing.A, mixing.allowed), mixing.allowed))


@criterion("depth_first", needs=Output, source="position, the first go first")
@criterion(
    "depth_last",
    needs=Output,
    source="position, the deepest go first: Tyukin et al. 2024, arXiv 2407.15516",
    finish=negative,
)
def depth(trace: Trace) -> Tensor:
    """The index in forward order; its negative removes the deepest first (Tyukin et al. 2024)."""
    return trace.output.x.new_full((trace.windows, 1), trace.index, dtype=torch.float64)


def _heads(trace: Trace) -> Heads:
    assert trace.heads is not None
    return trace.heads


def _turn(start: Tensor, end: Tensor) -> Tensor:
    """1 - cos(start, end), mean over the tokens of a window: [W, R, tokens, width] -> [W, 1].

    A token that is zero in both counts as unchanged.
    """
    start, end = start.double(), end.double()
    # Rounding errors leave tokens of about 1e-17, whose direction has no meaning.
    tiny = torch.finfo(torch.double).tiny
    turn = 1 - torch.cosine_similarity(start, end, dim=-1, eps=tiny)
    turn = turn.where((start != 0).any(-1) | (end != 0).any(-1), 0.0)
    return turn.flatten(1).mean(1, keepdim=True)
