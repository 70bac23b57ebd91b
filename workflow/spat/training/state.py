"""The state of a training run, replaced atomically at the end of an epoch.

It contains everything that the next epoch depends on (weights, optimiser, the generators of data
order and dropout, the best weights so far, patience), so that a resumed run ends with weights
bit-identical to those of an uninterrupted run.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import pickle
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from spat.files import replacing


@dataclass
class Progress:
    """The progress of training."""

    epoch: int = 0
    best_epoch: int = 0
    best: float = float("inf")
    waited: int = 0
    status: str = "ok"
    history: list[dict[str, float]] = field(default_factory=list)
    recorded: list[dict[str, Any]] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self, row: dict[str, float], model: nn.Module, train_loss: float, validation: float
    ) -> None:
        """Add a finished epoch.

        `row` is appended to the history, `model` has the weights after the epoch, and `validation`
        is the primary error, by which the best epoch is chosen.
        """
        self.epoch += 1
        self.history.append(row)
        if not (math.isfinite(train_loss) and math.isfinite(validation)):
            self.status = "diverged"
        elif validation < self.best:
            self.best, self.best_epoch = validation, self.epoch
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
    """Replace the state file; it starts with a checksum.

    Raises:
        OSError: naming the file, if it cannot be written (a full disk); the old state is kept.
    """
    state = {
        "device": next(model.parameters()).device.type,
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generators": {name: drawn.get_state() for name, drawn in generators.items()},
    }
    content = io.BytesIO()
    torch.save(state, content)
    try:
        with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
            file.write(_checksum(content.getbuffer()))
            file.write(content.getbuffer())
    except OSError as error:
        raise OSError(
            f"{path}: the training state cannot be written ({error}); free some space and run the "
            "same command: training continues from the last saved epoch"
        ) from error


def restore(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
) -> Progress:
    """Load a state into model, optimiser and generators; a new `Progress` if there is no state.

    If the state cannot be used (damaged, of another version, or saved on another kind of device,
    whose random numbers differ), the reason is written to stderr, all three are left unchanged, and
    training starts from the beginning.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Progress()
    device = next(model.parameters()).device
    before = _snapshot(model, optimiser, generators)
    try:
        state = _opened(content, device)
        _load(state, model, optimiser, generators)
        return Progress(**state["progress"])
    except _UNUSABLE as error:
        _load(before, model, optimiser, generators)
        reason = " ".join(str(error).split())[:200]
        print(f"{path}: {reason}. Restarting from epoch 0.", file=sys.stderr, flush=True)
        return Progress()


# The errors when damaged content, or content of another version, is loaded.
_UNUSABLE: Final = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RuntimeError, EOFError, pickle.UnpicklingError),
)


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b"\n"


def _opened(content: bytes, device: torch.device) -> dict[str, Any]:
    """The state in the content of a file.

    Raises:
        ValueError: if the content is damaged, or was saved on another kind of device.
    """
    length = len(_checksum(b""))
    payload = memoryview(content)[length:]
    if content[:length] != _checksum(payload):
        raise ValueError("the saved training state is damaged (its checksum is wrong)")
    state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    if state["device"] != device.type:
        raise ValueError(
            f"saved on {state['device']}; its random state cannot be restored on {device.type}"
        )
    return state  # type: ignore[no-any-return]


def _snapshot(
    model: nn.Module, optimiser: torch.optim.Optimizer, generators: Mapping[str, torch.Generator]
) -> dict[str, Any]:
    return {
        "model": copy.deepcopy(model.state_dict()),
        "optimiser": copy.deepcopy(optimiser.state_dict()),
        "generators": {name: drawn.get_state() for name, drawn in generators.items()},
    }


def _load(
    state: Mapping[str, Any],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
) -> None:
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name].cpu())
