"""The probe: one forward and one backward pass, from which every criterion is computed.

With A [queries, keys] the attention of a head in one window, O = A V, M a mask of ones on A, and L
the mean squared error of the window, the sensitivity is

    S = dL/dM at M = 1 = A * (dL/dO V^T).

Hooks see q, k, v and O; A is computed from q and k afterwards. Nothing is inserted into the forward
pass, the fused kernel stays, and parameters receive no gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from spat.attention.modes import evaluating
from spat.attention.site import Site
from spat.attention.views import SharedMask, SiteRecord
from spat.models.base import Forecaster

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spat.data.windows import Batch, Windows

# Windows that share one mask in `send_shared`, whatever the batches are.
GROUP: Final = 32

WindowFunction: TypeAlias = Callable[[SiteRecord], Tensor]
GroupFunction: TypeAlias = Callable[[SharedMask], Tensor]


class SiteMeans(NamedTuple):
    """Means over windows at one site: row 0 over all of them, row 1 + b over batch b."""

    site: int  # index in forward order
    name: str
    means: dict[str, Tensor]


@torch.no_grad()
def window_means(
    model: Forecaster,
    windows: Windows,
    batches: Sequence[Tensor],
    functions: Mapping[str, WindowFunction],
    shared: Mapping[str, GroupFunction] = MappingProxyType({}),
    *,
    size: int = GROUP,
) -> list[SiteMeans]:
    """Average over the windows of all batches, int64 [B] each, what functions say of each site.

    `functions` map a record to [W, ...], `shared` ones the mask of a group to [1, ...], which then
    stands for each window of the group. The batches only label the windows: the passes are the same
    whatever their size, so the means over all windows are too, to the last bit. Memory does not
    grow with the number of batches, but for the means themselves. `size` is that of `probe`.
    """
    counts = torch.tensor([sum(map(len, batches)), *map(len, batches)])
    labels = torch.arange(1, len(counts)).repeat_interleave(counts[1:])
    found: dict[int, SiteMeans] = {}

    def add(at: SiteRecord | SharedMask, name: str, values: Tensor, label: Tensor) -> None:
        sums = found.setdefault(at.index, SiteMeans(at.index, at.name, {})).means
        values = values.double()
        if name not in sums:
            sums[name] = values.new_zeros(len(counts), *values.shape[1:])
        sums[name][0] += values.sum(0)
        sums[name].index_add_(0, label.to(values.device), values)

    groups = zip(grouped(batches), torch.split(labels, GROUP), strict=True)
    for group, label in groups:
        masks: dict[int, SharedMask] = {}
        for record, rows in probe(model, windows, group, size):
            for name, function in functions.items():
                add(record, name, function(record), label[rows])
            if shared:
                masks[record.index] = _joined(masks.get(record.index), record, len(group))
        for mask in masks.values():
            for name, group_function in shared.items():
                values = group_function(mask)
                add(mask, name, values.expand(len(group), *values.shape[1:]), label)
    for site in found.values():
        for name, sums in site.means.items():
            site.means[name] = sums / counts.to(sums).view(-1, *[1] * (sums.ndim - 1))
    return list(found.values())


def probe(
    model: Forecaster, windows: Windows, index: Tensor, size: int = GROUP
) -> Iterator[tuple[SiteRecord, slice]]:
    """Records of all sites for the windows `index` [B], each with the positions it covers.

    No pass takes more than `size` windows: with the batch size of training, a model that could be
    trained can be scored.

    Raises:
        TypeError: if the model is no `Forecaster`.
    """
    _require_forecaster(model)
    for start in range(0, len(index), size):
        for whole in observe(model, windows.batch(index[start : start + size])):
            first = start
            for record in whole.parts():
                yield record, slice(first, first + record.windows)
                first += record.windows


def observe(model: Forecaster, batch: Batch) -> list[SiteRecord]:
    """One record for each site that still has its attention, in forward order.

    The model is in eval() meanwhile (dropout and batch statistics would couple windows), and is
    left as it was found.

    Raises:
        ValueError: if the forward pass does not run the attention of a listed site.
    """
    sites = [(index, s) for index, s in enumerate(model.sites()) if s.attention is not None]
    if not sites:
        return []
    seen: list[dict[str, Tensor]] = [{} for _ in sites]
    with contextlib.ExitStack() as stack, torch.enable_grad():
        stack.enter_context(evaluating(model))
        for (_, site), found in zip(sites, seen, strict=True):
            _watch(stack, site, found)
        # Windows are independent in eval(): the gradient of the sum is that of each one's loss.
        loss = window_losses(model, batch).sum()
    for (_, site), found in zip(sites, seen, strict=True):
        if "O" not in found or "after" not in found:
            raise ValueError(f"site {site.name!r}: the forward pass did not run its attention")
    outputs = [found["O"] for found in seen]
    gradients = torch.autograd.grad(loss, outputs, materialize_grads=True)
    return [
        _record(index, site, {**found, "grad": gradient}, len(batch.x))
        for (index, site), found, gradient in zip(sites, seen, gradients, strict=True)
    ]


@torch.no_grad()
def loss_drops(
    model: Forecaster, windows: Windows, batches: Sequence[Tensor]
) -> NDArray[np.float64]:
    """Each window's loss without a site minus its loss with it, [sites, windows].

    Leave-one-out ablation, as of heads in Michel et al. 2019 (arXiv 1905.10650), section 3: the
    site contributes nothing, its output bias included. 0 for a site that was removed before.

    Raises:
        TypeError: if the model is no `Forecaster`.
        ValueError: if there are no windows.
    """
    _require_forecaster(model)
    sites = model.sites()
    found = []
    with evaluating(model):
        for index in grouped(batches):
            batch = windows.batch(index)
            losses = window_losses(model, batch)
            without = [losses, *(_losses_without(model, site, batch, losses) for site in sites)]
            found.append(torch.stack(without)[1:] - losses)
    drops: NDArray[np.float64] = torch.cat(found, dim=1).cpu().numpy()
    return drops


def attention_maps(
    model: Forecaster, windows: Windows, batches: Sequence[Tensor]
) -> dict[str, NDArray[np.float64]]:
    """Mean attention of each site over windows (and independent channels), [heads, Q, K]."""
    together = [torch.cat(list(batches))]
    sites = window_means(model, windows, together, {"A": lambda record: record.A.mean(1)})
    return {site.name: site.means["A"][0].cpu().numpy() for site in sites}


def grouped(batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The windows of all batches, in groups of `GROUP`.

    Raises:
        ValueError: if there is no batch, or one without windows.
    """
    if not batches or not all(map(len, batches)):
        raise ValueError("scoring: give at least one batch, and none without windows")
    return torch.split(torch.cat(list(batches)), GROUP)


