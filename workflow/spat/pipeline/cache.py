"""Keep finished results with the digest of all that they depend on.

Snakemake deletes a rule's declared outputs before it runs the rule again, and reruns a rule
whenever one before it ran. Results that took long are therefore kept in folders that no rule
declares, and a rerun computes only what is missing or stale.

Each finished folder has a record, `metrics.json`, that is written last. It holds the SHA-256 of the
folder's files and a checksum of itself; both are checked when a file is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from spat.files import finite, read_json, replacing, write_json, write_text
from spat.pipeline.config import Config
from spat.pipeline.records import digest as digest_of
from spat.pipeline.runs import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RESULT = "metrics.json"
MANIFEST = "manifest.json"


class DamagedError(ValueError):
    """A file is missing or was changed since it was written; the message gives the remedy."""


class _Values(dict[str, Any]):
    """A record's values; a missing one is an error that names the file."""

    def __init__(self, values: Mapping[str, Any], absent: Callable[[str], Exception]) -> None:
        super().__init__(values)
        self._absent = absent

    def __missing__(self, key: str) -> Any:
        raise self._absent(key)


class Finished:
    """The files of a finished job, or of a part of one: checked whenever they are read.

    `marker` is the file that tells Snakemake that the job is done (by default the folder's
    `metrics.json`). If a file is damaged the marker is removed, so that the same command makes the
    file again.
    """

    def __init__(self, folder: Path, marker: Path | None = None) -> None:
        self.folder = folder
        self._marker = marker or folder / RESULT

    @property
    def metrics(self) -> dict[str, Any]:
        """The record `metrics.json`.

        Raises:
            FileNotFoundError: naming the record, if it is missing.
            DamagedError: naming the record, if it is not what was written.
        """
        return self.record(RESULT)

    def record(self, name: str) -> dict[str, Any]:
        """A record of the folder; raises as `metrics`."""
        path = self.folder / name

        def absent(key: str) -> DamagedError:
            # Its checksum is right: without this the job would take the same record up again.
            for copy in (self.folder / RESULT, self.folder / "kept" / RESULT):
                copy.unlink(missing_ok=True)
            return self._refused(f"{path}: has no {key!r} (written by another version)")

        try:
            return _Values(_record(path), absent)
        except DamagedError as error:
            raise self._refused(str(error)) from None

    def path(self, name: str) -> Path:
        """The path of a file whose hash is the recorded one.

        Raises:
            FileNotFoundError: naming the record, if it is missing.
            DamagedError: naming the file, if it is missing or damaged.
        """
        if problem := _problem(self.folder, name, self.metrics["files"]):
            raise self._refused(problem)
        return self.folder / name

    @property
    def sizes(self) -> dict[str, int]:
        """The size in bytes of the record and of each file that it lists. Raises as `metrics`."""
        names = (RESULT, *self.metrics["files"])
        return {name: (self.folder / name).stat().st_size for name in names}

    def table(self, name: str, **options: Any) -> pd.DataFrame:
        """A table (`.csv` or `.parquet`); `options` go to pandas. Raises as `path`."""
        import pandas as pd

        path = self.path(name)
        with self._reading(path):
            read: Any = pd.read_csv if path.suffix == ".csv" else pd.read_parquet
            frame: pd.DataFrame = read(path, **options)
            return frame

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """An array (`.npy`). Raises as `path`."""
        import numpy as np

        path = self.path(name)
        with self._reading(path):
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]

    def arrays(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """Named arrays (`.npz`). Raises as `path`."""
        import numpy as np

        path = self.path(name)
        with self._reading(path), np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:
            raise self._refused(f"{path}: cannot be read ({error})") from None

    def _refused(self, problem: str) -> DamagedError:
        self._marker.unlink(missing_ok=True)
        return DamagedError(
            f"{problem}. {self._marker} was removed: run the same command again; it makes "
            "the damaged file again and keeps the rest"
        )


class Kept(Finished):
    """A folder of finished work under a digest."""

    def __init__(self, folder: Path, digest: str) -> None:
        """Open the folder; content with another digest is removed."""
        super().__init__(folder)
        self.digest = digest
        stamp = folder / "digest"
        if not stamp.exists() or stamp.read_bytes().strip() != digest.encode():
            self._clear()

    @property
    def done(self) -> bool:
        """Whether all files are there and their hashes right; damaged work is removed."""
        try:
            record = _record(self.folder / RESULT)
        except FileNotFoundError:
            return False
        except DamagedError as error:
            problem: str | None = str(error)
        else:
            found = (_problem(self.folder, name, record["files"]) for name in record["files"])
            problem = next(filter(None, found), None)
        if problem is None:
            return True
        print(f"{problem}: computing {self.folder} again", file=sys.stderr, flush=True)
        self._clear()
        return False

    @property
    def state(self) -> Path:
        """Where training keeps the state it resumes from."""
        return self.folder / "state.pt"

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`, with the hashes of the folder's files, and drop the state."""
        files = (path.name for path in self.folder.iterdir() if path.is_file())
        kept = sorted(n for n in files if n not in ("digest", RESULT, self.state.name))
        write_record(
            self.folder,
            {**metrics, "digest": self.digest},
            [name for name in kept if not name.startswith(".")],
        )
        self.state.unlink(missing_ok=True)

    def publish(self, folder: Path, names: Sequence[str]) -> None:
        """Give the finished files their declared names, as links where the file system allows."""
        for name in names:
            with replacing(folder / name) as temporary:
                try:
                    os.link(self.folder / name, temporary)
                except OSError:
                    shutil.copyfile(self.folder / name, temporary)

    def _clear(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        write_text(self.folder / "digest", self.digest + "\n")


def write_record(
    folder: Path, values: Mapping[str, Any], files: Iterable[str] = (), name: str = RESULT
) -> None:
    """Write a record: `values`, the hashes of `files` of the folder, and a checksum of both."""
    hashes = {file: _sha256(folder / file) for file in files}
    # As JSON returns it, so that the checksum is the same when the file is read.
    body = json.loads(json.dumps(finite({**values, "files": hashes})))
    write_json(folder / name, {**body, "checksum": digest_of(body)})


def save_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as `.csv` (without its index) or `.parquet`, atomically."""
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary)


def save_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write an array as `.npy`, atomically."""
    import numpy as np

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _record(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise
    except ValueError as error:
        raise DamagedError(str(error)) from None
    body = {k: v for k, v in found.items() if k != "checksum"} if isinstance(found, dict) else {}
    if not isinstance(body.get("files"), dict) or found.get("checksum") != digest_of(body):
        raise DamagedError(f"{path}: damaged (its checksum is not that of its content)")
    return body


def _problem(folder: Path, name: str, hashes: Mapping[str, str]) -> str | None:
    """What is wrong with a file, by the hashes of its folder's record."""
    path = folder / name
    if name not in hashes:
        return f"{path}: not a file of this folder ({folder / RESULT} does not list it)"
    if not path.is_file():
        return f"{path}: missing"
    return None if _sha256(path) == hashes[name] else f"{path}: damaged (its hash has changed)"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def stage_lock(config: Config, run: Run, stage: str) -> Iterator[None]:
    """One process at a time in this stage of this run; a second one waits for the first.

    The job of a killed Snakemake continues to run; the next job then finds its finished work.
    """
    path = config.folder / run.path / ".locks" / stage.replace("/", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(
            f"{run.path}: another process is at {stage}; waiting for it (lock {path})",
            file=sys.stderr,
            flush=True,
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
