"""Does a lower precision change the results: SEND in float32, and training in bfloat16?

`python -m spat.study.float32` computes the error of SEND for networks of real size; its output is
committed. Training in bfloat16 is a separate experiment, compared with float32 run by run:

    python -m spat.study.precision results/precision/data results/precision-bf16/data

prints the table as CSV. The unit is the run (dataset and seed): masks of a run start from the same
weights, so their changes are averaged first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

import pandas as pd
import scipy.stats

from spat.study import methods
from spat.study.pages.page import Absent, Layout, page
from spat.study.pages.reader import Frames
from spat.study.statistics.tests import t_interval

COMMAND: Final = "python -m spat.study.float32"
MEASURES: Final = {
    "bias": "relative error",
    "worst": "largest of a window",
    "erased": "rows that become 0",
}

# Precisions are called equivalent if their errors differ by less than this, in percent.
MARGIN: Final = 0.3
PRECISIONS: Final = ("float32", "bf16")
RUN: Final = ["dataset", "model", "variant", "setting", "seed"]
PAIR: Final = [*RUN, "phase", "mask", "order", "metric"]
PHASES: Final = {"dense": "dense", "finetuned": "fine-tuned, mean of all masks"}
ALL: Final = "all"


@page(
    "table",
    "precision",
    title="SEND in float32 against float64, by the number of keys",
    caption="""
The error of SEND in float32. The softmax of SEND differs from one over the number of keys by less
than float32 resolves. Up to 42 keys this error is negligible for the loss of each window. At 321
keys SEND is about 17 % too large, and for the mean loss of a batch most rows become exactly zero,
so that ties decide the ranking.
The networks have real sizes, are untrained, and see generated data. The table is the same in every
experiment.
""",
    layout=Layout(("model", "keys", "loss"), "measure", best=False, counted="windows"),
    notes=(
        "Relative error of the SEND of a site in a window, on untrained networks and generated "
        f"data (`{COMMAND}`).",
        "SEND is computed in float64 from the loss of each window.",
    ),
)
def precision(frames: Frames) -> pd.DataFrame:
    """Error of SEND in float32 against float64 at 7, 42 and 321 keys.

    Columns: model, keys, loss, measure, mean, sd, n (windows), missing, unit. The table is the same
    in every experiment that scores attention.

    Raises:
        Absent: if no attention site of a forecaster was scored.
    """
    if frames.scores.empty or not frames.words.forecasts:
        raise Absent("No attention site of a forecaster was scored in this experiment.")
    errors = errors_of_float32()
    tables = [
        errors[["model", "keys", "loss"]].assign(
            measure=name,
            mean=errors[column],
            sd=errors["sd"] if column == "bias" else float("nan"),
            n=errors["windows"],
        )
        for column, name in MEASURES.items()
    ]
    table = pd.concat(tables).assign(missing=0, unit="share")
    table["measure"] = methods.ordered(table["measure"], MEASURES.values())
    table["loss"] = methods.ordered(table["loss"], errors["loss"].unique())
    return table.sort_values(["keys", "loss", "measure"], ignore_index=True)


@cache
def errors_of_float32() -> pd.DataFrame:
    """Model, keys, loss, bias, sd, worst, erased, windows: the output of the command."""
    file = resources.files("spat.study") / "precision.csv"
    with file.open() as stream:
        return pd.read_csv(stream)


def changes_by_bf16(float32: Path, bf16: Path) -> pd.DataFrame:
    """Change of each network's test error from float32 to bfloat16, in percent.

    Columns: `PAIR` and `change`.

    Raises:
        ValueError: if `float32` or `bf16` contains networks of another precision, or a network of
            one folder is missing in the other.
    """
    errors = [_errors(*one) for one in zip((float32, bf16), PRECISIONS, strict=True)]
    both = errors[0].merge(errors[1], "outer", PAIR, indicator=True, validate="1:1")
    unpaired = both[both["_merge"] != "both"]
    if len(unpaired):
        place = bf16 if unpaired["_merge"].iloc[0] == "left_only" else float32
        raise ValueError(
            f"{place}: {len(unpaired)} networks of the other experiment are missing, the first is "
            f"{unpaired[PAIR].iloc[0].to_dict()}: run both experiments to their end"
        )
    change = 100.0 * (both["value_y"] / both["value_x"] - 1.0)
    return both[PAIR].assign(change=change)


def equivalence_of_bf16(changes: pd.DataFrame) -> pd.DataFrame:
    """Mean changes over runs with their 90 % intervals, and the test of equivalence.

    `p` is the larger of two one-sided t tests against `MARGIN` (TOST); at 0.05 it rejects where the
    90 % interval lies within the margin. `largest` is the largest change of a single network.
    Columns: dataset, networks, metric, runs, pairs, mean, sd, low, high, p, equivalent, largest.
    """
    rows = []
    for (phase, metric), pairs in changes.groupby(["phase", "metric"], sort=True):
        for dataset in [*sorted(pairs["dataset"].unique()), ALL]:
            chosen = pairs if dataset == ALL else pairs[pairs["dataset"] == dataset]
            runs = chosen.groupby(RUN)["change"].mean()
            low, high = t_interval(runs, 0.9)
            p = max(
                scipy.stats.ttest_1samp(runs, MARGIN, alternative="less").pvalue,
                scipy.stats.ttest_1samp(runs, -MARGIN, alternative="greater").pvalue,
            )
            rows.append(
                {
                    "dataset": dataset,
                    "networks": PHASES[str(phase)],
                    "metric": metric,
                    "runs": len(runs),
                    "pairs": len(chosen),
                    "mean": runs.mean(),
                    "sd": runs.std(),
                    "low": low,
                    "high": high,
                    "p": p,
                    "equivalent": bool(p < 0.05),
                    "largest": chosen["change"].abs().max(),
                }
            )
    return pd.DataFrame(rows)


def _errors(folder: Path, precision: str) -> pd.DataFrame:
    networks = pd.read_parquet(folder / "networks.parquet")
    if (trained := sorted(networks["precision"].unique())) != [precision]:
        raise ValueError(
            f"{folder}: its networks were trained in {' and '.join(trained)} instead of "
            f"{precision}: give the folder of float32 first, then the folder of bf16"
        )
    rows = pd.read_parquet(folder / "measurements.parquet")
    tested = (rows["split"] == "test") & (rows["target"] == rows["dataset"])
    return rows.loc[tested & rows["phase"].isin(list(PHASES)), [*PAIR, "value"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of two folders of frames."""
    parser = argparse.ArgumentParser(
        description="Does training in bfloat16 change the test errors?"
    )
    parser.add_argument("float32", type=Path, help="folder `data` of the experiment in float32")
    parser.add_argument("bf16", type=Path, help="folder `data` of the experiment in bfloat16")
    given = parser.parse_args(arguments)
    result = equivalence_of_bf16(changes_by_bf16(given.float32, given.bf16))
    result.to_csv(sys.stdout, index=False, float_format="%.6g")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
