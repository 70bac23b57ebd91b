"""The conventional networks equal those of this project, and the benchmark runs and reports."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import alternation
import card
import conventional
import growth
import machine
import memory
import mixed
import networks
import parallel
import pipeline
import run
import scale
from cases import FULL, QUICK, Case, Size, open_case, open_series
from figure import Figure, Part, Series, Target
from machine import Rates
from products import step_of
from small_models import TASK, flops_of

from spat.data.windows import Windows
from spat.models.base import Forecaster
from spat.models.registry import setup
from spat.pipeline.config import Config
from spat.pipeline.runs import plan
from spat.training.device import bf16
from spat.training.metrics import evaluate
from spat.training.optimisation import adam
from spat.training.step import training_step

MODELS = ("iTransformer", "PatchTST")


def case_of(model: str, variant: str = "published") -> Case:
    opened = open_case(QUICK, open_series(QUICK), model, variant)
    without = setup(model, variant, QUICK.dataset, QUICK.horizon, {"dropout": 0.0})
    return replace(opened, settings=without.settings)


def test_the_series_of_the_full_size_is_the_dataset_where_its_file_is_available() -> None:
    if not (Path(__file__).parents[3] / "shared" / "datasets" / "ETTh1.csv").exists():
        pytest.skip("needs ETTh1.csv of the shared datasets")
    prepared = open_series(FULL)
    assert (prepared.name, prepared.values.shape) == ("ETTh1", (14400, 7))


def batch_of(case: Case, size: int) -> list[Tensor]:
    """The first training windows as the conventional loader gives them."""
    border = case.prepared.borders.train
    dataset = conventional.WindowDataset(case.prepared, border, case.lookback, case.horizon)
    items = [dataset[index] for index in range(size)]
    return [torch.from_numpy(np.stack(part)) for part in zip(*items, strict=True)]


@pytest.mark.parametrize("variant", ["published", "deep"])
@pytest.mark.parametrize("model", MODELS)
def test_the_conventional_network_gives_our_forecasts(model: str, variant: str) -> None:
    case = case_of(model, variant)
    network = case.build(seed=1)
    theirs = networks.twin(network)
    batch = case.splits.train.batch(torch.arange(8))
    past, future, past_marks, future_marks = (part.float() for part in batch_of(case, 8))
    assert torch.equal(past, batch.x)
    assert torch.equal(future[:, -case.horizon :], batch.y)
    expected = network(batch.x, batch.past_marks, batch.future_marks)
    forecasts = theirs(past, past_marks, future, future_marks)
    assert forecasts.shape == expected.shape
    assert torch.allclose(forecasts, expected, atol=1e-5)
    # Both in training mode, with the statistics of the batch: no other dropout is left.
    assert not torch.allclose(case.build(seed=2)(batch.x, batch.past_marks), expected, atol=1e-2)


@pytest.mark.parametrize("model", MODELS)
def test_one_step_leaves_the_same_weights(model: str) -> None:
    case = case_of(model)
    # In double precision: Adam divides gradients by their size, rounding errors included.
    network = case.build(seed=1).double()
    theirs = networks.twin(network).double()
    before = copy.deepcopy(theirs.state_dict())
    batch = batch_of(case, 8)
    value = conventional.step(theirs, batch, torch.optim.Adam(theirs.parameters(), lr=1e-3))
    loss = our_step(case, network)
    assert value == pytest.approx(loss, abs=1e-6)
    after = networks.twin(network).double().state_dict()
    for name, weight in theirs.state_dict().items():
        if weight.is_floating_point() and "running" not in name:
            assert torch.allclose(weight, after[name], atol=1e-6), name
    moved = [not torch.equal(w, before[name]) for name, w in theirs.state_dict().items()]
    assert sum(moved) > len(moved) / 2


def our_step(case: Case, model: Forecaster) -> float:
    prepared = case.prepared
    assert prepared.marks is not None
    values = torch.from_numpy(prepared.values).double()
    marks = torch.from_numpy(prepared.marks).double()
    windows = Windows(values, marks, 0, 300, case.lookback, case.horizon)
    batch = windows.batch(torch.arange(8))
    optimiser = adam(model, 1e-3)
    loss = F.mse_loss(model(batch.x, batch.past_marks, batch.future_marks), batch.y)
    loss.backward()
    optimiser.step()
    return loss.item()


@pytest.mark.parametrize("model", MODELS)
def test_gradients_agree_in_single_precision(model: str) -> None:
    case = case_of(model)
    network = case.build(seed=1)
    theirs = networks.twin(network)
    conventional.loss_of(theirs, [part.float() for part in batch_of(case, 8)]).backward()
    batch = case.splits.train.batch(torch.arange(8))
    F.mse_loss(network(batch.x, batch.past_marks, batch.future_marks), batch.y).backward()
    gradient = theirs.layers[0].conv1.weight.grad.squeeze(-1)  # type: ignore[union-attr,index]
    expected = network.layers[0].feed_forward.up.weight.grad  # type: ignore[union-attr,index]
    assert expected.abs().max() > 1e-4
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_both_loops_reach_the_same_losses() -> None:
    case = case_of("iTransformer").short(8)
    network, size, rate = case.build(), case.recipe.batch_size, case.recipe.learning_rate
    theirs = networks.twin(network)
    untrained = evaluate(network, TASK, case.splits.validation).means["mse"]
    data = conventional.loaders(case.prepared, case.lookback, case.horizon, size, workers=0)
    epochs = conventional.train(theirs, data, rate, epochs=3)
    train, order = case.splits.train, torch.Generator().manual_seed(0)
    with training_step(
        network.train(), TASK, train, adam(network, rate), torch.Generator()
    ) as step:
        for _ in range(3):
            for index in torch.randperm(len(train), generator=order).split(size):
                step(index)
    trained = evaluate(network, TASK, case.splits.validation).means["mse"]
    assert trained < 0.9 * untrained
    assert epochs[-1].validation == pytest.approx(trained, rel=0.05)


def test_loaders_drop_no_window_and_read_no_window_twice() -> None:
    case = case_of("PatchTST")
    data = conventional.loaders(case.prepared, case.lookback, case.horizon, 32, workers=0)
    for loader, windows in zip(data, case.splits, strict=True):
        seen = [row for past, *_ in loader for row in past[:, 0, 0].tolist()]
        expected = windows.batch(torch.arange(len(windows))).x[:, 0, 0].tolist()
        assert sorted(seen) == pytest.approx(sorted(expected))


def test_a_pruned_network_has_no_twin() -> None:
    case = case_of("iTransformer")
    model = case.build()
    model.sites()[0].remove()
    with pytest.raises(ValueError, match="dense"):
        networks.twin(model)
    with pytest.raises(TypeError, match="iTransformer or PatchTST"):
        networks.twin(open_case(QUICK, case.prepared, "DLinear").build())


@pytest.mark.parametrize("model", MODELS)
def test_a_steps_products_are_those_that_flops_count(model: str) -> None:
    case = case_of(model)
    step = step_of(case)
    assert step.forward == flops_of(case.build())
    forward = step.forward * step.windows
    # The FLOPs are three times those of the forward pass, except that the series needs no gradient
    # and that the tokens of time features are dropped early.
    assert 2.5 * forward < step.flops <= 3 * forward


def test_a_short_case_has_the_windows_asked_for() -> None:
    short = case_of("iTransformer").short(3)
    size = short.recipe.batch_size
    assert [len(windows) for windows in short.splits] == [3 * size, size, size]


def test_contestants_alternate_and_the_warm_up_is_dropped() -> None:
    calls: list[str] = []

    def contestant(name: str) -> alternation.Contestant:
        return lambda: float(len(calls.append(name) or name))

    laps = alternation.alternate({"a": contestant("a"), "bb": contestant("bb")}, rounds=2)
    assert calls in (["bb", "a", "a", "bb", "bb", "a"], ["a", "bb", "a", "bb", "bb", "a"])
    assert [[lap.work for lap in rounds] for rounds in laps.values()] == [[1.0, 1.0], [2.0, 2.0]]


def test_a_disturbed_lap_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = iter([(1.0, 0.9), (2.0, 0.0), (3.0, 0.9)])

    def lap(_contestant: alternation.Contestant) -> alternation.Lap:
        work, others = next(planned)
        return alternation.Lap(work, 1.0, 1.0, others)

    monkeypatch.setattr(alternation, "lap", lap)
    monkeypatch.setattr(alternation, "PAUSE", 0.0)
    contestants = {"a": lambda: 0.0}
    (patient,) = alternation.alternate(contestants, 1, warm_up=False, patience=9.0)["a"]
    (hasty,) = alternation.alternate(contestants, 1, warm_up=False)["a"]
    assert (patient.work, hasty.work) == (2.0, 3.0)


def test_cpu_time_counts_children() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass"
    command = pipeline._command(Path.cwd(), "-c", work)
    assert alternation.lap(command).cpu > 0.25


def test_the_median_of_the_ratios_decides_whether_a_target_is_met() -> None:
    figure = Figure(
        "f",
        Series("ours", "windows/s", (10.0, 30.0, 20.0)),
        Series("theirs", "windows/s", (10.0, 10.0, 10.0)),
        Target("at least", 2.0),
    )
    assert figure.ratio.values == (1.0, 3.0, 2.0)
    assert figure.met is True
    assert Target("at most", 1.5).met(figure.ratio.median) is False


def test_a_command_that_fails_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, calls: int) -> list[Figure]:
        pipeline._command(folder, "-c", "raise SystemExit('no luck')")()
        raise AssertionError

    for name in ("_help", "_jobs", "_dry_runs", "_report"):
        monkeypatch.setattr(pipeline, name, broken)
    part = pipeline.measure(QUICK)
    assert len(part.remarks) == 4
    assert all("no luck" in why for why in part.remarks.values())
    assert part.figures == []


def test_the_quick_mode_writes_every_file(tmp_path: Path) -> None:
    sections = ["--only", "engine", "pruned"]
    assert run.main(["--quick", "--rounds", "1", *sections, "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["machine"]["versions"]["torch"]
    engine = report["sections"]["engine"]
    assert engine["commit"]
    figures = {figure["name"]: figure for figure in engine["figures"]}
    for model in MODELS:
        for name in (
            f"training/{model}/steps",
            f"training/{model}/core",
            f"limit/{model}/MKL",
            f"evaluation/{model}",
            f"scoring/{model}/time",
        ):
            assert figures[name]["ratio"]["median"] > 0
            assert figures[name]["floor"] > 0
            assert figures[name]["detail"] is False
        assert figures[f"losses/{model}"]["ratio"]["median"] == pytest.approx(1.0, abs=0.2)
        yardsticks = [name for name in figures if name.startswith(f"training/{model}/core")]
        assert len(yardsticks) == len(QUICK.workers)
        assert sum(engine["facts"][f"breakdown/{model}"].values()) == pytest.approx(1.0, abs=0.01)
    pruned = [figure["name"] for figure in report["sections"]["pruned"]["figures"]]
    assert "pruned/iTransformer-published/inference/0.0" in pruned
    rows = (tmp_path / "bench.csv").read_text().count("\n")
    assert rows == 1 + len(figures) + len(pruned)
    assert "training/iTransformer/core" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_a_section_measured_again_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def section(value: float) -> run.Section:
        series = Series("x", "s", (value,))
        return lambda size, rates: Part([Figure("f", series, series)])

    monkeypatch.setattr(run, "SECTIONS", {"a": section(1.0), "b": section(2.0)})
    arguments = ["--quick", "--output", str(tmp_path)]
    run.main(arguments)
    monkeypatch.setattr(run, "SECTIONS", {"a": section(3.0), "b": section(4.0)})
    run.main([*arguments, "--only", "b"])

    def values() -> dict[str, float]:
        sections = json.loads((tmp_path / "bench.json").read_text())["sections"]
        return {n: s["figures"][0]["measured"]["median"] for n, s in sections.items()}

    assert values() == {"a": 1.0, "b": 4.0}
    monkeypatch.setattr(run.machine, "_processor", lambda: "another machine")
    run.main([*arguments, "--only", "b"])
    assert values() == {"b": 4.0}


def test_parallel_jobs_and_memory_are_measured_in_separate_processes() -> None:
    one = replace(QUICK, models=("iTransformer",), workers=(0,), rounds=1)
    side_by_side = parallel.measure(one, Rates(1e11, 2e11, 1e10)).figures
    assert [figure.name for figure in side_by_side] == ["training/iTransformer/in-all"]
    assert side_by_side[0].ratio.median > 0
    (peak,) = memory.measure(one).figures
    assert peak.measured.median >= 1.0


def test_the_card_section_is_skipped_without_a_card_and_runs_on_a_given_device() -> None:
    one = replace(QUICK, models=("iTransformer",), workers=(0,), rounds=1)
    if not torch.cuda.is_available():
        part = card.measure(one)
        assert part.figures == []
        assert "no CUDA device" in part.remarks["training/card"]
    case = open_case(one, open_series(one), "iTransformer").short(2)
    figures = card.figures(one, case, machine.card_rates("cpu", 0.01), "cpu")
    assert [figure.name.rpartition("/")[2] for figure in figures] == ["one", "streams"]
    assert all(figure.ratio.median > 0 and figure.floor for figure in figures)


def test_precisions_are_compared_if_the_processor_has_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = replace(QUICK, rounds=1)
    if bf16.supported():
        names = [figure.name for figure in mixed.measure(one).figures]
        assert names == ["bf16/iTransformer-16-3/bf16", "bf16/iTransformer-16-3/autocast"]
    monkeypatch.setattr(bf16, "supported", lambda: False)
    part = mixed.measure(one)
    assert part.figures == []
    assert "AVX512_BF16" in part.remarks["bf16"]


def test_each_part_of_the_work_is_measured_on_wide_series(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(make: Any, case: Case) -> float:
        assert make(case)() == len(case.splits.train)
        return 1.0

    monkeypatch.setattr(scale, "peak", in_this_process)
    figures = {figure.name for figure in scale.measure(replace(QUICK, rounds=1)).figures}
    later = {f"scale/7/{name}/{what}" for name in scale.LATER for what in ("time", "memory")}
    assert figures == {"scale/7/steps", "scale/7/memory", *later}


def test_growth_runs_the_pipeline_and_gives_exponents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = growth._experiment({**growth.BASE, "masks": 3}, QUICK)
    (planned,) = plan(Config.model_validate(experiment))
    assert planned.run.path == "synthetic/iTransformer-small/l48-h48/seed0"

    def run_(at: Mapping[str, int], _size: Size) -> tuple[growth.Cost, growth.Cost]:
        seconds = 2.0 + at["channels"] ** 2 * at["lookback"] / 48
        return growth.Cost(seconds, 300.0), growth.Cost(2.0, 300.0)

    monkeypatch.setattr(growth, "_run", run_)
    part = growth.measure(replace(QUICK, multiples=(1, 2, 4)))
    exponents = {axis: each["seconds"] for axis, each in part.facts["exponents"].items()}
    assert exponents == pytest.approx(
        {"channels": 2.0, "lookback": 1.0, "horizon": 0.0, "masks": 0.0, "seeds": 0.0}
    )
    assert part.facts["exponents"]["channels"]["megabytes"] is None
    growth.plot(part.plain(), tmp_path / "growth")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
