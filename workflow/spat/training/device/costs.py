"""Costs of a network: parameters, FLOPs, latency and peak memory.

Every measurement is a forward pass of a batch in `eval()`, by default of random cases
(`Task.example`). The mode and the gradients of the model are not changed.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from spat.attention.modes import evaluating
from spat.tasks.task import Batch, Task

# The first passes select kernels and fill caches.
WARM_UP: Final = 3
# The relative spread of a latency up to which it is accepted: an idle machine has a few percent.
WIDE: Final = 0.1
ATTEMPTS: Final = 4
MEGABYTE = 1e6

Mode = TypeVar("Mode", bound=TorchDispatchMode)


def parameters(model: nn.Module) -> int:
    """The number of parameters (not of tensors)."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, task: Task, batch: Batch) -> int:
    """FLOPs of a batch: two per multiply-add of matrix products and convolutions.

    They are counted by operator during the forward pass.
    """
    counter = _Flops()
    with evaluating(model), torch.no_grad(), counter:
        task.forward(model, batch)
    return counter.total


class Timing(NamedTuple):
    """The duration of a forward pass in milliseconds.

    Attributes:
        milliseconds: The lower quartile over passes, since other processes only slow passes down.
        spread: The interquartile range over passes; NaN for a single pass.
    """

    milliseconds: float
    spread: float

    @property
    def is_wide(self) -> bool:
        """Whether the spread shows that the machine was not idle, or is unknown."""
        return not self.spread <= WIDE * self.milliseconds


def latency(
    models: Mapping[str, nn.Module],
    task: Task,
    batch: Batch,
    repeats: int,
    device: str | torch.device,
) -> dict[str, Timing]:
    """The duration of a forward pass of a batch on `device`, for each model.

    All models are moved to `device` and run alternately, in an order that shifts by one each round,
    so that a drift of the machine's speed affects all models. Each pass is timed to its end.
    `repeats` rounds are measured. If the spread of a model is wide, they are measured again, at
    most `ATTEMPTS` times; the result is the attempt with the smallest sum of relative spreads. A
    single round has no spread and is not measured again.
    """
    device = torch.device(device)
    best: dict[str, Timing] = {}
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model.to(device)))
        stack.enter_context(_current(device))
        stack.enter_context(torch.inference_mode())
        _rounds(models, task, batch, WARM_UP, device)
        for _ in range(ATTEMPTS):
            timed = _rounds(models, task, batch, repeats, device)
            if not best or _unrest(timed) < _unrest(best):
                best = timed
            if repeats < 2 or not any(timing.is_wide for timing in best.values()):
                break
    return best


def _rounds(
    models: Mapping[str, nn.Module], task: Task, batch: Batch, count: int, device: torch.device
) -> dict[str, Timing]:
    times: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for turn in range(count):
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            times[name].append(_milliseconds(models[name], task, batch, device))
    return {name: _timing(measured) for name, measured in times.items()}


def _timing(times: Sequence[float]) -> Timing:
    if len(times) < 2:
        return Timing(times[0], math.nan)
    low, _, high = quantiles(times, n=4, method="inclusive")
    return Timing(low, high - low)


def _unrest(timings: Mapping[str, Timing]) -> float:
    return sum(timing.spread / timing.milliseconds for timing in timings.values())


def peak_memory(model: nn.Module, task: Task, batch: Batch, device: str | torch.device) -> float:
    """Peak memory of one forward pass without gradients, in megabytes (10^6 bytes).

    It includes the model's weights and buffers, and the inputs and activations that exist at the
    same time. On CUDA it is the peak of the allocator, with its rounding and the scratch memory of
    kernels, after a first pass in which libraries allocate their permanent memory. On the CPU it is
    the largest sum of the tensor storages that are alive after an operator; scratch memory within
    an operator is not included. The model is moved to `device`.
    """
    device = torch.device(device)
    model.to(device)
    measure = _cuda_peak if device.type == "cuda" else _cpu_peak
    with evaluating(model), torch.no_grad(), _current(device):
        return measure(model, task, batch) / MEGABYTE


def _plain(mode: type[Mode]) -> type[Mode]:
    """The mode without the wrapper that torch puts around `__torch_dispatch__` for `torch.compile`.

    The wrapper imports the compiler, which takes over a second of each job; so do torch's
    `FlopCounterMode` and operators on tensors without storage (`meta`).
    """
    mode.__torch_dispatch__ = inspect.unwrap(mode.__torch_dispatch__)  # type: ignore[method-assign]
    return mode


@_plain
class _Flops(TorchDispatchMode):
    """Sums the FLOPs of all operators by the formulas of torch's `FlopCounterMode`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = FlopCounterMode(display=False).flop_registry
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if formula := self._formulas.get(func.overloadpacket):
            self.total += int(formula(*args, **kwargs, out_val=output))
        return output


# Fused attention, whose products torch's formulas leave out; arguments are shapes, not tensors.
@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention_flops(q: Sequence[int], k: Sequence[int], *_: Any, **__: Any) -> int:
    return 4 * math.prod(q) * k[-2]  # q k^T and A v


@register_flop_formula(torch.ops.aten._native_multi_head_attention)
def _fast_path_flops(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    values, width, keys = math.prod(query), query[-1], math.prod(key)
    projected = 2 * width * (2 * values + 2 * keys)  # q and output, k and v
    return projected + 4 * values * key[-2]


@_plain
class _LiveStorages(TorchDispatchMode):
    """Sums the storages alive after each operator, including those of `initial`."""

    def __init__(self, initial: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak: int = 0
        self._note(initial)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self._note(output)
        return output

    def _note(self, tree: Any) -> None:
        # torch's weak reference shows whether its storage was freed.
        self._alive = {
            key: (reference, size)
            for key, (reference, size) in self._alive.items()
            if not reference.expired()  # type: ignore[no-untyped-call]
        }
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive.setdefault(reference.cdata, (reference, storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))


def _cpu_peak(model: nn.Module, task: Task, batch: Batch) -> int:
    live = _LiveStorages((list(model.parameters()), list(model.buffers()), batch))
    with live:
        task.forward(model, batch)
    return live.peak


def _cuda_peak(model: nn.Module, task: Task, batch: Batch) -> int:
    tensors = [*model.parameters(), *model.buffers(), *tree_leaves(batch)]
    storages = (t.untyped_storage() for t in tensors if isinstance(t, Tensor))
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    task.forward(model, batch)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    task.forward(model, batch)
    torch.cuda.synchronize()
    # The difference leaves out the memory of other models on the GPU.
    return int(torch.cuda.max_memory_allocated() - before) + sum(held.values())


def _milliseconds(model: nn.Module, task: Task, batch: Batch, device: torch.device) -> float:
    _await(device)
    begun = time.perf_counter()
    task.forward(model, batch)
    _await(device)
    return (time.perf_counter() - begun) * 1e3


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
