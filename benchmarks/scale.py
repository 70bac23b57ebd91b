"""Wide series: the speed and memory of each part of the work, against the conventional loop.

All contestants work on the same windows. Their speeds are measured in alternation, and the peak
memory of each in its own process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from alternation import Contestant, alternate, rates, seconds
from cases import TASK, Case, Size, wide_case
from engine import conventional_steps, our_steps, scoring
from figure import Figure, Part, Series, Target
from memory import STATUS, peak

from spat.attention.mask import Mask
from spat.data.registry import DATASETS
from spat.surgery import cut
from spat.training.device import costs

# From this number of channels, the target is a peak below 0.6 of that of the conventional loop.
WIDE = 321


def measure(size: Size) -> Part:
    """Measure the published iTransformer at the widths of the datasets, on generated series."""
    part = Part()
    for dataset in size.wide:
        channels = DATASETS[dataset].channels or 7
        case = wide_case(size, "iTransformer", channels, batch=size.wide_batch, dataset=dataset)
        case = case.short(size.wide_batches)
        laps = alternate({name: make(case) for name, make in WORK.items()}, size.rounds)
        part.figures.append(
            Figure(
                f"scale/{channels}/steps",
                steps := Series("training steps, ours", "windows/s", rates(laps["steps"])),
                Series("conventional", "windows/s", rates(laps["conventional"])),
            )
        )
        part.figures += [
            Figure(
                f"scale/{channels}/{name}/time",
                Series(name, "s", seconds(laps[name])),
                Series("training steps, same windows", "s", seconds(laps["steps"])),
            )
            for name in LATER
        ]
        if not STATUS.exists():
            part.remarks["scale/memory"] = f"skipped: {STATUS} gives the peak; it is not there"
            continue
        peaks = {name: Series(name, "MB", (peak(make, case),)) for name, make in WORK.items()}
        part.figures.append(
            Figure(
                f"scale/{channels}/memory",
                Series(steps.label, "MB", peaks["steps"].values),
                peaks["conventional"],
                Target("at most", 0.6) if channels >= WIDE else None,
            )
        )
        part.figures += [
            Figure(
                f"scale/{channels}/{name}/memory",
                peaks[name],
                Series("training steps", "MB", peaks["steps"].values),
            )
            for name in LATER
        ]
    return part


def _scoring(case: Case) -> Contestant:
    size = case.recipe.batch_size
    return scoring(case, len(case.splits.train) // size, size)


def _pruning(case: Case) -> Contestant:
    """Cut every site of a copy, verify the surgery, and evaluate the network on the windows."""
    dense = case.build()
    mask = Mask.empty(cut.heads_of(dense))

    def lap() -> float:
        model, example = copy.deepcopy(dense), TASK.example(dense.shape)
        cut.prune(model, mask, partial(TASK.forward, model, example))
        with torch.inference_mode():
            for index in torch.split(torch.arange(len(case.splits.train)), case.recipe.batch_size):
                TASK.forward(model.eval(), case.splits.train.batch(index))
        return float(len(case.splits.train))

    return lap


def _measuring(case: Case) -> Contestant:
    """Measure the latency of the dense network and of the network without sites."""
    dense = case.build()
    model = copy.deepcopy(dense)
    batch = TASK.example(dense.shape, case.recipe.batch_size)
    cut.prune(model, Mask.empty(cut.heads_of(dense)), lambda: TASK.forward(model, batch))
    repeats = len(case.splits.train) // case.recipe.batch_size

    def lap() -> float:
        networks = {"dense": dense, "pruned": model}
        costs.latency(networks, TASK, batch, repeats, torch.device("cpu"))
        return float(len(case.splits.train))

    return lap


WORK: dict[str, Callable[[Case], Contestant]] = {
    "steps": our_steps,
    "conventional": conventional_steps,
    "scoring": _scoring,
    "pruning": _pruning,
    "measuring": _measuring,
}
LATER = ("scoring", "pruning", "measuring")
