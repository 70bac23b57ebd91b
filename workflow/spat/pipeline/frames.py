"""The tidy frames of an experiment: their columns, and the checks that aggregation makes.

Tables and figures read these frames and nothing else. A value that does not apply is missing: the
`head` of a score of a whole site, the `batch` of a score over all batches.
"""

from __future__ import annotations

from typing import Final

import pandas as pd

# What identifies a run, in front of each frame. `source` is where the data come from: datasets of
# one source are not independent cases. `control_of` is the variant that a variant is a control of,
# missing for all others. `setting` is written by the task: l96-h96 is a lookback and a horizon.
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

# Column -> dtype. Which columns may hold missing values is in `MAY_BE_MISSING`.
COLUMNS: Final[dict[str, dict[str, str]]] = {
    # One row per error of a network on a split. `phase`: dense (pre-trained), pruned (not tuned),
    # finetuned (the mask of all sites kept is the control), scratch (trained from random weights).
    # `target` is the dataset evaluated on: the run's own, or another one for zero-shot transfer.
    # The value is missing where training diverged.
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
    # are missing where they were not measured. `share`: of the training windows in an epoch.
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
    # `finetunings` counts the fine-tuned masks a rule had to look at.
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
    # pre-training for `send`, at the kept epoch for all), else it counts from 0, at the kept epoch.
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
    # the network as it was trained. `quantity` is a criterion (its score of that site), the primary
    # metric, or `leave_one_out` (that metric without the site minus with it). `phase`: untuned, or
    # finetuned with the manipulation in place. `site` is missing for the intact network. A value is
    # missing where training diverged.
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
    # One row per weight of a mean attention map. `network` is `dense` or a mask (its fine-tuned
    # network). `head` is missing for the mean over heads.
    "maps": {
        **_KEYS,
        "network": "str",
        "name": "str",
        "head": "Int64",
        "query": "int64",
        "key": "int64",
        "value": "float64",
    },
    # One row per step of a forecast. `name` is `input`, `truth`, `dense` (the dense network's
    # forecast) or a mask (its fine-tuned one). `channel` is missing for the last channel. The value
    # is standardised.
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

# Besides `control_of`, which may be missing in all.
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


class FrameError(ValueError):
    """A frame with missing columns, gaps or duplicates; the message shows the first offenders."""


def empty(name: str) -> pd.DataFrame:
    """An empty frame with the columns and dtypes of `name`."""
    return pd.DataFrame({c: pd.Series(dtype=t) for c, t in COLUMNS[name].items()})


def checked(name: str, frame: pd.DataFrame, *, source: str = "") -> pd.DataFrame:
    """The frame with its columns in order and typed.

    Raises:
        FrameError: on missing or unknown columns, duplicate keys, or values missing where the
            schema wants them; naming `source` and the first offending rows.
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
    return valid[list(COLUMNS[name])]
