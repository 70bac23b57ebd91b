"""Texts as bytes: read, split, saved, and gathered from memory in batches of sequences.

Symbols: N bytes, B sequences, T bytes each.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spat.data import arrays, raw
from spat.data.download import fetch
from spat.data.registry import Borders, DataError, Text, borders
from spat.tasks.text import Batch


class TextCases:
    """Consecutive sequences of a text, in memory on one device."""

    def __init__(self, content: Tensor, context: int) -> None:
        """Cut `content`, uint8 [N], into sequences of `context` bytes.

        The target of each byte is the byte after it. Bytes left at the end are not used.

        Raises:
            DataError: if there are fewer than `context` + 1 bytes.
        """
        count = (len(content) - 1) // context
        if count < 1:
            raise DataError(
                f"a text of {len(content)} bytes holds no sequence of {context} bytes and the byte "
                "after it: choose a shorter lookback"
            )
        self.device = content.device
        self._x = content[: count * context].view(count, context)
        self._y = content[1 : count * context + 1].view(count, context)

    def __len__(self) -> int:
        return len(self._x)

    def batch(self, index: Tensor) -> Batch:
        """The sequences numbered `index`, int64 [B], in that order."""
        return Batch(self._x[index].long(), self._y[index].long())


class Splits(NamedTuple):
    """The sequences of one text. The test split is only for evaluation."""

    train: TextCases
    validation: TextCases
    test: TextCases


def obtain(dataset: Text, cache: Path, mirrors: Sequence[Path] = ()) -> NDArray[np.uint8]:
    """The text as bytes, uint8 [N]; `fetch` brings its file into `cache`.

    Raises:
        spat.data.download.DownloadError: if no source has the file.
        DataError: as in `read`.
    """
    return read(dataset, fetch(dataset.file, cache, mirrors))


def read(dataset: Text, path: Path) -> NDArray[np.uint8]:
    """Read the topics of Python's help as bytes, uint8 [N].

    The topics are the values of a dictionary in a Python file, which is parsed but not run. They
    are sorted by name and separated by two line feeds.

    Raises:
        DataError: naming the file, if its hash is not one of the dataset, or it does not consist of
            such a dictionary.
    """
    try:
        content, digest = raw.load(path)
    except raw.READ_ERRORS as error:
        raise DataError(f"{path}: {error}") from None
    if digest not in dataset.file.sha256:
        raise DataError(
            f"{path}: SHA-256 {digest} is not the published {' or '.join(dataset.file.sha256)}: "
            "delete it"
        )
    try:
        (assigned,) = (node for node in ast.parse(content).body if isinstance(node, ast.Assign))
        topics = ast.literal_eval(assigned.value)
        text = "\n\n".join(topics[name] for name in sorted(topics))
    except (SyntaxError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a dictionary of topics ({error}): delete it") from None
    return np.frombuffer(text.encode(), np.uint8)


@dataclass(frozen=True)
class Prepared:
    """A text, read and checked.

    Attributes:
        name: Dataset.
        content: uint8 [N].
        borders: Bytes of each split.
        sha256: Hash of the file that the text was read from.
    """

    name: str
    content: NDArray[np.uint8]
    borders: Borders
    sha256: str


def prepare(dataset: Text, content: NDArray[np.uint8]) -> Prepared:
    """The text with the splits of the dataset."""
    splits = borders(dataset, len(content))
    return Prepared(dataset.name, content, splits, dataset.file.sha256[0])


def save(prepared: Prepared, path: Path) -> None:
    """Write a prepared text as .npz, atomically."""
    splits = prepared.borders
    arrays.save(
        path,
        {
            "name": np.array(prepared.name),
            "content": prepared.content,
            "borders": np.array([splits.train, splits.validation, splits.test], np.int64),
            "sha256": np.array(prepared.sha256),
        },
    )


def load(path: Path) -> Prepared:
    """Read what `save` wrote.

    Raises:
        DataError, FileNotFoundError: as `spat.data.arrays.load`.
    """
    return arrays.load(path, "a prepared text", _prepared)


def _prepared(kept: dict[str, Any]) -> Prepared:
    splits = arrays.borders(kept["borders"])
    return Prepared(str(kept["name"]), kept["content"], splits, str(kept["sha256"]))


def split(
    content: NDArray[np.uint8],
    splits: Borders,
    context: int,
    device: str | torch.device = "cpu",
) -> Splits:
    """Cut each split of a text, uint8 [N], into sequences of `context` bytes on a device.

    Raises:
        DataError: naming the split, if it holds no sequence.
    """
    whole = torch.from_numpy(content.copy()).to(device)

    def cases(name: str) -> TextCases:
        start, stop = getattr(splits, name)
        try:
            return TextCases(whole[start:stop], context)
        except DataError as error:
            raise DataError(f"{name} split: {error}") from None

    return Splits(*(cases(name) for name in Splits._fields))
