"""The tidy frames of an experiment: their columns, and the checks of aggregation.

Tables and figures read only these frames. A value that does not apply is missing, for example the
`head` of the score of a whole site, and the `batch` of a score over all batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from spat.pipeline.records import METRICS, text_form, unknown_text

# The columns that identify a run, the first ones of each frame. `source` is the origin of the data:
# datasets of one source are not independent. `control_of` is the variant that this variant is a
# control of; it is missing for other variants. `setting` has the form of the task: l96-h96 is a
# lookback and a horizon.
RUN: Final = (
    "experiment",
    "task",
    "dataset",
    "source",
    "model",
    "variant",
    "control_of",
    "setting",
    "seed",
)

_KEYS: Final = {name: "int64" if name == "seed" else "str" for name in RUN}

# Column -> dtype. `MAY_BE_MISSING` lists the columns that may have missing values.
COLUMNS: Final[dict[str, dict[str, str]]] = {
    # One row per error of a network on a split. `phase`: dense (pre-trained), pruned (not tuned),
    # finetuned (with all sites kept it is the control), scratch (trained from random weights).
    # `target` is the evaluated dataset: that of the run, or another one for zero-shot transfer.
    # The value is missing if training diverged.
    "measurements": {
        **_KEYS,
        "order": "int64",
        "mask": "str",
        "phase": "str",
        "target": "str",
        "split": "str",
        "metric": "str",
        "value": "float64",
    },
    # One row per network: its costs, and how it was trained. Latency (with its spread) and memory
    # are missing if they were not measured. `share` is the share of training windows per epoch.
    "networks": {
        **_KEYS,
        "order": "int64",
        "mask": "str",
        "phase": "str",
        "params": "int64",
        "flops": "int64",
        "latency_ms": "float64",
        "latency_spread_ms": "float64",
        "memory_mb": "float64",
        "wall_s": "float64",
        "epochs": "int64",
        "best_epoch": "int64",
        "share": "float64",
        "precision": "str",
        "status": "str",
        "device": "str",
        "commit": "str",
        "digest": "str",
    },
    # One row per decision. `ratio` is missing for adaptive rules, `rule` is empty for fixed ratios.
    # `finetunings` is the number of fine-tuned masks that a rule used.
    "selections": {
        **_KEYS,
        "criterion": "str",
        "draw": "int64",
        "level": "str",
        "ratio": "float64",
        "rule": "str",
        "removed": "int64",
        "mask": "str",
        "finetunings": "int64",
    },
    # One row per score. `site` is the index in forward order and `name` its name; `head` is missing
    # for the whole site. `batch` is missing for the score over all batches (at every epoch of
    # pre-training for `send`, at the kept epoch for all criteria); otherwise it is the number of
    # the batch, from 0, at the kept epoch.
    # The criterion `uniformity` is the normalised row entropy of the attention maps.
    "scores": {
        **_KEYS,
        "epoch": "int64",
        "batch": "Int64",
        "site": "int64",
        "name": "str",
        "head": "Int64",
        "criterion": "str",
        "value": "float64",
    },
    # One row per quantity of an epoch of training. `stage`: pretrain, finetune or scratch.
    # `quantity`: `train_METRIC` (the primary metric), `val_METRIC` of each metric, `learning_rate`,
    # `seconds`.
    "history": {
        **_KEYS,
        "stage": "str",
        "mask": "str",
        "order": "int64",
        "epoch": "int64",
        "quantity": "str",
        "value": "float64",
    },
    # One row per (mask, phase, order): the primary metric of each test case, a list of float32.
    "losses": {
        **_KEYS,
        "order": "int64",
        "mask": "str",
        "phase": "str",
        "target": "str",
        "losses": "object",
    },
    # One row per measurement of a network with one manipulated site; the manipulation `intact` is
    # the unchanged network. `quantity` is a criterion (its score of that site), the primary metric,
    # or `leave_one_out` (that metric without the site minus with it). `phase`: untuned, or
    # finetuned with the manipulation in place. `site` is missing for the intact network. A value is
    # missing if training diverged.
    "robustness": {
        **_KEYS,
        "site": "int64",
        "name": "str",
        "manipulation": "str",
        "quantity": "str",
        "phase": "str",
        "split": "str",
        "value": "float64",
    },
    # One row per weight of a mean attention map. `network` is `dense`, or a mask for its fine-tuned
    # network. `head` is missing for the mean over heads.
    "maps": {
        **_KEYS,
        "network": "str",
        "name": "str",
        "head": "Int64",
        "query": "int64",
        "key": "int64",
        "value": "float64",
    },
    # One row per step of a forecast. `name` is `input`, `truth`, `dense` (the forecast of the dense
    # network) or a mask (the forecast of its fine-tuned network). `channel` is missing for the last
    # channel. The value is standardised.
    "forecasts": {
        **_KEYS,
        "name": "str",
        "window": "int64",
        "step": "int64",
        "channel": "Int64",
        "value": "float64",
    },
}

UNIQUE: Final[dict[str, tuple[str, ...]]] = {
    "measurements": (*RUN, "order", "mask", "phase", "target", "split", "metric"),
    "networks": (*RUN, "order", "mask", "phase"),
    "selections": (*RUN, "criterion", "draw", "level", "ratio", "rule"),
    "scores": (*RUN, "epoch", "batch", "site", "head", "criterion"),
    "history": (*RUN, "stage", "mask", "order", "epoch", "quantity"),
    "losses": (*RUN, "order", "mask", "phase", "target"),
    "robustness": (*RUN, "site", "manipulation", "quantity", "phase", "split"),
    "maps": (*RUN, "network", "name", "head", "query", "key"),
    "forecasts": (*RUN, "name", "window", "step", "channel"),
}

# In addition to `control_of`, which may be missing in all frames.
MAY_BE_MISSING: Final[dict[str, tuple[str, ...]]] = {
    "measurements": ("value",),
    "networks": ("latency_ms", "latency_spread_ms", "memory_mb"),
    "selections": ("ratio",),
    "scores": ("batch", "head"),
    "history": ("value",),
    "losses": (),
    "robustness": ("value",),
    "maps": ("head",),
    "forecasts": ("channel",),
}


# Columns of numbers that may be negative.
_SIGNED: Final = frozenset({("scores", "value"), ("robustness", "value"), ("forecasts", "value")})

_NETWORK: Final = ("order", "mask", "phase")
_PHASES: Final = {"pretrain": "dense", "finetune": "finetuned", "scratch": "scratch"}


class FrameError(ValueError):
    """A frame with missing columns, gaps or duplicates; the message shows the first of them."""


def empty(name: str) -> pd.DataFrame:
    """An empty frame with the columns and dtypes of `name`."""
    return pd.DataFrame({c: pd.Series(dtype=t) for c, t in COLUMNS[name].items()})


def checked(name: str, frame: pd.DataFrame, *, source: str = "") -> pd.DataFrame:
    """The frame with its columns in order and typed.

    Raises:
        FrameError: if columns are missing or unknown, keys are duplicated, values are invalid for
            their column, or required values are missing; the message names `source` and the first
            invalid rows.
    """
    import pandera.pandas as pa

    schema = pa.DataFrameSchema(
        {
            column: pa.Column(kind, nullable=column in (*MAY_BE_MISSING[name], "control_of"))
            for column, kind in COLUMNS[name].items()
        },
        strict=True,
        coerce=True,
    )
    try:
        valid = schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases[["column", "check", "failure_case", "index"]].head(5)
        raise FrameError(
            f"{source or name}: {len(error.failure_cases)} problems in the frame `{name}`:\n"
            f"{cases.to_string(index=False)}"
        ) from None
    twice = valid[valid.duplicated(list(UNIQUE[name]))]
    if not twice.empty:
        keys = ", ".join(f"{key} {twice.iloc[0][key]}" for key in UNIQUE[name])
        raise FrameError(f"{source or name}: {len(twice)} duplicates in `{name}`, such as {keys}")
    for column in COLUMNS[name]:
        if problem := _value_fault(name, column, valid[column]):
            raise FrameError(f"{source or name}: {problem}")
    return valid[list(COLUMNS[name])]


def write(name: str, frame: pd.DataFrame, path: Path) -> None:
    """Write the frame `name` as parquet with checksums, without loss and about a third smaller than
    with the defaults of pandas: the bytes of numbers are stored apart from each other (the encoding
    BYTE_STREAM_SPLIT), and words in dictionaries.

    Raises:
        OSError: if the file cannot be written.
    """
    numbers = [column for column, kind in COLUMNS[name].items() if kind == "float64"]
    numbers += ["losses.list.element"] if name == "losses" else []
    frame.to_parquet(
        path,
        index=False,
        compression="zstd",
        compression_level=12,
        use_byte_stream_split=numbers,
        use_dictionary=[column for column in frame if column not in (*numbers, "losses")],
        write_page_checksum=True,
    )


def _value_fault(name: str, column: str, values: pd.Series) -> str | None:
    """The first value that a column cannot have."""
    if form := text_form(name, column):
        return unknown_text(column, values, form)
    if COLUMNS[name][column] in ("str", "object"):
        return None
    number = values.dropna().astype("float64")
    low = -np.inf if (name, column) in _SIGNED else 0.0
    wrong = number[~(np.isfinite(number) & (number >= low))]
    if wrong.empty:
        return None
    valid = "a finite number" if (name, column) in _SIGNED else "a finite number of at least 0"
    return f"row {wrong.index[0] + 1}, column {column!r}: {wrong.iloc[0]} is not {valid}"


def agreeing(name: str, frame: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """The frame, if its rows belong to the networks of the same collection.

    Both frames are `checked`.

    Raises:
        FrameError: if a row belongs to another run or network, or lies outside of its sites and
            heads; if a network has no error of a metric on a split where it has others, or not both
            splits of its own dataset; if a network has other epochs in `history` than it trained.
    """
    keys = [*RUN, *(column for column in _NETWORK if column in frame)]
    rows = frame
    if name == "history":
        rows, keys = frame.assign(phase=frame["stage"].map(_PHASES)), [*RUN, *_NETWORK]
    elif name == "robustness":
        keys = list(RUN)
    strangers = _without(rows, networks, keys)
    if not strangers.empty:
        raise FrameError(
            f"{len(strangers)} rows in `{name}` of no network in `networks`, such as "
            f"{_named(strangers.iloc[0], keys)}"
        )
    if name == "measurements":
        _require_errors(frame, networks)
    elif name == "history" and len(frame):  # else only the main table is wanted
        _require_epochs(rows, networks)
    elif "site" in frame:
        dense = networks[networks["phase"].eq("dense")]
        rows = frame[[*RUN, "site"]].drop_duplicates().merge(dense[[*RUN, "mask"]], on=list(RUN))
        beyond = rows[rows["site"] > rows["mask"].str.count(r"\.")]
        if not beyond.empty:
            raise FrameError(
                f"`{name}` has a site that its network does not have, such as "
                f"{_named(beyond.iloc[0], [*RUN, 'site'])}"
            )
    return frame


def _without(rows: pd.DataFrame, others: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The rows (each key once) whose keys are not among those of `others`."""
    wanted = rows[list(keys)].drop_duplicates().fillna({"control_of": ""})
    known = others[list(keys)].drop_duplicates().fillna({"control_of": ""})
    merged = wanted.merge(known, on=list(keys), how="left", indicator=True)
    return merged[merged["_merge"].eq("left_only")]


