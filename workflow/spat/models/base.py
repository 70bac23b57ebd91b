"""Base classes of networks with attention sites and of forecasters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from spat.attention.site import Site
from spat.models.settings import Settings, Shape


class Network(nn.Module):
    """A network with settings, a shape and attention sites."""

    settings: Settings
    shape: Any  # `Shape`, `ImageShape` or `TextShape`, by the task
    # SHA-256 of the frozen weights of a pretrained language model, which are the same for every
    # seed and which training does not change. None if the network has no such weights.
    base: str | None = None
    # Whether a training step can be captured in a CUDA graph: the forward pass computes nothing on
    # the CPU.
    capturable: bool = True

    def __init__(self, settings: Settings, shape: Any) -> None:
        """Store settings and shape.

        Raises:
            ValueError: if the settings do not fit the shape.
        """
        super().__init__()
        if (problem := settings.problem(shape)) is not None:
            raise ValueError(problem)
        self.settings = settings
        self.shape = shape

    def frozen(self) -> frozenset[str]:
        """Names of the weights that training does not change and that a build restores."""
        if self.base is None:
            return frozenset()
        return frozenset(name for name, p in self.named_parameters() if not p.requires_grad)

    def sites(self) -> tuple[Site, ...]:
        """The attention sites that may be pruned, in forward order, removed sites included."""
        return ()


class Forecaster(Network, ABC):
    """Maps past windows to forecasts."""

    shape: Shape

    @abstractmethod
    def forward(
        self, x: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """x [B, L, C], past_marks [B, L, F], future_marks [B, H, F] -> forecast [B, H, C].

        Marks are read only if `settings.uses_marks`.
        """


def required(marks: Tensor | None, name: str) -> Tensor:
    """Return the marks of a model that needs them.

    Raises:
        ValueError: naming the argument, if it is None.
    """
    if marks is None:
        raise ValueError(f"{name}: a model with time_features needs them; None was given")
    return marks
