"""How far a run of Snakemake is, how long it will take, and what its jobs are doing.

Snakemake counts jobs, but most of the time goes into a few of them. Here a job is weighed by the
seconds of one core that it is expected to take. They are good to a factor of about two; the time
that is left also follows the speed at which the work has gone so far. Neither torch nor pandas is
imported.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

from spat.data.registry import borders
from spat.models.registry import MODELS, setup
from spat.models.settings import Settings
from spat.pipeline import datasets, runs
from spat.pipeline.config import Config, LevelSection
from spat.pipeline.runs import Planned, Run

# Seconds between two reports in a terminal, and in a file.
EVERY: Final = {True: 15.0, False: 60.0}
# How much work the expected speed counts for, in seconds of all cores, against the measured one.
TRUST: Final = 30.0
# A line of `spat.training.loop`: what is trained, epoch, and the rest.
_EPOCH: Final = re.compile(r"^(\S+)((?: \S+)?) epoch (\d+/\d+): .*, (at most \d+ s left)$", re.M)

# An interpreter with torch and pandas, the tracking of what was done, and evaluations.
START: Final = 5.0
# Seconds of an epoch of ETTh1 at the published setting, lookback and horizon 96, on one core: the
# frame `history` of the experiments `reproduction` and `rivals`.
EPOCH: Final = {
    "iTransformer": 4.5,
    "PatchTST": 210.0,
    "SAMformer": 0.5,
    "PAttn": 120.0,
    "TimeXer": 120.0,
    "Nonstationary": 155.0,
    "S-Mamba": 8.0,
    "Mamba": 55.0,
    "TSMixer": 2.5,
    "TiDE": 20.0,
}
# Of the others.
EPOCH_OF_ROLE: Final = {"attention": 400.0, "baseline": 0.3, "naive": 0.0}
CHANNELS: Final = 7  # of ETTh1
STEPS: Final = 192  # its lookback and horizon
WINDOWS: Final = 8449  # for training
# These attend to steps of time, and the others have a token, or several, for each channel.
OVER_TIME: Final = {"Transformer", "Nonstationary", "Informer", "Autoformer", "FEDformer"}
# Work per token that grows with the width and not its square, in products of the width.
PER_WIDTH: Final = 128
# With patience training rarely takes all of its epochs.
SHARE_OF_EPOCHS: Final = 0.7
# A network without some of its sites, against the whole one.
SHARE_OF_PRUNED: Final = 0.7
COLLECT_PER_RUN: Final = 0.5
FIGURES: Final = 25.0
TABLES: Final = 8.0


def seconds(config: Config, plan: Mapping[str, Planned], rule: str, of: Mapping[str, str]) -> float:
    """Seconds of one core that a job takes: a rule, and its wildcards `of` (`run` and others)."""
    if rule == "all":
        return 0.0
    if "run" in of and of["run"] in plan:
        return START + _of_run(config, plan[of["run"]], rule)
    return {
        "collect": START + COLLECT_PER_RUN * len(plan),
        "figures": START + FIGURES,
        "tables": START + TABLES,
    }.get(rule, START)


def _of_run(config: Config, planned: Planned, rule: str) -> float:
    run = planned.run
    epoch = epoch_seconds(config, run)
    recipe = runs.setup_of(config, run).recipe
    tuning = SHARE_OF_PRUNED * epoch * config.finetune.epochs
    if rule == "pretrain":
        share = SHARE_OF_EPOCHS if recipe.patience < recipe.epochs else 1.0
        return epoch * recipe.epochs * share * len(runs.learning_rates(config, run))
    if rule == "prune":
        return networks(config, planned) * tuning + scratch(config, planned) * (
            tuning + epoch * recipe.epochs * SHARE_OF_EPOCHS
        )
    if rule == "score":
        windows = config.scoring.batches * config.scoring.batch_size
        criteria = len({*config.pruning.site.criteria, *config.pruning.head.criteria})
        return 3 * criteria * epoch * windows / WINDOWS
    if rule == "robustness":
        cases = sites(config, run) * len(config.robustness.manipulations)
        return cases * (tuning if config.robustness.finetune else epoch / 2)
    if rule == "measure":
        return networks(config, planned) * len(config.measure.batch_sizes) * 0.5
    return 0.0


def epoch_seconds(config: Config, run: Run) -> float:
    """Seconds of one core for an epoch of training of the run's dense model."""
    model, row = MODELS[run.model], datasets.find(config, run.dataset)
    published = EPOCH.get(run.model, EPOCH_OF_ROLE[model.role])
    reference = setup(run.model, "published", "ETTh1", 96).settings
    size = _size(runs.setup_of(config, run).settings) / _size(reference)
    first, last = borders(row, row.rows).train
    share = runs.setup_of(config, run).recipe.share
    windows = share * max(1, last - first - run.lookback - run.horizon + 1) / WINDOWS
    steps = (run.lookback + run.horizon) / STEPS
    if run.model in OVER_TIME:
        return published * size * windows * steps
    tokens = row.channels / CHANNELS * (1.0 if run.model == "iTransformer" else steps)
    return published * size * windows * tokens


def _size(settings: Settings) -> float:
    """Work of a token in all layers: products of the attention and the feed-forward network."""
    width = getattr(settings, "d_model", 0)
    inner = getattr(settings, "d_ff", 0)
    products = 4 * width**2 + 2 * width * inner + PER_WIDTH * (width + inner)
    return max(1, _layers(settings)) * max(1, products)


def _layers(settings: Settings) -> int:
    return int(getattr(settings, "e_layers", 1)) + int(getattr(settings, "d_layers", 0))


