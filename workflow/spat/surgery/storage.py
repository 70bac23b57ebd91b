"""Files of a network, dense or pruned: its architecture and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spat.attention.mask import Mask
from spat.files import read_json, replacing, write_json
from spat.models.base import Network
from spat.models.registry import MODELS, build, registered, settings_from
from spat.surgery.cut import heads_of, prune, require_same
from spat.tasks.registry import task_named

WEIGHTS = "model.safetensors"
ARCHITECTURE = "architecture.json"
# The largest length of an input or output, and number of channels.
MOST_IN_SHAPE: Final = 10**7


class DamagedNetworkError(ValueError):
    """The files of a network are damaged, or do not belong together; the message names them."""


def architecture(model: Network, mask: Mask | None = None) -> dict[str, Any]:
    """The description of a network for `rebuild`, as JSON values; without a mask it is dense.

    Raises:
        ValueError: if the mask belongs to another model, or the model's class is not registered.
    """
    mask = mask or Mask.full(heads_of(model))
    require_same(model, mask)
    return {
        "model": _registered(model),
        "settings": asdict(model.settings),
        "shape": asdict(model.shape),
        "mask": mask.name,
    }


def rebuild(values: Mapping[str, Any]) -> Network:
    """The network of an `architecture`, on the CPU, with fresh weights.

    Raises:
        ValueError: naming the key that is missing or unknown, the model that is not registered, the
            setting or length with an impossible value, or the mask that belongs to another model.
    """
    try:
        name, mask = values["model"], values["mask"]
        if not isinstance(mask, str):
            raise ValueError(f"mask: {mask!r} is not a text")
        task = task_named(registered(name).task)
        settings = settings_from(name, values["settings"])
        for key, length in values["shape"].items():
            least = 0 if key == "marks" else 1
            if type(length) is not int or not least <= length <= MOST_IN_SHAPE:
                raise ValueError(
                    f"shape.{key}: {length!r} is not a whole number from {least} to {MOST_IN_SHAPE}"
                )
        shape = task.shape(**values["shape"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the architecture was written by another version of this package: {error}"
        ) from None
    model = build(name, settings, shape, seed=0)
    batch = task.example(shape)
    prune(model, Mask.parse(mask, heads_of(model)), lambda: task.forward(model, batch))
    return model


def save(model: Network, folder: Path, mask: Mask | None = None) -> None:
    """Write `architecture.json` and `model.safetensors`, each atomically, the weights last.

    Without a mask the model is dense. Frozen weights (of a language model) are not written if they
    equal the weights that `rebuild` restores; `architecture.json` then has their SHA-256.

    Raises:
        ValueError: see `architecture`; also if the model does not have the sites and heads of the
            mask.
    """
    values = architecture(model, mask)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    rebuilt = rebuild(values)
    if problem := _mismatch(weights, rebuilt):
        raise ValueError(
            f"mask {values['mask']!r} does not describe this model ({problem}): pass the mask that "
            "it was pruned to"
        )
    if shared := model.frozen():
        restored = rebuilt.state_dict()
        for name in shared:
            if torch.equal(weights[name], restored[name]):
                del weights[name]
        values["base"] = model.base
    write_json(folder / ARCHITECTURE, values)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)


def load(folder: Path, device: str | torch.device = "cpu") -> Network:
    """Load a network that `save` wrote, pruned or dense, in `eval()`; weights must match exactly.

    Raises:
        FileNotFoundError: naming the file that is missing.
        DamagedNetworkError: naming the folder, if a file is damaged or the two do not belong
            together.
        ValueError: naming the folder, if the weights of its language model are others.
    """
    try:
        values = read_json(folder / ARCHITECTURE)
        model = rebuild(values)
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, ArithmeticError) as error:
        raise DamagedNetworkError(f"{folder}: {error}; delete it and run its job again") from None
    if values.get("base") != model.base:
        raise ValueError(
            f"{folder}: the network was saved with other weights of its language model (SHA-256 "
            f"{values.get('base')}, here {model.base}): restore these weights"
        )
    own = model.state_dict()
    weights = {name: own[name] for name in model.frozen()} | weights
    if problem := _mismatch(weights, model):
        raise DamagedNetworkError(f"{folder}: {problem}; delete it and run its job again")
    model.load_state_dict(weights, strict=True)
    return model.to(device).eval()


def _mismatch(weights: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """The first weight that is missing, unknown to the model, or of another shape.

    `load_state_dict` is not strict enough: it ignores weights of a removed module.
    """
    saved = {name: tuple(value.shape) for name, value in weights.items()}
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            shapes = (saved.get(name, "missing"), wanted.get(name, "none"))
            return "{}: {} in the weights, {} in the network".format(name, *shapes)
    return None


def _registered(model: Network) -> str:
    kind = type(model)
    for row in MODELS.values():
        if (row.module, row.class_name) == (kind.__module__, kind.__qualname__):
            return row.name
    raise ValueError(
        f"{kind.__module__}.{kind.__qualname__} is not in the model registry: add a row to save it"
    )
