"""Forecast a data frame in its units with a saved forecaster, dense or pruned.

The folder of a forecaster contains the network (`storage.save`) and `forecaster.json`: the columns,
the step, mean and standard deviation of each column, and the hashes of the network's files.

Symbols: T rows, C channels, L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spat.attention.mask import Mask
from spat.attention.modes import evaluating
from spat.data import series
from spat.data.registry import DataError, step_seconds
from spat.data.timefeatures import marks
from spat.files import read_json, sha256, write_json
from spat.models.base import Forecaster
from spat.surgery import storage
from spat.surgery.cut import heads_of

if TYPE_CHECKING:
    import pandas as pd

FORECASTER: Final = "forecaster.json"
MOST_NAMES: Final = 10  # of columns in a message
FEW: Final = 3  # of folders in a message
VERSION: Final = 1


@dataclass(frozen=True, eq=False)
class Forecast:
    """A trained forecaster with the scale of its data, for forecasts in original units.

    Attributes:
        model: The network, dense or pruned, in `eval()`.
        mask: The attention sites that the network keeps (`spat.attention.mask`).
        columns: Names of the C channels, in order.
        step: Time between two rows, such as `1h`.
        mean: Mean of each channel, which is subtracted from inputs, float64 [C].
        std: Standard deviation of each channel, by which inputs are divided, float64 [C].
    """

    model: Forecaster
    mask: Mask
    columns: tuple[str, ...]
    step: str
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @property
    def lookback(self) -> int:
        """The number of input rows of a forecast."""
        return self.model.shape.lookback

    @property
    def horizon(self) -> int:
        """The number of forecast rows."""
        return self.model.shape.horizon

    @classmethod
    def from_folder(cls, folder: str | Path, device: str | torch.device = "cpu") -> Forecast:
        """Load a forecaster.

        `folder` was written by `save` or `python -m spat advise`, or is a folder in which the
        pipeline keeps a network: `results/EXPERIMENT/DATASET/MODEL-VARIANT/lL-hH/seedS/pretrain` or
        `.../prune/masks/MASK/order0`. Networks of the pipeline take columns and scale from the
        prepared data of the experiment (`results/EXPERIMENT/prepared`). A leading `~` is the home
        directory.

        Raises:
            FileNotFoundError: naming the file that is missing.
            NotADirectoryError: if `folder` is a file.
            ValueError: naming the file that is damaged or does not belong to the others, or the
                device if torch cannot use it.
            TypeError: if `folder` is not a path.
        """
        folder = _existing(folder)
        path = folder / FORECASTER
        values = _read(path) if path.exists() else _of_a_run(folder)
        _require_network(folder)
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device={device!r}: {reason}: give 'cpu', for example") from None
        model = storage.load(folder, device)
        if not isinstance(model, Forecaster):
            raise ValueError(f"{folder}: {type(model).__name__} is not a forecaster")
        mask = Mask.parse(read_json(folder / storage.ARCHITECTURE)["mask"], heads_of(model))
        if len(values["columns"]) != model.shape.channels:
            raise ValueError(
                f"{folder}: the network has {model.shape.channels} channels, but its training data "
                f"{len(values['columns'])}: the files do not belong together"
            )
        for key in ("lookback", "horizon"):
            if values.get(key, own := getattr(model.shape, key)) != own:
                raise ValueError(
                    f"{path}: {key} is {values[key]!r}, but that of the network is {own}: the "
                    "files do not belong together"
                )
        mean, std = (np.asarray(values[key], dtype=np.float64) for key in ("mean", "std"))
        return cls(model, mask, tuple(values["columns"]), values["step"], mean, std)

    def save(self, folder: str | Path) -> None:
        """Write the files that `from_folder` reads.

        Raises:
            ValueError: if the model does not have the sites and heads of the mask.
        """
        folder = Path(folder)
        (folder / FORECASTER).unlink(missing_ok=True)  # it belongs to the old weights
        storage.save(self.model, folder, self.mask)
        names = (storage.ARCHITECTURE, storage.WEIGHTS)
        write_json(
            folder / FORECASTER,
            {
                "version": VERSION,
                "columns": self.columns,
                "step": self.step,
                "lookback": self.lookback,
                "horizon": self.horizon,
                "mean": self.mean.tolist(),
                "std": self.std.tolist(),
                "files": {name: sha256(folder / name) for name in names},
            },
        )

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Forecast the `horizon` rows that follow a frame, in the units of the frame.

        The input is the last `lookback` rows; the rows before them are ignored. The index of the
        result continues the index of the frame; its columns are those of the training data, in
        their order. Other columns of the frame are ignored.

        Args:
            frame: at least `lookback` rows in order of time, one `step` apart, with a
                DatetimeIndex, with or without a time zone. If the model uses no time features, an
                index of integers that rises by 1 is also accepted, and the result continues it.

        Raises:
            TypeError: if `frame` is not a pandas data frame.
            DataError: naming the column, row or time stamp, if a column is missing or not numeric,
                a value is missing or too large, there are too few rows, or the last `lookback` rows
                are not one step apart.
        """
        import pandas as pd

        if not isinstance(frame, pd.DataFrame):
            raise TypeError(
                f"the frame is a {type(frame).__name__}, not a pandas data frame: give "
                "pandas.DataFrame(values, index=time_stamps, columns=names); a frame of polars has "
                "the method to_pandas()"
            )
        labels = self._labels(frame)
        if len(frame) < self.lookback:
            raise DataError(
                f"the frame has {len(frame)} rows, but a forecast needs {self.lookback}: "
                f"give at least {self.lookback}"
            )
        last = frame.iloc[-self.lookback :]
        past, future = self._index(last.index)
        numbers = last[labels]
        for label in labels:
            kind = numbers[label].dtype
            if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
                raise DataError(
                    f"column {label!r} is not numeric but {kind}: convert it, for example with "
                    f"pandas.to_numeric(frame[{label!r}])"
                )
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        if len(bad := np.argwhere(~np.isfinite(values))):
            row, column = bad[0]
            raise DataError(
                f"column {labels[column]!r} has no finite number at {last.index[row]}: fill it, "
                "for example with frame.ffill()"
            )
        times = None
        if isinstance(future, pd.DatetimeIndex) and isinstance(past, pd.DatetimeIndex):
            times = np.concatenate([i.tz_localize(None).to_numpy() for i in (past, future)])
        predicted = self.forecast(values, times)
        if not np.isfinite(predicted).all():
            distance = np.abs(values - self.mean) / self.std
            row, column = divmod(int(distance.argmax()), distance.shape[1])
            raise DataError(
                f"the forecast is not finite: column {labels[column]!r} is {values[row, column]:g} "
                f"at {last.index[row]}, but its mean in the training data is "
                f"{self.mean[column]:g} and its standard deviation {self.std[column]:g}: check the "
                "value and its unit"
            )
        return pd.DataFrame(predicted, index=future, columns=labels)

    def forecast(
        self, values: NDArray[np.float64], times: NDArray[np.datetime64] | None = None
    ) -> NDArray[np.float64]:
        """Forecast [H, C] from values [L, C], both in original units.

        `times` [L + H] are the time stamps of input and forecast, which models with time features
        need.

        Raises:
            ValueError: if `values` has another shape, or the model needs `times`.
        """
        shape = self.model.shape
        if values.shape != (shape.lookback, shape.channels):
            raise ValueError(
                f"values have the shape {values.shape}; expected {(shape.lookback, shape.channels)}"
            )
        if self.model.settings.uses_marks and times is None:
            raise ValueError("the model uses time features: pass `times`")
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))

        def batch(rows: NDArray[Any]) -> Tensor:
            return torch.from_numpy(rows.astype(np.float32))[None].to(device)

        inputs = [batch((values - self.mean) / self.std)]
        if self.model.settings.uses_marks and times is not None:
            features = marks(times)
            inputs += [batch(features[: shape.lookback]), batch(features[shape.lookback :])]
        with evaluating(self.model), torch.inference_mode():
            y = self.model(*inputs)[0]
        return np.asarray(y.cpu().double().numpy() * self.std + self.mean)

    def _labels(self, frame: pd.DataFrame) -> list[Any]:
        """The labels of the model's columns in the frame, with blanks as in the training file."""
        labels: dict[str, list[Any]] = {}
        for label in frame.columns:
            labels.setdefault(" ".join(str(label).split()), []).append(label)
        missing = [name for name in self.columns if name not in labels]
        if missing:
            raise DataError(
                f"the frame has no column {', '.join(map(repr, missing))}: the model was trained "
                f"on {', '.join(self.columns)}, and the frame has "
                f"{', '.join(map(str, frame.columns[:MOST_NAMES])) or 'no columns'}"
            )
        for name in self.columns:
            if len(labels[name]) > 1:
                raise DataError(f"the frame has {len(labels[name])} columns {name!r}: keep one")
        return [labels[name][0] for name in self.columns]

    def _index(self, past: pd.Index[Any]) -> tuple[pd.Index[Any], pd.Index[Any]]:
        """The index of the last rows, after checks, and the index of the forecast."""
        import pandas as pd

        if isinstance(past, pd.DatetimeIndex):
            width = pd.Timedelta(seconds=step_seconds(self.step))
            future = past[-1] + width * np.arange(1, self.horizon + 1)
            self._check(past, width)
            return past, pd.DatetimeIndex(future, name=past.name)
        if pd.api.types.is_integer_dtype(past.dtype) and not self.model.settings.uses_marks:
            self._check(past, 1)
            steps = np.arange(1, self.horizon + 1)
            return past, pd.Index(past[-1] + steps, name=past.name)
        remedy = "use frame.set_index(pd.to_datetime(frame[COLUMN]))"
        if isinstance(past, pd.PeriodIndex):
            remedy = "use frame.to_timestamp()"
        elif past.dtype.kind not in "iufb" and past.nlevels == 1:
            remedy += ", or set frame.index = pd.to_datetime(frame.index)"
        raise DataError(
            f"the index of the frame is a {type(past).__name__} of {past.dtype}, not of time "
            f"stamps: {remedy}"
        )

    def _check(self, past: pd.Index[Any], width: Any) -> None:
        """Check that the last rows are one step apart.

        Raises:
            DataError: naming the first two that are not, and what to do.
        """
        import pandas as pd

        if past.hasnans:
            raise DataError(
                f"the index has no time stamp in one of the last {self.lookback} rows: fill or "
                "remove these rows, for example with frame[frame.index.notna()]"
            )
        steps = [b - a for a, b in pairwise(past.tolist())]
        for a, b, step in zip(past, past[1:], steps, strict=False):
            if step == width:
                continue
            if not isinstance(past, pd.DatetimeIndex):
                remedy = "number the rows one by one, for example with frame.reset_index(drop=True)"
            elif min(steps) < 0 * width:
                remedy = "sort the rows by time, with frame.sort_index()"
            elif min(steps) == 0 * width:
                remedy = "keep one row of each time stamp, with frame[~frame.index.duplicated()]"
            elif len(set(steps)) == 1:
                remedy = "give rows of this step, for example with frame.resample(STEP).mean()"
            else:
                remedy = (
                    "insert missing rows and round the time stamps, for example with "
                    "frame.resample(STEP).ffill()"
                )
            raise DataError(
                f"{b} comes after {a} in the last {self.lookback} rows, but the step of the model "
                f"is {width}: {remedy}"
            )


