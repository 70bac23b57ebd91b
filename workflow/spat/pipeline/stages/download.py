"""download(dataset): the verified file in the cache."""

from __future__ import annotations

from pathlib import Path

from spat.data.download import fetch
from spat.pipeline import datasets
from spat.pipeline.config import Config


def download(config: Config, dataset: str) -> Path:
    """Fetch a benchmark file from the cache, the mirrors or its official URLs."""
    return fetch(datasets.find(config, dataset), config.data.cache, config.data.mirrors)
