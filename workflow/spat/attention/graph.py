"""Attention in the autograd graph of a loss: the one module that reads internals of torch.

The backward nodes of attention save the tensors that the sensitivity needs: fused attention saves
q, k, v and the mask, a softmax saves A. Where A is computed from a softmax (talking heads, a
difference of two maps, exp(x) / sum(exp(x))), it is taken from the product with v, which saves both
of its factors. A hook on the node receives the gradient. The call of a module that created a node
is found by comparing the sequence number of the node with the numbers at entry and exit of the
call. Nothing is inserted into the forward pass.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_leaves

from spat.attention.views import Mixing, Source, Weighted

# Parts of the names of backward nodes. Nodes that change the layout of a tensor but not its values:
_LAYOUT: Final = (
    "View", "Expand", "Transpose", "Permute", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Select",
    "TBackward", "Clone", "ToCopy", "Unsafe", "Alias", "AsStrided", "Contiguous", "ConstantPad",
)  # fmt: skip
# Nodes between A and its product with v, and nodes between q k^T and the softmax:
_AFTER: Final = (
    *_LAYOUT, "Dropout", "Mul", "Div", "MaskedFill", "Where", "NanToNum", "Split", "Unbind",
)  # fmt: skip
_BEFORE: Final = (
    *_AFTER, "Add", "Sub", "Tanh", "Neg", "Index", "Gather", "Copy", "Clamp", "Cat", "Masked",
)  # fmt: skip

# Nodes between a sum over keys and the quotient that it is the denominator of:
_DENOMINATOR: Final = (*_LAYOUT, "Add", "Clamp", "Maximum")
# The number of nodes after a softmax that are searched for a product with v.
_FAR: Final = 200


@dataclass(eq=False)
class Call:
    """One call of a module: first input, output, and sequence numbers at entry and exit."""

    name: str
    module: nn.Module
    parent: Call | None
    start: int
    stop: int = 0
    inputs: list[tuple[int, ...]] = field(default_factory=list)  # shapes of floating inputs
    x: Tensor | None = None
    output: Any = None
    y: Tensor | None = None  # the floating tensor of the output that is used later, or the first
    end: Any = None  # the node that made y

    def chain(self) -> list[Call]:
        """The call and its enclosing calls, from the inside to the outside."""
        return [self, *(self.parent.chain() if self.parent else [])]


@dataclass(eq=False)
class Core:
    """One softmax(q k^T) v of a forward pass. Its `node` is fused attention, or made A."""

    node: Any
    fused: bool
    shape: tuple[int, ...]  # [..., Q, K]
    # The axes of A in the order of `shape`, -1 for one of size 1 that A lacks; of fused ones empty.
    order: tuple[int, ...]
    operands: tuple[Any, Any]  # the nodes that made q and k
    product: _Product | None = None  # of A and v, if A is not fused
    call: Call | None = None
    gradient: Tensor | None = None  # by O where fused, else by A

    def source(self, windows: int, sequences: int) -> Source:
        """The source of `Mixing` after `backward`, for a batch of `windows` windows.

        Three-dimensional maps have batch and heads in one axis. `sequences` is the batch size of
        the input of the module, a multiple of `windows`.
        """
        node = self.node
        heads = self.shape[-3] if len(self.shape) > 3 else max(1, self.shape[0] // sequences)

        def fold(t: Tensor) -> Tensor:
            return t.detach().reshape(windows, -1, heads, *t.shape[-2:])

        if not self.fused:
            A, g = self._kept["A"], self.gradient
            A, g = (self._ordered(t) for t in (A, torch.zeros_like(A) if g is None else g))
            return Weighted(fold(A), fold(g), allowed(fold(A)))
        q, k, v = (self._kept[name] for name in "qkv")
        g = torch.zeros_like(q) if self.gradient is None else self.gradient
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        mask = self._kept["mask"]
        if mask is not None:
            mask = fold(mask.expand(*q.shape[:-1], k.shape[-2]))
        scale = node._saved_scale
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
        return Fused(fold(q), fold(k), fold(v), fold(g), mask, bool(node._saved_is_causal), scale)

    _kept: dict[str, Any] = field(default_factory=dict)

    def keep(self) -> Any:
        """Keep the saved tensors of the node, which the backward pass frees, and hook its gradient.

        Returns the handle of the hook. Remove it afterwards: node and hook refer to each other, and
        Python cannot free that cycle.
        """
        node = self.node
        if self.fused:
            self._kept = {
                "q": node._saved_query, "k": node._saved_key, "v": node._saved_value,
                "mask": getattr(node, "_saved_attn_mask", getattr(node, "_saved_attn_bias", None)),
            }  # fmt: skip
        else:
            assert self.product is not None
            self._kept = {"A": self.product.weights(node)}
        return node.register_prehook(self._note)

    def _note(self, gradients: Sequence[Tensor | None]) -> None:
        self.gradient = gradients[0]

    def _ordered(self, t: Tensor) -> Tensor:
        t = t.permute([axis for axis in self.order if axis >= 0])
        return t.unsqueeze(-2) if -1 in self.order else t


@dataclass(frozen=True, eq=False)
class Fused:
    """S = A * (dL/dO V^T) of fused attention, with A recomputed from q, k and the mask."""

    q: Tensor  # [W, R, H, Q, D]
    k: Tensor  # [W, R, H, K, D]
    v: Tensor  # [W, R, H, K, D]
    dO: Tensor  # noqa: N815  as q
    mask: Tensor | None  # bool (may attend) or added to the logits, [W, R, H, Q, K]
    causal: bool
    scale: float

    @property
    def elements(self) -> int:
        """The number of elements of A in one window."""
        return self.q[0, ..., 0].numel() * self.k.shape[-2]

    def mixing(self, dtype: torch.dtype) -> Mixing:
        """A and S, computed in this precision."""
        logits = self.q.to(dtype) @ self.k.to(dtype).mT * self.scale
        if self.causal:
            hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(hidden, -math.inf)
        if self.mask is not None and self.mask.dtype == torch.bool:
            logits = logits.masked_fill(~self.mask, -math.inf)
        elif self.mask is not None:
            logits = logits + self.mask.to(dtype)
        A = logits.softmax(-1).nan_to_num(0.0)
        return Mixing(A, A * (self.dO.to(dtype) @ self.v.to(dtype).mT), allowed(A))

    def cut(self, windows: slice) -> Fused:
        """The source for a slice of the windows."""
        mask = None if self.mask is None else self.mask[windows]
        q, k, v, dO = (t[windows] for t in (self.q, self.k, self.v, self.dO))
        return replace(self, q=q, k=k, v=v, dO=dO, mask=mask)


def allowed(A: Tensor) -> Tensor:
    """The keys whose weight is not 0: bool [rows, keys] if all maps agree, else the shape of A."""
    used = A != 0
    first = used.flatten(0, -3)[0]
    return first.cpu() if bool((used == first).all()) else used


@dataclass(frozen=True, eq=False)
class _Product:
    """A product of two activations of which one, `side` 0 or 1, is A."""

    node: Any
    side: int

    @property
    def edge(self) -> tuple[Any, int]:
        """The node and output that made the factor."""
        edge: tuple[Any, int] = self.node.next_functions[-2:][self.side]
        return edge

    @property
    def factor(self) -> Tensor | None:
        """The factor A; None if it is not saved, as the other one has no gradient."""
        names = ("batch1", "batch2") if "Baddbmm" in self.node.name() else ("self", "mat2")
        return getattr(self.node, f"_saved_{names[self.side]}", None)

    @property
    def rows(self) -> tuple[int, int]:
        """The numbers of products and of rows of A in each."""
        *lead, first, second = shape_of(self.node)
        return math.prod(lead), second if self.side else first

    def weights(self, node: Any) -> Tensor:
        """A as the result of a node that is followed only by changes of layout."""
        if hasattr(node, "_saved_result"):
            A: Tensor = node._saved_result
            return A
        assert self.factor is not None
        if node is self.edge[0]:
            return self.factor
        # The gradient of a change of layout is the inverse change, or a sum of equal copies.
        A, copies = (_pull(self.edge, node, t) for t in (self.factor, torch.ones_like(self.factor)))
        return (A / copies).where(copies != 0, 0.0)

    def keys(self, node: Any) -> int | None:
        """The axis of the result of `node` over which the product sums; None if it is not clear."""
        axes = _traced(self.edge, -2 if self.side else -1, node)[1]
        return next(iter(axes)) if len(axes) == 1 else None


@dataclass
class Graph:
    """The calls of modules and the attention in one forward pass.

    `others` has each softmax that is not attention, with the reason. `unsure` are those of them
    between a product of activations and another one, which may be attention of another form.
    """

    calls: list[Call]
    cores: list[Core]
    users: dict[Any, list[Any]]
    others: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)

    def call_of(self, node: Any) -> Call | None:
        """The innermost call that created a node."""
        number = node._sequence_nr()
        around = [call for call in self.calls if call.start <= number < call.stop]
        return min(around, key=lambda call: call.stop - call.start, default=None)

    def sums(self, start: Any) -> Iterator[tuple[Any, list[Any], Any]]:
        """The sums with one addend that depends on `start` and one that does not, in forward order.

        Yields each sum with the nodes between it and `start`, and the node of the other addend,
        None for an input of the model. The addition of a bias or constant is not such a sum.
        """
        reached, waiting, count = {start}, [(start._sequence_nr(), 0, start)], 1
        while waiting:
            node = heapq.heappop(waiting)[2]
            parts = _addends(node, reached) if node is not start else []
            if parts and (parts[0] in reached) != (parts[1] in reached):
                inner, outer = parts if parts[0] in reached else parts[::-1]
                if self._is_input(node) if outer is None else not _bias(outer):
                    yield node, _between(inner, reached), outer
            for user in self.users[node]:
                if user not in reached:
                    reached.add(user)
                    heapq.heappush(waiting, (user._sequence_nr(), count, user))
                    count += 1

    def _is_input(self, total: Any) -> bool:
        """Whether the addend without a node of a sum may be an input of the model.

        It may be if a module has an input of its size without gradient. The other such addends are
        constants, for example the epsilon in a norm, whose sum has a last axis of size 1.
        """
        shape = shape_of(total)
        inputs = (call.x for call in self.calls if call.x is not None and not call.x.requires_grad)
        size = math.prod(shape)
        return len(shape) > 0 and shape[-1] > 1 and any(x.numel() == size for x in inputs)

    def stream(self, start: Any, first: Any, call: Call) -> tuple[Any, Any]:
        """The residual sum behind `start`, from the sum `first` on, and its other addend.

        The input of the call comes from that addend: in x + mlp(x) + attention(x), the first sum
        may be that with the other branch. If there is no such sum, the result is `first`.
        """
        result = None
        for node, _, outer in itertools.islice(self.sums(start), 5):
            if _number(node) < _number(first):
                continue
            result = (node, outer) if result is None else result
            if _comes_from(call.x, outer):
                return node, outer
        assert result is not None
        return result

    def tensor(self, node: Any, shape: Sequence[int], owner: Call | None) -> Tensor | None:
        """The tensor of a node: an input or output of a module with this shape, or None.

        An input of the model has no node; then it is the first input of `owner`.
        """
        if node is None:
            x = owner.x if owner is not None else None
            return x if x is not None and not x.requires_grad and x.shape == shape else None
        for call in self.calls:
            for t in (call.x, call.y):
                if t is not None and t.grad_fn is node and t.shape == shape:
                    return t
        return None

    def leak(self, call: Call) -> str | None:
        """The module (quoted) that uses results of a call besides its first output, or None."""
        for node, users in self.users.items():
            if node is call.end or not call.start <= node._sequence_nr() < call.stop:
                continue
            for user in users:
                if not call.start <= user._sequence_nr() < call.stop:
                    around = self.call_of(user)
                    if around is None:
                        return "the loss"
                    return repr(around.name or type(around.module).__name__)
        return None

    def sources(self, node: Any, call: Call) -> set[Any]:
        """The nodes that existed before a call and from which `node`, within it, was computed."""
        sources, seen, waiting = set(), set(), [node]
        while waiting:
            one = waiting.pop()
            if one is None or one in seen or _is_leaf(one):
                continue
            seen.add(one)
            if one._sequence_nr() < call.start:
                sources.add(one)
            else:
                waiting += [before for before, _ in one.next_functions]
        return sources


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[list[Call]]:
    """Context manager that records every call of a module of the model."""
    number = torch._C._autograd._get_sequence_nr
    calls: list[Call] = []
    open_calls: list[Call] = []

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        while open_calls and open_calls[-1].stop:
            open_calls.pop()
        call = Call(name, module, open_calls[-1] if open_calls else None, number())
        tensors = floating((args, kwargs))
        call.inputs = [tuple(t.shape) for t in tensors]
        call.x = tensors[0] if tensors else None
        open_calls.append(call)

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls.pop()
        call.stop, call.output = number(), output
        call.y = next(iter(floating(output)), None)
        call.end = call.y.grad_fn if call.y is not None else None
        calls.append(call)

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                enter(name, module, args, kwargs)

            handle = module.register_forward_pre_hook(before, with_kwargs=True)
            hooks.callback(handle.remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield calls


def read(loss: Tensor, calls: list[Call]) -> Graph:
    """The graph of a loss with `grad_fn`: every attention in forward order, ready for `backward`.

    A softmax, also one that is written with exp, is attention if its input comes from a product of
    q and k and its result is a factor of a product with v. Gates and routers of experts do not
    satisfy this. Linear maps over heads may stand before and after the softmax.
    """
    users: dict[Any, list[Any]] = defaultdict(list)
    nodes: set[Any] = {loss.grad_fn}
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        for before, _ in node.next_functions:
            if before is not None:
                users[before].append(node)
                if before not in nodes:
                    nodes.add(before)
                    waiting.append(before)
    for call in calls:
        _choose_output(call, users)
    graph = Graph(calls, [], users)
    maps: dict[Any, int] = {}
    for node in sorted(nodes, key=_number):
        if _is(node, ("Softmax", "ScaledDotProduct")) and hasattr(node, "saved_tensors"):
            # A torch.autograd.Function does not say what it saves.
            inner = graph.call_of(node)
            graph.others.append(f"{_place(inner)} has a softmax with a backward pass of its own")
        elif "ScaledDotProduct" in node.name():
            q, k = node._saved_query, node._saved_key
            q_node, k_node = (part for part, _ in node.next_functions[:2])
            graph.cores.append(Core(node, True, (*q.shape[:-1], k.shape[-2]), (), (q_node, k_node)))
        elif (keys := _normalised(node)) is not None:
            maps[node] = keys
    made = set()
    for softmax in maps:
        result = _attention(graph, softmax, maps)
        if isinstance(result, Core):
            # The difference of two maps is one attention.
            graph.cores += [result] if result.node not in made else []
            made.add(result.node)
        elif result:
            where = _place(graph.call_of(softmax))
            size = " x ".join(map(str, shape_of(softmax)))
            graph.others.append(f"the softmax ({size}) in {where} {result}")
            if result == _UNCLEAR:
                graph.unsure.append(graph.others[-1])
    graph.cores.sort(key=lambda core: core.node._sequence_nr())
    for core in graph.cores:
        core.call = graph.call_of(core.product.node if core.product else core.node)
    return graph


def _place(call: Call | None) -> str:
    return repr(call.name or type(call.module).__name__) if call else "the loss"


def _choose_output(call: Call, users: Mapping[Any, Sequence[Any]]) -> None:
    """Set `y` to the first tensor of the output that is used after the call."""
    for t in floating(call.output):
        later = users.get(t.grad_fn, ()) if t.grad_fn is not None else ()
        if any(user._sequence_nr() >= call.stop for user in later):
            call.y, call.end = t, t.grad_fn
            return


def floating(tree: Any) -> list[Tensor]:
    """The floating tensors in nested containers and dataclasses, in order."""
    tensors: list[Tensor] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            tensors += [leaf] if leaf.is_floating_point() else []
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            tensors += floating([getattr(leaf, field.name) for field in fields(leaf)])
    return tensors


def shape_of(node: Any, output: int = 0) -> tuple[int, ...]:
    """The shape of a result of a node."""
    return tuple(map(int, node._input_metadata[output].shape))


def _axes(node: Any) -> int:
    return len(shape_of(node))


def _number(node: Any) -> int:
    return int(node._sequence_nr())


def _is(node: Any, names: Sequence[str]) -> bool:
    return any(part in node.name() for part in names)


def _is_leaf(node: Any) -> bool:
    return "AccumulateGrad" in node.name()


def _bare(node: Any) -> Tensor | None:
    """The parameter of a node that is a parameter or a change of its layout, or None."""
    while node is not None and not _is_leaf(node) and _is(node, _LAYOUT):
        node = node.next_functions[0][0]
    return node.variable if node is not None and _is_leaf(node) else None


def _addends(node: Any, reached: set[Any]) -> list[Any]:
    """The two terms of a sum or difference, or of torch.lerp.

    For x + a * b, x and the factor that is in `reached`.
    """
    parts = [part for part, _ in node.next_functions]
    if node.name().startswith("AddcmulBackward"):
        return [parts[0], parts[2] if parts[2] in reached else parts[1]]
    if node.name().startswith("LerpBackward"):
        return parts[:2]
    # y - constant is the difference from a target or a mean.
    if node.name().startswith("SubBackward") and parts[1] is None:
        return []
    return parts if _is(node, ("AddBackward", "SubBackward")) and len(parts) == 2 else []


def _comes_from(x: Tensor | None, node: Any) -> bool:
    """Whether a tensor was computed from the result of a node; None is an input of the model."""
    if x is None or x.grad_fn is None or node is None:
        return node is None
    seen: set[Any] = set()
    waiting: list[Any] = [x.grad_fn]
    while waiting:
        one = waiting.pop()
        if one is node:
            return True
        if one is None or one in seen or _number(one) < _number(node):
            continue
        seen.add(one)
        waiting += [part for part, _ in one.next_functions]
    return False


def sums_directly(node: Any, term: Any) -> bool:
    """Whether a node is stream + y with nothing in between, for the node `term` that made y."""
    return (
        node.name().startswith("AddBackward")
        and node._saved_alpha == 1
        and term in [part for part, _ in node.next_functions]
    )


def _bias(node: Any) -> bool:
    parameter = _bare(node)
    return parameter is not None and parameter.ndim < 2


def _factors(node: Any) -> tuple[Any, Any] | None:
    """The nodes of the two factors of a matrix product."""
    name = node.name().lower()
    if "bmm" not in name and not name.startswith(("mmbackward", "mvbackward", "addmmbackward")):
        return None
    left, right = (part for part, _ in node.next_functions[-2:])
    return left, right


def _product(node: Any) -> tuple[Any, Any] | None:
    """The two factors of a matrix product of activations."""
    factors = _factors(node)
    if factors is None or node.name().startswith(("Addmm", "Mv")):
        return None
    return None if any(_bare(part) is not None for part in factors) else factors


_NO_INPUT: Final = "is not of a product of q and k"
_NO_VALUES: Final = "is not multiplied with values"
_OWN_VALUES: Final = "has other values in each row, as a mixture of experts"
_UNCLEAR: Final = "reaches a product, but not as weights of its own keys"


def _attention(graph: Graph, softmax: Any, maps: Mapping[Any, int]) -> Core | str:
    """The attention with this softmax, or the reason why there is none."""
    logits = _logits(softmax)
    before = _product_before(logits, maps[softmax])
    query = None if before else _learned_query(logits, maps[softmax])
    if before is None and query is None:
        return _NO_INPUT
    pair, node = None, softmax
    if hasattr(softmax, "_saved_result"):
        pair = _order_after(softmax, maps[softmax], graph.users, maps)
    if pair is None:
        mixed = _mixed(softmax, graph.users, maps)
        if isinstance(mixed, str):
            return mixed
        node, pair = mixed
    order, product = pair
    made = before or query
    assert made is not None
    count, rows = product.rows
    sizes = [1, 1, *map(int, shape_of(made))]
    asked = sizes[-1] * sizes[-2] // shape_of(softmax)[maps[softmax]]
    if before and rows == 1 < asked and count == math.prod(sizes[:-2]) * asked:
        return _OWN_VALUES
    if query:
        # Scores that a module of their own computes are a gate, not a query.
        call, around = graph.call_of(query), graph.call_of(product.node)
        if call is not None and (around is None or call not in around.chain()):
            return _NO_INPUT
    shape = shape_of(node)
    if len(order) == 2 and rows == 1:
        order = (order[0], -1, order[1])
    if len(order) < 3:
        return _NO_VALUES
    ordered = tuple(1 if axis < 0 else int(shape[axis]) for axis in order)
    factors = _factors(made)
    assert factors is not None
    return Core(node, False, ordered, order, factors, product)


def _normalised(node: Any) -> int | None:
    """The axis over which the result of a node is a softmax or a quotient of weights by their sum.

    exp(x) / sum(exp(x)), exp(log_softmax(x)) and exp(x - logsumexp(x)) are such nodes.
    """
    name = node.name()
    if "SoftmaxBackward" in name and "Log" not in name:
        return int(_signed(node._saved_dim) % node._saved_result.ndim)
    parts = [part for part, _ in node.next_functions]
    if not parts or parts[0] is None:
        return None
    size = _axes(node)
    if name.startswith("ExpBackward"):
        if "LogSoftmaxBackward" in parts[0].name():
            return int(_signed(parts[0]._saved_dim) % size)
        if not parts[0].name().startswith("SubBackward"):
            return None
        x, total = (part for part, _ in parts[0].next_functions)
        total = _back(total, _LAYOUT)
        if total is None or not total.name().startswith("LogsumexpBackward"):
            return None
        return _only(total, size) if total.next_functions[0][0] is x else None
    if len(parts) < 2:
        return None
    if name.startswith("DivBackward"):
        pairs = [parts]
    elif name.startswith("MulBackward"):
        turned = [(top, _back(bottom, _LAYOUT)) for top, bottom in (parts, parts[::-1])]
        pairs = [
            [top, one.next_functions[0][0]]
            for top, one in turned
            if one is not None and one.name().startswith("ReciprocalBackward")
        ]
    else:
        return None
    for top, bottom in pairs:
        total = _back(bottom, _DENOMINATOR)
        if total is None or not total.name().startswith("SumBackward1"):
            continue
        if not _origins(top).isdisjoint(_origins(total.next_functions[0][0])):
            return _only(total, size)
    return None


def _back(node: Any, names: Sequence[str]) -> Any:
    """The first node that is none of `names`, from a node backwards; None for a constant."""
    while node is not None and not _is_leaf(node) and _is(node, names):
        node = next((part for part, _ in node.next_functions if part is not None), None)
    return node


def _layouts(node: Any) -> Iterator[Any]:
    """A node and those before it up to, and with, the first that changes values."""
    while node is not None and not _is_leaf(node):
        yield node
        node = node.next_functions[0][0] if _is(node, _LAYOUT) else None


def _only(node: Any, size: int) -> int | None:
    """The axis of a reduction over one axis of `size` axes."""
    axes = node._saved_dim
    return int(_signed(axes[0]) % size) if len(axes) == 1 else None


def _origins(node: Any) -> set[Any]:
    """The inputs of exp and softmax from which a node was computed elementwise."""
    origins, seen, waiting = set(), set(), [node]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen or _is_leaf(one):
            continue
        seen.add(one)
        if one.name().startswith("ExpBackward") or "SoftmaxBackward" in one.name():
            origins.add(one.next_functions[0])
        elif _is(one, _AFTER):
            waiting += [part for part, _ in one.next_functions]
    return origins


def _logits(softmax: Any) -> tuple[Any, int]:
    """The node and output that made the input of a softmax, before its maximum is subtracted."""
    node = softmax
    while "Softmax" not in node.name() and not node.name().startswith("ExpBackward"):
        node = next(part for part, _ in node.next_functions if part is not None and _origins(part))
    edge: tuple[Any, int] = node.next_functions[0]
    inner = edge[0]
    subtracted = inner is not None and _is(inner, ("SubBackward", "LogSoftmax"))
    if node.name().startswith("ExpBackward") and subtracted:
        edge = inner.next_functions[0]
    return edge


def _product_before(logits: tuple[Any, int], keys: int) -> Any:
    """The product of activations q k^T from which logits come, or None.

    One linear map over another axis than those of queries and keys may stand in between.
    """
    waiting = [logits[0]]
    for mixed in (False, True):
        seen, later = set(), []
        while waiting:
            one = waiting.pop(0)
            if one is None or one in seen or _is_leaf(one):
                continue
            seen.add(one)
            if _product(one) is not None:
                if not mixed or _aligned(logits, keys, one):
                    return one
            elif (factors := _factors(one)) is not None:
                later += [part for part in factors if _bare(part) is None]
            elif one.name().startswith("ConvolutionBackward"):
                later.append(one.next_functions[0][0])
            elif _is(one, _BEFORE):
                waiting += [part for part, _ in one.next_functions]
        waiting = later
    return None


def _aligned(edge: tuple[Any, int], keys: int, product: Any) -> bool:
    """Whether a result of a product reaches only one query and key, though all heads may mix."""
    sizes, outer = shape_of(product), shape_of(*edge)
    axes = _traced(edge, keys, product)[1]
    for inner in {len(sizes) - 1, len(sizes) - 2} & axes.keys():
        other = 2 * len(sizes) - 3 - inner
        if sizes[other] == 1 or any(
            outer[axis] == sizes[other] and other in _traced(edge, axis, product)[1]
            for axis in range(len(outer))
            if axis != keys
        ):
            return True
    return False


def _learned_query(logits: tuple[Any, int], keys: int) -> Any:
    """The product of a parameter and activations whose keys are activations, or None.

    In x W of a router, the keys are rows of the parameter W: the experts.
    """
    product = logits[0]
    seen, waiting = set(), [product]
    while waiting:
        product = waiting.pop(0)
        if product is None or product in seen or _is_leaf(product):
            continue
        seen.add(product)
        factors = _factors(product)
        if factors is None:
            waiting += [p for p, _ in product.next_functions] if _is(product, _BEFORE) else []
            continue
        if product.name().startswith("Addmm"):
            continue
        sizes = shape_of(product)
        bare = [_bare(part) is not None for part in factors]
        share, axes = _traced(logits, keys, product)
        size = shape_of(*logits)[keys]
        of_parameter = len(sizes) - (2 if bare[0] else 1)
        vector = product.name().startswith("MvBackward")
        if sum(bare) == 1 and 0 < share <= 1 / size < 1 and (vector or of_parameter not in axes):
            return product
    return None


def _mixed(
    softmax: Any, users: Mapping[Any, Sequence[Any]], maps: Mapping[Any, int]
) -> tuple[Any, tuple[tuple[int, ...], _Product]] | str:
    """The node that computes A from a softmax, with axes and product; or why there is none.

    Each weight must depend on the softmax at one key, but may depend on all heads.
    """
    seen, waiting, met = {softmax}, [softmax], False
    while waiting and len(seen) < _FAR:
        one = waiting.pop(0)
        for user in users[one]:
            if user in seen or user in maps:
                continue
            seen.add(user)
            if _product(user) is None:
                waiting.append(user)
                continue
            met = True
            for side in (0, 1):
                product = _Product(user, side)
                if product.factor is None:
                    continue
                # Linear maps and products join axes, which nodes in between separate again.
                chain = [node for node in _layouts(product.edge[0]) if node in seen]
                for node in sorted(chain, key=lambda node: _axes(node) != _axes(softmax)):
                    keys = product.keys(node) if len(node._input_metadata) == 1 else None
                    if keys is None or maps[softmax] not in _traced((node, 0), keys, softmax)[1]:
                        continue
                    pair = _order_after(node, keys, users, maps)
                    if pair is not None:
                        return node, pair
    return _UNCLEAR if met else _NO_VALUES


def _pull(edge: tuple[Any, int], node: Any, gradient: Tensor) -> Tensor:
    """The gradient by the result of `node`, for this gradient by the result at an edge after it."""
    if edge[0] is node:
        return gradient
    (pulled,) = torch.autograd.grad(
        [GradientEdge(*edge)], [GradientEdge(node, 0)], [gradient], retain_graph=True
    )
    return pulled


def _traced(edge: tuple[Any, int], axis: int, node: Any) -> tuple[float, dict[int, int]]:
    """Where the result of `node` influences one index of an axis of the result at a later edge.

    Returns:
        The share of elements with influence, and the axes along which they have one index only.
    """
    meta = edge[0]._input_metadata[edge[1]]
    given = torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)
    one = given.select(axis, min(1, given.shape[axis] - 1))
    # Random, so that no sum of them is zero.
    noise = torch.rand(one.shape, generator=torch.Generator().manual_seed(0))
    one.copy_(noise + 0.5)
    places = _pull(edge, node, given).nonzero()
    shape = shape_of(node)
    single = {
        axis: int(places[0, axis])
        for axis, size in enumerate(shape)
        if size > 1 and len(places) and bool((places[:, axis] == places[0, axis]).all())
    }
    return len(places) / max(1, math.prod(shape)), single


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _order_after(
    node: Any, keys: int, users: Mapping[Any, Sequence[Any]], maps: Mapping[Any, int]
) -> tuple[tuple[int, ...], _Product] | None:
    """The axes of the result of a node in the order of its product with v, keys last.

    Transpositions are followed up to the first change of shape, which joins axes in their order.

    Returns:
        The axes and the product, or None if there is no product.
    """
    # An axis that was inserted is -1.
    start = list(range(_axes(node)))
    seen, waiting = {node}, [(node, start, True)]
    while waiting:
        one, axes, open_ = waiting.pop(0)
        for user in users[one]:
            # A product with a parameter is not the product with v: talking heads mix maps this way.
            if (factors := _product(user)) is not None:
                lead = [axis for axis in axes if axis not in (-1, keys)]
                return (*lead, keys), _Product(user, 0 if factors[0] is one else 1)
            if user in seen or user in maps or not _is(user, _AFTER):
                continue
            seen.add(user)
            moved, going = _moved(user, axes) if open_ else (axes, False)
            waiting.append((user, moved, going))
    return None


def _moved(node: Any, axes: list[int]) -> tuple[list[int], bool]:
    """The axes after a node, and whether the axes after the next node are known too."""
    name = node.name()
    if name.startswith("PermuteBackward"):
        return [axes[_signed(axis)] for axis in node._saved_dims], True
    if name.startswith("TransposeBackward"):
        first, second = (_signed(axis) for axis in (node._saved_dim0, node._saved_dim1))
        axes = list(axes)
        axes[first], axes[second] = axes[second], axes[first]
        return axes, True
    if name.startswith("UnsqueezeBackward"):
        axis = _signed(node._saved_dim) % (len(axes) + 1)
        return [*axes[:axis], -1, *axes[axis:]], True
    closing = ("View", "Reshape", "Squeeze", "Select", "AsStrided", "Unbind")
    return axes, not _is(node, closing)


def _between(last: Any, reached: set[Any]) -> list[Any]:
    """The nodes in `reached` from which `last` was computed."""
    nodes, waiting = {last}, [last]
    while waiting:
        for before, _ in waiting.pop().next_functions:
            if before in reached and before not in nodes:
                nodes.add(before)
                waiting.append(before)
    return sorted(nodes, key=lambda node: int(node._sequence_nr()))