def _existing(folder: Any) -> Path:
    """The path of a folder that exists, with the home directory for a leading `~`."""
    if not isinstance(folder, str | Path):
        raise TypeError(f"the folder is a {type(folder).__name__}: give its path")
    path = Path(folder).expanduser()
    if path.is_file():
        raise NotADirectoryError(f"{path}: is a file: give its folder, {path.parent}")
    if not str(folder) or not path.is_dir():
        raise FileNotFoundError(f"{str(folder)!r}: there is no such folder")
    return path


def _require_network(folder: Path) -> None:
    """Check that a folder contains the files of a network.

    Raises:
        FileNotFoundError: naming the file that is missing, and folders that contain a network.
    """
    for name in (storage.ARCHITECTURE, storage.WEIGHTS):
        if not (folder / name).is_file():
            remedy = _choices(folder, storage.ARCHITECTURE) or "save the network again"
            raise FileNotFoundError(f"{folder / name}: there is no such file: {remedy}")


def _choices(folder: Path, name: str) -> str:
    """Folders in a folder that contain a file of this name, as a remedy; empty without any."""
    files = islice(folder.rglob(f"*/{name}"), FEW)
    folders = sorted(str(path.parent) for path in files)
    return f"give a folder with a network, such as {', '.join(folders)}" if folders else ""


