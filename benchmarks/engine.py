"""Training, evaluation and scoring on one core, against the conventional loop and the floors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import conventional
import networks
import torch
from alternation import Contestant, Laps, alternate, best, rates, seconds
from breakdown import breakdown
from cases import TASK, Case, Size, open_case, open_series
from figure import Figure, Part, Series, Target
from loops import ConventionalLoop, OurLoop, as_published, validation_mse
from machine import Rates, has_onednn
from products import Step, bare, step_of
from torch import Tensor

from spat.scoring.names import CRITERIA, PASS
from spat.scoring.scores import score
from spat.tasks.task import Task, case_losses
from spat.training.loop import prepare_torch
from spat.training.metrics import evaluate
from spat.training.optimisation import adam
from spat.training.options import Precision
from spat.training.step import training_step

# The criteria that one pass computes. Others need a forward pass per site, another split or the
# record of pre-training; random masks need no pass.
SCORED = tuple(name for name, row in CRITERIA.items() if row.origin in PASS)


def measure(size: Size, machine: Rates) -> Part:
    """Measure the figures of each model on one core."""
    part = Part()
    prepared = open_series(size)
    part.facts["series"] = prepared.name
    for model in size.models:
        case = open_case(size, prepared, model)
        step = step_of(case)
        short = case.short(size.batches[model])
        loops = _loops(short, size.workers)
        laps = alternate({**loops, **_pieces(size, case, short, step)}, size.rounds)
        part.figures += _figures(size, case, step, laps, machine)
        part.figures.append(_losses(short, loops))
        part.facts[f"breakdown/{model}"] = breakdown(case, batches=size.batches[model])
    return part


def _loops(short: Case, workers: Sequence[int]) -> dict[str, OurLoop | ConventionalLoop]:
    theirs = {f"conventional {count}": ConventionalLoop(short, count) for count in workers}
    return {"epoch": OurLoop(short), **theirs}


def _pieces(size: Size, case: Case, short: Case, step: Step) -> dict[str, Contestant]:
    """What the loops are made of, the scoring pass, and the bare products."""
    batches = size.batches[case.model]
    bare_rates = {
        "steps": our_steps(short),
        "conventional steps": conventional_steps(short),
        "evaluation": _evaluation(case, size.evaluated[case.model]),
        "scoring": scoring(case, *size.scored),
    }
    for library in ("MKL", "oneDNN") if has_onednn() else ("MKL",):
        bare_rates[library] = bare(step, library, attention=False, repeats=batches)
        bare_rates[f"{library}, attention"] = bare(step, library, attention=True, repeats=batches)
    return bare_rates


def our_steps(case: Case, task: Task = TASK, precision: Precision = "float32") -> Contestant:
    """An epoch of training steps without validation."""
    model, train = case.build().train(), case.splits.train
    optimiser, dropout = adam(model, case.recipe.learning_rate), torch.Generator()
    order = torch.Generator().manual_seed(0)

    def lap() -> float:
        prepare_torch("float32")
        batches = torch.split(torch.randperm(len(train), generator=order), case.recipe.batch_size)
        with training_step(model, task, train, optimiser, dropout, precision) as step:
            losses = [step(index) for index in batches]
        float(torch.stack(losses).sum())
        return float(len(train))

    return lap


def conventional_steps(case: Case) -> Contestant:
    """An epoch of training steps of the conventional loop, without validation."""
    model = networks.twin(case.build())
    size = case.recipe.batch_size
    data = conventional.loaders(case.prepared, case.lookback, case.horizon, size, workers=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=case.recipe.learning_rate)

    def lap() -> float:
        with as_published(threads=1):
            conventional.train_epoch(model, data.train, optimiser)
        return float(len(case.splits.train))

    return lap


def _evaluation(case: Case, count: int) -> Contestant:
    model, windows = case.build().eval(), case.windows(count)

    def lap() -> float:
        prepare_torch("float32")
        evaluate(model, TASK, windows)
        return float(count)

    return lap


def scoring(case: Case, batches: int, batch_size: int) -> Contestant:
    """A scoring pass with all criteria that one pass computes."""
    model, train = case.build(), case.splits.train
    chosen = scoring_batches(len(train), batches, batch_size)

    def lap() -> float:
        prepare_torch("float32")
        score(model, train, chosen, case_losses(TASK), SCORED, batch_size=batch_size)
        return float(batches * batch_size)

    return lap


def _figures(size: Size, case: Case, step: Step, laps: Laps, machine: Rates) -> list[Figure]:
    model = case.model
    training = Series("training steps, ours", "windows/s", rates(laps["steps"]))
    evaluation = rates(laps["evaluation"])
    series = [
        Figure(
            f"training/{model}/steps",
            training,
            Series("conventional", "windows/s", rates(laps["conventional steps"])),
            floor=step.ideal(machine),
        ),
        *_epochs(model, size.workers, laps, step.ideal(machine, validation=True)),
        *_shares(model, training, laps, machine, step),
        Figure(
            f"evaluation/{model}",
            Series("evaluation, ours", "windows/s", evaluation),
            training,
            Target("at least", 3.0),
            floor=machine.product / step.forward,
        ),
    ]
    train, validation = len(case.splits.train), len(case.splits.validation)
    pretraining = tuple(
        size.epochs * (train / a + validation / b)
        for a, b in zip(training.values, evaluation, strict=True)
    )
    scored = size.scored[0] * size.scored[1]
    series.append(
        Figure(
            f"scoring/{model}/time",
            Series(f"{len(SCORED)} criteria, {scored} windows", "s", seconds(laps["scoring"])),
            Series(f"pre-training, {size.epochs} epochs", "s", pretraining),
            Target("at most", 0.10),
            # Forward, and backward to the attention, which needs no gradient of the weights.
            floor=2 * step.forward * scored / machine.product,
        )
    )
    return series


def _epochs(model: str, workers: Sequence[int], laps: Laps, floor: float) -> list[Figure]:
    """The whole loop against the conventional loop with its fastest number of workers."""
    training = Series("training loop, ours", "windows/s", rates(laps["epoch"]))
    yardstick = best({str(w): laps[f"conventional {w}"] for w in workers}, "cpu")
    return [
        Figure(
            f"training/{model}/core" + ("" if chosen else f"/workers-{w}"),
            training,
            Series(f"conventional, {w} workers", "windows/s", rates(laps[f"conventional {w}"])),
            Target("at least", 1.3) if chosen else None,
            floor=floor,
            detail=not chosen,
        )
        for w in workers
        for chosen in [str(w) == yardstick]
    ]


def _losses(case: Case, loops: Mapping[str, OurLoop | ConventionalLoop]) -> Figure:
    """Both loops started from the same weights and saw as many epochs."""
    engine, conventional = loops["epoch"], loops["conventional 0"]
    return Figure(
        f"losses/{case.model}",
        Series("validation MSE, ours", "", (validation_mse(engine.model, case),)),
        Series("conventional", "", (validation_mse(conventional.model, case),)),
        Target("at most", 1.02),
    )


def _shares(
    model: str, training: Series, laps: Laps, machine: Rates, step: Step
) -> Iterator[Figure]:
    """The share of the time of a step that its bare products would take."""
    for name, lapped in laps.items():
        library, _, attention = name.partition(", ")
        if library not in ("MKL", "oneDNN"):
            continue
        kind = "all products" if attention else "products of linear layers"
        yield Figure(
            f"limit/{model}/{library}" + ("/all" if attention else ""),
            training,
            Series(f"bare {kind}, {library}", "windows/s", rates(lapped)),
            None if attention else Target("at least", 0.6),
            floor=machine.product * step.windows / step.flops,
            detail=bool(attention),
        )


def scoring_batches(windows: int, batches: int, batch_size: int) -> list[Tensor]:
    """Training windows drawn without replacement."""
    order = torch.Generator().manual_seed(0)
    drawn = torch.randperm(windows, generator=order)[: batches * batch_size]
    return list(torch.split(drawn, batch_size))
