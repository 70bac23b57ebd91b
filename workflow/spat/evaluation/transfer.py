"""Zero-shot transfer: a run evaluated on another dataset, and what stands beside it there.

Nothing is trained on the target; its scaler is fitted on its own training rows. The first data
order of fine-tuning is taken.
"""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.data.registry import DATASETS
from spat.evaluation.cells import keeps_all, keeps_none
from spat.pipeline.frames import RUN

REPEAT_LAST: Final = "RepeatLast"
SEASONAL_NAIVE: Final = "SeasonalNaive"
LINEAR: Final = "DLinear"
ON_TARGET: Final = "on_target"
DENSE: Final = "dense"
CONTROL: Final = "control"
EMPTY: Final = "empty"

_REFERENCES: Final = (REPEAT_LAST, SEASONAL_NAIVE, LINEAR)
_CASE: Final = [*RUN, "target"]
_METHOD: Final = ["method", "ratio", "rule"]


def zero_shot(
    results: pd.DataFrame, selections: pd.DataFrame, criterion: str = "send"
) -> pd.DataFrame:
    """Test errors on the target of all that is compared, one row per run, target and method.

    Methods of the run itself: `dense`, `control`, the criterion (under its name, with `ratio` or
    `rule`), `empty`. Beside them `RepeatLast` and `SeasonalNaive` on the target (of the target's
    own run: its season, not the source's), `DLinear` trained on the source by the same seed, and
    `on_target`: the same model, shape and seed trained on the target, dense. Those that were not
    run are absent.

    Returns:
        RUN, `target`, `method`, `ratio`, `rule`, `mask`, `mse`, `mae`.
    """
    test = _tested(results)
    ours = _methods(test[test["target"] != test["dataset"]], selections, criterion)
    ours = ours[~ours["model"].isin(_REFERENCES)]
    cases = ours[_CASE].drop_duplicates()
    rows = pd.concat([ours, *_beside(cases, test[test["phase"] == "dense"])])
    columns = [*_CASE, *_METHOD, "mask", "mse", "mae"]
    return rows[columns].sort_values([*_CASE, *_METHOD], ignore_index=True)


def gains(results: pd.DataFrame, selections: pd.DataFrame, criterion: str = "send") -> pd.DataFrame:
    """What pruning gains on the target, and how much of that it does not gain at home.

    A gain is 1 - mse / reference, positive where pruning is better. The control has every
    fine-tuning step that a mask has, so `gain` is against it, and `dense_gain` beside it.

    Returns:
        RUN, `target`, `direction` (source station -> target station: pairs that share it are not
        independent), `method`, `ratio`, `rule`, `mask`, `mse`, `gain`, `dense_gain`, `home_gain`
        (against the control on the run's own test split) and `excess`, gain - home_gain.
    """
    test = _methods(_tested(results), selections, criterion)
    test = test[~test["model"].isin(_REFERENCES)]
    rows = test[~test["method"].isin([DENSE, CONTROL])]
    for name, column in ((CONTROL, "gain"), (DENSE, "dense_gain")):
        reference = test.loc[test["method"] == name, [*_CASE, "mse"]]
        rows = rows.merge(reference.rename(columns={"mse": name}), on=_CASE, how="left")
        rows[column] = 1.0 - rows["mse"] / rows.pop(name)
    home = rows["target"] == rows["dataset"]
    own = rows.loc[home, [*RUN, *_METHOD, "mask", "gain"]].rename(columns={"gain": "home_gain"})
    rows = rows[~home].merge(own, on=[*RUN, *_METHOD, "mask"], how="left")
    rows["excess"] = rows["gain"] - rows["home_gain"]
    rows["direction"] = [
        f"{DATASETS[source].station} -> {DATASETS[target].station}"
        for source, target in zip(rows["dataset"], rows["target"], strict=True)
    ]
    columns = ["mask", "mse", "gain", "dense_gain", "home_gain", "excess"]
    return rows[[*_CASE, "direction", *_METHOD, *columns]]


def _tested(results: pd.DataFrame) -> pd.DataFrame:
    """Test errors of dense and fine-tuned networks, first data order."""
    kept = (results["split"] == "test") & (results["order"] == 0)
    return results.loc[
        kept & results["phase"].isin(["dense", "finetuned"]),
        [*_CASE, "phase", "mask", "mse", "mae"],
    ]


def _methods(test: pd.DataFrame, selections: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """The rows by what was done; a mask that several choices share stands under each of them."""
    full = test["mask"].map(keeps_all).astype(bool)
    tuned = test["phase"] == "finetuned"
    empty = test["mask"].map(keeps_none).astype(bool)
    asked = selections[(selections["level"] == "site") & (selections["criterion"] == criterion)]
    asked = asked[asked["ratio"].notna() | ~asked["rule"].isin(["", "path"])]
    chosen = test[tuned].merge(asked[[*RUN, "ratio", "rule", "mask"]], on=[*RUN, "mask"])
    named = [
        test[full & ~tuned].assign(method=DENSE),
        test[full & tuned].assign(method=CONTROL),
        test[empty & tuned].assign(method=EMPTY),
    ]
    plain = [rows.assign(ratio=float("nan"), rule="") for rows in named]
    return pd.concat([*plain, chosen.assign(method=criterion)])


def _beside(cases: pd.DataFrame, dense: pd.DataFrame) -> list[pd.DataFrame]:
    """The reference rows of each (run, target)."""
    errors = ["mask", "mse", "mae"]
    shape = ["experiment", "target", "lookback", "horizon"]
    home = dense[dense["dataset"] == dense["target"]]
    found = []
    for name in (REPEAT_LAST, SEASONAL_NAIVE):
        # They have no parameters: whatever the seed, the errors are the same.
        naive = home[home["model"] == name].drop_duplicates(shape)
        found.append(cases.merge(naive[[*shape, *errors]], on=shape).assign(method=name))
    trained = [*shape, "model", "variant", "seed"]
    found.append(cases.merge(home[[*trained, *errors]], on=trained).assign(method=ON_TARGET))
    source = [*shape, "dataset", "seed"]
    linear = dense[dense["model"] == LINEAR].drop_duplicates(source)
    found.append(cases.merge(linear[[*source, *errors]], on=source).assign(method=LINEAR))
    return [rows.assign(ratio=float("nan"), rule="") for rows in found]
