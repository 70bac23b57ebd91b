"""The time of a training step by groups of operators."""

from __future__ import annotations

import time

import torch
from cases import TASK, Case
from torch.profiler import ProfilerActivity, profile

from spat.training.optimisation import adam
from spat.training.step import training_step

# Groups of operators. An operator belongs to the first group of which its name contains a part.
GROUPS = {
    "products of linear layers": ("_linear_pointwise", "aten::addmm", "aten::mm"),
    "products of attention": ("aten::bmm", "aten::baddbmm"),
    "random numbers of dropout": ("random_", "bernoulli"),
    "optimiser": ("_fused_adam_",),
    "norms, softmax, GELU": ("norm", "softmax", "gelu", "var", "std"),
    "gather of the batch": ("aten::index",),
    "copies and new tensors": ("copy_", "clone", "empty", "fill_", "zero", "cat", "contiguous"),
    "element-wise": ("add", "mul", "div", "sub", "ge_", "sum", "mean", "sqrt", "mse", "pow", "neg"),
}


def breakdown(case: Case, batches: int) -> dict[str, float]:
    """The share of each group in the time of training steps, by torch's profiler.

    `outside of operators` is Python, autograd and the dispatcher, and what the profiler itself
    costs.
    """
    model, train = case.build().train(), case.splits.train
    optimiser = adam(model, case.recipe.learning_rate)
    index = torch.arange(case.recipe.batch_size)
    with training_step(model, TASK, train, optimiser, torch.Generator()) as step:
        step(index)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            begun = time.perf_counter()  # the profiler also measures wall-clock time
            for _ in range(batches):
                step(index)
            took = time.perf_counter() - begun
    shares = dict.fromkeys([*GROUPS, "other operators"], 0.0)
    for event in profiler.key_averages():
        if event.key.startswith(("aten::", "mkldnn::", "mkl::")):
            shares[_group(event.key)] += event.self_cpu_time_total / 1e6 / took
    shares["outside of operators"] = 1.0 - sum(shares.values())
    return {name: round(share, 3) for name, share in shares.items()}


def _group(operator: str) -> str:
    for group, parts in GROUPS.items():
        if any(part in operator for part in parts):
            return group
    return "other operators"
