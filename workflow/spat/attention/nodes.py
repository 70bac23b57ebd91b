"""Backward nodes of torch: the one module that reads internals of torch.

A node of the autograd graph stands for the operation whose backward pass it is. It saves tensors
and arguments of that operation (`_saved_*`), knows the shapes of its results, and has a sequence
number that grows in the order of the forward pass. The names of nodes tell the operations apart. An
edge is a node with the number of one of its results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

# Parts of the names of backward nodes. Nodes that change the layout of a tensor but not its values:
LAYOUT: Final = (
    "View", "Expand", "Transpose", "Permute", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Select",
    "TBackward", "Clone", "ToCopy", "Unsafe", "Alias", "AsStrided", "Contiguous", "ConstantPad",
)  # fmt: skip
# The number of nodes from which a residual stream is computed.
_FAR: Final = 200
_ACTIVATIONS: Final = (
    "Gelu",
    "Silu",
    "Relu",
    "Elu",
    "Glu",
    "Mish",
    "Hardswish",
    "Softplus",
    "Tanh",
)
# Nodes whose results are linear in all of their inputs together:
_LINEAR: Final = (
    *LAYOUT, "Cat", "Stack", "Split", "Unbind", "Index", "Gather", "Roll", "Flip", "Unfold", "Mean",
    "SumBackward", "AvgPool", "Pad", "Repeat", "Neg", "BackwardHook",
)  # fmt: skip


def shape_of(node: Any, output: int = 0) -> tuple[int, ...]:
    """The shape of a result of a node."""
    return tuple(map(int, node._input_metadata[output].shape))


def axis_count(node: Any) -> int:
    """The number of axes of the result of a node."""
    return len(shape_of(node))


def number_of(node: Any) -> int:
    """The sequence number of a node, by which nodes are in forward order."""
    return int(node._sequence_nr())


def next_number() -> int:
    """The sequence number that the next node of this thread will have."""
    return int(torch._C._autograd._get_sequence_nr())


def result_count(node: Any) -> int:
    """The number of results of a node."""
    return len(node._input_metadata)


def is_wrapped(t: Tensor) -> bool:
    """Whether a tensor is that of a transform of torch.func, which has no node of its own."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(t))


def named(node: Any, names: Sequence[str]) -> bool:
    """Whether the name of a node contains one of `names`."""
    return any(part in node.name() for part in names)


def is_leaf(node: Any) -> bool:
    """Whether a node stands for a parameter, or another tensor that was not computed."""
    return "AccumulateGrad" in node.name()


def parameter_of(node: Any) -> Tensor | None:
    """The parameter of a node that is a parameter or a change of its layout, or None."""
    leaf = leaf_of(node)
    return None if leaf is None else leaf.variable


def leaf_of(node: Any) -> Any:
    """The node of a parameter of which a node is a change of layout, or None."""
    while node is not None and not is_leaf(node) and named(node, LAYOUT):
        node = node.next_functions[0][0]
    return node if node is not None and is_leaf(node) else None


def skip_back(node: Any, names: Sequence[str]) -> Any:
    """The first node that is none of `names`, from a node backwards; None for a constant."""
    while node is not None and not is_leaf(node) and named(node, names):
        node = next((part for part, _ in node.next_functions if part is not None), None)
    return node


def layout_chain(node: Any) -> Iterator[Any]:
    """A node and those before it up to, and with, the first that changes values."""
    while node is not None and not is_leaf(node):
        yield node
        node = node.next_functions[0][0] if named(node, LAYOUT) else None


def nodes_between(last: Any, reached: set[Any]) -> list[Any]:
    """The nodes in `reached` from which `last` was computed."""
    nodes, waiting = {last}, [last]
    while waiting:
        for before, _ in waiting.pop().next_functions:
            if before in reached and before not in nodes:
                nodes.add(before)
                waiting.append(before)
    return sorted(nodes, key=number_of)


