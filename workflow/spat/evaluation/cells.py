"""Cells, masks, errors and averages: what every evaluation of the frames starts from.

A *cell* is a run without its seed. Runs are not equally independent: seeds of a cell share
everything but chance, horizons share the data, and ETTh1 and ETTm1 are the same sensors at two
sampling rates (one *station*). So averages take seeds first, then horizons, then the datasets of a
station, then stations, whatever the number of seeds in one cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import pandas as pd

from spat.data.registry import DATASETS
from spat.pipeline.frames import RUN

CELL: Final = tuple(column for column in RUN if column != "seed")

# From the most independent to the least.
LEVELS: Final = ("station", "dataset", "horizon", "seed")


def fields(mask: str) -> list[str]:
    """One field a site: `1`, `0`, or the bits of its heads."""
    return mask.split(".")


def sites_removed(mask: str) -> int:
    """The number of whole sites that a mask removes."""
    return fields(mask).count("0")


def is_site_mask(mask: str) -> bool:
    """Whether there are sites, each wholly kept or wholly removed."""
    return set(fields(mask)) <= {"0", "1"}


def keeps_all(mask: str) -> bool:
    """Whether nothing is removed: the dense model, the control, and models without sites."""
    return "0" not in mask


def keeps_none(mask: str) -> bool:
    """Whether there were sites and none is left."""
    return set(fields(mask)) == {"0"}


def in_domain(results: pd.DataFrame, split: str = "test", phase: str = "finetuned") -> pd.DataFrame:
    """The rows of `results` on the run's own dataset, for one split and phase."""
    own = results["target"] == results["dataset"]
    return results[own & (results["split"] == split) & (results["phase"] == phase)]


def site_errors(results: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Fine-tuned errors of site masks: `in_domain` with `sites` (N) and `removed` (K) added.

    Masks that diverged have no error; they stay, with their MSE missing.
    """
    rows = in_domain(results, split)
    rows = rows[rows["mask"].map(is_site_mask).astype(bool)]
    return rows.assign(
        sites=rows["mask"].map(lambda mask: len(fields(mask))).astype("int64"),
        removed=rows["mask"].map(sites_removed).astype("int64"),
    )


def wide(rows: pd.DataFrame, index: str | list[str], columns: str, value: str) -> pd.DataFrame:
    """One row per `index` and one column per value of `columns`; duplicates are an error."""
    return rows.pivot(index=index, columns=columns, values=value)  # noqa: PD010 (it would average)


def keyed(columns: Sequence[str], key: Any) -> dict[str, Any]:
    """A key of a `groupby` over several columns, as a row."""
    return dict(zip(columns, key, strict=True))


def with_station(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the column `station`, the independent source of its dataset.

    Raises:
        KeyError: naming the datasets that are not in the registry.
    """
    if unknown := sorted(set(frame["dataset"]) - set(DATASETS)):
        raise KeyError(f"datasets {unknown} are not in the registry ({', '.join(DATASETS)})")
    return frame.assign(station=frame["dataset"].map({n: d.station for n, d in DATASETS.items()}))


def weights(frame: pd.DataFrame, by: Sequence[str] = ()) -> pd.Series:
    """The weight of each row in the nested mean of its group; a group's weights sum to one.

    Stations weigh the same, in a station its datasets, in a dataset its horizons, in a horizon its
    seeds, and rows of one run and group share that run's weight. A level in `by` is kept apart.
    """
    frame = with_station(frame).assign(everything=0)
    keys = ["everything", *by]
    weight = pd.Series(1.0, index=frame.index)
    for level in LEVELS:
        if level not in keys:
            weight /= frame.groupby(keys, dropna=False)[level].transform("nunique")
            keys.append(level)
    return weight / frame.groupby(keys, dropna=False)["everything"].transform("size")


def average(
    frame: pd.DataFrame,
    values: Sequence[str],
    by: Sequence[str] = (),
    upto: Literal["dataset", "station"] = "dataset",
) -> pd.DataFrame:
    """Nested means of `values` per group of `by`: one row a station, or (`upto` station) in all.

    The frame has the columns of a run; every other column that tells rows apart belongs in `by`.

    Returns:
        `by`, `station` unless averaged too, `values`, `runs`: those with all values. Rows with a
        missing value are left out of all means.
    """
    rows = with_station(frame.dropna(subset=list(values))).assign(everything=0)
    keys = [*by] if upto == "station" else [*by, "station"]
    weighted = rows[list(values)].mul(weights(rows, keys), axis="index")
    columns = [rows[key] for key in keys or ["everything"]]
    table = weighted.groupby(columns, dropna=False, observed=True).sum()
    table["runs"] = rows[list(RUN)].apply(tuple, axis=1).groupby(columns, dropna=False).nunique()
    return table.reset_index(drop=not keys)
