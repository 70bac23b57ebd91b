"""The tables: their numbers against the frames, and their pages."""

from __future__ import annotations

import contextlib

import frame_builder
import numpy as np
import pandas as pd
import planted
import pytest
from frame_builder import EMPTY, FULL, build, frames_of, nested

from spat.data.registry import DATASETS
from spat.models.registry import MODELS, Shape, setup
from spat.models.registry import build as build_model
from spat.study import accuracy
from spat.study.efficiency import PAPER_AVERAGES
from spat.study.methods import at_ratio
from spat.study.pages.page import Absent
from spat.study.pages.reader import Frames
from spat.study.pages.registry import rendered, tables
from spat.study.reproduction import authors_code, published
from spat.study.statistics.tests import detectable

TABLES = tables()
CELL = {"dataset": "ETTh1", "model": "iTransformer"}


def errors(frames: Frames, mask: str, phase: str, metric: str = "mse", **cell: object) -> pd.Series:
    """Test errors by seed, straight from the frame."""
    rows = frames.results
    rows = rows[(rows["split"] == "test") & (rows["order"] == 0)]
    wanted = {**CELL, "target": cell.get("dataset", "ETTh1"), "mask": mask, "phase": phase, **cell}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows.set_index("seed")[metric].sort_index()


def one(table: pd.DataFrame, **keys: object) -> pd.Series:
    for column, value in keys.items():
        table = table[table[column].astype(str) == str(value)]
    assert len(table) == 1, table
    return table.iloc[0]


# main


def test_main_gives_mean_deviation_and_number_of_seeds() -> None:
    table = TABLES["main"].function(frames_of())
    dense = errors(frames_of(), FULL, "dense")
    row = one(table, **CELL, metric="MSE", method="dense")
    assert row["mean"] == pytest.approx(dense.mean())
    assert row["sd"] == pytest.approx(dense.std(ddof=1))
    assert (row["n"], row["missing"]) == (3, 0)
    mae = errors(frames_of(), EMPTY, "finetuned", "mae")
    assert one(table, **CELL, metric="MAE", method="none left")["mean"] == pytest.approx(mae.mean())


def test_main_compares_with_dense_and_control_paired_by_seed() -> None:
    table = TABLES["main"].function(frames_of())
    dense, control = (errors(frames_of(), FULL, phase) for phase in ("dense", "finetuned"))
    spat = errors(frames_of(), nested("send", 0.5).name, "finetuned")
    row = one(table, **CELL, metric="MSE", method="control")
    assert row["vs_dense"] == pytest.approx((100 * (control / dense - 1)).mean())
    assert row["vs_dense"] < 0
    assert row["vs_control"] == 0
    gain = one(table, **CELL, metric="MSE", method=accuracy.GAIN)
    paired = 100 * (spat / control - 1)
    assert (gain["mean"], gain["sd"]) == pytest.approx((paired.mean(), paired.std(ddof=1)))
    assert gain["unit"] == "%"


def test_main_leads_with_the_change_against_the_better_of_dense_and_control() -> None:
    made = build()
    rows, chosen = made["results"], made["selections"]
    # The control of seed 0 is the better one by validation and the dense model of the others, so
    # that neither is the reference of all.
    whole = (rows["mask"] == FULL) & (rows["split"] == "validation") & (rows["order"] == 0)
    rows.loc[whole & (rows["phase"] == "dense"), "mse"] = 2.0
    rows.loc[whole & (rows["phase"] == "finetuned"), "mse"] = 1.0
    rows.loc[whole & (rows["phase"] == "dense") & (rows["seed"] > 0), "mse"] = 0.5
    frames = Frames.of(**made)
    table = TABLES["main"].function(frames)
    assert list(table["method"].cat.categories)[:3] == [accuracy.BETTER, "dense", "control"]
    assert rendered("main", frames)["md"].splitlines()[2].split(" | ")[3] == accuracy.BETTER
    own = chosen.query("rule == 'validation' and dataset == 'ETTh1' and model == 'iTransformer'")
    masks = own.set_index("seed")["mask"]
    changes = {}
    for metric in ("mse", "mae"):
        dense, control = (errors(frames, FULL, p, metric) for p in ("dense", "finetuned"))
        spat = pd.Series({s: errors(frames, m, "finetuned", metric)[s] for s, m in masks.items()})
        better = dense.where(dense.index > 0, control)
        changes[metric] = 100 * (spat / better - 1).mean()
        lead = one(table, **CELL, metric=metric.upper(), method=accuracy.BETTER)
        assert (lead["mean"], lead["unit"]) == (pytest.approx(changes[metric]), "%")
    row = one(table, **CELL, metric="MSE", method="SPAT (val.)")
    assert row["vs_better"] == pytest.approx(changes["mse"]) != pytest.approx(row["vs_control"])


