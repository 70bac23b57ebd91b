"""Find the attention of any model: the sites that can be removed, and the others with the reason.

A site is the outermost module that is called between the residual sum and the attention. Its branch
is the set of other modules between the attention and that sum, for example an output projection.
Single heads of these sites cannot be removed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from spat.attention.containers import Container
from spat.attention.errors import (
    AttentionError,
    AttentionWarning,
    InlineAttention,
    NoResidual,
    NoSites,
    NotDifferentiable,
    SharedModule,
    SharedOutput,
    TooCoarse,
    UnknownSite,
)
from spat.attention.graph import Call, Graph, Input, recording
from spat.attention.layout import Factor
from spat.attention.modes import evaluating
from spat.attention.nodes import depends_on, is_feed_forward, is_wrapped, number_of
from spat.attention.recognition import Attention, Core, recognise
from spat.attention.zeroing import fixed_noise, kept_noise, zeroed

# How many names a message lists.
MOST_NAMES: Final = 20
FEW: Final = 3

# model, batch -> the loss of each sample [B]; a scalar where the docstring allows it.
Loss: TypeAlias = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class ForeignSite:
    """Attention in a model that this package does not know.

    `branch` names the modules that are removed together with the module `name`. `kind` is `self` if
    the module computes queries and keys from the same input, `cross` if from different ones, and
    `router` for two attentions in turn, of which the second reads the output of the first. `calls`
    is the number of attentions in one forward pass, `queries` and `keys` are the sizes of the first
    one, and `parameters` is the number of parameters of the removed modules. `refusal` is the
    reason why the site cannot be removed, or None if it can.
    """

    name: str
    branch: tuple[str, ...]
    kind: Literal["self", "cross", "router"]
    calls: int
    heads: int
    queries: int
    keys: int
    parameters: int
    refusal: AttentionError | None = None


class Sites(tuple[ForeignSite, ...]):
    """The sites of a model in forward order: a tuple that prints as a table, with the refusals."""

    __slots__ = ()

    def __repr__(self) -> str:
        head = (
            "site",
            "kind",
            "heads",
            "queries x keys",
            "parameters",
            "removed with it",
            "refusal",
        )
        rows = [
            (
                site.name, site.kind, str(site.heads), f"{site.queries} x {site.keys}",
                f"{site.parameters:,}", ", ".join(site.branch),
                "" if site.refusal is None else type(site.refusal).__name__,
            )
            for site in self
        ]  # fmt: skip
        reasons = dict.fromkeys(
            f"{type(site.refusal).__name__}: {site.refusal}" for site in self if site.refusal
        )
        return "\n".join([columns([head, *rows]), *reasons])

    __str__ = __repr__


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns: the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


@dataclass(eq=False)
class Candidate:
    """A site while its autograd graph exists: its calls and the attention in them."""

    name: str
    call: Call
    branch: list[Call]
    owner: Call | None  # the call that holds the residual sum
    cores: list[Core]
    refusal: AttentionError | None = None
    outputs: list[Call] = field(default_factory=list)  # the last module of each call of the branch
    streams: list[Tensor | None] = field(default_factory=list)  # what each output is added to
    totals: list[Tensor | None] = field(default_factory=list)  # the residual sums
    receiver: str | None = None  # a module that is given more of its output, quoted

    @property
    def names(self) -> tuple[str, ...]:
        """The modules that are removed together."""
        return tuple(dict.fromkeys([self.name, *(call.name for call in self.branch)]))


def find_sites(model: nn.Module, loss: Loss, batch: Any, *, units: Sequence[str] = ()) -> Sites:
    """The attention sites of a model in forward order, from one forward pass in `eval()`.

    The result is a tuple of `ForeignSite`, which prints as a table. A site with a `refusal` cannot
    be removed; the refusal names the cause and the remedy. A compiled model is read as it was
    written, without compilation.

    Args:
        model: any model; it is not changed.
        loss: function of model and batch that returns a scalar, or the loss of each sample [B].
        batch: any batch that `loss` accepts.
        units: a name, or names, of modules to use as sites instead, with the wildcards * and ?.

    Raises:
        NoSites: if there is no attention, or no module that `units` names.
        NotDifferentiable: if the loss has no gradient, or calls the model inside torch.vmap.
        TypeError: if the model is not a module or has a scripted part, the loss is not a function,
            or a unit is not a name.
        ValueError: if the batch is empty, or the loss is not finite.
    """
    with looking(model, loss, batch, units) as (_, attention, candidates):
        if attention.unsure and not units:
            warnings.warn(
                f"not taken for attention: {_listed(attention.unsure)}. If it is attention, name "
                "its module, and those of the other sites, as units=",
                AttentionWarning,
                stacklevel=2,
            )
        for one in candidates:
            if one.refusal is None and one.receiver is not None:
                one.refusal = _needed(model, loss, batch, one)
        return Sites(_described(one, model) for one in candidates)


@contextlib.contextmanager
def looking(
    model: nn.Module, loss: Loss, batch: Any, units: Sequence[str] = ()
) -> Iterator[tuple[Tensor, Attention, list[Candidate]]]:
    """The loss of a batch, its attention, and the sites in forward order."""
    check_model(model)
    if not callable(loss):
        raise TypeError(
            f"the loss is a {type(loss).__name__}: give a function of model and batch, for example "
            "lambda model, batch: ..., in its place among the arguments"
        )
    units = tuple(_unit_names(units))
    with differentiable(model):
        with recording(model) as calls, kept_noise():
            each = value_of(loss, model, batch)
        if not calls:
            raise NoSites(
                "the loss did not call the model that it was given: use its first argument, and no "
                "model of the surrounding code (prune works on a copy)"
            )
        if any(call.y is not None and is_wrapped(call.y) for call in calls):
            raise NotDifferentiable(
                "the loss calls the model inside torch.vmap or another transform of torch.func, "
                "whose tensors cannot be read: call the model on the whole batch"
            )
        if not isinstance(each, Tensor):
            raise NotDifferentiable(
                f"the loss returned a {type(each).__name__}: return a tensor, without .item()"
            )
        if each.numel() == 0:
            raise ValueError("the loss has no values: give a batch that is not empty")
        if each.grad_fn is None:
            raise NotDifferentiable(
                f"the loss of {type(model).__name__} has no gradient: return a tensor that was "
                "computed from the model, without detach, no_grad, inference_mode or reentrant "
                "checkpointing"
            )
        if not bool(each.isfinite().all()):
            raise ValueError(
                f"the loss of {type(model).__name__} is {each.detach().sum():g}: look for values "
                "of the batch that are not finite, and for weights that are not"
            )
        graph = Graph.of(each.sum(), calls)
        attention = recognise(graph)
        cores = attention.cores
        candidates = _units(model, graph, cores, units) if units else _sites(graph, cores)
        for one in candidates:
            for core in one.cores:
                later = [call for call in one.outputs if call.stop > number_of(core.node)]
                core.find_heads(graph, min(later or one.outputs, key=lambda call: call.stop))
        if not candidates and units:
            raise NoSites(
                f"units: the loss does not call {', '.join(units)}: name modules that take part in "
                "the forward pass"
            )
        if not candidates:
            gone = hasattr(model, "spat_removal")
            raise NoSites(
                f"{type(model).__name__}: the loss was computed without a softmax(q k^T) v. "
                + (f"Not attention: {_listed(attention.others)}. " if attention.others else "")
                + "If the model is compiled, pass `model._orig_mod`; if it is scripted, pass the "
                "original module; turn checkpointing and custom kernels off. Name attention of "
                "another form (sigmoid, linear) as units=. A model without attention has no sites"
                + (", and from this one spat.prune removed attention" if gone else "")
            )
        yield each, attention, candidates


def check_model(model: Any, name: str = "the model") -> None:
    """Check that a model is a module that is not scripted.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        a = "" if isinstance(model, type) else "a "
        raise TypeError(
            f"{name} is {a}{what}, not a torch.nn.Module: build the model, load its weights, and "
            "give the module"
        )
    for part, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"{name}: {part!r}" if part else name
            raise TypeError(f"{what} is scripted or traced: give the module that it was made from")


