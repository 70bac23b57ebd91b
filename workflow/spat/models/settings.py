"""The settings of each network, and the recipe of its training; torch is not imported.

Each model has a frozen dataclass of its own. A field may hold any positive number unless its type
says otherwise; `problem` says why settings do not fit a shape, so that a configuration is refused
before the first job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

# In [0, 1): a share of what is dropped.
Share = Annotated[float, "share"]
# A number that may also be 0.
NotNegative = Annotated[float, "not negative"]
# How the learning rate falls from epoch to epoch: see `spat.training.optimisation.rate_at`.
Schedule = Literal["constant", "type1", "type3", "step25", "sparsetsf", "fits", "cosine"]
# Whose weights the language model of a forecaster has.
Backbone = Literal["gpt2", "smollm2", "random"]

# A network with more is a mistake: its weights, gradients and optimiser would take 32 GB.
MOST_WEIGHTS: Final = 2 * 10**9


@dataclass(frozen=True)
class Shape:
    """The input and output of a forecaster: [B, lookback, channels] -> [B, horizon, channels].

    `marks` is the number of time features of a step, 0 where the data have no timestamps.
    """

    lookback: int
    horizon: int
    channels: int
    marks: int = 0


@dataclass(frozen=True)
class ImageShape:
    """The shape of a classifier of images: [B, channels, height, width] -> [B, classes]."""

    height: int
    width: int
    channels: int
    classes: int


@dataclass(frozen=True)
class TextShape:
    """The shape of a language model: `context` integers -> logits of the next one of each.

    A number is below `vocabulary`; a byte has 256 values.
    """

    context: int
    vocabulary: int = 256


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    `patience` is the number of epochs without a better validation MSE after which training stops.
    `sam_rho` is the radius of sharpness-aware minimisation; None trains without it. An epoch sees
    this `share` of the training windows, drawn anew for each epoch.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    patience: int
    schedule: Schedule = "type1"
    weight_decay: NotNegative = 0.0
    sam_rho: float | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Settings:
    """The settings of a network; the base class of each model's own."""

    @property
    def uses_marks(self) -> bool:
        """Whether the network reads time features."""
        return bool(getattr(self, "time_features", False))

    def problem(self, shape: Any) -> str | None:
        """The reason why the network cannot be built for this shape, or None if it can."""
        if self.uses_marks and not shape.marks:
            return "time_features is on, but the dataset has no timestamps: turn it off"
        heads, width = getattr(self, "n_heads", 1), getattr(self, "d_model", 1)
        if heads > width:
            return f"n_heads {heads} exceeds d_model {width}: choose fewer heads"
        inner = getattr(self, "d_ff", 0)
        layers = getattr(self, "e_layers", 1) + getattr(self, "d_layers", 0)
        # Of queries, keys, values and outputs, and of both products of the feed-forward network.
        weights = layers * width * (4 * width + 2 * inner)
        if weights > MOST_WEIGHTS:
            return (
                f"d_model {width} and d_ff {inner} in {layers} layers are about {weights:.1e} "
                f"weights, more than can be trained: choose smaller ones"
            )
        return None


@dataclass(frozen=True)
class ITransformerSettings(Settings):
    """Settings of `spat.models.itransformer`."""

    d_model: int
    d_ff: int
    e_layers: int
    n_heads: int
    dropout: Share
    time_features: bool
    instance_norm: bool


@dataclass(frozen=True)
class PatchTSTSettings(Settings):
    """Settings of `spat.models.patchtst`."""

    d_model: int
    d_ff: int
    e_layers: int
    n_heads: int
    dropout: Share
    patch_len: int
    stride: int
    instance_norm: bool

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; a patch must also fit into the lookback and its padding of one stride."""
        return _no_patch(self.patch_len, self.stride, shape) or super().problem(shape)


@dataclass(frozen=True)
class TransformerSettings(Settings):
    """Settings of `spat.models.transformer`; a longer `label_len` is cut to the lookback."""

    d_model: int
    d_ff: int
    e_layers: int
    d_layers: int
    n_heads: int
    dropout: Share
    label_len: int
    time_features: bool


@dataclass(frozen=True)
class PAttnSettings(Settings):
    """Settings of `spat.models.pattn`."""

    d_model: int
    d_ff: int
    n_heads: int
    dropout: Share
    patch_len: int
    stride: int

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; a patch must also fit into the lookback and its padding of one stride."""
        return _no_patch(self.patch_len, self.stride, shape) or super().problem(shape)


