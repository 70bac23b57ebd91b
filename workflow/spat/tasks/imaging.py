"""Classification of images: a model maps an image to one logit per class.

Symbols: B images, C channels, H rows and W columns of pixels, K classes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.settings import ImageShape
from spat.tasks.task import Cases, Metric

# Images in a batch of an evaluation.
IMAGES: Final = {"cpu": 256, "cuda": 4096}


class Batch(NamedTuple):
    """A batch of images and the index of their class."""

    x: Tensor  # [B, C, H, W]
    y: Tensor  # int64 [B]


class Imaging:
    """The task of image classification. Of equal logits the class of lower index is predicted."""

    name = "imaging"
    metrics: tuple[Metric, ...] = (
        Metric("cross_entropy", "nats"),
        Metric("error_rate", "share of images"),
    )
    shape = ImageShape

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The logits, [B, K]."""
        return model(batch.x)  # type: ignore[no-any-return]

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each image in nats, float64 [B]."""
        return F.cross_entropy(output.double(), batch.y, reduction="none")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy over all images, a float32 scalar."""
        return F.cross_entropy(output.float(), batch.y)

    def errors(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each image, and 1 if the predicted class is wrong: float64 [2, B]."""
        wrong = (output.argmax(-1) != batch.y).double()
        return torch.stack([self.losses(output, batch), wrong])

    def example(
        self,
        shape: ImageShape,
        size: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """Standard normal pixels; the classes are 0, 1, ..., K - 1, 0, ..."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(size, shape.channels, shape.height, shape.width, generator=generator)
        y = torch.arange(size, device=device) % shape.classes
        return Batch(x.to(device=device, dtype=dtype), y)

    def batch_size(self, model: nn.Module, cases: Cases) -> int:
        """The number of images that `IMAGES` has for the device, for any model."""
        return IMAGES[cases.device.type]
