"""The bare matrix products of a training step, which are a limit of its speed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from alternation import Contestant
from cases import TASK, Case
from machine import Rates, onednn
from torch import Tensor, nn

from spat.models.layers.attention import AttentionCore
from spat.training.device import costs
from spat.training.device.kernels import Linear

Product = tuple[int, int, int, int]  # count, M, N, K


@dataclass(frozen=True)
class Step:
    """The products of one training step: those of linear layers, and batched ones of attention."""

    windows: int
    forward: int  # FLOPs of the forward pass of one window
    linear: tuple[Product, ...]
    attention: tuple[Product, ...]
    parameters: int

    @property
    def flops(self) -> int:
        """FLOPs, two per multiply-add."""
        return sum(2 * c * m * n * k for c, m, n, k in (*self.linear, *self.attention))

    @property
    def optimiser_bytes(self) -> int:
        """Adam reads weight, gradient and two moments in float32, and writes three of them."""
        return 7 * 4 * self.parameters

    def ideal(self, rates: Rates, *, validation: bool = False) -> float:
        """Windows per second of only the products, at the best rate, and the optimiser.

        With `validation`, a third of a window is evaluated for each training window.
        """
        products = self.flops + self.windows * self.forward / 3 * validation
        took = products / rates.product + self.optimiser_bytes / rates.bandwidth
        return self.windows / took


def step_of(case: Case) -> Step:
    """The products of a step of `case`, as its layers see them."""
    model = case.build().train()
    size = case.recipe.batch_size
    batch = case.splits.train.batch(torch.arange(size))
    linear: list[Product] = []
    attention: list[Product] = []

    def at_linear(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        x = args[0]
        rows, k, n = x.numel() // x.shape[-1], x.shape[-1], y.shape[-1]
        linear.append((1, rows, n, k))  # the output
        linear.append((1, n, k, rows))  # the gradient of the weights
        if x.requires_grad:
            linear.append((1, rows, k, n))

    def at_core(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        q, k, _ = args
        count, queries, keys, size = q.shape[0] * q.shape[1], q.shape[2], k.shape[2], q.shape[3]
        forward = [(count, queries, keys, size), (count, queries, size, keys)]
        # Backward: dA and dV of O = A V, dq and dk of q k^T.
        backward = [forward[0], (count, keys, size, queries)]
        backward += [forward[1], (count, keys, size, queries)]
        attention.extend(forward + backward)

    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            hook: Callable[..., None] | None = None
            hook = at_linear if isinstance(module, Linear) else hook
            hook = at_core if isinstance(module, AttentionCore) else hook
            if hook is not None:
                hooks.callback(module.register_forward_hook(hook).remove)
        TASK.forward(model, batch)
    forward = costs.flops(model, TASK, TASK.example(model.shape))
    return Step(size, forward, tuple(linear), tuple(attention), costs.parameters(model))


def bare(step: Step, library: str, *, attention: bool, repeats: int) -> Contestant:
    """Computes only the products of `repeats` steps; a lap returns the windows of these steps.

    Each product has its own contiguous operands, so that the cost of other layouts counts for the
    step only.
    """
    work = list(_linear(step, library))
    if attention:
        work += list(_batched(step))

    def lap() -> float:
        for _ in range(repeats):
            for product, operands in work:
                product(*operands)
        return float(repeats * step.windows)

    return lap


def _linear(step: Step, library: str) -> Iterator[tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    for _, m, n, k in step.linear:
        if library == "oneDNN":
            yield onednn, (torch.randn(m, k), torch.randn(n, k))
        else:
            yield torch.mm, (torch.randn(m, k), torch.randn(k, n))


def _batched(step: Step) -> Iterator[tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    for count, m, n, k in step.attention:
        yield torch.bmm, (torch.randn(count, m, k), torch.randn(count, k, n))
