"""Does pruning change the test error?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from spat.blocks import Array
from spat.study import methods
from spat.study.methods import CHOSEN, CONTROL, DENSE, METRICS, SHOWN
from spat.study.pages.page import Absent, Layout, Note, page
from spat.study.pages.reader import Frames
from spat.study.statistics.bootstrap import block_length, equivalence, relative_change
from spat.study.statistics.cells import CELL, RUN, having, keeps_all, keyed

BETTER: Final = "SPAT vs better"
GAIN: Final = "SPAT vs control"
# Notes that other tables share.
NOTE_CHOSEN: Final = Note(CHOSEN, f"{CHOSEN}: the ratio with the lowest validation error.")
NOTE_PAIRED: Final = "Changes are paired by seed, then averaged."
NOTE_REPEATED: Final = (
    "Ratios that remove the same number of sites are listed once, as the smallest of them."
)


@page(
    "table",
    "main",
    title="Test errors of the dense model, the control, SPAT, and no attention at all",
    caption="""
*SPAT vs better* is the change of SPAT, at the ratio with the lowest validation error, against the
better of the dense model and the control, compared by validation error: what a user gains. The next
columns are the test errors of the dense model, the control, SPAT, and the model without attention.
The control is the dense model with the same extra epochs as every pruned model: a gain that the
control also has is not a gain of pruning.
*SPAT (val.)* is the ratio whose fine-tuned model has the lowest validation error; the other columns
are fixed ratios.
*SPAT vs control* is the change against the control. Changes are paired by seed. Each model without
attention (baseline) has its own column.
Errors are means over all windows, steps and channels of the test split, in the standardised scale.
""",
    layout=Layout((*SHOWN, "metric"), "method"),
    notes=(
        Note(
            BETTER,
            f"{BETTER}: {CHOSEN} against the better of dense and control by validation error.",
        ),
        "Control: the dense model with the same extra epochs as the pruned ones.",
        NOTE_CHOSEN,
        NOTE_REPEATED,
        NOTE_PAIRED,
    ),
)
def main(frames: Frames) -> pd.DataFrame:
    """Errors of dense, control, SPAT, none left and the baselines, and SPAT's changes.

    Columns: dataset, model, variant, lookback, horizon, metric, method, mean, sd, n, missing, unit,
    vs_dense, vs_control and vs_better (percent, paired by seed, averaged over seeds). `vs_better`
    is the change against the dense model or the control, whichever has the lower validation error.

    Raises:
        Absent: if no model has attention sites.
    """
    rows = methods.at_home(frames)
    rows = pd.concat([rows, methods.baselines(rows, frames.results)], ignore_index=True)
    by = [*SHOWN, "method"]
    tables = []
    for metric, name in METRICS.items():
        changes = rows.assign(
            vs_dense=methods.relative_to(rows, DENSE, [metric])[metric],
            vs_control=methods.relative_to(rows, CONTROL, [metric])[metric],
            vs_better=methods.relative_to_better(rows, frames.results, metric),
        )
        table = methods.summary(rows, by, metric).assign(metric=name, unit="")
        for column in ("vs_dense", "vs_control", "vs_better"):
            means = methods.summary(changes, by, column)[[*by, "mean"]]
            table = table.merge(means.rename(columns={"mean": column}), on=by)
        chosen = changes[changes["method"] == CHOSEN]
        tables.append(table)
        for column, method in (("vs_better", BETTER), ("vs_control", GAIN)):
            gain = methods.summary(chosen, by, column)
            tables.append(gain.assign(metric=name, unit="%", method=method))
    table = pd.concat(tables, ignore_index=True)
    errors = set(table["method"]) - {BETTER, GAIN}
    return methods.arrange(table, SHOWN, [BETTER, *methods.in_order(errors), GAIN])


@page(
    "table",
    "changes",
    title="Change of the test MSE against the control, with its interval",
    caption="""
How much the test error changes against the control when attention modules are removed, with
intervals.
Test windows overlap, so the intervals come from a paired bootstrap over blocks of consecutive
windows, crossed with seeds.
Negative is better than the control. An interval that contains zero shows no change. With one seed
the interval reflects variation across test windows only, not across training runs.
The CSV file also contains p-values and the tests of equivalence.
""",
    layout=Layout(SHOWN, "method", best=False),
    notes=(
        "Paired moving-block bootstrap over test windows, crossed with seeds.",
        "With one seed, an interval reflects variation across test windows only.",
        NOTE_CHOSEN,
    ),
)
def changes(frames: Frames) -> pd.DataFrame:
    """Relative change of the test MSE against the control, in percent, per cell and method.

    Columns: dataset, model, variant, lookback, horizon, method, mean, low, high (interval of a
    paired block bootstrap), sd (missing, since there is an interval), n, missing, unit, p, no_worse
    and equivalent (within the margin). The change is computed from losses averaged over seeds.

    Raises:
        Absent: if no model has attention sites, or only the control was fine-tuned.
    """
    rows = methods.at_home(frames)
    rows = rows[~rows["method"].isin([DENSE, CONTROL])]
    if rows.empty:
        raise Absent("Only the control was fine-tuned: no fine-tuned mask removes attention.")
    return change_table(frames, rows)


@page(
    "table",
    "better",
    title="Change of the test MSE against the better of dense model and control",
    caption="""
