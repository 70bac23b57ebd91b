"""prepare(dataset): parsed, checked, split and standardised, in one file."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from spat.data import series
from spat.data.reading import read
from spat.data.series import Series
from spat.data.synthetic import generate
from spat.pipeline import datasets, digests, records, runs
from spat.pipeline.cache import DamagedError, checked, make_way, remove, write_record
from spat.pipeline.config import Config

# `synthetic2` is a second station of the same kind: the next seed.
SEED_OFFSET = {"synthetic": 0, "synthetic2": 1}


def prepare(config: Config, dataset: str) -> Path:
    """Write `results/<experiment>/prepared/<dataset>.npz`, and a record in JSON next to it.

    The record holds what the file depends on (`digest`), the hash of the raw file, its rows and
    step, the number and names of its channels, and what was done about its gaps
    (`spat.data.gaps.Filled`).

    Raises:
        DataError: if the raw file is not the one that the registry describes, or not one that can
            be used.
    """
    row = datasets.find(config, dataset)
    path = datasets.raw_file(config, dataset)
    content = _generated(config, dataset) if path is None else read(row, path)
    output, record = runs.prepared_file(config, dataset), _record(config, dataset)
    remove(record)  # an old record would describe another file
    make_way(output.parent)
    prepared = series.prepare(row, content, content.sha256)
    series.save(prepared, output)
    write_record(
        output.parent,
        {
            "dataset": dataset,
            "source": row.station,
            "file": None if path is None else path.as_posix(),
            "sha256": content.sha256,
            "rows": row.rows,
            "channels": row.channels,
            "step": row.step,
            "names": content.names,
            "gaps": asdict(prepared.filled),
            "digest": _digest(config, dataset),
        },
        [output.name],
        record.name,
    )
    return output


def is_prepared(config: Config, dataset: str) -> bool:
    """Whether the file exists and the data and settings that it was made from are unchanged."""
    try:
        kept = checked(_record(config, dataset))
    except (FileNotFoundError, DamagedError):
        return False
    return bool(kept["digest"] == _digest(config, dataset))


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
