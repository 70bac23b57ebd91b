"""The datasets of an experiment, from the registry and from its configuration."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from spat.data.registry import (
    DATASETS,
    WITHOUT_TIME,
    DataError,
    Dataset,
    File,
    Gaps,
    Images,
    Rows,
    Shares,
    Table,
    Text,
    season_of,
)
from spat.pipeline.config import Config, ConfigError, CustomSection


def row_of(config: Config, name: str) -> Dataset | Images | Text:
    """The row of a dataset of any task.

    Raises:
        ConfigError: see `find`.
    """
    return WITHOUT_TIME[name] if name in WITHOUT_TIME else find(config, name)


def find(config: Config, name: str) -> Dataset:
    """The row of a series.

    Generated data have the rows and channels of the configuration. The file of a dataset in
    `data.custom` is read, once per process and version, to determine its hash, rows and channels.

    Raises:
        ConfigError: naming the key, if there is no such series or its file cannot be read.
    """
    if section := config.data.custom.get(name):
        try:
            status = section.file.stat()
            return _measured(_row(name, section), status.st_size, status.st_mtime_ns)
        except (DataError, OSError) as error:
            raise ConfigError(f"data.custom.{name}: {error}") from None
    if name not in DATASETS:
        raise ConfigError(f"dataset {name!r} is not one of {', '.join(names(config))}")
    row = DATASETS[name]
    if row.format == "synthetic":
        generated = config.data.synthetic
        return replace(row, rows=generated.rows, channels=generated.channels)
    return row


def names(config: Config) -> tuple[str, ...]:
    """All datasets that an experiment can use."""
    return (*DATASETS, *WITHOUT_TIME, *config.data.custom)


def published(name: str) -> tuple[Dataset | File, ...]:
    """The files that `download` fetches; none for generated data and files of the user."""
    if name in WITHOUT_TIME:
        return WITHOUT_TIME[name].files
    return (DATASETS[name],) if name in DATASETS and DATASETS[name].file else ()


def raw_files(config: Config, name: str) -> tuple[Path, ...]:
    """The files that `prepare` reads; none for generated data."""
    if section := config.data.custom.get(name):
        return (section.file,)
    return tuple(config.data.cache / row.file for row in published(name))


def _row(name: str, section: CustomSection) -> Dataset:
    season = section.season or season_of(section.step)
    fills = section.gaps != "refuse"
    a, b, c = section.split
    return Dataset(
        name=name,
        file=str(section.file),
        urls=(),
        sha256=(),
        rows=0,
        channels=0,
        step=section.step,
        split=Shares(a, c) if a < 1 else Rows(int(a), int(b), int(c)),
        season=season,
        station=section.source or name,
        format="csv",
        mark=bool(section.date),
        lookback=section.lookback,
        horizons=section.horizons,
        gaps=Gaps(section.gaps, (section.gap_limit or season) if fills else 0),
        table=Table(
            date=section.date,
            date_format=section.date_format,
            drop=section.drop,
            mean=section.mean,
            separator=section.separator,
            decimal=section.decimal,
            encodings=("utf-8-sig" if section.encoding == "utf-8" else section.encoding,),
        ),
    )


@lru_cache
def _measured(row: Dataset, size: int, modified: int) -> Dataset:
    # A new version of a file differs in size or in the time of its last modification.
    from spat.data.reading import measured

    return measured(row, Path(row.file))
