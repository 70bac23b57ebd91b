"""Named arrays in a file that holds the hash of its content."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spat.data.raw import READ_ERRORS
from spat.data.registry import DataError
from spat.files import replacing

# What reading the arrays of a damaged file, or of another kind of file, may raise.
ERRORS: Final = (*READ_ERRORS, KeyError, TypeError, ValueError, zipfile.BadZipFile)


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as .npz, atomically."""
    hashed = {**arrays, "digest": np.array(_digest(arrays))}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **hashed)


def load(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the content has changed since it was written. A damaged file raises one of
            `ERRORS`.
    """
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    if str(arrays.pop("digest")) != _digest(arrays):
        raise ValueError("its content has changed since it was written")
    return arrays


def damaged(path: Path, kind: str, error: Exception) -> DataError:
    """The error of a file that does not hold what its kind should."""
    return DataError(f"{path}: not {kind} ({error}): delete it and run the job again")


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    # SHA-256 of the names, types, shapes and values of all arrays.
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()