def value_of(loss: Loss, model: nn.Module, batch: Any) -> Any:
    """The loss of a batch; an error of the model or loss says with what they were called."""
    try:
        return loss(model, batch)
    except Exception as error:
        error.add_note(
            f"raised by loss(model, batch) with a {type(model).__name__} and a batch that is a "
            f"{form(batch)}: check the order of the arguments, and the types, sizes and devices"
        )
        raise


def form(value: Any) -> str:
    """The type of a value, with the sizes of tensors."""
    if isinstance(value, Tensor):
        return f"{value.dtype} tensor of {' x '.join(map(str, value.shape)) or 'one value'}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of ({', '.join(form(part) for part in value[:3])})"
    return type(value).__name__


def _unit_names(units: Any) -> Iterator[str]:
    for unit in (units,) if isinstance(units, str | nn.Module) else units:
        if not isinstance(unit, str):
            raise TypeError(
                f"units: a {type(unit).__name__} is not a name: give names of modules, such as "
                "'layers.0.attention' or 'layers.*.attention'"
            )
        yield unit


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Context manager: the model in eval() with gradients for all parameters; restored afterwards.

    Raises:
        NotDifferentiable: in inference mode, or if parameters were created in it.
    """
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    if torch.is_inference_mode_enabled() or any(p.is_inference() for p in parameters):
        raise NotDifferentiable(
            "inference mode keeps no gradients: make the model and call this outside of it"
        )
    frozen = [p for p in parameters if not p.requires_grad]
    with evaluating(model), torch.enable_grad(), _uncompiled():
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def unknown(name: str, names: Sequence[str]) -> UnknownSite:
    """The error for a name that is not a site of the model."""
    import difflib

    close = difflib.get_close_matches(name, names, n=1)
    more = ", ..." if len(names) > MOST_NAMES else ""
    choice = f"choose from {', '.join(names[:MOST_NAMES])}{more}"
    hint = f"did you mean {close[0]!r}?" if close else choice
    return UnknownSite(f"there is no site {name!r}: {hint}")


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Context manager: compiled modules run as they were written, so that hooks are called."""
    # The module takes seconds to import, and without it nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _listed(sentences: Sequence[str]) -> str:
    """The first sentences, and the number of the others."""
    more = [f"and {len(sentences) - FEW} more"] if len(sentences) > FEW else []
    return "; ".join([*sentences[:FEW], *more])


