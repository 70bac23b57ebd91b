"""One training step: gather, forward, backward, optimiser.

On the CPU the step runs eagerly. On CUDA the whole step is captured once in a graph and replayed,
since kernel launches limit the speed of these small models; there is no host synchronisation
between two replays. Each worker captures on its own stream, with its own random numbers, so that
several models train at the same time (see `concurrency` and `streams` in `spat.training.device`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from spat.tasks.task import Cases, Task
from spat.training.device import streams
from spat.training.device.kernels import draw_from
from spat.training.device.sublayers import fusable, fused
from spat.training.optimisation import SharpnessAware
from spat.training.options import Precision

Step = Callable[[Tensor], Tensor]

# Eager steps before the capture, in which the allocator and the optimiser allocate their memory.
WARM_UP = 3


@contextlib.contextmanager
def training_step(
    model: nn.Module,
    task: Task,
    cases: Cases,
    optimiser: torch.optim.Optimizer,
    dropout: torch.Generator,
    precision: Precision = "float32",
    sam_rho: float | None = None,
) -> Iterator[Step]:
    """Context manager: a function that trains on one batch of case indices [B].

    The function returns the sum of the losses of the cases in the batch, a scalar on the device.
    `dropout`, a generator on the device of the cases, is the source of all random numbers in the
    model. On CUDA the context has its own stream, and the step is captured, except if the attribute
    `capturable` of the model is False.
    """
    draw_from(model, dropout)
    step = _eager(model, task, cases, optimiser, precision, sam_rho)
    if cases.device.type != "cuda":
        yield step
        return
    with streams.on_own(cases.device):
        if not getattr(model, "capturable", True):
            yield step
            return
        captured = CapturedStep(step, dropout)
        try:
            yield captured
        finally:
            optimiser.zero_grad(set_to_none=True)  # gradients are in the memory of the graph
            captured.release()


def _eager(
    model: nn.Module,
    task: Task,
    cases: Cases,
    optimiser: torch.optim.Optimizer,
    precision: Precision,
    sam_rho: float | None,
) -> Step:
    computing = _forward_pass(model, cases.device.type, precision)
    sharpness = SharpnessAware(model, sam_rho) if sam_rho is not None else None

    def step(index: Tensor) -> Tensor:
        batch = cases.batch(index)

        def loss() -> Tensor:
            with computing():
                output = task.forward(model, batch)
            return task.loss(output, batch)

        optimiser.zero_grad(set_to_none=True)
        if sharpness is not None:
            value = sharpness.backward(loss)
        else:
            value = loss()
            value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return value.detach() * len(index)

    return step


def _forward_pass(
    model: nn.Module, device: str, precision: Precision
) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """A context for the forward passes of training steps.

    In float32 on the CPU, sub-layers are fused. In bfloat16 it is autocast on CUDA, and
    `bf16.products` on the CPU.

    Raises:
        RuntimeError: if the processor has no bfloat16.
    """
    if precision != "bf16":
        modules = fusable(model) if device == "cpu" else []
        return lambda: fused(modules)
    if device != "cpu":
        return lambda: torch.autocast(device, dtype=torch.bfloat16)
    # Imported only if needed, since it imports the layers of the models.
    from spat.training.device import bf16

    bf16.require_support()
    return lambda: bf16.products(model)


class CapturedStep:
    """A step captured in a CUDA graph for the batch size of the first batch.

    Batches of another size (the last one of an epoch) and the first `WARM_UP` batches run eagerly.
    Warm-up batches are training steps like the others, so no batch is trained twice.
    """

    def __init__(self, step: Step, dropout: torch.Generator) -> None:
        """The step is captured on the current stream, which no other thread may use."""
        self._step = step
        self._dropout = dropout
        self._graph: torch.cuda.CUDAGraph | None = None
        self._index: Tensor | None = None
        self._loss: Tensor | None = None
        self._seen = 0

    def __call__(self, index: Tensor) -> Tensor:
        """Case indices [B] -> the sum of their losses, a scalar."""
        if self._index is None:
            self._index = index.clone()
        if index.shape != self._index.shape or self._seen < WARM_UP:
            self._seen += 1
            return self._step(index)
        self._index.copy_(index)
        if self._graph is None:
            self._graph = self._captured(self._index)
        self._graph.replay()
        assert self._loss is not None
        return self._loss.clone()

    def release(self) -> None:
        """Free the graph and its memory after its last replay."""
        torch.cuda.current_stream().synchronize()
        with streams.between_captures():
            self._graph = self._index = self._loss = None

    def _captured(self, index: Tensor) -> torch.cuda.CUDAGraph:
        """Record the step on `index` without running it."""
        graph = torch.cuda.CUDAGraph()
        # With this, each replay draws new numbers: the same as the eager step would draw.
        graph.register_generator_state(self._dropout)
        try:
            with streams.capturing(graph):
                self._loss = self._step(index)
        except BaseException:
            # Not only when the error is freed: by then the stream may have another graph.
            with streams.between_captures():
                graph.reset()
            raise
        return graph
