"""Read files, and write files atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Context manager: a temporary file that replaces `path` if the block raises no exception.

    The temporary file is in the folder of `path`. Temporary files of killed processes of this
    machine are removed. With `durable`, the file and its name are synchronised to the disk, so
    that the old or the new file is complete after a loss of power.

    Raises:
        OSError: naming `path`, if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except Exception as error:
        if is_disk_full(error) and getattr(error, "filename", None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of any library means that a disk is full or a quota is reached."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    # Some libraries keep only the text of the error, and numpy reports how much it could write.
    signs = r"No space left on device|\d+ requested and \d+ written"
    return re.search(signs, str(error)) is not None


# The name of this machine without dots, since dots separate the parts of a temporary name.
_HOST: Final = re.sub(r"[^A-Za-z0-9]+", "-", platform.node())[:20] or "localhost"


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of `path` whose process on this machine has ended."""
    # A temporary file may itself have a temporary file, with one more leading dot.
    left = re.compile(rf"\.+{re.escape(path.name)}\.{_HOST}\.(\d+)\.tmp(\.{_HOST}\.\d+\.tmp)?")
    for other in path.parent.iterdir():
        if (left_by := left.fullmatch(other.name)) and not _is_running(int(left_by[1])):
            other.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented; NaN and infinity become null."""
    write_text(path, json.dumps(finite(value), indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: naming the file.
        ValueError: naming the file, if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path}: not JSON ({error})") from None


def finite(value: Any) -> Any:
    """Convert a value for JSON: NaN and infinity to None, keys to text, tuples to lists."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
