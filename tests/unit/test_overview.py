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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--dataset ETTh9 --horizon 96", "dataset 'ETTh9' is not one of ETTh1"),
        ("--dataset FashionMNIST --horizon 96", "dataset 'FashionMNIST' is not a time series"),
        ("--dataset PythonTopics --horizon 96", "dataset 'PythonTopics' is not a time series"),
        ("--dataset ILI --horizon 0", "horizon 0: give a number from 1 to 966, the rows of ILI"),
        ("--dataset ILI --horizon=-1", "horizon -1: give a number"),
        ("--dataset ILI --horizon 967", "horizon 967: give a number"),
        ("--dataset ILI --horizon 24 --lookback 0", "lookback 0: give a number"),
        (
            "--dataset ILI --horizon 24 --lookback 99999999999",
            "lookback 99999999999: give a number",
        ),
    ],
)
def test_impossible_arguments_are_one_message(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *arguments.split()]) == 1
    shown = capsys.readouterr()
    assert says in shown.err and "Error" in shown.err
    assert not shown.out
