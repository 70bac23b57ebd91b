"""Keep finished results with the digest of everything that they depend on.

Snakemake deletes a rule's declared outputs before it runs the rule again, and reruns a rule
whenever an earlier rule ran. Results that take long are therefore kept in folders that no rule
declares, and a rerun computes only missing or stale results.

Each finished folder has a record, `metrics.json`, which is written last. It contains the SHA-256 of
the folder's files and a checksum of itself. Both are checked when a file is read, and the content
of the record is checked against its path (`spat.pipeline.records.fault`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from spat.files import finite, read_json, replacing, sha256, write_json, write_text
from spat.pipeline import records, runs
from spat.pipeline.config import Config
from spat.pipeline.runs import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RESULT = "metrics.json"
MANIFEST = "manifest.json"
# The networks of whole sites, which are trained before those of single heads.
SITES = "sites.json"
STAMP = "digest"
# The suffixes of files that jobs keep. A folder with such a suffix is an error.
SUFFIXES: Final = frozenset(
    {".json", ".csv", ".parquet", ".npy", ".npz", ".safetensors", ".png", ".pt"}
)


class DamagedError(ValueError):
    """A file is missing or was changed since it was written; the message gives the remedy."""


class Finished:
    """The files of a finished job, or of a part of it; files are checked whenever they are read.

    `markers` are the files by which Snakemake knows that the job is done (by default `metrics.json`
    of the folder). If a file is damaged the markers are removed, so that the same command creates
    the file again. If a file has the recorded hash but wrong content, the record of its kept copy
    is removed too, since the same command would publish that copy again.
    """

    def __init__(self, folder: Path, *markers: Path) -> None:
        self.folder = folder
        self._markers = markers or (folder / RESULT,)

    @property
    def metrics(self) -> dict[str, Any]:
        """The record `metrics.json`.

        Raises:
            FileNotFoundError: naming the record, if it is missing.
            DamagedError: naming the record, if it was changed since it was written.
        """
        return self.record(RESULT)

    def record(self, name: str) -> dict[str, Any]:
        """A record of the folder; raises the errors of `metrics`."""
        try:
            return _record(self.folder / name)
        except FileNotFoundError:
            path = self.folder / name
            raise FileNotFoundError(f"{path} does not exist. {_remedy(path)}") from None
        except DamagedError as error:
            raise self.damaged(str(error), name) from None

    def path(self, name: str) -> Path:
        """The path of a file, after a check of its hash.

        Raises:
            FileNotFoundError: naming the record, if it is missing.
            DamagedError: naming the file, if it is missing or damaged.
        """
        if problem := _problem(self.folder, name, self.metrics["files"]):
            raise self.damaged(problem)
        return self.folder / name

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of the record and of the files that it lists; raises like `metrics`."""
        names = (RESULT, *self.metrics["files"])
        return {name: (self.folder / name).stat().st_size for name in names}

    def table(self, name: str, **options: Any) -> pd.DataFrame:
        """Read a table (`.csv` or `.parquet`) with pandas and `options`; raises like `path`."""
        import pandas as pd

        path = self.path(name)
        with self._reading(path):
            read: Any = pd.read_csv if path.suffix == ".csv" else pd.read_parquet
            frame: pd.DataFrame = read(path, **options)
            _require(records.table_fault(path, frame))
            return frame

    def array(self, name: str, mean: float | None = None) -> np.ndarray[Any, Any]:
        """Read an array (`.npy`), which must have this mean if it is given; raises like `path`."""
        import numpy as np

        path = self.path(name)
        with self._reading(path):
            array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
            _require(records.array_fault(path, {"": array}))
            own = array.mean(dtype=float) if array.size else float("nan")
            if mean is not None and not np.isclose(own, mean, rtol=1e-4):
                raise DamagedError(
                    f"{path}: the mean of {array.size} values is {own:.6g}, but "
                    f"{self.folder / RESULT} has {mean:.6g}"
                )
            return array

    def arrays(self, name: str, keys: Iterable[str] = ()) -> dict[str, np.ndarray[Any, Any]]:
        """Read named arrays (`.npz`), which must include `keys`; raises the errors of `path`."""
        import numpy as np

        path = self.path(name)
        with self._reading(path), np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
            _require(records.array_fault(path, arrays))
            for key in keys:
                if key not in arrays:
                    raise DamagedError(f"{path}: has no array {key!r}")
            return arrays

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Context manager in which a file with the recorded hash is read and its content checked.

        Raises:
            DamagedError: naming the file, in place of any error of the block except those of the
                machine (too little memory, a missing package, an error of the system).
        """
        try:
            yield
        except (MemoryError, ImportError):
            raise
        except DamagedError as error:
            raise self.wrong(str(error)) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self.wrong(f"{path}: cannot be read ({error})") from None

    def damaged(self, problem: str, record: str = RESULT) -> DamagedError:
        """Remove the markers and return the error to raise for a problem of a record."""
        return self._forgotten(problem, record, list(self._markers))

    def wrong(self, problem: str) -> DamagedError:
        """As `damaged`, for a file that has the recorded hash: also forget its kept copy."""
        own = self.folder / RESULT
        records = [kept / RESULT for kept in (self.folder, self.folder / "kept")]
        # A kept copy with other files than the published one may be right.
        same = [r for r in records if r.with_name(STAMP).is_file() and _lists_the_same(r, own)]
        return self._forgotten(problem, RESULT, [*self._markers, *same])

    def _forgotten(self, problem: str, record: str, files: list[Path]) -> DamagedError:
        for file in files:
            remove(file)
        were = f"{' and '.join(map(str, files))} {'was' if len(files) == 1 else 'were'} removed"
        return DamagedError(f"{problem}. {were}. {_remedy(self.folder / record)}")


class Kept(Finished):
    """A folder of finished work with a digest."""

    def __init__(self, folder: Path, digest: str) -> None:
        """Open the folder; if its content has another digest, the content is removed."""
        super().__init__(folder)
        self.digest = digest
        stamp = folder / STAMP
        if not stamp.is_file() or stamp.read_bytes().strip() != digest.encode():
            self._clear()

    @property
    def done(self) -> bool:
        """Whether all files exist and have their recorded hashes; damaged work is removed."""
        try:
            checked(self.folder / RESULT)
            return True
        except FileNotFoundError:
            make_way(self.folder)
            return False
        except DamagedError as error:
            problem = str(error)
        print(f"{problem}: computing {self.folder} again", file=sys.stderr, flush=True)
        self._clear()
        return False

    @property
    def state(self) -> Path:
        """The path of the training state."""
        return self.folder / "state.pt"

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json` with the hashes of the folder's files, and delete the state."""
        files = (path.name for path in self.folder.iterdir() if path.is_file())
        kept = sorted(n for n in files if n not in (STAMP, RESULT) and not _is_state(n))
        write_record(
            self.folder,
            {**metrics, "digest": self.digest},
            [name for name in kept if not name.startswith(".")],
        )
        self.state.unlink(missing_ok=True)

    def publish(self, folder: Path, names: Sequence[str]) -> None:
        """Link the finished files to their declared names, or copy them if links are impossible."""
        for name in names:
            with replacing(folder / name) as temporary:
                try:
                    os.link(self.folder / name, temporary)
                except OSError:
                    shutil.copyfile(self.folder / name, temporary)

    def _clear(self) -> None:
        remove(self.folder)
        write_text(self.folder / STAMP, self.digest + "\n")


