"""The state of a training run, replaced atomically at the end of an epoch.

It holds all that the next epoch depends on (weights, optimiser, the generators of data order and
dropout, the best weights so far, patience), so that a resumed run ends bit for bit where an
undisturbed one does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spat.files import replacing


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

    def add(self, row: dict[str, float], model: nn.Module) -> None:
        """An epoch is over: with its errors, and the weights that it left in `model`."""
        self.epoch += 1
        self.history.append(row)
        if not (math.isfinite(row["train_mse"]) and math.isfinite(row["val_mse"])):
            self.status = "diverged"
        elif row["val_mse"] < self.best_mse:
            self.best_mse, self.best_epoch = row["val_mse"], self.epoch
            self.best_weights = {k: v.clone() for k, v in model.state_dict().items()}
            self.waited = 0
        else:
            self.waited += 1


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
        "device": next(model.parameters()).device.type,
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
    """Load a state into model, optimiser and generators; a fresh `Progress` if there is none.

    The random numbers of one kind of device do not go on on another: training then starts anew.
    """
    if not path.exists():
        return Progress()
    device = next(model.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True)
    if state["device"] != device.type:
        print(
            f"{path}: begun on {state['device']}, which cannot be gone on with on {device.type}: "
            "starting anew",
            file=sys.stderr,
        )
        return Progress()
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name].cpu())
    known = {f.name for f in fields(Progress)}
    return Progress(**{key: value for key, value in state["progress"].items() if key in known})
