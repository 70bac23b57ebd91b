"""prepare(dataset): parsed, checked, split and standardised, in one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from spat import records, runs
from spat.config import Config
from spat.data import series
from spat.data.registry import DATASETS
from spat.data.synthetic import generate

# `synthetic2` is a second station of the same kind: the next seed.
SEED_OFFSET = {"synthetic": 0, "synthetic2": 1}


def prepare(config: Config, dataset: str) -> Path:
    """Write `results/<experiment>/prepared/<dataset>.npz`."""
    row = DATASETS[dataset]
    if row.format == "synthetic":
        section = config.data.synthetic
        content = generate(
            section.rows,
            section.channels,
            section.seed + SEED_OFFSET[dataset],
            section.coupling,
            section.noise,
        )
        sha256 = records.digest(dataset, asdict(row), section.model_dump())
    else:
        path = config.data.cache / row.file
        content = series.read(row, path)
        sha256 = records.sha256(path)
    output = runs.prepared_file(config, dataset)
    series.save(series.prepare(row, content, sha256), output)
    return output