def test_main_takes_the_mask_that_validation_chose_for_each_seed() -> None:
    made = build()
    chosen = made["selections"]["rule"] == "validation"
    other = chosen & (made["selections"]["seed"] == 1)
    made["selections"].loc[other, "mask"] = nested("send", 0.25).name
    table = TABLES["main"].function(Frames.of(**made))
    masks = [nested("send", ratio).name for ratio in (0.5, 0.25, 0.5)]
    expected = [errors(frames_of(), mask, "finetuned")[seed] for seed, mask in enumerate(masks)]
    row = one(table, **CELL, metric="MSE", method="SPAT (val.)")
    assert row["mean"] == pytest.approx(np.mean(expected))


def test_main_puts_a_baseline_beside_every_variant() -> None:
    made, other = build(), build(variant="published", models=("iTransformer", "DLinear"))
    made = {
        name: pd.concat([frame, other[name]], ignore_index=True) for name, frame in made.items()
    }
    rows = made["results"]
    made["results"] = rows[(rows["model"] != "DLinear") | (rows["variant"] == "published")]
    table = TABLES["main"].function(Frames.of(**made))
    table = table[(table["method"] == "DLinear") & (table["metric"] == "MSE")]
    errors = table[table["dataset"] == "ETTh1"].set_index(["model", "variant"])["mean"]
    assert {*errors.index} >= {("iTransformer", "deep"), ("iTransformer", "published")}
    assert (errors == errors.iloc[0]).all()


def test_main_puts_a_rival_that_was_not_pruned_beside_the_others() -> None:
    made = build()
    rows = made["results"]
    rival = rows[(rows["model"] == "PatchTST") & (rows["phase"] == "dense")]
    rival = rival.assign(model="SAMformer", variant="published", mse=0.5)
    made["results"] = pd.concat([rows, rival], ignore_index=True)
    table = TABLES["main"].function(Frames.of(**made))
    assert "SAMformer" not in set(table["model"])
    rivals = table[(table["method"] == "SAMformer") & (table["metric"] == "MSE")]
    assert set(rivals["model"]) == set(frame_builder.ATTENTION)
    assert (rivals["mean"] == 0.5).all()
    alone = TABLES["main"].function(Frames.of(results=rival))
    assert set(alone["model"]) == {"SAMformer"} and set(alone["method"]) == {"dense"}


def test_main_gives_a_mask_once_under_its_smallest_ratio() -> None:
    made = build()
    send = (made["selections"]["criterion"] == "send") & (made["selections"]["level"] == "site")
    half = send & (made["selections"]["ratio"] == 0.5)
    made["selections"].loc[half, "mask"] = nested("send", 0.25).name
    made["selections"].loc[half, "removed"] = 1
    methods = set(TABLES["main"].function(Frames.of(**made))["method"])
    assert at_ratio(0.25) in methods
    assert at_ratio(0.5) not in methods
    assert at_ratio(1.0) not in methods  # it is `none left`


def test_main_counts_and_shows_runs_that_diverged() -> None:
    made = build()
    rows = made["results"]
    lost = (rows["mask"] == EMPTY) & (rows["model"] == "iTransformer") & (rows["seed"] == 0)
    lost |= (rows["mask"] == nested("send", 0.25).name) & (rows["model"] == "iTransformer")
    rows.loc[lost, ["mse", "mae"]] = np.nan
    rows.loc[lost, "status"] = "diverged"
    frames = Frames.of(**made)
    row = one(TABLES["main"].function(frames), **CELL, metric="MSE", method="none left")
    assert (row["n"], row["missing"]) == (2, 1)
    line = next(x for x in rendered("main", frames)["md"].splitlines() if "iTransformer" in x)
    assert "(1 diverged)" in line
    assert "| diverged |" in line
    shown = set()
    for name in TABLES:
        with contextlib.suppress(Absent):
            rendered(name, frames)
            shown.add(name)
    # Nothing of these was run; no table is lost because a run diverged.
    assert set(TABLES) - shown == {
        "controls",
        "leave_one_out",
        "rivals",
        "robustness",
    }