def _read(path: Path) -> dict[str, Any]:
    remedy = "write the folder again"
    if not path.is_file():
        raise ValueError(f"{path}: is not a file; {remedy}")
    values = read_json(path)
    _require_network(path.parent)
    try:
        if values["version"] != VERSION:
            raise ValueError(
                f"version {values['version']}, but this package reads version {VERSION}"
            )
        for name in (storage.ARCHITECTURE, storage.WEIGHTS):
            if sha256(path.parent / name) != values["files"][name]:
                raise ValueError(f"{name} has changed since it was written")
        names = ("columns", "step", "mean", "std", "lookback", "horizon")
        kept = {name: values[name] for name in names}
        _require_scale(kept)
        step_seconds(kept["step"])
        return kept
    except KeyError as error:
        raise ValueError(f"{path}: has no {error}; {remedy}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None


def _require_scale(values: Mapping[str, Any]) -> None:
    """Columns of different names, each with a finite mean and a positive standard deviation.

    Raises:
        ValueError: naming key and value.
    """
    columns = values["columns"]
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"columns: {columns!r} is not a list of names")
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"columns: {columns!r} is empty or has a name twice")
    for key, least in (("mean", -np.inf), ("std", 0.0)):
        numbers = values[key]
        if not isinstance(numbers, list) or len(numbers) != len(columns):
            raise ValueError(f"{key}: {numbers!r} is not a list of {len(columns)} numbers")
        for number in numbers:
            if type(number) not in (int, float) or not least < number < np.inf:
                raise ValueError(f"{key}: {number!r} is not a finite number above {least}")


