"""The views of the attention of any model: what criteria are computed from, for one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spat.attention.containers import Container
from spat.attention.discovery import (
    Candidate,
    Loss,
    around,
    differentiable,
    looking,
    sequences,
    tokens_first,
    value_of,
)
from spat.attention.errors import AttentionError, NotDifferentiable, NotPerSample, TooCoarse
from spat.attention.views import Joined, Output, Residual, Trace
from spat.attention.zeroing import fixed_noise, zeroed


def traces(model: nn.Module, loss: Loss, batch: Any, units: Sequence[str] = ()) -> list[Trace]:
    """The `Trace` of each site for a batch, from which criteria are computed.

    It has the same content as `scoring.probe.observe`. A site that cannot be removed is left out if
    it has no trace, unless no site has one.

    Raises:
        NotPerSample: if the loss is not [B] for the B samples of the batch, or the tensors of a
            site cannot be split into them.
        TooCoarse: if no tensor is found in the output of a site.
        NoSites, NotDifferentiable: see `find_sites`.
    """
    with looking(model, loss, batch, units) as (each, attention, candidates):
        _check_per_sample(each, batch)
        if attention.cut:
            raise NotDifferentiable(
                f"{attention.cut[0]} has an operation without a backward pass, so that gradients "
                "are lost: score the model before it is quantised, or use criterion='loss_drop'"
            )
        hooks = [core.keep() for core in attention.cores]
        ends = [
            y
            for one in candidates
            for call in one.outputs
            if (y := call.y) is not None and y.requires_grad
        ]
        weights = [p for p in model.parameters() if p.requires_grad]
        try:
            wanted = [*ends, *weights]
            gradients = torch.autograd.grad(each.double().sum(), wanted, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        slopes = {id(y): g for y, g in zip(ends, gradients, strict=False)}
        traced: list[Trace] = []
        problem = None
        with torch.no_grad():
            for i, one in enumerate(candidates):
                try:
                    traced.append(_trace(i, one, slopes, len(each)))
                except AttentionError as error:
                    problem = problem or error
                    if one.refusal is None:
                        raise
        if problem is not None and not traced:
            raise problem
        return traced


def drops_of_batch(
    model: nn.Module, loss: Loss, batch: Any, units: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Each sample's loss without a site minus its loss with it, [B], by the name of the site.

    Raises:
        TooCoarse: if the output of a site is not a tensor or a container of tensors. If other
            sites have such outputs, and the site cannot be removed, its values are NaN instead.
        NotPerSample, NoSites, NotDifferentiable: see `traces`.
    """
    modules: dict[str, dict[str, Container | None] | None] = {}
    problem = None
    with looking(model, loss, batch, units) as (each, _, candidates):
        _check_per_sample(each, batch)
        for one in candidates:
            modules[one.name] = None
            try:
                modules[one.name] = {call.name: around(call) for call in (one.call, *one.branch)}
            except TooCoarse as error:
                problem = error
                if one.refusal is None:
                    raise
    if problem is not None and not any(modules.values()):
        raise problem

    # With gradients, since without them torch's fused encoder layers do not call their modules.
    def losses() -> Tensor:
        with fixed_noise(model):
            values: Tensor = value_of(loss, model, batch).detach()
        return values

    drops = {}
    with differentiable(model):
        whole = losses()
        for name, containers in modules.items():
            if containers is None:
                drops[name] = torch.full_like(whole, math.nan)
                continue
            with zeroed(model, containers):
                drops[name] = losses() - whole
    return drops


def _check_per_sample(losses: Tensor, batch: Any) -> None:
    if losses.ndim != 1:
        raise NotPerSample(
            f"the loss has the shape {tuple(losses.shape)}: return one value for each sample, "
            'for example F.mse_loss(y, target, reduction="none").mean((1, 2))'
        )
    shapes = [t.shape for t in tree_leaves(batch) if isinstance(t, Tensor) and t.ndim]
    if shapes and not any(len(losses) in shape for shape in shapes):
        raise NotPerSample(
            f"the loss has {len(losses)} values, but no axis of the batch has this length "
            f"({' x '.join(map(str, shapes[0]))}): return one value for each sample"
        )


