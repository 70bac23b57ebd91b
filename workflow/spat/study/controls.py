"""What else could explain a gain: training from scratch, a smaller model, more regularisation?

Some controls are separate variants, named ``BASE+KIND`` (`deep128+narrow`), or ``BASE+KINDVALUE``
(`deep128+dropout0.2`) if a kind is tried at several values. The base variant counts as one more
value of the kind. Each run takes the value with the best validation error; the test errors of the
other values are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spat.study import methods
from spat.study.accuracy import NOTE_CHOSEN, NOTE_PAIRED, NOTE_REPEATED, relative_changes
from spat.study.methods import CONTROL, DENSE, METRICS, SHOWN
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, Note, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import RUN, in_domain

VERSUS: Final = {DENSE: "MSE vs dense", CONTROL: "MSE vs control"}
SCRATCH: Final = ", from scratch"
TUNED: Final = " (tuned)"
COSTS: Final = {"params": "parameters", "flops": "FLOPs"}
VERSUS_TUNED: Final = f"MSE{SCRATCH} vs fine-tuned"
MEASURES: Final = (
    *("MSE", f"MSE{SCRATCH}", *VERSUS.values(), VERSUS_TUNED),
    *("MAE", f"MAE{SCRATCH}", *COSTS.values()),
)
# The value of a kind that leaves the base variant as it is.
BASE: Final = "base"

# What follows the plus in the name of a control.
_KIND: Final = r"^(?P<kind>.+?)(?P<value>\d[\d.]*)?$"


@page(
    "table",
    "controls",
    title="What else could explain a gain: training from scratch, size, regularisation",
    caption="""
What else could explain a gain of pruning. The same masks were trained from random weights, for the
same total number of epochs: if their errors are as low, the gain comes from the smaller
architecture and not from the pre-trained weights.
The other controls are dense models without pruning. *narrow* has as many parameters and FLOPs as
the network without any attention. *dropout* and *sam* (sharpness-aware minimisation) add
regularisation, with the value that has the lowest validation error of the seed. These models are
trained like the dense model, without the extra epochs of fine-tuning: compare them with it.
""",
    layout=Layout((*SHOWN, "method"), "measure", within=SHOWN),
    notes=(
        "From scratch: the same mask trained from random weights, with the epochs and learning "
        "rates of pre-training followed by fine-tuning.",
        Note(
            VERSUS_TUNED,
            f"{VERSUS_TUNED}: interval by the paired moving-block bootstrap over test windows, "
            "crossed with seeds. The CSV file says whether the two are equivalent within the "
            "margin.",
        ),
        "Below the masks: models without pruning, trained like the dense model and without the "
        "extra epochs: narrow (as small as the network without attention), dropout, sam "
        "(sharpness-aware minimisation). Compare them with the dense model.",
        "Tuned: each seed takes the value with the lowest validation error; the unchanged model "
        "(base) is one of the values.",
        NOTE_CHOSEN,
        NOTE_REPEATED,
        NOTE_PAIRED,
    ),
)
def controls(frames: Frames) -> pd.DataFrame:
    """Errors of pruned networks, of the same masks trained from scratch, and of control variants.

    Columns: dataset, model, variant, lookback, horizon, method, measure (MSE, its changes against
    the dense model and the control, MAE, both errors of the mask trained from scratch, its change
    against the fine-tuned one, parameters, FLOPs), mean, low, high, sd, n, missing, unit, values,
    equivalent. The name of a kind that was tried at several values ends with `(tuned)`: each seed
    takes the value with the lowest validation error, which may be the unchanged variant (`base`),
    and `values` counts how many seeds took each value.

    Raises:
        Absent: if nothing was trained from scratch and no variant is a control.
    """
    rows = methods.at_home(frames)
    names = rows.loc[rows["phase"] == "finetuned", [*RUN, "mask", "method"]]
    scratch = in_domain(methods.tested(frames.results), phase="scratch")
    scratch = scratch.merge(names, on=[*RUN, "mask"])
    others = tuned(frames.results, frames.controls)
    others = others.assign(
        method=others["kind"].where(others["value"] == "", others["kind"] + TUNED)
    )
    cells = pd.concat([scratch, others])[[*SHOWN]].drop_duplicates()
    if cells.empty:
        raise Absent(
            "Nothing was trained from scratch and no variant is a control: set "
            "`pruning.scratch: true`, or add variants named BASE+KIND to the variant BASE."
        )
    trained = pd.concat([rows.merge(cells), others], ignore_index=True)
    table = pd.concat(
        [*_measures(trained, scratch), _equivalence(frames, names)], ignore_index=True
    )
    table = table.merge(_values(others), on=[*SHOWN, "method"], how="left")
    table = table.assign(
        method=methods.ordered(table["method"]), measure=methods.ordered(table["measure"], MEASURES)
    )
    keys = [*SHOWN, "method", "measure"]
    columns = [*keys, "mean", "low", "high", "sd", "n", "missing", "unit", "values", "equivalent"]
    return methods.sort_rows(table.reindex(columns=columns), keys)


@page(
    "figure",
    "controls",
    title="Pruned, trained from scratch, narrower, and regularised, side by side",
    caption="""
