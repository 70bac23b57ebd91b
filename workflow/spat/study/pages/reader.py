"""The frames of an experiment, as the study reads them.

The files of `data/` are in long format (`spat.pipeline.frames`). `Frames` reads them and converts
them to wide format: one column per metric, errors and costs of a network in one row, lookback and
horizon as separate columns, and the codes of `spat.study.statistics.cells` for values that do not
apply. `mse` and `mae` are the primary and the second metric of every task
(`spat.study.pages.page`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Final

import pandas as pd

from spat.pipeline import frames
from spat.pipeline.config import StatisticsSection
from spat.study.pages.page import WORDING, Words
from spat.study.statistics.cells import ALL_BATCHES, WHOLE_SITE

# The columns that identify a run; the other columns of `frames.RUN` follow from them.
_RUN: Final = ("experiment", "dataset", "model", "variant", "setting", "seed")
_NETWORK: Final = (*_RUN, "order", "mask", "phase")

# The columns of a run in the wide frames: `cells.RUN` and `control_of`.
_WIDE_RUN: Final = (
    *("experiment", "dataset", "source", "model", "variant", "control_of"),
    *("lookback", "horizon", "seed"),
)

# The further columns of each wide frame.
WIDE: Final[dict[str, tuple[str, ...]]] = {
    "results": (
        *("order", "mask", "phase", "target", "split", "mse", "mae"),
        *(
            column
            for column in frames.COLUMNS["networks"]
            if column not in (*frames.RUN, *_NETWORK)
        ),
    ),
    "selections": tuple(c for c in frames.COLUMNS["selections"] if c not in frames.RUN),
    "scores": tuple(c for c in frames.COLUMNS["scores"] if c not in frames.RUN),
    "history": (
        *("stage", "mask", "order", "epoch"),
        *("train_mse", "val_mse", "val_mae", "learning_rate", "seconds"),
    ),
    "losses": ("order", "mask", "phase", "target", "mse"),
    "robustness": tuple(c for c in frames.COLUMNS["robustness"] if c not in frames.RUN),
    "maps": ("network", "name", "head", "row", "column", "value"),
    "forecasts": ("name", "window", "step", "channel", "value"),
}

# Reads a frame of `spat.pipeline.frames.COLUMNS` by name.
Read = Callable[[str], pd.DataFrame]


class Frames:
    """The wide frames of an experiment, each computed at its first use. Do not modify them.

    Runs of a variant that is a control of another variant are in `controls` only.
    `statistics` is the section of the configuration for the computation of intervals.
    """

    def __init__(
        self,
        wide: Read,
        statistics: StatisticsSection | None = None,
        task: Callable[[], str] = lambda: "forecasting",
    ) -> None:
        """`wide` returns a frame by its name in `WIDE`; `task` returns the task of all runs."""
        self._wide = wide
        self._task = task
        self.statistics = statistics or StatisticsSection.model_validate({})
        # What `spat.study.pages.page.once` has computed.
        self.computed: dict[object, object] = {}

    @classmethod
    def load(cls, folder: Path, statistics: StatisticsSection | None = None) -> Frames:
        """The frames of a `data/` folder.

        Raises:
            FileNotFoundError: at the first use of a missing frame; the message names the file and
                the command that makes it.
            ValueError: at the first use of a frame that is damaged or has other networks than
                `networks`, with the same information.
        """

        def read(name: str) -> pd.DataFrame:
            path = folder / f"{name}.parquet"
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} does not exist: run the pipeline first (`snakemake --cores all`)"
                )
            networks = None if name == "networks" else _networks()
            try:
                if not path.is_file():
                    raise ValueError("not a file")
                frame = pd.read_parquet(path, page_checksum_verification=True)
                columns = set(frames.COLUMNS[name])
                if wrong := sorted(columns.symmetric_difference(frame.columns)):
                    state = "missing" if wrong[0] in columns else "unknown"
                    raise ValueError(
                        f"not a frame `{name}` of this version: column {wrong[0]!r} is {state}"
                    )
                checked = frames.checked(name, frame)
                if networks is not None:
                    return frames.agreeing(name, checked, networks)
                if checked.empty:
                    raise ValueError("no rows")
                return checked
            except MemoryError:
                raise
            except Exception as error:
                raise ValueError(
                    f"{path}: damaged ({error}). Delete it and run `snakemake --cores all`, which "
                    "collects the results again"
                ) from None

        @cache
        def _networks() -> pd.DataFrame:
            return read("networks")

        def task() -> str:
            return str(_networks()["task"].iloc[0])

        return cls(lambda name: widened(name, read), statistics, task)

    @classmethod
    def of(cls, **wide: pd.DataFrame) -> Frames:
        """Frames from wide data frames in memory; the frames that are not passed are empty.

        A frame without the column `control_of` has no controls.
        """

        def frame(name: str) -> pd.DataFrame:
            rows = wide.get(name, empty(name))
            return rows if "control_of" in rows else rows.assign(control_of=None)

        return cls(frame)

    @cached_property
    def words(self) -> Words:
        """The wording of pages for the task of the experiment."""
        return WORDING[self._task()]

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per network, target and split: its errors and costs."""
        return self._runs("results")

    @cached_property
    def controls(self) -> pd.DataFrame:
        """The results of controls, with `control_of`: the variant that a row is a control of."""
        return self._wide("results").dropna(subset="control_of")

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
        """One row per fine-tuned mask: its test losses `mse`, one per window."""
        return self._runs("losses")

    @cached_property
    def robustness(self) -> pd.DataFrame:
        """One row per measurement of a network with a manipulated site."""
        return self._runs("robustness")

    @cached_property
    def maps(self) -> pd.DataFrame:
        """Attention maps: `name` (of the site), `row` (query), `column` (key), `value`."""
        return self._runs("maps")

    @cached_property
    def forecasts(self) -> pd.DataFrame:
        """Forecasts: `name` (input, truth, dense, a mask), `window`, `step`, `channel`, `value`."""
        return self._runs("forecasts")

    def _runs(self, name: str) -> pd.DataFrame:
        rows = self._wide(name)
        return rows[rows["control_of"].isna()].drop(columns="control_of")


