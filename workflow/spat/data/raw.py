"""Read the bytes of a data file, unpacked if it is compressed, and the hash that identifies it."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple

# Larger than any published file; the largest, solar_AL.txt, has 180 MB when unpacked.
UNPACKED_LIMIT: Final = 1 << 30

_CHUNK: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"
_XZ: Final = b"\xfd7zXZ\x00"
_HTML_STARTS: Final = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<script")

# The exceptions of reading a missing or damaged file.
READ_ERRORS: Final = (OSError, EOFError, zlib.error, lzma.LZMAError)


class Raw(NamedTuple):
    """A data file in memory.

    Attributes:
        content: Bytes of the file, unpacked if it is compressed.
        sha256: SHA-256 (hex) of the file. A gzipped file has the hash of its content, since its
            bytes depend on the program that packed it. An .xz file is published packed and has the
            hash of its own bytes.
    """

    content: bytes
    sha256: str


def load(path: Path) -> Raw:
    """Read a data file into memory.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: if the file cannot be read or unpacked, is
            not a regular file, or unpacks to more than `UNPACKED_LIMIT`.
    """
    content = b"".join(unpacked(path))
    hashed = path.read_bytes() if _start(path) == _XZ else content
    return Raw(content, hashlib.sha256(hashed).hexdigest())


def fingerprint(path: Path) -> str:
    """The `sha256` of `load`, without keeping the content in memory.

    Raises:
        OSError, EOFError, zlib.error: as in `load`.
    """
    digest = hashlib.sha256()
    packed = _start(path) == _XZ
    for chunk in _limited(path, xz=False) if packed else unpacked(path):
        digest.update(chunk)
    return digest.hexdigest()


def unpacked(path: Path) -> Iterator[bytes]:
    """The content of a file in parts, unpacked on the way if it is compressed by gzip or xz.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: as in `load`.
    """
    return _limited(path, xz=True)


def is_gzip(path: Path) -> bool:
    """Whether the content of a file is gzipped."""
    return _start(path)[:2] == _GZIP


def is_html(content: bytes) -> bool:
    """Whether a file is a web page, which some hosts send in place of a missing file."""
    start = content[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith(_HTML_STARTS)


def _limited(path: Path, *, xz: bool) -> Iterator[bytes]:
    start = _start(path)
    packed = start[:2] == _GZIP or (xz and start == _XZ)
    total = 0
    if not start:
        return
    with _opened(path, start, xz) as file:
        while chunk := file.read(_CHUNK):
            total += len(chunk)
            if packed and total > UNPACKED_LIMIT:
                raise OSError(
                    f"unpacks to more than {UNPACKED_LIMIT >> 30} GiB; if the file is right, "
                    "unpack it by hand"
                )
            yield chunk


def _opened(path: Path, start: bytes, xz: bool) -> gzip.GzipFile | lzma.LZMAFile | BufferedReader:
    if start[:2] == _GZIP:
        return gzip.GzipFile(path)
    return lzma.LZMAFile(path) if xz and start == _XZ else path.open("rb")


def _start(path: Path) -> bytes:
    # Opening a pipe would wait for a writer, and a device may never end.
    if path.exists() and not path.is_file():
        raise OSError("a folder" if path.is_dir() else "a pipe or a device, not a regular file")
    # Files of the kernel have the size 0, and a read of some of them never returns.
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return file.read(len(_XZ))
