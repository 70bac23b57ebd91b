"""Language modelling: a model predicts each character of a text from those before it.

Texts are read as the bytes of their UTF-8 encoding. Symbols: B sequences, T bytes each, V = 256
values of a byte.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spat.models.settings import TextShape
from spat.tasks.task import Cases, Metric

# Bytes in a batch of an evaluation.
BYTES: Final = {"cpu": 16384, "cuda": 262144}


class Batch(NamedTuple):
    """A batch of sequences, and the next byte of each of their bytes."""

    x: Tensor  # int64 [B, T]
    y: Tensor  # int64 [B, T]


class Text:
    """The task of language modelling: errors are means over the bytes of a sequence.

    Of equal logits the byte of lower value is predicted.
    """

    name = "text"
    metrics: tuple[Metric, ...] = (
        Metric("cross_entropy", "nats per byte"),
        Metric("error_rate", "share of bytes"),
    )
    shape = TextShape

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The logits of the next byte, [B, T, V]."""
        return model(batch.x)  # type: ignore[no-any-return]

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy of the bytes of each sequence in nats, float64 [B]."""
        each = F.cross_entropy(output.double().transpose(1, 2), batch.y, reduction="none")
        return each.mean(-1)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy over all bytes, a float32 scalar."""
        return F.cross_entropy(output.float().flatten(0, 1), batch.y.flatten())

    def errors(self, output: Tensor, batch: Batch) -> Tensor:
        """The cross entropy and the share of wrong bytes of each sequence, float64 [2, B]."""
        wrong = (output.argmax(-1) != batch.y).double().mean(-1)
        return torch.stack([self.losses(output, batch), wrong])

    def example(
        self,
        shape: TextShape,
        size: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """Random bytes, int64 for any `dtype`."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(shape.vocabulary, (size, shape.context + 1), generator=generator)
        drawn = drawn.to(device)
        return Batch(drawn[:, :-1], drawn[:, 1:])

    def batch_size(self, model: nn.Module, cases: Cases) -> int:
        """The number of sequences that `BYTES` allows for the device."""
        context: int = model.shape.context  # type: ignore[union-attr,assignment]
        return max(1, BYTES[cases.device.type] // context)
