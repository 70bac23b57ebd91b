"""Attention in the autograd graph of a loss: the one module that reads internals of torch.

The backward nodes of attention save the tensors that the sensitivity needs: fused attention saves
q, k, v and the mask, a softmax saves A. A hook on the node receives the gradient. The call of a
module that created a node is found by comparing the sequence number of the node with the numbers at
entry and exit of the call. Nothing is inserted into the forward pass.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spat.attention.views import Mixing, Source, Weighted

# Parts of the names of backward nodes. Nodes that change the layout of a tensor but not its values:
_LAYOUT: Final = (
    "View", "Expand", "Transpose", "Permute", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Select",
    "TBackward", "Clone", "ToCopy", "Unsafe", "Alias", "AsStrided", "Contiguous", "ConstantPad",
)  # fmt: skip
# Nodes between A and its product with v, and nodes between q k^T and the softmax:
_AFTER: Final = (*_LAYOUT, "Dropout", "Mul", "Div", "MaskedFill", "Where", "NanToNum")
_BEFORE: Final = (
    *_AFTER, "Add", "Sub", "Tanh", "Neg", "Index", "Gather", "Copy", "Clamp", "Cat", "Masked",
)  # fmt: skip


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
    """One softmax(q k^T) v of a forward pass."""

    node: Any
    fused: bool
    shape: tuple[int, ...]  # [..., Q, K]
    order: tuple[int, ...]  # axes of the saved A in the order of `shape`; of fused ones empty
    operands: tuple[Any, Any]  # the nodes that made q and k
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
            A = self._kept["A"].permute(self.order)
            g = torch.zeros_like(A) if self.gradient is None else self.gradient.permute(self.order)
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
            self._kept = {"A": node._saved_result}
        return node.register_prehook(self._note)

    def _note(self, gradients: Sequence[Tensor | None]) -> None:
        self.gradient = gradients[0]


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
    """The keys with a weight above 0: bool [rows, keys] if all maps agree, else the shape of A."""
    positive = A > 0
    first = positive.flatten(0, -3)[0]
    return first.cpu() if bool((positive == first).all()) else positive


@dataclass
class Graph:
    """The calls of modules and the attention in one forward pass."""

    calls: list[Call]
    cores: list[Core]
    users: dict[Any, list[Any]]

    def call_of(self, node: Any) -> Call | None:
        """The innermost call that created a node."""
        number = node._sequence_nr()
        around = [call for call in self.calls if call.start <= number < call.stop]
        return min(around, key=lambda call: call.stop - call.start, default=None)

    def sums(self, start: Any) -> Iterator[tuple[Any, list[Any], Any]]:
        """The sums with one addend that depends on `start` and one that does not, in forward order.

        Yields each sum with the nodes between it and `start`, and the node of the other addend.
        The addition of a bias is not such a sum.
        """
        reached, waiting, count = {start}, [(start._sequence_nr(), 0, start)], 1
        while waiting:
            node = heapq.heappop(waiting)[2]
            parts = _addends(node, reached) if node is not start else []
            if parts and (parts[0] in reached) != (parts[1] in reached):
                inner, outer = parts if parts[0] in reached else parts[::-1]
                if not _bias(outer):
                    yield node, _between(inner, reached), outer
            for user in self.users[node]:
                if user not in reached:
                    reached.add(user)
                    heapq.heappush(waiting, (user._sequence_nr(), count, user))
                    count += 1

    def tensor(self, node: Any, like: Tensor, owner: Call | None) -> Tensor | None:
        """The tensor of a node: an input or output of a module with the shape of `like`, or None.

        An input of the model has no node; then it is the first input of `owner`.
        """
        if node is None:
            x = owner.x if owner is not None else None
            return x if x is not None and not x.requires_grad and x.shape == like.shape else None
        for call in self.calls:
            for t in (call.x, call.y):
                if t is not None and t.grad_fn is node and t.shape == like.shape:
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

    A softmax is attention if its input comes from a product of two activations and its result
    enters another product. Gates and routers of experts do not satisfy this.
    """
    users: dict[Any, list[Any]] = defaultdict(list)
    nodes, waiting = {loss.grad_fn}, [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        for before, _ in node.next_functions:
            if before is not None:
                users[before].append(node)
                if before not in nodes:
                    nodes.add(before)
                    waiting.append(before)
    for call in calls:
        _choose_output(call, users)
    graph = Graph(calls, [], users)
    for node in nodes:
        name = node.name()
        if "ScaledDotProduct" in name:
            q, k = node._saved_query, node._saved_key
            q_node, k_node = (part for part, _ in node.next_functions[:2])
            graph.cores.append(Core(node, True, (*q.shape[:-1], k.shape[-2]), (), (q_node, k_node)))
        elif "SoftmaxBackward" in name and "Log" not in name:
            product = _product_before(node)
            order = _order_after(node, users)
            if product is not None and order is not None and len(order) > 2:
                shape = tuple(node._saved_result.shape[axis] for axis in order)
                graph.cores.append(Core(node, False, shape, order, product))
    graph.cores.sort(key=lambda core: core.node._sequence_nr())
    for core in graph.cores:
        core.call = graph.call_of(core.node)
    return graph


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


def _product(node: Any) -> tuple[Any, Any] | None:
    """The two factors of a matrix product of activations."""
    name = node.name().lower()
    if "bmm" not in name and not name.startswith("mmbackward"):
        return None
    left, right = (part for part, _ in node.next_functions[-2:])
    if _bare(left) is not None or _bare(right) is not None:
        return None
    return left, right


def _product_before(node: Any) -> tuple[Any, Any] | None:
    seen, waiting = set(), [part for part, _ in node.next_functions]
    while waiting:
        one = waiting.pop(0)
        if one is None or one in seen or _is_leaf(one):
            continue
        seen.add(one)
        if (factors := _product(one)) is not None:
            return factors
        if _is(one, _BEFORE) and "mm" not in one.name().lower():
            waiting += [part for part, _ in one.next_functions]
    return None


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _order_after(node: Any, users: dict[Any, list[Any]]) -> tuple[int, ...] | None:
    """The axes of A in the order of its product with v, keys last; None if there is no product.

    Transpositions are followed up to the first change of shape, which joins axes in their order.
    """
    size = node._saved_result.ndim
    # An axis that was inserted is -1.
    start = list(range(size))
    seen, waiting = {node}, [(node, start, True)]
    keys = _signed(node._saved_dim) % size
    while waiting:
        one, axes, open_ = waiting.pop(0)
        for user in users[one]:
            # A product with a parameter is not the product with v: talking heads mix maps this way.
            if _product(user) is not None:
                lead = [axis for axis in axes if axis not in (-1, keys)]
                return (*lead, keys)
            if user in seen or not _is(user, _AFTER):
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
    return axes, not _is(node, ("View", "Reshape", "Squeeze", "Select", "AsStrided"))


def _between(last: Any, reached: set[Any]) -> list[Any]:
    """The nodes in `reached` from which `last` was computed."""
    nodes, waiting = {last}, [last]
    while waiting:
        for before, _ in waiting.pop().next_functions:
            if before in reached and before not in nodes:
                nodes.add(before)
                waiting.append(before)
    return sorted(nodes, key=lambda node: int(node._sequence_nr()))
