"""prepare(dataset): parsed, checked, split and standardised, in one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from spat.data import series
from spat.data.reading import read
from spat.data.registry import DATASETS
from spat.data.synthetic import generate
from spat.files import write_text
from spat.pipeline import digests, records, runs
from spat.pipeline.config import Config

# `synthetic2` is a second station of the same kind: the next seed.
SEED_OFFSET = {"synthetic": 0, "synthetic2": 1}


def prepare(config: Config, dataset: str) -> Path:
    """Write `results/<experiment>/prepared/<dataset>.npz`, and beside it what it depends on."""
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
        source = records.digest(dataset, asdict(row), section.model_dump())
    else:
        path = config.data.cache / row.file
        content = read(row, path)
        source = content.sha256
    output, stamp = runs.prepared_file(config, dataset), _stamp(config, dataset)
    stamp.unlink(missing_ok=True)  # one that stays behind would vouch for another file
    series.save(series.prepare(row, content, source), output)
    write_text(stamp, _digest(config, dataset) + "\n")
    return output


def is_prepared(config: Config, dataset: str) -> bool:
    """Whether the file is there, and what it was made from is as it was."""
    stamp = _stamp(config, dataset)
    return (
        runs.prepared_file(config, dataset).exists()
        and stamp.exists()
        and stamp.read_text().strip() == _digest(config, dataset)
    )


def _stamp(config: Config, dataset: str) -> Path:
    return runs.prepared_file(config, dataset).with_suffix(".digest")


def _digest(config: Config, dataset: str) -> str:
    stages = ("download", "prepare")
    settings = [digests.settings_digest(config, stage, dataset=dataset) for stage in stages]
    return records.digest(digests.code_digest("prepare"), *settings)