def depends_on(last: Any, *nodes: Any) -> bool:
    """Whether the result of `last` was computed from that of one of some nodes."""
    seen: set[Any] = set()
    waiting: list[Any] = [last]
    # Leaves have no place in the order.
    first = min((number_of(node) for node in nodes if not is_leaf(node)), default=0)
    if any(is_leaf(node) for node in nodes):
        first = 0
    while waiting:
        one = waiting.pop()
        if one in nodes:
            return True
        if one is None or one in seen or number_of(one) < first:
            continue
        seen.add(one)
        waiting += [part for part, _ in one.next_functions]
    return False


def addends_of(node: Any, reached: set[Any]) -> list[tuple[Any, int]]:
    """The edges of the two terms of a sum or difference, or of torch.lerp.

    For x + a * b, x and the factor that is in `reached`.
    """
    parts = list(node.next_functions)
    if node.name().startswith("AddcmulBackward"):
        return [parts[0], parts[2] if parts[2][0] in reached else parts[1]]
    if node.name().startswith("LerpBackward"):
        return parts[:2]
    # y - constant is the difference from a target or a mean.
    if node.name().startswith("SubBackward") and parts[1][0] is None:
        return []
    return parts if named(node, ("AddBackward", "SubBackward")) and len(parts) == 2 else []


def addend_scale(node: Any, side: int) -> Tensor | float:
    """The factor by which a sum (`addends_of`) multiplies its addend 0 or 1, if that is x."""
    name = node.name()
    if name.startswith("LerpBackward"):
        weight: Tensor | float = node._saved_weight
        return weight if side else 1 - weight
    if side == 0 or name.startswith("Addcmul"):
        return 1.0
    return -float(node._saved_alpha) if name.startswith("Sub") else float(node._saved_alpha)


def stems_of(node: Any) -> set[Any]:
    """The nodes from which a node was computed by scaling, adding, slicing and joining, with it."""
    stems: set[Any] = set()
    waiting = [node]
    while waiting and len(stems) < _FAR:
        one = waiting.pop(0)
        if one is not None and one not in stems:
            stems.add(one)
            if named(one, (*_LINEAR, "MulBackward", "DivBackward", "AddBackward")):
                waiting += [part for part, _ in one.next_functions]
    return stems


def is_linear_between(nodes: Sequence[Any]) -> bool:
    """Whether the last of these nodes is linear in the first; they are in forward order."""
    path = set(nodes)
    for node in nodes[1:]:
        parts = [part for part, _ in node.next_functions]
        if named(node, ("MulBackward", "Addcmul", "Lerp")):
            # A factor that depends on the first node, too, makes a square.
            if sum(part in path for part in parts) > 1:
                return False
        elif named(node, ("DivBackward",)):
            if parts[0] not in path or (len(parts) > 1 and parts[1] in path):
                return False
        elif not named(node, (*_LINEAR, "AddBackward", "SubBackward")):
            return False
    return True


def is_feed_forward(nodes: Sequence[Any]) -> bool:
    """Whether there is an activation function between two linear maps of these nodes."""
    maps = [node for node in nodes if named(node, ("mmBackward", "MmBackward", "Convolution"))]
    return len(maps) > 1 and any(
        named(node, _ACTIVATIONS) and number_of(maps[0]) < number_of(node) < number_of(maps[-1])
        for node in nodes
    )


def pushed(edge: tuple[Any, int], inputs: Sequence[tuple[tuple[Any, int], Tensor]]) -> Tensor:
    """The result at an edge that is linear in the results at earlier edges, for these values.

    It is the derivative of the backward pass, which is linear in the gradient that it receives.
    """
    meta = edge[0]._input_metadata[edge[1]]
    with torch.enable_grad():
        gradient = torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device, requires_grad=True)
        starts = [GradientEdge(*start) for start, _ in inputs]
        backward = torch.autograd.grad([GradientEdge(*edge)], starts, [gradient], create_graph=True)
        (result,) = torch.autograd.grad(backward, [gradient], [value for _, value in inputs])
    return result


