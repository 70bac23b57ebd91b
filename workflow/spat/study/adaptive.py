"""Do rules that choose how much to remove beat one ratio that is fixed on other data?

The rules are compared with a fixed ratio: the ratio with the best validation errors on the *other*
sources, for the same model and variant. Removing nothing (ratio 0, the control) is a candidate for
the fixed ratio and for the rules. The fixed ratio uses no data of the source that it is tested on.
"""

from __future__ import annotations

from typing import Final, get_args

import pandas as pd

from spat.pipeline.config import Rule
from spat.study import methods
from spat.study.pages.page import Absent, Layout, Note, page
from spat.study.pages.reader import Frames
from spat.study.pages.render import INTERVAL
from spat.study.statistics.averages import average, measure
from spat.study.statistics.cells import RUN, having, in_domain, keeps_all, sites_removed

ALL: Final = "all"
FIXED: Final = "fixed ratio"
RATIO: Final = "ratio"
# Column of `comparison` -> (name, unit, scale).
MEASURES: Final = {
    "change": ("MSE vs control", "%", 100.0),
    "difference": ("MSE vs fixed ratio", "%", 100.0),
    "removed": ("sites removed", "sites", 1.0),
    "fixed_ratio": (RATIO, "share", 1.0),
    "finetunings": ("fine-tunings", "masks", 1.0),
}
_MODEL: Final = ["model", "variant"]


@page(
    "table",
    "adaptive",
    title="Adaptive ratios against one ratio fixed on the other data sources",
    caption="""
Rules that choose how many sites to remove, compared with one ratio for all runs, which is chosen by
validation errors on the other data sources. Negative changes are better.
*Fine-tunings* is the number of masks that a rule fine-tunes: rules that use fine-tuned masks train
the whole path. With two sources, the fixed ratio of one source is chosen on the other source.
""",
    layout=Layout(
        ("model", "variant", "source", "rule"),
        "measure",
        best=False,
        counted="runs",
        kept=("source", "rule"),
    ),
    notes=(
        "Fixed ratio: the one with the lowest validation error on the other sources; the control "
        "(0) is one of the candidates.",
        "Fine-tunings: the number of masks that are fine-tuned to get the chosen one.",
        "Averages: seeds first, then horizons, datasets of a source, sources.",
        Note(INTERVAL, "Intervals are over seeds."),
    ),
)
def adaptive(frames: Frames) -> pd.DataFrame:
    """Test error of each rule against the control and the fixed ratio, and the cost of the rule.

    Columns: model, variant, source (or `all`), rule, measure, mean, low, high, sd, n (runs),
    missing, unit. The row `fixed ratio` is the ratio with the lowest validation error on the other
    sources. Averages take seeds first, then horizons, datasets of a source, sources; intervals of
    the changes are over seeds.

    Raises:
        Absent: if no rule chose a mask.
    """
    rules = get_args(Rule)
    if not frames.selections["rule"].isin(rules).any():
        raise Absent("No adaptive rule chose a mask: add `auto:<rule>` to `pruning.site.ratios`.")
    rows = comparison(frames.results, frames.selections)
    fixed = rows["rule"] == FIXED
    rows = rows.astype(dict.fromkeys(MEASURES, "float64"))
    # The fixed ratio has no difference from itself, and a rule has no single ratio.
    rows["difference"] = rows["difference"].mask(fixed)
    rows["fixed_ratio"] = rows["fixed_ratio"].where(fixed)
    both = pd.concat([rows.assign(place=rows["source"]), rows.assign(place=ALL)])
    by = [*_MODEL, "place", "rule"]
    tables = [
        measure(both, value, by, name, unit, scale=scale)
        for value, (name, unit, scale) in MEASURES.items()
    ]
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    table = table.rename(columns={"place": "source"}).drop(columns="p")
    table.loc[table["unit"] != "%", ["low", "high"]] = float("nan")
    # The ratios differ between sources, and their mean is not a ratio that was used.
    table = table[(table["measure"] != RATIO) | (table["source"] != ALL)]
    names = {**{rule: f"auto:{rule}" for rule in rules}, FIXED: FIXED}
    table = table.assign(
        rule=methods.ordered(table["rule"].map(names), names.values()),
        source=methods.ordered(table["source"], [*sorted(rows["source"].unique()), ALL]),
        measure=methods.present(table["measure"], [name for name, _, _ in MEASURES.values()]),
        sd=float("nan"),
        missing=0,
    )
    return methods.sort_rows(table, [*_MODEL, "source", "rule", "measure"])


