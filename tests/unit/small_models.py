"""Settings small enough to build every model in a moment; several layers, so that sites differ."""

from dataclasses import fields, replace
from typing import Any

from spat.models.registry import MODELS, Settings, Shape

SHAPE = Shape(lookback=24, horizon=12, channels=5, marks=4)

# By the name of a setting, for every model that has it.
SIZES: dict[str, Any] = {
    "d_model": 16,
    "d_ff": 24,
    "e_layers": 3,
    "d_layers": 2,
    "n_heads": 4,
    "dropout": 0.0,
    "patch_len": 8,
    "stride": 4,
    "label_len": 12,
    "moving_average": 5,
    "season": 6,
    "period": 4,
    "base_period": 6,
    "order": 1,
    "step_width": 3,
    "marks_width": 3,
    "time_features": False,
    "instance_norm": True,
}


def sized(name: str, **changes: Any) -> Settings:
    """Small settings of a model, with those of the changes that are settings of it."""
    kind = MODELS[name].settings
    names = [field.name for field in fields(kind)]
    small = kind(**{key: SIZES[key] for key in names if key in SIZES})
    return replace(small, **{key: value for key, value in changes.items() if key in names})
