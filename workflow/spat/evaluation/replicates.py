"""Is there anything to rank? Variance between masks against that between replicates.

Replicates are data orders: the same checkpoint and mask fine-tuned on the same windows in another
order. Each order serves all masks, so what an order does to all of them is taken out first (a
randomised block design: masks are treatments, orders are blocks).
"""

from __future__ import annotations

from math import comb
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.integrate
import scipy.stats

from spat.blocks import Array
from spat.evaluation.cells import CELL, keyed, site_errors, wide
from spat.evaluation.statistics import detectable
from spat.pipeline.frames import RUN

MIN_ORDERS: Final = 3

# In the column `removed`: all numbers of removed sites together, each compared within itself.
POOLED: Final = -1


def exhaustive(results: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Fine-tuned errors of site masks where all masks that remove K sites are known, 0 < K < N.

    Returns:
        RUN, `order`, `sites` (N), `removed` (K), `mask`, `mse`; groups of one run, order and K in
        which a mask is missing or diverged are left out.
    """
    rows = site_errors(results, split)
    rows = rows[(rows["removed"] > 0) & (rows["removed"] < rows["sites"])]
    found = rows.groupby([*RUN, "order", "removed"])["mse"].transform("count")
    wanted = [comb(n, k) for n, k in zip(rows["sites"], rows["removed"], strict=True)]
    return rows.loc[found == wanted, [*RUN, "order", "sites", "removed", "mask", "mse"]]


def variance_components(results: pd.DataFrame) -> pd.DataFrame:
    """Variance between masks and between replicates, per cell and K, over runs of >= 3 orders.

    Masks are compared within a run and within K; sums of squares are pooled over runs, and over K
    in the rows with `removed` = `POOLED`.

    Returns:
        CELL, `removed`, `runs`, `masks` and `orders` (means over what is pooled), `mse`,
        `sd_masks` (0 where the estimate is negative), `sd_replicates`, `F` with `p`. F near 1: no
        ranking exists to be found.
    """
    rows = exhaustive(results)
    sums = [
        keyed([*RUN, "removed"], key) | _sums(table)
        for key, group in rows.groupby([*RUN, "removed"])
        if (table := wide(group, "mask", "order", "mse").dropna(axis="columns").to_numpy()).shape[1]
        >= MIN_ORDERS
    ]
    frame = pd.DataFrame(sums, columns=[*RUN, "removed", *_SUMS])
    both = pd.concat([frame, frame.assign(removed=POOLED)])
    found = [
        keyed([*CELL, "removed"], key) | _components(group)
        for key, group in both.groupby([*CELL, "removed"])
    ]
    return pd.DataFrame(found, columns=[*CELL, "removed", *_COMPONENTS])


def replicate_sd(results: pd.DataFrame) -> pd.DataFrame:
    """Standard deviation of a replicate's test MSE, relative to the MSE, for every cell.

    Returns:
        CELL, `relative_sd`, `own`: from the cell's own replicates, or (`own` False) the root mean
        square over the cells of the same model and variant that have some; missing where none has.
    """
    known = variance_components(results)
    known = known[known["removed"] == POOLED]
    relative = (known["sd_replicates"] / known["mse"]).astype("float64")
    known = known.assign(relative_sd=relative)
    cells = exhaustive(results)[list(CELL)].drop_duplicates()
    cells = cells.merge(known[[*CELL, "relative_sd"]], on=list(CELL), how="left")
    cells["own"] = cells["relative_sd"].notna()
    squares = (cells["relative_sd"] ** 2).groupby([cells["model"], cells["variant"]])
    return cells.assign(relative_sd=cells["relative_sd"].fillna(np.sqrt(squares.transform("mean"))))


def detectable_differences(results: pd.DataFrame) -> pd.DataFrame:
    """The smallest change against the control that a cell's seeds could have shown, per cell and K.

    Changes of one mask are paired by seed; the deviation over seeds is the root mean square over
    the masks that remove K sites, or (`removed` = `POOLED`) over all. The first data order is
    taken, as a seed without replicates has it.

    Returns:
        CELL, `removed`, `masks`, `seeds` (of the mask that has most), `sd` and `detectable` (shares
        of the control's MSE: `spat.evaluation.statistics.detectable`, power 80 % at 5 %). Masks of
        a single seed are left out.
    """
    rows = site_errors(results[results["order"] == 0])
    control = rows.loc[rows["removed"] == 0, [*RUN, "mse"]].rename(columns={"mse": "control"})
    rows = rows[rows["removed"] > 0].merge(control, on=list(RUN))
    rows = rows.assign(change=rows["mse"] / rows["control"] - 1.0)
    groups = rows.groupby([*CELL, "removed", "mask"])["change"]
    masks = groups.agg(seeds="count", variance="var").reset_index()
    masks = masks[masks["seeds"] > 1]
    masks = pd.concat([masks, masks.assign(removed=POOLED)])
    found = masks.groupby([*CELL, "removed"]).agg(
        masks=("mask", "size"), seeds=("seeds", "max"), variance=("variance", "mean")
    )
    found["sd"] = np.sqrt(found.pop("variance"))
    pairs = zip(found["sd"], found["seeds"], strict=True)
    found["detectable"] = [detectable(sd, int(seeds)) for sd, seeds in pairs]
    return found.reset_index()


def expected_minimum(n: int) -> float:
    """How far below their mean the smallest of n standard normal numbers lies on average."""
    density = scipy.stats.norm.pdf
    below = scipy.stats.norm.cdf
    return float(
        scipy.integrate.quad(lambda x: n * x * density(x) * below(x) ** (n - 1), -10.0, 10.0)[0]
    )


_SUMS = ("mse", "masks", "orders", "ss_masks", "ss_rest", "df_masks", "df_rest")
_COMPONENTS = ("runs", "masks", "orders", "mse", "sd_masks", "sd_replicates", "F", "p")


def _sums(errors: Array) -> dict[str, float]:
    """Sums of squares of errors [masks, orders], the orders' means taken out."""
    masks, orders = errors.shape
    centred = errors - errors.mean(axis=0)
    effects = centred.mean(axis=1)
    return {
        "mse": float(errors.mean()),
        "masks": masks,
        "orders": orders,
        "ss_masks": float(orders * (effects**2).sum()),
        "ss_rest": float(((centred - effects[:, None]) ** 2).sum()),
        "df_masks": masks - 1,
        "df_rest": (masks - 1) * (orders - 1),
    }


def _components(group: pd.DataFrame) -> dict[str, Any]:
    df_masks, df_rest = group["df_masks"].sum(), group["df_rest"].sum()
    between = group["ss_masks"].sum() / df_masks
    rest = group["ss_rest"].sum() / df_rest
    orders = group["orders"].mean()
    ratio = between / rest if rest > 0 else float("nan")
    return {
        "runs": int(group["seed"].nunique()),
        "masks": group["masks"].mean(),
        "orders": orders,
        "mse": group["mse"].mean(),
        "sd_masks": float(np.sqrt(max(0.0, between - rest) / orders)),
        "sd_replicates": float(np.sqrt(rest)),
        "F": ratio,
        "p": float(scipy.stats.f.sf(ratio, df_masks, df_rest)),
    }
