"""FEDformer (Zhou et al., ICML 2022, arXiv 2201.12740), Fourier version of the library.

The outside of `Autoformer`, with positions in the embeddings, and attention in the frequency
domain as the Time-Series-Library has it. A site keeps some frequencies, which are drawn when the
model is built and saved with the weights:

    self    each kept frequency of the queries is multiplied by a complex matrix of its own, and
            the i-th of them becomes the i-th frequency of the output. There are neither keys nor
            weights, so the site shows only its `Output`, and SEND is not defined for it.
    cross   A = tanh(Q K^T) between the kept frequencies of queries and keys (of real and imaginary
            part each), then the matrices on A K. Its A can be masked: view `Mixing`, complex.

The matrices are shared by the layers of the encoder, and by those of the decoder: `Modes` belongs
to the model and is passed to the sites. It goes when the last site that uses it is removed.

Differences from the published code. It also makes keys and values of the self sites and values of
the cross sites, which nothing reads (1 838 592 of 16 827 399 parameters on ETTh1): they are left
out here. Its table of the decoder's frequencies assumes a label of half the lookback, as published.

The published code writes [head, feature, step] and reads it as [step, width], and so does this. It
mixes heads, features and steps, so a site can only be removed whole. A removed site leaves the
decomposition of its sub-layer. The last cross-attention is protected, as in `Autoformer`.
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
    """Kept frequencies of a series of `length` steps, each with a complex matrix for each head."""

    index: Tensor

    def __init__(self, length: int, modes: int, width: int, heads: int) -> None:
        """Draw at most `modes` of the length / 2 lowest frequencies."""
        super().__init__()
        self.length = length
        self.register_buffer("index", kept_modes(length, modes))
        size = width // heads
        # The last axis holds real and imaginary part.
        drawn = torch.rand(len(self.index), heads, size, size, 2) / width**2
        self.weight = nn.Parameter(drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Complex [B, H, modes, D] -> the same shape, each frequency times its matrix."""
        weight = torch.view_as_complex(self.weight)
        return torch.einsum("bhmi,mhio->bhmo", x, weight)


def kept_modes(length: int, modes: int) -> Tensor:
    """Frequencies drawn without replacement from 0 .. length / 2 - 1, in order: int64 [modes]."""
    return torch.randperm(length // 2)[:modes].sort().values


def spectrum(x: Tensor, heads: int, index: Tensor) -> Tensor:
    """Some frequencies of x [B, L, width], by head: complex [B, H, modes, D]."""
    spectra = torch.fft.rfft(real(x), dim=1).index_select(1, index)
    by_head: Tensor = spectra.view(*spectra.shape[:-1], heads, -1)
    return by_head.transpose(1, 2)


def series(spectra: Tensor, index: Tensor, length: int) -> Tensor:
    """Steps with the frequencies `spectra`, complex [B, H, modes, D], at `index` -> [B, L, width].

    The steps [B, H, D, L] are read as [B, L, width] in the order of the memory, as published.
    """
    batch, heads, _, size = spectra.shape
    full = spectra.new_zeros(batch, heads, size, length // 2 + 1)
    full = full.index_copy(-1, index, spectra.transpose(-1, -2))
    steps: Tensor = torch.fft.irfft(full, n=length)
    return steps.reshape(batch, length, heads * size)


class FourierBlock(nn.Module):
    """The self site: queries, their kept frequencies through `Modes`, output projection."""

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
    """A K: the sum of the keys' frequencies under the weights of a query's frequency."""

    def forward(self, weights: Tensor, values: Tensor) -> Tensor:
        """Complex weights [B, H, q, k], values [B, H, k, D] -> [B, H, q, D]."""
        return weights @ values


class FourierCrossAttention(nn.Module):
    """The cross site: A of queries and keys in the frequency domain, then `Modes`, then output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.core = FrequencyCore()
        self.out = Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, modes: Modes, keys: Tensor) -> Tensor:
        """x [B, Q, width], memory [B, K, width] -> [B, Q, width]; `keys` are kept of the memory."""
        width = x.shape[-1]
        q = spectrum(self.q(x), self.heads, modes.index)
        k = spectrum(self.k(memory), self.heads, keys)
        products = q @ k.transpose(-1, -2)
        A = torch.complex(products.real.tanh(), products.imag.tanh())
        spectra = modes(self.core(A, k)) / width**2
        return self.out(series(spectra, modes.index, x.shape[1]).to(x.dtype))  # type: ignore[no-any-return]


class FEDformer(Autoformer):
    """Decomposed encoder and decoder round attentions in the frequency domain."""

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
        """A new attention of the model's sizes."""
        block = FourierCrossAttention if cross else FourierBlock
        return block(self.settings.d_model, self.settings.n_heads)

    def shared(self) -> tuple[Sequence[Any], ...]:
        """The matrices of each kind of site; the cross sites also get the frequencies of keys."""
        return (self.encoder_modes,), (self.decoder_modes,), (self.cross_modes, self.keys)

    def sites(self) -> tuple[Site, ...]:
        """All attentions but the last cross-attention, each as a whole."""
        return encoder_decoder_sites(self.encoder, self.decoder, heads=1, kind="fourier")
