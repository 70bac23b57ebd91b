"""Zero-shot transfer: trained on one dataset, tested on another."""

from __future__ import annotations

from typing import Final

import pandas as pd

from spat.evaluation import transfer as evaluation
from spat.evaluation.cells import keeps_all, keeps_none
from spat.pipeline.frames import RUN
from spat.reporting import methods
from spat.reporting.frames_io import Absent, Frames
from spat.reporting.methods import CHOSEN, CONTROL, DENSE, LIGHT, NONE_LEFT
from spat.reporting.tables.accuracy import METRICS, sort

# Columns of the page, but for SPAT at its ratios, which stand before NONE_LEFT.
NAMES: Final = {
    evaluation.REPEAT_LAST: "repeat last",
    evaluation.SEASONAL_NAIVE: "seasonal naive",
    evaluation.DENSE: DENSE,
    evaluation.CONTROL: CONTROL,
    evaluation.EMPTY: NONE_LEFT,
    evaluation.LINEAR: LIGHT,
    evaluation.ON_TARGET: "trained on target",
}
TRANSFER_GAIN: Final = "gain − gain at home"
KEYS: Final = ("dataset", "target", "model", "variant", "lookback", "horizon")


def zeroshot(frames: Frames) -> pd.DataFrame:
    """Errors on the target's test split, and SPAT's gain there minus its gain at home.

    Columns: source, target, model, variant, lookback, horizon, metric, method, mean, sd, n,
    missing, unit. A gain is the control's MSE minus SPAT's, in percent of the control's; the two
    gains of a run are subtracted before seeds are averaged (percentage points).

    Raises:
        Absent: if nothing was evaluated on another dataset.
    """
    rows = named(evaluation.zero_shot(frames.results, frames.selections))
    if rows.empty:
        raise Absent(
            "No model with attention was evaluated on another dataset: name (source, target) pairs "
            "in `transfer.pairs`."
        )
    by = [*KEYS, "method"]
    tables = [
        methods.summary(rows, by, metric).assign(unit="", metric=name)
        for metric, name in METRICS.items()
    ]
    gains = named(evaluation.gains(frames.results, frames.selections))
    gains = gains[gains["method"] == CHOSEN]
    gains = gains.assign(method=TRANSFER_GAIN, excess=100 * gains["excess"])
    tables.append(methods.summary(gains, by, "excess").assign(unit="pp", metric=METRICS["mse"]))
    table = pd.concat(tables, ignore_index=True)
    present = set(table["method"])
    naive, others = ("repeat last", "seasonal naive"), (LIGHT, "trained on target", TRANSFER_GAIN)
    middle = methods.in_order(present - {*naive, *others})
    order = [*naive, *middle, *others]
    table = sort(table, KEYS, order=[name for name in order if name in present])
    return table.rename(columns={"dataset": "source"})


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `spat.evaluation.transfer` under the names of the tables, each mask once a name.

    SPAT's ratios that remove equally many sites become the smallest of them; those that remove
    nothing or everything go, since they have rows of their own; so do rules other than validation.
    """
    spat = rows["method"] == "send"
    others = rows[~spat].assign(method=rows.loc[~spat, "method"].map(NAMES))
    chosen = rows[spat & (rows["rule"] == "validation")].assign(method=CHOSEN)
    fixed = rows[spat & rows["ratio"].notna()].sort_values("ratio", kind="stable")
    fixed = methods.having(fixed, lambda mask: not keeps_all(mask) and not keeps_none(mask))
    fixed = fixed.drop_duplicates([*RUN, "target", "mask"])
    return pd.concat([others, chosen, fixed.assign(method=fixed["ratio"].map(methods.at_ratio))])
