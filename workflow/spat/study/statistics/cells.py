"""Runs, cells and masks: the keys of the frames that the study reads.

A *cell* is the set of runs that differ only in their seed. The *source* of a run is the origin of
its data: ETTh1 and ETTm1 are the same sensors at two sampling rates, and thus one source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import pandas as pd

from spat.attention.mask import WITHOUT_SITES, Mask

# The columns of a run in the frames of `spat.study.pages.reader`.
RUN: Final = (
    "experiment", "dataset", "source", "model", "variant", "lookback", "horizon", "seed",
)  # fmt: skip
CELL: Final = tuple(column for column in RUN if column != "seed")

# The values of columns if no single value applies.
WHOLE_SITE: Final = -1  # `head`: the site with all its heads
ALL_BATCHES: Final = -1  # `batch`: the score over all batches
ALL_ORDERS: Final = -1  # `order`: the mean over data orders
ANY_REMOVED: Final = -1  # `removed`: all numbers of removed sites together


@cache
def parsed(mask: str) -> Mask:
    """The mask with this name; a site that is kept whole counts as one head.

    Raises:
        ValueError: if `mask` is not the name of a mask.
    """
    return Mask.parse(mask)


def sites(mask: str) -> int:
    """The number of attention sites of the dense model."""
    return len(parsed(mask).bits)


def sites_removed(mask: str) -> int:
    """The number of whole sites that a mask removes."""
    return len(parsed(mask).sites_removed)


def is_site_mask(mask: str) -> bool:
    """Whether the model has sites, and each is kept whole or removed whole."""
    return bool(parsed(mask).bits) and parsed(mask).whole_sites


def keeps_all(mask: str) -> bool:
    """Whether nothing is removed. True for the dense model, the control, models without sites."""
    return parsed(mask).is_full


def keeps_none(mask: str) -> bool:
    """Whether the model had sites and all of them are removed."""
    return bool(parsed(mask).bits) and parsed(mask).is_empty


def keeps_some(mask: str) -> bool:
    """Whether the mask removes something, but not everything."""
    return not keeps_all(mask) and not keeps_none(mask)


def is_mask(name: str) -> bool:
    """Whether `name` is a mask of a model with sites; forecasts also have other names."""
    if name == WITHOUT_SITES:
        return False
    try:
        parsed(name)
    except ValueError:
        return False
    return True


def having(rows: pd.DataFrame, wanted: Callable[[str], bool]) -> pd.DataFrame:
    """The rows whose mask satisfies `wanted`."""
    return rows[rows["mask"].map(wanted).astype(bool)]


def in_domain(results: pd.DataFrame, split: str = "test", phase: str = "finetuned") -> pd.DataFrame:
    """The rows of `results` that are tested on the run's dataset, for one split and phase."""
    own = results["target"] == results["dataset"]
    return results[own & (results["split"] == split) & (results["phase"] == phase)]


def site_errors(results: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Fine-tuned errors of site masks: `in_domain` with `sites` (N) and `removed` (K) added.

    Masks whose training diverged stay, with a missing MSE.
    """
    rows = having(in_domain(results, split), is_site_mask)
    return rows.assign(
        sites=rows["mask"].map(sites).astype("int64"),
        removed=rows["mask"].map(sites_removed).astype("int64"),
    )


def wide(rows: pd.DataFrame, index: str | list[str], columns: str, value: str) -> pd.DataFrame:
    """One row per `index` and one column per value of `columns`.

    Raises:
        ValueError: if two rows have the same index and column.
    """
    return rows.pivot(index=index, columns=columns, values=value)  # noqa: PD010 (it would average)


def keyed(columns: Sequence[str], key: Any) -> dict[str, Any]:
    """A key of a `groupby` over several columns, as a row."""
    return dict(zip(columns, key, strict=True))
