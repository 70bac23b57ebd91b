"""Small settings of every model, with several layers, so that sites differ."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from spat.attention.mask import Mask, all_site_masks
from spat.data import series, synthetic
from spat.data.registry import DATASETS
from spat.data.windows import Splits, split
from spat.models.base import Network
from spat.models.registry import MODELS, Settings, Shape
from spat.surgery import cut
from spat.tasks.forecasting import Batch, Forecasting
from spat.tasks.task import Task, case_losses
from spat.training.device import costs

Model = TypeVar("Model", bound=nn.Module)

SHAPE = Shape(lookback=24, horizon=12, channels=5, marks=4)

# Values of settings by name, for every model that has the setting.
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
    "d_keys": 4,
    "projector_width": 8,
    "projector_layers": 2,
    "factor": 1,
    "modes": 4,
    "segment": 4,
    "routers": 3,
    "moving_average": 5,
    "season": 6,
    "period": 4,
    "base_period": 6,
    "order": 1,
    "step_width": 3,
    "marks_width": 3,
    "n1": 16,
    "n2": 8,
    "d_state": 4,
    "d_conv": 2,
    "expand": 1,
    "channel_independent": True,
    "revin": True,
    "llm_layers": 2,
    "llm_width": 16,
    "llm_heads": 4,
    "vocabulary": 60,
    "prototypes": 10,
    "prompt_tokens": 20,
    "description": "A generated series.",
    "time_features": False,
    "instance_norm": True,
}
# The size of a head of the reprogramming attention, so that all heads have as many parameters.
OTHER_SIZES: dict[str, dict[str, Any]] = {"Time-LLM-random": {"d_ff": 4}}


# Models with published weights, which the tests do not have and which fix the sizes. The models
# `random` have the same classes.
PRETRAINED = frozenset(name for name in MODELS if name.endswith(("-gpt2", "-smollm2")))


def skip_without_weights(name: str) -> None:
    """Skip the test of a model that needs the published weights of a language model."""
    if name in PRETRAINED:
        twin = name.rpartition("-")[0] + "-random"
        pytest.skip(f"{name} needs published weights: {twin} is tested instead")


def sized(name: str, **changes: Any) -> Settings:
    """Small settings of a model, with those of the changes that are settings of it."""
    skip_without_weights(name)
    kind = MODELS[name].settings
    names = [field.name for field in fields(kind)]
    sizes = SIZES | OTHER_SIZES.get(name, {})
    small = kind(**{key: sizes[key] for key in names if key in sizes})
    return replace(small, **{key: value for key, value in changes.items() if key in names})


# Operations on a model through its task.
TASK = Forecasting()
LOSSES = case_losses(TASK)


def example(model: Any, size: int = 1) -> Batch:
    """Random windows of a model's shape, precision and device."""
    like = next(model.parameters(), torch.empty(0))
    return TASK.example(model.shape, size, like.device, like.dtype)


def inputs(shape: Shape = SHAPE, windows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Random x and marks of a forecaster."""
    return (
        torch.randn(windows, shape.lookback, shape.channels),
        torch.rand(windows, shape.lookback, shape.marks) - 0.5,
        torch.rand(windows, shape.horizon, shape.marks) - 0.5,
    )


def inputs_of(model: Any, size: int = 1) -> tuple[Any, ...]:
    """The arguments of a model: random x and marks."""
    batch = example(model, size)
    return batch.x, batch.past_marks, batch.future_marks


def prune(model: Any, mask: Mask) -> cut.Surgery:
    """`cut.prune`, with random windows to find unused parts."""
    return cut.prune(model, mask, lambda: TASK.forward(model, example(model)))


def flops_of(model: Any) -> int:
    """FLOPs of one window."""
    return costs.flops(model, TASK, example(model))


def latency_of(
    models: Mapping[str, nn.Module], size: int, repeats: int, device: str
) -> dict[str, costs.Timing]:
    """The time of a forward pass of `size` windows of the models' common shape."""
    batch = TASK.example(next(iter(models.values())).shape, size, device)
    return costs.latency(models, TASK, batch, repeats, device)


def memory_of(model: Any, size: int, device: str) -> float:
    """Peak memory of `size` windows, in megabytes."""
    return costs.peak_memory(model, TASK, TASK.example(model.shape, size, device), device)


def perturbed(make: Callable[[], Model], seed: int = 0) -> Model:
    """A model in `eval()` in which no bias, gain or running statistic has its neutral value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data.add_(0.2 * torch.rand_like(tensor))
    return model.eval()


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a weighted sum of `y`, whose weights differ."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad((y * weights).sum(), inputs)


def generated_splits(rows: int, shape: Shape = SHAPE) -> Splits:
    """The windows of a generated series of that many rows."""
    content = synthetic.generate(rows, shape.channels, seed=3, coupling=0.5, noise=0.2)
    prepared = series.prepare(DATASETS["synthetic"], content, "test")
    return split(prepared, shape.lookback, shape.horizon)


def assert_pruned_equals_silenced(model: Network, task: Task, batch: Any) -> None:
    """For every mask, the output without sites equals that with outputs of sites set to zero."""

    def called(network: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return task.forward(network, batch)

    for mask in all_site_masks(cut.heads_of(model)):
        pruned = copy.deepcopy(model)
        cut.prune(pruned, mask, lambda pruned=pruned: task.forward(pruned, batch))  # type: ignore[misc]
        hooks = [
            site.attention.register_forward_hook(lambda *call: torch.zeros_like(call[2]))  # type: ignore[union-attr]
            for i, site in enumerate(model.sites())
            if i in mask.sites_removed
        ]
        torch.testing.assert_close(called(pruned), called(model))
        for hook in hooks:
            hook.remove()
