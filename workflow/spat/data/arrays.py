"""Named arrays in a file that holds the hash of its content."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from spat.data.raw import READ_ERRORS
from spat.data.registry import Borders, DataError
from spat.files import replacing

T = TypeVar("T")


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays and the hash of their content as .npz, atomically."""
    hashed = {**arrays, "digest": np.array(_digest(arrays))}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **hashed)


def load(path: Path, kind: str, make: Callable[[dict[str, Any]], T]) -> T:
    """Read the arrays that `save` wrote, and return `make(arrays)`.

    `kind` says in an error message what the file should hold.

    Raises:
        DataError: naming the file, if it cannot be read, `make` cannot use its arrays, or its
            content does not have the hash that is stored in it.
        FileNotFoundError: if there is no file.
    """
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        if str(arrays.pop("digest")) != _digest(arrays):
            raise ValueError("its content has changed since it was written")
        return make(arrays)
    except FileNotFoundError:
        raise
    except (*READ_ERRORS, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not {kind} ({error}): delete it and run the job again") from None


def borders(array: NDArray[np.int64]) -> Borders:
    """The borders of the splits from an array [3, 2]."""
    train, validation, test = ((int(a), int(b)) for a, b in array)
    return Borders(train, validation, test)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    # SHA-256 of the names, types, shapes and values of all arrays.
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