@dataclass(frozen=True)
class SAMformerSettings(Settings):
    """Settings of `spat.models.samformer`; `d_keys` is the size of queries and keys."""

    d_keys: int


@dataclass(frozen=True)
class TimeXerSettings(Settings):
    """Settings of `spat.models.timexer`."""

    d_model: int
    d_ff: int
    e_layers: int
    n_heads: int
    dropout: Share
    patch_len: int
    time_features: bool

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; a patch must also fit into the lookback."""
        return _no_patch(self.patch_len, 0, shape) or super().problem(shape)


@dataclass(frozen=True)
class NonstationarySettings(TransformerSettings):
    """Settings of `spat.models.nonstationary`: hidden layers of its two projectors, all as wide."""

    projector_width: int
    projector_layers: int


@dataclass(frozen=True)
class InformerSettings(TransformerSettings):
    """Settings of `spat.models.informer`.

    `factor` times the logarithm of their number are the keys that are sampled and the queries that
    attend.
    """

    factor: int

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; the convolutions between encoder layers need two steps."""
        if shape.lookback < 2 and self.e_layers > 1:
            return (
                f"lookback {shape.lookback} with e_layers {self.e_layers}: choose 2 steps or more"
            )
        return super().problem(shape)


@dataclass(frozen=True)
class DecompositionSettings(Settings):
    """What Autoformer and FEDformer have in common; a longer `label_len` is cut to the lookback."""

    d_model: int
    d_ff: int
    e_layers: int
    d_layers: int
    dropout: Share
    label_len: int
    moving_average: int
    time_features: bool

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; a moving average needs a centre."""
        if self.moving_average % 2 == 0:
            return f"moving_average {self.moving_average}: choose an odd width"
        return super().problem(shape)


@dataclass(frozen=True)
class AutoformerSettings(DecompositionSettings):
    """Settings of `spat.models.autoformer`: `factor` times the log of the steps are delays."""

    factor: int


@dataclass(frozen=True)
class FEDformerSettings(DecompositionSettings):
    """Settings of `spat.models.fedformer`; at most `modes` frequencies are kept."""

    n_heads: int
    modes: int

    def problem(self, shape: Shape) -> str | None:
        """As `DecompositionSettings`; heads have equal sizes, and two steps a frequency."""
        if self.d_model % self.n_heads:
            return f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
        if shape.lookback < 2:
            return f"lookback {shape.lookback} has no frequency to keep: choose 2 or more"
        return super().problem(shape)


@dataclass(frozen=True)
class CrossformerSettings(Settings):
    """Settings of `spat.models.crossformer`: steps of a `segment`, and `routers` of each."""

    d_model: int
    d_ff: int
    e_layers: int
    n_heads: int
    dropout: Share
    segment: int
    routers: int


@dataclass(frozen=True)
class SMambaSettings(Settings):
    """Settings of `spat.models.smamba`."""

    d_model: int
    d_ff: int
    e_layers: int
    d_state: int
    d_conv: int
    expand: int
    dropout: Share
    time_features: bool
    instance_norm: bool


@dataclass(frozen=True)
class MambaSettings(Settings):
    """Settings of `spat.models.mamba`."""

    d_model: int
    e_layers: int
    d_state: int
    d_conv: int
    expand: int
    dropout: Share
    time_features: bool


@dataclass(frozen=True)
class TimeMachineSettings(Settings):
    """Settings of `spat.models.timemachine`; `n1` and `n2` are its two widths."""

    n1: int
    n2: int
    d_state: int
    d_conv: int
    expand: int
    dropout: Share
    channel_independent: bool
    revin: bool


@dataclass(frozen=True, kw_only=True)
class PatchedLanguageSettings(Settings):
    """What the forecasters on a language model share: patches, and where its weights come from."""

    patch_len: int
    stride: int
    llm_layers: int
    backbone: Backbone

    def patches(self, shape: Shape) -> int:
        """The number of patches of a window, whose end is padded by one stride."""
        return (shape.lookback + self.stride - self.patch_len) // self.stride + 1

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; a patch must also fit into the lookback and its padding of one stride."""
        return _no_patch(self.patch_len, self.stride, shape) or super().problem(shape)


