"""Training, evaluation and scoring on one core, against the conventional loop and the floors."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import conventional
import torch
from alternation import Contestant, Laps, alternate, best, rates, seconds
from breakdown import breakdown
from cases import MODELS, Case, Size, open_case, open_series
from figure import Figure, Part, Series, Target
from machine import Rates, has_onednn
from products import Step, bare, step_of
from torch import Tensor

from spat.evaluation.metrics import evaluate
from spat.pruning import costs
from spat.scoring.registry import CRITERIA
from spat.scoring.scores import score
from spat.training.loop import Seeds, Settings, fit, prepare_torch
from spat.training.optimisation import adam
from spat.training.step import make_step

# All that one pass gives: what needs a forward pass per site, another split, or pre-training stands
# apart, and random draws need nothing.
SCORED = tuple(name for name, row in CRITERIA.items() if row.needs in ("probe", "group"))


def measure(size: Size, machine: Rates) -> Part:
    """The figures of each model on one core."""
    part = Part()
    prepared = open_series(size)
    part.facts["series"] = prepared.name
    for model in MODELS:
        case = open_case(size, prepared, model)
        step = step_of(case)
        laps = alternate(_contestants(size, case, step), size.rounds)
        part.figures += _figures(size, case, step, laps, machine)
        part.facts[f"breakdown/{model}"] = breakdown(case, batches=size.batches[model])
    part.figures.append(_memory(size, open_case(size, prepared, MODELS[0])))
    return part


def our_epoch(case: Case) -> Contestant:
    """An epoch of the loop as the pipeline runs it: training and validation."""
    model, splits = case.build(), case.splits
    settings = Settings(case.hyper.learning_rate, case.hyper.batch_size, epochs=1)
    turns = iter(range(10**9))

    def lap() -> float:
        prepare_torch("float32")
        turn = next(turns)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress
            fit(model, splits, settings, Seeds(order=turn, dropout=turn))
        return float(len(splits.train))

    return lap


def conventional_epoch(case: Case, workers: int, threads: int = 1) -> Contestant:
    """An epoch of the conventional loop: training, validation and test."""
    model = conventional.twin(case.build())
    size, prepared = case.hyper.batch_size, case.prepared
    data = conventional.loaders(prepared, case.lookback, case.horizon, size, workers)

    def lap() -> float:
        with _as_published(threads):
            conventional.train(model, data, case.hyper.learning_rate, epochs=1)
        return float(len(data.train.dataset))  # type: ignore[arg-type]

    return lap


def _contestants(size: Size, case: Case, step: Step) -> dict[str, Contestant]:
    batches = size.batches[case.model]
    short = case.short(batches)
    found = {
        "steps": _our_steps(short),
        "conventional steps": _conventional_steps(short),
        "epoch": our_epoch(short),
        **{f"conventional {w}": conventional_epoch(short, w) for w in size.workers},
        "evaluation": _evaluation(case, size.evaluated[case.model]),
        "scoring": _scoring(case, *size.scored),
    }
    for library in ("MKL", "oneDNN") if has_onednn() else ("MKL",):
        found[library] = bare(step, library, attention=False, repeats=batches)
        found[f"{library}, attention"] = bare(step, library, attention=True, repeats=batches)
    return found


def _our_steps(case: Case) -> Contestant:
    model, train = case.build().train(), case.splits.train
    step = make_step(model, train, adam(model, case.hyper.learning_rate))
    order = torch.Generator().manual_seed(0)

    def lap() -> float:
        prepare_torch("float32")
        shuffled = torch.randperm(len(train), generator=order)
        losses = [step(index) for index in torch.split(shuffled, case.hyper.batch_size)]
        float(torch.stack(losses).sum())
        return float(len(train))

    return lap


def _conventional_steps(case: Case) -> Contestant:
    model = conventional.twin(case.build())
    size = case.hyper.batch_size
    data = conventional.loaders(case.prepared, case.lookback, case.horizon, size, workers=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=case.hyper.learning_rate)

    def lap() -> float:
        with _as_published(threads=1):
            conventional.train_epoch(model, data.train, optimiser)
        return float(len(case.splits.train))

    return lap


def _evaluation(case: Case, count: int) -> Contestant:
    model, windows = case.build().eval(), case.windows(count)

    def lap() -> float:
        prepare_torch("float32")
        evaluate(model, windows)
        return float(count)

    return lap


def _scoring(case: Case, batches: int, batch_size: int) -> Contestant:
    model, train = case.build(), case.splits.train
    chosen = _drawn(len(train), batches, batch_size)

    def lap() -> float:
        prepare_torch("float32")
        score(model, train, chosen, SCORED)
        return float(batches * batch_size)

    return lap


def _figures(size: Size, case: Case, step: Step, laps: Laps, machine: Rates) -> list[Figure]:
    model, batch = case.model, case.hyper.batch_size
    training = Series("training steps, ours", "windows/s", rates(laps["steps"]))
    # Per step the products at the best rate, then the optimiser's bytes; the rest is free.
    ideal = batch / (step.flops / machine.product + step.optimiser_bytes / machine.bandwidth)
    forward = costs.flops(case.build())  # of one window
    evaluation = rates(laps["evaluation"])
    found = [
        Figure(
            f"training/{model}/steps",
            training,
            Series("conventional", "windows/s", rates(laps["conventional steps"])),
            floor=ideal,
        ),
        # A third as many windows are validated.
        *_epochs(model, size.workers, laps, 1 / (1 / ideal + forward / 3 / machine.product)),
        *_shares(model, training, laps, machine, step),
        Figure(
            f"evaluation/{model}",
            Series("evaluation, ours", "windows/s", evaluation),
            training,
            Target("at least", 3.0),
            floor=machine.product / forward,
        ),
    ]
    train, validation = len(case.splits.train), len(case.splits.validation)
    pretraining = tuple(
        size.epochs * (train / a + validation / b)
        for a, b in zip(training.values, evaluation, strict=True)
    )
    scored = size.scored[0] * size.scored[1]
    found.append(
        Figure(
            f"scoring/{model}/time",
            Series(f"{len(SCORED)} criteria, {scored} windows", "s", seconds(laps["scoring"])),
            Series(f"pre-training, {size.epochs} epochs", "s", pretraining),
            Target("at most", 0.10),
            # Forward, and backward to the attention, which needs no gradient of the weights.
            floor=2 * forward * scored / machine.product,
        )
    )
    return found


def _epochs(model: str, workers: Sequence[int], laps: Laps, floor: float) -> list[Figure]:
    """The whole loop, against each number of workers; the best of them is the yardstick."""
    ours = Series("training loop, ours", "windows/s", rates(laps["epoch"]))
    yardstick = best({str(w): laps[f"conventional {w}"] for w in workers}, "cpu")
    return [
        Figure(
            f"training/{model}/core" + ("" if chosen else f"/workers-{w}"),
            ours,
            Series(f"conventional, {w} workers", "windows/s", rates(laps[f"conventional {w}"])),
            Target("at least", 1.3) if chosen else None,
            floor=floor,
            detail=not chosen,
        )
        for w in workers
        for chosen in [str(w) == yardstick]
    ]


def _shares(
    model: str, training: Series, laps: Laps, machine: Rates, step: Step
) -> Iterator[Figure]:
    """The share of a step that its bare products would take."""
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


def _memory(size: Size, case: Case) -> Figure:
    """Peak memory of scoring four times the batches, each in a process of its own."""
    batches, batch_size = size.scored
    context = multiprocessing.get_context("spawn")
    peaks = []
    for factor in (1, 4):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            wanted = pool.submit(_peak, case, factor * batches, batch_size)
            peaks.append(wanted.result())
    return Figure(
        f"scoring/{case.model}/memory",
        Series(f"{4 * batches} batches", "MB", (peaks[1],)),
        Series(f"{batches} batches", "MB", (peaks[0],)),
        Target("at most", 1.1),
    )


def _peak(case: Case, batches: int, batch_size: int) -> float:
    """Megabytes by which scoring raises the peak of this process."""
    prepare_torch("float32")
    model, train = case.build(), case.splits.train
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    score(model, train, _drawn(len(train), batches, batch_size), SCORED)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


def _drawn(windows: int, batches: int, batch_size: int) -> list[Tensor]:
    order = torch.Generator().manual_seed(0)
    drawn = torch.randperm(windows, generator=order)[: batches * batch_size]
    return list(torch.split(drawn, batch_size))


@contextlib.contextmanager
def _as_published(threads: int) -> Iterator[None]:
    """Torch as the field leaves it, but for the number of threads."""
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    yield
    prepare_torch("float32")
