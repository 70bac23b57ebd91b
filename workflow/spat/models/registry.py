"""The table of models, and their published settings and recipes.

To add a model, add a row to `MODELS`, its settings to `settings.py`, a module with its class, and a
CSV with its published rows, named after the model in lower case. This module does not import torch.
"""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from importlib import resources
from itertools import product
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    get_args,
    get_origin,
    get_type_hints,
)

from spat.data.registry import DATASETS, WITHOUT_TIME
from spat.models import settings as own
from spat.models.settings import Recipe as Recipe
from spat.models.settings import Settings as Settings
from spat.models.settings import Shape as Shape
from spat.scoring.names import VIEWS, ViewName

if TYPE_CHECKING:
    from spat.models.base import Network

Role = Literal["attention", "baseline", "naive"]
Family = Literal["attention", "scan", "language", "baseline", "naive"]

VARIANTS: Final = ("published", "deep")

# A naive model has nothing to train.
_UNTRAINED: Final = Recipe(learning_rate=0.0, batch_size=32, epochs=0, patience=0)

# Settings that are taken from the attribute of the dataset of the same name.
_DERIVED: Final = ("season",)


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        name: Name in configurations and results.
        module: Module of the class.
        class_name: Name of the class; it takes (settings, shape).
        settings: Class of its settings.
        role: `attention` if it has sites to prune, `baseline` if it is trained and has no sites,
            `naive` if it has no parameters.
        task: Name of its task.
        view: The widest view that all its sites offer (role `attention`): `Mixing` includes
            `Heads`, which includes `Output`.
        residual: Whether all its sites also offer the view `Residual`.
        fixed_channels: Whether its weights depend on the number of channels. Such a model transfers
            only to data with the same number of channels.
        core: What its sites are, if they are not the attention of a forecaster: selective scans
            (Mamba), or the attention of a language model.
    """

    name: str
    module: str
    class_name: str
    settings: type[Settings]
    role: Role = "attention"
    task: str = "forecasting"
    view: Literal["Output", "Heads", "Mixing"] = "Mixing"
    residual: bool = True
    fixed_channels: bool = False
    core: Literal["scan", "language"] | None = None

    @property
    def family(self) -> Family:
        """The family of rivals in which it is compared: `core`, or its role."""
        return self.core or self.role

    @property
    def views(self) -> tuple[ViewName, ...]:
        """The views that all its sites offer; empty if it has no sites."""
        if self.role != "attention":
            return ()
        widest = VIEWS.index(self.view)
        return tuple(
            view
            for place, view in enumerate(VIEWS)
            if (self.residual if view == "Residual" else place <= widest)
        )


MODELS: Final = {
    model.name: model
    for model in (
        Model("iTransformer", "spat.models.itransformer", "ITransformer", own.ITransformerSettings),
        Model("PatchTST", "spat.models.patchtst", "PatchTST", own.PatchTSTSettings),
        Model(
            "Transformer",
            "spat.models.transformer",
            "Transformer",
            own.TransformerSettings,
            fixed_channels=True,
        ),
        Model("PAttn", "spat.models.pattn", "PAttn", own.PAttnSettings),
        Model(
            "SAMformer",
            "spat.models.samformer",
            "SAMformer",
            own.SAMformerSettings,
            fixed_channels=True,
        ),
        Model(
            "TimeXer", "spat.models.timexer", "TimeXer", own.TimeXerSettings, fixed_channels=True
        ),
        Model(
            "Nonstationary",
            "spat.models.nonstationary",
            "Nonstationary",
            own.NonstationarySettings,
            fixed_channels=True,
        ),
        Model(
            "Informer",
            "spat.models.informer",
            "Informer",
            own.InformerSettings,
            fixed_channels=True,
        ),
        Model(
            "Autoformer",
            "spat.models.autoformer",
            "Autoformer",
            own.AutoformerSettings,
            fixed_channels=True,
        ),
        Model(
            "FEDformer",
            "spat.models.fedformer",
            "FEDformer",
            own.FEDformerSettings,
            view="Output",
            fixed_channels=True,
        ),
        Model(
            "Crossformer",
            "spat.models.crossformer",
            "Crossformer",
            own.CrossformerSettings,
            fixed_channels=True,
        ),
        Model(
            "S-Mamba",
            "spat.models.smamba",
            "SMamba",
            own.SMambaSettings,
            view="Output",
            core="scan",
        ),
        Model(
            "Mamba",
            "spat.models.mamba",
            "MambaForecaster",
            own.MambaSettings,
            view="Output",
            fixed_channels=True,
            core="scan",
        ),
        Model(
            "TimeMachine",
            "spat.models.timemachine",
            "TimeMachine",
            own.TimeMachineSettings,
            view="Output",
            residual=False,
            fixed_channels=True,
            core="scan",
        ),
        # The suffix of the name gives the weights of the language model.
        *(
            Model(f"GPT4TS-{name}", "spat.models.gpt4ts", class_name, settings, core="language")
            for name, class_name, settings in (
                ("gpt2", "GPT4TSGPT2", own.GPT4TSGPT2Settings),
                ("smollm2", "GPT4TSSmolLM2", own.GPT4TSSmolLM2Settings),
                ("random", "GPT4TSRandom", own.GPT4TSRandomSettings),
            )
        ),
        *(
            # The reprogramming attention has no residual connection.
            Model(
                f"Time-LLM-{name}",
                "spat.models.timellm",
                class_name,
                settings,
                residual=False,
                core="language",
            )
            for name, class_name, settings in (
                ("gpt2", "TimeLLMGPT2", own.TimeLLMGPT2Settings),
                ("smollm2", "TimeLLMSmolLM2", own.TimeLLMSmolLM2Settings),
                ("random", "TimeLLMRandom", own.TimeLLMRandomSettings),
            )
        ),
        Model("DLinear", "spat.models.dlinear", "DLinear", own.DLinearSettings, role="baseline"),
        Model("NLinear", "spat.models.nlinear", "NLinear", Settings, role="baseline"),
        Model(
            "RLinear",
            "spat.models.rlinear",
            "RLinear",
            own.RLinearSettings,
            role="baseline",
            fixed_channels=True,
        ),
        Model(
            "SparseTSF",
            "spat.models.sparsetsf",
            "SparseTSF",
            own.SparseTSFSettings,
            role="baseline",
        ),
        Model(
            "SparseTSFMLP",
            "spat.models.sparsetsf",
            "SparseTSFMLP",
            own.SparseTSFMLPSettings,
            role="baseline",
        ),
        Model("FITS", "spat.models.fits", "FITS", own.FITSSettings, role="baseline"),
        Model(
            "TSMixer",
            "spat.models.tsmixer",
            "TSMixer",
            own.TSMixerSettings,
            role="baseline",
            fixed_channels=True,
        ),
        Model("TiDE", "spat.models.tide", "TiDE", own.TiDESettings, role="baseline"),
        Model("RepeatLast", "spat.models.naive", "RepeatLast", Settings, role="naive"),
        Model(
            "SeasonalNaive",
            "spat.models.naive",
            "SeasonalNaive",
            own.SeasonalNaiveSettings,
            role="naive",
        ),
        Model("ViT", "spat.models.vit", "ViT", own.ViTSettings, task="imaging"),
        Model("GPT", "spat.models.gpt", "GPT", own.GPTSettings, task="text"),
    )
}

FORECASTERS: Final = {name: row for name, row in MODELS.items() if row.task == "forecasting"}


@dataclass(frozen=True)
class Setup:
    """The settings and the recipe of a run; `source` names their origin."""

    settings: Settings
    recipe: Recipe
    source: str


def setup(
    model: str,
    variant: str,
    dataset: str,
    horizon: int | None,
    overrides: Mapping[str, int | float | str | bool] | None = None,
    season: int | None = None,
) -> Setup:
    """The settings and the recipe of a run, from the most specific row of the model's CSV.

    A row for the variant is preferred, then one for the dataset, then one for the horizon.
    `overrides` are changes of the model's settings and of the recipe, by name. `season` (steps) is
    needed for data that are not in the registry. Images and texts have no horizon and no season.

    Raises:
        ValueError: on an unknown model, variant, dataset or field, or a value of the wrong type or
            range; naming the valid ones.
    """
    _require("model", model, MODELS)
    _require("variant", variant, VARIANTS)
    if season is None:
        _require("dataset", dataset, (*DATASETS, *WITHOUT_TIME))
        season = DATASETS[dataset].season if dataset in DATASETS else None
    row = _row(model, variant, dataset, horizon, season)
    return _changed(model, row, overrides) if overrides else row


def registered(name: str) -> Model:
    """The row of a model.

    Raises:
        ValueError: on an unknown name; the message lists the known ones.
    """
    _require("model", name, MODELS)
    return MODELS[name]


def settings_from(model: str, values: Mapping[str, Any]) -> Settings:
    """The settings of a model from plain values, such as those of a file.

    Raises:
        ValueError: on an unknown model, or a value of the wrong type or range.
        TypeError: naming the setting that is missing or unknown.
    """
    kind = registered(model).settings
    kinds = _kinds(kind)
    return kind(**{n: _checked(n, v, kinds) if n in kinds else v for n, v in values.items()})


def build(name: str, settings: Settings, shape: Any, seed: int = 0) -> Network:
    """A newly initialised network on the CPU; its weights depend only on the arguments.

    `shape` is a `Shape`, `ImageShape` or `TextShape`, by the task of the model. The state of
    torch's global generator is not changed.

    Raises:
        ValueError: on an unknown name, or settings that do not fit the shape.
    """
    import torch

    from spat.training.device.kernels import GLOBAL_GENERATOR

    row = registered(name)
    implementation = getattr(importlib.import_module(row.module), row.class_name)
    with GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return implementation(settings, shape)  # type: ignore[no-any-return]


@cache
def _row(model: str, variant: str, dataset: str, horizon: int | None, season: int | None) -> Setup:
    row = MODELS[model]
    derived = {"season": season} if "season" in _kinds(row.settings) else {}
    if row.role == "naive":
        return Setup(row.settings(**derived), _UNTRAINED, "no parameters")
    for key in product((variant, "*"), (dataset, "*"), (str(horizon), "*")):
        if (values := _table(model).get(key)) is not None:
            chosen = {**values, **derived}
            return Setup(
                row.settings(**{n: chosen[n] for n in _kinds(row.settings) if n in chosen}),
                Recipe(**{n: chosen[n] for n in _kinds(Recipe) if n in chosen}),
                chosen["source"],
            )
    steps = "" if horizon is None else f", horizon {horizon}"
    raise ValueError(
        f"{_file(model)} has no row for variant {variant}, {dataset}{steps}: add one (`*` stands "
        "for any)"
    )


def _file(model: str) -> str:
    return f"{model.lower()}.csv"


@cache
def _table(model: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """The rows of a model's CSV by variant, dataset and horizon, each as field -> value.

    An empty cell takes the default of its field.
    """
    file, keys = _file(model), ("variant", "dataset", "horizon")
    settings = MODELS[model].settings
    kinds = {**_kinds(settings), **_kinds(Recipe), "source": str}
    required = [f.name for of in (settings, Recipe) for f in fields(of) if f.default is MISSING]
    required = [*(name for name in required if name not in _DERIVED), "source"]
    text = resources.files("spat.models").joinpath(file).read_text(encoding="utf-8")
    table: dict[tuple[str, ...], dict[str, Any]] = {}
    for line, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        key = tuple(row.pop(name) for name in keys)
        if key in table:
            raise ValueError(f"{file}, line {line}: second row for {', '.join(key)}")
        try:
            values = {name: _parsed(name, cell, kinds) for name, cell in row.items() if cell}
        except ValueError as error:
            raise ValueError(f"{file}, line {line}: {error}") from None
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"{file}, line {line}: no value for {', '.join(missing)}")
        table[key] = values
    return table


_KINDS: dict[type[Any], Mapping[str, Any]] = {}


def _kinds(of: type[Any]) -> Mapping[str, Any]:
    """The type of each field, by name and in order."""
    if of not in _KINDS:
        # This evaluates the text of every annotation, which takes longer than all other checks.
        hints = get_type_hints(of, include_extras=True)
        _KINDS[of] = {field.name: hints[field.name] for field in fields(of)}
    return _KINDS[of]


def _changed(model: str, base: Setup, overrides: Mapping[str, Any]) -> Setup:
    own, shared = _kinds(MODELS[model].settings), _kinds(Recipe)
    for name in overrides:
        if name not in own and name not in shared:
            raise ValueError(
                f"{name!r} is not one of {', '.join(own) or '(none)'} (settings of {model}) or "
                f"{', '.join(shared)} (its recipe)"
            )
    made = {name: _checked(name, value, {**own, **shared}) for name, value in overrides.items()}
    shown = ", ".join(f"{name} {value}" for name, value in made.items())
    return Setup(
        replace(base.settings, **{name: value for name, value in made.items() if name in own}),
        replace(base.recipe, **{name: value for name, value in made.items() if name in shared}),
        f"{base.source}; changed: {shown}",
    )


def _parsed(name: str, text: str, kinds: Mapping[str, Any]) -> Any:
    """The value of a cell.

    Raises:
        ValueError: naming column and text.
    """
    _require("column", name, kinds)
    kind = _plain(kinds[name])
    if kind is bool:
        if text not in ("yes", "no"):
            raise ValueError(f"{name}: {text!r} is neither yes nor no")
        return text == "yes"
    if kind in (int, float):
        try:
            return _checked(name, kind(text), kinds)
        except ValueError:
            raise ValueError(f"{name}: {text!r} is not a valid {kind.__name__}") from None
    return _checked(name, text, kinds)


def _plain(kind: Any) -> Any:
    """A field's type without the limits of its range, and without None."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[0]
    if isinstance(kind, UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _checked(name: str, value: Any, kinds: Mapping[str, Any]) -> Any:
    """The value, if its type and range are right.

    Raises:
        ValueError: naming field and value.
    """
    kind = _plain(kinds[name])
    if get_origin(kind) is Literal:
        _require(name, value, get_args(kind))
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name}: {value!r} is not of type {kind.__name__}")
    limits = get_args(kinds[name])[1:]
    if "share" in limits:
        if not 0 <= value < 1:
            raise ValueError(f"{name}: {value!r} is not in [0, 1)")
    elif "not negative" in limits:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: {value!r} is negative or not finite")
    elif kind in (int, float) and not 0 < value < math.inf:
        raise ValueError(f"{name}: {value!r} is not a positive, finite number")
    most = own.MOST.get(name, own.MOST_OF_OTHERS if kind is int else math.inf)
    if kind in (int, float) and value > most:
        raise ValueError(
            f"{name}: {value!r} is too large to train: choose at most {most} (or raise this bound "
            "in spat/models/settings.py)"
        )
    return value


def _require(what: str, name: Any, valid: Iterable[Any]) -> None:
    if name not in valid:
        raise ValueError(f"{what} {name!r} is not one of {', '.join(map(str, valid))}")
