"""The resources of a job: threads, memory and GPUs."""

from __future__ import annotations

import os
from pathlib import Path

from spat.models.registry import MODELS
from spat.training.options import Device

# MB for an interpreter with torch and pandas, and the activations of a narrow series.
BASE_MB = 1500
# An upper estimate: the memory that the widest model (the published PatchTST, width 512, two
# layers) keeps for the backward pass of 16 windows, about 25 activations of 12 patches per layer.
MB_PER_CHANNEL = 20
# Linear and naive models need little memory besides the data.
MB_PER_CHANNEL_LIGHT = 2
# Models without attention that train for minutes.
HEAVY = frozenset({"TSMixer", "TiDE"})

# The NVIDIA driver has a folder here for each GPU; importing torch would take seconds.
CARDS = Path("/proc/driver/nvidia/gpus")


# Environment variables that CUDA reads at its start: deterministic matrix products, and as many
# hardware queues as torch has streams (by default 8; streams of one queue wait for each other).
CUDA_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "CUDA_DEVICE_MAX_CONNECTIONS": "32"}


def prepare_cuda() -> None:
    """Set environment variables for CUDA that the user has not set; imports and starts nothing."""
    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def is_light(model: str) -> bool:
    """Whether a model is linear or naive, so that it trains in seconds on one core."""
    return MODELS[model].role != "attention" and model not in HEAVY


def gpus(device: Device, model: str, *, on_cluster: bool = False, cards: Path = CARDS) -> int:
    """The number of GPUs of a job, 0 or 1; a job with 0 does not wait for a GPU.

    With the device `auto`, jobs on a cluster get a GPU unless their model is linear or naive. On a
    single machine they get a GPU if the machine has one.
    """
    if device == "auto":
        if on_cluster:
            return int(not is_light(model))
        return int(cards.is_dir() and any(cards.iterdir()))
    return int(device == "cuda")


def group(model: str) -> str:
    """The Snakemake group of the jobs of a run; a group is one job on a cluster.

    A profile puts several runs of the group `light` into one job (`group-components`).
    """
    return "light" if is_light(model) else "run"


def prune_threads(cores: int | None, runs: int, share: float = 0.0) -> int:
    """Threads of a `prune` job, one per mask: the cores that are not needed for other runs.

    `cores` is None if Snakemake has no number of cores (a dry run, a cluster). `share` is the job's
    share in the work of all `prune` jobs. A job with a large share gets as large a part of the
    cores, if this ends earlier although the job may have to wait for all others.
    """
    cores = cores or 1
    equal = max(1, cores // max(1, runs))
    more = max(equal, round(cores * share))
    return more if share / more + (1 - share) / cores < share / equal else equal


def memory_mb(channels: int, model: str | None = None) -> int:
    """Memory in MB that a job needs on data with this number of channels, for a cluster."""
    light = model is not None and is_light(model)
    return BASE_MB + (MB_PER_CHANNEL_LIGHT if light else MB_PER_CHANNEL) * channels
