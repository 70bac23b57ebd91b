"""Images with a class each: files of the idx format, and batches gathered from memory by index.

The idx format is that of MNIST: two zero bytes, a byte for the type (8 for unsigned bytes), a byte
for the number of dimensions, each dimension as a big-endian 32-bit number, then the values.

Symbols: N images, H rows and W columns of pixels, B images a batch.
"""

from __future__ import annotations

import hashlib
import struct
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
from spat.data.registry import Borders, DataError, File, Images
from spat.tasks.imaging import Batch

_UNSIGNED_BYTES = 8


@dataclass(frozen=True)
class Labelled:
    """Images and their classes.

    Attributes:
        pixels: uint8 [N, H, W].
        labels: int64 [N], from 0.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


class ImageCases:
    """Images that stay in memory, standardised, on one device."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        """pixels float32 [N, 1, H, W] and labels int64 [N] on the same device."""
        self.device = pixels.device
        self._pixels = pixels
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, index: Tensor) -> Batch:
        """The images numbered `index`, int64 [B], in that order."""
        return Batch(self._pixels[index], self._labels[index])


class Splits(NamedTuple):
    """The images of one dataset. The test split is only for evaluation."""

    train: ImageCases
    validation: ImageCases
    test: ImageCases


def obtain(dataset: Images, cache: Path, mirrors: Sequence[Path] = ()) -> tuple[Labelled, Labelled]:
    """The training and the test images; `fetch` brings their four files into `cache`.

    Raises:
        spat.data.download.DownloadError: if no source has one of the files.
        DataError: as in `read`.
    """
    paths = [fetch(file, cache, mirrors) for file in dataset.files]
    train, test = read(dataset, *paths[:2]), read(dataset, *paths[2:])
    return train, test


def read(dataset: Images, pixels: Path, labels: Path) -> Labelled:
    """Read a file of images and the file of their classes, plain or gzipped.

    Raises:
        DataError: naming the file, if its hash is not one of the dataset, it is not an idx file, or
            its sizes or classes differ from the registry.
    """
    images, classes = _idx(dataset, pixels, 3), _idx(dataset, labels, 1)
    if images.shape[1:] != (dataset.height, dataset.width):
        height, width = images.shape[1:]
        raise DataError(
            f"{pixels}: images of {height} x {width} pixels, expected "
            f"{dataset.height} x {dataset.width}"
        )
    if len(images) != len(classes):
        raise DataError(
            f"{labels}: {len(classes)} labels, but {pixels} holds {len(images)} images: "
            "the two files do not belong together"
        )
    if classes.size and classes.max() >= dataset.classes:
        raise DataError(f"{labels}: class {classes.max()}, expected 0 to {dataset.classes - 1}")
    return Labelled(images, classes.astype(np.int64))


@dataclass(frozen=True)
class Prepared:
    """The images of a dataset, read and checked.

    Attributes:
        name: Dataset.
        train: The images of the training and the validation split.
        test: The test images.
        borders: Images of each split, as in `split`.
        sha256: Hash of the published hashes of the four files.
    """

    name: str
    train: Labelled
    test: Labelled
    borders: Borders
    sha256: str


def prepare(dataset: Images, train: Labelled, test: Labelled) -> Prepared:
    """The images with the splits of the dataset.

    Raises:
        DataError: naming the dataset, if there are fewer images than its splits need.
    """
    known, held, shown = dataset.split.train, dataset.split.validation, dataset.split.test
    borders = Borders((0, known), (known, known + held), (0, shown))
    for part, border in ((train, borders.validation), (test, borders.test)):
        _part(part, border, dataset.name)
    # All accepted variants of a file hold the same images, so the first hash stands for all.
    digest = hashlib.sha256("".join(file.sha256[0] for file in dataset.files).encode())
    return Prepared(dataset.name, train, test, borders, digest.hexdigest())


def save(prepared: Prepared, path: Path) -> None:
    """Write prepared images as .npz, atomically."""
    split = prepared.borders
    arrays.save(
        path,
        {
            "name": np.array(prepared.name),
            "train": prepared.train.pixels,
            "train_labels": prepared.train.labels,
            "test": prepared.test.pixels,
            "test_labels": prepared.test.labels,
            "borders": np.array([split.train, split.validation, split.test], dtype=np.int64),
            "sha256": np.array(prepared.sha256),
        },
    )


def load(path: Path) -> Prepared:
    """Read what `save` wrote.

    Raises:
        DataError, FileNotFoundError: as `spat.data.arrays.load`.
    """
    return arrays.load(path, "prepared images", _prepared)


def _prepared(kept: dict[str, Any]) -> Prepared:
    return Prepared(
        str(kept["name"]),
        Labelled(kept["train"], kept["train_labels"]),
        Labelled(kept["test"], kept["test_labels"]),
        arrays.borders(kept["borders"]),
        str(kept["sha256"]),
    )


def split(
    train: Labelled, test: Labelled, borders: Borders, device: str | torch.device = "cpu"
) -> Splits:
    """The images of each split, standardised by the mean and deviation of all training pixels.

    `borders.train` and `borders.validation` count the training images, `borders.test` the test
    images.

    Raises:
        DataError: naming the split, if it holds no image or lies outside the images.
    """
    chosen = {
        "train": _part(train, borders.train, "train"),
        "validation": _part(train, borders.validation, "validation"),
        "test": _part(test, borders.test, "test"),
    }
    # A pixel has one of 256 values: counting the values is faster than averaging the pixels.
    values = np.arange(256, dtype=np.float64)
    parts = np.array_split(chosen["train"].pixels, 64)  # bincount copies a part as int64
    counts = np.sum([np.bincount(part.ravel(), minlength=256) for part in parts], axis=0)
    shares = counts / counts.sum()
    mean = float(shares @ values)
    deviation = float(np.sqrt(shares @ (values - mean) ** 2)) or 1.0
    standardised = ((values - mean) / deviation).astype(np.float32)

    def cases(part: Labelled) -> ImageCases:
        pixels = torch.from_numpy(standardised[part.pixels]).unsqueeze(1)
        return ImageCases(pixels.to(device), torch.from_numpy(part.labels).to(device))

    return Splits(**{name: cases(part) for name, part in chosen.items()})


def _part(images: Labelled, border: tuple[int, int], name: str) -> Labelled:
    start, stop = border
    if not 0 <= start < stop <= len(images.labels):
        raise DataError(
            f"{name} split: images [{start}, {stop}) of {len(images.labels)}: choose at least one "
            "image, and none beyond the last"
        )
    return Labelled(images.pixels[start:stop], images.labels[start:stop])


def _idx(dataset: Images, path: Path, dimensions: int) -> NDArray[Any]:
    """The values of an idx file of unsigned bytes whose hash is one of the dataset."""
    try:
        content, digest = raw.load(path)
    except raw.READ_ERRORS as error:
        raise DataError(f"{path}: {error}") from None
    _require_known(dataset.files, path, digest)
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTES, dimensions]) or len(content) < start:
        raise DataError(f"{path}: not an idx file of unsigned bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != np.prod(shape, dtype=np.int64):
        expected = " x ".join(map(str, shape))
        raise DataError(f"{path}: {len(content) - start} values, but its header says {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def _require_known(files: Sequence[File], path: Path, digest: str) -> None:
    known = {sha256 for file in files for sha256 in file.sha256}
    if digest not in known:
        raise DataError(
            f"{path}: SHA-256 {digest} is none of the published {', '.join(sorted(known))}: delete "
            "it and download it again"
        )