def comparison(results: pd.DataFrame, selections: pd.DataFrame) -> pd.DataFrame:
    """Test error of the mask of each rule and of the fixed ratio, one row per run and rule.

    The masks are those chosen by the criterion of SPAT. Only the first data order is used. The row
    `fixed ratio` of a run is the ratio that the rules are compared with.

    Returns:
        RUN, `rule`, `mask`, `removed`, `mse`, `change` (against the control, a fraction),
        `fixed_ratio`, `fixed_mse`, `difference` (mse / fixed_mse - 1, negative where the rule is
        better), and `finetunings`: the number of masks that the rule fine-tunes to choose one, at
        least 1. The columns `fixed_*` are missing if no other source ran this model and variant.
    """
    criterion = methods.spat_criterion(selections)
    errors = _errors(results)
    rules = selections[selections["rule"].isin(get_args(Rule))]
    rules = rules[rules["criterion"] == criterion][[*RUN, "rule", "mask", "finetunings"]]
    candidates = _candidates(errors, selections, criterion)
    fixed = candidates.merge(fixed_ratios(candidates), on=["source", *_MODEL, "ratio"], how="inner")
    fixed = fixed.rename(columns={"ratio": "fixed_ratio", "mse": "fixed_mse"})
    own = fixed[[*RUN, "mask"]].assign(rule=FIXED, finetunings=1)
    rows = pd.concat([rules, own]).merge(errors.drop(columns="val_change"), on=[*RUN, "mask"])
    rows = rows.merge(fixed[[*RUN, "fixed_ratio", "fixed_mse"]], on=list(RUN), how="left")
    rows = rows.assign(
        removed=rows["mask"].map(sites_removed),
        difference=rows["mse"] / rows["fixed_mse"] - 1.0,
        finetunings=rows["finetunings"].clip(lower=1),
    )
    values = ["mse", "change", "fixed_ratio", "fixed_mse", "difference", "finetunings"]
    return rows[[*RUN, "rule", "mask", "removed", *values]]


def fixed_ratios(candidates: pd.DataFrame) -> pd.DataFrame:
    """For each `source`, the `ratio` with the lowest validation error on all other sources.

    `candidates` has the columns of a run, `ratio` and `val_change`. Of ratios with equal errors the
    smallest is taken. If there is only one source, it has no row.
    """
    tables = []
    for source in candidates["source"].unique():
        others = candidates[candidates["source"] != source]
        means = average(others, ["val_change"], [*_MODEL, "ratio"], upto="source")
        best = means.sort_values(["val_change", "ratio"]).drop_duplicates(_MODEL)
        tables.append(best[[*_MODEL, "ratio"]].assign(source=source))
    columns = ["source", *_MODEL, "ratio"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def _errors(results: pd.DataFrame) -> pd.DataFrame:
    """RUN, `mask`, the test `mse`, and the changes against the control on test and validation."""
    first = results[results["order"] == 0]
    test, validation = (
        in_domain(first, split)[[*RUN, "mask", "mse"]] for split in ("test", "validation")
    )
    rows = _against_control(test, "change").merge(
        _against_control(validation, "val_change").drop(columns="mse"), on=[*RUN, "mask"]
    )
    return rows[[*RUN, "mask", "mse", "change", "val_change"]]


def _against_control(errors: pd.DataFrame, name: str) -> pd.DataFrame:
    control = having(errors, keeps_all)[[*RUN, "mse"]].rename(columns={"mse": "control"})
    rows = errors.merge(control, on=list(RUN))
    rows[name] = rows["mse"] / rows["control"] - 1.0
    return rows.drop(columns="control")


def _candidates(errors: pd.DataFrame, selections: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """Errors of the criterion's masks at each fixed ratio, and of the control at ratio 0."""
    fixed = selections[(selections["level"] == "site") & (selections["rule"] == "")]
    fixed = fixed[(fixed["criterion"] == criterion) & fixed["ratio"].notna()]
    control = having(errors, keeps_all)[[*RUN, "mask"]]
    control = control.merge(fixed[list(RUN)].drop_duplicates()).assign(ratio=0.0)
    asked = pd.concat([control, fixed[[*RUN, "mask", "ratio"]]])
    return asked.merge(errors, on=[*RUN, "mask"])
