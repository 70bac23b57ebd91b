"""Masks: their names are canonical, and each name belongs to one mask."""

from __future__ import annotations

import itertools

import pytest

from spat.attention.mask import Mask, all_site_masks

SMALL = [(), (1,), (2,), (1, 1), (2, 1), (2, 2), (3, 2), (1, 3, 2)]


def every_mask(heads: tuple[int, ...]) -> list[Mask]:
    fields = [list(itertools.product((False, True), repeat=n)) for n in heads]
    return [Mask(bits) for bits in itertools.product(*fields)]


@pytest.mark.parametrize("heads", SMALL)
def test_a_name_is_one_mask(heads: tuple[int, ...]) -> None:
    masks = every_mask(heads)
    assert len({mask.name for mask in masks}) == len(masks) == 2 ** sum(heads)
    for mask in masks:
        assert Mask.parse(mask.name, heads) == mask
        assert mask.heads == heads


def test_names() -> None:
    heads = (8, 8, 8, 8)
    full = Mask.full(heads)
    assert full.name == "1.1.1.1"
    assert Mask.empty(heads).name == "0.0.0.0"
    assert full.without_sites([1]).without_heads([(2, 0), (2, 3)]).name == "1.0.01101111.1"
    assert Mask.full(()).name == Mask.empty(()).name == "none"


def test_a_mask_that_empties_a_site_head_by_head_is_the_site_mask() -> None:
    full = Mask.full((4, 2))
    assert full.without_heads([(0, h) for h in range(4)]) == full.without_sites([0])


def test_a_mask_lists_kept_and_removed_sites() -> None:
    mask = Mask.parse("1.0.101", (2, 2, 3))
    assert mask.sites_removed == (1,)
    assert mask.removed_heads == ((1, 0), (1, 1), (2, 1))
    assert not mask.whole_sites
    assert not mask.is_full
    assert not mask.is_empty
    assert Mask.parse("1.0.1", (2, 2, 3)).whole_sites
    assert Mask.full((2, 2)).is_full
    assert Mask.empty((2, 2)).is_empty


def test_all_site_masks_are_whole_and_ordered_by_what_they_remove() -> None:
    masks = all_site_masks((2, 1, 4, 8))
    assert len(set(masks)) == 16
    assert all(mask.whole_sites for mask in masks)
    removed = [len(mask.sites_removed) for mask in masks]
    assert removed == sorted(removed)
    assert masks[0].is_full
    assert masks[-1].is_empty
    assert all_site_masks(()) == (Mask.full(()),)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1.1", "2 sites, the model 3"),
        ("", "1 sites, the model 3"),
        ("none", "0 sites, the model 3"),
        ("1.x.1", "'x' is not a string of 0 and 1"),
        ("1..1", "'' is not a string of 0 and 1"),
        ("1.101.1", "'101' has 3 bits for 2 heads"),
        ("1.00.1", "write '1.0.1'"),
        ("1.11.1", "write '1.1.1'"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mask.parse(name, (2, 2, 2))


def test_a_site_or_head_that_does_not_exist_cannot_be_removed() -> None:
    with pytest.raises(ValueError, match="no site 2"):
        Mask.full((2, 2)).without_sites([2])
    with pytest.raises(ValueError, match="site 1 has no head 2"):
        Mask.full((2, 2)).without_heads([(1, 2)])
    with pytest.raises(ValueError, match="no site -1"):
        Mask.full((2, 2)).without_sites([-1])
