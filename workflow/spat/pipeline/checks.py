"""Checks of an experiment before its first job, the same for Snakemake and for `grid`."""

from __future__ import annotations

from dataclasses import replace

from spat.pipeline import runs
from spat.pipeline.config import Config, ConfigError
from spat.pipeline.runs import Planned


def checked_plan(config: Config) -> tuple[Planned, ...]:
    """The runs of the grid, as `runs.plan`, after checks of what later stages need.

    Raises:
        ConfigError: as `runs.plan` and `runs.studied`, or if a run does not fit the dataset that it
            is transferred to.
    """
    plan = runs.plan(config)
    runs.studied(config)
    for run in (planned.run for planned in plan):
        for target in runs.targets(config, run):
            there = replace(run, dataset=target)
            if problem := runs.does_not_fit(config, there):
                raise ConfigError(f"transfer.pairs: {run.path} on {target}: {problem}")
    return plan