def write_record(
    folder: Path, values: Mapping[str, Any], files: Iterable[str] = (), name: str = RESULT
) -> None:
    """Write a record: `values`, the hashes of `files` in the folder, and a checksum of both."""
    hashes = {file: sha256(folder / file) for file in files}
    # As JSON returns it, so that the checksum is the same when the file is read.
    body = json.loads(json.dumps(finite({**values, "files": hashes})))
    write_json(folder / name, {**body, "checksum": records.digest(body)})


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


def remove(path: Path) -> None:
    """Remove a file, a link (but not its target), or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_way(folder: Path) -> None:
    """Remove folders, pipes and broken links that have the name of a kept file."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in SUFFIXES and not path.is_file():
            print(f"{path}: removed, since it is not a file", file=sys.stderr, flush=True)
            remove(path)


def checked(path: Path) -> dict[str, Any]:
    """Read a record, after checks of its content and of the hashes of its files.

    Raises:
        FileNotFoundError: naming the record, if it is missing.
        DamagedError: naming the record or file that was changed since it was written.
    """
    record = _record(path)
    for name in record["files"]:
        problem = None if _is_state(name) else _problem(path.parent, name, record["files"])
        if problem:
            raise DamagedError(problem)
    return record


def _record(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise DamagedError(f"{path}: not a file")
    try:
        record = read_json(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError(f"{path}: a link to itself") from None
        raise
    except ValueError as error:
        raise DamagedError(str(error)) from None
    body = {k: v for k, v in record.items() if k != "checksum"} if isinstance(record, dict) else {}
    if not isinstance(body.get("files"), dict) or record.get("checksum") != records.digest(body):
        raise DamagedError(f"{path}: damaged (its checksum is not that of its content)")
    if problem := records.fault(path, body) or _other_digest(path, body):
        raise DamagedError(problem)
    return body


def _other_digest(path: Path, body: Mapping[str, Any]) -> str | None:
    """The problem if a record has another digest than the kept work of its folder, or None."""
    folder = path.parent
    # A stray file elsewhere is of no kept work: nothing would ever replace it.
    stamps = [folder / "kept" / STAMP] if folder.name == "pretrain" else []
    if not {"kept", "masks"}.isdisjoint(folder.parts):
        stamps.append(folder / STAMP)
    for stamp in stamps:
        if path.name == RESULT and stamp.is_file():
            digest = stamp.read_text(encoding="utf-8", errors="replace").strip()
            if body.get("digest") != digest:
                return f"{path}: 'digest' is {body.get('digest')!r}, but {stamp} has {digest!r}"
    return None


def _lists_the_same(record: Path, other: Path) -> bool:
    """Whether two records list the same files with the same hashes."""
    try:
        return bool(_record(record)["files"] == _record(other)["files"])
    except (FileNotFoundError, DamagedError):
        return False


def _require(problem: str | None) -> None:
    if problem:
        raise DamagedError(problem)


def _remedy(record: Path) -> str:
    command = records.command(record)
    by_hand = f". By hand, first run `{command}`" if command else ""
    return (
        "With Snakemake, `grid` or `advise`, run the same command again: it computes missing or "
        f"damaged files and keeps the rest{by_hand}"
    )


def _is_state(name: str) -> bool:
    """Whether a file is a training state, which earlier versions listed and then removed."""
    return Path(name).suffix == ".pt"


def _problem(folder: Path, name: str, hashes: Mapping[str, str]) -> str | None:
    """The problem of a file, by the hashes in its folder's record, or None."""
    path = folder / name
    if name not in hashes:
        return f"{path}: not a file of this folder ({folder / RESULT} does not list it)"
    if not path.is_file():
        return f"{path}: not a file" if path.exists() else f"{path}: missing"
    return None if sha256(path) == hashes[name] else f"{path}: damaged (its hash has changed)"


@contextlib.contextmanager
def stage_lock(config: Config, run: Run, stage: str) -> Iterator[None]:
    """Context manager: one process at a time in this stage of this run; others wait.

    The job of a killed Snakemake continues to run; the next job waits and finds the finished work.
    """
    path = config.folder / run.path / ".locks" / stage.replace("/", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        remove(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(
            f"{run.path}: another process runs {stage}; waiting for it (lock {path})",
            file=sys.stderr,
            flush=True,
        )
        lock.acquire()
    make_way(runs.folder(config, run, stage))
    try:
        yield
    finally:
        lock.release()
