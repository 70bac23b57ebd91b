"""advise(FILE): train on a data file, with and without attention, and compare.

A Transformer and a linear model are trained on the file. The Transformer is fine-tuned with none,
some and all of its attention modules removed. The stages of the pipeline run in an experiment below
the output folder, so that a second call resumes after an interruption. `spat.study.advice` creates
the text, the table and the figure of the result.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Final

import torch

from spat.data.registry import Dataset, borders
from spat.files import replacing, write_text
from spat.models.registry import MODELS, build
from spat.pipeline import datasets, runs
from spat.pipeline.add import described
from spat.pipeline.cache import RESULT, Finished
from spat.pipeline.checks import checked_plan
from spat.pipeline.config import Config, ConfigError, load
from spat.pipeline.runs import Run
from spat.pipeline.stages import common
from spat.pipeline.stages.decide import decide
from spat.pipeline.stages.prepare import is_prepared, prepare
from spat.pipeline.stages.pretrain import pretrain
from spat.pipeline.stages.prune import prune
from spat.pipeline.stages.score import score
from spat.pipeline.stages.select import scorable, select
from spat.pipeline.stages.trained import finetuned
from spat.scoring.names import offered
from spat.study.advice import CONTROL, DENSE, Advice, Network
from spat.study.pages import style
from spat.surgery.forecast import Forecast
from spat.tasks.setting import Window
from spat.training.device import costs
from spat.training.device.concurrency import executor, require_main
from spat.training.loop import choose_device
from spat.training.optimisation import adam
from spat.training.step import training_step

LINEAR: Final = "RLinear"
# The learning rate of each model is chosen on validation, since published rates are for other data.
# Each rate is a separate run, so that the rates can be tried at the same time.
RATES: Final = (1e-4, 5e-4)
LINEAR_RATES: Final = (1e-3, 5e-3, 2e-2)
FINETUNING: Final = 5  # epochs of each mask; without attention three are not always enough
EXPERIMENT: Final = "work"
# The number of steps that are timed before the first job, and the rounds of latency measurements.
TIMED: Final = 6
ROUNDS: Final = 30


def advise(
    file: str | Path,
    horizon: int,
    *,
    lookback: int = 96,
    out: str | Path | None = None,
    model: str = "iTransformer",
    epochs: int | None = None,
    finetune_epochs: int = FINETUNING,
    workers: int | None = None,
) -> Advice:
    """Train forecasters on a file, with and without attention, and advise on removing attention.

    Progress and the remaining time are written to stderr. Finished work and the state of training
    are in `out/work`, so that the same call resumes after an interruption.

    Args:
        file: delimited text with a header, time stamps and one column per channel. Its format is
            guessed (`spat.data.guess`). The first 70 % of the rows are for training, the last 20 %
            for the test.
        horizon: the number of rows to forecast.
        lookback: the number of input rows of a forecast.
        out: folder of the result; by default `advice/NAME`, by the name of the file.
        model: a Transformer of the registry whose attention the criterion `send` can rank.
        epochs: the maximum number of epochs of pre-training of the Transformer; by default that of
            the registry.
        finetune_epochs: epochs of fine-tuning, the same for all masks and the control.
        workers: the number of networks trained at the same time; by default one per core. On a CPU
            they are processes: in a script, call this in a block `if __name__ == "__main__":`.

    Raises:
        DataError: naming the file, if it cannot be read.
        ConfigError: if the file is too short for `lookback` and `horizon` (the message has the
            number of rows needed), or an argument is not valid.
    """
    require_main()
    if not isinstance(file, str | os.PathLike):
        raise ConfigError(
            f"the file is a {type(file).__name__}: give a path; write a data frame to a file first "
            "(frame.to_csv)"
        )
    counts = {
        "horizon": horizon,
        "lookback": lookback,
        "epochs": epochs,
        "finetune_epochs": finetune_epochs,
        "workers": workers,
    }
    for argument, value in counts.items():
        if value is None and argument not in ("horizon", "lookback"):
            continue
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ConfigError(f"{argument} {value!r}: give a whole number")
        if value < 1:
            raise ConfigError(f"{argument} {value}: give at least 1")
    path = Path(file)
    name, section, guessed = described(path)
    folder = Path(out) if out is not None else Path("advice") / name
    config = _config(name, section, folder, horizon, lookback, model, epochs, finetune_epochs)
    row = datasets.find(config, name)
    _require_rows(path, row, lookback, horizon)
    if row.channels < 2 and model == "iTransformer":
        left = f" ({'; '.join(guessed.notes)})" if guessed.left_out else ""
        raise ConfigError(
            f"{path} has one channel{left}, but the attention of iTransformer is between channels: "
            "use the model PatchTST, whose attention is between time steps"
        )
    plan = [planned.run for planned in checked_plan(config)]
    _say(
        f"{path.name}: {row.rows} rows of {row.channels} channels, one every {row.step}"
        + ("" if guessed.series.times is None else f", from {guessed.series.times[0]}")
    )
    for note in guessed.notes:
        _say(note)
    workers = workers or os.cpu_count() or 1
    run, linear = _train(config, plan, workers)
    advice = _compared(config, run, linear, folder)
    write_text(folder / "advice.txt", f"{advice}\n")
    with replacing(folder / "advice.csv") as temporary:
        advice.table.to_csv(temporary, index=False)
    with replacing(folder / "advice.png") as temporary, style.drawing():
        advice.figure().savefig(temporary, format="png", metadata={"Software": None})
    return advice


def _config(
    name: str,
    section: Mapping[str, Any],
    folder: Path,
    horizon: int,
    lookback: int,
    model: str,
    epochs: int | None,
    finetune_epochs: int,
) -> Config:
    usable = [
        row.name
        for row in MODELS.values()
        if row.role == "attention" and "send" in offered(row.views)
    ]
    if model not in usable:
        raise ConfigError(f"model {model!r} is not one of {', '.join(usable)}")
    # The linear model is cheap, so it is always trained with all epochs.
    shortened = {} if epochs is None else {"epochs": epochs}

    def variants(base: str, rates: Sequence[float], changes: Mapping[str, int]) -> dict[str, Any]:
        return {
            f"rate{rate:g}": {"base": base, "model": {"learning_rate": rate, **changes}}
            for rate in rates
        }

    slow, quick = variants("deep", RATES, shortened), variants("published", LINEAR_RATES, {})
    shape = {"datasets": [name], "lookback": lookback, "horizons": [horizon]}
    values = {
        "experiment": EXPERIMENT,
        "results": str(folder),
        "grid": [
            {**shape, "models": [model], "variants": list(slow)},
            {**shape, "models": [LINEAR], "variants": list(quick), "prune": False},
        ],
        "variants": {**slow, **quick},
        "data": {"custom": {name: dict(section)}},
        "pruning": {"site": {"criteria": ["send"], "ratios": ["auto:validation"]}},
        "finetune": {"epochs": finetune_epochs},
        "tracking": {"enabled": False},
    }
    return load(values, "advise")


def _require_rows(path: Path, row: Dataset, lookback: int, horizon: int) -> None:
    """Check that each split has at least one window.

    Raises:
        ConfigError: if not; the message has the number of rows of each split, the number that the
            split needs, and the number that the file needs.
    """
    needed = {"train": lookback + horizon, "validation": horizon, "test": horizon}

    def lengths(rows: int) -> dict[str, int]:
        split = borders(row, rows)
        return {key: getattr(split, key)[1] - getattr(split, key)[0] for key in needed}

    def fits(rows: int) -> bool:
        return all(lengths(rows)[key] >= needed[key] for key in needed)

    if not fits(row.rows):
        # Shares are rounded, so a file may be long enough although a slightly longer one is not.
        most = 12 * (lookback + horizon)
        least = 1 + next(rows for rows in range(most, 0, -1) if not fits(rows))
        has = lengths(row.rows)
        shown = ", ".join(f"{has[key]} for {key} (needed: {needed[key]})" for key in needed)
        raise ConfigError(
            f"{path}: {row.rows} rows are too few for lookback {lookback} and horizon {horizon}: "
            f"{shown}. Give a file of at least {least} rows, or a shorter horizon or lookback"
        )


def _train(config: Config, plan: Sequence[Run], workers: int) -> tuple[Run, Run]:
    """Train all networks; return the chosen run of the Transformer and that of the linear model."""
    runs_of = {
        kind: [run for run in plan if (run.model == LINEAR) == (kind == LINEAR)]
        for kind in (DENSE, LINEAR)
    }
    first = runs_of[DENSE][0]
    if not is_prepared(config, first.dataset):
        prepare(config, first.dataset)
    execute = executor(choose_device(config.training.device), workers)
    sites, epoch = _timed(config, first)
    tuning = config.finetune.epochs
    left = math.ceil((sites + 1) / workers) * tuning
    if not all((runs.folder(config, run, "pretrain") / RESULT).exists() for run in plan):
        epochs = math.ceil(len(RATES) / workers) * runs.setup_of(config, first).recipe.epochs + left
        _say(
            f"[1/3] training {first.model} with {len(RATES)} learning rates, and {LINEAR} with "
            f"{len(LINEAR_RATES)}; at most {_minutes(epochs * epoch)} left"
        )
    execute([partial(pretrain, config, run) for run in plan])
    run, linear = (min(tried, key=partial(_validation, config)) for tried in runs_of.values())
    dense = Finished(runs.folder(config, run, "pretrain")).metrics
    if not scorable(dense):
        raise ConfigError(
            f"{run.model} diverged with each of the learning rates {RATES}: check the file for "
            "outliers"
        )
    epoch = dense["wall_s"] / max(1, dense["epochs"])
    _say(
        f"[2/3] scoring {sites} attention modules, then fine-tuning {sites + 1} networks for "
        f"{tuning} epochs each; about {_minutes(left * epoch)} left"
    )
    score(config, run)
    select(config, run)
    prune(config, run, 1, execute)
    decide(config, run)
    return run, linear


def _validation(config: Config, run: Run) -> float:
    """The validation error of a trained run; infinite if its training diverged."""
    trained = Finished(runs.folder(config, run, "pretrain")).metrics
    error = trained["errors"]["validation"]["mse"]
    return math.inf if error is None or not scorable(trained) else float(error)


def _timed(config: Config, run: Run) -> tuple[int, float]:
    """The number of attention modules of the network, and the seconds of an epoch."""
    _, splits = common.open_data(config, run.dataset, run)
    setup = runs.setup_of(config, run)
    network = build(run.model, setup.settings, common.shape_of(config, run))
    network.to(splits.train.device).train()
    size = min(setup.recipe.batch_size, len(splits.train))
    index = torch.arange(size, device=splits.train.device)
    optimiser = adam(network, setup.recipe.learning_rate, setup.recipe.weight_decay)
    dropout = torch.Generator(splits.train.device)
    times = []
    with training_step(
        network, common.task_of(run), splits.train, optimiser, dropout, config.training.precision
    ) as step:
        for _ in range(1 + TIMED):
            begun = time.perf_counter()
            step(index).item()
            times.append(time.perf_counter() - begun)
    # The first step selects kernels.
    return len(network.sites()), sum(times[1:]) / TIMED * len(splits.train) / size


def _compared(config: Config, run: Run, linear: Run, folder: Path) -> Advice:
    _say("[3/3] timing the networks, writing the advice")
    path = Finished(runs.folder(config, run, "decide")).metrics["path"]
    tuned = {
        f"without {removed} of {len(path) - 1}" if removed else CONTROL: mask
        for removed, mask in enumerate(path)
    }
    files = {
        DENSE: Finished(runs.folder(config, run, "pretrain")),
        **{name: finetuned(config, run, mask) for name, mask in tuned.items()},
        LINEAR: Finished(runs.folder(config, linear, "pretrain")),
    }
    models = {name: Forecast.from_folder(of.folder) for name, of in files.items()}
    task = common.task_of(run)
    timings = costs.latency(
        {name: forecast.model for name, forecast in models.items()},
        task,
        task.example(models[DENSE].model.shape),
        ROUNDS,
        "cpu",
    )

    def network(name: str) -> Network:
        metrics = files[name].metrics
        errors = metrics["errors"]["finetuned"] if name in tuned else metrics["errors"]
        validation = errors["validation"]["mse"]
        mask = models[name].mask
        return Network(
            name,
            len(mask.sites_removed),
            mask.name,
            math.inf if validation is None else validation,
            files[name].array("losses.npy"),
            errors["test"]["mae"],
            metrics["params"],
            metrics["flops"],
            timings[name].milliseconds,
        )

    window = Window.parse(run.setting)
    advice = Advice(
        folder,
        f"{run.dataset}: {run.model}, {window.lookback} to {window.horizon} steps",
        run.model,
        window.lookback,
        window.horizon,
        tuple(network(name) for name in (DENSE, *tuned)),
        network(LINEAR),
        any(timing.is_wide for timing in timings.values()),
    )
    for place, name in (
        (DENSE, DENSE),
        ("recommended", advice.recommended.name),
        ("linear", LINEAR),
    ):
        models[name].save(folder / place)
    return advice


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