def _trace(index: int, site: Candidate, slopes: dict[int, Any], windows: int) -> Trace:
    # With `batch_first=False` the first axis is tokens, also of tensors of the input's shape.
    core = next(iter(site.cores), None)
    owners = [site.call, *([core.call] if core is not None and core.call else [])]
    turned = [call.x for call in owners if tokens_first(call, core, windows)]
    shapes = [x.shape[:2] for x in turned if x is not None]

    def rows(tensors: list[Tensor]) -> Tensor:
        """[batch, ..., width] of each call -> [W, R, tokens, width], the calls side by side."""
        folded = []
        for t in tensors:
            second = t.ndim > 2 and (t.shape[:2] in shapes or (t.shape[0] % windows > 0))
            t = (t.transpose(0, 1) if second else t).detach()
            if t.ndim < 2 or t.shape[0] % windows:
                raise _apart(site, tuple(t.shape), windows)
            tokens = t[0, ..., 0].numel()
            folded.append(t.reshape(windows, -1, tokens, t.shape[-1]))
        # The calls of a shared module may have other numbers of sequences.
        if len({t.shape[1] for t in folded}) > 1:
            folded = [t.reshape(windows, 1, -1, t.shape[-1]) for t in folded]
        return folded[0] if len(folded) == 1 else torch.cat(folded, dim=-2)

    calls = site.outputs
    pairs = [(call, call.y) for call in calls]
    y = [t for _, t in pairs if t is not None]
    if not y:
        raise TooCoarse(
            f"{site.name!r} returns a {type(site.call.output).__name__}, in which no tensor is "
            "found, so that it has no score: name a smaller module as units="
        )
    dy = [g if (g := slopes.get(id(t))) is not None else torch.zeros_like(t) for t in y]
    shown = rows(y)
    called = [site.call] if len(calls) == 1 else calls
    starts = [call.x for call in called if call.x is not None]
    # A module of token ids has no floating input.
    x = rows(starts) if starts else shown[..., :0]
    output = Output(x, shown, rows(dy))
    streams = [t for t in site.streams if t is not None]
    totals = [t for t in site.totals if t is not None]
    if len(streams) == len(totals) == len(calls):
        stream, total = rows(streams), rows(totals)
        before, after = stream, total
        owner = site.owner
        if owner is not None and owner.parent is not None and len(calls) == 1:
            # The stream may be some of the tokens of the layer.
            shape = streams[0].shape
            layer = [t for t in (owner.x, owner.y) if t is not None and t.ndim == len(shape)]
            ends = {(t.shape[0], t.shape[-1]) for t in layer}
            if len({t.shape for t in layer}) == 1 < len(layer) and ends == {(shape[0], shape[-1])}:
                before, after = (rows([t]) for t in layer)
        output = Residual(x, shown, output.dy, stream, total, before, after)
    sources = []
    for core in site.cores:
        batch = sequences(site, core, windows)
        if (batch % windows and len(core.shape) < 4) or core.shape[0] % windows:
            raise _apart(site, core.shape, windows)
        sources.append(core.source(windows, batch))
    source = sources[0] if len(sources) == 1 else Joined(tuple(sources)) if sources else None
    several = len({id(core.call.module) for core in site.cores if core.call}) > 1
    return Trace(index, site.name, output, None, source, by_head=not several, several=several)


def _apart(site: Candidate, shape: tuple[int, ...], windows: int) -> NotPerSample:
    return NotPerSample(
        f"site {site.name!r} computes {' x '.join(map(str, shape))}, which cannot be split "
        f"into the {windows} samples of the loss: return one value for each sample of the "
        "batch, and compute the attention of all samples in one call, samples in the first axis; "
        "or use criterion='loss_drop'"
    )
