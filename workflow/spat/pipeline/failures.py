"""What a command says when it fails: one message with the file and the remedy."""

from __future__ import annotations

import errno
import os
import re
import traceback
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Final

from spat.files import is_disk_full

# What is missing where only the library was installed.
PIPELINE_PACKAGES: Final = (
    "the pipeline needs packages that the library does not: run `pip install '.[pipeline]'` in the "
    "folder of the project"
)
INTERRUPTED: Final = (
    "interrupted. Finished work is kept, and training resumes from its last saved epoch: run the "
    "same command again to resume"
)

_PACKAGE: Final = Path(__file__).parents[1]
# How torch and CUDA put it; Python has MemoryError.
_NO_MEMORY: Final = re.compile(r"can't allocate memory|not enough memory|out of memory", re.I)
# Errors that are raised with a message for the user, here and in the libraries.
_EXPLAINED: Final = (OSError, ValueError, RuntimeError)


def explain(error: BaseException) -> str:
    """One message for an error that ended a command: what, which file, and what to do."""
    text = _text(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "spat").startswith("spat"):
        return f"{error.name} is not installed: {PIPELINE_PACKAGES}"
    if is_disk_full(error):
        return (
            f"{text}. The disk is full, or a quota is reached: free some space and run the same "
            "command again; finished work is kept"
        )
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return (
            f"{text}. There is too little memory: run fewer jobs at a time (--cores, --workers, "
            "--concurrency), or take smaller settings (batch_size, measure.batch_sizes), and run "
            "the same command again"
        )
    if isinstance(error, IsADirectoryError):
        return f"{text}. Remove that folder, and run the same command again"
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        path = Path(os.fsdecode(error.filename))
        inside = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), path)
        remedy = "is in the place of a folder: remove it, and run the same command again"
        return f"{text}. {inside} {remedy}"
    if isinstance(error, BrokenProcessPool):
        return (
            f"{text}. A worker process was killed, most often because memory ran out: run the same "
            "command with fewer --workers; what was trained is kept"
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


def _text(error: BaseException) -> str:
    # Only one line for each line of a message that has several on purpose.
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