def sites(config: Config, run: Run) -> int:
    """Attention modules of the run's model: one a layer, two in a decoder's."""
    settings = runs.setup_of(config, run).settings
    return max(1, _layers(settings) + int(getattr(settings, "d_layers", 0)))


def networks(config: Config, planned: Planned) -> int:
    """Networks that are fine-tuned, at most: decisions that agree share one."""
    section, count = config.pruning, sites(config, planned.run)
    every: int = 2**count
    wanted = _decisions(section.site, section.draws)
    masks = every if section.exhaustive else min(every, 1 + wanted)
    return masks * planned.orders + _decisions(section.head, section.draws)


def scratch(config: Config, planned: Planned) -> int:
    """Networks that are trained from random weights."""
    if not config.pruning.scratch:
        return 0
    return min(int(2 ** sites(config, planned.run)), 1 + len(config.pruning.site.ratios))


def _decisions(level: LevelSection, draws: int) -> int:
    ratios = sum(isinstance(ratio, float | int) for ratio in level.ratios)
    criteria = len(level.criteria) + (draws - 1) * ("random" in level.criteria)
    return ratios * criteria


@dataclass
class Work:
    """A job: its rule and run, expected seconds of a core, its log, and whether it is finished."""

    rule: str
    name: str
    seconds: float
    log: Path | None
    finished: Callable[[], bool]
    networks: int = 0
    seen: float | None = field(default=None, compare=False)  # when its log was first there


_running: list[Progress] = []


def begin(config: Config, plan: Mapping[str, Planned], dag: Any, cores: int) -> None:
    """Report on the jobs that Snakemake's `dag` has still to run, until `end`."""
    progress = Progress(works(config, plan, dag), cores, config.folder / "logs")
    progress.start()
    _running.append(progress)


def end() -> None:
    """Report no more."""
    while _running:
        _running.pop().stop()


def works(config: Config, plan: Mapping[str, Planned], dag: Any) -> list[Work]:
    """The jobs that Snakemake's `dag` has still to run."""
    found = []
    for job in dag.needrun_jobs():
        of = dict(job.wildcards.items())
        rule = str(job.rule.name)
        planned = plan.get(of.get("run", ""))
        found.append(
            Work(
                rule,
                " ".join(map(str, of.values())),
                seconds(config, plan, rule, of),
                Path(str(job.log[0])) if len(job.log) else None,
                partial(dag.finished, job),
                networks(config, planned) + scratch(config, planned)
                if planned and rule == "prune"
                else 0,
            )
        )
    return found


class Progress:
    """Prints how far the jobs are, in a thread of its own, until `stop`.

    What goes wrong in it is printed once, and ends the reports but not the run.
    """

    def __init__(
        self, jobs: Sequence[Work], cores: int, logs: Path, stream: TextIO | None = None
    ) -> None:
        """`jobs` run on `cores` cores, and write their logs below `logs`."""
        self._jobs, self._cores, self._logs = jobs, max(1, cores), logs
        self._stream = stream or sys.stderr
        self._began = time.time()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Say how long the jobs will take and where their logs are, and begin to report."""
        whole = sum(job.seconds for job in self._jobs)
        cores = f"{self._cores} core{'s' * (self._cores > 1)}"
        self._print(
            f"{len(self._jobs)} jobs, about {duration(whole / self._cores)} on {cores}. Logs: "
            f"{self._logs}"
        )
        self._thread.start()

    def stop(self) -> None:
        """Report no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            while not self._stopped.wait(EVERY[self._stream.isatty()]):
                self._print(self.report(time.time()))
        except Exception as error:
            self._print(f"No more reports of progress: {type(error).__name__}: {error}")

    def report(self, now: float) -> str:
        """The share of the work that is done, the time left, and a line for each running job."""
        done, count, lines = 0.0, 0, []
        for job in self._jobs:
            if job.finished():
                done, count = done + job.seconds, count + 1
            elif job.log is not None and (began := _began(job, self._began)) is not None:
                done += job.seconds * min(0.9, (now - began) / max(job.seconds, 1.0))
                name = f"{job.rule} {job.name}".strip()
                lines.append(f"  {name}: {doing(job)}")
        whole = sum(job.seconds for job in self._jobs)
        elapsed = max(now - self._began, 1e-3)
        speed = (done + TRUST * self._cores) / (elapsed + TRUST)
        left = (whole - done) / speed
        head = (
            f"[{time.strftime('%H:%M:%S', time.localtime(now))}] "
            f"{100 * done / max(whole, 1):.0f} % of the work is done "
            f"({count} of {len(self._jobs)} jobs), about {duration(left)} left"
        )
        return "\n".join([head, *lines])

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def _began(job: Work, since: float) -> float | None:
    """When a running job began to write its log; None if it did not begin."""
    assert job.log is not None
    try:
        changed = job.log.stat().st_mtime
    except OSError:
        return None
    if job.seen is None and changed >= since - 1.0:
        job.seen = changed
    return job.seen


def doing(job: Work) -> str:
    """The network and epoch that the last line of training in a job's log names."""
    assert job.log is not None
    try:
        with job.log.open("rb") as stream:
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return "running"
    found = list(_EPOCH.finditer(text))
    if not found:
        return "running"
    last = found[-1]
    parts = [f"epoch {last[3]}", f"{last[4]} of this network"]
    if mask := last[2].strip():
        count = len({match[2] for match in found})
        parts.insert(0, f"{mask} ({count} of at most {job.networks} networks)")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as `40 s`, `7 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
