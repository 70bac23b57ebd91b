"""The autograd graph of a loss, with the calls of modules that created its nodes.

The call of a module that created a node is found by comparing the sequence number of the node with
the numbers at entry and exit of the call.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spat.attention.containers import Argument, arguments, passed_through
from spat.attention.nodes import (
    addend_scale,
    addends_of,
    depends_on,
    is_leaf,
    is_linear_between,
    leaf_of,
    next_number,
    nodes_between,
    number_of,
    pushed,
    recomputed,
    shape_of,
    stems_of,
)


@dataclass(frozen=True, eq=False)
class Input:
    """A floating input of a call: the one with this index in an argument, and the node of it."""

    argument: Argument
    index: int
    shape: tuple[int, ...]
    node: Any


@dataclass(eq=False)
class Call:
    """One call of a module: its inputs and output, and sequence numbers at entry and exit."""

    name: str
    module: nn.Module
    parent: Call | None
    start: int
    stop: int = 0
    arguments: int = 0  # how many were given
    inputs: list[Input] = field(default_factory=list)
    queries: set[Any] = field(default_factory=set)  # the nodes its attention has its queries from
    given: frozenset[int] = frozenset()  # identities of floating inputs
    passed: dict[Any, Argument] = field(default_factory=dict)  # see `passed_through`
    x: Tensor | None = None
    output: Any = None
    y: Tensor | None = None  # the floating tensor of the output that is used later, or the first
    end: Any = None  # the node that made y
    version: int = 0  # of the first floating tensor of the output

    def chain(self) -> list[Call]:
        """The call and its enclosing calls, from the inside to the outside."""
        return [self, *(self.parent.chain() if self.parent else [])]


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum of which the addend `inner` depends on a branch and the addend `outer` does not.

    Both are edges. The node of `outer` is None for an input of the model, and `side` is its place
    in the sum, 0 or 1. `path` are the nodes of the branch.
    """

    node: Any
    inner: tuple[Any, int]
    outer: tuple[Any, int]
    side: int
    path: list[Any]


