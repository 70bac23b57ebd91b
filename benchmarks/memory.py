"""Memory of the scoring pass: it should not grow with the number of batches."""

from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from cases import TASK, Case, Size, open_case, open_series
from engine import SCORED, scoring_batches
from figure import Figure, Part, Series, Target

from spat.scoring.scores import score
from spat.tasks.task import case_losses
from spat.training.loop import prepare_torch

STATUS = Path("/proc/self/status")
MEGABYTE = 1e6


def measure(size: Size) -> Part:
    """Peak memory of four times the batches, each in a process of its own."""
    part = Part()
    if not STATUS.exists():
        part.remarks["scoring/memory"] = f"skipped: {STATUS} gives the peak; it is not there"
        return part
    prepared = open_series(size)
    batches, batch_size = size.scored
    for model in size.models:
        case = open_case(size, prepared, model)
        more, few = (_measured(case, count * batches, batch_size) for count in (4, 1))
        part.figures.append(
            Figure(
                f"scoring/{model}/memory",
                Series(f"{4 * batches} batches", "MB", (more,)),
                Series(f"{batches} batches", "MB", (few,)),
                Target("at most", 1.1),
            )
        )
    return part


def _measured(case: Case, batches: int, batch_size: int) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, case, batches, batch_size).result()


def _peak(case: Case, batches: int, batch_size: int) -> float:
    """Megabytes at the peak of scoring, above what the process held before."""
    prepare_torch("float32")
    model, train = case.build(), case.splits.train
    held: int = psutil.Process().memory_info().rss
    chosen = scoring_batches(len(train), batches, batch_size)
    score(model, train, chosen, case_losses(TASK), SCORED, batch_size=batch_size)
    # Not what getrusage says: that remembers the process which started this one.
    status = STATUS.read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    assert found is not None
    return max(1024 * int(found.group(1)) - held, MEGABYTE) / MEGABYTE
