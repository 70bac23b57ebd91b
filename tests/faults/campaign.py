"""The campaign of faults: generated cases, each classified, and a table of the outcomes.

    python tests/faults/campaign.py [--kinds kept state ...] [--minutes N] [--write]

Each case runs the command line in a forked child in its own folder, so that a kill kills a real
process and cases do not affect each other. A case is bad if the result differs without a message
(`silent`), an exception is not explained (`traceback`), the same command keeps failing
(`dead end`), or a file outside of the experiment was touched (`escaped`).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import hashlib
import importlib
import itertools
import json
import os
import pkgutil
import random
import re
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

from spat.files import write_json  # noqa: E402
from spat.pipeline import cli, records  # noqa: E402
from spat.pipeline.frames import COLUMNS  # noqa: E402

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


def preload() -> None:
    """Import the modules of the commands once, since each child is a copy of this process."""
    for module in pkgutil.iter_modules([str(ROOT / "workflow" / "spat" / "pipeline" / "stages")]):
        importlib.import_module(f"spat.pipeline.stages.{module.name}")
    for name in ("spat.models.itransformer", "pandera.pandas"):
        importlib.import_module(name)
    from spat.study.pages import registry

    registry.tables()


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
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


GRID: Final = ["grid", "--config", "tiny.yaml"]
COLLECT: Final = ["collect", "--config", "tiny.yaml"]
TABLES: Final = ["tables", "--config", "tiny.yaml"]


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
        preload()
        self.folder, self.random = folder, random.Random(seed)
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
            status, shown = call(folder, GRID, COLLECT)
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
        status, shown = call(folder, TABLES)
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
            moments = [self.random.random() for _ in range(1 + number % 2)]

            def case(folder: Path, moments: list[float] = moments) -> Outcome:
                configuration(folder)
                for moment in moments:
                    call(folder, GRID, COLLECT, kill_after=0.02 + moment * self.seconds)
                return self.again(folder, name="resumed")

            yield f"kill {number}", case

    WRONG: Final = ({"x": 1}, ["x"], "../../../../victim", None, -1, True)

    def records(self) -> Iterator[Case]:
        """Records with a valid checksum that lack a key or contain an impossible value."""
        results = self.pristine / "results" / "tiny"
        for path in sorted(results.rglob("*.json")):
            values = json.loads(path.read_text())
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
        values = json.loads(path.read_text())
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
        stamps = pd.date_range("2020-01-01", periods=400, freq="h")
        rows = [f"{s:%Y-%m-%d %H:%M:%S},{np.sin(i):.4f},{i}" for i, s in enumerate(stamps)]
        whole = ["date,a,b", *rows]

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
                f"row {n} empty": put(n, ""),
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
        content = ("\n".join(whole) + "\n").encode()
        for how in DAMAGE:
            # A file without its last line break, or with another last digit, is valid.
            if how not in ("deleted", "bit flipped late", "last byte cut"):
                yield f"data file {how}", lambda f, h=how: self._data(f, DAMAGE[h](content))
        yield "data file deleted", lambda f: self._data(f, None)

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
    "records": "records with wrong content",
    "state": "training state, killed and damaged",
    "crash": "kill before a file operation",
    "kill": "kill at a random moment",
    "configurations": "configurations",
    "data": "data files of one's own",
    "names": "names on the command line",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=55, help="begin no case after this")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills")
    parser.add_argument("--begin", type=int, default=0, help="leave out so many cases")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--write", action="store_true", help="write the table to README.md")
    options = parser.parse_args()
    begun = time.monotonic()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in options.kinds}
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
        cases = [case for case in cases if options.only in case[1]]
        for number, (kind, name, case) in enumerate(cases[options.begin :], options.begin):
            if number % 50 == 0:
                print(f"{number} cases are over", flush=True)
            if time.monotonic() - begun > 60 * options.minutes:
                break
            folder = campaign.folder / f"{kind}{number}" / "case"
            folder.mkdir(parents=True)
            outcome = case(folder)
            counts[kind][outcome.name] += 1
            if outcome.name in BAD or options.only:
                print(f"{outcome.name}: {kind}: {name}\n  {outcome.shown[-900:]}", flush=True)
            shutil.rmtree(folder.parent)
    table = report(counts, time.monotonic() - begun)
    print(table)
    if options.write:
        write(table)
    return int(any(by_result[name] for by_result in counts.values() for name in BAD))


def report(counts: dict[str, Counter[str]], seconds: float) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    names = (*GOOD, *BAD)
    total = sum(sum(c.values()) for c in counts.values())
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"{today}, commit {commit}: {total} cases in {seconds / 60:.0f} minutes.",
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