def test_main_ignores_other_data_orders_and_the_validation_split() -> None:
    frames = frames_of(orders=3)
    pd.testing.assert_frame_equal(
        TABLES["main"].function(frames), TABLES["main"].function(frames_of())
    )


def test_dlinear_appears_in_the_cells_of_another_variant() -> None:
    made = build()
    rows = made["results"]
    rows.loc[rows["model"] == "DLinear", "variant"] = "published"
    table = TABLES["main"].function(Frames.of(**made))
    expected = errors(frames_of(), "none", "dense", model="DLinear").mean()
    row = one(table, **CELL, metric="MSE", method="DLinear")
    assert row["mean"] == pytest.approx(expected)
    assert row["variant"] == "deep"


def test_intervals_of_changes_contain_the_change() -> None:
    table = TABLES["changes"].function(frames_of())
    control = errors(frames_of(), FULL, "finetuned").mean()
    empty = errors(frames_of(), EMPTY, "finetuned").mean()
    row = one(table, **CELL, method="none left")
    assert row["mean"] == pytest.approx(100 * (empty / control - 1), abs=1e-3)
    assert row["low"] < row["mean"] < row["high"]
    assert not {"dense", "control"} & set(table["method"])


def over_sources(datasets: list[str], horizons: list[int]) -> pd.DataFrame:
    """The table where no attention is 4 % better than the control on the second source, else 2."""

    def error(keys: planted.Keys, mask: str, _: int) -> float:
        gain = 0.04 if keys["dataset"] == datasets[1] else 0.02
        return 1.0 - gain * (mask == planted.EMPTY) + 0.001 * keys["seed"]

    of = planted.runs(datasets, seeds=2, horizons=horizons)
    results = planted.results(of, error, masks=[planted.FULL, planted.EMPTY])
    table = TABLES["by_source"].function(Frames.of(results=results))
    assert set(table["method"]) == {"none left"}
    return table.set_index("measure")


def test_sources_are_averaged_and_tested_as_one_each() -> None:
    few = over_sources(["ETTh1", "ETTh2", "ETTm1"], [96, 192])
    mean = few.loc["mean of sources"]
    assert mean["n"] == 2, "ETTm1 is the same source as ETTh1"
    assert mean["mean"] == pytest.approx(-3.0, abs=0.01)
    assert "p (Wilcoxon, Holm)" not in few.index
    assert few.loc["mixed model", "low"] < -3.0 < few.loc["mixed model", "high"]
    many = over_sources(["ETTh1", "ETTh2", "Weather", "Exchange", "ILI", "Electricity"], [96])
    assert many.loc["p (Wilcoxon, Holm)", "mean"] == pytest.approx(2 / 2**6)
    assert "mixed model" not in many.index, "no source has several cells"


def test_the_table_by_source_needs_several_sources() -> None:
    of = planted.results(planted.runs(), lambda k, m, o: 1.0)
    with pytest.raises(Absent, match="come from ETT1:"):
        rendered("by_source", Frames.of(results=of))


def test_controls_put_training_from_scratch_beside_fine_tuning() -> None:
    table = TABLES["controls"].function(frames_of(scratch=True))
    tuned, scratch = (
        one(table, **CELL, method="none left", measure=measure)["mean"]
        for measure in ("MSE", "MSE, from scratch")
    )
    assert scratch - tuned == pytest.approx(0.011, abs=1e-3)
    assert "narrow" not in set(table["method"])


def test_controls_test_whether_training_from_scratch_is_equivalent() -> None:
    frames = frames_of(scratch=True)
    table = TABLES["controls"].function(frames)
    rows = table[table["measure"] == "MSE, from scratch vs fine-tuned"]
    row = one(rows, **CELL, method="none left", horizon=96)
    tuned, scratch = (errors(frames, EMPTY, phase).mean() for phase in ("finetuned", "scratch"))
    assert row["mean"] == pytest.approx(100 * (scratch / tuned - 1), abs=1e-3)
    assert row["low"] <= row["mean"] <= row["high"] and not row["equivalent"]
    assert table.loc[table["measure"] == "MSE", "low"].isna().all()