def empty(name: str) -> pd.DataFrame:
    """A wide frame without rows."""
    return widened(name, frames.empty)


def widened(name: str, read: Read) -> pd.DataFrame:
    """The wide frame `name`, from the long frames that `read` returns.

    Raises:
        FrameError: if the networks of an experiment were trained in several precisions.
    """
    if name == "results":
        measured = _renamed(read("measurements"), "metric")
        rows = _pivoted(measured, (*_NETWORK, "target", "split"), "metric")
        networks = read("networks")
        precisions = sorted(networks["precision"].unique())
        if len(precisions) > 1:
            raise frames.FrameError(
                f"networks: experiment {networks['experiment'].iloc[0]!r} has networks trained in "
                f"{' and '.join(precisions)}, but only networks of one precision can be compared: "
                "use a separate experiment for each `training.precision`"
            )
        costs = networks.drop(columns=["task", "source", "control_of"])
        rows = rows.merge(costs, on=list(_NETWORK), how="left", validate="m:1")
    elif name == "history":
        epochs = _renamed(read("history"), "quantity")
        rows = _pivoted(epochs, (*_RUN, "stage", "mask", "order", "epoch"), "quantity")
    else:
        rows = read(name).rename(columns=_RENAMED.get(name, {}))
        rows = _renamed(rows, "quantity") if name == "robustness" else rows
    for column, code in _CODES.items():
        if column in rows:
            rows[column] = rows[column].fillna(code).astype("int64")
    settings = rows[["task", "setting"]].drop_duplicates().astype(str).to_numpy().tolist()
    windows = {setting: WORDING[task].window(setting) for task, setting in settings}
    rows = rows.assign(
        lookback=rows["setting"].map({s: w.lookback for s, w in windows.items()}).astype("int64"),
        horizon=rows["setting"].map({s: w.horizon for s, w in windows.items()}).astype("int64"),
    )
    rows = rows.reindex(columns=[*_WIDE_RUN, *WIDE[name]])
    numbers = [column for column in _NUMBERS if column in rows and name != "losses"]
    return rows.astype(dict.fromkeys(numbers, "float64"))


_RENAMED: Final = {
    "losses": {"losses": "mse"},
    "maps": {"query": "row", "key": "column"},
}

# Columns that are values of `quantity` or `metric` in the long frames.
_NUMBERS: Final = ("mse", "mae", "train_mse", "val_mse", "val_mae", "learning_rate", "seconds")

# The code of each column in a wide frame if no single value applies.
_CODES: Final = {"head": WHOLE_SITE, "batch": ALL_BATCHES, "channel": -1}


def _renamed(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows with the metric names in `column` replaced by those of the study."""
    for task in rows["task"].unique():
        names = {own: name for own, name in WORDING[task].columns.items() if own != name}
        if names:
            rows = rows.assign(**{column: rows[column].replace(names)})
    return rows


def _pivoted(rows: pd.DataFrame, key: Sequence[str], column: str) -> pd.DataFrame:
    """One row per `key`, in the order of its first row, and one column per value of `column`."""
    wide = rows.drop(columns=[column, "value"]).drop_duplicates(list(key))
    for name, part in rows.groupby(column, sort=False):
        values = part[[*key, "value"]].rename(columns={"value": str(name)})
        wide = wide.merge(values, on=list(key), how="left", validate="1:1")
    return wide
