"""Masks: the attention sites, and the heads of each site, that a network keeps.

A mask has one canonical name, which folders and frames use: one field per site in forward order,
joined by dots. A field is ``1`` (kept), ``0`` (removed) or, if only some heads are kept, one bit
per head: ``1.0.01101111.1``. A site without heads is ``0`` and a site with all heads is ``1``, so
equal networks have equal names. The mask of a model without attention sites is called ``none``.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

WITHOUT_SITES = "none"


@dataclass(frozen=True)
class Mask:
    """The kept heads: ``bits[site][head]``, sites in forward order, heads as in the dense model."""

    bits: tuple[tuple[bool, ...], ...]

    @classmethod
    def full(cls, heads: Sequence[int]) -> Mask:
        """Everything kept; `heads` is the number of heads per site of the dense model."""
        return cls(tuple((True,) * count for count in heads))

    @classmethod
    def empty(cls, heads: Sequence[int]) -> Mask:
        """Every site removed."""
        return cls(tuple((False,) * count for count in heads))

    @classmethod
    def parse(cls, name: str, heads: Sequence[int] | None = None) -> Mask:
        """The mask of a canonical name, for a dense model with `heads` heads per site.

        Without `heads`, a site that is kept or removed whole counts as one head, so that the
        removed sites are known but not the numbers of heads.

        Raises:
            ValueError: naming the mask, if it has another number of sites or heads, a character
                that is not a bit, or a field that has a shorter name.
        """
        fields = [] if name == WITHOUT_SITES else name.split(".")
        if heads is None:
            heads = [len(field) for field in fields]
        if len(fields) != len(heads):
            raise ValueError(
                f"mask {name!r} has {len(fields)} sites, the model {len(heads)}: give one field "
                f"per site, joined by dots ({WITHOUT_SITES!r} for a model without sites)"
            )
        mask = cls(tuple(_bits(name, *field) for field in zip(fields, heads, strict=True)))
        if mask.name != name:
            raise ValueError(f"mask {name!r} is not canonical: write {mask.name!r}")
        return mask

    @property
    def name(self) -> str:
        """The canonical name."""
        return ".".join(_field(site) for site in self.bits) or WITHOUT_SITES

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of heads per site of the dense model."""
        return tuple(len(site) for site in self.bits)

    @property
    def sites_removed(self) -> tuple[int, ...]:
        """The indices of the sites that are removed."""
        return tuple(i for i, site in enumerate(self.bits) if not any(site))

    @property
    def removed_heads(self) -> tuple[tuple[int, int], ...]:
        """The (site, head) pairs that are removed, including the heads of removed sites."""
        return tuple(
            (i, h) for i, site in enumerate(self.bits) for h, kept in enumerate(site) if not kept
        )

    @property
    def is_full(self) -> bool:
        """Whether nothing is removed (the control); true for a model without sites."""
        return all(map(all, self.bits))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept; true for a model without sites."""
        return not any(map(any, self.bits))

    @property
    def whole_sites(self) -> bool:
        """Whether each site is kept or removed as a whole."""
        return all(any(site) == all(site) for site in self.bits)

    def without_sites(self, indices: Collection[int]) -> Mask:
        """The mask with further whole sites removed.

        Raises:
            ValueError: if there is no site with one of the indices.
        """
        return self.without_heads(
            [(i, h) for i in indices for h in range(len(self.bits[self._site(i)]))]
        )

    def without_heads(self, pairs: Collection[tuple[int, int]]) -> Mask:
        """The mask with further heads (site, head) removed.

        Raises:
            ValueError: if there is no such site or head.
        """
        bits = [list(site) for site in self.bits]
        for i, h in pairs:
            if not 0 <= h < len(bits[self._site(i)]):
                raise ValueError(f"site {i} has no head {h}: give one of 0..{len(bits[i]) - 1}")
            bits[i][h] = False
        return Mask(tuple(map(tuple, bits)))

    def _site(self, index: int) -> int:
        if not 0 <= index < len(self.bits):
            raise ValueError(f"there is no site {index}: the model has {len(self.bits)} sites")
        return index


def all_site_masks(heads: Sequence[int]) -> tuple[Mask, ...]:
    """The 2^N masks of whole sites, sorted by the number of removed sites: the full mask first."""
    sites = range(len(heads))
    return tuple(
        Mask.full(heads).without_sites(removed)
        for count in range(len(heads) + 1)
        for removed in itertools.combinations(sites, count)
    )


def _field(site: tuple[bool, ...]) -> str:
    if any(site) == all(site):
        return str(int(all(site)))
    return "".join(str(int(kept)) for kept in site)


def _bits(name: str, field: str, heads: int) -> tuple[bool, ...]:
    if not field or set(field) - {"0", "1"}:
        raise ValueError(f"mask {name!r}: {field!r} is not a string of 0 and 1")
    bits = tuple(bit == "1" for bit in field)
    if len(bits) == 1:
        return bits * heads
    if len(bits) != heads:
        raise ValueError(f"mask {name!r}: {field!r} has {len(bits)} bits for {heads} heads")
    return bits