def _of_a_run(folder: Path) -> dict[str, Any]:
    """Columns, step and scale for a network in a folder of the pipeline."""
    path = folder.resolve()
    for parent in path.parents:
        name = path.relative_to(parent).parts[0]
        file = parent / "prepared" / f"{name}.npz"
        if file.is_file():
            prepared = series.load(file)
            record = read_json(file.with_suffix(".json"))
            if not isinstance(record, dict) or "names" not in record:
                raise ValueError(
                    f"{file.with_suffix('.json')}: written by an earlier version, without names "
                    "of the columns: run `python -m spat prepare` for this dataset again"
                )
            values = {
                "columns": record["names"],
                "step": record.get("step"),
                "mean": prepared.mean.tolist(),
                "std": prepared.std.tolist(),
            }
            try:
                _require_scale(values)
                step_seconds(values["step"])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{file.with_suffix('.json')}: {error}: run `python -m spat prepare` for this "
                    "dataset again"
                ) from None
            return values
    remedy = _choices(folder, FORECASTER) or _choices(folder, storage.ARCHITECTURE)
    raise FileNotFoundError(
        f"{folder / FORECASTER}: no such file, and {folder} is not in the results of an experiment "
        "with prepared data: "
        + (remedy or "give a folder of `python -m spat advise` or `Forecast.save`")
    )
