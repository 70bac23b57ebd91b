"""Work that is kept: finished results beside the digest of all that they depend on.

Snakemake deletes a rule's declared outputs before it runs the rule again, and reruns a rule
whenever one before it ran. What took long is therefore kept in folders that no rule declares, and
a rerun computes only what is missing or stale.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spat.files import read_json, replacing, write_json, write_text
from spat.pipeline.config import Config
from spat.pipeline.runs import Run

RESULT = "metrics.json"


class Kept:
    """A folder of finished work under a digest; `metrics.json`, written last, says it is whole."""

    def __init__(self, folder: Path, digest: str) -> None:
        """Open the folder; what it holds under another digest is thrown away."""
        self.folder = folder
        self.digest = digest
        stamp = folder / "digest"
        if not stamp.exists() or stamp.read_text().strip() != digest:
            if folder.exists():
                shutil.rmtree(folder)
            write_text(stamp, digest + "\n")

    @property
    def done(self) -> bool:
        """Whether the work is whole."""
        return (self.folder / RESULT).exists()

    @property
    def state(self) -> Path:
        """Where training keeps the state it resumes from."""
        return self.folder / "state.pt"

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write `metrics.json` and drop the training state."""
        write_json(self.folder / RESULT, {**metrics, "digest": self.digest})
        self.state.unlink(missing_ok=True)

    @property
    def metrics(self) -> dict[str, Any]:
        """What `finish` wrote."""
        return read_json(self.folder / RESULT)  # type: ignore[no-any-return]

    def publish(self, folder: Path, names: Sequence[str]) -> None:
        """Give the finished files their declared names, as links where the file system allows."""
        for name in names:
            with replacing(folder / name) as temporary:
                try:
                    os.link(self.folder / name, temporary)
                except OSError:
                    shutil.copyfile(self.folder / name, temporary)


@contextlib.contextmanager
def stage_lock(config: Config, run: Run, stage: str) -> Iterator[None]:
    """One process at a time in this stage of this run; a second one waits for the first.

    The job of a killed Snakemake lives on; its successor finds its finished work.
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