def recomputed(edge: tuple[Any, int], known: Mapping[tuple[Any, int], Tensor]) -> Tensor | None:
    """The result at an edge, from known results and parameters; None if they do not suffice.

    Sums, products and the nodes of `_LINEAR` are computed again. A constant has no node, so that
    its sum is not known.
    """
    if edge in known or edge[0] is None:
        return known.get(edge)
    values: dict[tuple[Any, int], Tensor | None] = dict(known)
    waiting, seen = [edge], 0
    while waiting and seen < _FAR:
        one = waiting[-1]
        parts = [] if one in values else [part for part in _operands(one[0]) if part not in values]
        if one in values or not parts:
            waiting.pop()
            if one not in values:
                values[one] = _computed(one, values)
                seen += 1
        else:
            waiting += parts
    return values.get(edge)


def _operands(node: Any) -> list[tuple[Any, int]]:
    """The edges whose results `_computed` needs."""
    if node is None or is_leaf(node):
        return []
    parts = list(node.next_functions)
    if node.name().startswith("MulBackward"):
        saved = _kept_pair(node)
        return [part for part, value in zip(parts, saved, strict=False) if value is None]
    if node.name().startswith("DivBackward"):
        return parts[:1]
    sums = named(node, ("AddBackward", "SubBackward"))
    return parts if sums or (named(node, _LINEAR) and not named(node, ("ConstantPad",))) else []


def _computed(
    edge: tuple[Any, int], values: Mapping[tuple[Any, int], Tensor | None]
) -> Tensor | None:
    """The result at an edge, for those of its operands."""
    node = edge[0]
    if node is None:
        return None
    if is_leaf(node):
        parameter: Tensor = node.variable
        return parameter.detach()
    name, parts = node.name(), list(node.next_functions)
    if name.startswith(("MulBackward", "DivBackward")):
        saved, ends = _kept_pair(node), (*parts, (None, 0))
        a = values.get(ends[0]) if saved[0] is None else saved[0]
        b = values.get(ends[1]) if saved[1] is None else saved[1]
        if a is None or b is None:
            return None
        result: Tensor = (a * b if name.startswith("Mul") else a / b).detach()
        return result
    inputs = {part: value for part in parts if (value := values.get(part)) is not None}
    if len(inputs) < len(set(parts)) or not _operands(node):
        return None
    if named(node, ("AddBackward", "SubBackward")):
        if len(parts) < 2:  # a number has no edge
            return None
        return inputs[parts[0]] + addend_scale(node, 1) * inputs[parts[1]]
    return pushed(edge, list(inputs.items()))


def factors_of(node: Any) -> tuple[Any, Any] | None:
    """The nodes of the two factors of a matrix product."""
    name = node.name().lower()
    if "bmm" not in name and not name.startswith(("mmbackward", "mvbackward", "addmmbackward")):
        return None
    left, right = (part for part, _ in node.next_functions[-2:])
    return left, right


def activation_factors(node: Any) -> tuple[Any, Any] | None:
    """The two factors of a matrix product of activations."""
    factors = factors_of(node)
    if factors is None or node.name().startswith(("Addmm", "Mv")):
        return None
    return None if any(parameter_of(part) is not None for part in factors) else factors


def features_axis(node: Any, operand: int) -> int | None:
    """The axis of features of an operand of a linear map that all tokens share.

    It is None if the node is not such a map or the operand is its weight.
    """
    if node.name().startswith("ConvolutionBackward"):
        return 1 if operand == 0 else None
    first = operand - (len(node.next_functions) - 2)
    if factors_of(node) is None or first < 0 or node.name().startswith("Mv"):
        return None
    axis = -2 if first else -1
    *lead, rows, columns = shape_of(node)
    weight = parameter_of(node.next_functions[-1 - first][0])
    size = shape_of(*node.next_functions[operand])[axis] * (rows if first else columns)
    shared = math.prod(lead) == 1 or (weight is not None and weight.numel() == size)
    return axis if shared else None


