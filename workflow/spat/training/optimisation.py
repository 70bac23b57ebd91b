"""Optimiser, learning-rate schedule, and sharpness-aware minimisation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spat.models.settings import Schedule


class Adam(torch.optim.Adam):
    """torch's Adam without the wrappers that `torch.compile` needs around its methods.

    The first call of a wrapped method imports the compiler, which takes over a second of each job,
    although nothing is compiled here. `inspect.unwrap` returns a method without wrapper unchanged.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    # The wrapper of this method also switches gradients off.
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def adam(model: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> Adam:
    """Adam; `weight_decay` adds this multiple of each weight to its gradient.

    On CUDA the learning rate is a tensor and the state is on the device, so that a captured step
    follows the schedule.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    on_cuda = parameters[0].is_cuda
    rate = torch.tensor(learning_rate, device=parameters[0].device) if on_cuda else learning_rate
    return Adam(parameters, lr=rate, weight_decay=weight_decay, fused=True, capturable=on_cuda)


# Schedules by (epochs at the full rate, factor per further epoch).
_DECAYS: Final = {
    "constant": (1.0, 1),
    # Time-Series-Library: after epoch e it sets rate x 0.5^(e - 1), hence the second full epoch.
    "type1": (0.5, 2),
    # Time-Series-Library, TimeMachine, Time-LLM; One-Fits-All calls it type1. After epoch e it sets
    # the full rate while e < 3, then rate x 0.9^(e - 3).
    "type3": (0.9, 4),
    # SparseTSF calls it type3.
    "sparsetsf": (0.8, 4),
    # FITS calls it type3: after epoch e it sets rate x 0.95^(e - 1).
    "fits": (0.95, 2),
}
# One-Fits-All: CosineAnnealingLR with T_max 20 and eta_min 1e-8, stepped after each epoch.
_COSINE_EPOCHS: Final = 20
_COSINE_LEAST: Final = 1e-8
# TimeMachine calls it 5: after epoch 25 it sets a tenth of the rate.
_STEP_EPOCHS: Final = 25


def rate_at(epoch: int, learning_rate: float, schedule: Schedule = "type1") -> float:
    """The learning rate of an epoch (1, 2, ...) under a published schedule."""
    if schedule == "cosine":
        share = (1 + math.cos(math.pi * (epoch - 1) / _COSINE_EPOCHS)) / 2
        return _COSINE_LEAST + (learning_rate - _COSINE_LEAST) * share
    if schedule == "step25":
        return learning_rate if epoch <= _STEP_EPOCHS else learning_rate / 10
    factor, full = _DECAYS[schedule]
    return learning_rate * factor ** max(0, epoch - full)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group (in place if it is a tensor)."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class SharpnessAware:
    """The ascent of sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412, eq. 2).

    The optimiser uses the gradient at ``w + rho g / |g|``. SAMformer (Ilbert et al. 2024, arXiv
    2402.10198) reports for it, on attention, the kind of gain that SPAT reports for pruning.
    """

    def __init__(self, model: nn.Module, rho: float) -> None:
        self.rho = rho
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def backward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Store the sharpness-aware gradient in `.grad` and return the loss at the weights."""
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        moved = [p for p in self._parameters if p.grad is not None]
        gradients = [p.grad for p in moved if p.grad is not None]
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(g) for g in gradients])
        )
        scale = self.rho / (norm + 1e-12)
        ascent = [g * scale for g in gradients]
        with torch.no_grad():
            for parameter, step in zip(moved, ascent, strict=True):
                parameter.add_(step)
                parameter.grad = None
        loss().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter, step in zip(moved, ascent, strict=True):
                parameter.sub_(step)
        return value.detach()
