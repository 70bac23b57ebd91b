"""The campaign of faults: generated cases, each classified, and a table of the outcomes.

    python tests/faults/campaign.py [--kinds kept state ...] [--minutes N] [--write]

Each case runs the command line in a forked child in its own folder, so that a kill kills a real
process and cases do not affect each other. A case is bad if the result differs without a message
(`silent`), an exception is not explained (`traceback`), the same command keeps failing
(`dead end`), or a file outside of the experiment was touched (`escaped`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import datetime
import gc
import hashlib
import importlib
import io
import itertools
import json
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests" / "workflow")]
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from project import TINY  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from spat.files import write_json  # noqa: E402
from spat.pipeline import cli, records  # noqa: E402
from spat.pipeline.cache import write_record  # noqa: E402
from spat.pipeline.frames import COLUMNS  # noqa: E402
from spat.pipeline.stages import report as reports  # noqa: E402

RUN: Final = "synthetic/iTransformer-tiny/l24-h12/seed0"
TIMEOUT_S: Final = 120.0
ATTEMPTS: Final = 3  # the same command mends what is damaged in at most as many calls
KILLED: Final = 137
UNCAUGHT: Final = 70
TIMED_OUT: Final = 124
VOLATILE: tuple[str, ...] = ("wall_s", "seconds", "latency_ms", "latency_spread_ms", "memory_mb")
VOLATILE += ("commit",)  # the checkout may be committed to while a campaign runs

GOOD: Final = ("refused", "mended", "resumed", "no effect", "valid")
BAD: Final = ("silent", "traceback", "dead end", "escaped", "litter")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a case, one of GOOD and BAD, and its output."""

    name: str
    shown: str = ""


Case = tuple[str, Callable[[Path], Outcome]]


# Children.


def preload(folder: Path) -> None:
    """Import modules and build schemas once, since each child is a copy of this process.

    `folder` is removed. The commands of the cases run there, because they import some modules late.
    """
    for module in pkgutil.iter_modules([str(ROOT / "workflow" / "spat" / "pipeline" / "stages")]):
        importlib.import_module(f"spat.pipeline.stages.{module.name}")
    folder.mkdir(parents=True)
    configuration(folder)
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for command in (GRID, COLLECT, TABLES, PAGE):
            assert cli.main(command) == 0, command
    shutil.rmtree(folder)
    gc.collect()
    gc.freeze()  # children then share the memory of these objects


def without_table() -> None:
    """Let `grid` print no table: where `collect` follows, it reads the same files again."""
    reports.table_so_far = lambda _: ""


def call(
    folder: Path,
    *commands: list[str],
    before: Callable[[], None] | None = None,
    kill_after: float | None = None,
) -> tuple[int, str]:
    """Run commands in a child until one fails; return its status and the output."""
    printed = folder / "printed.txt"
    child = os.fork()
    if child == 0:
        status = UNCAUGHT
        try:
            out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(folder)
            if before:
                before()
            for command in commands:
                if status := cli.main(command):
                    break
            sys.stdout.flush()
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
            status = UNCAUGHT
        finally:
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + (TIMEOUT_S if kill_after is None else kill_after)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = TIMED_OUT if kill_after is None else KILLED
            return code, printed.read_text(errors="replace") if printed.exists() else ""
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(status), printed.read_text(errors="replace")


def unexplained(status: int, shown: str) -> bool:
    """Whether a failure is a traceback, a hang, or an exception that only names its place."""
    return (
        status not in (0, 1, 2)
        or "Traceback (most recent call last)" in shown
        or re.search(r"\(in \S+\.py, line \d+", shown) is not None
    )


# The experiment that is damaged.


