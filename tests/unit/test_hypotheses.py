"""The declared hypotheses, the references and rivals they compare with, and the checked gains."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import planted
import pytest
import scipy.stats
from frame_builder import frames_of
from planted import EMPTY, FULL, MASKS

from spat.attention.mask import WITHOUT_SITES
from spat.models.registry import FORECASTERS
from spat.study import gains, hypotheses, methods, replicates
from spat.study.criteria import mask_changes
from spat.study.hypotheses import FAMILIES, H1, H2, H3, holm_over_claims
from spat.study.pages.reader import Frames
from spat.study.pages.registry import draw, tables
from spat.study.statistics.tests import holm

TABLES = tables()
SOURCES = ("ETTh1", "ETTh2", "Weather", "Exchange", "ILI", "Appliances", "BeijingPM25")
WORTH = (0.02, -0.03, 0.04, 0.01)
# SEND removes the sites 1, 3, 0, 2 in this order.
SEND = (0.3, 0.1, 0.4, 0.2)


def effect(keys: planted.Keys) -> float:
    """A different number for each dataset and seed."""
    return 0.01 * (SOURCES.index(keys["dataset"]) - 2) + 0.001 * keys["seed"]


def made(datasets: tuple[str, ...] = SOURCES) -> Frames:
    """Pruned runs, with their dense models, a linear rival and an attention rival."""
    of = planted.runs(datasets, seeds=2)
    plain = planted.additive(WORTH)

    def error(keys: planted.Keys, mask: str, order: int) -> float:
        return plain(mask) + effect(keys) * (mask != FULL)

    tuned = planted.results(of, error)
    # The dense model is better than the control on every second source.
    dense = planted.results(
        of, lambda k, m, o: 1.0 + (-1) ** SOURCES.index(k["dataset"]) * 0.005,
        masks=[FULL], phase="dense",
    )  # fmt: skip
    others = [
        planted.results(
            planted.runs(datasets, seeds=2, model=model), lambda k, m, o, e=e: e,
            masks=[WITHOUT_SITES if model != "SAMformer" else FULL], phase="dense",
        )
        for model, e in (("DLinear", 1.1), ("RLinear", 1.02), ("SAMformer", 0.9))
    ]  # fmt: skip
    results = pd.concat([tuned, dense, *others], ignore_index=True)
    worse = (results["model"] == "RLinear") & (results["split"] == "validation")
    results.loc[worse & (results["dataset"] == "ETTh2"), "mse"] = 2.0
    results["mae"] = results["mse"]
    chosen = pd.DataFrame(
        [planted.decision(k, "send", "1.0.1.1", rule="validation", finetunings=5) for k in of]
    )
    selections = planted.selections(of, {"send": lambda keys: SEND})
    chosen = planted.wide("selections", chosen).drop(columns="control_of")
    scores = planted.scores(of, {"send": lambda keys: SEND}, batches=2)
    selections = pd.concat([selections, chosen], ignore_index=True)
    return Frames.of(results=results, selections=selections, scores=scores)


def test_the_reference_is_the_better_by_validation_of_dense_and_control() -> None:
    references = methods.references(made().results)
    dense = references["dataset"].map(lambda name: SOURCES.index(name) % 2 == 1)
    assert (references["phase"] == np.where(dense, "dense", "finetuned")).all()
    assert references["mse"].to_numpy() == pytest.approx(np.where(dense, 0.995, 1.0))
    assert len(references) == 2 * len(SOURCES)


def test_a_rival_is_the_best_by_validation_of_its_family() -> None:
    results = made().results
    linear = hypotheses.rivals(results, "baseline")
    assert set(linear.loc[linear["dataset"] == "ETTh2", "rival"]) == {"DLinear"}
    assert set(linear.loc[linear["dataset"] != "ETTh2", "rival"]) == {"RLinear"}
    attention = hypotheses.rivals(results, "attention")
    assert set(attention["rival"]) == {"SAMformer"}, "the pruned model is no rival of itself"


def test_scans_and_language_models_are_families_of_their_own() -> None:
    members = {name: {m for m in FORECASTERS if methods.family(m) == name} for name in FAMILIES}
    assert members["scan"] == {"S-Mamba", "Mamba", "TimeMachine"}
    assert {name.split("-")[0] for name in members["language"]} == {"GPT4TS", "Time"}
    assert {"PatchTST", "SAMformer", "FEDformer"} < members["attention"]
    assert {"DLinear", "TiDE"} < members["baseline"]
    results = made().results.replace({"model": {"SAMformer": "S-Mamba"}})
    assert set(hypotheses.rivals(results, "scan")["rival"]) == {"S-Mamba"}
    assert hypotheses.rivals(results, "attention").empty


def test_claims_are_tested_over_sources() -> None:
    table = TABLES["hypotheses"].function(made())
    rows = table[table["metric"] == "MSE"].set_index(["hypothesis", "measure"])
    reference = np.array([0.995 if i % 2 else 1.0 for i in range(7)])
    shift = np.array([0.01 * (i - 2) + 0.0005 for i in range(7)])
    pruned = 100 * ((0.97 + shift) / reference - 1)  # without site 1
    mean = rows.loc[(H1, "mean of sources")]
    assert mean["mean"] == pytest.approx(pruned.mean(), abs=1e-4) and mean["n"] == 7
    interval = scipy.stats.ttest_1samp(pruned, 0.0).confidence_interval(0.95)
    assert (mean["low"], mean["high"]) == pytest.approx((interval.low, interval.high), abs=1e-3)
    p = scipy.stats.wilcoxon(pruned).pvalue
    assert rows.loc[(H1, "p (signed rank)"), "mean"] == pytest.approx(p)
    worse = scipy.stats.wilcoxon(pruned - 1.0, alternative="less").pvalue
    assert rows.loc[(H1, "p: worse than the margin"), "mean"] == pytest.approx(worse)
    count = rows.loc[(H1, "sources with a lower error"), "mean"]
    assert count == (pruned < 0).sum()
    # SEND is better than chance on all sources, since the planted worth agrees with it there.
    assert rows.loc[(H2, "mean of sources"), "mean"] < 0
    assert rows.loc[(H2, "p (signed rank)"), "mean"] == pytest.approx(2 / 2**7)
    rival = rows.loc[(f"{H3} models with attention", "mean of sources"), "mean"]
    assert rival == pytest.approx((100 * ((0.97 + shift) / 0.9 - 1)).mean(), abs=1e-3)
    assert set(table["cells"]) == {"all"}


def test_cells_of_a_single_seed_are_left_out_once() -> None:
    frames = made()
    results = frames.results
    alone = (results["dataset"] == "ILI") & (results["seed"] == 1)
    fewer = Frames.of(results=results[~alone], selections=frames.selections, scores=frames.scores)
    table = TABLES["hypotheses"].function(fewer)
    counts = table[table["hypothesis"] == H1].groupby("cells")["n"].max()
    assert counts.to_dict() == {"all": 7, "of several seeds": 6}
    checked = TABLES["gains"].function(fewer)
    counts = checked.groupby("measure", observed=True)["n"].max()
    assert (counts["MSE"], counts["MSE, cells of several seeds"]) == (13, 12)


def test_holm_adjusts_over_hypotheses_and_over_the_families_within_one() -> None:
    p = {H1: 0.01, H2: 0.04, f"{H3} a": 0.02, f"{H3} b": 0.5}
    adjusted = holm_over_claims(p)
    inner = holm({"a": 0.02, "b": 0.5}, ["a", "b"])
    outer = holm({"1": 0.01, "2": 0.04, "3": inner["a"]}, ["1", "2", "3"])
    assert adjusted == pytest.approx(
        {H1: outer["1"], H2: outer["2"], f"{H3} a": outer["3"], f"{H3} b": 0.5}
    )
    assert holm_over_claims({H1: None, H2: 0.01})[H1] is None


def test_the_figure_better_shows_the_sources_on_which_the_control_is_the_reference() -> None:
    frames = frames_of()
    table = TABLES["better"].function(frames)
    changes = TABLES["changes"].function(frames)
    # Fine-tuning always helps in the frames of the builder.
    own = table[table["method"] != "control"]
    columns = ["dataset", "model", "horizon", "method", "mean", "low", "high"]
    left, right = (
        x[columns].astype({"method": str}).reset_index(drop=True) for x in (own, changes)
    )
    pd.testing.assert_frame_equal(left, right)
    assert (table.loc[table["method"] == "control", "mean"].abs() < 1e-9).all()


def test_gains_over_sources_are_those_of_the_masks() -> None:
    frames = made()
    table = TABLES["gains"].function(frames).set_index(["criterion", "measure"])
    values = []
    for name in SOURCES:
        rows = frames.results[frames.results["dataset"] == name]
        rows = rows[(rows["split"] == "test") & (rows["phase"] == "finetuned")]
        relative = []
        for _, seed in rows.groupby("seed"):
            mse = seed.set_index("mask")["mse"]
            for k, mask in ((1, "1.0.1.1"), (2, "1.0.1.0"), (3, "0.0.1.0")):
                others = mse[[m for m in MASKS if m.count("0") == k]].mean()
                relative.append(100 * (1 - mse[mask] / others))
        values.append(np.mean(relative))
    row = table.loc[("send", "MSE over sources")]
    assert row["mean"] == pytest.approx(np.mean(values))
    interval = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert row["low"] == pytest.approx(interval.low)
    p = table.loc[("send", "p, MSE over sources (signed rank, Holm)"), "mean"]
    assert p == pytest.approx(scipy.stats.wilcoxon(values).pvalue)
    winner = TABLES["winner"].function(frames).set_index(["criterion", "measure"])
    assert winner.loc[("send", gains.WINS), "mean"] == pytest.approx(100)
    held_out = winner.loc[(gains.ANY, gains.HELD_OUT), "mean"]
    assert held_out == pytest.approx(np.mean(values))


def test_masks_are_tested_against_seeds() -> None:
    rng = np.random.default_rng(0)
    drawn = {(s, m): rng.normal() for s, m in itertools.product(range(5), MASKS)}
    plain = planted.additive(WORTH)
    of = planted.runs(seeds=5)
    results = planted.results(
        of, lambda k, m, o: plain(m) + 0.1 * k["seed"] + 0.01 * drawn[k["seed"], m] + o, orders=2
    )
    components = replicates.variance_components(results, "seed").set_index("removed").loc[2]
    masks = [m for m in MASKS if m.count("0") == 2]
    table = np.array([[plain(m) + 0.01 * drawn[s, m] for s in range(5)] for m in masks])
    # Two-way analysis of variance without replication, by hand.
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    between = 5 * table.mean(axis=1).var(ddof=1)
    ratio = between / ((rest**2).sum() / (5 * 4))
    assert components["F"] == pytest.approx(ratio)
    assert components["p"] == pytest.approx(scipy.stats.f.sf(ratio, 5, 20))
    assert (components["runs"], components["masks"]) == (5, 6)


def test_every_mask_has_its_change_against_the_control() -> None:
    changes = mask_changes(made(("ETTh1", "ETTh2")))
    assert len(changes) == 2 * 2 * 16
    row = changes[changes["mask"] == EMPTY].query("dataset == 'ETTh1' and seed == 1").iloc[0]
    assert row["change"] == pytest.approx(100 * (sum(WORTH) - 0.02 + 0.001))
    assert (row["removed"], row["sites"]) == (4, 4)
    assert (changes.loc[changes["mask"] == FULL, "change"] == 0).all()


def test_the_figure_of_removed_sites_shows_all_masks_and_the_path_of_send() -> None:
    frames = made(("ETTh1", "ETTh2"))
    figure = draw("sites_removed", frames)
    assert len(figure.axes) == 2
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert len(lines["all masks"].get_xdata()) == len(MASKS)
    changes = mask_changes(frames).query("dataset == 'ETTh1'").groupby("mask")["change"].mean()
    path = [FULL, "1.0.1.1", "1.0.1.0", "0.0.1.0", EMPTY]
    assert list(lines["SEND"].get_xdata()) == [0, 1, 2, 3, 4]
    assert lines["SEND"].get_ydata() == pytest.approx(changes[path].to_numpy())
    half = changes[[m for m in MASKS if m.count("0") == 2]].mean()
    assert lines["their mean"].get_ydata()[2] == pytest.approx(half)
