"""Zero-shot transfer: how good is a run on another dataset, and does pruning help there?

Nothing is trained on the target; its scaler is fitted on its own training rows. Only the first data
order of fine-tuning is used.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spat.study import methods
from spat.study.accuracy import NOTE_CHOSEN
from spat.study.methods import CHOSEN, CONTROL, DENSE, METRICS, NONE_LEFT
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import RUN, having, keeps_all, keeps_none, keeps_some

ON_TARGET: Final = "trained on target"
TRANSFER_GAIN: Final = "gain − gain at home"
KEYS: Final = ("dataset", "target", "model", "variant", "lookback", "horizon")
# Models that fit in one figure, and datasets whose matrices fit two a row.
MODELS: Final = 4
NARROW: Final = 4
# Letters of all names that fit in a row under a matrix.
UPRIGHT: Final = 12

_CASE: Final = [*RUN, "target"]
_METHOD: Final = ["method", "ratio", "rule"]
_SHAPE: Final = ["model", "variant", "lookback", "horizon"]


@page(
    "table",
    "zeroshot",
    title="Zero-shot transfer: trained on one dataset, tested on another",
    caption="""
Errors on the test split of a dataset that the model was never trained on. Nothing is trained on the
target; its scaler is fitted on its training rows.
For comparison: naive forecasts on the target, models without attention that were trained on the
same dataset, and the same model trained on the target.
The last column shows whether pruning improves transfer more than it improves the error at home: it
is SPAT's gain over the control on the target minus its gain at home (on the dataset of training),
in percentage points.
""",
    layout=Layout((*KEYS, "metric"), "method", unranked=(ON_TARGET,)),
    notes=(
        "Nothing is trained on the target; its scaler is fitted on its training rows.",
        "Trained on target: the dense model of that dataset; it is not ranked.",
        "Last column: SPAT's gain over the control on the target minus the same gain at home.",
        NOTE_CHOSEN,
    ),
)
def zeroshot(frames: Frames) -> pd.DataFrame:
    """Errors on the target's test split, and SPAT's gain on the target minus its gain at home.

    Columns: dataset, target, model, variant, lookback, horizon, metric, method, mean, sd, n,
    missing, unit. A gain is the MSE of the control minus the MSE of SPAT, in percent of the MSE of
    the control. The two gains of a run are subtracted before seeds are averaged (percentage
    points).

    Raises:
        Absent: if nothing was evaluated on another dataset.
    """
    rows = _named(zero_shot(frames.results, frames.selections))
    if rows.empty:
        raise Absent(
            "No model with attention was evaluated on another dataset: name (source, target) pairs "
            "in `transfer.pairs`."
        )
    by = [*KEYS, "method"]
    tables = [
        methods.summary(rows, by, metric).assign(unit="", metric=name)
        for metric, name in METRICS.items()
    ]
    gained = _named(gains(frames.results, frames.selections))
    gained = gained[gained["method"] == CHOSEN]
    gained = gained.assign(method=TRANSFER_GAIN, excess=100 * gained["excess"])
    tables.append(methods.summary(gained, by, "excess").assign(unit="pp", metric=METRICS["mse"]))
    table = pd.concat(tables, ignore_index=True)
    naive = [_spaced(name) for name in methods.models_of("naive", frames.results)]
    last = [ON_TARGET, TRANSFER_GAIN]
    present = set(table["method"])
    order = [*naive, *methods.in_order(present - {*naive, *last}), *last]
    return methods.arrange(table, KEYS, [name for name in order if name in present])


@page(
    "figure",
    "transfer",
    title="Zero-shot transfer: its cost, and the change that SPAT makes",
    caption="""
