"""grid: run a part of an experiment in one process, without Snakemake, with the same files."""

from __future__ import annotations

import fnmatch
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial

from spat.pipeline import datasets, runs
from spat.pipeline.checks import checked_plan
from spat.pipeline.config import Config
from spat.pipeline.failures import explain
from spat.pipeline.runs import Planned, Run
from spat.training.device.concurrency import Workers

# On CUDA, the number of small runs that use a large GPU fully.
CONCURRENCY = {"cpu": 1, "cuda": 16}
MOST_CONCURRENT = 1000


def grid(config: Config, pattern: str, minutes: float, count: int | None = None) -> int:
    """Run all stages of the runs whose path matches `pattern`, until `minutes` have passed.

    `count` runs and their masks are computed concurrently, each in a thread; by default one on the
    CPU, and on CUDA as many as a large GPU can run. Finished work is kept, so that a second call
    resumes. After `minutes` no further run is started, and started runs are finished. Returns the
    number of complete runs.

    Raises:
        ConfigError: see `checked_plan`; before anything is computed.
        ValueError: if no run matches, or `minutes` or `count` is not positive.
        RuntimeError: naming the failed runs, after all others have ended.
    """
    from spat.training.loop import choose_device

    if not minutes > 0:
        raise ValueError(f"--minutes {minutes}: give a number above 0")
    if count is not None and not 1 <= count <= MOST_CONCURRENT:
        raise ValueError(f"--concurrency {count}: give a number from 1 to {MOST_CONCURRENT}")
    end = time.monotonic() + 60 * minutes
    chosen = [p for p in checked_plan(config) if fnmatch.fnmatch(p.run.path, pattern)]
    if not chosen:
        raise ValueError(f"--runs {pattern!r} matches no run of {config.experiment!r}")
    device = choose_device(config.training.device)
    workers = Workers(device, CONCURRENCY[device.type] if count is None else count)
    for dataset in dict.fromkeys(name for p in chosen for name in _datasets(config, p.run)):
        _prepare(config, dataset)
    in_turn = workers.count == 1
    begun = workers.threads([partial(_attempt, config, p, workers, end, in_turn) for p in chosen])
    failed = {p.run.path: b for p, b in zip(chosen, begun, strict=True) if isinstance(b, Exception)}
    whole = [p for p, b in zip(chosen, begun, strict=True) if b is True]
    # Networks that were trained concurrently are timed when nothing else runs.
    for planned in whole:
        _measure(config, planned)
    if failed:
        reasons = "\n".join(f"{path}: {explain(e)}" for path, e in failed.items())
        message = (
            f"{len(failed)} of {len(chosen)} runs failed, {len(whole)} are complete\n{reasons}"
        )
        raise RuntimeError(message) from next(iter(failed.values()))
    return len(whole)


def _attempt(
    config: Config, planned: Planned, workers: Workers, end: float, in_turn: bool
) -> bool | Exception:
    """Whether the run was started, or the error by which it failed; other runs continue.

    If runs are executed `in_turn`, latencies are measured at once.
    """
    if time.monotonic() >= end:
        return False
    try:
        _train(config, planned, workers)
        if in_turn:
            _measure(config, planned)
    except Exception as error:
        print(f"{planned.run.path}: {explain(error)}", file=sys.stderr, flush=True)
        traceback.clear_frames(error.__traceback__)  # tracebacks keep the model and its data alive
        return error
    print(f"{planned.run.path}: complete", file=sys.stderr, flush=True)
    return True


def _train(config: Config, planned: Planned, workers: Workers) -> None:
    from spat.pipeline.stages.decide import decide
    from spat.pipeline.stages.pretrain import pretrain
    from spat.pipeline.stages.prune import prune
    from spat.pipeline.stages.robustness import robustness
    from spat.pipeline.stages.score import score
    from spat.pipeline.stages.select import select
    from spat.pipeline.stages.transfer import transfer

    run = planned.run
    workers.run(partial(pretrain, config, run))
    if planned.prune:
        workers.run(partial(score, config, run))
        select(config, run)
        prune(config, run, planned.orders, workers.map)
        if run in runs.studied(config):
            workers.run(partial(robustness, config, run))
        decide(config, run)
    for target in runs.targets(config, run):
        workers.run(partial(transfer, config, planned, target))


def _measure(config: Config, planned: Planned) -> None:
    from spat.pipeline.stages.measure import is_measured, measure

    if planned.prune and not is_measured(config, planned.run):
        measure(config, planned.run)


def _datasets(config: Config, run: Run) -> Iterator[str]:
    """The run's own dataset, and those that it is transferred to."""
    yield run.dataset
    yield from runs.targets(config, run)


def _prepare(config: Config, dataset: str) -> None:
    from spat.pipeline.stages.download import download
    from spat.pipeline.stages.prepare import is_prepared, prepare

    if not is_prepared(config, dataset):
        if datasets.published(dataset):
            download(config, dataset)
        prepare(config, dataset)
