"""Does a criterion score a manipulated site lower, and is that site worth less?

The frame `robustness` contains, for each run and site, the scores of the intact and of the
manipulated site, and the measured change of the error when the site is left out. Only rows of one
position and one cell are compared, since their scores have the same scale; the results are averaged
over positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spat.blocks import Array
from spat.study import methods
from spat.study.methods import SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.statistics.averages import measure
from spat.study.statistics.cells import CELL, RUN, keyed

Phase = Literal["untuned", "finetuned"]

# Value of the column `manipulation` for the network as it was trained.
INTACT: Final = "intact"
# Value of the column `quantity` for the measured change when the site is left out.
CHANGE: Final = "leave_one_out"
NO_CRITERIA: Final = ("mse", CHANGE)
PHASES: Final[dict[Phase, str]] = {
    "untuned": "before fine-tuning",
    "finetuned": "after fine-tuning",
}
SMALLER: Final = "measured: worth less"
AUROC: Final = "AUROC"
AGREES: Final = {phase: f"agrees with measured, {text}" for phase, text in PHASES.items()}
# Models that fit in one figure.
MODELS: Final = 2
SAME: Final = {phase: f"agrees, same checkpoint, {text}" for phase, text in PHASES.items()}
_CELL: Final = ("dataset", "model", "variant")


@page(
    "table",
    "robustness",
    title="Which criteria notice a manipulated site, and whether it is worth less",
    caption="""
Does a criterion notice that a site was manipulated? The AUROC is the probability that the
manipulated site of one checkpoint scores lower than the intact site of another checkpoint at the
same position; ties count one half. It is 1 if the manipulated site always scores lower, 0.5 if the
manipulation has no effect on the scores, and 0 if the site always scores higher. Intervals are from
a bootstrap over checkpoints.
*Worth less* is a measurement: the share of sites for which leaving out the manipulated site changes
the test error less than leaving out the intact site, before and after fine-tuning. The network
without the site is the same in both cases, so these are the sites whose manipulation raised the
error. If that share is small, a criterion is right not to notice the manipulation. *Agrees* is the
share of cases in which the score moved in the direction of the measured change, over all pairs of
checkpoints, and over the manipulated and the intact site of the same checkpoint.
A gate of 1 is the intact network. After fine-tuning, a gate of 0 shows only the noise between two
fine-tunings of the same network.
""",
    layout=Layout(
        (*_CELL, "measure", "criterion"),
        "manipulation",
        best=False,
        counted="runs",
        kept=("measure", "criterion"),
    ),
    notes=(
        "AUROC: manipulated against intact at the same position, ties one half.",
        "Worth less: the share of sites whose removal changes the error less if the site is "
        "manipulated than if it is intact.",
        "Intervals are over checkpoints.",
    ),
)
def robustness(frames: Frames) -> pd.DataFrame:
    """AUROC of each criterion, manipulated against intact sites at the same position, per cell.

    Columns: dataset, model, variant, measure, criterion, manipulation, mean, low, high, sd,
    n (runs), missing, unit. Measures are the share of sites that are worth less after manipulation
    (`criterion` says whether this was measured before or after fine-tuning), the AUROC, and the
    share of cases in which the score moved in the direction of the measured change. Datasets are
    not averaged, since the effect of a manipulation on the worth of a site can differ between them.
    Intervals are over checkpoints.

    Raises:
        Absent: if no site was manipulated.
    """
    frame = _manipulated(frames)
    by = [*_CELL, "criterion", "manipulation"]
    # The components of an AUROC may leave [0, 1], and so may the quantiles of their means.
    bounds = (0.0, 1.0)
    tables = []
    for phase, text in PHASES.items():
        rows = measured(frame, phase)
        rows = rows[rows["manipulation"] != INTACT].assign(criterion=text)
        tables.append(measure(rows, "smaller", by, SMALLER, bounds=bounds))
    tables.append(measure(auroc(frame), "auroc", by, AUROC, bounds=bounds))
    for phase, name in AGREES.items():
        tables.append(measure(auroc(frame, phase), "auroc", by, name, bounds=bounds))
    for phase, name in SAME.items():
        tables.append(measure(agreement(frame, phase), "agrees", by, name, bounds=bounds))
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    scored = frame.loc[~frame["quantity"].isin(NO_CRITERIA), "quantity"].unique()
    shown = [SMALLER, AUROC, *AGREES.values(), *SAME.values()]
    table = table.assign(
        measure=methods.present(table["measure"], shown),
        criterion=methods.present(table["criterion"], [*PHASES.values(), *scored]),
        manipulation=methods.present(table["manipulation"], frame["manipulation"].unique()),
        sd=float("nan"),
        missing=0,
    )
    keys = [*_CELL, "measure", "criterion", "manipulation"]
    values = ["mean", "low", "high", "sd", "n", "missing", "unit"]
    return methods.sort_rows(table, keys)[[*keys, *values]]


@page(
    "table",
    "leave_one_out",
    title="Change of the test MSE when one site is left out, intact and manipulated",
    caption="""
