"""FEDformer (Zhou et al., ICML 2022, arXiv 2201.12740), the Fourier version.

Encoder, decoder and decomposition are those of `Autoformer`, with positions in the embeddings.
Attention works in the frequency domain, as in the Time-Series-Library. A site keeps some
frequencies, which are drawn when the model is built and saved with the weights:

    self    each kept frequency of the queries is multiplied by its own complex matrix; the i-th
            kept frequency becomes the i-th frequency of the output. There are neither keys nor
            weights, so the site offers only the view `Output`, and SEND is not defined for it.
    cross   A = tanh(Q K^T) between the kept frequencies of queries and keys (tanh of the real and
            of the imaginary part), then the matrices on A K. The site offers the view `Mixing`
            with a complex A.

The layers of the encoder share their matrices, and so do the layers of the decoder: `Modes` belongs
to the model and is an argument of the sites. The sweep removes it with the last site that uses it.

The published code also builds keys and values of the self sites and values of the cross sites,
which it never uses (1,838,592 of 16,827,399 parameters for ETTh1). They are left out here. The
published code assumes a label of half the lookback for the frequencies of the decoder; here any
label is allowed.

As in the published code, the output of a site is written as [head, feature, step] and read as
[step, width]. This mixes heads, features and steps, so a site can only be removed as a whole. If a
site is removed, the decomposition of its sub-layer stays. The last cross-attention is protected, as
in `Autoformer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spat.attention.site import Site
from spat.attention.views import MixingCore
from spat.models.autoformer import Autoformer, real
from spat.models.layers.blocks import encoder_decoder_sites
from spat.models.settings import FEDformerSettings as Settings
from spat.models.settings import Shape
from spat.training.device.kernels import Linear


class Modes(nn.Module):
    """The kept frequencies of series of `length` steps, with a complex matrix for each and head."""

    index: Tensor

    def __init__(self, length: int, modes: int, width: int, heads: int) -> None:
        """Draw at most `modes` of the length / 2 lowest frequencies."""
        super().__init__()
        self.length = length
        self.register_buffer("index", kept_modes(length, modes))
        size = width // heads
        # The last axis holds the real and the imaginary part.
        drawn = torch.rand(len(self.index), heads, size, size, 2) / width**2
        self.weight = nn.Parameter(drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Complex [B, H, modes, D] -> the same shape, each frequency times its matrix."""
        weight = torch.view_as_complex(self.weight)
        return torch.einsum("bhmi,mhio->bhmo", x, weight)


def kept_modes(length: int, modes: int) -> Tensor:
    """Draw frequencies from 0 .. length // 2 - 1 without replacement; sorted, int64 [modes]."""
    return torch.randperm(length // 2)[:modes].sort().values


def spectrum(x: Tensor, heads: int, index: Tensor) -> Tensor:
    """The frequencies `index` of x [B, L, width], by head: complex [B, H, modes, D]."""
    spectra = torch.fft.rfft(real(x), dim=1).index_select(1, index)
    by_head: Tensor = spectra.view(*spectra.shape[:-1], heads, -1)
    return by_head.transpose(1, 2)


def series(spectra: Tensor, index: Tensor, length: int) -> Tensor:
    """The series with the spectrum `spectra`, complex [B, H, modes, D], at `index`: [B, L, width].

    The inverse transform [B, H, D, L] is reshaped to [B, L, width] without a transposition, as
    published.
    """
    batch, heads, _, size = spectra.shape
    full = spectra.new_zeros(batch, heads, size, length // 2 + 1)
    full = full.index_copy(-1, index, spectra.transpose(-1, -2))
    steps: Tensor = torch.fft.irfft(full, n=length)
    return steps.reshape(batch, length, heads * size)


class FourierBlock(nn.Module):
    """The self site: kept frequencies of the queries, multiplied by `Modes`; output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, modes: Modes) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        spectra = modes(spectrum(self.q(x), self.heads, modes.index))
        lowest = torch.arange(spectra.shape[2], device=spectra.device)
        return self.out(series(spectra, lowest, x.shape[1]).to(x.dtype))  # type: ignore[no-any-return]


class FrequencyCore(MixingCore):
    """A K: sums of the frequencies of the keys, weighted by A for each frequency of the queries."""

    def forward(self, weights: Tensor, values: Tensor) -> Tensor:
        """Complex weights [B, H, q, k], values [B, H, k, D] -> [B, H, q, D]."""
        return weights @ values


class FourierCrossAttention(nn.Module):
    """The cross site: A K in the frequency domain, multiplied by `Modes`; output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.core = FrequencyCore()
        self.out = Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, modes: Modes, keys: Tensor) -> Tensor:
        """x [B, Q, width], memory [B, K, width] -> [B, Q, width].

        `keys`, int64 [k], are the kept frequencies of the memory.
        """
        width = x.shape[-1]
        q = spectrum(self.q(x), self.heads, modes.index)
        k = spectrum(self.k(memory), self.heads, keys)
        products = q @ k.transpose(-1, -2)
        A = torch.complex(products.real.tanh(), products.imag.tanh())
        spectra = modes(self.core(A, k)) / width**2
        return self.out(series(spectra, modes.index, x.shape[1]).to(x.dtype))  # type: ignore[no-any-return]


class FEDformer(Autoformer):
    """`Autoformer` with attention in the frequency domain and with positions."""

    positions = True
    settings: Settings
    keys: Tensor

    def __init__(self, settings: Settings, shape: Shape) -> None:
        super().__init__(settings, shape)
        sizes = settings.modes, settings.d_model, settings.n_heads
        self.encoder_modes = Modes(shape.lookback, *sizes)
        self.decoder_modes = Modes(self.steps, *sizes)
        self.cross_modes = Modes(self.steps, *sizes)
        self.register_buffer("keys", kept_modes(shape.lookback, settings.modes))

    def attention(self, *, cross: bool = False) -> nn.Module:
        """Build an attention module of the model's sizes."""
        block = FourierCrossAttention if cross else FourierBlock
        return block(self.settings.d_model, self.settings.n_heads)

    def shared(self) -> tuple[Sequence[Any], ...]:
        """The matrices of each kind of site, and for cross sites the frequencies of the keys."""
        return (self.encoder_modes,), (self.decoder_modes,), (self.cross_modes, self.keys)

    def sites(self) -> tuple[Site, ...]:
        """All attentions except the last cross-attention; each can only be removed as a whole."""
        return encoder_decoder_sites(self.encoder, self.decoder, heads=1, kind="fourier")
