"""The rows that tables and figures compare, under the names they are shown by.

A *method* is what was done to the dense model of a run: nothing, fine-tuning alone (the control), a
mask of SPAT at some ratio, or no attention left. Errors are test errors of the first data order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import pandas as pd

from spat.evaluation.cells import CELL, in_domain, keeps_all, keeps_none
from spat.pipeline.frames import RUN
from spat.reporting.frames_io import Absent, Frames

DENSE: Final = "dense"
CONTROL: Final = "control"
CHOSEN: Final = "SPAT (val.)"
NONE_LEFT: Final = "none left"
LIGHT: Final = "DLinear"
COSTS: Final = ("params", "flops", "latency_ms", "memory_mb")
# The mask of a model without attention sites.
WITHOUT_SITES: Final = "none"

# What a cell is to a reader; the experiment is one and the same in a folder of frames.
SHOWN: Final = tuple(column for column in CELL if column != "experiment")


def at_ratio(ratio: float) -> str:
    """The name of SPAT at a fixed ratio: `SPAT 25 %`."""
    return f"SPAT {100 * ratio:g} %"


def in_order(methods: Iterable[str]) -> list[str]:
    """The methods as they stand in a table: dense, control, SPAT by ratio, none left, DLinear."""
    named = (DENSE, CONTROL, CHOSEN, "SPAT", NONE_LEFT, LIGHT)

    def place(method: str) -> tuple[int, float, str]:
        share = float(method.split()[1]) if method.endswith("%") else 0.0
        kind = "SPAT" if share else method
        return (named.index(kind) if kind in named else len(named), share, method)

    return sorted(set(methods), key=place)


def ordered(values: pd.Series, order: Sequence[str] | None = None) -> pd.Categorical:
    """A column of methods that sorts, and becomes columns, in the order of `in_order`."""
    categories = in_order(values.unique()) if order is None else [*order]
    return pd.Categorical(values, categories=categories, ordered=True)


def having(rows: pd.DataFrame, wanted: Callable[[str], bool]) -> pd.DataFrame:
    """The rows whose mask is as wanted."""
    return rows[rows["mask"].map(wanted).astype(bool)]


def has_sites(rows: pd.DataFrame) -> pd.Series:
    """Which rows belong to a model with attention sites."""
    return rows["mask"] != WITHOUT_SITES


def tested(results: pd.DataFrame) -> pd.DataFrame:
    """Test errors of the first data order."""
    return results[(results["split"] == "test") & (results["order"] == 0)]


def site_choices(selections: pd.DataFrame) -> pd.DataFrame:
    """SEND's site masks by method: RUN, mask, removed, ratio, method.

    Ratios that remove the same number of sites are given once, as the smallest of them; masks that
    remove nothing or everything have names of their own.
    """
    send = selections[(selections["criterion"] == "send") & (selections["level"] == "site")]
    chosen = send[send["rule"] == "validation"].assign(method=CHOSEN)
    fixed = send[(send["rule"] == "") & send["ratio"].notna()].sort_values("ratio")
    fixed = having(fixed, _between)
    fixed = fixed.drop_duplicates([*RUN, "removed"])
    fixed = fixed.assign(method=fixed["ratio"].map(at_ratio))
    return pd.concat([chosen, fixed])[[*RUN, "mask", "removed", "ratio", "method"]]


def by_method(frames: Frames) -> pd.DataFrame:
    """Test results of attention models with the column `method`; a mask may have several names.

    Raises:
        Absent: if no model of the experiment has attention sites.
    """
    rows = tested(frames.results)
    rows = rows[has_sites(rows)]
    if rows.empty:
        raise Absent("No model of this experiment has attention sites.")
    tuned = rows[rows["phase"] == "finetuned"]
    dense = _with_costs_of_control(rows[rows["phase"] == "dense"], tuned)
    return pd.concat(
        [
            dense.assign(method=DENSE),
            having(tuned, keeps_all).assign(method=CONTROL),
            having(tuned, keeps_none).assign(method=NONE_LEFT),
            tuned.merge(
                site_choices(frames.selections)[[*RUN, "mask", "method"]], on=[*RUN, "mask"]
            ),
        ],
        ignore_index=True,
    )


def by_decision(frames: Frames) -> pd.DataFrame:
    """Fine-tuned test results of every decision at a fixed ratio, on the run's own dataset.

    Adds criterion, draw, level, ratio and removed. Ratios that remove equally many are given once,
    as the smallest; what removes nothing or everything is left out, since all criteria agree on it.

    Raises:
        Absent: if nothing was pruned at a ratio between none and all.
    """
    made = frames.selections
    made = made[(made["rule"] == "") & made["ratio"].notna()].sort_values("ratio", kind="stable")
    made = having(made, _between)
    made = made.drop_duplicates([*RUN, "criterion", "draw", "level", "removed"])
    rows = in_domain(tested(frames.results))
    columns = [*RUN, "mask", "criterion", "draw", "level", "ratio", "removed"]
    rows = rows.merge(made[columns], on=[*RUN, "mask"])
    if rows.empty:
        raise Absent("No mask between all and none was fine-tuned in this experiment.")
    return rows


def beside(rows: pd.DataFrame, results: pd.DataFrame, model: str, method: str) -> pd.DataFrame:
    """Rows of a reference model under the cells of `rows`, as the method of that name.

    It is taken in the variant of the cell, or in the first there is: a model without attention is
    often run once for all variants.
    """
    reference = tested(results)
    reference = reference[(reference["model"] == model) & (reference["phase"] == "dense")]
    shape = ["experiment", "dataset", "lookback", "horizon", "target"]
    cells = rows[[*CELL, "target"]].drop_duplicates()
    joined = cells.merge(reference, on=shape, suffixes=("", "_reference"))
    joined["other"] = joined["variant"] != joined["variant_reference"]
    best = joined.sort_values(["other", "variant_reference"], kind="stable").groupby(
        [*CELL, "target"]
    )["variant_reference"]
    joined = joined[joined["variant_reference"] == best.transform("first")]
    return joined[list(reference.columns)].assign(method=method)


def relative_to(rows: pd.DataFrame, method: str, values: Sequence[str]) -> pd.DataFrame:
    """Change of each value against a method of the same run and target, in percent.

    Missing where the run has no such method, or no value.
    """
    keys = [*RUN, "target"]
    base = rows.loc[rows["method"] == method, [*keys, *values]].drop_duplicates(keys)
    joined = rows[keys].merge(base, on=keys, how="left")
    changes = {}
    for value in values:
        reference = joined[value].to_numpy(dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            changes[value] = 100 * (rows[value].to_numpy(dtype=float) / reference - 1)
    return pd.DataFrame(changes, index=rows.index)


def summary(rows: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean and standard deviation over seeds of `value` per group of `by`.

    A seed with several rows in a group (random draws) counts with their mean. `n` is the number of
    seeds with a finite value, `missing` of those without one (training diverged); `sd` is the
    sample's, missing for a single seed.
    """
    keys = [*by]
    clean = rows[[*keys, "seed", value]].replace({value: [np.inf, -np.inf]}, np.nan)
    seeds = clean.groupby([*keys, "seed"], observed=True, dropna=False)[value].mean().reset_index()
    groups = seeds.groupby(keys, observed=True, dropna=False)[value]
    table = groups.agg(mean="mean", sd="std", n="count", size="size").reset_index()
    return table.assign(missing=table["size"] - table["n"]).drop(columns="size")


def _between(mask: str) -> bool:
    return not keeps_all(mask) and not keeps_none(mask)


def _with_costs_of_control(dense: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Latency and memory are measured on the control, the same network as the dense one."""
    measured = ["latency_ms", "memory_mb"]
    keys = [*RUN, "mask"]
    control = having(tuned, keeps_all).drop_duplicates(keys)
    joined = dense[keys].merge(control[[*keys, *measured]], on=keys, how="left")
    return dense.assign(
        **{m: dense[m].fillna(pd.Series(joined[m].to_numpy(), index=dense.index)) for m in measured}
    )