class FusedInputs(NamedTuple):
    """The arguments of fused attention: q [..., H, Q, D], k and v [..., H or fewer, K, D]."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float | None


def is_fused(node: Any) -> bool:
    """Whether a node is fused attention of torch."""
    return "ScaledDotProduct" in node.name() and not has_own_backward(node)


def fused_inputs(node: Any) -> FusedInputs:
    """The arguments of a node of fused attention."""
    mask = getattr(node, "_saved_attn_mask", getattr(node, "_saved_attn_bias", None))
    q, k, v = node._saved_query, node._saved_key, node._saved_value
    return FusedInputs(q, k, v, mask, bool(node._saved_is_causal), node._saved_scale)


def has_own_backward(node: Any) -> bool:
    """Whether a node is a torch.autograd.Function, which does not say what it saves."""
    return hasattr(node, "saved_tensors")


def softmax_axis(node: Any) -> int | None:
    """The axis of a softmax or log_softmax; None for another node."""
    # A model that computes gradients itself also has nodes for the gradient of a softmax.
    if "SoftmaxBackward" not in node.name() or "BackwardData" in node.name():
        return None
    return int(_signed(node._saved_dim) % axis_count(node))


def saved_result(node: Any) -> Tensor | None:
    """The result of a softmax or exp; None for a node that does not save it."""
    return getattr(node, "_saved_result", None)


def saved_factor(node: Any, side: int) -> Tensor | None:
    """Factor 0 or 1 of a matrix product; None if the other one has no gradient."""
    names = ("batch1", "batch2") if "Baddbmm" in node.name() else ("self", "mat2")
    return getattr(node, f"_saved_{names[side]}", None)


def reduced_axis(node: Any, size: int) -> int | None:
    """The axis of a reduction over one axis of `size` axes."""
    axes = node._saved_dim
    return int(_signed(axes[0]) % size) if len(axes) == 1 else None


def moved_axes(node: Any, axes: list[int]) -> tuple[list[int], bool]:
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
    return axes, not named(node, closing)


def zeros_at(edge: tuple[Any, int]) -> Tensor:
    """Zeros like the result at an edge."""
    meta = edge[0]._input_metadata[edge[1]]
    return torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)


def pulled(edge: tuple[Any, int], node: Any, gradient: Tensor) -> Tensor:
    """The gradient by the result of `node`, for this gradient by the result at an edge after it."""
    if edge[0] is node:
        return gradient
    (result,) = torch.autograd.grad(
        [GradientEdge(*edge)], [GradientEdge(node, 0)], [gradient], retain_graph=True
    )
    return result


def gradients_by(
    value: Tensor, tensors: Sequence[Tensor], nodes: Sequence[Any], *, retain_graph: bool
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradients of a value by tensors and by the results of nodes, None where there is none."""
    edges = [*map(get_gradient_edge, tensors), *(GradientEdge(node, 0) for node in nodes)]
    if not edges:
        return [], []
    gradients = torch.autograd.grad(value, edges, retain_graph=retain_graph, allow_unused=True)
    return list(gradients[: len(tensors)]), list(gradients[len(tensors) :])


def influence(edge: tuple[Any, int], axis: int, node: Any) -> tuple[float, dict[int, int]]:
    """Where the result of `node` influences one index of an axis of the result at a later edge.

    Returns:
        The share of elements with influence, and the axes along which they have one index only.
    """
    given = zeros_at(edge)
    one = given.select(axis, min(1, given.shape[axis] - 1))
    # Random, so that no sum of them is zero.
    noise = torch.rand(one.shape, generator=torch.Generator().manual_seed(0))
    one.copy_(noise + 0.5)
    places = pulled(edge, node, given).nonzero()
    shape = shape_of(node)
    single = {
        axis: int(places[0, axis])
        for axis, size in enumerate(shape)
        if size > 1 and len(places) and bool((places[:, axis] == places[0, axis]).all())
    }
    return len(places) / max(1, math.prod(shape)), single


def _kept_pair(node: Any) -> tuple[Any, Any]:
    """The two operands of a product or quotient, None for one that is not saved."""
    return getattr(node, "_saved_self", None), getattr(node, "_saved_other", None)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
