"""One single-thread job per core, against one conventional loop on the whole machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain

from alternation import DISTURBED, Contestant, alternate, best, rates
from cases import Case, Size, open_case, open_series
from figure import Figure, Part, Series, Target
from loops import ConventionalLoop, OurLoop
from machine import Rates, cores
from products import step_of

# The contestants that a process of the pool runs, by name, since contestants cannot be pickled.
_contestants: dict[str, Contestant] = {}


def measure(size: Size, machine: Rates) -> Part:
    """Measure the figure of each model in wall-clock time."""
    part = Part()
    prepared = open_series(size)
    for model in size.models:
        case = open_case(size, prepared, model).short(size.batches[model])
        with _processes(case, size.workers) as contestants:
            laps = alternate(contestants, size.rounds, patience=size.patience)
        lapped = laps.pop("ours")
        disturbed = max(lap.others for lap in (*lapped, *chain.from_iterable(laps.values())))
        if disturbed > DISTURBED:
            part.remarks[f"training/{model}/in-all"] = (
                f"disturbed: others kept up to {disturbed:.1f} of {cores()} cores busy"
            )
        engines = rates(lapped, "wall")
        yardstick = best(laps, "wall")
        floor = cores() * step_of(case).ideal(machine, validation=True)
        part.figures += [
            Figure(
                f"training/{model}/in-all" + ("" if name == yardstick else f"/{name}"),
                Series(f"{cores()} jobs of one thread, ours", "windows/s", engines),
                Series(
                    f"conventional, {cores()} threads, {name}", "windows/s", rates(lapped, "wall")
                ),
                Target("at least", 2.6) if name == yardstick else None,
                floor=floor,
                detail=name != yardstick,
            )
            for name, lapped in laps.items()
        ]
    return part


@contextmanager
def _processes(case: Case, workers: tuple[int, ...]) -> Iterator[dict[str, Contestant]]:
    """Processes that start before the first lap and are idle while other contestants run."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:

        def started(kind: str) -> ProcessPoolExecutor:
            pool = ProcessPoolExecutor(1, context, _start, (kind, case, workers))
            return stack.enter_context(pool)

        engines = [started("ours") for _ in range(cores())]
        theirs = started("conventional")

        def all_engines() -> float:
            return _total([pool.submit(_run, "ours") for pool in engines])

        def conventional(name: str) -> Contestant:
            return lambda: _total([theirs.submit(_run, name)])

        yield {"ours": all_engines} | {n: conventional(n) for n in _names(workers)}


def _names(workers: tuple[int, ...]) -> dict[str, int]:
    return {f"workers-{count}": count for count in workers}


def _start(kind: str, case: Case, workers: tuple[int, ...]) -> None:
    if kind == "ours":
        _contestants["ours"] = OurLoop(case)
    else:
        for name, count in _names(workers).items():
            _contestants[name] = ConventionalLoop(case, count, threads=cores())


def _run(name: str) -> float:
    return _contestants[name]()


def _total(futures: list[Future[float]]) -> float:
    return sum(future.result() for future in futures)
