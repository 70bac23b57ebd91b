"""What a job needs from the machine: threads, memory, and whether it uses a GPU."""

from __future__ import annotations

import os
from pathlib import Path

from spat.training.options import Device

# An interpreter with torch and pandas, and the activations of a narrow series.
BASE_MB = 1500
# An allowance: what the widest model (the published PatchTST, width 512, two layers) keeps for the
# backward pass of 16 windows, about 25 activations of 12 patches a layer.
MB_PER_CHANNEL = 20

# Each card that the NVIDIA driver sees has a folder here; asking torch would take seconds.
CARDS = Path("/proc/driver/nvidia/gpus")


# What CUDA reads when it starts: matrix products that are deterministic, and as many queues in
# hardware as torch has streams (by default 8, and streams that share one wait for each other).
CUDA_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "CUDA_DEVICE_MAX_CONNECTIONS": "32"}


def prepare_cuda() -> None:
    """Set the environment that CUDA needs, unless the user has; nothing is imported or started."""
    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def gpus(device: Device, cards: Path = CARDS) -> int:
    """1 if jobs will compute on a GPU of this machine, else 0 (and then no job waits for one)."""
    if device == "auto":
        return int(cards.is_dir() and any(cards.iterdir()))
    return int(device == "cuda")


def prune_threads(cores: int | None, runs: int) -> int:
    """Threads of a `prune` job, one a mask: the cores that the runs themselves do not fill.

    `cores` is None where Snakemake was given none (a dry run, a cluster).
    """
    return max(1, (cores or 1) // max(1, runs))


def memory_mb(channels: int) -> int:
    """Memory that a cluster should grant a job on data of so many channels, in MB."""
    return BASE_MB + MB_PER_CHANNEL * channels
