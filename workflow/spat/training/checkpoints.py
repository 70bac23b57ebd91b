"""The state of a training run, replaced atomically at the end of every epoch.

It holds all that the next epoch depends on (weights, optimiser, the generators of data order and
dropout, the best weights so far, patience), so that a resumed run ends bit for bit where an
undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    generators: Mapping[str, torch.Generator],
) -> None:
    """Replace the state file.

    Raises:
        OSError: naming the file, when it cannot be written (a full disk); the old state survives.
    """
    state = {
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generators": {name: drawn.get_state() for name, drawn in generators.items()},
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
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
) -> Progress:
    """Load a state into model, optimiser and generators; a fresh `Progress` if there is none."""
    if not path.exists():
        return Progress()
    device = next(model.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name].cpu())
    known = {f.name for f in fields(Progress)}
    return Progress(**{key: value for key, value in state["progress"].items() if key in known})