def _sites(graph: Graph, cores: Sequence[Core]) -> list[Candidate]:
    merged: dict[int, Candidate] = {}
    for core in cores:
        new = _located(core, graph)
        # A second attention within the branch of the first (a router pair) is removed with the
        # first.
        into = merged.get(id(new.call.module))
        for one in merged.values():
            if not _within(new.call, one.branch):
                continue
            if all(depends_on(core.operands[0], first.node) for first in one.cores):
                _replace_by(one, new)
            else:
                into = one
        if into is None:
            merged[id(new.call.module)] = new
            continue
        into.cores.append(core)
        if _within(new.call, into.branch):
            continue
        if new.call not in (into.call, *(call for call in into.outputs)):
            into.outputs += new.outputs
            into.streams += new.streams
            into.totals += new.totals
        into.branch += new.branch
        if (into.refusal is None) != (new.refusal is None):
            why = into.refusal or new.refusal
            into.refusal = SharedModule(
                f"{into.name!r} is called several times, and one call cannot go ({why}): give each "
                "call a module of its own"
            )
    for one in merged.values():
        _note_queries(one, graph)
        one.refusal = one.refusal or _obstacle(one, graph)
    return list(merged.values())


def _note_queries(site: Candidate, graph: Graph) -> None:
    for core in site.cores:
        site.call.queries |= graph.sources(core.operands[0], site.call)


