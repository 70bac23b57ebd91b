"""What a job needs from the machine: threads, memory, and whether it uses a GPU."""

from __future__ import annotations

import os
from pathlib import Path

from spat.models.registry import MODELS
from spat.training.options import Device

# An interpreter with torch and pandas, and the activations of a narrow series.
BASE_MB = 1500
# An allowance: what the widest model (the published PatchTST, width 512, two layers) keeps for the
# backward pass of 16 windows, about 25 activations of 12 patches a layer.
MB_PER_CHANNEL = 20
# The linear and naive models keep little but the data.
MB_PER_CHANNEL_LIGHT = 2
# Models without attention that train for minutes.
HEAVY = frozenset({"TSMixer", "TiDE"})

# Each card that the NVIDIA driver sees has a folder here; asking torch would take seconds.
CARDS = Path("/proc/driver/nvidia/gpus")


# What CUDA reads when it starts: matrix products that are deterministic, and as many queues in
# hardware as torch has streams (by default 8, and streams that share one wait for each other).
CUDA_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "CUDA_DEVICE_MAX_CONNECTIONS": "32"}


def prepare_cuda() -> None:
    """Set the environment that CUDA needs, unless the user has; nothing is imported or started."""
    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def is_light(model: str) -> bool:
    """Whether a model is linear or naive: it trains in seconds on one core."""
    return MODELS[model].role != "attention" and model not in HEAVY


def gpus(device: Device, model: str, *, on_cluster: bool = False, cards: Path = CARDS) -> int:
    """1 if a job will compute on a GPU, else 0 (and then the job does not wait for one).

    With the device `auto`, jobs of a cluster get a GPU unless their model is linear or naive. On a
    single machine they get one if the machine has one.
    """
    if device == "auto":
        if on_cluster:
            return int(not is_light(model))
        return int(cards.is_dir() and any(cards.iterdir()))
    return int(device == "cuda")


def group(model: str) -> str:
    """The group of Snakemake that the jobs of a run belong to: one job of a cluster.

    A profile puts several runs of the group `light` into one job (`group-components`).
    """
    return "light" if is_light(model) else "run"


def prune_threads(cores: int | None, runs: int) -> int:
    """Threads of a `prune` job, one a mask: the cores that the runs themselves do not fill.

    `cores` is None where Snakemake was given none (a dry run, a cluster).
    """
    return max(1, (cores or 1) // max(1, runs))


def memory_mb(channels: int, model: str | None = None) -> int:
    """Memory that a cluster should grant a job on data of so many channels, in MB."""
    light = model is not None and is_light(model)
    return BASE_MB + (MB_PER_CHANNEL_LIGHT if light else MB_PER_CHANNEL) * channels
