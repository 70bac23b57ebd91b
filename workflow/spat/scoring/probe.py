"""The probe: one forward and one backward pass, from which every criterion is computed.

Let A [queries, keys] be the attention of a head in one window, O = A V, M a mask of ones on A, and
L the loss of the window. The sensitivity is

    S = dL/dM at M = 1 = A * (dL/dO V^T).

Hooks record the tensors at each site. Nothing is inserted into the forward pass, and parameters
receive no gradient.

`spat.attention.tracing` reads the same tensors from the autograd graph of any model. Models that
declare their sites use hooks for two reasons. Some sites, such as scans and attention over
frequencies, have no softmax in the graph. And hooks are faster: with the graph, SEND takes 2.0
times the CPU time on iTransformer and 1.5 times on PatchTST (width 128, 256 windows, one core). A
test checks that both agree to 1e-12.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from spat.attention.modes import evaluating
from spat.attention.site import Site
from spat.attention.views import (
    Heads,
    Joined,
    MixingCore,
    Output,
    QueryKey,
    Residual,
    SharedMask,
    Source,
    Trace,
    Weighted,
)
from spat.scoring.criterion import Function

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The number of windows that share one mask in `send_shared`, for any batch size.
GROUP: Final = 32

# model, batch -> the loss of each window (of each case), float64 [B].
Losses: TypeAlias = Callable[[Any, Any], Tensor]
# A batch -> the traces of all sites, in forward order.
Observe: TypeAlias = Callable[[Any], Sequence[Trace]]


class Cases(Protocol):
    """The interface of the data that the probe needs."""

    def batch(self, index: Tensor) -> Any:
        """The windows (cases) with the indices `index`, int64 [B], in this order."""


class Shared(NamedTuple):
    """A function of a mask that `size` windows share, with S computed in `dtype`."""

    function: Function
    size: int
    dtype: torch.dtype


class SiteMeans(NamedTuple):
    """Means over windows at one site: row 0 over all windows, row 1 + b over batch b."""

    site: int  # index in forward order
    name: str
    by_head: bool
    means: dict[str, Tensor]


class SiteScores(NamedTuple):
    """The scores of one site by one criterion; a high score means keep.

    `value` is [1 + batches, 1], or [1 + batches, 1 + heads] if heads are scored. The first row is
    the score over all windows, which sites are ranked by; the first column is the whole site.
    """

    site: int  # index in forward order
    name: str
    criterion: str
    value: NDArray[np.float64]

    @classmethod
    def of(cls, site: SiteMeans, criterion: str, value: Tensor) -> SiteScores:
        """The finished means of a site, without columns for heads that cannot be removed."""
        columns = slice(None) if site.by_head else slice(0, 1)
        return cls(site.site, site.name, criterion, value[:, columns].cpu().numpy())


@torch.no_grad()
def window_means(
    observe: Observe,
    cases: Cases,
    batches: Sequence[Tensor],
    functions: Mapping[str, Callable[[Trace], Tensor | None]],
    shared: Mapping[str, Shared] = MappingProxyType({}),
    *,
    batch_size: int,
) -> list[SiteMeans]:
    """Average functions of each site over the windows of all batches, int64 [B] each.

    `functions` map a trace to [W, ...], or to None if they do not apply to the site. The functions
    in `shared` map the mask of a group to [1, ...], the value of each window of the group; they
    apply to sites with the view `Mixing`. The batches only label the windows: the passes do not
    depend on their size, so the means over all windows are bit-identical for any batches. A pass
    has at most `batch_size` windows, so that a model that could be trained can be scored. Memory
    does not grow with the number of batches, except for the means themselves.

    Raises:
        ValueError: if there are no batches, or a batch has no windows.
    """
    index = _joined_batches(batches)
    counts = torch.tensor([len(index), *map(len, batches)])
    labels = torch.arange(1, len(counts)).repeat_interleave(counts[1:])
    means: dict[int, SiteMeans] = {}
    masks: dict[tuple[int, torch.dtype], dict[int, SharedMask]] = {
        (one.size, one.dtype): {} for one in shared.values()
    }

    def add(at: Trace | SharedMask, name: str, values: Tensor, label: Tensor) -> None:
        sums = means[at.index].means
        values = values.double()
        if name not in sums:
            sums[name] = values.new_zeros(len(counts), *values.shape[1:])
        sums[name][0] += values.sum(0)
        sums[name].index_add_(0, label.to(values.device), values)

    sizes = {GROUP, batch_size, *(size for size, _ in masks)}
    stops = {stop for size in sizes for stop in range(0, len(index), size)} | {len(index)}
    for start, stop in pairwise(sorted(stops)):
        for whole in observe(cases.batch(index[start:stop])):
            means.setdefault(whole.index, SiteMeans(whole.index, whole.name, whole.by_head, {}))
            first = start
            for trace in whole.parts():
                label = labels[first : first + trace.windows]
                first += trace.windows
                for name, function in functions.items():
                    if (values := function(trace)) is not None:
                        add(trace, name, values, label)
                for (size, dtype), of in masks.items() if trace.source is not None else ():
                    group = min(size, len(index) - start // size * size)
                    of[trace.index] = _together(of.get(trace.index), trace, group, dtype)
        for (size, dtype), of in masks.items():
            if stop % size and stop < len(index):
                continue
            label = labels[start // size * size : stop]
            for mask in of.values():
                for name, one in shared.items():
                    if (one.size, one.dtype) == (size, dtype):
                        values = one.function(mask)
                        add(mask, name, values.expand(len(label), *values.shape[1:]), label)
            of.clear()
    for site in means.values():
        for name, sums in site.means.items():
            site.means[name] = sums / counts.to(sums).view(-1, *[1] * (sums.ndim - 1))
    return list(means.values())


def observe(
    model: nn.Module, batch: Any, losses: Losses, sites: Sequence[Site] | None = None
) -> list[Trace]:
    """One trace for each site that was not removed, in forward order.

    The model is in eval() during the pass (dropout and batch statistics would couple windows), and
    its modes are restored. `sites` are by default those of the model.

    Raises:
        TypeError: if `sites` is None and the model has no method `sites()`.
        ValueError: if the forward pass does not call a listed site.
    """
    noted = [
        _Noted(index, site, site.modules)
        for index, site in enumerate(sites_of(model, sites))
        if site.modules
    ]
    if not noted:
        return []
    with contextlib.ExitStack() as stack, torch.enable_grad():
        stack.enter_context(evaluating(model))
        for one in noted:
            one.watch(stack)
        # Windows are independent in eval(): the gradient of the sum is that of each one's loss.
        each = losses(model, batch)
        total = each.sum()
    targets: list[Tensor] = []
    for one in noted:
        if not one.y or not one.after:
            raise ValueError(f"site {one.site.name!r}: the forward pass did not call it")
        targets += one.targets()
    gradients = torch.autograd.grad(total, targets, materialize_grads=True)
    remaining = iter(gradients)
    return [one.trace(remaining, len(each), model) for one in noted]


@torch.no_grad()
def loss_drops(
    model: nn.Module,
    cases: Cases,
    batches: Sequence[Tensor],
    losses: Losses,
    sites: Sequence[Site] | None = None,
) -> NDArray[np.float64]:
    """Each window's loss without a site minus its loss with it, [sites, windows].

    Leave-one-out ablation, as for heads in Michel et al. 2019 (arXiv 1905.10650), section 3: the
    output of the site, with its bias, is set to zero. 0 for a site that was removed before.

    Raises:
        TypeError: if `sites` is None and the model has no method `sites()`.
        ValueError: if there are no windows.
    """
    sites = sites_of(model, sites)
    parts = []
    with evaluating(model):
        for index in torch.split(_joined_batches(batches), GROUP):
            batch = cases.batch(index)
            whole = losses(model, batch)
            without = [whole, *(_losses_without(model, site, batch, losses) for site in sites)]
            parts.append(torch.stack(without)[1:] - whole)
    drops: NDArray[np.float64] = torch.cat(parts, dim=1).cpu().numpy()
    return drops


def attention_maps(
    model: nn.Module,
    cases: Cases,
    batches: Sequence[Tensor],
    losses: Losses,
    *,
    batch_size: int,
) -> dict[str, NDArray[np.float64]]:
    """Mean attention of each site over windows (and independent channels), [heads, Q, K].

    Sites without the view `Mixing` have no map.
    """
    shown = [torch.cat(list(batches))]
    means = window_means(
        lambda batch: [t for t in observe(model, batch, losses) if t.source is not None],
        cases,
        shown,
        {"A": lambda trace: trace.mixing.A.mean(1)},
        batch_size=batch_size,
    )
    return {site.name: site.means["A"][0].cpu().numpy() for site in means}


def sites_of(model: nn.Module, sites: Sequence[Site] | None = None) -> Sequence[Site]:
    """`sites` if they are not None, otherwise the sites of the model.

    Raises:
        TypeError: if `sites` is None and the model has no method `sites()`.
    """
    if sites is not None:
        return sites
    if not hasattr(model, "sites"):
        raise TypeError(
            f"{type(model).__name__} has no method `sites()`: give the sites to score as `sites=`"
        )
    own_sites: tuple[Site, ...] = model.sites()  # type: ignore[operator]
    return own_sites


def _joined_batches(batches: Sequence[Tensor]) -> Tensor:
    if not batches or not all(map(len, batches)):
        raise ValueError("scoring: give at least one batch, and none without windows")
    return torch.cat(list(batches))


def _together(mask: SharedMask | None, trace: Trace, group: int, dtype: torch.dtype) -> SharedMask:
    """The mask of a group of `group` windows after the windows of a trace were added."""
    assert trace.source is not None
    mixing = trace.mixing if dtype == torch.float64 else trace.source.mixing(dtype)
    S = mixing.S.sum(0, keepdim=True) / group
    allowed = mixing.allowed
    if allowed.ndim > 2:
        allowed = allowed.any(0, keepdim=True)
        allowed = allowed | mask.allowed if mask else allowed
    return SharedMask(trace.index, trace.name, S + mask.S if mask else S, allowed)


def _losses_without(model: nn.Module, site: Site, batch: Any, losses: Losses) -> Tensor:
    with contextlib.ExitStack() as hooks:
        for module in site.modules:
            hooks.enter_context(module.register_forward_hook(_nothing))
        return losses(model, batch)


def _nothing(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
    return torch.zeros_like(y)


class _Projected(NamedTuple):
    """A call of a core with q, k and v."""

    q: Tensor
    k: Tensor
    v: Tensor
    O: Tensor  # noqa: E741
    core: Any


class _Mixed(NamedTuple):
    """A call of a `MixingCore`."""

    weights: Tensor
    allowed: Tensor
    O: Tensor  # noqa: E741
    core: MixingCore


@dataclass
class _Noted:
    """The tensors that hooks record at one site, one entry per call, and the resulting trace."""

    index: int
    site: Site
    modules: tuple[nn.Module, ...]
    cores: list[_Projected | _Mixed] = field(default_factory=list)
    x: list[Tensor] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)

    def watch(self, stack: contextlib.ExitStack) -> None:
        """Add hooks, which the stack removes. The output is that of the last module."""
        for module in self.modules:
            core = getattr(module, "core", None)
            if isinstance(core, MixingCore):
                stack.enter_context(core.register_forward_pre_hook(_differentiable))
                stack.enter_context(core.register_forward_hook(self._at_mixing))
            elif core is not None:
                stack.enter_context(core.register_forward_hook(self._at_core))
        stack.enter_context(self.modules[-1].register_forward_hook(self._at_module))
        for owner in self.site.owners:
            stack.enter_context(owner.register_forward_hook(self._at_owner))

    def targets(self) -> list[Tensor]:
        """The tensors whose gradients `trace` needs, in this order."""
        maps = []
        for call in self.cores:
            if isinstance(call, _Mixed):
                maps.append(call.weights)
            maps.append(call.O)
        return [*maps, *self.y]

    def trace(self, gradients: Iterator[Tensor], windows: int, model: nn.Module) -> Trace:
        """The views of the site, computed from the gradients of its targets."""

        def fold(t: Tensor) -> Tensor:
            # [W * R, ...] -> [W, R, ...]: the sequences of a window are consecutive.
            return t.detach().reshape(windows, -1, *t.shape[1:])

        def rows(tensors: list[Tensor]) -> Tensor:
            folded = [fold(t) for t in tensors]
            return folded[0] if len(folded) == 1 else torch.cat(folded, dim=-2)

        sources: list[Source] = []
        slopes: list[Tensor] = []
        for call in self.cores:
            if isinstance(call, _Mixed):
                allowed = fold(call.allowed) if call.allowed.ndim > 2 else call.allowed
                sources.append(Weighted(fold(call.weights), fold(next(gradients)), allowed))
                slopes.append(next(gradients))
            else:
                slopes.append(next(gradients))
                q, k, v = (fold(t) for t in (call.q, call.k, call.v))
                sources.append(QueryKey(q, k, v, fold(slopes[-1]), call.core))
        dy = rows([next(gradients) for _ in self.y])
        output = Output(rows(self.x), rows(self.y), dy)
        if self.site.added_to != "nothing":
            x, y = output.x, output.y
            if model in self.site.owners:  # no layer around the site
                before, after = x, x + y
            else:
                before, after = rows(self.before), rows(self.after)
            stream = before if self.site.added_to == "layer" else x
            output = Residual(x, y, dy, stream, stream + y, before, after)
        heads, several = None, len(self.modules) > 1
        last: Any = self.modules[-1]
        if self.cores and hasattr(last, "head_weights"):
            W_o, W_v = last.head_weights()
            # If there are several modules, the heads are those of the last one, as is the output.
            of_last = [
                (_by_head(call.O), _by_head(slope))
                for call, slope in zip(self.cores, slopes, strict=True)
                if not several or call.core is last.core
            ]
            O, dO = (rows(list(tensors)) for tensors in zip(*of_last, strict=True))  # noqa: E741
            heads = Heads(O, dO, W_o, W_v)
        alike = bool(self.cores) and all(isinstance(call, _Projected) for call in self.cores)
        return Trace(
            self.index,
            self.site.name,
            output,
            heads,
            sources[0] if len(sources) == 1 else Joined(tuple(sources)) if sources else None,
            by_head=self.site.heads > 1 or (alike and not several),
            several=several,
            partial=any(getattr(call.core, "partial", False) for call in self.cores),
        )

    def _at_core(self, core: nn.Module, args: tuple[Tensor, ...], O: Tensor) -> None:  # noqa: E741
        q, k, v = args
        # In a frozen model gradients start at the output of the attention.
        self.cores.append(_Projected(q, k, v, _started(O), core))

    def _at_mixing(self, core: nn.Module, args: tuple[Tensor, ...], O: Tensor) -> None:  # noqa: E741
        assert isinstance(core, MixingCore)
        self.cores.append(_Mixed(args[0], core.allowed(args[0]), O, core))

    def _at_module(self, _module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        self.x.append(args[0])
        self.y.append(_started(y))

    def _at_owner(self, _module: nn.Module, args: tuple[Tensor, ...], after: Any) -> None:
        self.before.append(args[0])
        # A decoder layer may also return a prediction.
        self.after.append(after[0] if isinstance(after, tuple) else after)


def _by_head(O: Tensor) -> Tensor:  # noqa: E741
    return O.unsqueeze(1) if O.ndim == 3 else O


def _started(t: Tensor) -> Tensor:
    return t if t.requires_grad else t.requires_grad_()


def _differentiable(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
    _started(args[0])