The change of the test error when one site is left out, in percent of the error of the intact
network, for the intact and for the manipulated site, before and after fine-tuning. Positive means
that the site is useful.
""",
    layout=Layout((*SHOWN, "site", "phase"), "manipulation", best=False, kept=("site",)),
    notes=("Percent of the MSE of the intact network; positive: the site is useful.",),
)
def leave_one_out(frames: Frames) -> pd.DataFrame:
    """Change of the test MSE when one site is left out, intact and manipulated, in percent.

    Columns: dataset, model, variant, lookback, horizon, site, phase, manipulation, mean, sd, n,
    missing, unit. Percent of the MSE of the intact network; positive: the site is useful.

    Raises:
        Absent: if no site was manipulated.
    """
    frame = _manipulated(frames)
    by = [*SHOWN, "site", "phase", "manipulation"]
    tables = []
    for phase, text in PHASES.items():
        rows = measured(frame, phase)
        rows = rows.assign(percent=100 * rows["relative"], phase=text, site=rows["name"])
        tables.append(methods.summary(rows, by, "percent"))
    table = pd.concat([table for table in tables if not table.empty], ignore_index=True)
    table = table.assign(
        phase=methods.present(table["phase"], PHASES.values()),
        manipulation=methods.present(table["manipulation"], frame["manipulation"].unique()),
        unit="%",
    )
    return methods.sort_rows(table, by)


@page(
    "figure",
    "robustness",
    title="Which criteria notice a manipulated site",
    caption="""