def _named(row: pd.Series, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {row[key]}" for key in keys if key != "source" and row[key] != "")


def _require_errors(measurements: pd.DataFrame, networks: pd.DataFrame) -> None:
    """All metrics wherever there is one, and both splits of a network's own dataset."""
    place = [*RUN, *_NETWORK, "target", "split"]
    valid = {(task, metric) for task, metrics in METRICS.items() for metric in metrics}
    pairs = measurements[["task", "metric"]].drop_duplicates()
    for task, metric in pairs.itertuples(index=False):
        if (task, metric) not in valid:
            raise FrameError(f"metric {metric!r} in `measurements` is not one of {task}")
    counts = measurements.groupby(place, dropna=False)["metric"].nunique().reset_index()
    wanted = counts["task"].map({task: len(metrics) for task, metrics in METRICS.items()})
    short = counts[counts["metric"] < wanted.astype("int64")]
    if not short.empty:
        raise FrameError(
            f"{len(short)} networks in `measurements` lack a metric, such as "
            f"{_named(short.iloc[0], place)}"
        )
    for split in ("validation", "test"):
        own = networks.assign(target=networks["dataset"], split=split)
        if not (missing := _without(own, measurements, place)).empty:
            raise FrameError(
                f"{len(missing)} networks have no errors in `measurements`, such as "
                f"{_named(missing.iloc[0], place)}"
            )


def _require_epochs(history: pd.DataFrame, networks: pd.DataFrame) -> None:
    """Each quantity of a trained network at each of its epochs."""
    key = [*RUN, *_NETWORK]
    counted = history.groupby([*key, "quantity"], dropna=False)["epoch"].agg(["size", "max"])
    trained = networks[networks["phase"].ne("pruned")][[*key, "epochs"]]
    merged = trained.merge(counted.reset_index(), on=key, how="left")
    seen = merged[["size", "max"]].fillna(0)
    wrong = merged[seen.ne(merged["epochs"], axis=0).any(axis=1)]
    if not wrong.empty:
        row = wrong.iloc[0]
        raise FrameError(
            f"{len(wrong)} quantities in `history` have other epochs than the network was trained "
            f"for, such as {row['quantity']} of {_named(row, key)}, epochs {row['epochs']}"
        )