def _replace_by(site: Candidate, other: Candidate) -> None:
    """Refuse a site whose output is the input of the attention `other`, which has the residual."""
    site.refusal = NoResidual(
        f"{site.name!r}: its output is the whole input of {other.name!r}, which has the residual "
        f"connection, so without it that input is lost: remove {other.name!r}, or keep both"
    )
    site.branch, site.outputs, site.streams, site.totals = [], [site.call], [None], [None]


def _obstacle(site: Candidate, graph: Graph) -> AttentionError | None:
    """The reason in the graph why the modules of a site cannot be replaced by zeros, or None."""
    try:
        for call in (site.call, *site.branch):
            place(call)
    except TooCoarse as error:
        return error
    modules = {call.module for call in (site.call, *site.branch)}
    for call in graph.calls:
        if call.module not in modules:
            continue
        if (user := graph.leak(call)) is not None:
            if any("SoftmaxBackwardData" in node.name() for node in graph.nodes):
                return SharedOutput(
                    "the model computes gradients in its forward pass, which use what "
                    f"{call.name!r} computes besides its output: keep {site.name!r}, or give the "
                    "module of which the gradient is computed"
                )
            if call.y is not None and call.y._version > call.version:
                return SharedOutput(
                    f"the output of {call.name!r} is changed in place, so that its gradient is "
                    "lost: write y = 0.5 * y instead of y *= 0.5, and inplace=False"
                )
            return _shared(site, user, call.name)
        site.receiver = site.receiver or graph.receiver(call)
    return None


def _shared(site: Candidate, user: str, name: str) -> SharedOutput:
    return SharedOutput(
        f"{user} uses what {name!r} computes besides its output, for example a position bias that "
        f"layers share: keep {site.name!r}, or compute that in a separate module"
    )


def _needed(model: nn.Module, loss: Loss, batch: Any, site: Candidate) -> SharedOutput | None:
    """The reason why a module that is given more of the output of a site cannot be without it."""
    containers = {call.name: around(call) for call in (site.call, *site.branch)}
    losses = []
    for alone in (False, True):
        with differentiable(model), fixed_noise(model), zeroed(model, containers, alone=alone):
            try:
                losses.append(loss(model, batch).detach())
            except Exception:  # whatever the module that receives None raises
                break
    if len(losses) == 2 and torch.allclose(losses[0], losses[1], rtol=1e-5, atol=1e-5):
        return None
    return _shared(site, str(site.receiver), site.name)


def around(call: Call) -> Container | None:
    """The container of the output of a call; None if the output is a tensor.

    Raises:
        TooCoarse: if there is no floating tensor, or its container cannot be rebuilt.
    """
    container = None if call.output is call.y else Container.of(call.output, call.y)
    if call.y is None or (container is None and call.output is not call.y):
        raise TooCoarse(
            f"{call.name!r} returns a {type(call.output).__name__}, not a floating tensor or a "
            "tuple, list, dict, named tuple or dataclass with one: name a smaller module as units="
        )
    return container


