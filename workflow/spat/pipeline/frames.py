"""The tidy frames of an experiment: their columns, and the checks that aggregation makes.

Tables and figures read these frames and nothing else.
"""

from __future__ import annotations

from typing import Final

import pandas as pd

RUN: Final = ("experiment", "dataset", "model", "variant", "lookback", "horizon", "seed")

# Column -> dtype. `Int64`, `float64` and `str` columns may hold missing values where noted.
_KEYS: Final = {
    "experiment": "str",
    "dataset": "str",
    "model": "str",
    "variant": "str",
    "lookback": "int64",
    "horizon": "int64",
    "seed": "int64",
}

COLUMNS: Final[dict[str, dict[str, str]]] = {
    # One row per measurement. `phase`: dense (pre-trained), pruned (not tuned), finetuned (the mask
    # of all sites kept is the control), scratch (trained from random weights). `target` is the
    # dataset evaluated on: the run's own, or another one for zero-shot transfer. Latency and memory
    # are missing where they were not measured, errors are missing where training diverged.
    "results": {
        **_KEYS,
        "order": "int64",
        "mask": "str",
        "phase": "str",
        "target": "str",
        "split": "str",
        "mse": "float64",
        "mae": "float64",
        "params": "int64",
        "flops": "int64",
        "latency_ms": "float64",
        "memory_mb": "float64",
        "wall_s": "float64",
        "epochs": "int64",
        "best_epoch": "int64",
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
    # One row per score. `site` is the index in forward order and `name` its name; `head` -1 is the
    # whole site. `batch` -1 is the score over all batches (at every epoch of pre-training for
    # `send`, at the kept epoch for all), 0, 1, ... a single batch at the kept epoch.
    # The criterion `uniformity` is the normalised row entropy of the attention maps.
    "scores": {
        **_KEYS,
        "epoch": "int64",
        "batch": "int64",
        "site": "int64",
        "name": "str",
        "head": "int64",
        "criterion": "str",
        "value": "float64",
    },
    # One row per epoch of training. `stage`: pretrain, finetune or scratch.
    "history": {
        **_KEYS,
        "stage": "str",
        "mask": "str",
        "order": "int64",
        "epoch": "int64",
        "train_mse": "float64",
        "val_mse": "float64",
        "val_mae": "float64",
        "learning_rate": "float64",
        "seconds": "float64",
    },
    # One row per (mask, phase, order): the per-window test losses, a list of float32 per row.
    "losses": {
        **_KEYS,
        "order": "int64",
        "mask": "str",
        "phase": "str",
        "target": "str",
        "mse": "object",
    },
    # One row per measurement of a network with one manipulated site; the manipulation `intact` is
    # the network as it was trained. `quantity` is a criterion (its score of that site), `mse`, or
    # `leave_one_out` (the MSE without the site minus the MSE with it). `phase`: untuned, or
    # finetuned with the manipulation in place. A value is missing where training diverged.
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
    # What the pictures need. kind `map`: name = site, head, row = query, column = key, value = mean
    # attention. kind `forecast`: name = `input`, `truth` or a mask (its fine-tuned forecast; the
    # dense one is `dense`), head = test window, row = step, column = channel, value = standardised.
    "examples": {
        **_KEYS,
        "kind": "str",
        "name": "str",
        "head": "int64",
        "row": "int64",
        "column": "int64",
        "value": "float64",
    },
}

UNIQUE: Final[dict[str, tuple[str, ...]]] = {
    "results": (*RUN, "order", "mask", "phase", "target", "split"),
    "selections": (*RUN, "criterion", "draw", "level", "ratio", "rule"),
    "scores": (*RUN, "epoch", "batch", "site", "head", "criterion"),
    "history": (*RUN, "stage", "mask", "order", "epoch"),
    "losses": (*RUN, "order", "mask", "phase", "target"),
    "robustness": (*RUN, "site", "manipulation", "quantity", "phase", "split"),
    "examples": (*RUN, "kind", "name", "head", "row", "column"),
}

MAY_BE_MISSING: Final[dict[str, tuple[str, ...]]] = {
    "results": ("mse", "mae", "latency_ms", "memory_mb"),
    "selections": ("ratio",),
    "scores": (),
    "history": ("train_mse", "val_mse", "val_mae"),
    "losses": (),
    "robustness": ("value",),
    "examples": (),
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
            column: pa.Column(kind, nullable=column in MAY_BE_MISSING[name])
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
