"""The settings of each network, and the recipe of its training; this module does not import torch.

Each model has its own frozen dataclass. A numeric field holds a positive number unless its type
says otherwise. `problem` says why settings do not fit a shape, so that a configuration is refused
before the first job. Fields of several models:

    d_model         size of a token
    d_ff            hidden size of the feed-forward layers
    e_layers        layers of the encoder, or of a model without a decoder
    d_layers        layers of the decoder
    n_heads         heads of each attention
    dropout         share of values that training drops
    time_features   whether time features are inputs
    instance_norm   whether each window is scaled to zero mean and unit variance
    patch_len       length of a patch, in steps
    stride          distance of two patches, in steps
    label_len       last steps of the lookback that the decoder gets, cut to the lookback
    moving_average  width of the moving average, in steps
    d_state, d_conv, expand
                    states, kernel width and widening of a Mamba block
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

# A number in [0, 1).
Share = Annotated[float, "share"]
# A number that may also be 0.
NotNegative = Annotated[float, "not negative"]
# The learning rate of each epoch; `spat.training.optimisation.rate_at` gives the formulas.
Schedule = Literal["constant", "type1", "type3", "step25", "sparsetsf", "fits", "cosine"]
# The weights of the language model in a forecaster.
Backbone = Literal["gpt2", "smollm2", "random"]

# The largest network: its weights, gradients and optimiser state take 32 GB in float32.
MOST_WEIGHTS: Final = 2 * 10**9

# The largest values of settings and recipes, and of the sections of a configuration that replace
# them. They are far above useful values: a larger one would fail after hours, or never end.
MOST_EPOCHS: Final = 10_000
MOST_IN_BATCH: Final = 2**16
MOST_LEARNING_RATE: Final = 10.0
MOST_RADIUS: Final = 100.0
MOST: Final[dict[str, float]] = {
    **dict.fromkeys(("d_model", "d_ff", "d_keys", "n1", "n2", "projector_width"), 10_000),
    **dict.fromkeys(("llm_width", "prototypes"), 10_000),
    **dict.fromkeys(("d_state", "d_conv", "step_width", "marks_width", "routers", "factor"), 1000),
    **dict.fromkeys(("e_layers", "d_layers", "llm_layers", "projector_layers", "expand"), 100),
    **dict.fromkeys(("epochs", "patience"), MOST_EPOCHS),
    "batch_size": MOST_IN_BATCH,
    "learning_rate": MOST_LEARNING_RATE,
    "sam_rho": MOST_RADIUS,
    "weight_decay": 10.0,
}
# Of other settings: lengths in steps, most of which must also fit the data.
MOST_OF_OTHERS: Final = 100_000

# How many layers the published language models have.
_LAYERS: Final = {"gpt2": 12, "smollm2": 30}
# Settings that are widths of layers.
_WIDTHS: Final = ("d_model", "llm_width", "projector_width", "n1", "n2")


@dataclass(frozen=True)
class Shape:
    """The input and output of a forecaster: [B, lookback, channels] -> [B, horizon, channels].

    `marks` is the number of time features of a step, 0 if the data have no time stamps.
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
    """The shape of a language model: tokens [B, context] -> logits [B, context, vocabulary].

    A token is an integer from 0 to `vocabulary` - 1. The tokens of the texts here are bytes.
    """

    context: int
    vocabulary: int = 256


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        learning_rate: Learning rate of the first epoch.
        batch_size: Cases of a batch.
        epochs: The largest number of epochs.
        patience: Number of epochs without a lower validation loss after which training stops.
        schedule: How the learning rate changes from epoch to epoch.
        weight_decay: Weight decay of the optimiser.
        sam_rho: Radius of sharpness-aware minimisation; None trains without it.
        share: Share of the training cases that an epoch uses, drawn again for each epoch.
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
    """The base class of the settings of all networks."""

    @property
    def uses_marks(self) -> bool:
        """Whether the network reads time features."""
        return bool(getattr(self, "time_features", False))

    def problem(self, shape: Any) -> str | None:
        """The reason why the network cannot be built for this shape, or None if it can."""
        if self.uses_marks and not shape.marks:
            return "time_features is on, but the dataset has no time stamps: turn it off"
        patch_len, stride = getattr(self, "patch_len", 0), getattr(self, "stride", 0)
        if patch_len and shape.lookback + stride < patch_len:
            return (
                f"lookback {shape.lookback} with stride {stride} holds no patch of {patch_len} "
                "steps: choose a smaller patch_len"
            )
        # The window of a moving average is centred.
        if (average := getattr(self, "moving_average", 1)) % 2 == 0:
            return f"moving_average {average}: choose an odd width"
        for of_heads, of_width in (("n_heads", "d_model"), ("llm_heads", "llm_width")):
            heads, width = getattr(self, of_heads, 1), getattr(self, of_width, 1)
            if heads > width:
                return f"{of_heads} {heads} exceeds {of_width} {width}: choose fewer heads"
        width = max(getattr(self, name, 1) for name in _WIDTHS)
        inner = max(getattr(self, "d_ff", 0), getattr(self, "expand", 0) * width)
        layers = getattr(self, "e_layers", 1) + getattr(self, "d_layers", 0)
        layers = max(layers, *(getattr(self, f"{part}_layers", 1) for part in ("llm", "projector")))
        # The projections of queries, keys, values and outputs, and the two feed-forward matrices.
        weights = layers * width * (4 * width + 2 * inner)
        if weights > MOST_WEIGHTS:
            return (
                f"layers of width {width} (inner width {inner}), {layers} of them, are about "
                f"{weights:.1e} weights, more than can be trained: choose smaller ones"
            )
        steps = getattr(shape, "lookback", 0) * getattr(shape, "horizon", 0)
        if steps > MOST_WEIGHTS:
            return (
                f"a layer from lookback {shape.lookback} to horizon {shape.horizon} has "
                f"{steps:.1e} weights, more than can be trained: choose shorter ones"
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


@dataclass(frozen=True)
class TransformerSettings(Settings):
    """Settings of `spat.models.transformer`."""

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


@dataclass(frozen=True)
class NonstationarySettings(TransformerSettings):
    """Settings of `spat.models.nonstationary`.

    Each of its two projectors has `projector_layers` hidden layers of width `projector_width`.
    """

    projector_width: int
    projector_layers: int


@dataclass(frozen=True)
class InformerSettings(TransformerSettings):
    """Settings of `spat.models.informer`.

    Of n keys or queries, about `factor` ln(n) are sampled (keys) or attend (queries).
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
    """The settings that Autoformer and FEDformer share."""

    d_model: int
    d_ff: int
    e_layers: int
    d_layers: int
    dropout: Share
    label_len: int
    moving_average: int
    time_features: bool


@dataclass(frozen=True)
class AutoformerSettings(DecompositionSettings):
    """Settings of `spat.models.autoformer`; of n delays, `factor` ln(n) are chosen."""

    factor: int


@dataclass(frozen=True)
class FEDformerSettings(DecompositionSettings):
    """Settings of `spat.models.fedformer`; at most `modes` frequencies are kept."""

    n_heads: int
    modes: int

    def problem(self, shape: Shape) -> str | None:
        """As `DecompositionSettings`; heads have equal sizes, and a frequency needs two steps."""
        if self.d_model % self.n_heads:
            return f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
        if shape.lookback < 2:
            return f"lookback {shape.lookback} has no frequency to keep: choose 2 or more"
        return super().problem(shape)


@dataclass(frozen=True)
class CrossformerSettings(Settings):
    """Settings of `spat.models.crossformer`.

    `segment` is the length of a segment in steps, `routers` the number of routers of a segment.
    """

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
    """Settings of `spat.models.timemachine`.

    `n1` and `n2` are its two widths. `channel_independent` says whether each channel is forecast
    separately, and `revin` whether windows are normalised by `RevIN`.
    """

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
    """The settings that forecasters with a language model share.

    `llm_layers` is the number of blocks of the language model, `backbone` names its weights.
    """

    patch_len: int
    stride: int
    llm_layers: int
    backbone: Backbone

    def patches(self, shape: Shape) -> int:
        """The number of patches of a window; its end is padded by one stride."""
        return (shape.lookback + self.stride - self.patch_len) // self.stride + 1

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; a published language model has no more layers than were published."""
        published = _LAYERS.get(self.backbone, self.llm_layers)
        if self.llm_layers > published:
            return (
                f"llm_layers {self.llm_layers}: {self.backbone} has {published}; choose at most "
                f"{published}"
            )
        return super().problem(shape)


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
    """As `GPT4TSGPT2Settings`, with random weights and therefore any sizes."""

    backbone: Literal["random"] = "random"
    llm_width: int = 768
    llm_heads: int = 12
    dropout: Share = 0.1


@dataclass(frozen=True, kw_only=True)
class TimeLLMSettings(PatchedLanguageSettings):
    """The settings that the models of `spat.models.timellm` share.

    `d_ff` is the size of a head of the reprogramming attention. It is also the number of features
    of each output of the language model from which the forecast is computed. `prototypes` is the
    number of prototypes, `prompt_tokens` the length of a prompt, and `description` the sentence of
    the prompt that describes the dataset.
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
        """As `PatchedLanguageSettings`; `d_ff` and the number of tokens have limits."""
        if self.d_ff > self.width:
            return f"d_ff {self.d_ff} exceeds the width of the language model, {self.width}"
        tokens = self.prompt_tokens + self.patches(shape)
        if self.backbone != "smollm2" and tokens > 1024:
            return (
                f"{self.prompt_tokens} tokens of prompt and {self.patches(shape)} patches exceed "
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
    """As `TimeLLMSettings`, with random weights and therefore any sizes."""

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


@dataclass(frozen=True)
class RLinearSettings(Settings):
    """Settings of `spat.models.rlinear`."""

    dropout: Share


@dataclass(frozen=True)
class SparseTSFSettings(Settings):
    """Settings of `spat.models.sparsetsf.SparseTSF`; `period` is in steps."""

    period: int

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; lookback and horizon must be whole numbers of periods."""
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
        """The numbers of frequencies of the window that are read, and of those that are written.

        The window of L steps is extended to L + H, which multiplies the index of a frequency by
        (L + H) / L.
        """
        length = shape.lookback
        kept = min((length // self.base_period + 1) * self.order + 10, length // 2 + 1)
        return kept, kept * (length + shape.horizon) // length

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; lookback + horizon must have the frequencies that are written."""
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

    `d_model` is the hidden width of the dense blocks, `d_ff` that of the last block. `step_width`
    is the number of features that the decoder computes for a step of the horizon, `marks_width` the
    number to which the time features of a step are reduced.
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
    """Settings of `spat.models.naive.SeasonalNaive`; `season` is that of the dataset, in steps."""

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
        """As `Settings`; a patch must also divide the image."""
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