@dataclass(frozen=True, kw_only=True)
class GPT4TSGPT2Settings(PatchedLanguageSettings):
    """Settings of `spat.models.gpt4ts`."""

    backbone: Literal["gpt2"] = "gpt2"


@dataclass(frozen=True, kw_only=True)
class GPT4TSSmolLM2Settings(PatchedLanguageSettings):
    """As `GPT4TSGPT2Settings`, with SmolLM2."""

    backbone: Literal["smollm2"] = "smollm2"


@dataclass(frozen=True, kw_only=True)
class GPT4TSRandomSettings(PatchedLanguageSettings):
    """As `GPT4TSGPT2Settings`, with random weights, so that the sizes are free."""

    backbone: Literal["random"] = "random"
    llm_width: int = 768
    llm_heads: int = 12
    dropout: Share = 0.1


@dataclass(frozen=True, kw_only=True)
class TimeLLMSettings(PatchedLanguageSettings):
    """What the settings of `spat.models.timellm` share.

    `d_ff` is the size of a head of the reprogramming attention, and the number of features of each
    output of the language model that the forecast is computed from. `prompt_tokens` is the length
    of a prompt, and `description` the sentence in it that describes the dataset.
    """

    d_model: int
    d_ff: int
    n_heads: int
    prototypes: int
    prompt_tokens: int
    dropout: Share
    description: str

    @property
    def width(self) -> int:
        """The width of the language model."""
        return {"gpt2": 768, "smollm2": 576}[self.backbone]

    def problem(self, shape: Shape) -> str | None:
        """As `PatchedLanguageSettings`; `d_ff` features and room for all tokens must exist."""
        if self.d_ff > self.width:
            return f"d_ff {self.d_ff} exceeds the width of the language model, {self.width}"
        tokens = self.prompt_tokens + self.patches(shape)
        if self.backbone != "smollm2" and tokens > 1024:
            return (
                f"{self.prompt_tokens} words of prompt and {self.patches(shape)} patches exceed "
                "the context of 1024: choose a larger stride or fewer prompt_tokens"
            )
        return super().problem(shape)


@dataclass(frozen=True, kw_only=True)
class TimeLLMGPT2Settings(TimeLLMSettings):
    """As `TimeLLMSettings`, with GPT-2."""

    backbone: Literal["gpt2"] = "gpt2"


@dataclass(frozen=True, kw_only=True)
class TimeLLMSmolLM2Settings(TimeLLMSettings):
    """As `TimeLLMSettings`, with SmolLM2."""

    backbone: Literal["smollm2"] = "smollm2"


@dataclass(frozen=True, kw_only=True)
class TimeLLMRandomSettings(TimeLLMSettings):
    """As `TimeLLMSettings`, with random weights, so that the sizes are free."""

    backbone: Literal["random"] = "random"
    llm_width: int = 768
    llm_heads: int = 12
    vocabulary: int = 50257

    @property
    def width(self) -> int:
        """The width of the language model."""
        return self.llm_width