def window_losses(model: Forecaster, batch: Batch) -> Tensor:
    """Mean squared error of each window, float64 [B]."""
    error = model(batch.x, batch.past_marks, batch.future_marks) - batch.y
    return error.double().square().mean((1, 2))  # type: ignore[no-any-return]


def _require_forecaster(model: nn.Module) -> None:
    if not isinstance(model, Forecaster):
        raise TypeError(
            f"{type(model).__name__} is not a Forecaster: scoring needs its `settings` and "
            "`sites()`; derive it from spat.models.base.Forecaster"
        )


def _joined(mask: SharedMask | None, record: SiteRecord, group: int) -> SharedMask:
    S = record.S.sum(0, keepdim=True) / group
    return SharedMask(record.index, record.name, S + mask.S if mask else S, record.allowed)


def _losses_without(model: Forecaster, site: Site, batch: Batch, losses: Tensor) -> Tensor:
    if site.attention is None:
        return losses
    with site.attention.register_forward_hook(lambda _module, _args, y: torch.zeros_like(y)):
        return window_losses(model, batch)


def _watch(stack: contextlib.ExitStack, site: Site, found: dict[str, Tensor]) -> None:
    """Hooks, removed with the stack, that note what passes through a site."""

    def at_core(_module: nn.Module, args: tuple[Tensor, ...], O: Tensor) -> None:  # noqa: E741
        # In a frozen model the output of the attention is where gradients start.
        found["O"] = O if O.requires_grad else O.requires_grad_()
        found["q"], found["k"], found["v"] = args

    def at_attention(_module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        found["x"], found["y"] = args[0], y

    def at_owner(_module: nn.Module, args: tuple[Tensor, ...], after: Tensor) -> None:
        found["before"], found["after"] = args[0], after

    attention = site.attention
    assert attention is not None
    stack.enter_context(attention.core.register_forward_hook(at_core))
    stack.enter_context(attention.register_forward_hook(at_attention))
    stack.enter_context(site.owner.register_forward_hook(at_owner))


def _record(index: int, site: Site, found: dict[str, Tensor], windows: int) -> SiteRecord:
    # [W * R, ...] -> [W, R, ...]: a window's channels stand next to each other.
    tensors: dict[str, Any] = {
        name: t.detach().reshape(windows, -1, *t.shape[1:]) for name, t in found.items()
    }
    assert site.attention is not None
    return SiteRecord(index, site.name, site.attention, **tensors)
