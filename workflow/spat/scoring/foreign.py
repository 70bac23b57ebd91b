"""Scores of the attention of any model, by the criteria of `names.CRITERIA`."""

from __future__ import annotations

import difflib
import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from spat.attention.discovery import ForeignSite, Loss, columns, find_sites, unknown
from spat.attention.errors import AttentionWarning
from spat.attention.tracing import drops_of_batch, traces
from spat.attention.views import Trace
from spat.scoring import criteria as _criteria  # noqa: F401
from spat.scoring import send as _send  # noqa: F401
from spat.scoring.criterion import RULES
from spat.scoring.names import CRITERIA, PASS
from spat.scoring.probe import GROUP, Shared, SiteMeans, SiteScores, window_means
from spat.surgery import choose

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


LOSS_DROP: Final = "loss_drop"

# Why a site does not offer a view.
_LACKS: Final = {
    "Mixing": "no softmax(q k^T) v was found in it. Criteria without maps are michel, cosine and "
    "loss_drop",
    "Residual": "what its output is added to cannot be computed from the inputs and outputs of "
    "modules. Criteria without this tensor are send, michel and loss_drop",
}


@dataclass(frozen=True, eq=False)
class Scores:
    """The score of each site by one criterion; a high score means keep. Prints as a table.

    `values` is [sites], `per_batch` [sites, batches], and `heads` has an array [heads] for each
    site, which is empty if single heads have no score. The score of a site that cannot be removed
    is NaN if the criterion cannot be computed for it.
    """

    criterion: str
    sites: tuple[ForeignSite, ...]
    values: NDArray[np.float64]
    per_batch: NDArray[np.float64]
    heads: tuple[NDArray[np.float64], ...]

    def __getitem__(self, name: str) -> float:
        """The score of a site.

        Raises:
            UnknownSite: if there is no site of this name.
        """
        names = [site.name for site in self.sites]
        if name not in names:
            raise unknown(name, names)
        return float(self.values[names.index(name)])

    def lowest(self, amount: float) -> tuple[str, ...]:
        """The names of the sites with the lowest scores.

        `amount` is a number (int) or a share (float) of the sites that can be removed. A share is
        rounded as in `choose.count`.

        Raises:
            ValueError: if `amount` is larger than the number of sites, or a share above 1.
        """
        free = [i for i, site in enumerate(self.sites) if site.refusal is None]
        if isinstance(amount, bool) or not isinstance(amount, Real) or not math.isfinite(amount):
            raise ValueError(f"lowest({amount!r}): give a number of sites or a share of them")
        k = int(amount) if isinstance(amount, Integral) else choose.count(amount, len(free))
        if not 0 <= k <= len(free):
            raise ValueError(f"lowest({amount}): only {len(free)} sites can be removed")
        return tuple(self.sites[free[i]].name for i in choose.lowest(self.values[free], k))

    def table(self) -> pd.DataFrame:
        """One row per site and head: site, head (-1 is the whole site), criterion, value.

        Raises:
            ImportError: if pandas is not installed.
        """
        rows = [
            (site.name, head, self.criterion, value)
            for site, whole, heads in zip(self.sites, self.values, self.heads, strict=True)
            for head, value in [(choose.WHOLE, float(whole)), *enumerate(map(float, heads))]
        ]
        return data_frame(rows, ["site", "head", "criterion", "value"])

    def __str__(self) -> str:
        head = ("site", "kind", "heads", "queries x keys", "parameters", self.criterion, "")
        lines = [
            (
                site.name, site.kind, str(site.heads), f"{site.queries} x {site.keys}",
                f"{site.parameters:,}", f"{value:.4g}",
                "" if site.refusal is None else type(site.refusal).__name__,
            )
            for site, value in zip(self.sites, self.values, strict=True)
        ]  # fmt: skip
        return columns([head, *lines])

    __repr__ = __str__


