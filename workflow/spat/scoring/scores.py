"""All criteria of a model from one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from torch import Tensor

# Both modules register their criteria.
from spat.scoring import criteria as _criteria  # noqa: F401
from spat.scoring import send as _send  # noqa: F401
from spat.scoring.criterion import RULES, Rule
from spat.scoring.names import CRITERIA, PASS, STATISTICS, Criterion
from spat.scoring.probe import (
    GROUP,
    Cases,
    Losses,
    Observe,
    Shared,
    SiteScores,
    loss_drops,
    observe,
    sites_of,
    window_means,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from spat.attention.site import Site
    from spat.attention.views import Trace

# What the caller must pass for a criterion, by its origin.
_GIVEN: Final = {
    "ablation": "it runs the model without each site: give `sites` and no `observer`",
    "validation": "give `validation`, the loss drops of validation windows",
    "pretraining": "it is the mean over the record of pre-training, which the caller keeps",
}


def score(
    model: nn.Module,
    cases: Cases,
    batches: Sequence[Tensor],
    losses: Losses,
    criteria: Iterable[str] | None = None,
    *,
    batch_size: int,
    validation: NDArray[np.float64] | None = None,
    sites: Sequence[Site] | None = None,
    observer: Observe | None = None,
    statistics: bool = True,
) -> list[SiteScores]:
    """Scores of each site by each criterion.

    Args:
        model: scored in eval(); its modes, weights and gradients are not changed.
        cases: training windows.
        batches: indices of windows, int64 [B] for each batch.
        losses: function of model and batch that returns the loss of each window, float64 [B].
        criteria: names in `names.CRITERIA`; by default all criteria that can be computed from the
            views of the sites. `random` has no value.
        batch_size: the number of windows of a training batch. They share one mask in `send`, and a
            pass has at most this number of windows.
        validation: `loss_drops` of validation windows, [sites, windows], for `loss_drop_val`.
        sites: the sites to score, in forward order; by default those of the model.
        observer: returns the traces of all sites for a batch; by default `probe.observe`.
        statistics: whether to compute the uniformity of the attention maps as well.

    Raises:
        TypeError: if `sites` and `observer` are None and the model has no method `sites()`.
        ValueError: if a criterion is unknown, lacks its input, or needs a view that a site does not
            offer, or if there are no windows.
    """
    given = {"ablation"} if observer is None else set()
    given |= {"validation"} if validation is not None else set()
    wanted = _wanted(criteria, given)
    rules = [RULES[row.name] for row in wanted if row.origin in PASS]
    look = observer or (lambda batch: observe(model, batch, losses, sites))
    if observer is None:
        sites_of(model, sites)  # an error here, even if no criterion needs a pass
    if criteria is not None:
        look = _insisting(look, rules)
    if statistics:
        rules = [*rules, *(RULES[name] for name in STATISTICS)]
    results = _passed(look, cases, batches, rules, batch_size) if rules else []
    for row in wanted:
        if row.origin == "ablation":
            drops = loss_drops(model, cases, batches, losses, sites)
            results += _dropped(sites_of(model, sites), row.name, drops, [len(b) for b in batches])
        elif row.origin == "validation" and validation is not None:
            results += _dropped(sites_of(model, sites), row.name, validation, [])
    return results


def _wanted(criteria: Iterable[str] | None, given: set[str]) -> list[Criterion]:
    missing = set(_GIVEN) - given
    if criteria is None:
        return [row for row in CRITERIA.values() if row.origin not in missing]
    wanted = []
    for name in criteria:
        if name not in CRITERIA:
            raise ValueError(f"criterion {name!r} is not one of {', '.join(CRITERIA)}")
        if CRITERIA[name].origin in missing:
            raise ValueError(f"criterion {name!r}: {_GIVEN[CRITERIA[name].origin]}")
        wanted.append(CRITERIA[name])
    return wanted


def _insisting(look: Observe, rules: Sequence[Rule]) -> Observe:
    """The observer, with an error if a site does not offer the view that a rule needs."""

    def insisting(batch: Any) -> Sequence[Trace]:
        traces = look(batch)
        for trace in traces:
            for rule in rules:
                if not trace.offers(rule.needs):
                    works = [
                        name
                        for name, other in RULES.items()
                        if name in CRITERIA and all(t.offers(other.needs) for t in traces)
                    ]
                    raise ValueError(
                        f"criterion {rule.name!r} needs the view {rule.needs.__name__}, which site "
                        f"{trace.name!r} does not offer: choose from {', '.join(sorted(works))}"
                    )
        return traces

    return insisting


def _passed(
    look: Observe,
    cases: Cases,
    batches: Sequence[Tensor],
    rules: Sequence[Rule],
    batch_size: int,
) -> list[SiteScores]:
    """The criteria and statistics of the pass, for the sites that offer their view."""
    # A function that two criteria share is computed once.
    single = {_key(rule): rule for rule in rules if rule.over == "window"}
    masked = {_key(rule): rule for rule in rules if rule.over != "window"}
    sizes = {"group": GROUP, "batch": batch_size}
    means = window_means(
        look,
        cases,
        batches,
        {key: partial(_where_offered, rule) for key, rule in single.items()},
        {k: Shared(rule.function, sizes[rule.over], rule.dtype) for k, rule in masked.items()},
        batch_size=batch_size,
    )
    return [
        SiteScores.of(site, rule.name, rule.finish(site.means[_key(rule)]))
        for site in means
        for rule in rules
        if _key(rule) in site.means
    ]


def _where_offered(rule: Rule, trace: Trace) -> Tensor | None:
    return rule.function(trace) if trace.offers(rule.needs) else None


def _key(rule: Rule) -> str:
    return f"{rule.function.__module__}.{rule.function.__qualname__}"


def _dropped(
    sites: Sequence[Site], name: str, drops: NDArray[np.float64], sizes: list[int]
) -> list[SiteScores]:
    """Scores from loss drops [sites, windows]: over all windows, and over batches of `sizes`."""
    batches = np.split(drops, np.cumsum(sizes)[:-1], axis=1) if sizes else []
    means = np.stack([part.mean(1) for part in (drops, *batches)], axis=1)
    return [
        SiteScores(index, site.name, name, means[index, :, None])
        for index, site in enumerate(sites)
        if site.modules
    ]
