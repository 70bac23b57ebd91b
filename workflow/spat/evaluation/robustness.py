"""Does a criterion notice that a site was manipulated, and was it right to?

The frame `robustness` holds, of each run and site, the scores of the intact site and of the same
site manipulated, and what leaving it out really changes. Rows are compared at one position of one
cell, where scores have the same scale, and averaged over positions.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import pandas as pd

from spat.evaluation.bootstrap import Array
from spat.evaluation.cells import CELL, keyed
from spat.frames import RUN

INTACT: Final = "intact"
CHANGE: Final = "leave_one_out"
NO_CRITERIA: Final = ("mse", CHANGE)

Phase = Literal["untuned", "finetuned"]


def measured(frame: pd.DataFrame, phase: Phase, split: str = "test") -> pd.DataFrame:
    """What leaving a manipulated site out changes, beside the same for the intact site.

    The network without the site is the same in both, so that `smaller` also says whether the
    manipulation raised the loss: such a site is worth less than it was. Ties count one half.

    Returns:
        RUN, `site`, `name`, `manipulation`, `change`, `intact` (differences of MSE), `intact_mse`,
        `smaller` (1, 1/2 or 0). Cases that diverged are left out.
    """
    rows = frame[(frame["phase"] == phase) & (frame["split"] == split)]
    changes = _of(rows, CHANGE).rename(columns={"value": "change"})
    intact = changes["manipulation"] == INTACT
    keys = [*RUN, "site"]
    base = changes.loc[intact, [*keys, "change"]].rename(columns={"change": "intact"})
    errors = _of(rows[rows["manipulation"] == INTACT], "mse")[[*keys, "value"]]
    joined = changes[~intact].merge(base, on=keys)
    joined = joined.merge(errors.rename(columns={"value": "intact_mse"}), on=keys)
    joined = joined.dropna(subset=["change", "intact"])
    return joined.assign(smaller=_lower((joined["change"] - joined["intact"]).to_numpy()))


def auroc(frame: pd.DataFrame, phase: Phase | None = None, split: str = "test") -> pd.DataFrame:
    """AUROC of each criterion against each manipulation, by run: average it over runs.

    Over all pairs of checkpoints of a cell, at the same site: the probability that the manipulated
    site of the one scores lower than the intact site of the other, ties one half. With a `phase`
    the measured truth decides what is right: the probability that the two scores differ in the
    same direction as the changes that leaving the site out makes on `split`, untuned or fine-tuned.

    A run's value is its structural component (DeLong et al. 1988; both classes of a run move
    together, as the clusters of Obuchowski 1997): their mean is the AUROC, and resampling them
    resamples checkpoints. A single one may leave [0, 1]; of one checkpoint, it is the share of its
    sites.

    Returns:
        RUN, `criterion`, `manipulation`, `auroc`. Runs with a score or change that is missing are
        left out.
    """
    measures = frame["quantity"].isin(NO_CRITERIA)
    wanted = (frame["phase"] == phase) & (frame["split"] == split) & (frame["quantity"] == CHANGE)
    found = []
    for key, cell in frame[~measures | wanted].groupby(list(CELL)):
        table = cell.pivot(  # noqa: PD010 (it would average)
            index="seed", columns=["quantity", "manipulation", "site"], values="value"
        ).sort_index(axis="columns")
        pairs = cell.loc[~measures, ["quantity", "manipulation"]].drop_duplicates()
        for criterion, manipulation in pairs[pairs["manipulation"] != INTACT].to_numpy():
            rows = _components(table, criterion, manipulation, against_truth=phase is not None)
            of = {"criterion": criterion, "manipulation": manipulation}
            found.append(rows.assign(**keyed(CELL, key), **of))
    columns = [*RUN, "criterion", "manipulation", "auroc"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _components(
    table: pd.DataFrame, criterion: str, manipulation: str, against_truth: bool
) -> pd.DataFrame:
    """`seed`, `auroc` of the runs of one cell, for one criterion and manipulation.

    `table` has a row a seed and columns (quantity, manipulation, site).
    """
    sites = table[criterion, manipulation].columns
    scores = _values(table, criterion, manipulation, sites)
    known = np.isfinite(scores).all(axis=(0, 2))
    changes = _values(table, CHANGE, manipulation, sites) if against_truth else None
    if changes is not None:
        known &= np.isfinite(changes).all(axis=(0, 2))
    if not known.any():
        return pd.DataFrame(columns=["seed", "auroc"])
    signs = _signs(scores[:, known])
    if changes is not None:
        signs = -signs * _signs(changes[:, known])
    kernel = _lower(signs).mean(axis=-1)  # [manipulated run, intact run]
    components = kernel.mean(axis=1) + kernel.mean(axis=0) - kernel.mean()
    return pd.DataFrame({"seed": table.index.to_numpy()[known], "auroc": components})


def _values(table: pd.DataFrame, quantity: str, manipulation: str, sites: pd.Index) -> Array:
    """Values of the manipulated and of the intact sites, [2, runs, sites]; NaN where missing."""
    columns = [[(quantity, kind, site) for site in sites] for kind in (manipulation, INTACT)]
    return np.stack([table.reindex(columns=names).to_numpy(dtype=np.float64) for names in columns])


def _signs(pair: Array) -> Array:
    """pair [2, runs, sites] -> signs of manipulated minus intact, of all pairs of runs."""
    changed, intact = pair
    return np.asarray(np.sign(changed[:, None] - intact[None]))


def _lower(difference: Array) -> Array:
    """1 where negative, 0 where positive, 1/2 where equal."""
    return np.asarray(0.5 - 0.5 * np.sign(difference), dtype=np.float64)


def _of(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    columns = [*RUN, "site", "name", "manipulation", "value"]
    return rows.loc[rows["quantity"] == quantity, columns]
