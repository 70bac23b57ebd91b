"""Files that are whole or not there, and what they hold."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

# What reading a file can raise that is damaged or not there.
READ_ERRORS: Final = (OSError, EOFError, zlib.error, lzma.LZMAError)

_HTML_STARTS: Final = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<script")


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place only if the block ends well.

    With `durable`, the file and its name are on the disk before the block is left: a machine that
    loses power has the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def is_gzip(path: Path) -> bool:
    """Whether the file is gzipped, whatever its name says."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def is_xz(path: Path) -> bool:
    """Whether the file is compressed by xz, whatever its name says."""
    with path.open("rb") as file:
        return file.read(6) == b"\xfd7zXZ\x00"


def opened(path: Path) -> io.BufferedReader | gzip.GzipFile | lzma.LZMAFile:
    """The file for reading, unpacked on the way if it is compressed by gzip or xz."""
    if is_xz(path):
        return lzma.LZMAFile(path)
    return gzip.GzipFile(path) if is_gzip(path) else path.open("rb")


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file; of what it unpacks to, if it is gzipped (not if it is an .xz)."""
    with gzip.GzipFile(path) if is_gzip(path) else path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_html(path: Path) -> bool:
    """Whether the file is a web page: what a host sends instead of the file it was asked for."""
    with opened(path) as file:
        start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith(_HTML_STARTS)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented; NaN and infinity become null."""
    write_text(path, json.dumps(finite(value), indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileNotFoundError: naming the file.
        ValueError: naming the file, when it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path}: not JSON ({error})") from None


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinity become None, keys text, tuples lists."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