def configuration(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    values = {**TINY, "tracking": {"enabled": False}, "results": "results", **changes}
    # A rule that reads the validation losses of all masks of a path.
    site = {**TINY["pruning"]["site"], "ratios": [1.0, "auto:validation"]}
    values["pruning"] = {**TINY["pruning"], "site": site}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


GRID: Final = ["grid", "--config", "tiny.yaml"]
COLLECT: Final = ["collect", "--config", "tiny.yaml"]
TABLES: Final = ["tables", "--config", "tiny.yaml"]
PAGE: Final = ["page", "--config", "tiny.yaml"]


def snapshot(folder: Path) -> dict[str, str]:
    """Digests of all results that are the same in every run; volatile columns are left out."""
    results = folder / "results" / "tiny"
    hashes = {}
    for pattern in ("**/*.safetensors", "**/*.npy", "**/*.npz", "**/selections.csv"):
        for path in results.glob(pattern):
            if path.name != "maps.npz" and "prepared" not in path.parts:
                hashes[path.relative_to(results).as_posix()] = digest(path.read_bytes())
    for name in COLUMNS:
        frame = pd.read_parquet(results / "data" / f"{name}.parquet")
        if name == "history":
            frame = frame.query("quantity != 'seconds'")
        frame = frame.drop(columns=[c for c in VOLATILE if c in frame])
        hashes[f"data/{name}"] = digest(frame.to_json(double_precision=15).encode())
    return hashes


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def litter(folder: Path) -> list[str]:
    return [path.name for path in (folder / "results").rglob("*.tmp")]


# Damage to a file.


def flip(content: bytes, at: float, bit: int = 2) -> bytes:
    if not content:
        return b"\x04"
    place = min(int(at * len(content)), len(content) - 1)
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def later(digit: re.Match[bytes]) -> bytes:
    return b"%d" % (int(digit[0]) + 1)


DAMAGE: Final[dict[str, Callable[[bytes], bytes | None]]] = {
    "deleted": lambda _: None,
    "empty": lambda _: b"",
    "cut in half": lambda c: c[: len(c) // 2],
    "last byte cut": lambda c: c[:-1],
    "bit flipped early": lambda c: flip(c, 0.1),
    "bit flipped in the middle": lambda c: flip(c, 0.5),
    "bit flipped late": lambda c: flip(c, 0.95, 0),
    "zeros": lambda c: bytes(len(c)),
    "half zeros": lambda c: c[: len(c) // 2] + bytes(len(c) - len(c) // 2),
    "other text": lambda _: b"[1, 2]\n",
    "other bytes": lambda c: random.Random(len(c)).randbytes(len(c)),
    "twice": lambda c: c + c,
    "a digit changed": lambda c: re.sub(rb"(?<=[\d.])[1-8]", later, c, count=1),
    "a folder": lambda _: b"FOLDER",
}


def damage(path: Path, how: str) -> None:
    content = DAMAGE[how](path.read_bytes())
    path.unlink()
    if content == b"FOLDER":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)


class Campaign:
    """A finished tiny experiment, and the cases made from it."""

    def __init__(self, folder: Path, seed: int) -> None:
        preload(folder / "preloaded")
        self.folder, self.seed, self.random = folder, seed, random.Random(seed)
        self.pristine = folder / "pristine"
        self.pristine.mkdir(parents=True)
        configuration(self.pristine)
        begun = time.monotonic()
        status, shown = call(self.pristine, GRID, COLLECT, TABLES)
        assert status == 0, shown
        self.seconds = time.monotonic() - begun
        self.expected = snapshot(self.pristine)

    def copy(self, folder: Path) -> None:
        shutil.copytree(self.pristine, folder, dirs_exist_ok=True)

    def again(self, folder: Path, *, report: str = "", name: str = "mended") -> Outcome:
        """Repeat the commands until they succeed; return whether the results are the same."""
        for _ in range(ATTEMPTS):
            status, shown = call(folder, GRID, COLLECT, before=without_table)
            report += shown
            if status == 0:
                break
            if blocking := re.search(r"Is a directory: '([^']+)'. Remove that folder", shown):
                shutil.rmtree(folder / blocking[1])  # as it says
            if unexplained(status, shown):
                return Outcome("traceback", shown)
        else:
            return Outcome("dead end", report)
        if snapshot(folder) != self.expected:
            return Outcome("silent", report)
        if left := litter(folder):
            return Outcome("litter", " ".join(left))
        return Outcome(name, report)

    # The kinds. Each yields named cases.

    def kept(self) -> Iterator[Case]:
        """Every kept file with every kind of damage."""
        results = self.pristine / "results" / "tiny"
        files = [p.relative_to(results) for p in sorted((results / RUN).rglob("*"))]
        files += [p.relative_to(results) for p in sorted((results / "prepared").iterdir())]
        for file, how in itertools.product(files, DAMAGE):
            if (results / file).is_file() and ".locks" not in file.parts:
                yield f"{file} {how}", lambda f, file=file, how=how: self._kept(f, file, how)

    def _kept(self, folder: Path, file: Path, how: str) -> Outcome:
        self.copy(folder)
        damage(folder / "results" / "tiny" / file, how)
        return self.again(folder)

    def frames(self) -> Iterator[Case]:
        """Every frame with every kind of damage: tables need complete frames."""
        for path in sorted((self.pristine / "results/tiny/data").glob("*.parquet")):
            for how in DAMAGE:
                yield f"data/{path.name} {how}", lambda f, n=path.name, h=how: self._frame(f, n, h)

    def _frame(self, folder: Path, name: str, how: str) -> Outcome:
        self.copy(folder)
        tables = folder / "results/tiny/tables"
        before = {p.name: p.read_bytes() for p in tables.iterdir() if p.is_file()}
        damage(folder / "results/tiny/data" / name, how)
        status, shown = call(folder, TABLES, PAGE)
        if status == 0:
            same = {p.name: p.read_bytes() for p in tables.iterdir() if p.is_file()} == before
            return Outcome("no effect" if same else "silent", shown)
        if unexplained(status, shown):
            return Outcome("traceback", shown)
        if name not in shown:
            return Outcome("dead end", f"the file is not named: {shown}")
        if (path := folder / "results/tiny/data" / name).is_dir():
            path.rmdir()  # as it says
        status, more = call(folder, COLLECT, TABLES)
        return Outcome("mended", shown) if status == 0 else Outcome("dead end", shown + more)

    def contents(self) -> Iterator[Case]:
        """Files with a right hash and wrong content, also in the kept copy; frames likewise."""
        results = self.pristine / "results" / "tiny"
        for path in sorted((results / RUN).rglob("*")):
            file = path.relative_to(results)
            # Nothing but a check of its hash reads the losses before fine-tuning.
            read = "kept" not in file.parts and path.name != "untuned_losses.npy"
            if path.is_file() and read:
                for how in wrong_contents(path):
                    name = f"{file} {how}"
                    yield name, lambda f, p=file, h=how: self._content(f, p, h)
        for path in sorted((results / "data").glob("*.parquet")):
            for how in wrong_contents(path):
                if how != "rows twice" or len(pd.read_parquet(path)):
                    yield (
                        f"data/{path.name} {how}",
                        lambda f, n=path.name, h=how: self._wrong(f, n, h),
                    )

    def _content(self, folder: Path, file: Path, how: str) -> Outcome:
        self.copy(folder)
        path = folder / "results" / "tiny" / file
        wrong_contents(path)[how]()
        record = json.loads((path.parent / "metrics.json").read_text())
        del record["checksum"]
        files = record.pop("files")
        write_record(path.parent, record, files)
        kept = path.parent / "kept"
        for name in (path.name, "metrics.json") if kept.is_dir() else ():
            shutil.copy(path.parent / name, kept / name)
        if path.suffix in (".json", ".safetensors") or path.name == "validation_losses.npy":
            # `collect` does not read these, but the stages after them do.
            for stage in ("score", "decide", "measure", "transfer/synthetic2"):
                (folder / "results" / "tiny" / RUN / stage / "metrics.json").unlink()
            status, shown = call(folder, GRID)
        else:
            status, shown = call(folder, COLLECT)
        if status and unexplained(status, shown):
            return Outcome("traceback", shown)
        if status and path.parent.name not in shown:
            return Outcome("dead end", f"the file is not named: {shown}")
        return self.again(folder, report=shown, name="mended" if status else "no effect")

    def _wrong(self, folder: Path, name: str, how: str) -> Outcome:
        self.copy(folder)
        tables = folder / "results/tiny/tables"
        before = {p.name: p.read_bytes() for p in tables.iterdir() if p.is_file()}
        wrong_contents(folder / "results/tiny/data" / name)[how]()
        status, shown = call(folder, TABLES, PAGE)
        if status == 0:
            same = {p.name: p.read_bytes() for p in tables.iterdir() if p.is_file()} == before
            return Outcome("no effect" if same else "silent", shown)
        if unexplained(status, shown):
            return Outcome("traceback", shown)
        # A row of another frame without its network is in that frame's message.
        named = name in shown or (name == "networks.parquet" and "in `networks`" in shown)
        return Outcome("refused" if named else "dead end", shown)

    def places(self) -> Iterator[Case]:
        """Something else in the place of each kept file: links, pipes, other files of the run."""
        results = self.pristine / "results" / "tiny"
        files = [p.relative_to(results) for p in sorted((results / RUN).rglob("*"))]
        files += [p.relative_to(results) for p in sorted((results / "prepared").iterdir())]
        files = [f for f in files if (results / f).is_file() and ".locks" not in f.parts]
        for file in files:
            for how in (
                "a link",
                "a link to a folder",
                "a broken link",
                "a link to itself",
                "a pipe",
            ):
                yield f"{file} {how}", lambda f, p=file, h=how: self._place(f, p, h)
            for other in files:
                if other.suffix == file.suffix and other > file:
                    name = f"{file} exchanged with {other}"
                    yield name, lambda f, p=file, o=other: self._place(f, p, "", o)

    def _place(self, folder: Path, file: Path, how: str, other: Path | None = None) -> Outcome:
        self.copy(folder)
        results, outside = folder / "results" / "tiny", folder / "outside"
        outside.mkdir()
        path, thesis = results / file, outside / "thesis"
        content = path.read_bytes()
        path.unlink()
        if other:
            path.write_bytes((results / other).read_bytes())
            (results / other).unlink()
            (results / other).write_bytes(content)
        elif how == "a pipe":
            os.mkfifo(path)
        else:
            thesis.write_bytes(content)
            target = {"a link": thesis, "a link to a folder": outside, "a link to itself": path}
            path.symlink_to(target.get(how, outside / "absent"))
        outcome = self.again(folder)
        if list(outside.iterdir()) != [thesis][: thesis.exists()] or (
            thesis.exists() and thesis.read_bytes() != content
        ):
            return Outcome("escaped", outcome.shown)
        return outcome

    def full(self) -> Iterator[Case]:
        """No file may become larger than a limit, as on a full disk; then there is room again."""
        for limit in [0, 1, 2, 5, 10, 50, 100, 200, 500, *range(1000, 40_000, 1500)]:

            def case(folder: Path, limit: int = limit) -> Outcome:
                configuration(folder)

                def fill() -> None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    # What is printed goes to a file too.
                    os.dup2(descriptor, 1)
                    os.dup2(descriptor, 2)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

                reader, descriptor = os.pipe()
                status, _ = call(folder, GRID, COLLECT, before=fill)
                os.close(descriptor)
                with os.fdopen(reader, errors="replace") as printed:
                    shown = printed.read()
                if status and unexplained(status, shown):
                    return Outcome("traceback", shown)
                if status and not ("The disk is full" in shown and "results/tiny/" in shown):
                    return Outcome("dead end", f"no file is named: {shown}")
                return self.again(folder, report=shown, name="mended" if status else "no effect")

            yield f"files of at most {limit} bytes", case

    def forecasts(self) -> Iterator[Case]:
        """Frames of all kinds for a saved forecaster, and folders with other values."""
        for name in hostile_frames(24):
            yield f"predict {name}", lambda f, n=name: self._forecast(f, n)
        kept = self.pristine / "results" / "tiny" / RUN / "pretrain"
        values = json.loads((kept / "architecture.json").read_text())
        hostile: tuple[Any, ...] = (None, "x", -1, 0, 1.5, 10**30, True, [], {}, float("nan"))
        for place, value in itertools.product(leaves(values), hostile):
            changed = copy.deepcopy(values)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if inner[place[-1]] != value:
                inner[place[-1]] = value
                name = f"architecture.json {'.'.join(place)} = {value!r}"
                yield name, lambda f, v=changed: self._forecast(f, "whole", v)

    def _forecast(self, folder: Path, name: str, architecture: Any = None) -> Outcome:
        self.copy(folder)
        kept = folder / "results" / "tiny" / RUN / "pretrain"
        if architecture is not None:
            (kept / "architecture.json").unlink()
            (kept / "architecture.json").write_text(json.dumps(architecture))

        def predict() -> None:
            from spat.surgery.forecast import Forecast

            frame = hostile_frames(24)[name]
            try:
                forecast = Forecast.from_folder(kept).predict(frame())
                finite = bool(np.isfinite(forecast.to_numpy()).all())
                print("shape", forecast.shape, "finite", finite)
                os._exit(0 if forecast.shape == (12, 2) and finite else UNCAUGHT)
            except ValueError as error:
                print(error)
                os._exit(1)

        status, shown = call(folder, before=predict)
        if status == 0:
            good = name in ACCEPTED and architecture is None
            # Another dropout or instance norm is a valid network of the same weights.
            return Outcome("valid" if good or architecture else "silent", shown)
        return Outcome("refused" if status == 1 and shown.strip() else "traceback", shown)

    def state(self) -> Iterator[Case]:
        """Training is killed when its state is written, and the state is damaged."""
        places = ("pretrain/kept", "prune/masks/1.1/order0", "prune/masks/0.0/order0")
        for place, count, how in itertools.product(places, (1, 2), ("whole", *DAMAGE)):
            yield (
                f"{place}/state.pt after epoch {count} {how}",
                lambda f, p=place, c=count, h=how: self._state(f, p, c, h),
            )

    def _state(self, folder: Path, place: str, count: int, how: str) -> Outcome:
        longer = {"training": {"device": "cpu", "epochs": 3}, "finetune": {"epochs": 3}}
        if not (self.folder / "longer").exists():
            (self.folder / "longer").mkdir()
            configuration(self.folder / "longer", **longer)
            status, shown = call(self.folder / "longer", GRID, COLLECT)
            assert status == 0, shown
        configuration(folder, **longer)
        state = folder / "results" / "tiny" / RUN / place / "state.pt"
        seen = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "os.rename" and str(arguments[1]) == str(state.relative_to(folder)):
                seen += 1
                if seen == count + 1:
                    os._exit(KILLED)

        status, shown = call(folder, GRID, before=lambda: sys.addaudithook(watch))
        if status != KILLED or not state.exists():
            return Outcome("no effect", shown)
        if how != "whole":
            damage(state, how)
        expected, self.expected = self.expected, snapshot(self.folder / "longer")
        try:
            return self.again(folder, name="resumed" if how == "whole" else "mended")
        finally:
            self.expected = expected

    EVENTS: Final = frozenset(
        ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate")
    )

    def crash(self) -> Iterator[Case]:
        """A kill before each operation that changes a file."""
        folder = self.folder / "counted"
        folder.mkdir()
        configuration(folder)
        counted = folder / "count"

        def finish(limit: int | None) -> Callable[[], None]:
            number = 0

            def watch(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal number
                if event not in self.EVENTS or "results/" not in str(arguments[0]):
                    return
                if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                    return
                number += 1
                if limit is None:
                    os.write(descriptor, b".")
                elif number == limit:
                    os._exit(KILLED)

            if limit is None:
                descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT)
            return lambda: sys.addaudithook(watch)

        status, shown = call(folder, GRID, COLLECT, before=finish(None))
        assert status == 0, shown
        total = counted.stat().st_size

        def case(place: Path, number: int) -> Outcome:
            configuration(place)
            status, shown = call(place, GRID, COLLECT, before=finish(number))
            if status != KILLED:
                return Outcome("traceback", f"not killed: {status} {shown}")
            return self.again(place, name="resumed")

        for number in range(1, total + 1):
            yield f"operation {number} of {total}", lambda f, n=number: case(f, n)

    def kill(self) -> Iterator[Case]:
        """A kill after a random time; some cases are killed twice."""
        for number in range(150):
            # The seed is part of the name, because other moments are another case.
            moments = [self.random.random() for _ in range(1 + number % 2)]

            def case(folder: Path, moments: list[float] = moments) -> Outcome:
                configuration(folder)
                for moment in moments:
                    call(folder, GRID, COLLECT, kill_after=0.02 + moment * self.seconds)
                return self.again(folder, name="resumed")

            yield f"kill {number} of seed {self.seed}", case

    WRONG: Final = ({"x": 1}, ["x"], "../../../../victim", None, -1, True)

    def records(self) -> Iterator[Case]:
        """Records with a valid checksum that lack a key or contain an impossible value."""
        results = self.pristine / "results" / "tiny"
        for path in sorted(results.rglob("*.json")):
            values = json.loads(path.read_text("utf-8"))
            if "checksum" not in values:
                continue
            del values["checksum"]
            file = path.relative_to(results)
            for place in leaves(values):
                key = ".".join(map(str, place))
                yield f"{file} {key} missing", lambda f, p=file, k=place: self._record(f, p, k)
                for value in self.WRONG:
                    yield (
                        f"{file} {key} = {value!r}",
                        lambda f, p=file, k=place, v=value: self._record(f, p, k, v),
                    )

    def _record(self, folder: Path, file: Path, place: tuple[Any, ...], *value: Any) -> Outcome:
        self.copy(folder)
        victim = folder / "victim"
        victim.mkdir()
        (victim / "metrics.json").write_text("precious")
        path = folder / "results" / "tiny" / file
        values = json.loads(path.read_text("utf-8"))
        del values["checksum"]
        inner = values
        for key in place[:-1]:
            inner = inner[key]
        if value:
            inner[place[-1]] = value[0]
        else:
            del inner[place[-1]]
        write_json(path, {**values, "checksum": records.digest(values)})
        # `collect` computes nothing again, so it must refuse wrong values.
        status, shown = call(folder, COLLECT)
        if status and unexplained(status, shown):
            return Outcome("traceback", shown)
        if status and str(file) not in shown:
            return Outcome("dead end", f"the file is not named: {shown}")
        if status == 0 and snapshot(folder) != self.expected:
            return Outcome("silent", shown)
        outcome = self.again(folder, report=shown)
        if (victim / "metrics.json").read_text() != "precious":
            return Outcome("escaped", outcome.shown)
        return outcome

    def configurations(self) -> Iterator[Case]:
        """Every value of a configuration replaced by hostile values, and its text damaged."""
        base = {**TINY, "tracking": {"enabled": False}, "results": "results"}
        hostile = (None, True, float("inf"), float("nan"), -1, 0, 10**30, 1.5, "", "../../x")
        hostile += ("$(touch escaped)", "a\nb", "{x}", [], {}, [[]], {"x": {}}, "x" * 10_000)
        for place, value in itertools.product(leaves(base), hostile):
            changed = copy.deepcopy(base)
            inner: Any = changed
            for key in place[:-1]:
                inner = inner[key]
            if inner[place[-1]] == value and type(inner[place[-1]]) is type(value):
                continue
            inner[place[-1]] = value
            shown = repr(value) if len(repr(value)) < 40 else "10,000 letters"
            name = f"{'.'.join(map(str, place))} = {shown}"
            text = yaml.safe_dump(changed).encode()
            yield name, lambda f, t=text, p=place: self._configuration(f, t, str(p[0]))
        text = yaml.safe_dump(base).encode()
        for how in DAMAGE:
            if how != "deleted":
                yield f"text {how}", lambda f, h=how: self._text(f, DAMAGE[h](text))
        extra = {
            "a key twice": text + b"experiment: other\n",
            "a tab": text.replace(b"  ", b"\t"),
            "not UTF-8": text + b"# \xff\xfe\n",
            "a NUL": text + b"\x00",
            "an unknown tag": text + b"x: !!python/object/apply:os.system ['touch escaped']\n",
            "an alias to itself": text + b"x: &a [*a]\n",
            "a second document": text + b"---\nexperiment: x\n",
            "deep": text + b"x: " + b"[" * 5000 + b"]" * 5000 + b"\n",
            "aliases that explode": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
            + b"".join(
                f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n".encode()
                for p, c in itertools.pairwise("abcdefghi")
            ),
        }
        for name, content in extra.items():
            yield f"text with {name}", lambda f, c=content: self._text(f, c)

    def _text(self, folder: Path, content: bytes | None) -> Outcome:
        assert content is not None
        path = folder / "tiny.yaml"
        if content == b"FOLDER":
            path.mkdir()
        return self._configuration(folder, content, "tiny.yaml")

    def _configuration(self, folder: Path, text: bytes, key: str) -> Outcome:
        path = folder / "tiny.yaml"
        if not path.is_dir():
            path.write_bytes(text)
        before = {p.name for p in folder.parent.iterdir()}
        # The configuration and the plan are checked; no run begins.
        status, shown = call(folder, [*GRID, "--minutes", "1e-9"])
        outside = {p.name for p in folder.parent.iterdir()} - before
        if (folder / "escaped").exists() or outside:
            return Outcome("escaped", shown)
        if status == 0:
            return Outcome("valid", shown)
        if unexplained(status, shown):
            return Outcome("traceback", shown)
        named = key in shown or "tiny.yaml" in shown
        return Outcome("refused" if named else "dead end", shown)

    def data(self) -> Iterator[Case]:
        """A user's data file, damaged in its bytes, rows, cells and time stamps."""
        whole = own_series().decode().splitlines()
        rows = whole[1:]

        def put(number: int, line: str) -> list[str]:
            return [*whole[:number], line, *whole[number + 1 :]]

        at = (1, 2, 57, 200, 399, 400)
        lines: dict[str, list[str]] = {
            "reversed": [whole[0], *reversed(rows)],
            "shuffled": [whole[0], *random.Random(1).sample(rows, len(rows))],
            "no header": rows,
            "header twice": [whole[0], *whole],
            "a column twice": ["date,a,a", *rows],
            "no rows": whole[:1],
            "one row": whole[:2],
            "other step": [whole[0], *rows[::2]],
        }
        for n in at:
            stamp, a, b = whole[n].split(",")
            lines |= {
                f"row {n} missing": [*whole[:n], *whole[n + 1 :]] if 1 < n < 400 else whole[:1],
                f"row {n} twice": [*whole[: n + 1], *whole[n:]],
                # Without its first or last row the file is valid.
                f"row {n} empty": put(n, "") if 1 < n < 400 else whole[:1],
                f"row {n} short": put(n, f"{stamp},{a}"),
                f"row {n} long": put(n, f"{stamp},{a},{b},1"),
            }
            cells = ("", "x", "nan", "inf", "-inf", "1e400", "1_000", "0x10", "1,5", '"', "\x00")
            cells += ("9" * 500, "=1+1", "１２", "--", "1 2")
            for cell in cells:
                lines[f"cell {cell[:8]!r} in row {n}"] = put(n, f"{stamp},{cell},{b}")
            for other in ("", "2020", "2020-13-01 00:00:00", "x", "1e9", "2020-01-01 00:00:00Z"):
                if other != stamp:
                    lines[f"stamp {other!r} in row {n}"] = put(n, f"{other},{a},{b}")
        for name, printed in lines.items():
            content = ("\n".join(printed) + "\n").encode()
            yield f"data {name}", lambda f, c=content: self._data(f, c)
        content = own_series()
        for how in DAMAGE:
            # A file without its last line break, or with another last digit, is valid.
            if how not in ("deleted", "bit flipped late", "last byte cut"):
                yield f"data file {how}", lambda f, h=how: self._data(f, DAMAGE[h](content))
        yield "data file deleted", lambda f: self._data(f, None)

    def own(self) -> Iterator[Case]:
        """`add` and `advise` with the same damaged files: refused, or all networks could train."""
        for name, case in self.data():
            (content,) = getattr(case, "__defaults__", None) or (None,)
            if isinstance(content, str):
                content = DAMAGE[content](own_series())
            yield f"add {name}", lambda f, c=content: self._own(f, ["add"], c)
            words = ["advise", "--horizon", "12", "--lookback", "24"]
            yield f"advise {name}", lambda f, c=content, w=words: self._own(f, w, c)

    def _own(self, folder: Path, words: list[str], content: bytes | None) -> Outcome:
        file = folder / "own.csv"
        if content == b"FOLDER":
            file.mkdir()
        elif content is not None:
            file.write_bytes(content)

        def no_training() -> None:
            from spat.pipeline import advise

            def stop(*_: Any) -> Any:
                raise SystemExit(0)

            advise._train = stop  # type: ignore[assignment]

        status, shown = call(folder, [words[0], "own.csv", *words[1:]], before=no_training)
        if status and unexplained(status, shown):
            return Outcome("traceback", shown)
        if status and "own.csv" not in shown:
            return Outcome("dead end", shown)
        # Columns that are not numbers are left out, and gaps filled, as the block says.
        return Outcome("refused" if status else "valid", shown)

    def _data(self, folder: Path, content: bytes | None) -> Outcome:
        file = folder / "own.csv"
        if content == b"FOLDER":
            file.mkdir()
        elif content is not None:
            file.write_bytes(content)
        block = {**TINY["grid"][0], "datasets": ["own"]}
        custom = {"own": {"file": str(file), "step": "1h", "horizons": [12]}}
        configuration(folder, grid=[block], data={"custom": custom}, transfer={"pairs": []})
        # Parsed, checked and prepared; no run begins.
        status, shown = call(folder, [*GRID, "--minutes", "1e-9"])
        if status == 0:
            return Outcome("silent", shown)
        if unexplained(status, shown):
            return Outcome("traceback", shown)
        return Outcome("refused" if "own.csv" in shown else "dead end", shown)

    def names(self) -> Iterator[Case]:
        """Hostile names and paths on the command line."""
        hostile = ("", " ", ".", "..", "../../victim", "/etc/passwd", "$(touch escaped)", "`id`")
        hostile += ("{x}", "a\nb", "*", "~", "ü", "\x7f", "%s", "-", "--", "'", '"', "x" * 300)
        hostile += (f"{RUN}/../seed0", f"/{RUN}", f"{RUN}/", RUN.replace("seed0", "seed00"))
        hostile += (RUN.replace("24", "024"), RUN.replace("tiny", "tiny/.."), RUN.upper())
        options = (
            [(stage, "--run") for stage in ("pretrain", "score", "select", "prune")]
            + [(stage, "--run") for stage in ("robustness", "decide", "measure", "transfer")]
            + [("prepare", "--dataset"), ("download", "--dataset"), ("grid", "--runs")]
            + [("transfer", "--target")]
        )
        for (stage, option), value in itertools.product(options, hostile):
            if (stage, value) != ("grid", "*"):
                command = [stage, "--config", "tiny.yaml", f"{option}={value}"]
                if stage == "transfer":
                    command.append("--target=x" if option == "--run" else f"--run={RUN}")
                name = f"{stage} {option}={value[:30]!r}"
                yield name, lambda f, c=command: self._name(f, c)

    def _name(self, folder: Path, command: list[str]) -> Outcome:
        configuration(folder)
        before = set(folder.parent.iterdir())
        status, shown = call(folder, command)
        left = {p.name for p in folder.iterdir()} - {"tiny.yaml", "printed.txt"}
        if left or set(folder.parent.iterdir()) != before:
            return Outcome("escaped", f"{left} {shown}")
        if status == 0:
            return Outcome("silent", shown)
        if unexplained(status, shown):
            return Outcome("traceback", shown)
        return Outcome("refused", shown)


def own_series() -> bytes:
    """A data file of 400 hours and two channels."""
    stamps = pd.date_range("2020-01-01", periods=400, freq="h")
    rows = [f"{s:%Y-%m-%d %H:%M:%S},{np.sin(i):.4f},{i}" for i, s in enumerate(stamps)]
    return ("\n".join(["date,a,b", *rows]) + "\n").encode()


def wrong_contents(path: Path) -> dict[str, Callable[[], None]]:
    """Ways to write a file of its kind that no job writes, each as a function that does it."""

    def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[], None]:
        def write() -> None:
            is_csv = path.suffix == ".csv"
            frame = change(pd.read_csv(path, dtype=str) if is_csv else pd.read_parquet(path))
            path.unlink()  # a published file is a link
            frame.to_csv(path, index=False) if is_csv else frame.to_parquet(path)

        return write

    def arrays(change: Callable[[Any], Any]) -> Callable[[], None]:
        def write() -> None:
            stored = np.load(path)
            changed = (
                change(stored) if path.suffix == ".npy" else {k: change(stored[k]) for k in stored}
            )
            path.unlink()
            np.save(path, changed) if path.suffix == ".npy" else np.savez(path, **changed)

        return write

    def text(change: Callable[[Any], Any]) -> Callable[[], None]:
        def write() -> None:
            values = change(json.loads(path.read_text("utf-8")))
            path.unlink()
            path.write_text(json.dumps(values), "utf-8")

        return write

    if path.suffix in (".csv", ".parquet"):
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        known = [c for c in frame if c != "losses" and len(frame)]
        ways = {f"without {c}": table(lambda f, c=c: f.drop(columns=c)) for c in frame}
        for c in known:
            if pd.api.types.is_numeric_dtype(frame[c]):
                ways[f"text in {c}"] = table(lambda f, c=c: f.assign(**{c: "x"}))
            ways[f"lists in {c}"] = table(lambda f, c=c: f.assign(**{c: [[1]] * len(f)}))
        ways["rows twice"] = table(lambda f: pd.concat([f, f]))
        return ways
    if path.suffix in (".npy", ".npz"):
        return {
            "emptied": arrays(lambda a: a[:0]),
            "of texts": arrays(lambda a: a.astype(str)),
            "of a dimension more": arrays(lambda a: a[None]),
            "one number": arrays(lambda a: np.float32(1)),
            "without the last": arrays(lambda a: a[:-1]),
            "not finite": arrays(lambda a: a * np.float32("nan")),
        }
    if path.name == "architecture.json":
        ways = {}
        for place in leaves(json.loads(path.read_text("utf-8"))):
            for value in (None, "x", -1, [], 10**9):

                def put(values: Any, place: tuple[Any, ...] = place, value: Any = value) -> Any:
                    inner = values
                    for key in place[:-1]:
                        inner = inner[key]
                    inner[place[-1]] = value
                    return values

                ways[f"{'.'.join(place)} = {value!r}"] = text(put)
        return ways
    if path.suffix == ".safetensors":

        def other(weights: dict[str, Any]) -> Callable[[], None]:
            def write() -> None:
                path.unlink()
                save_file(weights, path)

            return write

        return {
            "without weights": other({}),
            "of another network": other({"x": np.zeros(3, dtype=np.float32)}),
        }
    return {}


ACCEPTED: Final = (
    *("whole", "other columns", "a column of whole numbers", "truth values", "a time zone"),
    "the end of time",
)


def hostile_frames(lookback: int) -> dict[str, Callable[[], pd.DataFrame]]:
    """Frames for a forecaster of the generated series, of which ACCEPTED are valid."""

    def frame(**columns: Any) -> pd.DataFrame:
        index = pd.date_range("2020-01-01", periods=lookback + 2, freq="h")
        own = {f"channel_{i}": np.sin(np.arange(len(index))) for i in range(2)}
        return pd.DataFrame({**own, **columns}, index=index)

    def put(row: int, value: Any) -> pd.DataFrame:
        made = frame().astype(object)
        made.iloc[row, 0] = value
        return made

    def stamps(change: Callable[[Any], Any]) -> pd.DataFrame:
        made = frame()
        made.index = change(made.index)
        return made

    first = {
        "whole": frame,
        "other columns": lambda: frame(x="text"),
        "a column of whole numbers": lambda: frame(channel_0=1),
        "a time zone": lambda: stamps(lambda i: i.tz_localize("Europe/Vienna")),
        "no rows": lambda: frame().iloc[:0],
        "too few rows": lambda: frame().iloc[: lookback - 1],
        "a column too few": lambda: frame().drop(columns="channel_1"),
        "no columns": lambda: frame()[[]],
        "a column twice": lambda: pd.concat([frame(), frame()[["channel_0"]]], axis=1),
        "columns of numbers": lambda: frame().set_axis([0, 1], axis=1),
        "columns of two levels": lambda: pd.concat({"a": frame()}, axis=1),
        "rows reversed": lambda: frame().iloc[::-1],
        "a row twice": lambda: frame().iloc[[*range(9), *range(8, 26)]],
        "a row missing": lambda: frame().iloc[[*range(9), *range(10, 26)]],
        "stamps as texts": lambda: stamps(lambda i: i.astype(str)),
        "stamps as numbers": lambda: stamps(lambda i: np.linspace(0, 1, len(i))),
        "stamps missing": lambda: stamps(lambda i: i.where(i != i[9])),
        "periods": lambda: stamps(lambda i: i.to_period("h")),
        "the end of time": lambda: stamps(
            lambda i: pd.date_range(end="2262-04-11 23:00", periods=len(i), freq="h")
        ),
        "two levels of stamps": lambda: stamps(lambda i: pd.MultiIndex.from_arrays([i, i])),
        "days": lambda: stamps(lambda i: pd.date_range("2020", periods=len(i), freq="D")),
        "truth values": lambda: frame(channel_0=True),
        "complex numbers": lambda: frame(channel_0=1j),
        "stamps as values": lambda: frame(channel_0=pd.Timestamp("2020")),
        "categories": lambda: frame(channel_0=pd.Categorical(["1"] * (lookback + 2))),
    }
    values = ("x", "1.5", None, np.nan, np.inf, -np.inf, 1e300, [1], {"x": 1}, 10**400, b"1")
    return first | {
        f"{value!r:.20} in row {row}": lambda r=row, v=value: put(r, v)
        for row in (2, -1)
        for value in values
    }


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values of a configuration, sections and lists included."""
    if place:
        yield place
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from leaves(inner, (*place, key))


KINDS: Final = {
    "kept": "kept files, every damage",
    "frames": "frames, every damage",
    "contents": "right hash, wrong content",
    "places": "links, pipes and exchanged files",
    "full": "full disk",
    "records": "records with wrong content",
    "state": "training state, killed and damaged",
    "crash": "kill before a file operation",
    "kill": "kill at a random moment",
    "configurations": "configurations",
    "data": "data files of one's own",
    "own": "`add` and `advise` with damaged files",
    "forecasts": "frames and folders for a forecaster",
    "names": "names on the command line",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=55, help="begin no case after this")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument(
        "--log",
        type=Path,
        help="append each outcome to this file, and leave out the cases that it has as good ones",
    )
    parser.add_argument("--write", action="store_true", help="write the table to README.md")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    outcomes: list[dict[str, Any]] = []
    if options.log and options.log.exists():
        outcomes = [json.loads(line) for line in options.log.read_text().splitlines()]
    over = {(o["kind"], o["case"]) for o in outcomes if o["outcome"] in GOOD}
    commit = revision()
    with tempfile.TemporaryDirectory(prefix="spat-faults-") as temporary:
        campaign = Campaign(Path(temporary), options.seed)
        cases = [(k, name, case) for k in options.kinds for name, case in getattr(campaign, k)()]
        print(
            f"{len(cases)} cases are possible: {dict(Counter(k for k, _, _ in cases))}", flush=True
        )
        # Kinds alternate, so that a partial run has cases of every kind.
        cases.sort(key=lambda case: digest(case[1].encode()))
        turns: Counter[str] = Counter()
        order = []
        for case in cases:
            order.append((turns[case[0]], case))
            turns[case[0]] += 1
        cases = [case for _, case in sorted(order, key=lambda turn: turn[0])]
        cases = [c for c in cases if options.only in c[1] and c[:2] not in over]
        for number, (kind, name, case) in enumerate(cases):
            if number % 50 == 0:
                print(f"{number} cases are over", flush=True)
            if time.monotonic() > end:
                break
            folder = campaign.folder / f"{kind}{number}" / "case"
            folder.mkdir(parents=True)
            begun = time.monotonic()
            outcome = case(folder)
            seconds = round(time.monotonic() - begun, 2)
            made = {"kind": kind, "case": name, "outcome": outcome.name}
            outcomes.append({**made, "commit": commit, "seconds": seconds})
            if options.log:
                with options.log.open("a") as log:
                    print(json.dumps(outcomes[-1]), file=log)
            if outcome.name in BAD or options.only:
                print(f"{outcome.name}: {kind}: {name}\n  {outcome.shown[-900:]}", flush=True)
            shutil.rmtree(folder.parent)
    table = report(outcomes)
    print(table)
    if options.write:
        write(table)
    return int(any(outcome["outcome"] in BAD for outcome in latest(outcomes)))


def latest(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last outcome of each case: a case with a bad outcome is run again."""
    return list({(o["kind"], o["case"]): o for o in outcomes}.values())


def revision() -> str:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def report(outcomes: list[dict[str, Any]]) -> str:
    """The table of the last outcomes, with the commits on which they were obtained."""
    names, last = (*GOOD, *BAD), latest(outcomes)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for one in last:
        counts[one["kind"]][one["outcome"]] += 1
    commits = Counter(one["commit"] for one in last)
    shown = ", ".join(f"{count} on {commit}" for commit, count in commits.items())
    minutes = sum(one["seconds"] for one in outcomes) / 60
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"{today}: {len(last)} cases in {minutes:.0f} minutes, by commit: {shown}.",
        "",
        f"| kind | cases | {' | '.join(names)} |",
        f"|---|{'---:|' * (len(names) + 1)}",
    ]
    for kind, by_result in counts.items():
        row = [str(by_result[name] or "") for name in names]
        lines.append(f"| {KINDS[kind]} | {sum(by_result.values())} | {' | '.join(row)} |")
    return "\n".join(lines)


def write(table: str) -> None:
    path = Path(__file__).with_name("README.md")
    head, mark, _ = path.read_text(encoding="utf-8").partition("<!-- outcomes -->\n")
    path.write_text(f"{head}{mark}\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
