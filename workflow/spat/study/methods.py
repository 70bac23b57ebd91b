"""The methods that pages compare, and their names.

A *method* is a treatment of the dense model of a run: none (`dense`), fine-tuning only (the
control), pruning by SPAT at some ratio, or the removal of all attention. Models without attention,
and models with attention that were not pruned (rivals), are further methods, which have the name of
the model. Errors are test errors of the first data order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from spat.attention.mask import WITHOUT_SITES
from spat.models.registry import MODELS, Family, Role
from spat.scoring.names import CRITERIA
from spat.study.pages.page import Absent, once
from spat.study.statistics.cells import (
    CELL,
    RUN,
    having,
    in_domain,
    is_mask,
    keeps_all,
    keeps_none,
    keeps_some,
)

if TYPE_CHECKING:
    from spat.study.pages.reader import Frames

DENSE: Final = "dense"
CONTROL: Final = "control"
CHOSEN: Final = "SPAT (val.)"
NONE_LEFT: Final = "none left"
METRICS: Final = {"mse": "MSE", "mae": "MAE"}

# The columns of a cell that pages show.
SHOWN: Final = ("dataset", "model", "variant", "lookback", "horizon")

# The criteria that figures with little room show, and all criteria in the order of figures.
MAIN_CRITERIA: Final = (
    "send",
    "random",
    "michel",
    "magnitude",
    "loss_drop",
    "entropy",
    "depth_last",
)
CRITERIA_IN_ORDER: Final = tuple(dict.fromkeys([*MAIN_CRITERIA, *CRITERIA]))
# The number of models that fit in one figure of criteria.
MODELS_IN_FIGURE: Final = 4


def short_site_name(name: str) -> str:
    """The name of a site on an axis: `encoder.0.self` -> `e0`, `decoder.1.cross` -> `d1×`.

    `encoder.0.router` -> `e0r`.
    """
    stack, index, kind = [*name.split("."), "", ""][:3]
    return f"{stack[:1]}{index}" + {"cross": "×", "router": "r"}.get(kind, "")


def role(model: str) -> Role:
    """The role of a model: with attention, a trained baseline without it, or a naive forecast."""
    return MODELS[model].role


def family(model: str) -> Family:
    """The family of rivals that a model belongs to."""
    return MODELS[model].family


def models_of(wanted: Role, rows: pd.DataFrame) -> list[str]:
    """The models of `rows` that have a role, in the order of the registry."""
    present = set(rows["model"])
    return [name for name in MODELS if name in present and role(name) == wanted]


def at_ratio(ratio: float) -> str:
    """The name of SPAT at a fixed ratio: `SPAT 25 %`."""
    return f"SPAT {100 * ratio:g} %"


def in_order(methods: Iterable[str]) -> list[str]:
    """The methods in the order of a table: dense, control, SPAT by ratio, none left, baselines."""
    names = (DENSE, CONTROL, CHOSEN, "SPAT", NONE_LEFT, *MODELS)

    def place(method: str) -> tuple[int, float, str]:
        share = float(method.split()[1]) if method.endswith("%") else 0.0
        kind = "SPAT" if share else method
        return (names.index(kind) if kind in names else len(names), share, method)

    return sorted(set(methods), key=place)


def ordered(values: pd.Series, order: Iterable[str] | None = None) -> pd.Categorical:
    """`values` as a categorical that sorts in this order (default: `in_order`)."""
    categories = in_order(values.unique()) if order is None else [*order]
    return pd.Categorical(values, categories=categories, ordered=True)


def present(values: pd.Series, order: Iterable[str]) -> pd.Categorical:
    """`ordered` by the names of `order` that occur in `values`."""
    occurring = set(values)
    return ordered(values, [name for name in order if name in occurring])


def sort_rows(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The rows sorted by `keys`, without regard to case."""

    def lower(column: pd.Series) -> pd.Series:
        named = not isinstance(column.dtype, pd.CategoricalDtype)
        return column.str.lower() if named and pd.api.types.is_string_dtype(column) else column

    return table.sort_values([*keys], key=lower, kind="stable", ignore_index=True)


def arrange(table: pd.DataFrame, keys: Sequence[str], order: Sequence[str]) -> pd.DataFrame:
    """A tidy table of metrics and methods: columns of `keys` first, methods in this order."""
    columns = [*keys, "metric", "method", "mean", "sd", "n", "missing", "unit"]
    columns += [str(column) for column in table if column not in columns]
    table = table[columns].assign(
        metric=ordered(table["metric"], list(table["metric"].unique())),
        method=ordered(table["method"], order),
    )
    return sort_rows(table, [*keys, "metric", "method"])


