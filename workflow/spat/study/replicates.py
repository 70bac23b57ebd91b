"""Is there a ranking? Compares the variance between masks with the variance between replicates.

Replicates are data orders: the same checkpoint and mask, fine-tuned on the same windows in another
order. Each order is used for all masks, so its common effect is removed first (a randomised block
design: masks are treatments, orders are blocks). All orders start from one checkpoint. A second
test, with seeds as blocks, shows whether masks also differ for other checkpoints. The agreement of
the changes when one site is left out, between orders and between seeds, needs no such model.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import scipy.stats

from spat.blocks import Array
from spat.study import methods
from spat.study.methods import SHOWN
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import (
    ANY_REMOVED,
    CELL,
    RUN,
    keyed,
    parsed,
    site_errors,
    wide,
)
from spat.study.statistics.ranks import pairwise_tau, vectors
from spat.study.statistics.tests import detectable

MIN_ORDERS: Final = 3

# Whether there is a ranking.
YES: Final = "yes"
BELOW: Final = "below noise"
NO: Final = "no"
UNKNOWN: Final = "not replicated"
SINGLE: Final = "one mask"

MASKS: Final = "sd of masks (%)"
ORDERS: Final = "sd of orders (%)"
RATIO: Final = "F"
P: Final = "p"
SEED_RATIO: Final = "F, seeds"
SEED_P: Final = "p, seeds"
SEEDS: Final = "sd of seeds (%)"
DETECTABLE: Final = "detectable (%)"
AGREEMENT: Final = {"orders": "tau-b, orders", "seeds": "tau-b, seeds"}
MEASURES: Final = (
    MASKS,
    ORDERS,
    RATIO,
    P,
    SEED_RATIO,
    SEED_P,
    SEEDS,
    DETECTABLE,
    *AGREEMENT.values(),
)
_KEYS: Final = [*SHOWN, "removed"]


@page(
    "table",
    "replicates",
    title="Is there a ranking? Masks against data orders, and what the seeds can detect",
    caption="""
