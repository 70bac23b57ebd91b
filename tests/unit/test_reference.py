"""The committed results: their frames are complete, and their tables and figures exist.

A missing folder is not a failure, since experiments are committed when they end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from committed import REFERENCE, Made, read, stored, wide
from frame_builder import FULL, build, long

from spat.pipeline import frames
from spat.pipeline.frames import COLUMNS, FrameError
from spat.study.pages.page import Absent
from spat.study.pages.registry import ENDINGS, FIGURES, TABLES, not_made, rendered
from spat.study.statistics.cells import RUN, keeps_all

EXPERIMENTS = sorted(path.parent for path in REFERENCE.glob("*/data"))
# Too large to be committed: the per-window losses of every mask.
MAY_BE_ABSENT = ("losses",)


def gaps(made: Made) -> list[str]:
    """The missing parts, one line per run; the list is empty if the experiment is complete."""
    return [*_measured(made["results"]), *_decided(made), *_recorded(made)]


def _measured(results: pd.DataFrame) -> list[str]:
    faults = []
    for column in ("device", "commit", "digest"):
        unknown = results[column].isna() | results[column].isin(["", "unknown"])
        if unknown.any():
            faults.append(f"{int(unknown.sum())} rows of results without {column}")
    home = results[results["target"] == results["dataset"]]
    for run, rows in home.groupby(list(RUN)):
        dense = rows[rows["phase"] == "dense"]
        if set(dense["split"]) != {"validation", "test"}:
            faults.append(f"{run}: no dense row")
        tuned = rows[rows["phase"] == "finetuned"]
        splits = tuned.groupby(["mask", "order"])["split"].nunique()
        if (splits < 2).any():
            faults.append(f"{run}: a mask without validation or test")
        controlled = tuned["mask"].map(keeps_all).astype(bool)
        orders = set(tuned["order"])
        if orders != set(tuned.loc[controlled, "order"]):
            faults.append(f"{run}: pruned, but no control")
        untuned = set(rows.loc[rows["phase"] == "pruned", "mask"])
        if set(tuned["mask"]) != untuned:
            faults.append(f"{run}: masks without a row before fine-tuning, or after it")
    away = results[results["target"] != results["dataset"]]
    keys = pd.MultiIndex.from_frame(home[list(RUN)].drop_duplicates())
    if not pd.MultiIndex.from_frame(away[list(RUN)]).isin(keys).all():
        faults.append("transfer of a run that is not there")
    return faults


def _decided(made: Made) -> list[str]:
    tuned = made["results"][made["results"]["phase"] == "finetuned"]
    keys = [*RUN, "mask"]
    trained = pd.MultiIndex.from_frame(tuned[keys])
    asked = pd.MultiIndex.from_frame(made["selections"][keys])
    lost = made["selections"][~asked.isin(trained)]
    return [f"{run}: chose a mask that was not trained" for run, _ in lost.groupby(list(RUN))]


def _recorded(made: Made) -> list[str]:
    """Every pruned run was scored, at one epoch and in the same batches for all criteria."""
    pruned = made["results"].loc[made["results"]["phase"] == "finetuned", list(RUN)]
    scores = made["scores"]
    known = {
        run: rows for run, rows in scores[scores["batch"] >= 0].groupby(list(RUN)) if len(rows)
    }
    faults = []
    for run in pruned.drop_duplicates().itertuples(index=False, name=None):
        if run not in known:
            faults.append(f"{run}: pruned, but not scored")
        elif len(set(known[run].groupby("criterion")["batch"].nunique())) > 1:
            faults.append(f"{run}: criteria of different batches")
    trained = pd.MultiIndex.from_frame(made["history"][list(RUN)].drop_duplicates())
    lost = pruned[~pd.MultiIndex.from_frame(pruned).isin(trained)]
    return [*faults, *(f"{run}: no history" for run, _ in lost.groupby(list(RUN)))]


# the committed folders


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_frames_have_their_schema_and_no_duplicates(folder: Path) -> None:
    made = stored(folder)
    missing = set(COLUMNS) - set(made) - set(MAY_BE_ABSENT)
    assert not missing and set(made) <= set(COLUMNS)
    for name, frame in made.items():
        checked = frames.checked(name, frame, source=str(folder / "data" / name))
        pd.testing.assert_frame_equal(checked, frame)
        assert set(frame["experiment"]) <= {folder.name}
    assert len(made["measurements"])


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_frames_have_no_gaps(folder: Path) -> None:
    assert gaps(wide(folder)) == []


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_csv_holds_what_parquet_holds(folder: Path) -> None:
    for path in (folder / "data").glob("*.csv"):
        assert len(pd.read_csv(path, dtype={"mask": str})) == len(stored(folder)[path.stem]), path


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_every_table_and_figure_exists_or_is_listed_with_the_reason(folder: Path) -> None:
    listed = (folder / "not_made.md").read_text()
    for kind, names in (("table", TABLES), ("figure", FIGURES)):
        made = {name for name in names if f"| {kind} | `{name}` |" not in listed}
        wanted = {f"{name}.{ending}" for name in made for ending in ENDINGS[kind]}
        written = {
            path.name for path in (folder / f"{kind}s").glob("*.*") if path.stat().st_size > 0
        }
        assert written == wanted
    # Pages without a file are made again, which gives the reason.
    assert listed == not_made(read(folder), folder)


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_tables_are_those_of_the_frames(folder: Path) -> None:
    made = read(folder)
    for name in TABLES:
        try:
            texts = rendered(name, made)
        except Absent:
            assert not list((folder / "tables").glob(f"{name}.*")), name
            continue
        for ending in ENDINGS["table"]:
            written = (folder / "tables" / f"{name}.{ending}").read_text()
            assert texts[ending] == written, (name, ending)


# faults that the checks find


def spoilt(change: Callable[[Made], None]) -> list[str]:
    made = {name: frame.copy() for name, frame in whole().items()}
    change(made)
    return gaps(made)


@cache
def whole() -> Made:
    return build(datasets=("ETTh1",), models=("iTransformer", "DLinear"), orders=2, pairs=())


def test_a_whole_experiment_has_no_gaps() -> None:
    assert gaps(whole()) == []


def _drop(frame: str, query: str) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        rows = made[frame]
        lost = rows.query(query)
        assert len(lost)
        made[frame] = rows.drop(lost.index)

    return change


def _set(frame: str, query: str, column: str, value: object) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        made[frame].loc[made[frame].query(query).index, column] = value

    return change


SEED = "seed == 1 and model == 'iTransformer'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("results", f"{SEED} and phase == 'dense'"), "no dense row"),
        (_drop("results", f"{SEED} and phase == 'dense' and split == 'test'"), "no dense row"),
        (
            _drop(
                "results", f"{SEED} and phase == 'finetuned' and mask == '{FULL}' and order == 1"
            ),
            "no control",
        ),
        (
            _drop("results", f"{SEED} and phase == 'finetuned' and mask == '0.0.0.1'"),
            "not trained",
        ),
        (
            _drop("results", f"{SEED} and phase == 'pruned' and mask == '0.0.0.1'"),
            "before fine-tuning",
        ),
        (
            _drop(
                "results",
                f"{SEED} and phase == 'finetuned' and mask == '0.0.0.1' and split == 'test'",
            ),
            "without validation or test",
        ),
        (_drop("scores", SEED), "not scored"),
        (_drop("scores", f"{SEED} and criterion == 'michel' and batch == 2"), "different batches"),
        (_drop("history", SEED), "no history"),
        (_set("results", SEED, "device", ""), "without device"),
        (_set("results", SEED, "commit", "unknown"), "without commit"),
    ],
)
def test_a_gap_is_found(change: Callable[[Made], None], message: str) -> None:
    assert any(message in line for line in spoilt(change))


def test_a_duplicate_is_found() -> None:
    rows = long(whole())["measurements"]
    with pytest.raises(FrameError, match="duplicate"):
        frames.checked("measurements", pd.concat([rows, rows.head(1)]))