def place(call: Call) -> tuple[Input, int | None, Container | None]:
    """The description of zeros that can replace the output of a call.

    Returns:
        The floating input with the leading shape of the output (of several such inputs that of the
        queries, then the first of the whole shape), the width of the output (None if that input has
        it, too), and the container of the output (None if the output is a tensor).

    Raises:
        TooCoarse: if the output is not a tensor or a container of tensors that can be rebuilt, or
            no input has its leading shape.
    """
    container, first = around(call), call.y
    assert first is not None
    shape = tuple(first.shape)
    fitting = [one for one in call.inputs if one.shape[:-1] == shape[:-1]]
    if not fitting:
        raise TooCoarse(
            f"{call.name!r} returns {shape}, but none of its inputs "
            f"{[one.shape for one in call.inputs]} has this leading shape, which the zeros in its "
            "place need: name another module as units="
        )
    like = max(fitting, key=lambda one: (one.node in call.queries, one.shape == shape))
    return like, None if like.shape == shape else shape[-1], container


def _within(call: Call, branch: list[Call]) -> bool:
    return any(part in call.chain() for part in branch)


def _located(core: Core, graph: Graph) -> Candidate:
    """The site of a core: the outermost module below the first sum outside of its own module."""
    inner = core.call
    if inner is None:
        raise InlineAttention(
            "attention is computed in the loss, outside of the model: move it into a module"
        )
    chain = inner.chain()
    passed = False
    for one in graph.sums(core.node):
        home = graph.call_of(one.node)
        if home is None or home is inner:
            passed = True
            continue
        homes = home.chain()
        top = next((call for call in homes if call in chain), None)
        if top is None or top is inner:
            passed = True
            continue
        site = chain[chain.index(top) - 1]
        branch = list(dict.fromkeys(_branch(one.path, site, home, top, graph)))
        candidate = Candidate(site.name, site, branch, top, [core])
        candidate.outputs = [max([site, *branch], key=lambda call: call.stop)]
        _note_sum(candidate, core.node, one.node, graph)
        if is_feed_forward([node for node in one.path if not _inside(node, site)]):
            candidate.refusal = NoResidual(
                f"{site.name!r}: a feed-forward network ({', '.join(candidate.names[1:])}) stands "
                "between it and the residual sum, so without it the input of that network is lost: "
                "add a residual connection around the attention, written as x + y, or keep it"
            )
            candidate.branch, candidate.outputs = [], [site]
            candidate.streams, candidate.totals = [None], [None]
        if passed:
            of = f" of {inner.name!r}" if inner is not site else ""
            candidate.refusal = TooCoarse(
                f"{site.name!r} adds more than the attention{of} to its input: move the attention, "
                "with its output projection, into a module of its own, or name one as units="
            )
        return candidate
    error: AttentionError
    if passed:
        error = InlineAttention(
            f"{inner.name or type(inner.module).__name__!r} computes attention and its residual "
            "sum in one forward: move the attention, with its projections, into a module"
        )
    else:
        error = NoResidual(
            f"{inner.name!r}: there is no residual connection around the attention, so without it "
            "the input is lost: add one, written as x + y and not in place, or keep the attention"
        )
    return Candidate(inner.name, inner, [], None, [core], error, [inner], [None], [None])


def _inside(node: Any, call: Call) -> bool:
    return call.start <= number_of(node) < call.stop


def _note_sum(site: Candidate, start: Any, first: Any, graph: Graph) -> None:
    """Record what the last output of a site is added to, and the sum, from the sum `first` on."""
    output = site.outputs[-1]
    stream = total = None
    if first is not None and output.y is not None:
        one = graph.stream(start, first, site.call)
        stream, total = graph.addends(one, output, site.owner, first)
    site.streams.append(stream)
    site.totals.append(total)


def _branch(path: list[Any], site: Call, home: Call, top: Call, graph: Graph) -> Iterator[Call]:
    """The outermost calls of modules between the site and the sum, without the site."""
    for node in path:
        call = graph.call_of(node)
        chain = call.chain() if call is not None else []
        if site in chain:
            continue
        base = home if home in chain else top if top in chain else None
        if base is None or chain[0] is base:
            continue
        part = chain[chain.index(base) - 1]
        if part not in home.chain():
            yield part


