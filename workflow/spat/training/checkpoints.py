"""The state of a training run, replaced atomically at the end of every epoch.

It holds all that the next epoch depends on (weights, optimiser, the generators of data order and
dropout, the best weights so far, patience), so that a resumed run ends bit for bit where an
undisturbed one does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spat.records import replacing


@dataclass
class Progress:
    """What has happened so far."""

    epoch: int = 0
    best_epoch: int = 0
    best_mse: float = float("inf")
    waited: int = 0
    status: str = "ok"
    history: list[dict[str, float]] = field(default_factory=list)
    recorded: list[dict[str, Any]] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def save(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    order: torch.Generator,
) -> None:
    """Replace the state file.

    Raises:
        OSError: naming the file, when it cannot be written (a full disk); the old state survives.
    """
    state = {
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "order": order.get_state(),
        "cpu_generator": torch.get_rng_state(),
        "cuda_generator": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    try:
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns ENOSPC into RuntimeError
        raise OSError(
            f"{path}: the training state cannot be written ({error}); free some space and run the "
            "same command: it goes on from the epoch before"
        ) from error


def restore(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, order: torch.Generator
) -> Progress:
    """Load a state into model, optimiser and generators; a fresh `Progress` if there is none."""
    if not path.exists():
        return Progress()
    device = next(model.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    order.set_state(state["order"].cpu())
    torch.set_rng_state(state["cpu_generator"].cpu())
    if state["cuda_generator"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_generator"].cpu())
    known = {f.name for f in fields(Progress)}
    return Progress(**{key: value for key, value in state["progress"].items() if key in known})
