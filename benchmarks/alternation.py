"""Measure contestants in turn in one run, so that a drift of the machine affects all of them.

Work on one core is measured in CPU time, including that of child processes: jobs of other users do
not count, and the workers that a loop starts do.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

import psutil  # type: ignore[import-untyped]

# Cores that others may keep busy in a lap, and seconds of waiting before the lap is run again.
DISTURBED = 0.15
PAUSE = 2.0

Contestant = Callable[[], float]
Clock = Literal["cpu", "wall"]


class Lap(NamedTuple):
    """One turn of a contestant: its work (windows, calls) and its seconds.

    `others` is the number of cores that other processes kept busy during the lap.
    """

    work: float
    cpu: float
    wall: float
    others: float = 0.0

    def rate(self, clock: Clock) -> float:
        """Work per second."""
        return self.work / self.seconds(clock)

    def seconds(self, clock: Clock) -> float:
        """Seconds of the whole lap."""
        return self.cpu if clock == "cpu" else self.wall


Laps = dict[str, list[Lap]]


def alternate(
    contestants: Mapping[str, Contestant],
    rounds: int,
    *,
    warm_up: bool = True,
    patience: float = 0.0,
) -> Laps:
    """The laps of each contestant, one per round; the order shifts by one in each round.

    A call of a contestant does a piece of work and returns its amount. With `warm_up`, the first
    round, which chooses kernels and fills caches, is dropped. Laps in which other processes used
    the machine are run again, for `patience` seconds in all.
    """
    names = list(contestants)
    laps: Laps = {name: [] for name in names}
    deadline = time.monotonic() + patience
    for turn in range(-int(warm_up), rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            measured = lap(contestants[name])
            while measured.others > DISTURBED and turn >= 0 and time.monotonic() < deadline:
                time.sleep(PAUSE)
                measured = lap(contestants[name])
            if turn >= 0:
                laps[name].append(measured)
        shown = ", ".join(f"{n} {ls[-1].cpu:.2f}" for n, ls in laps.items() if ls)
        print(f"  round {turn + 1}/{rounds}, CPU s: {shown or 'warm-up'}", file=sys.stderr)
    return laps


def lap(contestant: Contestant) -> Lap:
    """One turn, on both clocks."""
    busy, children = _busy(), _children()
    wall, own = time.perf_counter(), time.process_time()
    work = contestant()
    own, wall = time.process_time() - own, time.perf_counter() - wall
    cpu = own + _children() - children
    return Lap(work, cpu, wall, max(0.0, _busy() - busy - cpu) / wall)


def rates(laps: Sequence[Lap], clock: Clock = "cpu") -> tuple[float, ...]:
    """Work per second of each lap."""
    return tuple(lap.rate(clock) for lap in laps)


def seconds(laps: Sequence[Lap], clock: Clock = "cpu") -> tuple[float, ...]:
    """Seconds of each lap."""
    return tuple(lap.seconds(clock) for lap in laps)


def best(laps: Mapping[str, Sequence[Lap]], clock: Clock) -> str:
    """The contestant with the highest median rate."""
    return max(laps, key=lambda name: median(rates(laps[name], clock)))


def _busy() -> float:
    """CPU seconds that the whole machine has worked, on all cores."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _children() -> float:
    """CPU seconds of all processes below this one, the finished ones and the living."""
    times = os.times()
    total = float(times.children_user + times.children_system)
    for child in psutil.Process().children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system + used.children_user + used.children_system
    return total