def has_sites(rows: pd.DataFrame) -> pd.Series:
    """Which rows belong to a model with attention sites."""
    return rows["mask"] != WITHOUT_SITES


def of_attention_models(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of models with sites if there are any, otherwise all; masks are in `column`."""
    models = set(rows.loc[rows[column].map(is_mask).astype(bool), "model"])
    return rows[rows["model"].isin(models)] if models else rows


def are_rivals(results: pd.DataFrame) -> pd.Series:
    """Which rows belong to a model with sites that was trained but not pruned.

    It is False for all rows if no model was pruned. A variant that was not pruned because its
    training diverged is not a rival if another variant of its model was pruned.
    """
    pruned = set(results.loc[results["phase"] != "dense", "model"])
    return has_sites(results) & ~results["model"].isin(pruned) & bool(pruned)


def tested(results: pd.DataFrame) -> pd.DataFrame:
    """Test errors of the first data order."""
    return results[(results["split"] == "test") & (results["order"] == 0)]


def spat_criterion(rows: pd.DataFrame) -> str:
    """The criterion that chose the masks of SPAT: `send`, else `send_window`.

    Results that were computed before the printed formula was known contain only `send_window`.
    `rows` are selections or scores.
    """
    names = set(rows["criterion"])
    return "send_window" if "send_window" in names and "send" not in names else "send"


def site_choices(selections: pd.DataFrame) -> pd.DataFrame:
    """The site masks of SPAT by method: RUN, mask, removed, ratio, method.

    Ratios that remove the same number of sites are listed once, as the smallest of them. Masks that
    remove nothing or everything are left out, since other methods name them.
    """
    own = selections["criterion"] == spat_criterion(selections)
    send = selections[own & (selections["level"] == "site")]
    chosen = send[send["rule"] == "validation"].assign(method=CHOSEN)
    fixed = send[(send["rule"] == "") & send["ratio"].notna()].sort_values("ratio")
    fixed = having(fixed, keeps_some).drop_duplicates([*RUN, "removed"])
    fixed = fixed.assign(method=fixed["ratio"].map(at_ratio))
    return pd.concat([chosen, fixed])[[*RUN, "mask", "removed", "ratio", "method"]]


@once
def by_method(frames: Frames) -> pd.DataFrame:
    """Test results of attention models with the column `method`; a mask may have several methods.

    Raises:
        Absent: if no model of the experiment has attention sites.
    """
    rows = tested(frames.results)
    rows = rows[has_sites(rows) & ~are_rivals(rows)]
    if rows.empty:
        raise Absent("No model of this experiment has attention sites.")
    tuned = rows[rows["phase"] == "finetuned"]
    dense = _with_costs_of_control(rows[rows["phase"] == "dense"], tuned)
    choices = site_choices(frames.selections)[[*RUN, "mask", "method"]]
    return pd.concat(
        [
            dense.assign(method=DENSE),
            having(tuned, keeps_all).assign(method=CONTROL),
            having(tuned, keeps_none).assign(method=NONE_LEFT),
            tuned.merge(choices, on=[*RUN, "mask"]),
        ],
        ignore_index=True,
    )


@once
def at_home(frames: Frames) -> pd.DataFrame:
    """The rows of `by_method` that are tested on the dataset of the run.

    Raises:
        Absent: if `by_method` raises it.
    """
    rows = by_method(frames)
    return rows[rows["target"] == rows["dataset"]]


@once
def by_decision(frames: Frames) -> pd.DataFrame:
    """Fine-tuned test results of every decision at a fixed ratio, on the dataset of the run.

    Adds criterion, draw, level, ratio and removed. Ratios that remove the same number are listed
    once, as the smallest of them. Masks that remove nothing or everything are left out, since they
    are the same for all criteria.

    Raises:
        Absent: if no mask at a ratio between 0 and 1 was fine-tuned.
    """
    made = frames.selections
    made = made[(made["rule"] == "") & made["ratio"].notna()].sort_values("ratio", kind="stable")
    made = having(made, keeps_some)
    made = made.drop_duplicates([*RUN, "criterion", "draw", "level", "removed"])
    rows = in_domain(tested(frames.results))
    columns = [*RUN, "mask", "criterion", "draw", "level", "ratio", "removed"]
    rows = rows.merge(made[columns], on=[*RUN, "mask"])
    if rows.empty:
        raise Absent("No mask that keeps some attention and removes the rest was fine-tuned.")
    return rows


def with_change(rows: pd.DataFrame, frames: Frames) -> pd.DataFrame:
    """`rows` with the MSE of the control of the same run, and the change against it in percent."""
    named = at_home(frames)
    named = named[named["method"] == CONTROL].drop_duplicates(list(RUN))
    rows = rows.join(named.set_index(list(RUN))["mse"].rename("control"), on=list(RUN))
    return rows.assign(change=100 * (rows["mse"] / rows["control"] - 1))


def baselines(rows: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Test results of baselines and rivals in the cells of `rows`, with their name as `method`.

    The variant of the cell is used if the model has it, otherwise the first variant: a model
    without attention is often run once for all variants.
    """
    trained = tested(results)
    trained = trained[(trained["phase"] == "dense") & ~trained["model"].map(role).eq("naive")]
    trained = trained[~has_sites(trained) | are_rivals(tested(results))[trained.index]]
    models = [name for name in MODELS if name in set(trained["model"])]
    shape = ["experiment", "dataset", "lookback", "horizon", "target"]
    cells = rows[[*CELL, "target"]].drop_duplicates()
    tables = [trained.iloc[:0].assign(method="")]
    for model in models:
        joined = cells.merge(
            trained[trained["model"] == model], on=shape, suffixes=("", "_baseline")
        )
        joined["other"] = joined["variant"] != joined["variant_baseline"]
        joined = joined.sort_values(["other", "variant_baseline"], kind="stable")
        best = joined.groupby([*CELL, "target"])["variant_baseline"]
        joined = joined[joined["variant_baseline"] == best.transform("first")]
        tables.append(joined[list(trained.columns)].assign(method=model))
    return pd.concat(tables, ignore_index=True)


def relative_to(rows: pd.DataFrame, method: str, values: Sequence[str]) -> pd.DataFrame:
    """Change of each value against `method` in the same run and target, in percent.

    It is missing if the run does not have the method, or the method does not have the value.
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


def references(results: pd.DataFrame) -> pd.DataFrame:
    """The reference of each pruned run: dense model or control, by the lower validation error.

    Returns:
        RUN, `phase` (`dense` or `finetuned`), and the test errors `mse` and `mae`.
    """
    home = results[(results["target"] == results["dataset"]) & (results["order"] == 0)]
    whole = having(home[has_sites(home)], keeps_all)
    whole = whole[whole["phase"].isin(["dense", "finetuned"])]
    pruned = pd.MultiIndex.from_frame(whole.loc[whole["phase"] == "finetuned", [*RUN]])
    whole = whole[pd.MultiIndex.from_frame(whole[[*RUN]]).isin(pruned)]
    kept = whole[whole["split"] == "validation"].sort_values(["mse", "phase"], kind="stable")
    kept = kept.drop_duplicates(list(RUN))[[*RUN, "phase"]]
    tested = whole.loc[whole["split"] == "test", [*RUN, "phase", "mse", "mae"]]
    joined = pd.DataFrame(kept.merge(tested, on=[*RUN, "phase"]))
    return joined.sort_values(list(RUN), ignore_index=True)


def relative_to_better(rows: pd.DataFrame, results: pd.DataFrame, value: str) -> pd.Series:
    """Change of `value` against the reference of the same run (`references`), in percent."""
    base = references(results)[[*RUN, value]].rename(columns={value: "reference"})
    reference = rows[list(RUN)].merge(base, on=list(RUN), how="left")["reference"]
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = 100 * (rows[value].to_numpy(dtype=float) / reference.to_numpy(dtype=float) - 1)
    return pd.Series(changes, index=rows.index)


def summary(rows: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean and standard deviation over seeds of `value` per group of `by`.

    The rows of one seed in a group (random draws) are averaged first. `n` is the number of seeds
    with a finite value, and `missing` the number of seeds without one (training diverged). `sd` is
    the sample standard deviation, which is missing for a single seed.
    """
    keys = [*by]
    clean = rows[[*keys, "seed", value]].replace({value: [np.inf, -np.inf]}, np.nan)
    seeds = clean.groupby([*keys, "seed"], observed=True, dropna=False)[value].mean().reset_index()
    groups = seeds.groupby(keys, observed=True, dropna=False)[value]
    table = groups.agg(mean="mean", sd="std", n="count", size="size").reset_index()
    return table.assign(missing=table["size"] - table["n"]).drop(columns="size")


def _with_costs_of_control(dense: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """`dense` with the latency and memory of the control, which is the same network."""
    measured = ["latency_ms", "memory_mb"]
    keys = [*RUN, "mask"]
    control = having(tuned, keeps_all).drop_duplicates(keys)
    joined = dense[keys].merge(control[[*keys, *measured]], on=keys, how="left")
    return dense.assign(
        **{m: dense[m].fillna(pd.Series(joined[m].to_numpy(), index=dense.index)) for m in measured}
    )
