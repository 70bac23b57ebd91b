"""Single heads against whole modules, where both remove equally much."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from spat.evaluation.cells import in_domain
from spat.pipeline.frames import RUN

RANDOM: Final = "random"

# FLOPs this close, as a share, count as equal: masks of heads and of sites rarely meet exactly.
FLOPS_TOLERANCE: Final = 0.02

_LEVEL_COLUMNS: Final = ("removed", "fraction", "mse", "flops", "latency_ms", "floor", "gain")


def pairs(results: pd.DataFrame, selections: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Each criterion's masks of both levels, paired in two ways, one row per run and pair.

    `match` says what is equal: `fraction` (the share of all heads that is removed, to the nearest
    head) or `flops` (within `FLOPS_TOLERANCE`; the closest). Where the sites are alike the two
    coincide, for the encoder-decoder Transformer they do not. Masks that remove nothing or
    everything are the same at both levels and left out. Random masks of a run count with their
    means, and are the floor of each level. The first data order of fine-tuning is taken.

    Returns:
        RUN, `criterion`, `match`; for each level `site_*` and `head_*`: `removed`, `fraction`,
        `mse`, `flops`, `latency_ms`, `floor` (the MSE of random masks of the same level and number;
        missing where none were drawn), `gain` (1 - mse / floor); and `difference`,
        head_mse / site_mse - 1: positive where removing modules is better.
    """
    rows = _decisions(results, selections, scores)
    site, head = (
        rows[rows["level"] == level]
        .drop(columns="level")
        .rename(columns={name: f"{level}_{name}" for name in _LEVEL_COLUMNS})
        for level in ("site", "head")
    )
    both = site.merge(head.drop(columns="heads"), on=[*RUN, "criterion"])
    gap = {
        "fraction": (both["head_fraction"] - both["site_fraction"]).abs() * both["heads"],
        "flops": (both["head_flops"] / both["site_flops"] - 1.0).abs(),
    }
    limit = {"fraction": 0.5, "flops": FLOPS_TOLERANCE}
    found = []
    for match, distance in gap.items():
        close = both.assign(distance=distance, match=match)[distance <= limit[match]]
        nearest = close.sort_values("distance", kind="stable")
        found.append(nearest.drop_duplicates([*RUN, "criterion", "site_removed"]))
    paired = pd.concat(found).sort_values([*RUN, "criterion", "match", "site_removed"])
    paired["difference"] = paired["head_mse"] / paired["site_mse"] - 1.0
    levels = [f"{level}_{name}" for level in ("site", "head") for name in _LEVEL_COLUMNS]
    columns = [*RUN, "criterion", "match", *levels, "difference"]
    return paired[columns].reset_index(drop=True)


def _decisions(
    results: pd.DataFrame, selections: pd.DataFrame, scores: pd.DataFrame
) -> pd.DataFrame:
    """Errors and costs per run, criterion, level and number removed, with the floor beside them."""
    asked = selections[(selections["rule"] == "") & selections["ratio"].notna()]
    asked = asked[[*RUN, "criterion", "draw", "level", "removed", "mask"]].drop_duplicates()
    errors = in_domain(results[results["order"] == 0])
    keys = [*RUN, "criterion", "level", "removed"]
    rows = asked.merge(errors[[*RUN, "mask", "mse", "flops", "latency_ms"]], on=[*RUN, "mask"])
    rows = rows.groupby(keys)[["mse", "flops", "latency_ms"]].mean().reset_index()
    rows = rows.merge(_sizes(scores), on=list(RUN))
    of = np.where(rows["level"] == "site", rows["sites"], rows["heads"])
    rows = rows.assign(fraction=rows["removed"] / of)
    rows = rows[(rows["removed"] > 0) & (rows["fraction"] < 1.0)]
    floor = rows.loc[rows["criterion"] == RANDOM, [*RUN, "level", "removed", "mse"]]
    floor = floor.rename(columns={"mse": "floor"})
    rows = rows.merge(floor, on=[*RUN, "level", "removed"], how="left")
    return rows.assign(gain=1.0 - rows["mse"] / rows["floor"]).drop(columns="sites")


def _sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """RUN, `sites`, `heads`: how many there are in all, from the places that were scored."""
    places = scores.loc[scores["head"] >= 0, [*RUN, "site", "head"]].drop_duplicates()
    sizes = places.groupby(list(RUN)).agg(sites=("site", "nunique"), heads=("head", "size"))
    return sizes.reset_index()
