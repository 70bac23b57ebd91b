"""One run, and several runs at the same time, on a GPU, against the conventional loop there."""

from __future__ import annotations

from functools import partial

import torch
from alternation import Contestant, alternate, best, rates
from cases import Case, Size, open_case, open_series
from figure import Figure, Part, Series, Target
from loops import ConventionalLoop, OurLoop, quiet
from machine import Rates, card_rates
from products import step_of

from spat.training.device.concurrency import Workers


def measure(size: Size) -> Part:
    """Measure the figures of each model in wall-clock time."""
    part = Part()
    if not torch.cuda.is_available():
        part.remarks["training/card"] = "skipped: torch sees no CUDA device"
        return part
    part.facts["card"] = torch.cuda.get_device_name()
    measured = card_rates("cuda")
    part.facts["rates"] = measured.plain()
    prepared = open_series(size)
    for model in size.models:
        part.figures += figures(size, open_case(size, prepared, model), measured, "cuda")
    return part


def figures(size: Size, case: Case, measured: Rates, device: str) -> list[Figure]:
    """Time one run of all epochs, and `size.streams` runs at the same time."""
    theirs = {f"workers-{n}": ConventionalLoop(case, n, device=device) for n in size.workers}
    contestants: dict[str, Contestant] = {
        "one": OurLoop(case, device, size.epochs),
        "streams": _side_by_side(case, size, device),
        **theirs,
    }
    laps = alternate(contestants, size.rounds)
    yardstick = best({name: laps[name] for name in theirs}, "wall")
    against = Series(f"conventional, {yardstick}", "windows/s", rates(laps[yardstick], "wall"))
    floor = step_of(case).ideal(measured, validation=True)
    return [
        Figure(
            f"training/{case.model}/card/{name}",
            Series(label, "windows/s", rates(laps[name], "wall")),
            against,
            Target("at least", target),
            floor=floor,
        )
        for name, label, target in (
            ("one", "one run, ours", 10.0),
            ("streams", f"{size.streams} runs side by side, ours", 30.0),
        )
    ]


def _side_by_side(case: Case, size: Size, device: str) -> Contestant:
    pool = Workers(torch.device(device), size.streams)
    loops = [OurLoop(case, device, size.epochs) for _ in range(size.streams)]

    def lap() -> float:
        with quiet():
            return sum(pool.threads([partial(pool.run, loop.train) for loop in loops]))

    return lap
