"""prepare(dataset): parse, check and split a dataset, and write it to one file."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from spat.data import series
from spat.data.reading import read
from spat.data.registry import IMAGES, TEXTS
from spat.data.series import Series
from spat.data.synthetic import generate
from spat.pipeline import datasets, digests, records, runs
from spat.pipeline.cache import DamagedError, checked, make_way, remove, write_record
from spat.pipeline.config import Config

# `synthetic2` is a second series of the same kind, with the next seed.
SEED_OFFSET = {"synthetic": 0, "synthetic2": 1}


def prepare(config: Config, dataset: str) -> Path:
    """Write `results/<experiment>/prepared/<dataset>.npz`, and a record in JSON next to it.

    The record contains a digest of the dependencies of the file (`digest`), and the hash of the raw
    data. For a series it also has the number of rows, the step, the number and names of the
    channels, and the filled gaps (`spat.data.gaps.Filled`); for images, their number; for a text,
    its number of bytes.

    Raises:
        spat.data.download.DownloadError: if a file of images is not in the cache or a mirror.
        DataError: if the raw file differs from the description in the registry, or cannot be used.
    """
    row = datasets.row_of(config, dataset)
    output, record = runs.prepared_file(config, dataset), _record(config, dataset)
    remove(record)  # an old record would describe another file
    make_way(output.parent)
    described = _OF_TASK[row.task](config, dataset)
    write_record(
        output.parent,
        {
            "dataset": dataset,
            "source": row.station,
            **described,
            "digest": _digest(config, dataset),
        },
        [output.name],
        record.name,
    )
    return output


def is_prepared(config: Config, dataset: str) -> bool:
    """Whether the file exists and its raw data and settings are unchanged."""
    try:
        kept = checked(_record(config, dataset))
    except (FileNotFoundError, DamagedError):
        return False
    return bool(kept["digest"] == _digest(config, dataset))


# `images` and `texts` import torch, which takes longer than to prepare a series.


def _series(config: Config, dataset: str) -> dict[str, Any]:
    row, paths = datasets.find(config, dataset), datasets.raw_files(config, dataset)
    content = read(row, *paths) if paths else _generated(config, dataset)
    prepared = series.prepare(row, content, content.sha256)
    series.save(prepared, runs.prepared_file(config, dataset))
    return {
        "file": paths[0].as_posix() if paths else None,
        "sha256": content.sha256,
        "rows": row.rows,
        "channels": row.channels,
        "step": row.step,
        "names": content.names,
        "gaps": asdict(prepared.filled),
    }


def _images(config: Config, dataset: str) -> dict[str, Any]:
    from spat.data import images

    row = IMAGES[dataset]
    prepared = images.prepare(row, *images.obtain(row, config.data.cache, config.data.mirrors))
    images.save(prepared, runs.prepared_file(config, dataset))
    return {
        "sha256": prepared.sha256,
        "images": asdict(row.split),
    }


def _text(config: Config, dataset: str) -> dict[str, Any]:
    from spat.data import texts

    row = TEXTS[dataset]
    content = texts.obtain(row, config.data.cache, config.data.mirrors)
    prepared = texts.prepare(row, content)
    texts.save(prepared, runs.prepared_file(config, dataset))
    return {
        "files": {row.file.file: row.file.sha256[0]},
        "sha256": prepared.sha256,
        "bytes": len(content),
    }


# The functions that prepare the data of each task; they return values for the record.
_OF_TASK = {"forecasting": _series, "imaging": _images, "text": _text}


def _generated(config: Config, dataset: str) -> Series:
    section = config.data.synthetic
    content = generate(
        section.rows,
        section.channels,
        section.seed + SEED_OFFSET[dataset],
        section.coupling,
        section.noise,
    )
    row = datasets.find(config, dataset)
    return replace(content, sha256=records.digest(dataset, asdict(row), section.model_dump()))


def _record(config: Config, dataset: str) -> Path:
    return runs.prepared_file(config, dataset).with_suffix(".json")


def _digest(config: Config, dataset: str) -> str:
    stages = ("download", "prepare")
    settings = [digests.settings_digest(config, stage, dataset=dataset) for stage in stages]
    return records.digest(digests.code_digest("prepare"), *settings)