How much the test error changes against the dense model or the control, whichever has the lower
validation error. Fine-tuning alone can make a model worse; a gain over such a control is not a gain
over the dense model.
Intervals come from a paired bootstrap over blocks of consecutive test windows, crossed with seeds.
""",
    layout=Layout(SHOWN, "method", best=False),
    notes=(
        "Paired moving-block bootstrap over test windows, crossed with seeds. With one seed, an "
        "interval reflects variation across test windows only.",
        NOTE_CHOSEN,
    ),
)
def better(frames: Frames) -> pd.DataFrame:
    """Relative change of the test MSE against the better reference, per cell and method.

    The columns are those of the table `changes`. The control is one of the methods.

    Raises:
        Absent: if no model has attention sites, or only the control was fine-tuned.
    """
    rows = methods.at_home(frames)
    rows = rows[rows["method"] != DENSE]
    if set(rows["method"]) <= {CONTROL}:
        raise Absent("Only the control was fine-tuned: no fine-tuned mask removes attention.")
    return change_table(frames, rows, methods.references(frames.results))


def change_table(
    frames: Frames, rows: pd.DataFrame, reference: str | pd.DataFrame = "finetuned"
) -> pd.DataFrame:
    """The tidy table of the `relative_changes` of methods, in percent.

    `rows` has the columns of a run, `mask` and `method`.
    """
    losses = frames.losses[frames.losses["target"] == frames.losses["dataset"]]
    # A run that diverged has no losses to resample; the table `main` shows that it diverged.
    finite = losses["mse"].map(lambda values: bool(np.isfinite(values).all())).astype(bool)
    table = relative_changes(
        losses[finite],
        rows[[*RUN, "mask", "method"]],
        ["method"],
        reference=reference,
        draws=frames.statistics.bootstrap,
        confidence=frames.statistics.confidence,
        margin=frames.statistics.margin,
    )
    percent = {name: 100 * table[name] for name in ("change", "low", "high")}
    table = table.assign(**percent, sd=float("nan"), missing=0, unit="%")
    table = table.rename(columns={"change": "mean", "seeds": "n"})
    table["method"] = methods.ordered(table["method"])
    columns = [*SHOWN, "method", "mean", "low", "high", "sd", "n", "missing", "unit"]
    table = table[[*columns, "p", "no_worse", "equivalent"]]
    return methods.sort_rows(table, [*SHOWN, "method"])


def relative_changes(
    losses: pd.DataFrame,
    choices: pd.DataFrame,
    by: Sequence[str],
    *,
    reference: str | pd.DataFrame = "finetuned",
    phase: str = "finetuned",
    same_mask: bool = False,
    draws: int = 2000,
    confidence: float = 0.95,
    margin: float = 0.01,
) -> pd.DataFrame:
    """Changes of chosen masks against the unpruned model, per cell, target and group of `by`.

    `losses` is the frame of losses per window; only data order 0 is used. `choices` has the columns
    of a run, `mask`, and `by` (for example criterion and ratio). A group may choose a different
    mask for each seed; if it chooses several for one run (random draws), their losses are averaged.
    The reference is the unpruned model in the phase `reference`: `finetuned` (the control),
    `dense`, or a frame with RUN and `phase`, which gives the phase of each run. With `same_mask`
    the reference is the same mask in the phase `reference`. Seeds that lack one of the two losses
    are left out.

    Returns:
        CELL, `target`, `by`, `mse`, `reference_mse`, `change`, `se`, `low`, `high`, `p`, `p_worse`,
        `p_better`, `no_worse`, `equivalent`, `seeds`, `blocks`. Changes are fractions, not percent.
    """
    first = losses[losses["order"] == 0]
    of = [*RUN, "target", "mask"] if same_mask else [*RUN, "target"]
    base = first if same_mask else having(first, keeps_all)
    if isinstance(reference, str):
        base = base[base["phase"] == reference]
    else:
        base = base.merge(reference[[*RUN, "phase"]], on=[*RUN, "phase"])
    base = base[[*of, "mse"]].rename(columns={"mse": "reference"})
    treated = first.loc[first["phase"] == phase, [*RUN, "target", "mask", "mse"]]
    joined = choices[[*RUN, "mask", *by]].merge(treated, on=[*RUN, "mask"])
    joined = joined.merge(base, on=of)
    keys = [*CELL, "target", *by]
    rows = [
        keyed(keys, key) | _change(group, draws=draws, confidence=confidence, margin=margin)
        for key, group in joined.groupby(keys, dropna=False, sort=True)
    ]
    return pd.DataFrame(rows, columns=[*keys, *_MEASURES])


_INTERVAL: Final = ("change", "se", "low", "high", "p")
_TESTS: Final = ("p_worse", "p_better", "no_worse", "equivalent")
_MEASURES: Final = ("mse", "reference_mse", *_INTERVAL, *_TESTS, "seeds", "blocks")


def _change(group: pd.DataFrame, *, draws: int, confidence: float, margin: float) -> dict[str, Any]:
    """The measures of one cell; each row of `group` is a seed, or a random draw of a seed."""
    treatment, reference = _per_seed(group, "mse"), _per_seed(group, "reference")
    block = block_length(int(group["lookback"].iloc[0]), int(group["horizon"].iloc[0]))
    change = relative_change(reference, treatment, block, draws=draws, confidence=confidence)
    test = equivalence(change, margin, alpha=1.0 - confidence)
    return {
        "mse": float(treatment.mean()),
        "reference_mse": float(reference.mean()),
        **{name: getattr(change, name) for name in (*_INTERVAL, "seeds", "blocks")},
        **{name: getattr(test, name) for name in _TESTS},
    }


def _per_seed(group: pd.DataFrame, column: str) -> Array:
    """Losses [S, N], averaged over the draws of a seed."""
    return np.stack(
        [np.stack(seed[column].to_list()).mean(axis=0) for _, seed in group.groupby("seed")]
    ).astype(np.float64)
