"""Sites: the sub-layers of a model that can be removed as a whole.

A *site* is one sub-layer with its residual branch, for example a multi-head attention. Its owner
(an encoder or decoder layer) holds the module in an attribute. If the attribute is None, the site
was removed and the sub-layer is ``x -> norm(x)``. A site without a residual branch is removed in
the same way: its owner then uses zeros instead of its output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

# self, cross: attention of queries to keys. router: two attentions through a few routers.
# correlation: sums over delays. fourier: products of frequencies. scan: a recurrence.
Kind = Literal["self", "cross", "router", "correlation", "fourier", "scan"]


class Place(NamedTuple):
    """An attribute of a module that holds another module."""

    owner: nn.Module
    attribute: str


@dataclass(frozen=True)
class Site:
    """A removable sub-layer: the module in `owner.<attribute>`, or None if it was removed.

    `heads` is the number of heads of the dense model that can be removed one by one; a site with
    `heads` 1 can only be removed as a whole. `others` are further places of the site: the same
    module under another name (a shared block), or a second module that is removed with the first
    (the router pair of Crossformer). `added_to` is the tensor to which the owner adds the output of
    the site: the input of the site, the input of the owner (if there is a norm before the site), or
    none, in which case the site does not offer the view `Residual`.
    """

    name: str
    owner: nn.Module
    attribute: str
    heads: int
    kind: Kind = "self"
    others: tuple[Place, ...] = ()
    added_to: Literal["input", "layer", "nothing"] = "input"

    @property
    def places(self) -> tuple[Place, ...]:
        """Every place of the site, in forward order."""
        return (Place(self.owner, self.attribute), *self.others)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The distinct modules in the places of the site; empty if it was removed."""
        held = (getattr(place.owner, place.attribute) for place in self.places)
        return tuple(dict.fromkeys(module for module in held if module is not None))

    @property
    def owners(self) -> tuple[nn.Module, ...]:
        """The distinct modules that hold the site."""
        return tuple(dict.fromkeys(place.owner for place in self.places))

    @property
    def attention(self) -> Any:
        """The module of the site (the last one of several), or None if the site was removed."""
        modules = self.modules
        return modules[-1] if modules else None

    def remove(self) -> None:
        """Remove the site: set its attribute to None in all owners."""
        for owner, attribute in self.places:
            setattr(owner, attribute, None)
