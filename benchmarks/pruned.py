"""The time that pruned networks save, compared with the FLOPs that they save."""

from __future__ import annotations

import copy
from functools import partial

import torch
from alternation import Contestant, Laps, alternate, rates, seconds
from cases import TASK, Case, Size, open_case, open_series
from figure import Figure, Part, Series, Target

from spat.attention.mask import all_site_masks
from spat.models.base import Forecaster
from spat.surgery import cut
from spat.training.device import costs
from spat.training.optimisation import adam
from spat.training.step import training_step

# Passes of a lap: long enough for the timer, short enough for the sixteen masks of four sites.
PASSES = {"inference": 4, "training": 1}


def measure(size: Size) -> Part:
    """Measure every mask of whole sites, in training and inference, against the dense network."""
    part = Part()
    prepared = open_series(size)
    for model, variant in size.pruned:
        case = open_case(size, prepared, model, variant)
        networks = _networks(case)
        window = TASK.example(next(iter(networks.values())).shape)
        flops = {mask: costs.flops(network, TASK, window) for mask, network in networks.items()}
        for phase, passes in PASSES.items():
            index = torch.arange(size.pruned_batch)
            contestants = {
                mask: (_training if phase == "training" else _inference)(
                    case, network, index, passes
                )
                for mask, network in networks.items()
            }
            laps = alternate(contestants, size.rounds)
            part.figures += _figures(f"pruned/{case.name}/{phase}", laps, flops)
    return part


def _networks(case: Case) -> dict[str, Forecaster]:
    """The networks of all masks, from the dense network to the one without sites."""
    dense = case.build()
    networks = {}
    for mask in all_site_masks(cut.heads_of(dense)):
        network = copy.deepcopy(dense)
        cut.prune(network, mask, partial(TASK.forward, network, TASK.example(network.shape)))
        networks[mask.name] = network
    return networks


def _inference(case: Case, model: Forecaster, index: torch.Tensor, passes: int) -> Contestant:
    batch = case.splits.train.batch(index)

    @torch.inference_mode()
    def lap() -> float:
        model.eval()
        for _ in range(passes):
            TASK.forward(model, batch)
        return float(passes * len(index))

    return lap


def _training(case: Case, model: Forecaster, index: torch.Tensor, passes: int) -> Contestant:
    optimiser, dropout = adam(model, case.recipe.learning_rate), torch.Generator()

    def lap() -> float:
        model.train()
        with training_step(model, TASK, case.splits.train, optimiser, dropout) as step:
            for _ in range(passes):
                step(index)
        return float(passes * len(index))

    return lap


def _figures(name: str, laps: Laps, flops: dict[str, int]) -> list[Figure]:
    """The speed-up of each mask, and the share of time that the network without sites saves."""
    dense, empty = next(iter(laps)), list(laps)[-1]
    against = Series("dense", "windows/s", rates(laps[dense]))
    series = [
        Figure(
            f"{name}/{mask}",
            Series(f"mask {mask}", "windows/s", rates(lapped)),
            against,
            floor=against.median * flops[dense] / flops[mask],
            detail=True,
        )
        for mask, lapped in laps.items()
        if mask != dense
    ]
    removed = 1 - flops[empty] / flops[dense]
    pairs = zip(seconds(laps[empty]), seconds(laps[dense]), strict=True)
    saved = tuple(1 - pruned / whole for pruned, whole in pairs)
    series.append(
        Figure(
            f"{name}/all-removed",
            Series("share of time saved", "", saved),
            Series("share of FLOPs removed", "", (removed,) * len(saved)),
            Target("at least", 0.8),
            floor=removed,
        )
    )
    return series
