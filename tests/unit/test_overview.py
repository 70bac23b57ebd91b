"""The table of models: a row for each, with the costs of the network that is built."""

from __future__ import annotations

import csv

import pytest

from spat.models.overview import COLUMNS
from spat.models.registry import FORECASTERS
from spat.pipeline.cli import main


def rows(text: str) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in csv.DictReader(text.splitlines())}


def test_every_model_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--dataset", "ETTh1", "--horizon", "96"]) == 0
    models = rows(capsys.readouterr().out)
    assert list(models) == list(FORECASTERS)
    assert tuple(models["NLinear"]) == COLUMNS
    linear, inverted = models["NLinear"], models["iTransformer"]
    assert (linear["role"], linear["parameters"], linear["flops"]) == ("baseline", "9312", "129024")
    assert (linear["sites"], linear["views"], linear["note"]) == ("", "", "")
    assert (inverted["sites"], inverted["parameters"]) == (
        "encoder.0.self encoder.1.self",
        "841568",
    )
    assert inverted["views"] == "Output Residual Heads Mixing"
    assert models["TimeMachine"]["views"] == "Output"
    assert "d_model=256; d_ff=256" in inverted["settings"]
    assert models["SeasonalNaive"]["settings"] == "season=24"


def test_a_model_that_does_not_fit_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--dataset", "ETTh1", "--horizon", "96", "--lookback", "1"]) == 0
    models = rows(capsys.readouterr().out)
    assert "lookback 1 with stride 8 holds no patch" in models["PatchTST"]["note"]
    assert models["PatchTST"]["parameters"] == ""
    assert models["NLinear"]["parameters"] == "192"


def test_an_unknown_dataset_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--dataset", "ETTh9", "--horizon", "96"]) == 1
    assert "dataset 'ETTh9' is not one of ETTh1" in capsys.readouterr().err
