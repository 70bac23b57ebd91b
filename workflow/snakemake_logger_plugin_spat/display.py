"""The display: jobs weighted by expected work, and the masks and epochs in their logs.

On a terminal, the display redraws a few lines every second. In a file or a pipe, it writes a line
for each finished job, and the running jobs every 20 seconds.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

# The line that the training loop writes for an epoch.
EPOCH: Final = re.compile(
    rb"^(?P<label>.+) epoch (?P<epoch>\d+)/(?P<of>\d+): .* at most (?P<left>\d+) s left\s*$",
    re.MULTILINE,
)
MASK: Final = re.compile(r"masks/(?P<mask>[01.]+)/(?P<kind>[a-z]+\d+)$")
REDRAW_S: Final = 1.0
LINES_EVERY_S: Final = 20.0
# The share of all work after which the measured speed of the machine counts as much as the expected
# speed in the time left.
TRUST_AFTER: Final = 0.1
# The largest share of a job that has not finished.
ALMOST: Final = 0.95


@dataclass(frozen=True)
class Expected:
    """A job that will run: its number, name, logs, seconds, threads, and networks to train.

    `networks` is an upper bound; it is 1 if the job trains one network or none.
    """

    number: int
    name: str
    logs: tuple[Path, ...]
    seconds: float
    threads: int = 1
    networks: int = 1

    @property
    def work(self) -> float:
        """Core-seconds that the job uses or reserves."""
        return self.seconds * self.threads


@dataclass
class Running:
    """A job that has begun, and the progress that was read from its logs."""

    job: Expected
    begun: float
    offsets: dict[Path, int] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)  # network -> finished share
    last: tuple[str, str, str, int] | None = None

    def read(self) -> None:
        """Read the new lines of the logs."""
        for path in self.job.logs:
            self._read(path)

    def _read(self, path: Path) -> None:
        offset = self.offsets.get(path, 0)
        try:
            if path.stat().st_mtime < self.begun - 1:  # left by an earlier run
                return
            if path.stat().st_size < offset:
                offset, self.epochs, self.last = 0, {}, None
            with path.open("rb") as file:
                file.seek(offset)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self.offsets[path] = offset + len(whole)
        for match in EPOCH.finditer(whole):
            label, epoch, of, left = (
                match[key].decode(errors="replace") for key in match.re.groupindex
            )
            self.epochs[label] = int(epoch) / int(of)
            self.last = label, epoch, of, int(left)

    def share(self, now: float) -> float:
        """The finished share of the job, from 0 to below 1."""
        if self.epochs:
            done = sum(self.epochs.values()) / max(self.job.networks, len(self.epochs))
        else:
            done = (now - self.begun) / max(self.job.seconds, 1.0)
        return min(done, ALMOST)

    def left(self, now: float) -> float:
        """The expected seconds until the job ends."""
        passed, share = now - self.begun, self.share(now)
        if not self.epochs:
            return max(self.job.seconds - passed, 1.0)
        if self.job.networks == 1 and self.last is not None:
            return float(self.last[3])
        return passed * (1 - share) / share

    def line(self, now: float) -> str:
        """One line: job, mask, epoch, time left."""
        parts = []
        if self.last is not None:
            label, epoch, of, _ = self.last
            which = f"({len(self.epochs)} of at most {self.job.networks})"
            if match := MASK.search(label):
                extra = "" if match["kind"] == "order0" else f" {match['kind']}"
                parts.append(f"mask {match['mask']}{extra} {which}")
            elif self.job.networks > 1:
                parts.append(f"{label} {which}")
            parts.append(f"epoch {epoch}/{of}")
        overdue = not self.epochs and now - self.begun > self.job.seconds
        passed = f"running for {duration(now - self.begun)}"
        parts.append(passed if overdue else f"about {duration(self.left(now))} left")
        return f"{self.job.name}: {', '.join(parts)}"


class Display:
    """The progress of a run of Snakemake.

    One thread receives messages and another draws; a lock serialises them.
    """

    def __init__(
        self, jobs: Sequence[Expected], cores: int, title: str, logs: str, stream: TextIO
    ) -> None:
        self.jobs = {job.number: job for job in jobs}
        self.cores, self.title, self.logs, self.stream = cores, title, logs, stream
        self.live = stream.isatty()
        self.running: dict[int, Running] = {}
        self.ended: set[int] = set()
        self.total = max(sum(job.work for job in jobs), 1.0)
        self.done = 0.0
        self.begun = time.time()
        self._drawn = 0
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw_again, daemon=True)

    def start(self) -> None:
        """Write the number of jobs and the expected time, and begin to draw."""
        cores = "one core" if self.cores == 1 else f"{self.cores} cores"
        self._write(
            f"{self.title}: {len(self.jobs)} jobs, about {duration(self.total / self.cores)} on "
            f"{cores} that do nothing else\nThe log of each job is in {self.logs}\n"
        )
        self._thread.start()

    def begin(self, number: int) -> None:
        """Record that a job has begun."""
        with self._lock:
            if number in self.jobs:
                self.running[number] = Running(self.jobs[number], time.time())

    def finish(self, number: int) -> None:
        """Record that a job has succeeded; the display stops after the last job."""
        with self._lock:
            running = self.running.pop(number, None)
            if number not in self.jobs or number in self.ended:
                return
            self.ended.add(number)
            self.done += self.jobs[number].work
            with self.paused():
                took = f" in {duration(time.time() - running.begun)}" if running else ""
                if self.jobs[number].work:
                    self._write(
                        f"{self.percent(time.time())} {self.jobs[number].name}: done{took}\n"
                    )
                if len(self.ended) == len(self.jobs):
                    self._write(
                        f"100% {len(self.jobs)} jobs in {duration(time.time() - self.begun)}\n"
                    )
                    self._over.set()

    def fail(self, number: int) -> None:
        """Record that a job has failed; Snakemake may try it again."""
        with self._lock:
            self.running.pop(number, None)

    def stop(self) -> None:
        """Remove the drawn lines and stop drawing."""
        self._over.set()
        with self._lock:
            self._clear()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager: nothing is drawn inside, so that other text can be written."""
        with self._lock:
            self._clear()
            yield
            if self.live and not self._over.is_set():
                self._draw()

    def share(self, now: float) -> float:
        """The finished share of all expected work, from 0 to 1."""
        begun = sum(r.share(now) * r.job.work for r in self.running.values())
        return min((self.done + begun) / self.total, 1.0)

    def percent(self, now: float) -> str:
        """The finished share as text; at most 99 %."""
        return f"{min(int(100 * self.share(now)), 99):3d}%"

    def left(self, now: float) -> float:
        """The expected seconds left, corrected by the measured speed of the machine."""
        share, expected = self.share(now), self.total / self.cores
        pace = (now - self.begun + TRUST_AFTER * expected) / (share + TRUST_AFTER)
        longest = max((r.left(now) for r in self.running.values()), default=0.0)
        return max((1 - share) * pace, longest)

    def lines(self, now: float) -> list[str]:
        """A line for the whole run, and a line for each running job."""
        for running in self.running.values():
            running.read()
        head = (
            f"{self.percent(now)} about {duration(self.left(now))} left, "
            f"{len(self.ended)} of {len(self.jobs)} jobs done"
        )
        longest = sorted(self.running.values(), key=lambda running: running.begun)
        return [head, *(f"     {running.line(now)}" for running in longest)]

    def _draw_again(self) -> None:
        pause = REDRAW_S if self.live else LINES_EVERY_S
        while not self._over.wait(pause):
            try:
                with self._lock:
                    if not self._over.is_set():
                        self._clear()
                        self._draw()
            except Exception as error:
                self.stream.write(
                    f"spat: the display of progress failed ({error}); the run continues\n"
                )
                return

    def _draw(self) -> None:
        lines = self.lines(time.time())
        if self.live:
            width, height = shutil.get_terminal_size()
            lines = [line[: width - 1] for line in lines[: height - 1]]
            self._drawn = len(lines)
        self._write("".join(f"{line}\n" for line in lines))

    def _clear(self) -> None:
        if self.live and self._drawn:
            self._write(f"\x1b[{self._drawn}F\x1b[J")
        self._drawn = 0

    def _write(self, text: str) -> None:
        code = self.stream.encoding or "utf-8"  # not every encoding has all characters
        self.stream.write(text.encode(code, "replace").decode(code))
        self.stream.flush()


def duration(seconds: float) -> str:
    """Format seconds, rounded: `8 s`, `3 min`, `1 h 20 min`."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
