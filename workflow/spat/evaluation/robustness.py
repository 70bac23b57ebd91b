"""Does a criterion notice that a site was manipulated, and was it right to?

The frame `robustness` holds, of each run and site, the scores of the intact site and of the same
site manipulated, and what leaving it out really changes. Rows are compared at one position of one
cell, where scores have the same scale, and averaged over positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spat.blocks import Array
from spat.evaluation.cells import CELL, keyed
from spat.pipeline.frames import RUN

INTACT: Final = "intact"
CHANGE: Final = "leave_one_out"
NO_CRITERIA: Final = ("mse", CHANGE)

Phase = Literal["untuned", "finetuned"]


def measured(frame: pd.DataFrame, phase: Phase, split: str = "test") -> pd.DataFrame:
    """What leaving a site out changes, intact (a manipulation too) and manipulated.

    The network without the site is the same in both, so that `smaller` also says whether the
    manipulation raised the loss: such a site is worth less than it was. Ties count one half.

    Returns:
        RUN, `site`, `name`, `manipulation`, `change` (a difference of MSE), `relative` (its share
        of the MSE of the intact network), `smaller` than for the intact site (1, 1/2 or 0).
        Missing where training diverged.
    """
    rows = frame[(frame["phase"] == phase) & (frame["split"] == split)]
    columns = [*RUN, "site", "name", "manipulation", "value"]
    changes = rows.loc[rows["quantity"] == CHANGE, columns].rename(columns={"value": "change"})
    keys = [*RUN, "site"]
    intact = rows[rows["manipulation"] == INTACT]
    for quantity in (CHANGE, "mse"):
        values = intact.loc[intact["quantity"] == quantity, [*keys, "value"]]
        changes = changes.merge(values.rename(columns={"value": f"intact_{quantity}"}), on=keys)
    difference = changes["change"] - changes[f"intact_{CHANGE}"]
    changes = changes.assign(
        relative=changes["change"] / changes["intact_mse"], smaller=_lower(difference.to_numpy())
    )
    return changes.drop(columns=[f"intact_{CHANGE}", "intact_mse"])


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
    scores = frame[~frame["quantity"].isin(NO_CRITERIA)]
    truth = frame[frame["quantity"].eq(CHANGE) & frame["phase"].eq(phase or "untuned")]
    truth = truth[truth["split"] == split]
    found = []
    for key, cell in scores.groupby(list(CELL)):
        own = truth.merge(cell[list(CELL)].drop_duplicates()) if phase else None
        found.append(_components(cell, own).assign(**keyed(CELL, key)))
    columns = [*RUN, "criterion", "manipulation", "auroc"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _components(scores: pd.DataFrame, truth: pd.DataFrame | None) -> pd.DataFrame:
    """`criterion`, `manipulation`, `seed`, `auroc` of one cell."""
    names, kinds, seeds, sites = (
        scores[column].unique() for column in ("quantity", "manipulation", "seed", "site")
    )
    kinds = kinds[kinds != INTACT]
    changed, intact = _cubes(scores, names, kinds, seeds, sites)
    signs, known = _signs(changed, intact)
    if truth is not None:
        changes, unchanged = _cubes(truth, [CHANGE], kinds, seeds, sites)
        right, measured = _signs(changes, unchanged)
        signs, known = -signs * right, known & measured
    # A site that was never manipulated so has no weight; a run that lacks another is left out.
    asked = np.asarray(known.any(axis=(0, 2)))  # [kinds, sites]
    whole = np.asarray((known | ~asked[:, None]).all(axis=-1)) & asked.any(axis=-1, keepdims=True)
    kernel = np.einsum("cmijs,ms->cmij", _lower(signs), _shares(asked))
    weight = _shares(whole)  # [names, kinds, runs]
    rows = np.einsum("cmij,cmj->cmi", kernel, weight)
    columns = np.einsum("cmij,cmi->cmj", kernel, weight)
    mean = np.einsum("cmi,cmi->cm", rows, weight)
    components = rows + columns - mean[..., None]
    c, m, i = whole.nonzero()
    return pd.DataFrame(
        {
            "criterion": names[c],
            "manipulation": kinds[m],
            "seed": seeds[i],
            "auroc": components[c, m, i],
        }
    )


def _cubes(
    rows: pd.DataFrame, names: Iterable[str], kinds: Iterable[str], *axes: Iterable[int]
) -> tuple[Array, Array]:
    """Values manipulated [names, kinds, seeds, sites] and intact [names, 1, seeds, sites].

    NaN where there is none.
    """
    axes_of: list[Any] = [list(names), [*kinds, INTACT], *map(list, axes)]
    values = rows.set_index(["quantity", "manipulation", "seed", "site"])["value"]
    cube = values.reindex(pd.MultiIndex.from_product(axes_of)).to_numpy(dtype=np.float64)
    cube = cube.reshape([len(axis) for axis in axes_of])
    return cube[:, :-1], cube[:, -1:]


def _signs(changed: Array, intact: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Signs of manipulated minus intact, of all pairs of runs, and which cases are known.

    changed [..., runs, sites], intact alike -> [..., manipulated run, intact run, sites] (0 where
    one of the two is missing) and [..., runs, sites].
    """
    difference = changed[..., :, None, :] - intact[..., None, :, :]
    return np.nan_to_num(np.sign(difference)), np.isfinite(changed) & np.isfinite(intact)


def _shares(known: NDArray[np.bool_]) -> Array:
    """Equal weights of the known along the last axis; 0 where there are none."""
    return np.asarray(known / np.maximum(known.sum(axis=-1, keepdims=True), 1))


def _lower(difference: Array) -> Array:
    """1 where negative, 0 where positive, 1/2 where equal."""
    return np.asarray(0.5 - 0.5 * np.sign(difference), dtype=np.float64)