def test_controls_put_other_variants_beside_the_masks() -> None:
    made = build(controls={"narrow": 0.02, "dropout0.2": 0.004, "dropout0.3": -0.001})
    rows = made["results"]
    of = (rows["variant"] == "deep+dropout0.3") & (rows["seed"] == 1)
    rows.loc[of & (rows["split"] == "validation"), "mse"] += 0.1
    table = TABLES["controls"].function(Frames.of(**made))
    dense = errors(frames_of(), FULL, "dense")
    control = errors(frames_of(), FULL, "finetuned")
    narrow = one(table, **CELL, method="narrow", measure="MSE")
    assert (narrow["mean"], narrow["n"]) == (pytest.approx(dense.mean() + 0.02), 3)
    versus = one(table, **CELL, method="narrow", measure="MSE vs control")["mean"]
    assert versus == pytest.approx((100 * ((dense + 0.02) / control - 1)).mean())
    # Seed 1 is best left as it is, whatever it does on test.
    dropout = one(table, **CELL, method="dropout (tuned)", measure="MSE")
    assert dropout["mean"] == pytest.approx(dense.mean() + (-0.001 + 0 - 0.001) / 3)
    assert dropout["values"] == "0.3: 2, base: 1"
    assert set(table["variant"]) == {"deep"}


def test_variants_that_are_controls_appear_in_no_other_table() -> None:
    frames = frames_of(controls={"narrow": 0.02})
    assert len(frames.controls) == 2 * 2 * 3 * 2  # models, datasets, seeds, splits
    for name in ("main", "efficiency", "changes", "zeroshot"):
        assert rendered(name, frames) == rendered(name, frames_of()), name
    assert set(frames.history["variant"]) == {"deep"}


# efficiency


def test_efficiency_gives_costs_and_their_change() -> None:
    table = TABLES["efficiency"].function(frames_of())
    dense = one(table, **CELL, metric="FLOPs", method="dense")
    assert (dense["mean"], dense["unit"]) == (40e6, "FLOPs")
    half = one(table, **CELL, metric="FLOPs", method=at_ratio(0.5))
    assert half["mean"] == pytest.approx(-20.0)
    assert half["absolute"] == 32e6
    latency = one(table, **CELL, metric="Latency", method="none left")
    assert latency["mean"] == pytest.approx(100 * ((2 + 2.4) / (2 + 4.0) - 1))
    assert one(table, **CELL, metric="Latency", method="dense")["mean"] == pytest.approx(6.0)


def test_efficiency_ends_with_our_averages_beside_the_papers() -> None:
    table = TABLES["efficiency"].function(frames_of())
    averages = table[table["dataset"] == "average"]
    for name, value in PAPER_AVERAGES.items():
        row = one(averages, metric=name, method="paper")
        assert row["mean"] == value
        assert row["publication"] == "arXiv 2505.08768"
    assert PAPER_AVERAGES == {
        "MSE": -2.842, "MAE": -1.996, "FLOPs": -35.274, "Parameters": -28.191
    }  # fmt: skip
    average_row = one(averages, metric="FLOPs", method="SPAT (val.)")
    assert average_row["mean"] == pytest.approx(-20.0)
    assert average_row["runs"] == 12


def test_averages_weigh_sources_and_not_datasets() -> None:
    frames = frames_of(datasets=("ETTh1", "ETTm1", "ETTh2"), models=("iTransformer",), pairs=())
    table = TABLES["efficiency"].function(frames)
    cells = table[(table["metric"] == "MSE") & (table["method"] == "none left")]
    change = cells.set_index("dataset")["mean"]
    expected = ((change["ETTh1"] + change["ETTm1"]) / 2 + change["ETTh2"]) / 2
    assert change["average"] == pytest.approx(expected)


# zero-shot


def test_zeroshot_compares_on_the_target() -> None:
    table = TABLES["zeroshot"].function(frames_of())
    pair = {"dataset": "ETTh1", "target": "ETTh2", "model": "iTransformer", "metric": "MSE"}
    away = errors(frames_of(), FULL, "dense", target="ETTh2").mean()
    assert one(table, **pair, method="dense")["mean"] == pytest.approx(away)
    home = errors(frames_of(), FULL, "dense", dataset="ETTh2").mean()
    assert one(table, **pair, method="trained on target")["mean"] == pytest.approx(home)
    naive = errors(frames_of(), "none", "dense", dataset="ETTh2", model="RepeatLast")
    assert one(table, **pair, method="repeat last")["mean"] == pytest.approx(naive[0])
    linear = errors(frames_of(), "none", "dense", model="DLinear", target="ETTh2").mean()
    assert one(table, **pair, method="DLinear")["mean"] == pytest.approx(linear)