AUROC of the main criteria for each manipulation of a site (the table has all criteria): the
probability that the manipulated site of one checkpoint scores lower than the intact site of another
checkpoint at the same position. It is 1 if the manipulated site always scores lower, and 0.5 if the
manipulation has no effect on the scores.
The rows above the line are measurements: the share of sites that are worth less after manipulation,
before and after fine-tuning. If that share is small, a criterion is right not to notice the
manipulation.
""",
)
def auroc_heatmap(frames: Frames) -> Figure:
    """AUROC of each criterion for each manipulation, below the measured effects.

    1: the manipulated site always scores lower than the intact one; 0.5: the manipulation has no
    effect on the scores. The upper rows are the share of sites that are worth less after
    manipulation. The main criteria are shown, or all criteria if no main criterion was scored.

    Raises:
        Absent: if no site was manipulated.
    """
    rows = robustness(frames)
    rows = rows[rows["measure"].isin([SMALLER, AUROC])]
    main = rows["criterion"].isin(methods.MAIN_CRITERIA)
    if main.any():
        rows = rows[main | (rows["measure"] == SMALLER)]
    labels = {text: f"measured {text.split()[0]}" for text in PHASES.values()}
    parts = style.panels(rows, _CELL)[:MODELS]
    names = rows["criterion"].nunique()
    figure = style.canvas(height=(0.13 * names + 0.7) * len(parts) + 0.1)
    # The layout, solved once, is slightly too narrow for the longest name.
    figure.get_layout_engine().set(rect=(0.02, 0, 0.98, 1))  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    for axis, (title, part) in zip(axes, parts, strict=True):
        values = part.pivot_table(
            index="criterion", columns="manipulation", values="mean", observed=True
        )
        sns.heatmap(
            values.rename(index=labels), ax=axis, annot=True, fmt=".2f", annot_kws={"size": 5},
            cmap="Blues", vmin=0, vmax=1, cbar=False, linewidths=0.4, linecolor="white",
        )  # fmt: skip
        above = int(values.index.isin(PHASES.values()).sum())
        axis.axhline(above, color=style.BLACK, lw=0.9)
        axis.set_title(title)
        axis.set(xlabel="", ylabel="")
        axis.tick_params(length=0, labelsize=6)
        axis.tick_params(axis="x", labelrotation=90)
        axis.tick_params(axis="y", labelrotation=0)
    return figure


def measured(frame: pd.DataFrame, phase: Phase, split: str = "test") -> pd.DataFrame:
    """The change of the MSE when a site is left out, for intact and manipulated sites.

    The network without the site is the same in both cases. So a smaller change than that of the
    intact site also means that the manipulation raised the loss: the site is worth less than
    before.

    Returns:
        RUN, `site`, `name`, `manipulation` (`INTACT` for the intact site), `change` (a difference
        of MSE), `relative` (the change as a fraction of the MSE of the intact network), `smaller`
        (1 if the change is smaller than for the intact site, 1/2 if equal, else 0). Values are
        missing if training diverged.
    """
    rows = frame[(frame["phase"] == phase) & (frame["split"] == split)]
    columns = [*RUN, "site", "name", "manipulation", "value"]
    changes = rows.loc[rows["quantity"] == CHANGE, columns].rename(columns={"value": "change"})
    keys = [*RUN, "site"]
    intact = rows[rows["manipulation"] == INTACT]
    for quantity in (CHANGE, "mse"):
        values = intact.loc[intact["quantity"] == quantity, [*keys, "value"]]
        changes = changes.merge(values.rename(columns={"value": f"intact_{quantity}"}), on=keys)
    difference = changes["change"] - changes[f"intact_{CHANGE}"]
    changes = changes.assign(
        relative=changes["change"] / changes["intact_mse"], smaller=_lower(difference.to_numpy())
    )
    return changes.drop(columns=[f"intact_{CHANGE}", "intact_mse"])


def auroc(frame: pd.DataFrame, phase: Phase | None = None, split: str = "test") -> pd.DataFrame:
    """AUROC of each criterion for each manipulation: one component per run, to be averaged.

    The AUROC is the probability, over all pairs of checkpoints of a cell and at the same site, that
    the manipulated site of one checkpoint scores lower than the intact site of the other; ties
    count one half. With a `phase` (untuned or fine-tuned), it is the probability that the two
    scores differ in the same direction as the measured changes on `split` when the site is left
    out.

    The value of a run is its structural component (DeLong et al. 1988; both classes of a run are
    one cluster, Obuchowski 1997). The mean of the components is the AUROC, and resampling the
    components resamples checkpoints. A single component may lie outside [0, 1]. If there is only
    one checkpoint, its component is the mean over its sites.

    Returns:
        RUN, `criterion`, `manipulation`, `auroc`. Runs with a missing score or change are left out.
    """
    scores = frame[~frame["quantity"].isin(NO_CRITERIA)]
    changes = frame[frame["quantity"].eq(CHANGE) & frame["phase"].eq(phase or "untuned")]
    changes = changes[changes["split"] == split]
    components = []
    for key, cell in scores.groupby(list(CELL)):
        own = changes.merge(cell[list(CELL)].drop_duplicates()) if phase else None
        components.append(_components(cell, own).assign(**keyed(CELL, key)))
    columns = [*RUN, "criterion", "manipulation", "auroc"]
    if not components:
        return pd.DataFrame(columns=columns)
    return pd.concat(components, ignore_index=True)[columns]


def agreement(frame: pd.DataFrame, phase: Phase) -> pd.DataFrame:
    """Whether a manipulation moved the score and the measured change in the same direction.

    The change is that of the test split. Both are compared with their value at the intact site of
    the same checkpoint.

    Returns:
        RUN, `site`, `criterion`, `manipulation`, `agrees` (1, 1/2 for ties, or 0). Sites with a
        missing score or change are left out.
    """
    scores = frame[~frame["quantity"].isin(NO_CRITERIA)]
    changes = frame[frame["quantity"].eq(CHANGE) & frame["phase"].eq(phase)]
    tested = _signs_of_change(changes[changes["split"] == "test"]).drop(columns="quantity")
    rows = _signs_of_change(scores).merge(
        tested, on=[*RUN, "site", "manipulation"], suffixes=("", "_tested")
    )
    rows = rows.assign(agrees=0.5 + 0.5 * rows["sign"] * rows["sign_tested"])
    rows = rows.rename(columns={"quantity": "criterion"})
    return rows[[*RUN, "site", "criterion", "manipulation", "agrees"]]


def _signs_of_change(rows: pd.DataFrame) -> pd.DataFrame:
    """RUN, `site`, `quantity`, `manipulation`, `sign`: the sign of manipulated minus intact."""
    keys = [*RUN, "site", "quantity"]
    intact = rows.loc[rows["manipulation"] == INTACT, [*keys, "value"]]
    other = rows.loc[rows["manipulation"] != INTACT, [*keys, "manipulation", "value"]]
    both = other.merge(intact, on=keys, suffixes=("", "_intact"))
    both = both.assign(sign=np.sign(both["value"] - both["value_intact"]))
    return both.dropna(subset="sign")[[*keys, "manipulation", "sign"]]


def _components(scores: pd.DataFrame, changes: pd.DataFrame | None) -> pd.DataFrame:
    """`criterion`, `manipulation`, `seed`, `auroc` of one cell."""
    names, kinds, seeds, sites = (
        scores[column].unique() for column in ("quantity", "manipulation", "seed", "site")
    )
    kinds = kinds[kinds != INTACT]
    changed, intact = _cubes(scores, names, kinds, seeds, sites)
    signs, known = _signs(changed, intact)
    if changes is not None:
        right, measured = _signs(*_cubes(changes, [CHANGE], kinds, seeds, sites))
        signs, known = -signs * right, known & measured
    # A site without this manipulation has weight 0; a run that lacks another site is left out.
    asked = np.asarray(known.any(axis=(0, 2)))  # [kinds, sites]
    whole = np.asarray((known | ~asked[:, None]).all(axis=-1)) & asked.any(axis=-1, keepdims=True)
    kernel = np.einsum("cmijs,ms->cmij", _lower(signs), _shares(asked))
    weight = _shares(whole)  # [names, kinds, runs]
    rows = np.einsum("cmij,cmj->cmi", kernel, weight)
    columns = np.einsum("cmij,cmi->cmj", kernel, weight)
    mean = np.einsum("cmi,cmi->cm", rows, weight)
    components = rows + columns - mean[..., None]
    c, m, i = whole.nonzero()
    return pd.DataFrame(
        {
            "criterion": names[c],
            "manipulation": kinds[m],
            "seed": seeds[i],
            "auroc": components[c, m, i],
        }
    )


def _cubes(
    rows: pd.DataFrame, names: Iterable[str], kinds: Iterable[str], *axes: Iterable[int]
) -> tuple[Array, Array]:
    """Values manipulated [names, kinds, seeds, sites] and intact [names, 1, seeds, sites].

    NaN where there is no value.
    """
    axes_of: list[Any] = [list(names), [*kinds, INTACT], *map(list, axes)]
    values = rows.set_index(["quantity", "manipulation", "seed", "site"])["value"]
    cube = values.reindex(pd.MultiIndex.from_product(axes_of)).to_numpy(dtype=np.float64)
    cube = cube.reshape([len(axis) for axis in axes_of])
    return cube[:, :-1], cube[:, -1:]


def _signs(changed: Array, intact: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Signs of manipulated minus intact for all pairs of runs, and the mask of known cases.

    Both arguments are [..., runs, sites]; the results are [..., manipulated run, intact run, sites]
    (0 where one of the two is missing) and [..., runs, sites].
    """
    difference = changed[..., :, None, :] - intact[..., None, :, :]
    return np.nan_to_num(np.sign(difference)), np.isfinite(changed) & np.isfinite(intact)


def _shares(known: NDArray[np.bool_]) -> Array:
    """Equal weights of the known values along the last axis; 0 where there are none."""
    return np.asarray(known / np.maximum(known.sum(axis=-1, keepdims=True), 1))


def _lower(difference: Array) -> Array:
    """1 where negative, 0 where positive, 1/2 where equal."""
    return np.asarray(0.5 - 0.5 * np.sign(difference), dtype=np.float64)


def _manipulated(frames: Frames) -> pd.DataFrame:
    if frames.robustness.empty:
        raise Absent("No site was manipulated: name runs in `robustness.runs` to study them.")
    return frames.robustness
