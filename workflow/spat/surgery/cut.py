"""Removal of attention from a network, and the masked dense network that is equivalent to it.

Removing a site leaves ``x -> norm(x)``; removing heads slices the weights. The pruned network
equals the masked dense network to float tolerance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spat.attention.mask import Mask
from spat.models.base import Network
from spat.surgery.sweep import Example, sweep
from spat.training.device.costs import parameters

Hook = Callable[[nn.Module, Any, Tensor], Tensor]


@dataclass(frozen=True)
class Surgery:
    """The result of `prune`, as numbers of parameters.

    `swept` parameters were removed in addition to the mask: no gradient reaches them, and their
    module is not called. `dead` parameters are not reached by a gradient either, but remain, since
    their module is called.
    """

    params_before: int
    params_after: int
    swept: int
    dead: int


def heads_of(model: Network) -> tuple[int, ...]:
    """The number of heads of each site of the dense model, in forward order."""
    return tuple(site.heads for site in model.sites())


def prune(model: Network, mask: Mask, example: Example) -> Surgery:
    """Prune a dense model to a mask, in place; the mask of all heads changes nothing.

    New parameters replace the sliced ones, so create the optimiser afterwards. `example` calls the
    model on any inputs, to find the parameters that are no longer used.

    Raises:
        ValueError: if the mask belongs to another model, or the model is not dense.
    """
    _require_dense(model, mask)
    before = parameters(model)
    if mask.is_full:
        return Surgery(before, before, 0, 0)
    for site, bits in zip(model.sites(), mask.bits, strict=True):
        if not any(bits):
            site.remove()
        elif not all(bits):
            site.attention.keep_heads([head for head, kept in enumerate(bits) if kept])
    cut = parameters(model)
    dead = sweep(model, model.sites(), example)
    after = parameters(model)
    return Surgery(before, after, cut - after, dead)


@contextlib.contextmanager
def masked(model: Network, mask: Mask) -> Iterator[Network]:
    """Context manager: the dense model with removed parts set to zero, the reference of `prune`.

    The output of a removed head before the output projection is zero, and so is the output of a
    removed site, with its bias. Weights are not changed.

    Raises:
        ValueError: if the mask belongs to another model, or the model is not dense.
    """
    _require_dense(model, mask)
    with contextlib.ExitStack() as hooks:
        for site, bits in zip(model.sites(), mask.bits, strict=True):
            if all(bits):
                continue
            held = [site.attention.core] if any(bits) else site.modules
            for module in held:
                hook = _gate(bits) if any(bits) else _nothing
                hooks.callback(module.register_forward_hook(hook).remove)
        yield model


def require_same(model: Network, mask: Mask) -> None:
    """Check that a mask has the sites and heads of the model.

    Raises:
        ValueError: if it has not; the message names the mask and the heads of both.
    """
    if mask.heads != heads_of(model):
        raise ValueError(
            f"mask {mask.name!r} is of a model with heads {mask.heads}, not {heads_of(model)}"
        )


def _require_dense(model: Network, mask: Mask) -> None:
    require_same(model, mask)
    for site in model.sites():
        # A site with one head can only be removed as a whole, so it is enough to check its module.
        left = getattr(site.attention, "heads", 0) if site.heads > 1 else len(site.modules[:1])
        if left != site.heads:
            raise ValueError(
                f"site {site.name} has {left} of its {site.heads} heads: start from a dense model"
            )


def _gate(bits: tuple[bool, ...]) -> Hook:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        # output [B, H, Q, D]
        return output * output.new_tensor(bits)[:, None, None]

    return hook


def _nothing(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)