@dataclass(frozen=True)
class DLinearSettings(Settings):
    """Settings of `spat.models.dlinear`."""

    moving_average: int

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; a moving average needs a centre."""
        if self.moving_average % 2 == 0:
            return f"moving_average {self.moving_average}: choose an odd width"
        return super().problem(shape)


@dataclass(frozen=True)
class RLinearSettings(Settings):
    """Settings of `spat.models.rlinear`."""

    dropout: Share


@dataclass(frozen=True)
class SparseTSFSettings(Settings):
    """Settings of `spat.models.sparsetsf.SparseTSF`; `period` is in steps."""

    period: int

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; whole periods must fill lookback and horizon."""
        if shape.lookback % self.period or shape.horizon % self.period:
            return (
                f"period {self.period} does not divide lookback {shape.lookback} and horizon "
                f"{shape.horizon}: choose one that does"
            )
        return super().problem(shape)


@dataclass(frozen=True)
class SparseTSFMLPSettings(SparseTSFSettings):
    """Settings of `spat.models.sparsetsf.SparseTSFMLP`; `d_model` is its hidden width."""

    d_model: int


@dataclass(frozen=True)
class FITSSettings(Settings):
    """Settings of `spat.models.fits`: `order` harmonics of a period of `base_period` steps."""

    base_period: int
    order: int

    def frequencies(self, shape: Shape) -> tuple[int, int]:
        """How many frequencies of the window are read, and how many are written.

        The window of L steps is continued to L + H: its frequencies are stretched by (L + H) / L.
        """
        length = shape.lookback
        kept = min((length // self.base_period + 1) * self.order + 10, length // 2 + 1)
        return kept, kept * (length + shape.horizon) // length

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; lookback and horizon together must hold the frequencies written."""
        if shape.lookback < 2:
            return "lookback 1 has no sample variance: choose at least 2"
        kept, written = self.frequencies(shape)
        most = (shape.lookback + shape.horizon) // 2 + 1
        if written > most:
            return (
                f"order {self.order} keeps {kept} frequencies of lookback {shape.lookback}, which "
                f"become {written} of {most} with horizon {shape.horizon}: choose a smaller order"
            )
        return super().problem(shape)


@dataclass(frozen=True)
class TSMixerSettings(Settings):
    """Settings of `spat.models.tsmixer`."""

    d_ff: int
    e_layers: int
    dropout: Share


@dataclass(frozen=True)
class TiDESettings(Settings):
    """Settings of `spat.models.tide`.

    `d_model` and `d_ff` are the hidden widths of the dense blocks and of the last block,
    `step_width` is what the decoder gives each step of the horizon, `marks_width` what the time
    features of a step are reduced to.
    """

    d_model: int
    d_ff: int
    e_layers: int
    d_layers: int
    dropout: Share
    step_width: int
    marks_width: int
    time_features: bool


@dataclass(frozen=True)
class SeasonalNaiveSettings(Settings):
    """Settings of `spat.models.naive.SeasonalNaive`; `season` (steps) is the dataset's."""

    season: int


@dataclass(frozen=True)
class ViTSettings(Settings):
    """Settings of `spat.models.vit`; a patch has `patch_size` x `patch_size` pixels."""

    d_model: int
    d_ff: int
    e_layers: int
    n_heads: int
    dropout: Share
    patch_size: int

    def problem(self, shape: ImageShape) -> str | None:
        """As `Settings`; patches must also cover the image."""
        if shape.height % self.patch_size or shape.width % self.patch_size:
            return (
                f"patch_size {self.patch_size} does not divide images of {shape.height} x "
                f"{shape.width} pixels: choose a divisor of both"
            )
        return super().problem(shape)


@dataclass(frozen=True)
class GPTSettings(Settings):
    """Settings of `spat.models.gpt`."""

    d_model: int
    d_ff: int
    e_layers: int
    n_heads: int
    dropout: Share


def _no_patch(patch_len: int, padding: int, shape: Shape) -> str | None:
    if shape.lookback + padding >= patch_len:
        return None
    return (
        f"lookback {shape.lookback} with stride {padding} holds no patch of {patch_len} steps: "
        "choose a smaller patch_len"
    )
