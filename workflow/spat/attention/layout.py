"""The order of attention maps: which of them belong to one sample, and which to one head.

The maps of a model may be [B, H, Q, K], [B * H, Q, K], [H * B, T, Q, K], or have other leading
axes. Counted in their order, as if these were one axis, the maps of all samples and those of all
heads are each a `Factor` of it. The others are the sequences of a sample, such as its channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spat.attention.graph import Call, Graph
from spat.attention.nodes import features_axis, number_of, pulled, shape_of, zeros_at


class Factor(NamedTuple):
    """A factor of the length of an axis: the index i has the number i // step % size."""

    size: int
    step: int

    def within(self, other: Factor) -> bool:
        """Whether every number occurs within one step of the other factor."""
        return other.step % (self.size * self.step) == 0

    def joins(self, marked: Tensor) -> bool:
        """Whether all marked indices, bool [N], have one number."""
        numbers = marked.nonzero() // self.step % self.size
        return bool((numbers == numbers[:1]).all())


def folded(t: Tensor, windows: Factor, heads: Factor) -> Tensor:
    """[..., a, b] -> [W, R, H, a, b]; the factors are those of all leading axes together."""
    ends = t.shape[-2:]
    outer, inner = (windows, heads) if heads.within(windows) else (heads, windows)
    between = outer.step // (inner.size * inner.step)
    t = t.reshape(-1, outer.size, between, inner.size, inner.step, *ends)
    t = t.permute(1, 0, 2, 4, 3, 5, 6) if outer is windows else t.permute(3, 0, 2, 4, 1, 5, 6)
    return t.reshape(windows.size, -1, heads.size, *ends)


def factor_of(marked: Tensor) -> Factor | None:
    """The factor of which the marked indices have each number once, from 0; None if there is none.

    Args:
        marked: bool [N].
    """
    places = marked.nonzero().flatten().tolist()
    size = len(places)
    step = places[1] - places[0] if size > 1 else 1
    wanted = [places[0] + i * step for i in range(size)] if size else []
    if not size or places != wanted or places[0] // step % size or len(marked) % (size * step):
        return None
    return Factor(size, step)


def window_factors(total: int, windows: int, heads: Factor) -> list[Factor]:
    """The factors that W samples can be in an axis of length `total`, beside the heads.

    The first is that of samples whose sequences are next to each other.
    """
    steps = [step for step in range(total // windows, 0, -1) if total % (windows * step) == 0]
    factors = [Factor(windows, step) for step in steps]
    enough = total % (windows * heads.size) == 0
    return [one for one in factors if enough and (heads.within(one) or one.within(heads))]


def token_features(start: Any, features: int, graph: Graph, last: Call) -> Tensor | None:
    """Where the result of a node becomes the features of one token: not zero there.

    Heads are joined to features before the output projection, so the token is one of the input of
    the first linear map, or else of the output of `last`. The result has the shape of the result of
    the node, of which `features` is an axis; it is None if the graph does not tell.
    """
    end = _joined(start, graph, last)
    if end is None:
        return None
    edge, axis = end

    def reached(index: int, some: slice) -> Tensor:
        given = zeros_at(edge)
        token = given.movedim(axis, -1)[(index,) * (given.ndim - 1)]
        # Not the same for all features, since a norm takes their mean away.
        token[some] = torch.linspace(1, 2, len(token)).to(token)[some]
        return pulled(edge, start, given)

    try:
        # The first token may be one that is put in front afterwards.
        for index in (0, -1):
            token = reached(index, slice(None))
            count = int(token.count_nonzero())
            if count == 0:
                continue
            # A linear map of the queries, whose "token" is one feature of all of them.
            if count > used(token, features) == 1 < token.shape[features]:
                return None
            if count <= shape_of(*edge)[axis]:
                return token
            # Tokens are mixed on the way, of each head alone unless a feature has several maps.
            maps = reached(index, slice(1)).flatten(-2).any(-1)
            return token if maps.count_nonzero() == 1 else None
    except RuntimeError:  # the output does not depend on the result
        pass
    return None


def used(t: Tensor, axis: int) -> int:
    """The number of indices of an axis at which a tensor is not zero."""
    return int((t != 0).movedim(axis, 0).flatten(1).any(1).count_nonzero())


def _joined(start: Any, graph: Graph, last: Call) -> tuple[tuple[Any, int], int] | None:
    """The edge at which heads are joined, with the axis of features."""
    reached, waiting = {start}, [start]
    while waiting:
        node = min(waiting, key=number_of)
        waiting.remove(node)
        for operand, edge in enumerate(node.next_functions if node is not start else ()):
            if edge[0] in reached and (axis := features_axis(node, operand)) is not None:
                return edge, axis
        for user in graph.users[node]:
            if user not in reached and number_of(user) < last.stop:
                reached.add(user)
                waiting.append(user)
    y = last.y
    return None if y is None or y.ndim == 0 or last.end is None else ((last.end, y.output_nr), -1)
