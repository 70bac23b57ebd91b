"""Peak memory of the scoring pass, which should not grow with the number of batches."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from alternation import Contestant
from cases import Size, open_case, open_series
from engine import scoring
from figure import Figure, Part, Series, Target

from spat.training.loop import prepare_torch

STATUS = Path("/proc/self/status")
MEGABYTE = 1e6


def measure(size: Size) -> Part:
    """Compare the peak memory of four times the batches; each measurement has its own process."""
    part = Part()
    if not STATUS.exists():
        part.remarks["scoring/memory"] = f"skipped: {STATUS} gives the peak; it is not there"
        return part
    prepared = open_series(size)
    batches, batch_size = size.scored
    for model in size.models:
        case = open_case(size, prepared, model)
        more, few = (peak(scoring, case, count * batches, batch_size) for count in (4, 1))
        part.figures.append(
            Figure(
                f"scoring/{model}/memory",
                Series(f"{4 * batches} batches", "MB", (more,)),
                Series(f"{batches} batches", "MB", (few,)),
                Target("at most", 1.1),
            )
        )
    return part


def peak(make: Callable[..., Contestant], *arguments: Any) -> float:
    """Peak memory in MB of one lap of `make(*arguments)`, in its own process.

    Memory that the process used before `make` is not counted. `make` and its arguments are
    pickled.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, make, arguments).result()


def _peak(make: Callable[..., Contestant], arguments: Sequence[Any]) -> float:
    prepare_torch("float32")
    held: int = psutil.Process().memory_info().rss
    make(*arguments)()
    return max(peak_of("self") - held / MEGABYTE, 1.0)


def peak_of(process: int | str) -> float:
    """Peak memory in MB of a process so far; 0 if it has ended.

    `getrusage` is not used, since it includes the peak of the parent process.
    """
    try:
        status = STATUS.parents[1] / str(process) / "status"
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
    except FileNotFoundError:
        return 0.0
    return 1024 * int(peak.group(1)) / MEGABYTE if peak else 0.0
