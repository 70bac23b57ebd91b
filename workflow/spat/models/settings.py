"""What each network is made of, and the recipe of its training; torch is not imported.

Each model has a frozen dataclass of its own. A field may hold any positive number unless its type
says otherwise; `problem` says why settings do not fit a shape, so that a configuration is refused
before the first job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

# In [0, 1): a share of what is dropped.
Share = Annotated[float, "share"]
# A number that may also be 0.
NotNegative = Annotated[float, "not negative"]
# How the learning rate falls from epoch to epoch: see `spat.training.optimisation.rate_at`.
Schedule = Literal["constant", "type1", "type3", "sparsetsf", "fits", "cosine"]


@dataclass(frozen=True)
class Shape:
    """What a forecaster maps: [B, lookback, channels] -> [B, horizon, channels].

    `marks` is the number of time features of a step, 0 where the data have no timestamps.
    """

    lookback: int
    horizon: int
    channels: int
    marks: int = 0


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    `patience` is the number of epochs without a better validation MSE after which training stops.
    `sam_rho` is the radius of sharpness-aware minimisation; None trains without it.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    patience: int
    schedule: Schedule = "type1"
    weight_decay: NotNegative = 0.0
    sam_rho: float | None = None


@dataclass(frozen=True)
class Settings:
    """What a network is made of; the base class of each model's own."""

    @property
    def uses_marks(self) -> bool:
        """Whether the network reads time features."""
        return bool(getattr(self, "time_features", False))

    def problem(self, shape: Shape) -> str | None:
        """Why the network cannot be built for this shape; None if it can."""
        if self.uses_marks and not shape.marks:
            return "time_features is on, but the dataset has no timestamps: turn it off"
        heads, width = getattr(self, "n_heads", 1), getattr(self, "d_model", 1)
        if heads > width:
            return f"n_heads {heads} exceeds d_model {width}: choose fewer heads"
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
        if shape.lookback + self.stride < self.patch_len:
            return (
                f"lookback {shape.lookback} with stride {self.stride} holds no patch of "
                f"{self.patch_len} steps: choose a smaller patch_len"
            )
        return super().problem(shape)


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
class DLinearSettings(Settings):
    """Settings of `spat.models.dlinear`."""

    moving_average: int

    def problem(self, shape: Shape) -> str | None:
        """As `Settings`; a moving average needs a centre."""
        if self.moving_average % 2 == 0:
            return f"moving_average {self.moving_average}: choose an odd width"
        return super().problem(shape)


@dataclass(frozen=True)
class SeasonalNaiveSettings(Settings):
    """Settings of `spat.models.naive.SeasonalNaive`; `season` (steps) is the dataset's."""

    season: int
