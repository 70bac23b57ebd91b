"""Recognise attention in the autograd graph of a loss.

The backward nodes of attention save the tensors that the sensitivity needs: fused attention saves
q, k, v and the mask, a softmax saves A. Where A is computed from a softmax (talking heads, a
difference of two maps, exp(x) / sum(exp(x))), it is taken from the product with v, which saves both
of its factors. The backward pass gives its gradient. Nothing is inserted into the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from spat.attention.graph import Call, Graph, place_of
from spat.attention.layout import Factor, factor_of, folded, token_features, used
from spat.attention.nodes import (
    LAYOUT,
    FusedInputs,
    activation_factors,
    axis_count,
    factors_of,
    fused_inputs,
    has_own_backward,
    influence,
    is_fused,
    is_leaf,
    layout_chain,
    moved_axes,
    named,
    number_of,
    parameter_of,
    pulled,
    reduced_axis,
    result_count,
    saved_factor,
    saved_result,
    shape_of,
    skip_back,
    softmax_axis,
)
from spat.attention.views import Mixing, Source, Weighted

# Parts of the names of backward nodes.
# Nodes between A and its product with v, and nodes between q k^T and the softmax:
_AFTER: Final = (
    *LAYOUT, "Dropout", "Mul", "Div", "MaskedFill", "Where", "NanToNum", "Split", "Unbind",
)  # fmt: skip
_BEFORE: Final = (
    *_AFTER, "Add", "Sub", "Tanh", "Neg", "Index", "Gather", "Copy", "Clamp", "Cat", "Masked",
)  # fmt: skip

# Nodes between a sum over keys and the quotient that it is the denominator of:
_DENOMINATOR: Final = (*LAYOUT, "Add", "Clamp", "Maximum")
# The number of nodes after a softmax that are searched for a product with v.
_FAR: Final = 200


@dataclass(eq=False)
class Core:
    """One softmax(q k^T) v of a forward pass. Its `node` is fused attention, or made A."""

    node: Any
    shape: tuple[int, ...]  # [..., Q, K]
    # The axes of A in the order of `shape`, -1 for one of size 1 that A lacks; of fused ones empty.
    order: tuple[int, ...]
    operands: tuple[Any, Any]  # the nodes that made q and k
    product: Product | None = None  # of A and v, if A is not fused
    call: Call | None = None
    gradient: Tensor | None = None  # by O where fused, else by A
    heads: Factor | None = None  # of the maps, if the graph tells
    _inputs: FusedInputs | None = None
    _weights: Tensor | None = None

    @property
    def maps(self) -> int:
        """The number of maps, of all samples and heads."""
        return math.prod(self.shape[:-2])

    def find_heads(self, graph: Graph, last: Call) -> None:
        """Set `heads` if the graph tells them: the maps whose results are features of one token.

        `last` is the call whose output is added to the stream.
        """
        start, features = self.node, -1
        if self.product is not None:
            start, features = self.product.node, -1 - self.product.side
        token = token_features(start, features, graph, last)
        if token is None:
            return
        if self.product is not None:
            token = self.product.rows_back(token, self.node)
            self._put_queries_last(self.product.rows[1], token)
        self.heads = factor_of(self.touched(token))
        # In [..., H, T, 1, keys], each query has keys of its own, as in a sliding window.
        if self.order and len(self.shape) > 4 and self.heads == (*self.shape[-4:-2],):
            *lead, queries, one, keys = self.shape
            if one == 1 < queries:
                self.shape, self.heads = (*lead, queries, keys), Factor(lead[-1], 1)

    def _put_queries_last(self, rows: int, token: Tensor) -> None:
        """Put the axis of queries behind others, such as heads, that are rows of the product too.

        A token has one query. torch.einsum joins heads with queries if they share keys and values.
        """
        *lead, keys = self.order
        joined: list[int] = []
        while lead and math.prod(token.shape[axis] for axis in joined) < rows:
            joined.insert(0, lead.pop())
        if len(joined) < 2:
            return
        single = [axis for axis in joined if token.shape[axis] > 1 == used(token, axis)]
        if len(single) == 1:
            others = [axis for axis in joined if axis not in single]
            self.order = (*lead, *others, *single, keys)
            self.shape = tuple(token.shape[axis] for axis in self.order)

    def touched(self, gradient: Tensor) -> Tensor:
        """The maps for which a gradient by the result of the node is not zero, bool [maps]."""
        ordered = self._ordered(gradient) if self.order else gradient
        return (ordered != 0).any(-1).any(-1).flatten()

    def source(self, windows: Factor, heads: Factor) -> Source:
        """The source of `Mixing` after `backward`, with these factors of the maps."""

        def fold(t: Tensor) -> Tensor:
            return folded(t.detach(), windows, heads)

        if self._inputs is None:
            A, g = self._weights, self.gradient
            assert A is not None
            A, g = (self._ordered(t) for t in (A, torch.zeros_like(A) if g is None else g))
            return Weighted(fold(A), fold(g), allowed(fold(A)))
        q, k, v, mask, causal, scale = self._inputs
        g = torch.zeros_like(q) if self.gradient is None else self.gradient
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        if mask is not None:
            mask = fold(mask.expand(*q.shape[:-1], k.shape[-2]))
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
        return Fused(fold(q), fold(k), fold(v), fold(g), mask, causal, scale)

    def keep(self) -> None:
        """Keep the saved tensors of the node, which the backward pass frees."""
        if self.product is None:
            self._inputs = fused_inputs(self.node)
        else:
            self._weights = self.product.weights(self.node)

    def _ordered(self, t: Tensor) -> Tensor:
        return t.permute([axis for axis in self.order if axis >= 0]).reshape(self.shape)


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
class Product:
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
        return saved_factor(self.node, self.side)

    @property
    def rows(self) -> tuple[int, int]:
        """The numbers of products and of rows of A in each."""
        *lead, first, second = shape_of(self.node)
        return math.prod(lead), second if self.side else first

    def weights(self, node: Any) -> Tensor:
        """A as the result of a node that is followed only by changes of layout."""
        result = saved_result(node)
        if result is not None:
            return result
        assert self.factor is not None
        if node is self.edge[0]:
            return self.factor
        # The gradient of a change of layout is the inverse change, or a sum of equal copies.
        A, copies = (
            pulled(self.edge, node, t) for t in (self.factor, torch.ones_like(self.factor))
        )
        return (A / copies).where(copies != 0, 0.0)

    def rows_back(self, result: Tensor, node: Any) -> Tensor:
        """Where the result of `node` becomes those rows of A of which a result is not zero."""
        rows = (result != 0).any(-2 if self.side else -1, keepdim=True)
        return pulled(self.edge, node, rows.to(result).expand(shape_of(*self.edge)))

    def keys(self, node: Any) -> int | None:
        """The axis of the result of `node` over which the product sums; None if it is not clear."""
        axes = influence(self.edge, -2 if self.side else -1, node)[1]
        return next(iter(axes)) if len(axes) == 1 else None


@dataclass
class Attention:
    """The attention in a graph, in forward order.

    `others` has each softmax that is not attention, with the reason. `unsure` are those of them
    between a product of activations and another one, which may be attention of another form. `cut`
    are the modules with operations that have no backward pass, such as quantised ones.
    """

    cores: list[Core] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)


def recognise(graph: Graph) -> Attention:
    """Every attention in a graph, ready for `backward`.

    A softmax, also one that is written with exp, is attention if its input comes from a product of
    q and k and its result is a factor of a product with v. Gates and routers of experts do not
    satisfy this. Linear maps over heads may stand before and after the softmax.
    """
    attention = Attention()
    maps: dict[Any, int] = {}
    for node in graph.nodes:
        if named(node, ("Softmax", "ScaledDotProduct")) and has_own_backward(node):
            inner = graph.call_of(node)
            attention.others.append(
                f"{place_of(inner)} has a softmax with a backward pass of its own"
            )
        elif is_fused(node):
            given = fused_inputs(node)
            operands = node.next_functions[0][0], node.next_functions[1][0]
            shape = (*given.q.shape[:-1], given.k.shape[-2])
            attention.cores.append(Core(node, shape, (), operands))
        elif named(node, ("NotImplemented",)):
            attention.cut.append(place_of(graph.call_of(node)))
        elif (keys := _normalised(node)) is not None:
            maps[node] = keys
    made = set()
    for softmax in maps:
        result = _attention(graph, softmax, maps)
        if isinstance(result, Core):
            # The difference of two maps is one attention.
            attention.cores += [result] if result.node not in made else []
            made.add(result.node)
        elif result:
            where = place_of(graph.call_of(softmax))
            size = " x ".join(map(str, shape_of(softmax)))
            attention.others.append(f"the softmax ({size}) in {where} {result}")
            if result == _UNCLEAR:
                attention.unsure.append(attention.others[-1])
    attention.cores.sort(key=lambda core: number_of(core.node))
    for core in attention.cores:
        core.call = graph.call_of(core.product.node if core.product else core.node)
    return attention


# The node that makes A, its axes in the order of the product with v, keys last, and that product.
_Weights: TypeAlias = tuple[Any, tuple[int, ...], Product]

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
    found: _Weights | str | None = None
    if saved_result(softmax) is not None:
        found = _order_after(softmax, maps[softmax], graph.users, maps)
    if found is None:
        found = _mixed(softmax, graph.users, maps)
    if isinstance(found, str):
        return found
    node, order, product = found
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
    factors = factors_of(made)
    assert factors is not None
    return Core(node, ordered, order, factors, product)


def _normalised(node: Any) -> int | None:
    """The axis over which the result of a node is a softmax or a quotient of weights by their sum.

    exp(x) / sum(exp(x)), exp(log_softmax(x)) and exp(x - logsumexp(x)) are such nodes.
    """
    name = node.name()
    if "Log" not in name and (axis := softmax_axis(node)) is not None:
        return axis
    parts = [part for part, _ in node.next_functions]
    if not parts or parts[0] is None:
        return None
    size = axis_count(node)
    if name.startswith("ExpBackward"):
        if "LogSoftmaxBackward" in parts[0].name():
            return softmax_axis(parts[0])
        if not parts[0].name().startswith("SubBackward"):
            return None
        x, total = (part for part, _ in parts[0].next_functions)
        total = skip_back(total, LAYOUT)
        if total is None or not total.name().startswith("LogsumexpBackward"):
            return None
        return reduced_axis(total, size) if total.next_functions[0][0] is x else None
    if len(parts) < 2:
        return None
    if name.startswith("DivBackward"):
        pairs = [parts]
    elif name.startswith("MulBackward"):
        turned = [(top, skip_back(bottom, LAYOUT)) for top, bottom in (parts, parts[::-1])]
        pairs = [
            [top, one.next_functions[0][0]]
            for top, one in turned
            if one is not None and one.name().startswith("ReciprocalBackward")
        ]
    else:
        return None
    for top, bottom in pairs:
        total = skip_back(bottom, _DENOMINATOR)
        if total is None or not total.name().startswith("SumBackward1"):
            continue
        if not _origins(top).isdisjoint(_origins(total.next_functions[0][0])):
            return reduced_axis(total, size)
    return None


def _origins(node: Any) -> set[Any]:
    """The inputs of exp and softmax from which a node was computed elementwise."""
    origins, seen, waiting = set(), set(), [node]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen or is_leaf(one):
            continue
        seen.add(one)
        if one.name().startswith("ExpBackward") or "SoftmaxBackward" in one.name():
            origins.add(one.next_functions[0])
        elif named(one, _AFTER):
            waiting += [part for part, _ in one.next_functions]
    return origins


def _logits(softmax: Any) -> tuple[Any, int]:
    """The node and output that made the input of a softmax, before its maximum is subtracted."""
    node = softmax
    while "Softmax" not in node.name() and not node.name().startswith("ExpBackward"):
        node = next(part for part, _ in node.next_functions if part is not None and _origins(part))
    edge: tuple[Any, int] = node.next_functions[0]
    inner = edge[0]
    subtracted = inner is not None and named(inner, ("SubBackward", "LogSoftmax"))
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
            if one is None or one in seen or is_leaf(one):
                continue
            seen.add(one)
            if activation_factors(one) is not None:
                if not mixed or _aligned(logits, keys, one):
                    return one
            elif (factors := factors_of(one)) is not None:
                later += [part for part in factors if parameter_of(part) is None]
            elif one.name().startswith("ConvolutionBackward"):
                later.append(one.next_functions[0][0])
            elif named(one, _BEFORE):
                waiting += [part for part, _ in one.next_functions]
        waiting = later
    return None


def _aligned(edge: tuple[Any, int], keys: int, product: Any) -> bool:
    """Whether a result of a product reaches only one query and key, though all heads may mix."""
    sizes, outer = shape_of(product), shape_of(*edge)
    axes = influence(edge, keys, product)[1]
    for inner in {len(sizes) - 1, len(sizes) - 2} & axes.keys():
        other = 2 * len(sizes) - 3 - inner
        if sizes[other] == 1 or any(
            outer[axis] == sizes[other] and other in influence(edge, axis, product)[1]
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
        if product is None or product in seen or is_leaf(product):
            continue
        seen.add(product)
        factors = factors_of(product)
        if factors is None:
            waiting += [p for p, _ in product.next_functions] if named(product, _BEFORE) else []
            continue
        if product.name().startswith("Addmm"):
            continue
        sizes = shape_of(product)
        bare = [parameter_of(part) is not None for part in factors]
        share, axes = influence(logits, keys, product)
        size = shape_of(*logits)[keys]
        of_parameter = len(sizes) - (2 if bare[0] else 1)
        vector = product.name().startswith("MvBackward")
        if sum(bare) == 1 and 0 < share <= 1 / size < 1 and (vector or of_parameter not in axes):
            return product
    return None


def _mixed(
    softmax: Any, users: Mapping[Any, Sequence[Any]], maps: Mapping[Any, int]
) -> _Weights | str:
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
            if activation_factors(user) is None:
                waiting.append(user)
                continue
            met = True
            for side in (0, 1):
                product = Product(user, side)
                if product.factor is None:
                    continue
                # Linear maps and products join axes, which nodes in between separate again.
                chain = [node for node in layout_chain(product.edge[0]) if node in seen]
                for node in sorted(chain, key=lambda node: axis_count(node) != axis_count(softmax)):
                    keys = product.keys(node) if result_count(node) == 1 else None
                    if keys is None or maps[softmax] not in influence((node, 0), keys, softmax)[1]:
                        continue
                    found = _order_after(node, keys, users, maps)
                    if found is not None:
                        return found
    return _UNCLEAR if met else _NO_VALUES


def _order_after(
    node: Any, keys: int, users: Mapping[Any, Sequence[Any]], maps: Mapping[Any, int]
) -> _Weights | None:
    """The axes of the result of a node in the order of its product with v, keys last.

    Transpositions are followed up to the first change of shape, which joins axes in their order.

    Returns:
        The node, the axes and the product, or None if there is no product. If keys without values
        are cut off before the product, as an attention sink, it is the node that cuts them off.
    """
    # An axis that was inserted is -1.
    start = list(range(axis_count(node)))
    seen, waiting = {node}, [(node, start, True)]
    while waiting:
        one, axes, open_ = waiting.pop(0)
        for user in users[one]:
            # A product with a parameter is not the product with v: talking heads mix maps this way.
            if (factors := activation_factors(user)) is not None:
                lead = [axis for axis in axes if axis not in (-1, keys)]
                return node, (*lead, keys), Product(user, 0 if factors[0] is one else 1)
            if user in seen or user in maps or not named(user, _AFTER):
                continue
            seen.add(user)
            moved, going = moved_axes(user, axes) if open_ else (axes, False)
            if going and shape_of(user)[moved.index(keys)] < shape_of(node)[keys]:
                # Of a split, the node after it computes A: see `_mixed`.
                single = result_count(user) == 1
                return _order_after(user, moved.index(keys), users, maps) if single else None
            waiting.append((user, moved, going))
    return None