Is there a ranking? The variance between masks that remove the same number of sites is compared with
the variance between data orders of the same mask. If F is about 1, all masks are equally good, and
no criterion can choose well among them.
*Detectable* is the smallest change against the control that the number of seeds can detect: smaller
changes may exist.
Tau-b is the agreement of the changes when one site is left out, between data orders and between
seeds.
""",
    layout=Layout(
        (*SHOWN, "removed", "ranking"), "measure", best=False, kept=("removed", "ranking")
    ),
    notes=(
        "Standard deviations in percent of the MSE. F: variance of the masks' means over that of "
        "replicates (the common effect of an order removed); about 1 where all masks are equal.",
        "F, seeds: the same with seeds instead of orders, so that other checkpoints of the same "
        "data are included.",
        "Ranking (by the orders): yes; below noise (F is significant, but masks differ by less "
        "than replicates); no (F is not significant); not replicated (fewer than three data "
        "orders).",
        "Sd of seeds: of a mask's change against the control. Detectable: the smallest such change "
        "that a paired t-test with this number of seeds detects with a power of 80 % at 5 %.",
        "Tau-b: agreement, between orders and between seeds, of the changes when one site is left "
        "out; both sides have the same noise.",
    ),
)
def replicates(frames: Frames) -> pd.DataFrame:
    """Variance between masks and between data orders, per cell and number of sites removed.

    Columns: dataset, model, variant, lookback, horizon, removed (a number of sites, or `all`),
    ranking, measure, mean, sd, n, missing, unit. Standard deviations are percent of the MSE; F
    compares the masks with the replicates. `ranking` is `yes`; `below noise` if F is significant
    but masks differ by less than replicates; `no` if F is not significant; `not replicated` if
    there are fewer than three data orders; `one mask` if all sites are removed. Further measures
    are the standard deviation over seeds of a mask's change against the control, the smallest
    change that a paired t-test with this number of seeds detects, and the agreement of the changes
    when one site is left out.

    Raises:
        Absent: if no mask has several data orders or seeds.
    """
    components = variance_components(frames.results)
    over_seeds = detectable_differences(frames.results)
    if components.empty and over_seeds.empty:
        raise Absent(
            "No mask was fine-tuned with several seeds, or with three data orders (`orders` of a "
            "grid block) where all masks are trained (`pruning.exhaustive`)."
        )
    across = variance_components(frames.results, "seed")
    tables = [
        *_components(components),
        *_of_checkpoints(across),
        *_of_seeds(over_seeds),
        *_agreements(frames.results),
    ]
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    verdicts = _verdicts(components, over_seeds, 1.0 - frames.statistics.confidence)
    table = table.merge(verdicts, "left", _KEYS)
    numbers = sorted({*table["removed"]} - {ANY_REMOVED})
    removed = table["removed"].map(lambda k: "all" if k == ANY_REMOVED else str(k))
    table = table.assign(
        ranking=table["ranking"].fillna(UNKNOWN),
        removed=methods.ordered(removed, [*map(str, numbers), "all"]),
        measure=methods.ordered(table["measure"], MEASURES),
        sd=float("nan"),
        missing=0,
    )
    columns = [*_KEYS, "ranking", "measure", "mean", "sd", "n", "missing", "unit"]
    return methods.sort_rows(table[columns], [*_KEYS, "measure"])


def exhaustive(results: pd.DataFrame) -> pd.DataFrame:
    """Fine-tuned test errors of the site masks that remove K of N sites, if all are trained.

    Returns:
        RUN, `order`, `sites` (N), `removed` (K), `mask`, `mse`, for 0 < K < N. A group of one run,
        order and K is left out if one of its masks is missing or diverged.
    """
    rows = site_errors(results, "test")
    rows = rows[(rows["removed"] > 0) & (rows["removed"] < rows["sites"])]
    known = rows.groupby([*RUN, "order", "removed"])["mse"].transform("count")
    wanted = [comb(n, k) for n, k in zip(rows["sites"], rows["removed"], strict=True)]
    return rows.loc[known == wanted, [*RUN, "order", "sites", "removed", "mask", "mse"]]


def variance_components(
    results: pd.DataFrame, blocks: Literal["order", "seed"] = "order"
) -> pd.DataFrame:
    """Variance between masks and between replicates, per cell and K, for at least three blocks.

    If blocks are data orders, masks are compared within a run and within K. If blocks are seeds
    (their first data order), masks are compared within a cell and within K, and their variance is
    compared with that between checkpoints. Sums of squares are pooled over runs, and over K in the
    rows with `removed` = `ANY_REMOVED`.

    Returns:
        CELL, `removed`, `runs` (or the number of seeds), `masks` and `orders` (or seeds; means over
        the pooled groups), `mse`, `sd_masks` (0 if the estimate is negative), `sd_replicates`, `F`
        and its `p`. F is about 1 if there is no ranking.
    """
    rows = exhaustive(results if blocks == "order" else results[results["order"] == 0])
    of = [*(RUN if blocks == "order" else CELL), "removed"]
    sums = [
        {"seed": -1} | keyed(of, key) | _sums(table)
        for key, group in rows.groupby(of)
        if (table := wide(group, "mask", blocks, "mse").dropna(axis="columns").to_numpy()).shape[1]
        >= MIN_ORDERS
    ]
    frame = pd.DataFrame(sums, columns=[*RUN, "removed", *_SUMS])
    both = pd.concat([frame, frame.assign(removed=ANY_REMOVED)])
    components = [
        keyed([*CELL, "removed"], key) | _component(group)
        for key, group in both.groupby([*CELL, "removed"])
    ]
    frame = pd.DataFrame(components, columns=[*CELL, "removed", *_COMPONENTS])
    return frame if blocks == "order" else frame.assign(runs=frame["orders"].astype("int64"))


def replicate_sd(results: pd.DataFrame) -> pd.DataFrame:
    """Standard deviation of a replicate's test MSE, relative to the MSE, for each cell.

    Returns:
        CELL, `relative_sd`, `own`. `own` is True if the cell has replicates. Otherwise the value is
        the root mean square over the cells of the same model and variant that have replicates, or
        missing if there are none.
    """
    known = variance_components(results)
    known = known[known["removed"] == ANY_REMOVED]
    relative = (known["sd_replicates"] / known["mse"]).astype("float64")
    known = known.assign(relative_sd=relative)
    cells = exhaustive(results)[list(CELL)].drop_duplicates()
    cells = cells.merge(known[[*CELL, "relative_sd"]], on=list(CELL), how="left")
    cells["own"] = cells["relative_sd"].notna()
    squares = (cells["relative_sd"] ** 2).groupby([cells["model"], cells["variant"]])
    return cells.assign(relative_sd=cells["relative_sd"].fillna(np.sqrt(squares.transform("mean"))))


def detectable_differences(results: pd.DataFrame) -> pd.DataFrame:
    """The smallest change against the control that the seeds of a cell can detect, per cell and K.

    Changes of one mask are paired by seed. The standard deviation over seeds is the root mean
    square over the masks that remove K sites, or (`removed` = `ANY_REMOVED`) over all masks. Only
    the first data order is used, which every seed has.

    Returns:
        CELL, `removed`, `masks`, `seeds` (the largest number of seeds of a mask), `sd` and
        `detectable` (fractions of the control's MSE, from
        `spat.study.statistics.tests.detectable` with power 80 % at 5 %). Masks of a single seed are
        left out.
    """
    rows = site_errors(results[results["order"] == 0])
    control = rows.loc[rows["removed"] == 0, [*RUN, "mse"]].rename(columns={"mse": "control"})
    rows = rows[rows["removed"] > 0].merge(control, on=list(RUN))
    rows = rows.assign(change=rows["mse"] / rows["control"] - 1.0)
    groups = rows.groupby([*CELL, "removed", "mask"])["change"]
    masks = groups.agg(seeds="count", variance="var").reset_index()
    masks = masks[masks["seeds"] > 1]
    masks = pd.concat([masks, masks.assign(removed=ANY_REMOVED)])
    table = masks.groupby([*CELL, "removed"]).agg(
        masks=("mask", "size"), seeds=("seeds", "max"), variance=("variance", "mean")
    )
    table["sd"] = np.sqrt(table.pop("variance"))
    pairs = zip(table["sd"], table["seeds"], strict=True)
    table["detectable"] = [detectable(sd, int(seeds)) for sd, seeds in pairs]
    return table.reset_index()


def leave_one_out_changes(results: pd.DataFrame) -> pd.DataFrame:
    """The change of the test MSE when each site alone is left out.

    Runs and data orders in which the error of a site is missing are left out.

    Returns:
        RUN, `order`, `site`, `mse`, `control_mse`, `change` (a fraction of the control's MSE).
    """
    rows = site_errors(results)
    control = rows.loc[rows["removed"] == 0, [*RUN, "order", "mse"]]
    rows = rows[rows["removed"] == 1].merge(
        control.rename(columns={"mse": "control_mse"}), on=[*RUN, "order"]
    )
    rows = rows.assign(
        change=rows["mse"] / rows["control_mse"] - 1.0,
        site=rows["mask"].map(lambda mask: parsed(mask).sites_removed[0]).astype("int64"),
    )
    known = rows.groupby([*RUN, "order"])["change"].transform("count")
    return rows.loc[known == rows["sites"], [*RUN, "order", "site", "mse", "control_mse", "change"]]


def mean_changes(changes: pd.DataFrame) -> pd.DataFrame:
    """Changes [RUN, `site`] averaged over data orders."""
    return changes.groupby([*RUN, "site"])["change"].mean().reset_index()


def self_agreement(results: pd.DataFrame) -> pd.DataFrame:
    """Agreement of two measurements of the changes, which have equal noise.

    This is not an upper bound: a criterion without noise can agree with each measurement better
    than the two measurements agree with each other.

    Returns:
        CELL, `across` (`seeds`: pairs of seeds, data orders averaged; `orders`: pairs of data
        orders of one seed), `tau` (mean over pairs), `pairs`.
    """
    changes = leave_one_out_changes(results)
    seeds = pairwise_tau(vectors(mean_changes(changes), list(RUN), "change"), list(CELL))
    orders = pairwise_tau(vectors(changes, [*RUN, "order"], "change"), list(RUN))
    per_cell = orders.assign(tau=orders["tau"] * orders["pairs"]).groupby(list(CELL))
    orders = per_cell[["tau", "pairs"]].sum().reset_index()
    orders["tau"] /= orders["pairs"]
    both = pd.concat([seeds.assign(across="seeds"), orders.assign(across="orders")])
    return both[[*CELL, "across", "tau", "pairs"]].reset_index(drop=True)


_SUMS: Final = ("mse", "masks", "orders", "ss_masks", "ss_rest", "df_masks", "df_rest")
_COMPONENTS: Final = ("runs", "masks", "orders", "mse", "sd_masks", "sd_replicates", "F", "p")


def _sums(errors: Array) -> dict[str, float]:
    """Sums of squares of errors [masks, orders], after the mean of each order is subtracted."""
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


def _component(group: pd.DataFrame) -> dict[str, Any]:
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


def _components(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    values = {
        MASKS: 100 * table["sd_masks"] / table["mse"],
        ORDERS: 100 * table["sd_replicates"] / table["mse"],
        RATIO: table["F"],
        P: table["p"],
    }
    for name, value in values.items():
        yield _rows(table.assign(mean=value, n=table["runs"]), name, "number")


def _of_checkpoints(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for name, column in ((SEED_RATIO, "F"), (SEED_P, "p")):
        yield _rows(table.assign(mean=table[column], n=table["runs"]), name, "number")


def _of_seeds(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for name, column in ((SEEDS, "sd"), (DETECTABLE, "detectable")):
        yield _rows(table.assign(mean=100 * table[column], n=table["seeds"]), name, "number")


def _agreements(results: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Agreement of the leave-one-out changes, in the rows with one removed site."""
    taus = self_agreement(results).assign(removed=1).rename(columns={"tau": "mean"})
    replicated = {"orders": results[results["order"] > 0], "seeds": results}
    for across, name in AGREEMENT.items():
        n = replicated[across].groupby(list(CELL))["seed"].nunique().rename("n")
        yield _rows(taus[taus["across"] == across].join(n, on=list(CELL)), name, "tau")


def _rows(table: pd.DataFrame, name: str, unit: str) -> pd.DataFrame:
    return table[[*_KEYS, "mean", "n"]].assign(measure=name, unit=unit).dropna(subset="mean")


def _verdicts(components: pd.DataFrame, over_seeds: pd.DataFrame, alpha: float) -> pd.DataFrame:
    significant = components["p"] < alpha
    larger = components["sd_masks"] > components["sd_replicates"]
    verdict = significant.map({True: YES, False: NO}).mask(significant & ~larger, BELOW)
    single = over_seeds.loc[over_seeds["masks"] == 1, _KEYS].assign(ranking=SINGLE)
    return pd.concat([components[_KEYS].assign(ranking=verdict), single])
