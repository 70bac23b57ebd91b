"""The expected duration of the jobs of an experiment, before any of them has run.

Progress is weighted by these seconds, since one job that fine-tunes forty masks takes longer than
all short jobs together. The seconds are for one idle core, with an error of up to a factor of about
two. The display corrects them by the durations of finished jobs. This module imports neither torch
nor pandas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from spat.models.registry import MODELS
from spat.models.settings import Settings
from spat.pipeline import runs, tasks
from spat.pipeline.config import Config, LevelSection
from spat.pipeline.resources import is_light
from spat.pipeline.runs import Planned, Run

# Seconds to start an interpreter with torch and pandas, to evaluate, and to track the results.
START: Final = 3.0
# Seconds for stages that import neither.
START_LIGHT: Final = 0.5
LIGHT: Final = {"download", "prepare", "select", "decide"}
# Rules that train the masks of a run, one on each of their threads.
PRUNING: Final = {"prune_sites", "prune"}
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
    # Seconds of an epoch of Fashion-MNIST in the variant `deep`: the experiment `vision`.
    "ViT": 16.0,
}
# Seconds of an epoch of other models.
EPOCH_OF_ROLE: Final = {"attention": 400.0, "baseline": 0.3, "naive": 0.0}
WINDOWS: Final = 8449  # training windows of ETTh1
# Work per token that grows linearly with the width, in products of the width.
PER_WIDTH: Final = 128
# With early stopping, training rarely takes all epochs.
SHARE_OF_EPOCHS: Final = 0.7
# Time of a network without some of its sites, relative to the dense network.
SHARE_OF_PRUNED: Final = 0.7
COLLECT_PER_RUN: Final = 0.1
# Seconds to evaluate and track one more network in a running process.
ANOTHER: Final = 0.5
# Linear and naive runs that train for at most this number of seconds share jobs; a job has at most
# this number of runs and of seconds of training.
SHORT: Final = 30.0
PACK_RUNS: Final = 40
PACK_SECONDS: Final = 120.0
# The jobs of a run until the main table, in their order; the last one that trains is `prune` if no
# single heads are pruned.
UNTIL_MAIN: Final = ("pretrain", "score", "select", "prune_sites", "prune", "decide")
# The priority of the job that writes the main table; jobs before it have at least half of it. Data
# are downloaded and prepared first, since an error is then seen early.
MAIN: Final = 2000
DATA: Final = 2001
FIGURES: Final = 6.0
TABLES: Final = 1.0
MEASURE_PER_BATCH_SIZE: Final = 0.1


def seconds(config: Config, plan: Mapping[str, Planned], rule: str, of: Mapping[str, str]) -> float:
    """Expected seconds of a job on one core, from its rule and its wildcards `of`."""
    if rule == "all":
        return 0.0
    if rule in LIGHT:
        return START_LIGHT
    if "run" in of and of["run"] in plan:
        return START + _of_run(config, plan[of["run"]], rule)
    return {
        "main": START + COLLECT_PER_RUN * len(plan),
        "collect": START + COLLECT_PER_RUN * len(plan),
        "figures": START + FIGURES,
        "tables": START + TABLES,
    }.get(rule, START)


def wall(
    config: Config, plan: Mapping[str, Planned], rule: str, of: Mapping[str, str], threads: int
) -> float:
    """Expected duration of a job in seconds; only jobs that prune use all of their threads."""
    return seconds(config, plan, rule, of) / (threads if rule in PRUNING else 1)


def priority(config: Config, plan: Mapping[str, Planned], rule: str, of: Mapping[str, str]) -> int:
    """The priority of a job: the main table first, and before it the longest chain of jobs.

    The chain of a job has the jobs of its run until the main table.
    """
    chain = [rule]
    if _is_before_main(config, rule):
        chain = [name for name in UNTIL_MAIN if _is_before_main(config, name)]
        chain = chain[chain.index(rule) :] if plan[of["run"]].prune else ["pretrain"]
    return rank(config, rule, sum(seconds(config, plan, name, of) for name in chain))


def rank(config: Config, rule: str, seconds: float) -> int:
    """The priority of a job of a rule that begins a chain of this length."""
    # Differences of a few percent are below the error of the expected seconds.
    own = min(MAIN // 2 - 1, round(10 * math.log2(1 + seconds)))
    return own + (MAIN // 2 if _is_before_main(config, rule) else 0)


def _is_before_main(config: Config, rule: str) -> bool:
    """Whether the main table needs the jobs of a rule that has one job per run."""
    other = "prune" if config.pruning.has_heads else "prune_sites"
    return rule in UNTIL_MAIN and rule != other


def packs(config: Config, plan: Mapping[str, Planned]) -> tuple[tuple[str, ...], ...]:
    """Packs of short runs that share a job, as paths of runs in the order of the grid.

    Starting a process takes longer than training a linear or naive model. A run that is in no pack
    has its own jobs. The packs depend only on the configuration.
    """
    packs: list[tuple[str, ...]] = []
    begun: list[str] = []
    load = 0.0
    for path, planned in plan.items():
        work = _of_run(config, planned, "pretrain")
        if planned.prune or not is_light(planned.run.model) or work > SHORT:
            continue
        if begun and (len(begun) == PACK_RUNS or load + work > PACK_SECONDS):
            packs.append(tuple(begun))
            begun, load = [], 0.0
        begun.append(path)
        load += work
    return (*packs, tuple(begun)) if begun else tuple(packs)


def pack_seconds(
    config: Config, plan: Mapping[str, Planned], stage: str, pack: Sequence[str]
) -> float:
    """Expected seconds of a job with the runs of a pack, for `pretrain` or `transfer`."""
    chosen = [plan[path] for path in pack]
    if stage == "transfer":
        return START + ANOTHER * sum(len(runs.targets(config, p.run)) for p in chosen)
    return START + sum(ANOTHER + _of_run(config, planned, stage) for planned in chosen)


def _of_run(config: Config, planned: Planned, rule: str) -> float:
    run = planned.run
    epoch = epoch_seconds(config, run)
    recipe = runs.setup_of(config, run).recipe
    tuning = SHARE_OF_PRUNED * epoch * config.finetune.epochs
    if rule == "pretrain":
        share = SHARE_OF_EPOCHS if recipe.patience < recipe.epochs else 1.0
        return epoch * recipe.epochs * share * len(runs.learning_rates(config, run))
    if rule in PRUNING:
        fresh = scratch(config, planned) if _trains_sites(config, rule) else 0
        return _trained(config, planned, rule) * tuning + fresh * (
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
        return networks(config, planned) * len(config.measure.batch_sizes) * MEASURE_PER_BATCH_SIZE
    return 0.0


def epoch_seconds(config: Config, run: Run) -> float:
    """Expected seconds of a training epoch of the run's dense model on one core."""
    known, work = tasks.of(run).epoch(config, run)
    setup = runs.setup_of(config, run)
    seconds = EPOCH.get(run.model, EPOCH_OF_ROLE[MODELS[run.model].role])
    return seconds * _size(setup.settings) / _size(known.settings) * setup.recipe.share * work