@dataclass
class Graph:
    """The calls of modules and the backward nodes of one forward pass."""

    calls: list[Call]
    nodes: list[Any]
    users: dict[Any, list[Any]]

    @classmethod
    def of(cls, loss: Tensor, calls: list[Call]) -> Graph:
        """The graph of a loss with `grad_fn`; its nodes are in forward order."""
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
        return cls(calls, sorted(nodes, key=number_of), users)

    def call_of(self, node: Any) -> Call | None:
        """The innermost call that created a node."""
        number = number_of(node)
        around = [call for call in self.calls if call.start <= number < call.stop]
        return min(around, key=lambda call: call.stop - call.start, default=None)

    def sums(self, start: Any) -> Iterator[Sum]:
        """The sums with one addend that depends on `start` and one that does not, in forward order.

        The addition of a bias or constant is not such a sum, nor that of a parameter from which
        `start` was not computed.
        """
        reached, waiting, count = {start}, [(number_of(start), 0, start)], 1
        while waiting:
            node = heapq.heappop(waiting)[2]
            parts = addends_of(node, reached) if node is not start else []
            if parts and (parts[0][0] in reached) != (parts[1][0] in reached):
                side = int(parts[0][0] in reached)
                inner, outer = parts[1 - side], parts[side]
                if self._is_stream(outer[0], node, start):
                    yield Sum(node, inner, outer, side, nodes_between(inner[0], reached))
            for user in self.users[node]:
                if user not in reached:
                    reached.add(user)
                    heapq.heappush(waiting, (number_of(user), count, user))
                    count += 1

    def _is_stream(self, outer: Any, total: Any, start: Any) -> bool:
        """Whether an addend may be a residual stream.

        An addend without a node may be an input of the model if a module has an input of its size
        without gradient. The other such addends are constants, for example the epsilon in a norm,
        whose sum has a last axis of size 1.
        """
        if outer is None:
            shape = shape_of(total)
            inputs = (call.x for call in self.calls if call.x is not None)
            size = math.prod(shape)
            return (
                len(shape) > 0
                and shape[-1] > 1
                and any(x.numel() == size for x in inputs if not x.requires_grad)
            )
        leaf = leaf_of(outer)
        return leaf is None or (leaf.variable.ndim > 1 and depends_on(start, leaf))

    def stream(self, start: Any, first: Any, call: Call) -> Sum:
        """The residual sum behind `start`, from the sum `first` on.

        The input of the call comes from its other addend: in x + mlp(x) + attention(x), the first
        sum may be that with the other branch. If there is no such sum, the result is `first`.
        """
        end = call.x.grad_fn if call.x is not None else None
        sums = []
        for one in itertools.islice(self.sums(start), 5):
            if number_of(one.node) < number_of(first):
                continue
            sums.append(one)
            outer = one.outer[0]
            if outer is None or end is None:
                continue
            if depends_on(end, outer) or depends_on(end, *stems_of(outer)):
                return one
        # An addend without a node may be the input of the model, or a constant.
        return next((one for one in sums if one.outer[0] is None), sums[0])

    def addends(
        self, one: Sum, output: Call, owner: Call | None, first: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the output of a call is added to in a sum, and the result of that.

        In x + mlp(x) + y, the result is x + y. The stream of scale * x + y is scale * x. Both are
        None if they cannot be computed from the inputs and outputs of modules.
        """
        shape, known = shape_of(one.node), self._tensors
        whole = known.get((one.node, 0))
        stream = recomputed(one.outer, known)
        if one.outer[0] is None and whole is not None:
            # An input of the model that was scaled has no node either: only the rest tells.
            rest = self._rest(one, output, first)
            stream = self._input(shape, output, owner)
            if stream is not None and rest is not None and not _close(stream, rest, whole):
                stream = None
        if stream is not None:
            stream = (stream * addend_scale(one.node, one.side)).expand(shape)
        else:
            stream = self._rest(one, output, first)
        total = whole if one.node is first else None
        if total is None and stream is not None:
            term = self._term(one, output)
            total = None if term is None else stream + term
        return (None, None) if stream is None or total is None else (stream, total)

    def _term(self, one: Sum, output: Call) -> Tensor | None:
        """What the output of a call contributes to a sum, if the sum is linear in it."""
        y, path = output.y, nodes_between(one.node, self._after(output.end, one.node))
        if y is None or not (y.grad_fn is output.end is path[0]) or not is_linear_between(path):
            return None
        return pushed((one.node, 0), [((output.end, y.output_nr), y.detach())])

    def _rest(self, one: Sum, output: Call, first: Any) -> Tensor | None:
        """A sum that is the input or output of a module, without its addend `inner`."""
        whole = self._tensors.get((one.node, 0))
        if whole is None:
            return None
        if one.node is first:
            inner = self._term(one, output)
            return None if inner is None else whole - inner
        inner = recomputed(one.inner, self._tensors)
        return None if inner is None else whole - addend_scale(one.node, 1 - one.side) * inner

    def _after(self, node: Any, last: Any) -> set[Any]:
        """A node and those that were computed from it, up to `last`."""
        after, waiting = {node}, [node]
        while waiting:
            for user in self.users[waiting.pop()]:
                if user not in after and number_of(user) <= number_of(last):
                    after.add(user)
                    waiting.append(user)
        return after

    @cached_property
    def _tensors(self) -> dict[tuple[Any, int], Tensor]:
        """The inputs and outputs of modules, by their edges."""
        tensors = [t for call in self.calls for t in (call.x, *floating(call.output))]
        return {
            (t.grad_fn, t.output_nr): t.detach()
            for t in tensors
            if t is not None and t.grad_fn is not None
        }

    def _input(self, shape: Sequence[int], output: Call, owner: Call | None) -> Tensor | None:
        """The input of the model that is an addend of this shape: it has no node.

        It is the first input of `owner`, or that of a module before the sum within `owner`.
        """
        before = [
            call.x
            for call in ([owner] if owner else []) + self.calls
            if owner is None or (owner.start <= call.start <= output.start)
        ]
        fitting = [x for x in before if x is not None and not x.requires_grad and x.shape == shape]
        return fitting[0] if fitting and all(torch.equal(fitting[0], x) for x in fitting) else None

    def leak(self, call: Call) -> str | None:
        """The module (quoted) that uses results of a call besides its first output, or None.

        A result that is an argument of the call does not count.
        """
        for node, users in self.users.items():
            if node is call.end or not call.start <= number_of(node) < call.stop:
                continue
            for user in users:
                if not call.start <= number_of(user) < call.stop:
                    return self._home(user)
        for t in floating(call.output):
            # A parameter has a node of its own, outside of every call.
            if t.is_leaf and t.requires_grad and t is not call.y and id(t) not in call.given:
                for node, users in self.users.items():
                    if is_leaf(node) and node.variable is t:
                        for user in users:
                            if not call.start <= number_of(user) < call.stop:
                                return self._home(user)
        return None

    def receiver(self, call: Call) -> str | None:
        """The module (quoted) that is given a result of a call besides its first output, or None.

        The loss need not depend on what that module computes.
        """
        others = {id(t) for t in floating(call.output) if t is not call.y} - call.given
        for other in self.calls:
            if other.start >= call.stop and not others.isdisjoint(other.given):
                return place_of(other)
        return None

    def _home(self, node: Any) -> str:
        """The module (quoted) that created a node."""
        return place_of(self.call_of(node))

    def sources(self, node: Any, call: Call) -> set[Any]:
        """The nodes that existed before a call and from which `node`, within it, was computed."""
        sources, seen, waiting = set(), set(), [node]
        while waiting:
            one = waiting.pop()
            if one is None or one in seen or is_leaf(one):
                continue
            seen.add(one)
            if number_of(one) < call.start:
                sources.add(one)
            else:
                waiting += [before for before, _ in one.next_functions]
        return sources


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[list[Call]]:
    """Context manager that records every call of a module of the model."""
    calls: list[Call] = []
    open_calls: list[Call] = []

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        while open_calls and open_calls[-1].stop:
            open_calls.pop()
        call = Call(name, module, open_calls[-1] if open_calls else None, next_number())
        call.arguments = len(args) + len(kwargs)
        tensors = floating((args, kwargs))
        call.inputs = [
            Input(argument, i, tuple(t.shape), t.grad_fn)
            for argument, value in arguments(module, args, kwargs)
            for i, t in enumerate(floating(value))
        ]
        call.given = frozenset(map(id, tensors))
        call.x = tensors[0] if tensors else None
        open_calls.append(call)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = open_calls.pop()
        call.passed = passed_through(output, arguments(module, args, kwargs))
        call.stop, call.output = next_number(), output
        call.y = next(iter(floating(output)), None)
        if call.y is not None:
            call.end, call.version = call.y.grad_fn, call.y._version
        calls.append(call)

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                enter(name, module, args, kwargs)

            handle = module.register_forward_pre_hook(before, with_kwargs=True)
            hooks.callback(handle.remove)
            handle = module.register_forward_hook(leave, with_kwargs=True)
            hooks.callback(handle.remove)
        yield calls


def _choose_output(call: Call, users: Mapping[Any, Sequence[Any]]) -> None:
    """Set `y` to the first tensor of the output that is used after the call."""
    for t in floating(call.output):
        later = users.get(t.grad_fn, ()) if t.grad_fn is not None else ()
        if any(number_of(user) >= call.stop for user in later):
            call.y, call.end = t, t.grad_fn
            return


def _close(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    """Whether tensors differ by rounding errors of values of the size of `scale`."""
    error = 16 * torch.finfo(scale.dtype).eps * float(scale.abs().max())
    return torch.allclose(a, b, rtol=0.0, atol=error)


def place_of(call: Call | None) -> str:
    """The name of the module of a call, quoted."""
    return repr(call.name or type(call.module).__name__) if call else "the loss"


def floating(tree: Any) -> list[Tensor]:
    """The floating tensors in nested containers and dataclasses, in order."""
    tensors: list[Tensor] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            tensors += [leaf] if leaf.is_floating_point() else []
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            tensors += floating([getattr(leaf, field.name) for field in fields(leaf)])
    return tensors
