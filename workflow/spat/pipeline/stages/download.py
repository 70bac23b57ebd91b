"""download(dataset): fetch the verified files of a dataset into the cache."""

from __future__ import annotations

from pathlib import Path

from spat.data.download import fetch
from spat.pipeline import datasets
from spat.pipeline.config import Config


def download(config: Config, dataset: str, file: str | None = None) -> list[Path]:
    """Fetch the files of a dataset from the cache, the mirrors or their official URLs.

    If `file` is given, only the file of this name is fetched.

    Raises:
        spat.data.download.DownloadError: if no source has a file.
        ValueError: if the dataset is generated, or has no such file.
    """
    rows = datasets.published(dataset) or (datasets.find(config, dataset),)
    wanted = [row for row in rows if file in (None, row.file)]
    if not wanted:
        names = ", ".join(row.file for row in rows)
        raise ValueError(f"--file {file!r}: the files of {dataset} are {names}")
    return [fetch(row, config.data.cache, config.data.mirrors) for row in wanted]
