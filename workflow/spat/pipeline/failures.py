"""The message of a command that fails, with the file and the remedy."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Final

from spat.files import is_disk_full

# The message if only the library is installed.
PIPELINE_PACKAGES: Final = (
    "the pipeline needs more packages than the library: run `pip install '.[pipeline]'` in the "
    "folder of the project"
)
INTERRUPTED: Final = (
    "interrupted. Finished work is kept, and training resumes from its last saved epoch: run the "
    "same command again to resume"
)

_PACKAGE: Final = Path(__file__).parents[1]
# The start of the message of a failed command.
_ENDED: Final = re.compile(r"spat \w+: ")
# The messages of torch, CUDA and Arrow; Python raises MemoryError.
_NO_MEMORY: Final = re.compile(
    r"can't allocate memory|not enough memory|out of memory|malloc of size \d+ failed", re.I
)
# Errors whose message is written for the user, in this package and in libraries.
_EXPLAINED: Final = (OSError, ValueError, RuntimeError)


def explain(error: BaseException) -> str:
    """One message for an error that ended a command: the problem, the file, and the remedy."""
    text = _text(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "spat").startswith("spat"):
        return f"{error.name} is not installed: {PIPELINE_PACKAGES}"
    if is_disk_full(error):
        if "The disk is full" in text:  # the error of a run that `grid` has explained
            return text
        return (
            f"{text}. The disk is full, or a quota is reached: free some space and run the same "
            "command again; finished work is kept"
        )
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return (
            f"{text}. There is too little memory: run fewer jobs at a time (--cores, --workers, "
            "--concurrency), or use smaller settings (batch_size, measure.batch_sizes), and run "
            "the same command again"
        )
    if isinstance(error, FileNotFoundError) and error.filename is None and _is_cwd_gone():
        return f"{text}: the working directory was deleted. Change to a folder that exists"
    if isinstance(error, IsADirectoryError):
        return f"{text}. Remove that folder, and run the same command again"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return f"{text}. Remove that link, and run the same command again"
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        path = Path(os.fsdecode(error.filename))
        inside = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), path)
        remedy = "is in the place of a folder: move it away, and run the same command again"
        return f"{text}. {inside} {remedy}"
    if isinstance(error, BrokenProcessPool):
        return (
            f"{text}. A worker process was killed, most often because memory ran out: run the same "
            "command with fewer --workers; trained networks are kept"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{text}. Give yourself access to it, or choose another folder"
    if isinstance(error, _EXPLAINED) and not isinstance(error, UnicodeError):
        return text
    place, file = _place(error.__traceback__)
    about = f", at work on {file}" if file else ""
    remedy = f"If {file} was edited or damaged, restore or delete it and " if file else ""
    remedy += "run the same command again" if file else "Run the same command again"
    return (
        f"{text} (in {place}{about}). {remedy}; if it fails again, --debug shows where, for a "
        "report of the fault"
    )


def _is_cwd_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def failed_jobs(jobs: Iterable[tuple[str, str, Path]], since: float) -> str:
    """The messages of the failed jobs, each with its log.

    `jobs` are the jobs that did not finish, as (group, name, log). On a cluster the jobs of a run
    are one group, which Snakemake reports as a whole: jobs before the failed one have a log without
    a message, and jobs after it have no log, or one from before `since` (seconds since 1970). If no
    job of a group has a message, the group was killed during the last job with a log.
    """
    by_owner: dict[str, list[tuple[float, str, Path, str]]] = {}
    for owner, name, log in jobs:
        if log.is_file() and (changed := log.stat()).st_mtime >= since:
            # A job writes its command first, so the log of a job that never started is empty.
            started = changed.st_mtime if changed.st_size else 0.0
            by_owner.setdefault(owner, []).append((started, name, log, _message(log)))
    lines: list[str] = []
    for owner, logs in by_owner.items():
        failed = [entry for entry in logs if entry[3]] or [max(logs)]
        for started, name, log, message in failed:
            ended = "ended without a message: it was killed, or exceeded its time or memory"
            never = (
                "never started: the log of the cluster, which Snakemake names above, has the reason"
            )
            shown = f"{name}  ({log})" if started else owner
            lines += [shown, f"    {message or (ended if started else never)}"]
    if not lines:
        return "No job left a log. The log of Snakemake, above, names the jobs that failed."
    return "\n".join(["These jobs failed:", *lines])


def _message(log: Path) -> str:
    """The message that ended a job, from its log; empty if there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if _ENDED.match(line)]
    return "\n    ".join(lines[starts[-1] :]).strip() if starts else ""


def _text(error: BaseException) -> str:
    # Each line of a message becomes one line, without repeated blanks.
    text = str(error) if isinstance(error, _EXPLAINED) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(trace: TracebackType | None) -> tuple[str, Path | None]:
    """The last line of this package in the traceback, and the last file that it worked on."""
    place, file = "an unknown place", None
    for frame, line in traceback.walk_tb(trace):
        source = Path(frame.f_code.co_filename)
        if source.is_relative_to(_PACKAGE):
            place = f"{source.relative_to(_PACKAGE)}, line {line}"
            paths = [value for value in frame.f_locals.values() if isinstance(value, Path)]
            file = next((path for path in reversed(paths) if path.is_file()), file)
    return place, file
