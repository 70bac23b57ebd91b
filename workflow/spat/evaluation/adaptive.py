"""Do rules that choose how much to remove beat one ratio, fixed on other data?

The opponent is the ratio with the best validation errors on the *other* stations, for the same
model and variant; removing nothing (ratio 0, the control) is one of its candidates, as it is for
the rules. It sees nothing of the station that it is judged on.
"""

from __future__ import annotations

from typing import Final, get_args

import pandas as pd

from spat.evaluation.cells import average, in_domain, keeps_all, sites_removed, with_station
from spat.pipeline.config import Rule
from spat.pipeline.frames import RUN

FIXED: Final = "fixed"
_SETTING: Final = ["model", "variant"]


def comparison(
    results: pd.DataFrame, selections: pd.DataFrame, criterion: str = "send"
) -> pd.DataFrame:
    """Test error of each rule's mask beside that of the fixed ratio, one row per run and rule.

    The first data order of fine-tuning is taken. The row `fixed` of a run is the opponent itself.

    Returns:
        RUN, `rule`, `mask`, `removed`, `mse`, `change` (against the control, a share),
        `fixed_ratio`, `fixed_mse`, `difference` (mse / fixed_mse - 1, negative where the rule is
        better), and `finetunings`: what it takes to end with the fine-tuned mask, so at least 1.
        The fixed columns are missing where no other station ran this model and variant.
    """
    errors = _errors(results)
    rules = selections[selections["rule"].isin(get_args(Rule))]
    rules = rules[rules["criterion"] == criterion][[*RUN, "rule", "mask", "finetunings"]]
    candidates = _candidates(errors, selections, criterion)
    fixed = candidates.merge(
        fixed_ratios(candidates), on=["station", *_SETTING, "ratio"], how="inner"
    )
    fixed = fixed.rename(columns={"ratio": "fixed_ratio", "mse": "fixed_mse"})
    own = fixed[[*RUN, "mask"]].assign(rule=FIXED, finetunings=1)
    rows = pd.concat([rules, own]).merge(errors.drop(columns="val_change"), on=[*RUN, "mask"])
    rows = rows.merge(fixed[[*RUN, "fixed_ratio", "fixed_mse"]], on=list(RUN), how="left")
    rows = rows.assign(
        removed=rows["mask"].map(sites_removed),
        difference=rows["mse"] / rows["fixed_mse"] - 1.0,
        finetunings=rows["finetunings"].clip(lower=1),
    )
    return rows[[*RUN, "rule", "mask", "removed", *_MEASURES]]


def fixed_ratios(candidates: pd.DataFrame) -> pd.DataFrame:
    """The ratio of least validation error on all stations but one: that `station`, and `ratio`.

    `candidates` has the columns of a run, `ratio` and `val_change`. The smallest of equal ratios is
    taken. A station without others has no row.
    """
    found = []
    for station in candidates["station"].unique():
        others = candidates[candidates["station"] != station]
        means = average(others, ["val_change"], [*_SETTING, "ratio"], upto="station")
        best = means.sort_values(["val_change", "ratio"]).drop_duplicates(_SETTING)
        found.append(best[[*_SETTING, "ratio"]].assign(station=station))
    columns = ["station", *_SETTING, "ratio"]
    return pd.concat(found)[columns] if found else pd.DataFrame(columns=columns)


_MEASURES = ("mse", "change", "fixed_ratio", "fixed_mse", "difference", "finetunings")


def _errors(results: pd.DataFrame) -> pd.DataFrame:
    """RUN, `mask`, `mse` on test, and the changes against the control on test and validation."""
    first = results[results["order"] == 0]
    test, validation = (
        in_domain(first, split)[[*RUN, "mask", "mse"]] for split in ("test", "validation")
    )
    rows = _against_control(test, "change").merge(
        _against_control(validation, "val_change").drop(columns="mse"), on=[*RUN, "mask"]
    )
    return rows[[*RUN, "mask", "mse", "change", "val_change"]]


def _against_control(errors: pd.DataFrame, name: str) -> pd.DataFrame:
    control = errors[errors["mask"].map(keeps_all).astype(bool)]
    control = control[[*RUN, "mse"]].rename(columns={"mse": "control"})
    rows = errors.merge(control, on=list(RUN))
    rows[name] = rows["mse"] / rows["control"] - 1.0
    return rows.drop(columns="control")


def _candidates(errors: pd.DataFrame, selections: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """Errors of the criterion's masks at each fixed ratio, and of the control at ratio 0."""
    fixed = selections[(selections["level"] == "site") & (selections["rule"] == "")]
    fixed = fixed[(fixed["criterion"] == criterion) & fixed["ratio"].notna()]
    control = errors.loc[errors["mask"].map(keeps_all).astype(bool), [*RUN, "mask"]]
    control = control.merge(fixed[list(RUN)].drop_duplicates()).assign(ratio=0.0)
    asked = pd.concat([control, fixed[[*RUN, "mask", "ratio"]]])
    return with_station(asked.merge(errors, on=[*RUN, "mask"]))
