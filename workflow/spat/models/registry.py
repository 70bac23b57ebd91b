"""The table of forecasters and of their hyper-parameters; no torch, since names are all it needs.

A new model is a row of `MODELS`, a module with its class, and rows in `hyperparameters.csv`.
"""

from __future__ import annotations

import csv
import importlib
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from itertools import product
from typing import TYPE_CHECKING, Any

from spat.data.registry import DATASETS

if TYPE_CHECKING:
    from spat.models.base import Forecaster

VARIANTS = ("published", "deep")

_INITIALISING = threading.Lock()


@dataclass(frozen=True)
class Model:
    """A forecaster: where it is implemented and what it is like.

    `attention`: it has sites to prune. `trains`: it has parameters. `fixed_channels`: its weights
    depend on the number of channels, so that it transfers only to data of the same width.
    """

    name: str
    module: str
    class_name: str
    attention: bool = False
    trains: bool = True
    fixed_channels: bool = False


MODELS = {
    model.name: model
    for model in (
        Model("iTransformer", "spat.models.itransformer", "ITransformer", attention=True),
        Model("PatchTST", "spat.models.patchtst", "PatchTST", attention=True),
        Model(
            "Transformer",
            "spat.models.transformer",
            "Transformer",
            attention=True,
            fixed_channels=True,
        ),
        Model("DLinear", "spat.models.dlinear", "DLinear"),
        Model("RepeatLast", "spat.models.naive", "RepeatLast", trains=False),
        Model("SeasonalNaive", "spat.models.naive", "SeasonalNaive", trains=False),
    )
}


@dataclass(frozen=True)
class Shape:
    """What a forecaster maps: [B, lookback, channels] -> [B, horizon, channels].

    `marks` is the number of time features of a step, 0 where the data have no timestamps.
    """

    lookback: int
    horizon: int
    channels: int
    marks: int = 0


@dataclass(frozen=True)
class Hyperparameters:
    """A resolved row of the table; 0 or False where the model has no such setting.

    `season` is the main season of the dataset in steps, `source` where the row comes from.
    """

    d_model: int = 0
    d_ff: int = 0
    e_layers: int = 0
    d_layers: int = 0
    n_heads: int = 0
    dropout: float = 0.0
    patch_len: int = 0
    stride: int = 0
    label_len: int = 0
    moving_average: int = 0
    time_features: bool = False
    instance_norm: bool = False
    learning_rate: float = 0.0
    batch_size: int = 32
    epochs: int = 0
    patience: int = 0
    season: int = 1
    source: str = ""


_KEYS = ("model", "variant", "dataset", "horizon")
_KINDS: dict[str, type] = {
    field.name: {"int": int, "float": float, "bool": bool, "str": str}[str(field.type)]
    for field in fields(Hyperparameters)
}
_CHANGEABLE = tuple(name for name in _KINDS if name != "source")


def hyperparameters(
    model: str,
    variant: str,
    dataset: str,
    horizon: int,
    overrides: Mapping[str, int | float | str | bool] | None = None,
) -> Hyperparameters:
    """The most specific row for a run (first by variant, then dataset, then horizon).

    `overrides` are the changes of a variant of one's own.

    Raises:
        ValueError: on an unknown model, variant, dataset or field, or a value of the wrong type or
            range; naming the valid ones.
    """
    _known("model", model, MODELS)
    _known("variant", variant, VARIANTS)
    _known("dataset", dataset, DATASETS)
    for key in product((variant, "*"), (dataset, "*"), (str(horizon), "*")):
        if (row := _table().get((model, *key))) is not None:
            found = replace(row, season=DATASETS[dataset].season)
            return _changed(found, overrides) if overrides else found
    raise ValueError(
        f"hyperparameters.csv has no row for {model}, {variant}, {dataset}, horizon {horizon}: "
        "add one (`*` stands for any)"
    )


def build(name: str, hyper: Hyperparameters, shape: Shape, seed: int = 0) -> Forecaster:
    """A freshly initialised forecaster, on the CPU; its weights depend on the seed alone.

    Torch's generator is left as it was.

    Raises:
        ValueError: on an unknown name, or settings that do not fit the shape.
    """
    import torch

    _known("model", name, MODELS)
    row = MODELS[name]
    implementation = getattr(importlib.import_module(row.module), row.class_name)
    # Initialisation draws from the one generator of the process: one thread at a time.
    with _INITIALISING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return implementation(hyper, shape)  # type: ignore[no-any-return]


@cache
def _table() -> dict[tuple[str, ...], Hyperparameters]:
    table: dict[tuple[str, ...], Hyperparameters] = {}
    text = resources.files("spat.models").joinpath("hyperparameters.csv").read_text()
    for line, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        key = tuple(row.pop(name) for name in _KEYS)
        if key in table:
            raise ValueError(f"hyperparameters.csv, line {line}: second row for {key}")
        table[key] = Hyperparameters(
            **{name: _parsed(name, cell, line) for name, cell in row.items() if cell}
        )
    return table


def _parsed(name: str, text: str, line: int) -> Any:
    if _KINDS[name] is bool:
        if text not in ("yes", "no"):
            raise ValueError(f"hyperparameters.csv, line {line}, {name}: {text!r} is not yes or no")
        return text == "yes"
    try:
        return _KINDS[name](text)
    except ValueError:
        raise ValueError(
            f"hyperparameters.csv, line {line}, {name}: {text!r} is no {_KINDS[name].__name__}"
        ) from None


def _changed(found: Hyperparameters, overrides: Mapping[str, Any]) -> Hyperparameters:
    changes = {}
    for name, value in overrides.items():
        _known("hyper-parameter", name, _CHANGEABLE)
        changes[name] = _checked(name, value)
    shown = ", ".join(f"{name} {value}" for name, value in changes.items())
    return replace(found, **changes, source=f"{found.source}; changed: {shown}")


def _checked(name: str, value: Any) -> Any:
    kind = _KINDS[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    given = type(value)
    if given is not kind:
        raise ValueError(f"{name}: {value!r} is no {kind.__name__}")
    if name == "dropout" and not 0 <= value < 1:
        raise ValueError(f"dropout: {value!r} is not in [0, 1)")
    if name != "dropout" and kind is not bool and not 0 < value < math.inf:
        raise ValueError(f"{name}: {value!r} is not positive")
    return value


def _known(what: str, name: str, valid: Any) -> None:
    if name not in valid:
        raise ValueError(f"{what} {name!r} is not one of {', '.join(valid)}")