def score(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    criterion: str = "send",
    batches_max: int | None = None,
    units: Sequence[str] = (),
) -> Scores:
    """Score the attention of a model on batches of any kind.

    For some criteria (`send`) the samples of a batch share one mask. The model is scored in
    `eval()`; its modes, weights and gradients are not changed.

    Args:
        model: any model.
        batches: an iterable of batches that `loss` accepts, for example a data loader.
        loss: function of model and batch that returns the loss of each sample, [B].
        criterion: a name in `scoring.names.CRITERIA` that needs no output projection: `send` and
            its variants, `michel`, `taylor`, `fisher`, `snip`, `entropy`, `attention_std`,
            `depth_first`, `depth_last`; for sites with a residual stream `cosine`
            and `block_influence`. `loss_drop` (the loss without a site minus the loss with it)
            works for modules of any kind that `units` name; it needs one forward pass per site and
            batch.
        batches_max: the number of batches to read; by default all.
        units: see `find_sites`.

    Raises:
        NotPerSample: if the loss is not [B].
        TooCoarse: if the output of a site is not a tensor or a container of tensors.
        NoSites, NotDifferentiable: see `find_sites`; the latter also if the model is quantised.
        TypeError: if the model is not a module, `batches` is a single batch or no iterable, or the
            criterion is not a name.
        ValueError: if the criterion is unknown or cannot be computed, the loss is not finite, or
            there are no batches.
    """
    whole = isinstance(batches_max, Integral) and not isinstance(batches_max, bool)
    if batches_max is not None and not (whole and batches_max > 0):
        raise ValueError(
            f"batches_max={batches_max!r}: give a whole number above 0, or None for all"
        )
    if isinstance(batches, torch.Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is a {type(batches).__name__}: give an iterable of batches, [batch] for one "
            "(the arguments are model, batches, loss)"
        )
    if not isinstance(criterion, str):
        raise TypeError(
            f"criterion={criterion!r}: give one name, such as 'send', and call score once for each"
        )
    tensors = isinstance(batches, tuple | list) and all(
        isinstance(part, torch.Tensor) for part in batches
    )
    if batches_max is not None:
        batches = itertools.islice(batches, batches_max)
    if criterion == LOSS_DROP:
        return _loss_drops(model, batches, loss, units)
    rule = RULES.get(criterion) if criterion in CRITERIA else None
    if rule is None or CRITERIA[criterion].origin not in PASS or rule.needs.__name__ == "Heads":
        works = [n for n, r in RULES.items() if n in CRITERIA and r.needs.__name__ != "Heads"]
        works.append(LOSS_DROP)
        close = difflib.get_close_matches(criterion.lower(), works, n=1)
        raise ValueError(
            f"criterion {criterion!r} is none of those that work for models of any kind: "
            + (f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(works)}")
        )
    sites: tuple[ForeignSite, ...] = ()
    known: dict[Any, list[torch.Tensor | None]] = {}
    parts: list[dict[str, SiteMeans]] = []
    sizes: list[int] = []
    for number, batch in enumerate(batches):
        try:
            traced = traces(model, loss, batch, units, known)
        except Exception as error:
            if tensors:
                error.add_note("`batches` holds tensors alone: give [batch] for a single batch")
            raise
        if not sites:
            sites = find_sites(model, loss, batch, units=units)
        names = [trace.name for trace in traced]
        free = {site.name for site in sites if site.refusal is None}
        _check_same(number, names, [site.name for site in sites if site.name in {*names, *free}])
        offers = [trace.offers(rule.needs) for trace in traced]
        for trace, has in zip(traced, offers, strict=True):
            if not has and (trace.name in free or not any(offers)):
                raise ValueError(
                    f"criterion {criterion!r} needs the view {rule.needs.__name__}, which "
                    f"{trace.name!r} does not offer: {_LACKS[rule.needs.__name__]}"
                )
        traced = [trace for trace, has in zip(traced, offers, strict=True) if has]
        _warn_of_nothing(traced)
        size = traced[0].windows
        single: dict[str, Any] = {}
        shared: dict[str, Shared] = {}
        if rule.over == "window":
            single["value"] = rule.function
        else:
            together = size if rule.over == "batch" else GROUP
            shared["value"] = Shared(rule.function, together, rule.dtype)
        means = window_means(
            partial(_some, traced),
            _Places(),
            [torch.arange(size)],
            single,
            shared,
            batch_size=size,
        )
        parts.append({site.name: site for site in means})
        sizes.append(size)
    if not parts:
        raise _no_batches()

    def finished(name: str, means: Any) -> NDArray[np.float64]:
        values = rule.finish(means.unsqueeze(0))
        row: NDArray[np.float64] = SiteScores.of(parts[0][name], criterion, values).value[0]
        return row

    import numpy as np

    totals, each = [], []
    for site in sites:
        # A site that cannot be removed may have no value in some batches.
        if not all(site.name in part for part in parts):
            totals.append(np.array([np.nan]))
            each.append([np.nan] * len(parts))
            continue
        values = [part[site.name].means["value"][0] for part in parts]
        total = sum(value * size for value, size in zip(values, sizes, strict=True))
        totals.append(finished(site.name, total / sum(sizes)))
        each.append([finished(site.name, value)[0] for value in values])
    return Scores(
        criterion,
        sites,
        np.array([values[0] for values in totals]),
        np.array(each),
        tuple(values[1:] for values in totals),
    )