def _size(settings: Settings) -> float:
    """Work per token in all layers: products of the attention and the feed-forward network."""
    width = getattr(settings, "d_model", 0)
    inner = getattr(settings, "d_ff", 0)
    products = 4 * width**2 + 2 * width * inner + PER_WIDTH * (width + inner)
    return max(1, _layers(settings)) * max(1, products)


def _layers(settings: Settings) -> int:
    return int(getattr(settings, "e_layers", 1)) + int(getattr(settings, "d_layers", 0))


def sites(config: Config, run: Run) -> int:
    """The number of attention modules of the run's model: one per layer, two in decoder layers."""
    settings = runs.setup_of(config, run).settings
    return max(1, _layers(settings) + int(getattr(settings, "d_layers", 0)))


def networks_of_job(
    config: Config, plan: Mapping[str, Planned], rule: str, of: Mapping[str, str]
) -> int:
    """The maximum number of networks that a job trains; 1 if it trains one or none."""
    if rule not in PRUNING or of["run"] not in plan:
        return 1
    planned = plan[of["run"]]
    fresh = scratch(config, planned) if _trains_sites(config, rule) else 0
    return _trained(config, planned, rule) + fresh


def _trains_sites(config: Config, rule: str) -> bool:
    """Whether a rule of `PRUNING` trains the masks of whole sites."""
    return rule == "prune_sites" or not config.pruning.has_heads


def _trained(config: Config, planned: Planned, rule: str) -> int:
    """The maximum number of networks that a rule of `PRUNING` fine-tunes for a run."""
    if _trains_sites(config, rule):
        return _of_sites(config, planned)
    return _decisions(config.pruning.head, config.pruning.draws)


def networks(config: Config, planned: Planned) -> int:
    """The maximum number of fine-tuned networks; equal decisions share a network."""
    return _of_sites(config, planned) + _decisions(config.pruning.head, config.pruning.draws)


def _of_sites(config: Config, planned: Planned) -> int:
    """The maximum number of fine-tuned networks without whole sites, with the control."""
    section, count = config.pruning, sites(config, planned.run)
    every: int = 2**count
    masks = every if section.exhaustive else min(every, 1 + _decisions(section.site, section.draws))
    return masks * planned.orders


def scratch(config: Config, planned: Planned) -> int:
    """The number of networks that are trained from random weights."""
    if not config.pruning.scratch:
        return 0
    every: int = 2 ** sites(config, planned.run)
    return min(every, 1 + len(config.pruning.site.ratios))


def _decisions(level: LevelSection, draws: int) -> int:
    ratios = sum(isinstance(ratio, float | int) for ratio in level.ratios)
    criteria = len(level.criteria) + (draws - 1) * ("random" in level.criteria)
    return ratios * criteria
