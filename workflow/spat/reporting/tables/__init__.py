"""The tables: one pure function each, and how each is laid out on a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from spat.evaluation.stability import THRESHOLD
from spat.files import write_text
from spat.reporting import render
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CHOSEN, SHOWN
from spat.reporting.render import INTERVAL, Layout, Note
from spat.reporting.tables import (
    accuracy,
    adaptive,
    changes,
    controls,
    efficiency,
    precision,
    pruning,
    quality,
    replicates,
    robustness,
    sources,
    stability,
    transfer,
    validation,
)

ENDINGS: Final = ("csv", "md", "tex")


@dataclass(frozen=True)
class Table:
    """A table: what computes it, its title, how it is laid out, and what a reader must know.

    `function` gives the tidy frame, or raises `Absent` where the experiment holds nothing to show.
    """

    function: Callable[[Frames], pd.DataFrame]
    title: str
    layout: Layout
    notes: tuple[str | Note, ...] = ()


_REPEATED: Final = "Ratios that remove the same number of sites stand under the smallest of them."
_CHOSEN: Final = Note(CHOSEN, f"{CHOSEN}: the ratio with the lowest validation error.")
_PAIRED: Final = "Changes are paired by seed, then averaged."

TABLES: Final[dict[str, Table]] = {
    "main": Table(
        accuracy.main,
        "Test errors of the dense model, the control, SPAT, and no attention at all",
        Layout((*SHOWN, "metric"), "method"),
        (
            "Control: the dense model with the same extra epochs as the pruned ones.",
            _CHOSEN,
            _REPEATED,
            _PAIRED,
        ),
    ),
    "changes": Table(
        changes.changes,
        "Change of the test MSE against the control, with its interval",
        Layout(SHOWN, "method", best=False),
        (
            "Paired moving-block bootstrap over test windows, crossed with seeds.",
            "An interval of one seed is about the test windows alone.",
            _CHOSEN,
        ),
    ),
    "sources": Table(
        sources.sources,
        "Change of the test MSE against the control over independent data sources",
        Layout(("model", "variant", "method"), "measure", best=False, counted="sources"),
        sources.NOTES,
    ),
    "efficiency": Table(
        efficiency.efficiency,
        "What pruning saves: the dense model's values and the change against them",
        Layout((*SHOWN, "metric"), "method", best=False),
        (
            f"Paper: average changes reported in {efficiency.SOURCE}.",
            "Averages: seeds first, then horizons, datasets of a station, stations, models.",
            _CHOSEN,
            _PAIRED,
        ),
    ),
    "zeroshot": Table(
        transfer.zeroshot,
        "Zero-shot transfer: trained on the source, tested on the target",
        Layout(("source", *transfer.KEYS[1:], "metric"), "method", unranked=("trained on target",)),
        (
            "Nothing is trained on the target; its scaler is fitted on its training rows.",
            "Trained on target: the dense model of that dataset, outside of the ranking.",
            "Last column: SPAT's gain over the control on the target minus the same gain at home.",
            _CHOSEN,
        ),
    ),
    "heads": Table(
        pruning.heads,
        "Heads against modules at an equal share removed",
        Layout((*SHOWN, "criterion", "matched", "share", "metric"), "method"),
        (Note("random", "Random: mean of the random masks that remove as many."), _PAIRED),
    ),
    "criteria": Table(
        pruning.criteria,
        "Test MSE by criterion and share removed",
        Layout(
            (*SHOWN, "level", "criterion"),
            "share",
            within=(*SHOWN, "level"),
        ),
        ("What removes nothing or everything is left out, since all criteria agree on it.",),
    ),
    "quality": Table(
        quality.quality,
        "Quality of the criteria where every mask was fine-tuned",
        Layout(("model", "variant", "criterion"), "measure", best=False, counted="runs"),
        (
            "Gain: the mean error of all masks with as many sites removed, minus the error of the "
            "criterion's mask (positive is better than chance).",
            "Regret: its error minus that of the oracle's mask.",
            "Intervals (t, variances pooled over cells) are over seeds: what other test windows or "
            "other data would give, they do not know.",
            "P-values: of a gain by a t-test over seeds, of an agreement by permuting the sites of "
            "each run; adjusted over all criteria. The last one gives all runs the same order.",
        ),
    ),
    "quality_cells": Table(
        quality.in_cells,
        "Quality of the criteria, cell by cell",
        Layout((*SHOWN, "criterion"), "measure", best=False, counted="runs"),
        (
            "As in the table of averages, which can hide cells that disagree. Intervals (t) are "
            "over the seeds of the cell; p-values are adjusted over the criteria of a cell.",
        ),
    ),
    "replicates": Table(
        replicates.replicates,
        "Is there a ranking to be found? Masks against data orders, and what the seeds can show",
        Layout((*SHOWN, "removed", "ranking"), "measure", best=False, kept=("removed", "ranking")),
        (
            "Deviations in percent of the MSE. F: variance of the masks' means over that of "
            "replicates (an order's common effect taken out); about 1 where all masks are equal.",
            "Ranking: yes; below noise (F significant, but masks differ by less than replicates); "
            "no (F not significant); not replicated (fewer than three data orders).",
            "Sd of seeds: of a mask's change against the control. Detectable: the smallest such "
            "change that a paired t-test of as many seeds finds with a power of 80 % at 5 %.",
            "Tau-b: how well the changes by leaving out one site agree between orders and seeds, "
            "each as noisy as the other.",
        ),
    ),
    "stability": Table(
        stability.stability,
        "Stability of the scores of the sites",
        Layout(stability.BY, "measure", best=False, counted="runs"),
        (
            "CV: coefficient of variation of a site's score from batch to batch; 4 batches joined "
            "are one that is four times as large.",
            "Tau-b: rank agreement of the sites, of 1 or 4 batches with all, and of one half of "
            "the batches with the other; of the other epochs with the kept one; between seeds.",
            "Batches needed: from there on the mean tau-b with all, or with as many other batches, "
            f"is at least {THRESHOLD:g}.",
        ),
    ),
    "validation": Table(
        validation.validation,
        "SEND against the uniformity of the attention maps: Spearman's rho",
        Layout((*SHOWN, "places"), "measure", best=False, counted="runs", kept=("places",)),
        (
            "Negative: SEND is low where attention is uniform.",
            "All runs: over the places of all runs together. Within a run: of each run alone, "
            "averaged.",
            "Intervals are a bootstrap over runs.",
        ),
    ),
    "precision": Table(
        precision.precision,
        "SEND in float32 against float64, by the number of keys",
        Layout(("model", "keys", "loss"), "measure", best=False, counted="windows"),
        (
            "Relative error of the SEND of a site in a window, on untrained networks and generated "
            f"data (`{precision.COMMAND}`).",
            "SEND is computed in float64 from the loss of each window.",
        ),
    ),
    "adaptive": Table(
        adaptive.adaptive,
        "Adaptive ratios against one ratio fixed on the other data sources",
        Layout(
            ("model", "variant", "station", "rule"),
            "measure",
            best=False,
            counted="runs",
            kept=("station", "rule"),
        ),
        (
            "Fixed ratio: the one with the least validation error on the other stations, the "
            "control (0) among them.",
            "Fine-tunings: what it takes to end with the fine-tuned mask.",
            "Averages: seeds first, then horizons, datasets of a station, stations.",
            Note(INTERVAL, "Intervals are over seeds."),
        ),
    ),
    "robustness": Table(
        robustness.robustness,
        "Which criteria notice a manipulated site, and whether it really is worth less",
        Layout(
            ("dataset", "model", "variant", "measure", "criterion"),
            "manipulation",
            best=False,
            counted="runs",
            kept=("measure", "criterion"),
        ),
        (
            "AUROC: manipulated against intact at the same position, ties one half.",
            "Worth less: the share of sites that leaving out changes less than when intact.",
            "Intervals are over checkpoints.",
        ),
    ),
    "leave_one_out": Table(
        robustness.leave_one_out,
        "Change of the test MSE by leaving one site out, intact and manipulated",
        Layout((*SHOWN, "site", "phase"), "manipulation", best=False, kept=("site",)),
        ("Percent of the MSE of the intact network; positive: the site is of use.",),
    ),
    "controls": Table(
        controls.controls,
        "What else could explain a gain: training from scratch, size, regularisation",
        Layout((*SHOWN, "method"), "measure", within=SHOWN),
        (
            "From scratch: the same mask on random weights, with the epochs and learning rates of "
            "pre-training and fine-tuning together.",
            "Below the masks, dense models trained as the dense one, without the extra epochs, so "
            "to be compared with it: narrow (as small as what is left without attention), dropout, "
            "sam (sharpness-aware minimisation).",
            "Tuned: each seed has the value of its best validation error, no change (base) too.",
            _CHOSEN,
            _REPEATED,
            _PAIRED,
        ),
    ),
    "reproduction": Table(
        accuracy.reproduction,
        "Dense test errors beside the published ones",
        Layout(
            (*accuracy.REPRODUCED, "metric", "verdict", "source"),
            "method",
            best=False,
            kept=("model", "dataset", "verdict"),
        ),
        (f"Reproduced means within {accuracy.TOLERANCE:g} % of the published error, or better.",),
    ),
}


def rendered(name: str, frames: Frames) -> dict[str, str]:
    """A table as text by file ending; a table that the experiment cannot fill says why."""
    table = TABLES[name]
    try:
        frame = table.function(frames)
    except Absent as absent:
        return render.nothing(table.title, str(absent))
    page = render.page(frame, table.layout, table.notes)
    return {
        "csv": frame.to_csv(index=False, float_format="%.10g"),
        "md": render.markdown(page, table.title),
        "tex": render.latex(page, table.title, name),
    }


def plain(name: str, frames: Frames) -> str:
    """A table for the terminal."""
    table = TABLES[name]
    try:
        page = render.page(table.function(frames), table.layout, table.notes)
    except Absent as absent:
        return f"{table.title}\n\n{absent}\n"
    return render.text(page, table.title)


def write_table(name: str, frames: Frames, folder: Path) -> tuple[Path, ...]:
    """Write `<folder>/<name>.csv`, `.md` and `.tex`; the paths written.

    Raises:
        KeyError: if there is no table of that name.
    """
    paths = []
    for ending, content in rendered(name, frames).items():
        path = folder / f"{name}.{ending}"
        write_text(path, content)
        paths.append(path)
    return tuple(paths)
