"""Adaptive ratios, heads against modules, and transfer, on frames with a known outcome."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import EMPTY, FULL, Keys, additive, decision, results, runs, scores, selections

from spat.study import adaptive, heads_vs_modules, transfer

PATH = (FULL, "0.1.1.1", "0.0.1.1", "0.0.0.1", EMPTY)
SEND = {"send": lambda keys: (1, 2, 3, 4)}


def along(errors: dict[int, float]) -> dict[str, float]:
    """Errors of the masks on SEND's path by the number of sites removed."""
    return {PATH[k]: value for k, value in errors.items()}


def path_results(of: list[Keys], errors: dict[str, dict[int, float]]) -> pd.DataFrame:
    by_dataset = {dataset: along(values) for dataset, values in errors.items()}
    return results(of, lambda k, m, _: by_dataset[k["dataset"]][m], masks=PATH)


# --- adaptive ratio ------------------------------------------------------------------------------

# The removal of one site helps on ETT1 and ETT2, and harms on the exchange rates.
ERRORS = {
    "ETTh1": {0: 1.0, 1: 0.90, 2: 0.95, 3: 1.1, 4: 1.2},
    "ETTh2": {0: 2.0, 1: 1.90, 2: 1.70, 3: 2.2, 4: 2.4},
    "Exchange": {0: 1.0, 1: 1.50, 2: 1.40, 3: 1.6, 4: 1.7},
}


def ruled(of: list[Keys]) -> pd.DataFrame:
    rules = [decision(k, "send", PATH[1], rule="validation", finetunings=5) for k in of] + [
        decision(k, "send", PATH[2], rule="gap") for k in of
    ]
    rules += [decision(k, "send", m, rule="path", draw=i) for k in of for i, m in enumerate(PATH)]
    return pd.concat([selections(of, SEND), pd.DataFrame(rules)], ignore_index=True)


def test_the_fixed_ratio_is_chosen_on_the_validation_of_other_sources() -> None:
    of = runs(ERRORS, seeds=2)
    table = adaptive.comparison(path_results(of, ERRORS), ruled(of))
    assert set(table["rule"]) == {"validation", "gap", "fixed ratio"}
    fixed = table.groupby("dataset")["fixed_ratio"].first()
    # Mean changes on the two others: h1 (h2, ex): 25 % +22.5, 50 % +12.5, so none (0).
    # Exchange (h1, h2): 25 % -7.5, 50 % -10.
    assert fixed.to_dict() == {"ETTh1": 0.0, "ETTh2": 0.0, "Exchange": 0.5}
    rows = table[table["seed"] == 0].set_index(["dataset", "rule"])
    assert rows.loc[("ETTh1", "validation"), "change"] == pytest.approx(-0.1)
    assert rows.loc[("ETTh1", "validation"), "difference"] == pytest.approx(-0.1)
    assert rows.loc[("Exchange", "gap"), "difference"] == pytest.approx(0)
    assert rows.loc[("Exchange", "fixed ratio"), "mse"] == 1.4
    assert rows.loc[("Exchange", "fixed ratio"), "difference"] == 0


def test_the_cost_of_a_rule_is_the_number_of_masks_that_it_fine_tunes() -> None:
    of = runs(ERRORS, seeds=1)
    spent = adaptive.comparison(path_results(of, ERRORS), ruled(of)).groupby("rule")["finetunings"]
    assert spent.first().to_dict() == {"fixed ratio": 1, "gap": 1, "validation": 5}


def test_test_errors_do_not_choose_the_fixed_ratio() -> None:
    of = runs(ERRORS, seeds=1)
    frame = path_results(of, ERRORS)
    test = (frame["split"] == "test") & (frame["mask"] == PATH[4])
    frame.loc[test, "mse"] = 0.0  # the empty mask is perfect on test, which no choice may use
    table = adaptive.comparison(frame, ruled(of))
    assert set(table["fixed_ratio"]) == {0.0, 0.5}


