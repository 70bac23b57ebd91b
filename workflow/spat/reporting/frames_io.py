"""The frames of an experiment, read when a table or a figure first asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pandas as pd

from spat.evaluation.controls import is_control
from spat.pipeline import frames
from spat.pipeline.config import StatisticsSection


class Absent(Exception):  # noqa: N818  (it is a finding, not a failure)
    """The experiment does not hold what a table or figure shows; the message says what and why."""


class Frames:
    """The frames. Each is read once, at its first use; nobody changes them in place.

    Variants that are controls of another one stand apart, in `controls`. `statistics` says how the
    intervals that are shown beside the frames are computed.
    """

    def __init__(
        self, get: Callable[[str], pd.DataFrame], statistics: StatisticsSection | None = None
    ) -> None:
        """`get` gives the frame of a name of `spat.pipeline.frames.COLUMNS`."""
        self._get = get
        self.statistics = statistics or StatisticsSection.model_validate({})

    @classmethod
    def load(cls, folder: Path, statistics: StatisticsSection | None = None) -> Frames:
        """The frames of a `data/` folder.

        Raises:
            FileNotFoundError: at first use, naming the missing file and how to make it.
        """

        def get(name: str) -> pd.DataFrame:
            path = folder / f"{name}.parquet"
            if not path.exists():
                raise FileNotFoundError(
                    f"{path}: no such frame; run the pipeline first (`snakemake --cores all`)"
                )
            return pd.read_parquet(path)

        return cls(get, statistics)

    @classmethod
    def of(cls, **given: pd.DataFrame) -> Frames:
        """Frames in memory; those not given are empty."""
        return cls(lambda name: given[name] if name in given else frames.empty(name))

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per measurement."""
        return self._without_controls("results")

    @cached_property
    def controls(self) -> pd.DataFrame:
        """One row per measurement of a variant that is a control (`spat.evaluation.controls`)."""
        rows = self._get("results")
        return rows[rows["variant"].map(is_control).astype(bool)]

    @cached_property
    def selections(self) -> pd.DataFrame:
        """One row per decision."""
        return self._without_controls("selections")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per score."""
        return self._without_controls("scores")

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch."""
        return self._without_controls("history")

    @cached_property
    def losses(self) -> pd.DataFrame:
        """The per-window test losses of each mask."""
        return self._without_controls("losses")

    @cached_property
    def robustness(self) -> pd.DataFrame:
        """One row per measurement of a network with a manipulated site."""
        return self._without_controls("robustness")

    @cached_property
    def examples(self) -> pd.DataFrame:
        """Attention maps and forecasts for the pictures."""
        return self._without_controls("examples")

    def _without_controls(self, name: str) -> pd.DataFrame:
        rows = self._get(name)
        apart = rows["variant"].map(is_control).astype(bool)
        return rows[~apart] if apart.any() else rows