def test_zeroshot_subtracts_the_gain_at_home() -> None:
    table = TABLES["zeroshot"].function(frames_of())
    mask = nested("send", 0.5).name

    def gain(target: str) -> pd.Series:
        spat = errors(frames_of(), mask, "finetuned", target=target)
        return 100 * (1 - spat / errors(frames_of(), FULL, "finetuned", target=target))

    row = one(table, dataset="ETTh1", target="ETTh2", model="iTransformer", unit="pp")
    assert row["mean"] == pytest.approx((gain("ETTh2") - gain("ETTh1")).mean())


def test_training_on_the_target_is_not_ranked() -> None:
    for line in rendered("zeroshot", frames_of())["md"].splitlines():
        if line.startswith("| ETT"):
            assert "*" not in line.split("|")[-3], "trained on target is no zero-shot forecast"


# criteria and levels


def test_criteria_average_draws_within_seeds_and_know_the_mean_of_all_masks() -> None:
    table = TABLES["criteria"].function(frames_of())
    site = {**CELL, "level": "modules", "share": "50 %"}
    rows = frames_of().results.query(
        "dataset == 'ETTh1' and target == 'ETTh1' and model == 'iTransformer' and split == 'test' "
        "and phase == 'finetuned'"
    )
    pairs = rows[rows["mask"].map(lambda mask: sorted(mask.split(".")) == ["0", "0", "1", "1"])]
    assert len(pairs) == 6 * 3
    expected = pairs["mse"].mean()
    row = one(table, **site, criterion="(mean of all masks)")
    assert (row["mean"], row["n"]) == (pytest.approx(expected), 3)
    masks = frames_of().selections.query(
        "criterion == 'random' and level == 'site' and ratio == 0.5 and seed == 0 "
        "and dataset == 'ETTh1' and model == 'iTransformer'"
    )["mask"]
    drawn = np.mean([errors(frames_of(), mask, "finetuned").mean() for mask in masks])
    row = one(table, **site, criterion="random")
    assert (row["mean"], row["n"]) == (pytest.approx(drawn), 3)
    assert "100 %" not in set(table["share"])


def test_heads_and_modules_are_paired_at_an_equal_share() -> None:
    table = TABLES["heads_vs_modules"].function(frames_of())
    keys = {**CELL, "criterion": "michel", "share": "25 %", "metric": "MSE"}
    modules = errors(frames_of(), nested("michel", 0.25).name, "finetuned")
    heads = errors(frames_of(), frame_builder.head_mask("michel", 0.25).name, "finetuned")
    assert one(table, **keys, method="modules")["mean"] == pytest.approx(modules.mean())
    assert one(table, **keys, method="heads")["mean"] == pytest.approx(heads.mean())
    change = one(table, **keys, method="heads vs modules")["mean"]
    assert change == pytest.approx((100 * (heads / modules - 1)).mean())
    assert set(table["matched"]) == {"share"}
    flops = one(table, **{**keys, "metric": "FLOPs"}, method="modules")
    assert flops["mean"] == 36e6


def test_quality_finds_the_criterion_that_knows_the_truth() -> None:
    table = TABLES["quality"].function(frames_of())
    gains = table[table["measure"] == "gain over chance"].set_index(["model", "criterion"])["mean"]
    for model in frame_builder.ATTENTION:
        assert gains[model].idxmax() == "send"
        assert gains[model]["send"] > 0 > gains[model]["send_reverse"]
    regret = table[table["measure"] == "regret (hindsight)"].set_index(["model", "criterion"])
    assert regret.loc[("iTransformer", "send"), "mean"] == pytest.approx(0, abs=0.05)
    p = (
        table[table["unit"] == "p"]
        .set_index(["measure", "model", "criterion"])["mean"]
        .sort_index()
    )
    for model in frame_builder.ATTENTION:
        assert p["p: no gain (Holm)", model, "send"] < 0.05
        family = gains[model].index
        agreement = p["p: no agreement (Holm)", model]
        assert set(agreement.index) == set(family) - {"random"}
        assert agreement["send"] < 0.05 < agreement.max() <= 1.0


def test_quality_of_a_cell_is_that_of_its_runs_alone() -> None:
    table = TABLES["quality_cells"].function(frames_of())
    whole = TABLES["quality"].function(frames_of())
    keys = {"model": "iTransformer", "criterion": "send", "measure": "gain over chance"}
    cells = [one(table, **keys, dataset=name)["mean"] for name in ("ETTh1", "ETTh2")]
    assert np.mean(cells) == pytest.approx(one(whole, **keys)["mean"])
    assert not table["measure"].astype(str).str.startswith("regret").any()


