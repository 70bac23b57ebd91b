"""Find parameters that no gradient reaches, and remove those whose module is not called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spat.attention.modes import evaluating
from spat.attention.site import Site

# Calls the model on fixed inputs of any values, and returns its output.
Example = Callable[[], Tensor]


def unreached(model: nn.Module, example: Example) -> tuple[dict[str, nn.Parameter], set[nn.Module]]:
    """The trainable parameters that no gradient of the output reaches, and the called modules.

    Runs one forward and backward pass of `example` in `eval()`; the model is not changed.
    """
    called: set[nn.Module] = set()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with contextlib.ExitStack() as hooks, evaluating(model), torch.enable_grad():
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(lambda m, _: called.add(m)).remove)
        output = example()
        reached: set[str] = set()
        if trainable and output.requires_grad:
            weights = list(trainable.values())
            gradients = torch.autograd.grad(output.sum(), weights, allow_unused=True)
            reached = {n for n, g in zip(trainable, gradients, strict=True) if g is not None}
    return {name: p for name, p in trainable.items() if name not in reached}, called


def sweep(model: nn.Module, sites: Sequence[Site], example: Example) -> int:
    """Remove the parameters that no gradient reaches and whose module is not called.

    A site whose modules are not called is removed as a whole. Returns the number of remaining
    parameters that no gradient reaches.
    """
    lost, called = unreached(model, example)
    for site in sites:
        if site.modules and not called.intersection(site.modules):
            site.remove()
    dead = 0
    for name, parameter in lost.items():
        path, _, leaf = name.rpartition(".")
        try:
            parent = model.get_submodule(path)
        except AttributeError:  # removed with its site
            continue
        if parent in called:
            dead += parameter.numel()
        else:
            setattr(parent, leaf, None)
    return dead