Change of the test MSE against the dense model, side by side: networks fine-tuned after pruning, the
same masks trained from random weights (open marks), and models without pruning that are narrower or
regularised. Negative is better than the dense model. Changes are paired by seed, and bars are
standard deviations over seeds. For masks trained from scratch, the change is that of the mean over
seeds, without a bar.
""",
)
def changes_of_controls(frames: Frames) -> Figure:
    """The changes of the table `controls` against the dense model, one panel a cell.

    Raises:
        Absent: as the table.
    """
    table = controls(frames)
    wanted = table["measure"].isin(["MSE", f"MSE{SCRATCH}", VERSUS[DENSE]])
    parts = style.sample(table[wanted & table["mean"].notna()])
    figure, axes = style.grid(len(parts), height=1.9, extra=0.6, sharex=True)
    names = [name for name in table["method"].cat.categories if name != DENSE]
    names = [name for name in names if name in set(table["method"])]
    for i, (axis, (title, part)) in enumerate(zip(axes, parts, strict=True)):
        rows = {
            key: group.iloc[0] for key, group in part.groupby(["measure", "method"], observed=True)
        }
        base = float(rows["MSE", DENSE]["mean"])
        for y, name in enumerate(names):
            mark = style.mark(name)
            if (VERSUS[DENSE], name) in rows:
                change = rows[VERSUS[DENSE], name]
                axis.errorbar(
                    change["mean"], y, xerr=change["sd"], color=mark.colour, marker=mark.marker,
                    ls="none", elinewidth=0.8,
                )  # fmt: skip
            if (f"MSE{SCRATCH}", name) in rows:
                change = 100 * (rows[f"MSE{SCRATCH}", name]["mean"] / base - 1)
                axis.plot(
                    change, y + 0.3, color=mark.colour, marker=mark.marker, ls="none", mfc="none"
                )
        axis.axvline(0, color=style.BLACK, lw=0.8, zorder=1)
        labels = [style.mark(name).label if i % 2 == 0 else "" for name in names]
        axis.set_yticks(range(len(names)), labels)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(visible=False, axis="y")
        axis.set_title(title)
    style.label(axes, "MSE vs dense (%)", "trained")
    if f"MSE{SCRATCH}" in set(table["measure"]):
        for label, face in (("fine-tuned", style.GREY), ("from scratch", "none")):
            axes[0].plot([], [], "o", color=style.GREY, mfc=face, label=label)
    style.legend_below(figure, axes)
    return figure


def tuned(results: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """Dense test results of the controls: for each kind, the value with the best validation error.

    `controls` has the column `control_of`: the variant that the row is a control of.

    Returns:
        The columns of `results`, where `variant` is the variant that the control is compared with,
        and `kind` and `value` (`BASE` if the unchanged variant is best): one row per run of that
        variant and kind. A value whose training diverged is chosen only if there is no other.
    """
    dense = results[results["phase"] == "dense"]
    rows = controls[controls["phase"] == "dense"]
    parts = rows["variant"].str.split("+", n=1).str[1].str.extract(_KIND).fillna({"value": ""})
    rows = rows.assign(variant=rows["control_of"], kind=parts["kind"], value=parts["value"])
    rows = rows.drop(columns="control_of")
    keys = [*RUN, "kind"]
    tried = rows.loc[rows["value"] != "", keys].drop_duplicates()
    unchanged = dense.merge(tried, on=list(RUN)).assign(value=BASE)
    rows = pd.concat([rows, unchanged], ignore_index=True)
    validation = in_domain(rows, "validation", "dense").sort_values("mse", kind="stable")
    best = validation.drop_duplicates(keys)[[*keys, "value"]]
    return in_domain(rows, "test", "dense").merge(best, on=[*keys, "value"])


def _measures(trained: pd.DataFrame, scratch: pd.DataFrame) -> Iterator[pd.DataFrame]:
    by = [*SHOWN, "method"]
    for method, name in VERSUS.items():
        change = methods.relative_to(trained, method, ["mse"])["mse"]
        changes = methods.summary(trained.assign(change=change), by, "change")
        yield changes.assign(measure=name, unit="%")
    for metric, name in METRICS.items():
        yield methods.summary(trained, by, metric).assign(measure=name, unit="")
        yield methods.summary(scratch, by, metric).assign(measure=name + SCRATCH, unit="")
    for cost, name in COSTS.items():
        yield methods.summary(trained, by, cost).assign(measure=name, unit=name)


def _equivalence(frames: Frames, names: pd.DataFrame) -> pd.DataFrame:
    """Change of each mask trained from scratch against the same mask fine-tuned, per cell."""
    losses = frames.losses[frames.losses["target"] == frames.losses["dataset"]]
    finite = losses["mse"].map(lambda values: bool(np.isfinite(values).all())).astype(bool)
    table = relative_changes(
        losses[finite],
        names,
        ["method"],
        reference="finetuned",
        same_mask=True,
        phase="scratch",
        draws=frames.statistics.bootstrap,
        confidence=frames.statistics.confidence,
        margin=frames.statistics.margin,
    )
    table = table.rename(columns={"change": "mean", "seeds": "n"})
    table[["mean", "low", "high"]] *= 100
    columns = [*SHOWN, "method", "mean", "low", "high", "n", "equivalent"]
    return table[columns].assign(measure=VERSUS_TUNED, missing=0, unit="%")


def _values(others: pd.DataFrame) -> pd.DataFrame:
    """How many seeds took each value: `0.2: 2, 0.3: 1`."""
    tried = others[others["value"] != ""]
    counts = tried.groupby([*SHOWN, "method", "value"]).size().reset_index(name="seeds")
    counts["values"] = counts["value"] + ": " + counts["seeds"].astype(str)
    return counts.groupby([*SHOWN, "method"])["values"].agg(", ".join).reset_index()