# published numbers


@pytest.mark.parametrize(
    ("model", "dataset", "mse", "mae"),
    [
        ("iTransformer", "ETTh1", 0.386, 0.405),
        ("iTransformer", "ETTh2", 0.297, 0.349),
        ("PatchTST", "ETTh1", 0.414, 0.419),
        ("PatchTST", "ETTh2", 0.302, 0.348),
        ("DLinear", "ETTh1", 0.386, 0.400),
    ],
)
def test_published_numbers(model: str, dataset: str, mse: float, mae: float) -> None:
    row = one(published(), model=model, dataset=dataset, horizon=96)
    assert (row["mse"], row["mae"]) == (mse, mae)


def test_published_numbers_are_of_known_models_and_protocols() -> None:
    table = published()
    assert not table.duplicated(["model", "dataset", "lookback", "horizon"]).any()
    assert table.notna().all(axis=None)
    assert table["publication"].str.len().gt(20).all()
    assert set(table["model"]) <= set(MODELS)
    for row in table.itertuples():
        dataset = DATASETS[str(row.dataset)]
        assert row.lookback == dataset.lookback
        assert row.horizon in dataset.horizons


def test_reproduction_judges_by_three_percent() -> None:
    made = build(datasets=("ETTh1",), variant="published", pairs=())
    rows = made["results"]
    theirs = published().query("dataset == 'ETTh1' and horizon == 96").set_index("model")
    for model, factor in (("iTransformer", 1.029), ("PatchTST", 1.031), ("DLinear", 0.9)):
        rows.loc[rows["model"] == model, "mse"] = factor * theirs.loc[model, "mse"]
    table = TABLES["reproduction"].function(Frames.of(**made))
    verdicts = table[table["metric"] == "MSE"].groupby("model")["verdict"].first().to_dict()
    assert verdicts == {"iTransformer": "within 3 %", "PatchTST": "worse", "DLinear": "better"}
    change = one(table, model="PatchTST", metric="MSE", method="change")
    assert change["mean"] == pytest.approx(3.1)


def test_reproduction_leaves_out_our_own_depth() -> None:
    table = TABLES["reproduction"].function(frames_of())
    assert set(table["model"]) == {"DLinear"}


# the ablation


def test_adaptive_compares_with_the_ratio_of_the_other_source() -> None:
    made = build(models=("iTransformer",), pairs=())
    chosen = made["selections"]["rule"] == "validation"
    made["selections"].loc[chosen, "mask"] = nested("send", 0.75).name
    table = TABLES["adaptive"].function(Frames.of(**made))
    place = {"model": "iTransformer", "source": "ETT1"}
    control = errors(frames_of(), FULL, "finetuned")
    pruned = errors(frames_of(), nested("send", 0.75).name, "finetuned")
    rule = {**place, "rule": "auto:validation"}
    change = one(table, **rule, measure="MSE vs control")
    assert (change["mean"], change["n"]) == (
        pytest.approx((100 * (pruned / control - 1)).mean()),
        3,
    )
    assert change["low"] < change["mean"] < change["high"]
    # On both sources the second ratio has the least validation error.
    fixed = {**place, "rule": "fixed ratio"}
    assert one(table, **fixed, measure="ratio")["mean"] == 0.5
    theirs = errors(frames_of(), nested("send", 0.5).name, "finetuned")
    versus = one(table, **rule, measure="MSE vs fixed ratio")["mean"]
    assert versus == pytest.approx((100 * (pruned / theirs - 1)).mean())
    spent = {r: one(table, **place, rule=r, measure="fine-tunings")["mean"]
             for r in ("auto:validation", "fixed ratio")}  # fmt: skip
    assert spent == {"auto:validation": 4, "fixed ratio": 1}
    sources = [
        one(table, rule="auto:validation", source=s, measure="MSE vs control")["mean"]
        for s in ("ETT1", "ETT2", "all")
    ]
    assert sources[2] == pytest.approx(np.mean(sources[:2]))