Zero-shot transfer from a dataset (row) to the target (column). The first matrix of a model shows
how much higher the error of the dense model is than the error of the same model trained on the
target. The second matrix shows the change of the error by SPAT against the control; its diagonal is
the change on the dataset of training. Blue is better, red is worse, with one scale for all matrices
of a kind.
""",
)
def transfer(frames: Frames) -> Figure:
    """Per model: the cost of transfer for the dense model, and SPAT's change, in percent.

    Left: MSE against the same model trained on the target. Right: SPAT (ratio chosen on
    validation) against the control; the diagonal is the dataset of training. Values are means over
    seeds and horizons. All matrices of a kind have one scale.

    Raises:
        Absent: if nothing was evaluated on another dataset.
    """
    named = methods.by_method(frames)
    if (named["target"] == named["dataset"]).all():
        raise Absent(
            "Nothing was evaluated on another dataset: name (source, target) pairs in "
            "`transfer.pairs`."
        )
    change = methods.relative_to(named, CONTROL, ["mse"])["mse"]
    changes = named.assign(change=change)[named["method"] == CHOSEN]
    costs = _costs(named[named["method"] == DENSE])
    parts = style.panels(costs, ["model", "variant"])[:MODELS]
    away = costs[costs["dataset"] != costs["target"]]
    names = sorted({*away["dataset"], *away["target"]})
    # Two matrices per row, if the numbers fit into half the width.
    columns = 2 if len(names) <= NARROW else 1
    width, rows = style.WIDTH / columns - 0.75, 2 * len(parts) // columns
    figure = style.canvas(height=(width * 0.8 + 0.85) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    models = [part[["model", "variant"]].drop_duplicates() for _, part in parts]
    kinds = {"cost of transfer (%)": costs, "SPAT vs control (%)": changes}
    for place, (kind, values) in enumerate(kinds.items()):
        tables = [_table(values.merge(model), names) for model in models]
        # Twice the largest value, since the darkest tones would hide the numbers in print.
        limit = 2 * float(np.nanmax(np.abs(np.stack(tables)), initial=0.0)) or 1.0
        for axis, (title, _), table in zip(axes[place::2], parts, tables, strict=True):
            _matrix(axis, table, limit, f"{title}\n{kind}")
    return figure


def zero_shot(
    results: pd.DataFrame, selections: pd.DataFrame, criterion: str = "send"
) -> pd.DataFrame:
    """Test errors of all methods on the target, one row per run, target and method.

    Methods of the run are `dense`, `control`, the criterion (under its name, with `ratio` or
    `rule`) and `none left`. Methods for comparison are the naive forecasts on the target (from the
    target's own run, with the season of the target), the baselines with the same seed trained on
    the same dataset, and `trained on target`: the dense model of the same shape and seed, trained
    on the target. Methods that were not run are absent.

    Returns:
        RUN, `target`, `method`, `ratio`, `rule`, `mask`, `mse`, `mae`.
    """
    test = _tested(results)
    rows = _methods(test[test["target"] != test["dataset"]], selections, criterion)
    cases = rows[_CASE].drop_duplicates()
    rows = pd.concat([rows, *_references(cases, test[test["phase"] == "dense"])])
    columns = [*_CASE, *_METHOD, "mask", "mse", "mae"]
    return rows[columns].sort_values([*_CASE, *_METHOD], ignore_index=True)


def gains(results: pd.DataFrame, selections: pd.DataFrame, criterion: str = "send") -> pd.DataFrame:
    """The gain of pruning on the target, and its excess over the gain on the dataset of training.

    A gain is 1 - mse / control, positive if pruning is better. The control has as many fine-tuning
    steps as a mask.

    Returns:
        RUN, `target`, `method`, `ratio`, `rule`, `mask`, `mse`, `gain`, `home_gain` (on the test
        split of the run's own dataset) and `excess`, which is gain - home_gain.
    """
    test = _methods(_tested(results), selections, criterion)
    rows = test[~test["method"].isin([DENSE, CONTROL])]
    control = test.loc[test["method"] == CONTROL, [*_CASE, "mse"]]
    rows = rows.merge(control.rename(columns={"mse": CONTROL}), on=_CASE, how="left")
    rows["gain"] = 1.0 - rows["mse"] / rows.pop(CONTROL)
    home = rows["target"] == rows["dataset"]
    own = rows.loc[home, [*RUN, *_METHOD, "mask", "gain"]].rename(columns={"gain": "home_gain"})
    rows = rows[~home].merge(own, on=[*RUN, *_METHOD, "mask"], how="left")
    rows["excess"] = rows["gain"] - rows["home_gain"]
    return rows[[*_CASE, *_METHOD, "mask", "mse", "gain", "home_gain", "excess"]]


def _tested(results: pd.DataFrame) -> pd.DataFrame:
    """Test errors of dense and fine-tuned networks, first data order."""
    rows = methods.tested(results)
    rows = rows[rows["phase"].isin(["dense", "finetuned"])]
    return rows[[*_CASE, "phase", "mask", "mse", "mae"]]


def _methods(test: pd.DataFrame, selections: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """The rows of attention models by method; a mask that several methods chose is repeated."""
    test = test[test["model"].isin(methods.models_of("attention", test))]
    full = test["mask"].map(keeps_all).astype(bool)
    tuned = test["phase"] == "finetuned"
    asked = selections[(selections["level"] == "site") & (selections["criterion"] == criterion)]
    asked = asked[asked["ratio"].notna() | ~asked["rule"].isin(["", "path"])]
    chosen = test[tuned].merge(asked[[*RUN, "ratio", "rule", "mask"]], on=[*RUN, "mask"])
    named = [
        test[full & ~tuned].assign(method=DENSE),
        test[full & tuned].assign(method=CONTROL),
        having(test[tuned], keeps_none).assign(method=NONE_LEFT),
    ]
    fixed = [rows.assign(ratio=float("nan"), rule="") for rows in named]
    return pd.concat([*fixed, chosen.assign(method=criterion)])


def _references(cases: pd.DataFrame, dense: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows that each (run, target) is compared with."""
    errors = ["mask", "mse", "mae"]
    shape = ["experiment", "target", "lookback", "horizon"]
    home = dense[dense["dataset"] == dense["target"]]
    tables = []
    for name in methods.models_of("naive", dense):
        # Naive forecasts have no parameters: their errors do not depend on the seed.
        naive = home[home["model"] == name].drop_duplicates(shape)
        rows = cases.merge(naive[[*shape, *errors]], on=shape)
        tables.append(rows.assign(method=_spaced(name)))
    trained = [*shape, "model", "variant", "seed"]
    tables.append(cases.merge(home[[*trained, *errors]], on=trained).assign(method=ON_TARGET))
    same = [*shape, "dataset", "seed"]
    for name in methods.models_of("baseline", dense):
        baseline = dense[dense["model"] == name].drop_duplicates(same)
        tables.append(cases.merge(baseline[[*same, *errors]], on=same).assign(method=name))
    return [rows.assign(ratio=float("nan"), rule="") for rows in tables]


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the method names of the table, each mask once per name.

    Ratios of SPAT that remove the same number of sites become the smallest of them. Ratios that
    remove nothing or everything are left out, since other methods name them, and so are all rules
    except validation.
    """
    spat = rows["method"] == "send"
    chosen = rows[spat & (rows["rule"] == "validation")].assign(method=CHOSEN)
    fixed = rows[spat & rows["ratio"].notna()].sort_values("ratio", kind="stable")
    fixed = having(fixed, keeps_some).drop_duplicates([*RUN, "target", "mask"])
    fixed = fixed.assign(method=fixed["ratio"].map(methods.at_ratio))
    return pd.concat([rows[~spat], chosen, fixed])


def _spaced(name: str) -> str:
    """The name of a naive model as separate words: `RepeatLast` -> `repeat last`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _table(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    table = rows.pivot_table(index="dataset", columns="target", values="change")
    return table.reindex(index=names, columns=names)


def _matrix(axis: Axes, table: pd.DataFrame, limit: float, title: str) -> None:
    names = [*table.index]
    sns.heatmap(
        table, ax=axis, annot=table.map(_percent), fmt="", annot_kws={"size": 6}, cmap="RdBu_r",
        center=0, vmin=-limit, vmax=limit, cbar=False, linewidths=0.5, linecolor="white",
        xticklabels=names, yticklabels=names,
    )  # fmt: skip
    axis.set_title(title, fontsize=7)
    axis.set(xlabel="target", ylabel="trained on")
    axis.grid(visible=False)
    axis.tick_params(length=0, labelrotation=0)
    if len("".join(names)) > UPRIGHT:
        axis.tick_params(axis="x", labelrotation=90)


def _costs(dense: pd.DataFrame) -> pd.DataFrame:
    """Dense MSE on the target, relative to the model trained there; seeds are averaged first."""
    keys = [*_SHAPE, "target"]
    home = dense[dense["target"] == dense["dataset"]].groupby(keys)["mse"].mean().rename("home")
    means = dense.groupby([*_SHAPE, "dataset", "target"])["mse"].mean().reset_index()
    joined = means.join(home, on=keys)
    return joined.assign(change=100 * (joined["mse"] / joined["home"] - 1)).dropna(subset="change")


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{value:+.1f}".replace("-", "−")
