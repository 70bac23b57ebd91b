"""Do the dense models reach the published errors?"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spat.study import methods
from spat.study.methods import METRICS
from spat.study.pages import style
from spat.study.pages.page import Absent, Layout, Note, page
from spat.study.pages.reader import Frames
from spat.study.statistics.cells import in_domain

# Dense errors this close to the published ones (percent), or lower, count as reproduced.
TOLERANCE: Final = 3.0
MEASURED: Final = "measured"
PUBLISHED: Final = "published"
CHANGE: Final = "change"
_KEYS: Final = ("model", "variant", "dataset", "lookback", "horizon")


@page(
    "table",
    "reproduction",
    title="Dense test errors and the published ones",
    caption="""
Dense test errors and the published errors, with their publication.
Models with attention are compared in the sizes that their authors used. An error within 3 percent
of the published one, or below it, counts as reproduced.
""",
    layout=Layout(
        (*_KEYS, "metric", "verdict", "publication"),
        "method",
        best=False,
        kept=("model", "dataset", "verdict"),
    ),
    notes=(
        f"Reproduced: a mean within {TOLERANCE:g} % of the published error, or lower.",
        Note(
            "better",
            f"Better: more than {TOLERANCE:g} % below the published error. This is a "
            "deviation, too; different settings are the likely cause. The number of PatchTST was "
            "measured by another paper; the runs here have the settings of the "
            "Time-Series-Library.",
        ),
    ),
)
def reproduction(frames: Frames) -> pd.DataFrame:
    """Dense test errors and published errors.

    Models with attention are compared in their variant `published`, other models in any variant.
    The methods are `measured`, `published` and `change` (percent). The last key columns are a
    verdict (better, within 3 %, worse, diverged) and the publication.

    Raises:
        Absent: if there is no published error for any run.
    """
    rows = in_domain(methods.tested(frames.results), phase="dense")
    rows = rows[(rows["variant"] == "published") | ~methods.has_sites(rows)]
    keys = ["model", "dataset", "lookback", "horizon"]
    tables = []
    for metric, name in METRICS.items():
        table = methods.summary(rows, ["variant", *keys], metric).assign(method=MEASURED, unit="")
        numbers = published()[[*keys, metric, "publication"]].rename(columns={metric: PUBLISHED})
        table = table.merge(numbers, on=keys).assign(metric=name)
        change = 100 * (table["mean"] / table[PUBLISHED] - 1)
        table["verdict"] = change.map(_verdict)
        cited = table.assign(method=PUBLISHED, mean=table[PUBLISHED], sd=np.nan, n=0, missing=0)
        tables += [table, cited, table.assign(method=CHANGE, mean=change, sd=np.nan, unit="%")]
    table = pd.concat(tables, ignore_index=True).drop(columns=PUBLISHED)
    if table.empty:
        raise Absent(
            "There is no published error for any run: models with attention need the variant "
            "`published`, a benchmark dataset and its published lookback (experiment "
            "`reproduction`)."
        )
    return methods.arrange(table, _KEYS, [MEASURED, PUBLISHED, CHANGE])


@page(
    "figure",
    "reproduction",
    title="Deviation of the dense test errors from the published ones",
    caption="""
Deviation of the measured test errors of dense models from the published errors, in percent, by
model, dataset and horizon. Errors in the grey band of ±3 percent, or left of it, count as
reproduced. A lower error is a deviation, too.
""",
)
def deviations(frames: Frames) -> Figure:
    """The changes of the table `reproduction`, with the band that counts as reproduced.

    Raises:
        Absent: if the table raises it.
    """
    table = reproduction(frames)
    rows = table[(table["method"] == CHANGE) & np.isfinite(table["mean"])]
    keys = ["model", "dataset", "horizon"]
    cells = rows[[*_KEYS]].drop_duplicates().reset_index(drop=True)
    if cells.duplicated(keys).any():
        keys.insert(1, "variant")
    places = {cell: i for i, cell in enumerate(cells.itertuples(index=False, name=None))}
    figure = style.canvas(height=1.1 + 0.16 * len(cells))
    axis = figure.subplots()
    band = f"within {TOLERANCE:g} %"
    axis.axvspan(-TOLERANCE, TOLERANCE, color="#e6e6e6", lw=0, label=band, zorder=0)
    axis.axvline(0, color=style.BLACK, lw=0.8, zorder=1)
    marks = style.marks(METRICS.values())
    for metric, part in rows.groupby("metric", observed=True):
        y = [places[cell] for cell in part[[*_KEYS]].itertuples(index=False, name=None)]
        mark = marks[str(metric)]
        axis.plot(
            part["mean"], y, ls="none", marker=mark.marker, color=mark.colour, label=str(metric)
        )
    axis.set_yticks(range(len(cells)), cells[keys].astype(str).agg(" ".join, axis=1))
    axis.set_ylim(len(cells) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("deviation from published (%)")
    axis.set_ylabel("model")
    axis.set_title("dense models")
    style.legend_below(figure, [axis])
    return figure


@cache
def published() -> pd.DataFrame:
    """Published errors: model, dataset, lookback, horizon, mse, mae, confirmed, publication."""
    file = resources.files("spat.study") / "published.csv"
    with file.open() as stream:
        return pd.read_csv(stream)


def _verdict(change: float) -> str:
    if np.isnan(change):
        return "diverged"
    if abs(change) <= TOLERANCE:
        return f"within {TOLERANCE:g} %"
    return "better" if change < 0 else "worse"
