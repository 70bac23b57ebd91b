"""grid: a slice of an experiment in one process, without Snakemake; the files are the same."""

from __future__ import annotations

import fnmatch
import sys
import time

from spat import runs
from spat.config import Config
from spat.runs import Planned, Run


def grid(config: Config, pattern: str, minutes: float) -> int:
    """Take the runs whose path matches `pattern` through all stages until the time is spent.

    Work that is finished is kept, so that a second call goes on; returns how many runs are whole. A
    run is not begun when the time is spent, and one that was begun is finished.
    """
    end = time.monotonic() + 60 * minutes
    chosen = [p for p in runs.plan(config) if fnmatch.fnmatch(p.run.path, pattern)]
    if not chosen:
        raise ValueError(f"no run of {config.experiment!r} matches {pattern!r}")
    whole = 0
    for planned in chosen:
        if time.monotonic() >= end:
            break
        _whole_run(config, planned)
        whole += 1
        print(f"{planned.run.path}: whole ({whole}/{len(chosen)})", file=sys.stderr, flush=True)
    return whole


def _whole_run(config: Config, planned: Planned) -> None:
    from spat.stages.decide import decide
    from spat.stages.measure import measure
    from spat.stages.pretrain import pretrain
    from spat.stages.prune import prune
    from spat.stages.robustness import robustness
    from spat.stages.score import score
    from spat.stages.select import select
    from spat.stages.transfer import transfer

    run = planned.run
    targets = runs.targets(config, run)
    for dataset in (run.dataset, *targets):
        _prepared(config, dataset)
    pretrain(config, run)
    if planned.prune:
        score(config, run)
        select(config, run)
        prune(config, run, planned.orders)
        if run in runs.studied(config):
            robustness(config, run)
        decide(config, run)
        if not _measured(config, run):
            measure(config, run)
    for target in targets:
        transfer(config, planned, target)


def _prepared(config: Config, dataset: str) -> None:
    from spat.data.registry import DATASETS
    from spat.stages.download import download
    from spat.stages.prepare import prepare

    if not runs.prepared_file(config, dataset).exists():
        if DATASETS[dataset].urls:
            download(config, dataset)
        prepare(config, dataset)


def _measured(config: Config, run: Run) -> bool:
    return (runs.folder(config, run, "measure") / "metrics.json").exists()