def _loss_drops(
    model: nn.Module, batches: Iterable[Any], loss: Loss, units: Sequence[str]
) -> Scores:
    """The mean over samples of the loss without a site minus the loss with it."""
    sites: tuple[ForeignSite, ...] = ()
    means, sizes = [], []
    for number, batch in enumerate(batches):
        sites = sites or find_sites(model, loss, batch, units=units)
        drops = drops_of_batch(model, loss, batch, units)
        _check_same(number, list(drops), [site.name for site in sites])
        means.append([float(drop.double().mean()) for drop in drops.values()])
        sizes.append(len(next(iter(drops.values()))))
    if not sizes:
        raise _no_batches()
    import numpy as np

    per_batch = np.array(means).T
    values = np.average(per_batch, axis=1, weights=sizes)
    return Scores(LOSS_DROP, sites, values, per_batch, tuple(np.zeros(0) for _ in sites))


def _check_same(number: int, names: Sequence[str], first: Sequence[str]) -> None:
    if list(names) != list(first):
        raise ValueError(
            f"batch {number} uses other sites than the first batch: score it separately"
        )


def _no_batches() -> ValueError:
    return ValueError("no batches to score: give at least one")


def data_frame(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> pd.DataFrame:
    """Rows as a data frame.

    Raises:
        ImportError: if pandas, which is optional for the library, is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ImportError(
            "a table as a data frame needs pandas: run `pip install pandas`, or use print()"
        ) from None
    return pd.DataFrame(rows, columns=list(names))


class _Places:
    """Cases whose batch is a slice of positions, by which `window_means` slices the traces."""

    def batch(self, index: torch.Tensor) -> slice:
        return slice(int(index[0]), int(index[-1]) + 1)


def _some(traced: Sequence[Trace], windows: slice) -> list[Trace]:
    return [
        replace(
            trace,
            output=trace.output.cut(windows),
            source=trace.source.cut(windows) if trace.source is not None else None,
        )
        for trace in traced
    ]


def _warn_of_nothing(traced: Sequence[Trace]) -> None:
    for trace in traced:
        if trace.output.dy.abs().max() * trace.output.y.abs().max() < 1e-12:
            warnings.warn(
                f"site {trace.name!r}: the loss hardly depends on it, so its score is rounding "
                "noise. Choose a loss with a gradient (the mean square of a normalised output, for "
                "example, is constant)",
                AttentionWarning,
                stacklevel=3,
            )