def _units(
    model: nn.Module, graph: Graph, cores: Sequence[Core], units: Sequence[str]
) -> list[Candidate]:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in units:
        if not fnmatch.filter(names, pattern):
            raise unknown(pattern, names)
    candidate: dict[str, Candidate] = {}
    for call in sorted(graph.calls, key=lambda call: call.start):
        if not any(fnmatch.fnmatchcase(call.name, pattern) for pattern in units):
            continue
        one = candidate.setdefault(call.name, Candidate(call.name, call, [], call.parent, []))
        one.outputs.append(call)
        sums = graph.sums(call.end) if call.end else iter(())
        first = next(sums, None)
        _note_sum(one, call.end, first and first.node, graph)
        one.cores += [core for core in cores if core.call and call in core.call.chain()]
    for one in candidate.values():
        _note_queries(one, graph)
    return list(candidate.values())


def _described(site: Candidate, model: nn.Module) -> ForeignSite:
    modules = [call.module for call in (site.call, *site.branch)]
    parameters = {p for module in modules for p in module.parameters()}
    size = sum(p.numel() for p in parameters)
    branch = site.names[1:]
    if not site.cores:
        return ForeignSite(site.name, branch, "self", 0, 1, 0, 0, size, site.refusal)
    core = site.cores[0]
    heads = heads_of(site, core).size
    kind: Literal["self", "cross", "router"] = "router" if _in_turn(site.cores) else _kind(site)
    queries, keys = core.shape[-2:]
    return ForeignSite(
        site.name, branch, kind, len(site.cores), heads, queries, keys, size, site.refusal
    )


def _in_turn(cores: Sequence[Core]) -> bool:
    """Whether the attention of another module uses the output of the first one."""
    first = cores[0]
    waiting = [
        core.node
        for core in cores[1:]
        if core.call and first.call and core.call.module is not first.call.module
    ]
    seen = set(waiting)
    while waiting:
        for before, _ in waiting.pop().next_functions:
            if before is first.node:
                return True
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return False


def _kind(site: Candidate) -> Literal["self", "cross"]:
    """Cross-attention computes queries and keys from different inputs of the module."""
    graph = Graph([], [], {})
    q, k = (graph.sources(node, site.call) for node in site.cores[0].operands)
    return "cross" if (q or k) and q.isdisjoint(k) else "self"


def heads_of(site: Candidate, core: Core, windows: int | None = None) -> Factor:
    """The heads among the maps of an attention.

    If the graph does not tell, they are the third last axis, or the inner part of a joined one.
    """
    if core.heads is not None:
        return core.heads
    if len(core.shape) > 3:
        return Factor(core.shape[-3], 1)
    return Factor(max(1, core.shape[0] // _sequences(site, core, windows)), 1)


def _sequences(site: Candidate, core: Core, windows: int | None) -> int:
    """The number of sequences in the input of the module that computes the attention."""
    call = core.call
    x = call.x if call is not None else None
    if call is None or x is None or x.ndim < 3 or x.shape[0] > core.shape[0]:
        call, x = site.call, site.call.x
    if x is None or x.ndim < 2:
        return core.shape[0]
    if x.ndim == 2 and x.shape[0] == core.shape[-2]:
        return 1  # one sequence, without an axis for the batch
    return x.shape[1] if tokens_first(call, core, windows) else x.shape[0]


def tokens_first(call: Call, core: Core | None, windows: int | None) -> bool:
    """Whether the input of a call is [tokens, batch, ...].

    A module says so as nn.MultiheadAttention does, or the first axis has the number of queries, and
    only the second one can be the batch.
    """
    x = call.x
    if x is None or x.ndim < 2 or getattr(call.module, "batch_first", True) is False:
        return x is not None and x.ndim > 1
    if core is None or x.ndim != 3 or x.shape[0] == windows or x.shape[1] % (windows or 1):
        return False
    first, second = x.shape[:2]
    return first == core.shape[-2] != second and core.shape[0] % second == 0
