"""The frames of an experiment, as the study reads them.

All reading goes through `Frames`. It adds the columns that the study needs and that follow from a
run: `source`, and for the controls `control_of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Final

import pandas as pd

from spat.data.registry import DATASETS
from spat.pipeline import frames
from spat.pipeline.config import StatisticsSection

# BASE+KIND, where a control is a variant of its own.
_CONTROL: Final = re.compile(r"^(?P<base>[^+]+)\+.+$")


class Frames:
    """The frames of an experiment. Each is read at its first use, and must not be changed in place.

    Runs of a variant that is a control of another variant are in `controls`, and in no other frame.
    `statistics` is the section of the configuration that says how intervals are computed.
    """

    def __init__(
        self, get: Callable[[str], pd.DataFrame], statistics: StatisticsSection | None = None
    ) -> None:
        """`get` returns the frame of a name of `spat.pipeline.frames.COLUMNS`."""
        self._get = get
        self.statistics = statistics or StatisticsSection.model_validate({})

    @classmethod
    def load(cls, folder: Path, statistics: StatisticsSection | None = None) -> Frames:
        """The frames of a `data/` folder.

        Raises:
            FileNotFoundError: at first use of a missing frame, naming the file and the command that
                makes it.
        """

        def get(name: str) -> pd.DataFrame:
            path = folder / f"{name}.parquet"
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} does not exist: run the pipeline first (`snakemake --cores all`)"
                )
            return pd.read_parquet(path)

        return cls(get, statistics)

    @classmethod
    def of(cls, **given: pd.DataFrame) -> Frames:
        """Frames in memory; those not given are empty."""
        return cls(lambda name: given[name] if name in given else frames.empty(name))

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per network, target and split: its errors and costs."""
        return self._runs("results")

    @cached_property
    def controls(self) -> pd.DataFrame:
        """The rows of `results` of controls, with `control_of`: the variant they belong to."""
        rows = with_source(self._get("results"))
        return _with_base(rows).dropna(subset="control_of")

    @cached_property
    def selections(self) -> pd.DataFrame:
        """One row per decision."""
        return self._runs("selections")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per score."""
        return self._runs("scores")

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch of training."""
        return self._runs("history")

    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row per fine-tuned mask: its test losses, one per window."""
        return self._runs("losses")

    @cached_property
    def robustness(self) -> pd.DataFrame:
        """One row per measurement of a network with a manipulated site."""
        return self._runs("robustness")

    @cached_property
    def maps(self) -> pd.DataFrame:
        """Attention maps: `name` (of the site), `row` (query), `column` (key), `value`."""
        rows = self._runs("examples")
        return rows[rows["kind"] == "map"]

    @cached_property
    def forecasts(self) -> pd.DataFrame:
        """Forecasts: `name` (input, truth, dense, a mask), `window`, `step`, `channel`, `value`."""
        rows = self._runs("examples")
        rows = rows[rows["kind"] == "forecast"]
        return rows.rename(columns={"head": "window", "row": "step", "column": "channel"})

    def _runs(self, name: str) -> pd.DataFrame:
        rows = _with_base(with_source(self._get(name)))
        return rows[rows["control_of"].isna()].drop(columns="control_of")


def with_source(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the column `source`: what the data of its dataset come from.

    Raises:
        KeyError: naming the datasets that are not in the registry.
    """
    names = frame["dataset"].unique()
    if unknown := sorted(set(names) - set(DATASETS)):
        raise KeyError(f"datasets {unknown} are not in the registry ({', '.join(DATASETS)})")
    sources = frame["dataset"].map({name: DATASETS[name].station for name in names})
    return frame.assign(source=sources.astype("str"))


def control_of(variant: str) -> str | None:
    """The variant that `variant` (`BASE+KIND`) is a control of; None if it is not a control."""
    match = _CONTROL.match(variant)
    return match["base"] if match else None


def _with_base(frame: pd.DataFrame) -> pd.DataFrame:
    bases = {variant: control_of(variant) for variant in frame["variant"].unique()}
    return frame.assign(control_of=frame["variant"].map(bases).astype("str"))
