"""Advice on a user's file: the trained networks, the text, and the files in the folder."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import spat
from spat.data.registry import DataError
from spat.pipeline import advise as advising
from spat.pipeline import datasets
from spat.pipeline.cli import main
from spat.pipeline.config import ConfigError
from spat.study.advice import Advice, Network

ROWS, LOOKBACK, HORIZON = 700, 24, 12


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, t = np.random.default_rng(0), np.arange(ROWS)
    waves = [
        np.sin(2 * np.pi * t / 24 + shift) + 0.3 * rng.standard_normal(ROWS) for shift in (0, 1)
    ]
    index = pd.date_range("2024-01-01", periods=ROWS, freq="h", name="date")
    path = tmp_path_factory.mktemp("own data") / "my file.csv"
    frame = pd.DataFrame({"load": 1e4 + 300 * waves[0], "wind": waves[1]}, index)
    frame.to_csv(path)
    return path


@pytest.fixture(scope="module")
def advice(file: Path) -> Advice:
    """Advice that was interrupted after pre-training and then resumed."""
    given: Any = {"lookback": LOOKBACK, "out": file.parent / "out", "epochs": 1, "workers": 1}
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(advising, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            spat.advise(file, HORIZON, finetune_epochs=1, **given)
        trained = {p: p.stat().st_mtime_ns for p in file.parent.rglob("pretrain/model.safetensors")}
        assert len(trained) == len(advising.RATES) + len(advising.LINEAR_RATES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spat.pipeline.stages.pretrain._train", stop)  # all work is kept
        return spat.advise(file, HORIZON, finetune_epochs=1, **given)


def test_advice_compares_dense_control_chosen_and_empty_masks(advice: Advice) -> None:
    table = advice.table
    names = ["dense", "control", *(f"without {k} of 4" for k in (1, 2, 3, 4)), "RLinear"]
    assert table["network"].tolist() == names
    assert table["removed"].tolist() == [0, 0, 1, 2, 3, 4, 0]
    path = [set(mask.split(".")) for mask in table["mask"][:-1]]
    assert path[0] == path[1] == {"1"} and path[-1] == {"0"}
    assert table["parameters"][:-1].is_monotonic_decreasing and (table["latency_ms"] > 0).all()
    assert np.isfinite(table[["validation_mse", "test_mse", "change", "low", "high"]]).all(
        axis=None
    )
    best = table.loc[table["role"].str.contains("chosen"), "validation_mse"].item()
    assert best == table["validation_mse"][:-1].min()


def test_the_folder_contains_text_table_figure_and_forecasters(advice: Advice, file: Path) -> None:
    assert (advice.folder / "advice.txt").read_text(encoding="utf-8") == f"{advice}\n"
    saved = pd.read_csv(advice.folder / "advice.csv", dtype={"role": str}, keep_default_na=False)
    assert saved["network"].tolist() == advice.table["network"].tolist()
    assert (advice.folder / "advice.png").read_bytes().startswith(b"\x89PNG")
    frame = pd.read_csv(file, index_col="date", parse_dates=True)
    sites = {"dense": 4, "recommended": 4 - advice.recommended.removed, "linear": 0}
    for name, kept in sites.items():
        forecast = spat.Forecast.from_folder(advice.folder / name)
        assert sum(site.attention is not None for site in forecast.model.sites()) == kept
        future = forecast.predict(frame)
        assert future.shape == (HORIZON, 2) and list(future.columns) == ["load", "wind"]
        assert (future["load"] - 1e4).abs().max() < 1000 and future["wind"].abs().max() < 3


def test_the_command_prints_the_advice_and_its_folder(
    advice: Advice, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["advise", str(file), "--horizon", str(HORIZON), "--lookback", str(LOOKBACK)]
    arguments += ["--epochs", "1", "--finetune-epochs", "1", "--workers", "1"]
    assert main([*arguments, "--out", str(advice.folder)]) == 0
    shown = capsys.readouterr()
    assert advice.text.split("Savings of")[0] in shown.out  # except the latencies
    assert f"Table, picture and forecasters are in {advice.folder}" in shown.out
    assert "validation mse" not in shown.err and "[3/3]" in shown.err  # all work was kept


def test_a_short_file_is_refused_with_the_number_of_rows_needed(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file.read_text(encoding="utf-8").splitlines(keepends=True)
    short = tmp_path / "short.csv"

    def refusal(rows: int) -> str:
        short.write_text("".join(text[: rows + 1]), encoding="utf-8")
        arguments = ["advise", str(short), "--horizon", "12", "--lookback", "24"]
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
        return capsys.readouterr().err

    for rows in (100, 110):
        assert "at least 111 rows" in refusal(rows)
    assert "11 for validation (needed: 12)" in refusal(110)
    # Because of rounding, 104 rows are enough and 105 are not. The message names a number that is
    # always enough.
    config = advising._config(
        "short", advising.described(short)[1], tmp_path, 12, 24, "PatchTST", 1, 1
    )
    row = datasets.find(config, "short")
    for rows in range(111, 200):
        advising._require_rows(short, replace(row, rows=rows), 24, 12)


def test_a_worker_that_imports_the_script_of_its_parent_says_how_to_guard_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # multiprocessing sets this in a new process while it imports the script.
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match='a block `if __name__ == "__main__":`, or pass work'):
        spat.advise(file, HORIZON, out=tmp_path / "out")


def test_impossible_arguments_are_refused(file: Path, tmp_path: Path) -> None:
    given: Any = {"out": tmp_path / "out"}
    for name in ("lookback", "epochs", "finetune_epochs", "workers"):
        with pytest.raises(ConfigError, match=f"{name} 0: give at least 1"):
            spat.advise(file, HORIZON, **given, **{name: 0})
    for value in ("12", 12.5, True, None):
        with pytest.raises(ConfigError, match=f"horizon {value!r}: give a whole number"):
            spat.advise(file, value, **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is a DataFrame: give a path; .*frame.to_csv"):
        spat.advise(pd.read_csv(file), HORIZON, **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="horizon -1"):
        spat.advise(file, -1, **given)
    with pytest.raises(ConfigError, match="'DLinear' is not one of iTransformer, PatchTST"):
        spat.advise(file, HORIZON, model="DLinear", **given)
    with pytest.raises(DataError, match="no such file"):
        spat.advise(tmp_path / "none.csv", HORIZON, **given)


def test_one_channel_needs_attention_between_times(tmp_path: Path) -> None:
    index = pd.date_range("2024-01-01", periods=300, freq="h", name="date")
    pd.DataFrame({"a": np.sin(np.arange(300))}, index).to_csv(tmp_path / "one.csv")
    with pytest.raises(ConfigError, match="PatchTST"):
        spat.advise(tmp_path / "one.csv", 12, lookback=24, out=tmp_path / "out")


def made(
    changes: dict[str, float], validation: dict[str, float], windows: int = 500, **given: Any
) -> Advice:
    """An advice on networks whose test errors differ by these shares from those of the dense."""
    rng = np.random.default_rng(0)
    base = 1 + 0.1 * rng.standard_normal(windows)
    names = {"dense": 0, "control": 0, "without 1 of 2": 1, "without 2 of 2": 2, "RLinear": 0}
    networks = [
        Network(
            name, removed, "", validation.get(name, 1.0),
            (base * (1 + changes.get(name, 0.0) + 0.02 * rng.standard_normal(windows))).astype(
                np.float32
            ),
            0.5, 100 - 30 * removed, 100 - 20 * removed, 2.0 - 0.5 * removed,
        )
        for name, removed in names.items()
    ]  # fmt: skip
    model = given.pop("model", "iTransformer")
    return Advice(Path(), "", model, 20, 10, tuple(networks[:-1]), networks[-1], uncertain=False)


@pytest.mark.parametrize(
    ("changes", "validation", "windows", "recommended", "phrases"),
    [
        ({"without 2 of 2": -0.05}, {"without 2 of 2": 0.9}, 500, "without 2 of 2",
         ["Attention can be removed: remove 2 of the 2", "parameters -60 %", "its own past only"]),
        ({}, {"without 1 of 2": 0.9}, 500, "without 1 of 2",
         ["is not clear", "changes: the interval contains 0", "may be", "any attention, the test",
          "), and the interval contains 0."]),
        ({"without 2 of 2": 0.3}, {"without 2 of 2": 0.9}, 500, "dense",
         ["Keep the attention", "but its test error is 30", "Nothing is saved",
          "Warning: do not remove all attention modules. The channels depend on each other"]),
        ({"without 2 of 2": 0.3}, {"control": 0.9}, 500, "control",
         ["Keep all 2 attention modules: no network", "Without any attention", "Warning"]),
        ({}, {"without 2 of 2": 0.9}, 60, "without 2 of 2",
         ["is not clear", "too short for an interval", "about 500 rows"]),
        ({"RLinear": -0.1}, {"without 1 of 2": 0.9}, 500, "without 1 of 2",
         ["is better: use it"]),
        ({"RLinear": 0.1}, {"without 1 of 2": 0.9}, 500, "without 1 of 2",
         ["The linear model is worse."]),
        ({}, {"without 1 of 2": 0.9, "without 2 of 2": float("inf")}, 500, "without 1 of 2",
         ["not clear which is better: prefer the linear model"]),
    ],
)  # fmt: skip
def test_the_text_agrees_with_the_numbers(
    changes: dict[str, float],
    validation: dict[str, float],
    windows: int,
    recommended: str,
    phrases: list[str],
) -> None:
    advice = made(changes, validation, windows)
    assert advice.recommended.name == recommended
    text = " ".join(advice.text.split())
    for phrase in phrases:
        assert phrase in text
    assert "nan" not in str(advice).lower()


def test_the_reference_is_the_better_of_dense_and_control_by_validation() -> None:
    better = made({"control": 0.2, "without 1 of 2": 0.1}, {"control": 0.9, "without 1 of 2": 0.8})
    assert better.reference.name == "control"
    assert better.change(better.chosen).high < 0
    of_equals = made({}, {"without 1 of 2": 0.9, "without 2 of 2": 0.9})
    assert of_equals.chosen.name == "without 2 of 2"


def test_advice_for_another_model_has_its_own_warning() -> None:
    text = made({"without 2 of 2": 0.3}, {"control": 0.9}, model="PatchTST").text
    assert "Warning" in text and "channels" not in text