def test_stability_of_scores_whose_noise_is_planted() -> None:
    of = planted.runs(["ETTh1", "ETTh2"], seeds=4)
    values = {
        "send": lambda keys: (1.0, 2.0, 3.0, 4.0),
        "odd": lambda keys: (1.0, 2.0, 3.0, 4.0) if keys["seed"] else (4.0, 3.0, 2.0, 1.0),
    }
    noisy = planted.scores(of, {"send": values["send"]}, batches=32, noise=1.5)
    calm = planted.scores(of, {"odd": values["odd"]}, batches=32)
    table = TABLES["stability"].function(Frames.of(scores=pd.concat([noisy, calm])))
    assert list(table["criterion"].unique()) == ["send", "odd"]
    measures = table.set_index(["criterion", "measure"])
    expected = 1.5 * np.mean([1, 1 / 2, 1 / 3, 1 / 4])
    assert measures.loc[("send", "CV, 1 batch"), "mean"] == pytest.approx(expected, rel=0.1)
    assert measures.loc[("send", "CV, 4 batches"), "mean"] == pytest.approx(expected / 2, rel=0.2)
    one_batch, four = (
        measures.loc[("send", f"tau-b, {n}"), "mean"] for n in ("1 batch", "4 batches")
    )
    assert 0.3 < one_batch < four < 1
    needed, others = (
        measures.loc[("send", m), "mean"] for m in ("batches needed", "needed, other batches")
    )
    assert 4 < needed <= 32
    assert np.isnan(others) or others >= needed / 2
    assert measures.loc[("odd", "batches needed"), "mean"] == 1
    # Of six pairs of seeds three are reversed.
    seeds = measures.loc[("odd", "tau-b, seeds")]
    assert (seeds["mean"], seeds["n"]) == (pytest.approx(0), 8)
    # Reversed after the first epoch, as at the end after the others; the kept one does not count.
    assert measures.loc[("send", "tau-b, epochs"), "mean"] == pytest.approx(0.5)
    assert ("odd", "tau-b, epochs") not in measures.index


@pytest.mark.parametrize(
    ("worth", "noise", "ranking"),
    [
        ((0.04, -0.06, 0.02, -0.03), 0.001, "yes"),
        ((0.0, 0.0, 0.0, 0.0), 0.02, "no"),
        ((0.012, -0.012, 0.012, -0.012), 0.02, "below noise"),
    ],
)
def test_replicates_say_whether_there_is_a_ranking(
    worth: tuple[float, ...], noise: float, ranking: str
) -> None:
    plain = planted.additive(worth)
    of = planted.runs(seeds=12)
    drawn = noise * np.random.default_rng(0).standard_normal((12, 16, 3))

    def error(keys: planted.Keys, mask: str, order: int) -> float:
        return plain(mask) + drawn[keys["seed"], planted.MASKS.index(mask), order]

    table = TABLES["replicates"].function(Frames.of(results=planted.results(of, error, orders=3)))
    rows = table[table["removed"] == "all"].set_index("measure")
    assert set(rows["ranking"]) == {ranking}
    assert (rows.loc["F", "mean"] > 5) == (ranking == "yes")
    assert rows.loc["sd of orders (%)", "mean"] == pytest.approx(100 * noise, rel=0.1)
    last = table[table["removed"] == "4"]
    assert set(last["ranking"]) == {"one mask"}
    assert set(last["measure"]) == {"sd of seeds (%)", "detectable (%)"}
    agreement = table[table["measure"] == "tau-b, orders"]["mean"].item()
    assert (agreement > 0.5) == (ranking == "yes")


def test_detectable_differences_of_seeds_need_no_replicates() -> None:
    table = TABLES["replicates"].function(frames_of())
    assert set(table["ranking"]) == {"not replicated", "one mask"}
    control = errors(frames_of(), FULL, "finetuned")
    sd = (errors(frames_of(), EMPTY, "finetuned") / control - 1).std(ddof=1)
    row = one(table, **CELL, removed=4, measure="detectable (%)")
    assert (row["mean"], row["n"]) == (pytest.approx(100 * detectable(sd, 3)), 3)


def test_send_uniformity_correlates_send_with_uniformity() -> None:
    of = planted.runs(seeds=10)
    values = {
        "send": lambda keys: (1.0, 2.0, 3.0, 4.0),
        # Two seeds of ten the other way round.
        "uniformity": lambda keys: (4, 3, 2, 1) if keys["seed"] > 1 else (1, 2, 3, 4),
    }
    table = TABLES["send_uniformity"].function(Frames.of(scores=planted.scores(of, values)))
    row = one(table, places="sites", measure="rho within a run")
    assert (row["mean"], row["n"]) == (pytest.approx(-0.6), 10)
    assert -1 <= row["low"] < -0.6 < row["high"] < 0.5
    together = one(table, places="sites", measure="rho, all runs")
    assert together["mean"] == pytest.approx(-0.6)
    assert set(table["places"]) == {"sites", "heads"}


