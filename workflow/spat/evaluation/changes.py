"""Relative changes of the test error, per cell, with intervals and equivalence tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from spat.blocks import Array
from spat.evaluation.bootstrap import block_length, equivalence, relative_change
from spat.evaluation.cells import CELL, keeps_all, keyed
from spat.pipeline.frames import RUN

_KEY = [*RUN, "target", "mask"]


def relative_changes(
    losses: pd.DataFrame,
    choices: pd.DataFrame,
    by: Sequence[str],
    *,
    reference: str = "finetuned",
    phase: str = "finetuned",
    draws: int = 2000,
    confidence: float = 0.95,
    margin: float = 0.01,
) -> pd.DataFrame:
    """Changes of chosen masks against the unpruned model, per cell, target and group of `by`.

    `losses` is the frame of per-window losses (data order 0 is taken). `choices` has the columns of
    a run, `mask`, and `by` (say criterion and ratio): a group may choose another mask for every
    seed, and where it names several for one run (random draws) their losses are averaged. The
    reference is the unpruned model in the phase `reference`: `finetuned` (the control) or `dense`.
    Seeds without both losses are left out.

    Returns:
        CELL, `target`, `by`, `mse`, `reference_mse`, `change`, `se`, `low`, `high`, `p`, `p_worse`,
        `p_better`, `no_worse`, `equivalent`, `seeds`, `blocks`; changes are shares, not percent.
    """
    rows = losses[losses["order"] == 0]
    unpruned = rows[(rows["phase"] == reference) & rows["mask"].map(keeps_all)]
    base = unpruned[[*RUN, "target", "mse"]].rename(columns={"mse": "reference"})
    ours = rows.loc[rows["phase"] == phase, [*_KEY, "mse"]]
    joined = choices[[*RUN, "mask", *by]].merge(ours, on=[*RUN, "mask"])
    joined = joined.merge(base, on=[*RUN, "target"])
    groups = joined.groupby([*CELL, "target", *by], dropna=False, sort=True)
    found = [
        keyed([*CELL, "target", *by], key)
        | _change(group, draws=draws, confidence=confidence, margin=margin)
        for key, group in groups
    ]
    return pd.DataFrame(found, columns=[*CELL, "target", *by, *_MEASURES])


_MEASURES = (
    "mse",
    "reference_mse",
    "change",
    "se",
    "low",
    "high",
    "p",
    "p_worse",
    "p_better",
    "no_worse",
    "equivalent",
    "seeds",
    "blocks",
)


def _change(group: pd.DataFrame, *, draws: int, confidence: float, margin: float) -> dict[str, Any]:
    """The measures of one cell: rows are seeds, or draws within seeds."""
    treatment = _per_seed(group, "mse")
    reference = _per_seed(group, "reference")
    block = block_length(int(group["lookback"].iloc[0]), int(group["horizon"].iloc[0]))
    change = relative_change(reference, treatment, block, draws=draws, confidence=confidence)
    test = equivalence(change, margin, alpha=1.0 - confidence)
    return {
        "mse": float(treatment.mean()),
        "reference_mse": float(reference.mean()),
        **{name: getattr(change, name) for name in ("change", "se", "low", "high", "p")},
        **{name: getattr(test, name) for name in ("p_worse", "p_better", "no_worse", "equivalent")},
        "seeds": change.seeds,
        "blocks": change.blocks,
    }


def _per_seed(group: pd.DataFrame, column: str) -> Array:
    """Losses [S, N], draws of one seed averaged."""
    return np.stack(
        [np.stack(seed[column].to_list()).mean(axis=0) for _, seed in group.groupby("seed")]
    ).astype(np.float64)
