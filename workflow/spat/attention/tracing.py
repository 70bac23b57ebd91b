"""The views of the attention of any model: what criteria are computed from, for one batch."""

from __future__ import annotations

import math
import warnings
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
    heads_of,
    looking,
    tokens_first,
    value_of,
)
from spat.attention.errors import (
    AttentionError,
    AttentionWarning,
    NotDifferentiable,
    NotPerSample,
    TooCoarse,
)
from spat.attention.layout import Factor, folded, window_factors
from spat.attention.nodes import gradients_by
from spat.attention.recognition import Core
from spat.attention.views import Joined, Output, Residual, Trace
from spat.attention.zeroing import fixed_noise, zeroed


def traces(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    units: Sequence[str] = (),
    known: dict[Any, list[Tensor | None]] | None = None,
) -> list[Trace]:
    """The `Trace` of each site for a batch, from which criteria are computed.

    It has the same content as `scoring.probe.observe`. A site that cannot be removed is left out if
    it has no trace, unless no site has one. `known` keeps what tells the order of the samples of
    this model for batches of the same sizes, which saves a backward pass.

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
        cores, nodes = attention.cores, [core.node for core in attention.cores]
        outputs = [call.y for one in candidates for call in one.outputs]
        ends = [y for y in outputs if y is not None and y.requires_grad]
        known = {} if known is None else known
        sizes = (len(each), *(core.shape for core in cores), *(y.shape for y in ends))
        if sizes not in known:
            several = _several(len(each), candidates, ends)
            known[sizes] = _touched(each, ends, cores) if several else []
        touched = dict(zip([*map(id, ends), *nodes], known[sizes], strict=False))
        for core in cores:
            core.keep()
        of_ends, of_cores = gradients_by(each.double().sum(), ends, nodes, retain_graph=False)
        slopes = {id(y): g for y, g in zip(ends, of_ends, strict=True)}
        for core, gradient in zip(cores, of_cores, strict=True):
            core.gradient = gradient
        traced: list[Trace] = []
        problem = None
        with torch.no_grad():
            for i, one in enumerate(candidates):
                try:
                    traced.append(_trace(i, one, slopes, len(each), touched))
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


def _several(windows: int, candidates: Sequence[Candidate], ends: Sequence[Tensor]) -> bool:
    """Whether one of several samples has several sequences, whose order has to be found."""
    return windows > 1 and (
        any(y.ndim > 1 and len(y) > windows for y in ends)
        or any(
            core.maps > windows * heads_of(site, core, windows).size
            for site in candidates
            for core in site.cores
        )
    )


def _touched(each: Tensor, ends: Sequence[Tensor], cores: Sequence[Core]) -> list[Tensor | None]:
    """What the loss of one sample depends on: bool [..., 1] of each output, and bool [maps]."""
    # The sample with the largest loss, since that of padding alone may have no gradient.
    one = each[int(each.detach().abs().argmax())]
    nodes = [core.node for core in cores]
    of_ends, of_cores = gradients_by(one, ends, nodes, retain_graph=True)
    return [
        *(None if g is None else (g != 0).any(-1, keepdim=True) for g in of_ends),
        *(None if g is None else core.touched(g) for core, g in zip(cores, of_cores, strict=True)),
    ]


def _trace(
    index: int, site: Candidate, slopes: dict[int, Any], windows: int, touched: dict[Any, Any]
) -> Trace:
    # With `batch_first=False` the first axis is tokens, also of tensors of the input's shape.
    core = next(iter(site.cores), None)
    owners = [site.call, *([core.call] if core is not None and core.call else [])]
    turned = [call.x for call in owners if tokens_first(call, core, windows)]
    shapes = [x.shape[:2] for x in turned if x is not None]
    whole = Factor(1, 1)
    samples: dict[int, Factor] = {}  # by the length of the first axis

    def sample_factor(shape: tuple[int, ...], total: int, heads: Factor, at: Any) -> Factor:
        """The samples in an axis of length `total`, of a tensor of this shape."""
        factors = window_factors(total, windows, heads)
        if not factors:
            raise _apart(site, shape, windows)
        if at is None or len(factors) == 1:
            return factors[0]
        fitting = next((one for one in factors if one.joins(at)), None)
        if fitting is None:
            warnings.warn(
                f"site {site.name!r}: the loss of a sample depends on other samples, so that the "
                f"order of the samples in {' x '.join(map(str, shape))} is not known; those of a "
                "sample are taken to be next to each other. Use a loss of single samples",
                AttentionWarning,
                stacklevel=5,
            )
        return fitting or factors[0]

    def batch_first(t: Tensor) -> Tensor:
        second = t.ndim > 2 and (t.shape[:2] in shapes or (t.shape[0] % windows > 0))
        return (t.transpose(0, 1) if second else t).detach()

    def rows(tensors: list[Tensor]) -> Tensor:
        """[batch, ..., width] of each call -> [W, R, tokens, width], the calls side by side."""
        each = []
        for t in map(batch_first, tensors):
            if t.ndim < 2 or t.shape[0] % windows:
                raise _apart(site, tuple(t.shape), windows)
            factor = samples.get(len(t)) or Factor(windows, len(t) // windows)
            t = t.reshape(len(t), -1, t.shape[-1])
            each.append(folded(t, factor, whole).squeeze(2))
        # The calls of a shared module may have other numbers of sequences.
        if len({t.shape[1] for t in each}) > 1:
            each = [t.reshape(windows, 1, -1, t.shape[-1]) for t in each]
        return each[0] if len(each) == 1 else torch.cat(each, dim=-2)

    calls = site.outputs
    pairs = [(call, call.y) for call in calls]
    y = [t for _, t in pairs if t is not None]
    if not y:
        raise TooCoarse(
            f"{site.name!r} returns a {type(site.call.output).__name__}, in which no tensor is "
            "found, so that it has no score: name a smaller module as units="
        )
    dy = [g if (g := slopes.get(id(t))) is not None else torch.zeros_like(t) for t in y]
    for t in y:
        if touched.get(id(t)) is not None:
            some = batch_first(touched[id(t)]).flatten(1).any(1)
            samples[len(some)] = sample_factor(tuple(t.shape), len(some), whole, some)
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
        heads = heads_of(site, core, windows)
        if core.heads is None and core.maps > windows:
            warnings.warn(
                f"site {site.name!r}: its output does not tell which of the maps "
                f"{' x '.join(map(str, core.shape))} are heads; taken to be {heads.size} heads, "
                "next to each other",
                AttentionWarning,
                stacklevel=4,
            )
        factor = sample_factor(core.shape, core.maps, heads, touched.get(core.node))
        sources.append(core.source(factor, heads))
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