def test_precision_shows_where_float32_fails() -> None:
    table = TABLES["precision"].function(frames_of())
    bias = table[table["measure"] == "relative error"].set_index(["keys", "loss"])["mean"].abs()
    assert bias[7, "of each window"] < bias[42, "of each window"] < 1e-4
    assert 0.1 < bias[321, "of each window"] < 0.3
    erased = table[table["measure"] == "rows that become 0"].set_index(["keys", "loss"])["mean"]
    assert erased[321, "mean of 32 windows"] > 0.5


# ----------------------------------------------------------------------------------------
# the systems at their own settings


def test_rivals_compares_each_network_with_the_code_of_its_authors() -> None:
    made = build(datasets=("ETTh1",), variant="published", pairs=())
    theirs = authors_code().set_index("model")
    rows = made["results"]
    names = {"iTransformer": "SAMformer", "PatchTST": "S-Mamba"}
    for frame in made.values():
        if "model" in frame:
            frame["model"] = frame["model"].replace(names)
    table = TABLES["rivals"].function(Frames.of(**made))
    dense = rows[(rows["phase"] == "dense") & (rows["split"] == "test")].set_index("model")
    for model in ("SAMformer", "S-Mamba", "DLinear"):
        row = {"model": model}
        mean = one(table, **row, method="MSE")["mean"]
        assert mean == pytest.approx(dense.loc[[model], "mse"].mean())
        assert one(table, **row, method="MSE, authors' code")["mean"] == theirs.loc[model, "mse"]
        counted = dense.loc[[model], "params"].iloc[0]
        assert one(table, **row, method="parameters")["mean"] == counted
    assert one(table, model="S-Mamba", method="MSE, published")["mean"] == 0.386
    assert "share of windows" not in set(table["method"])
    assert "parameters less authors' code" not in set(table["method"]), "these have other sizes"
    of_model = rows["model"] == "S-Mamba"
    rows["params"] = rows["params"].mask(of_model & (rows["phase"] == "dense"), 1_145_696)
    table = TABLES["rivals"].function(Frames.of(**made))
    counted = table[table["method"] == "parameters less authors' code"]
    assert counted[["model", "mean"]].to_numpy().tolist() == [["S-Mamba", -4928]]
    rows.loc[rows["model"] == "S-Mamba", "share"] = 0.25
    table = TABLES["rivals"].function(Frames.of(**made))
    shares = table[table["method"] == "share of windows"]
    assert shares[["model", "mean"]].to_numpy().tolist() == [["S-Mamba", 0.25]]
    assert not {"RepeatLast", "SeasonalNaive"} & set(table["model"]), "they are not trained"


def test_rivals_needs_three_models_with_errors_of_their_authors() -> None:
    with pytest.raises(Absent, match="errors for fewer than 3"):
        rendered("rivals", frames_of())


def test_authors_code_has_the_parameters_of_our_models() -> None:
    """Less those that the code of S-Mamba never uses (`authors_parameters.csv`)."""
    unused = {"S-Mamba": 4928}
    table = authors_code()
    assert not table.duplicated(["model", "variant", "dataset", "lookback", "horizon"]).any()
    for row in table.itertuples():
        shape = Shape(int(row.lookback), int(row.horizon), DATASETS[str(row.dataset)].channels, 4)
        made = setup(str(row.model), str(row.variant), str(row.dataset), shape.horizon)
        model = build_model(str(row.model), made.settings, shape)
        used = int(row.parameters) - unused.get(str(row.model), 0)
        assert sum(p.numel() for p in model.parameters()) == used, row.model


def test_results_without_send_show_the_masks_of_send_window() -> None:
    """Results without `send` show the masks of `send_window` as SPAT, and a note says so."""
    made = frames_of()
    rows = made.selections
    rows = rows[rows["criterion"] != "send_window"]
    old = rows.replace({"criterion": {"send": "send_window"}})
    pages = [
        rendered("main", Frames.of(results=made.results, selections=chosen))["md"]
        for chosen in (rows, old)
    ]
    note = " In these results SEND and the masks of SPAT are those of the criterion `send_window`."
    assert "SPAT 50 %" in pages[0]
    assert note not in pages[0]
    assert pages[1].replace(note, "") == pages[0]
