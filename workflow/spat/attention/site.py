"""Sites: the attention sub-layers of a model that can be removed whole.

A *site* is one multi-head-attention sub-layer with its residual branch. Its owner (an encoder or
decoder layer) holds the attention in an attribute. None in that attribute means that the site was
removed and that the sub-layer is ``x -> norm(x)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from spat.models.layers.attention import MultiHeadAttention


@dataclass(frozen=True)
class Site:
    """Where an attention stands: `owner.<attribute>` is a `MultiHeadAttention`, or None if removed.

    `heads` is the number of heads of the dense model.
    """

    name: str
    owner: nn.Module
    attribute: str
    heads: int

    @property
    def attention(self) -> MultiHeadAttention | None:
        """The attention, or None where it was removed."""
        return getattr(self.owner, self.attribute)  # type: ignore[no-any-return]

    def remove(self) -> None:
        """Take the whole attention out of its owner."""
        setattr(self.owner, self.attribute, None)