def test_datasets_of_one_source_do_not_choose_for_each_other() -> None:
    of = runs(["ETTh1", "ETTm1"], seeds=1)
    errors = {"ETTh1": ERRORS["ETTh1"], "ETTm1": ERRORS["ETTh1"]}
    table = adaptive.comparison(path_results(of, errors), ruled(of))
    assert table["fixed_ratio"].isna().all() and table["difference"].isna().all()
    assert set(table["rule"]) == {"validation", "gap"}
    assert (table["change"] < 0).all()


# --- heads against modules -----------------------------------------------------------------------

HEAD_MASK, RANDOM_HEADS = "01.10.1.1", "1.10.01.1"


def head_frames(head_flops: int = 900) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    of = runs(seeds=2)
    errors = {
        FULL: 1.0, "0.1.1.1": 0.9, HEAD_MASK: 0.99, RANDOM_HEADS: 1.1, "1.0.1.1": 1.0,
        "1.1.0.1": 1.4, EMPTY: 2.0,
    }  # fmt: skip
    flops = {HEAD_MASK: head_flops, RANDOM_HEADS: head_flops, FULL: 1000}
    frame = results(
        of, lambda k, m, _: errors[m], masks=tuple(errors), flops=lambda m: flops.get(m, 900)
    )
    asked = [
        decision(k, criterion, mask, level=level, ratio=ratio, removed=removed, draw=draw)
        for k in of
        for criterion, level, ratio, removed, masks in (
            ("send", "site", 0.25, 1, ["0.1.1.1"]),
            ("send", "head", 0.25, 2, [HEAD_MASK]),
            ("random", "site", 0.25, 1, ["1.0.1.1", "1.1.0.1"]),
            ("random", "head", 0.25, 2, [RANDOM_HEADS]),
            ("send", "site", 1.0, 4, [EMPTY]),
            ("send", "head", 1.0, 8, [EMPTY]),
        )
        for draw, mask in enumerate(masks)
    ]
    return frame, pd.DataFrame(asked), scores(of, SEND, batches=2)


def test_heads_are_paired_with_modules_of_the_same_share() -> None:
    table = heads_vs_modules.pairs(*head_frames())
    send = table[(table["criterion"] == "send") & (table["match"] == "fraction")]
    assert len(send) == 2, "one pair a seed; removing everything is no comparison"
    assert (send["site_fraction"] == 0.25).all() and (send["head_fraction"] == 0.25).all()
    np.testing.assert_allclose(send["difference"], 0.99 / 0.9 - 1)
    np.testing.assert_allclose(send["site_floor"], 1.2)  # the mean of both draws
    np.testing.assert_allclose(send["site_gain"], 1 - 0.9 / 1.2)
    np.testing.assert_allclose(send["head_gain"], 1 - 0.99 / 1.1)
    random = table[(table["criterion"] == "random") & (table["match"] == "fraction")]
    np.testing.assert_allclose(random["difference"], 1.1 / 1.2 - 1)
    np.testing.assert_allclose(random["site_gain"], 0, atol=1e-12)


def test_heads_and_modules_of_equal_flops_are_paired_separately() -> None:
    equal = heads_vs_modules.pairs(*head_frames(head_flops=905))
    assert set(equal["match"]) == {"fraction", "flops"}
    unequal = heads_vs_modules.pairs(*head_frames(head_flops=950))
    assert set(unequal["match"]) == {"fraction"}
    assert (unequal["head_latency_ms"] == 0.95).all()


def test_without_masks_of_heads_there_are_no_pairs() -> None:
    frame, asked, values = head_frames()
    assert heads_vs_modules.pairs(frame, asked[asked["level"] == "site"], values).empty


# --- transfer ------------------------------------------------------------------------------------


