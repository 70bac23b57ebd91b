"""Surgery: attention that leaves the network, the masked dense reference, and pruned files.

Removing a site leaves ``x -> norm(x)``; removing heads slices their weights. The pruned network
equals the masked dense one to float tolerance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spat.attention.mask import Mask
from spat.attention.modes import evaluating
from spat.files import read_json, replacing, write_json
from spat.models.base import Forecaster
from spat.models.registry import MODELS, Shape, build, registered
from spat.training.device.costs import example_inputs, parameters

WEIGHTS = "model.safetensors"
ARCHITECTURE = "architecture.json"

Hook = Callable[[nn.Module, Any, Tensor], Tensor]


@dataclass(frozen=True)
class Surgery:
    """What an operation did, in numbers of parameters.

    `swept` were removed beyond the mask: no gradient could reach them any more, and their module
    was not called. `dead` cannot be reached either, but stay, since their module is called.
    """

    params_before: int
    params_after: int
    swept: int
    dead: int


def heads_of(model: Forecaster) -> tuple[int, ...]:
    """The number of heads of each site of the dense model, in forward order."""
    return tuple(site.heads for site in model.sites())


def prune(model: Forecaster, mask: Mask) -> Surgery:
    """Cut a dense model down to a mask, in place; the mask of all heads changes nothing.

    New parameters replace the cut ones: make the optimiser afterwards.

    Raises:
        ValueError: if the mask is of another model, or the model is not dense.
    """
    _require_dense(model, mask)
    before = parameters(model)
    if mask.is_full:
        return Surgery(before, before, 0, 0)
    for site, bits in zip(model.sites(), mask.bits, strict=True):
        if not any(bits):
            site.remove()
        elif site.attention is not None and not all(bits):
            site.attention.keep_heads([head for head, kept in enumerate(bits) if kept])
    cut = parameters(model)
    dead = _sweep(model)
    after = parameters(model)
    return Surgery(before, after, cut - after, dead)


@contextlib.contextmanager
def masked(model: Forecaster, mask: Mask) -> Iterator[Forecaster]:
    """The dense model with what the mask removes held at zero: the reference of `prune`.

    A removed head adds nothing to its site's output projection; an emptied site contributes exactly
    nothing, its output bias included. Weights stay as they are, and leaving the block undoes it.

    Raises:
        ValueError: if the mask is of another model, or the model is not dense.
    """
    _require_dense(model, mask)
    with contextlib.ExitStack() as hooks:
        for site, bits in zip(model.sites(), mask.bits, strict=True):
            attention = site.attention
            if attention is None or all(bits):
                continue
            place, hook = (attention.core, _gate(bits)) if any(bits) else (attention, _nothing)
            hooks.callback(place.register_forward_hook(hook).remove)
        yield model


def unreached(model: Forecaster) -> tuple[dict[str, nn.Parameter], set[nn.Module]]:
    """The trainable parameters that no gradient of the forecast reaches, and the called modules.

    From one forward and backward pass of a random window in `eval()`, which leaves no trace.
    """
    called: set[nn.Module] = set()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with contextlib.ExitStack() as hooks, evaluating(model), torch.enable_grad():
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(lambda m, _: called.add(m)).remove)
        forecast = model(*example_inputs(model))
        reached: set[str] = set()
        if trainable and forecast.requires_grad:
            weights = list(trainable.values())
            gradients = torch.autograd.grad(forecast.sum(), weights, allow_unused=True)
            reached = {n for n, g in zip(trainable, gradients, strict=True) if g is not None}
    return {name: p for name, p in trainable.items() if name not in reached}, called


def architecture(model: Forecaster, mask: Mask | None = None) -> dict[str, Any]:
    """What `rebuild` needs, as plain JSON values; without a mask the model is the dense one.

    Raises:
        ValueError: if the mask is of another model, or the model's class is no row of the registry.
    """
    mask = mask or Mask.full(heads_of(model))
    _require_same(model, mask)
    return {
        "model": _registered(model),
        "settings": asdict(model.settings),
        "shape": asdict(model.shape),
        "mask": mask.name,
    }


def rebuild(values: Mapping[str, Any]) -> Forecaster:
    """The network of an `architecture`, on the CPU, with fresh weights.

    Raises:
        ValueError: naming the key that is missing or unknown, the model that is not registered, or
            the mask that is of another model.
    """
    try:
        name, mask = values["model"], values["mask"]
        settings = registered(name).settings(**values["settings"])
        shape = Shape(**values["shape"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"architecture of another version of this package: {error}") from None
    model = build(name, settings, shape, seed=0)
    prune(model, Mask.parse(mask, heads_of(model)))
    return model


def save(model: Forecaster, folder: Path, mask: Mask | None = None) -> None:
    """Write `architecture.json` and `model.safetensors`, each atomically, the weights last.

    Without a mask the model is the dense one.

    Raises:
        ValueError: as `architecture`, or if the model is not what the mask leaves.
    """
    values = architecture(model, mask)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    if problem := _mismatch(weights, rebuild(values)):
        raise ValueError(
            f"mask {values['mask']!r} does not leave this model ({problem}): give the mask that it "
            "was pruned to"
        )
    write_json(folder / ARCHITECTURE, values)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)


def load(folder: Path, device: str | torch.device = "cpu") -> Forecaster:
    """The network that `save` wrote, pruned or dense, in `eval()`; its weights load strictly.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming the folder, if a file is damaged or the two do not belong together.
    """
    try:
        model = rebuild(read_json(folder / ARCHITECTURE))
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{folder}: {error}; delete it and run its job again") from None
    if problem := _mismatch(weights, model):
        raise ValueError(f"{folder}: {problem}; delete it and run its job again")
    model.load_state_dict(weights, strict=True)
    return model.to(device).eval()


def _sweep(model: Forecaster) -> int:
    """Remove what is neither reached nor called; return how many dead parameters stay."""
    lost, called = unreached(model)
    for site in model.sites():
        if site.attention is not None and site.attention not in called:
            site.remove()
    dead = 0
    for name, parameter in lost.items():
        path, _, leaf = name.rpartition(".")
        try:
            parent = model.get_submodule(path)
        except AttributeError:  # went with its site
            continue
        if parent in called:
            dead += parameter.numel()
        else:
            setattr(parent, leaf, None)
    return dead


def _require_same(model: Forecaster, mask: Mask) -> None:
    if mask.heads != heads_of(model):
        raise ValueError(
            f"mask {mask.name!r} is of a model with heads {mask.heads}, not {heads_of(model)}"
        )


def _require_dense(model: Forecaster, mask: Mask) -> None:
    _require_same(model, mask)
    for site in model.sites():
        left = site.attention.heads if site.attention is not None else 0
        if left != site.heads:
            raise ValueError(
                f"site {site.name} has {left} of its {site.heads} heads: start from a dense model"
            )


def _mismatch(weights: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """The first weight that the model has not, lacks, or has in another shape.

    `load_state_dict` alone is not strict enough: it passes over weights of a removed module.
    """
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            shapes = (found.get(name, "missing"), wanted.get(name, "none"))
            return "{}: weights {}, network {}".format(name, *shapes)
    return None


def _registered(model: Forecaster) -> str:
    kind = type(model)
    for row in MODELS.values():
        if (row.module, row.class_name) == (kind.__module__, kind.__qualname__):
            return row.name
    raise ValueError(
        f"{kind.__module__}.{kind.__qualname__} is no row of the model registry: add it to save it"
    )


def _gate(bits: tuple[bool, ...]) -> Hook:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        # output [B, H, Q, D]
        return output * output.new_tensor(bits)[:, None, None]

    return hook


def _nothing(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)