def transfer_frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    source, target = runs(["ETTh1"], seeds=2), runs(["ETTh2"], seeds=2)
    error = additive((-0.1, 0.2, 0.2, 0.2))
    shift = {"ETTh2": 1.0}
    own = [
        results(source, lambda k, m, _: error(m), targets=shift),
        results(source, lambda k, m, _: 1.25, masks=[FULL], phase="dense", targets=shift),
        results(target, lambda k, m, _: 1.5 + k["seed"], masks=[FULL], phase="dense"),
    ]
    others = []
    for model, at_home, seeds in (("RepeatLast", 9.0, 1), ("SeasonalNaive", 7.0, 1)):
        of = runs(["ETTh2"], seeds=seeds, model=model)
        others.append(results(of, lambda k, m, _, e=at_home: e, masks=["none"], phase="dense"))
        # The same forecast with the season of the source, which the table must not show.
        of = runs(["ETTh1"], seeds=seeds, model=model)
        others.append(
            results(of, lambda k, m, _: 50.0, masks=["none"], phase="dense", targets=shift)
        )
    linear = runs(["ETTh1"], seeds=2, model="DLinear")
    others.append(
        results(linear, lambda k, m, _: 3.0, masks=["none"], phase="dense", targets=shift)
    )
    return pd.concat([*own, *others], ignore_index=True), selections(source, SEND)


def test_the_table_has_every_method_that_is_compared_on_the_target() -> None:
    table = transfer.zero_shot(*transfer_frames())
    assert set(table["target"]) == {"ETTh2"} and set(table["model"]) == {"iTransformer"}
    first = table[table["seed"] == 0]
    errors = first[first["rule"] == ""].groupby("method")["mse"].first().to_dict()
    assert errors == pytest.approx(
        {
            "repeat last": 9.0, "seasonal naive": 7.0, "trained on target": 1.5, "dense": 2.25,
            "control": 2.0, "send": 1.9, "none left": 2.5, "DLinear": 4.0,
        }
    )  # fmt: skip
    send = first[first["method"] == "send"]
    assert send["ratio"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert (
        table.loc[(table["seed"] == 1) & (table["method"] == "trained on target"), "mse"].item()
        == 2.5
    )
    assert not table.duplicated(["seed", "method", "ratio", "rule"]).any()


def test_the_gain_at_home_is_subtracted_from_the_gain_on_the_target() -> None:
    table = transfer.gains(*transfer_frames())
    row = table[(table["seed"] == 0) & (table["ratio"] == 0.25)].iloc[0]
    assert row["gain"] == pytest.approx(1 - 1.9 / 2.0)
    assert row["home_gain"] == pytest.approx(1 - 0.9 / 1.0)
    assert row["excess"] == pytest.approx(row["gain"] - row["home_gain"])
    assert set(table["method"]) == {"send", "none left"}


def test_references_that_were_not_run_are_missing() -> None:
    frame, asked = transfer_frames()
    only = frame[frame["model"] == "iTransformer"]
    only = only[only["dataset"] == "ETTh1"]
    assert set(transfer.zero_shot(only, asked)["method"]) == {
        "dense",
        "control",
        "send",
        "none left",
    }
    home = only[only["target"] == "ETTh1"]
    assert transfer.zero_shot(home, asked).empty and transfer.gains(home, asked).empty


def test_masks_of_the_path_and_of_other_criteria_are_not_methods() -> None:
    frame, asked = transfer_frames()
    of = runs(["ETTh1"], seeds=2)
    extra = [decision(k, "send", "0.1.1.1", rule="path", draw=1) for k in of]
    extra += [decision(k, "michel", "1.1.1.0", ratio=0.25) for k in of]
    extra += [decision(k, "send", "0.1.1.1", rule="validation") for k in of]
    table = transfer.zero_shot(frame, pd.concat([asked, pd.DataFrame(extra)]))
    assert set(table["rule"]) == {"", "validation"} and "michel" not in set(table["method"])
    assert len(table[(table["seed"] == 0) & (table["method"] == "send")]) == 5
