"""Checks of an experiment before its first job, for Snakemake and for `grid`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

from spat.pipeline import datasets, runs
from spat.pipeline.config import STORE, Config, ConfigError, unset_variable
from spat.pipeline.runs import Planned

# With more layers `pruning.exhaustive` would train more than 4096 masks of a run.
MOST_EXHAUSTIVE = 12


def checked_plan(config: Config) -> tuple[Planned, ...]:
    """The runs of the grid (`runs.plan`), after checks for later stages.

    Raises:
        ConfigError: see `runs.plan`, `runs.studied`, `require_folders` and, if MLflow is used,
            `require_variables`; also if a run does not fit the dataset that it is transferred to,
            or has too many layers for `pruning.exhaustive`.
    """
    plan = runs.plan(config)
    runs.studied(config)
    for run in (p.run for p in plan if p.prune and config.pruning.exhaustive):
        settings = runs.setup_of(config, run).settings
        layers = getattr(settings, "e_layers", 1) + getattr(settings, "d_layers", 0)
        if layers > MOST_EXHAUSTIVE:
            raise ConfigError(
                f"pruning.exhaustive: {run.path} has {layers} layers, so at least 2^{layers} masks "
                f"would be trained: choose at most {MOST_EXHAUSTIVE} layers, or leave it out"
            )
    for run in (planned.run for planned in plan):
        for target in runs.targets(config, run):
            there = replace(run, dataset=target)
            if problem := runs.does_not_fit(config, there):
                raise ConfigError(f"transfer.pairs: {run.path} on {target}: {problem}")
    if config.tracking.enabled:
        require_variables(config)
    used = {name for p in plan for name in (p.run.dataset, *runs.targets(config, p.run))}
    require_folders(config, used)
    return plan


def require_variables(config: Config) -> None:
    """The environment variables of `tracking.uri` have values, and the address is one of a store.

    Raises:
        ConfigError: naming the variable. Its value, which may be a secret, is not shown.
    """
    uri = config.tracking.uri or ""
    remedy = "set it, or set `tracking.enabled: false` to do without MLflow"
    if name := unset_variable(uri):
        raise ConfigError(
            f"tracking.uri: the environment variable ${name} is not set, or empty: {remedy}"
        )
    if uri.startswith("$") and not STORE.match(os.path.expandvars(uri)):
        raise ConfigError(
            f"tracking.uri: {uri} is not the address of an MLflow store, which begins with "
            f"http://, https://, sqlite:///, postgresql://, mysql:// or mssql://: {remedy}"
        )


def require_folders(config: Config, names: Iterable[str]) -> None:
    """Files can be made in `results`, and in `data.cache` unless it has those of the datasets.

    A folder of `data.mirrors` need not exist.

    Raises:
        ConfigError: naming key, folder and reason.
    """
    for number, mirror in enumerate(config.data.mirrors):
        if mirror.exists() and not mirror.is_dir():
            raise ConfigError(
                f"data.mirrors.{number}: {mirror} is not a folder: name the folder that holds the "
                "copies of the files"
            )
    _require_folder("results", config.folder)
    files = (config.data.cache / row.file for n in names for row in datasets.published(n))
    if not all(file.exists() for file in files):
        _require_folder("data.cache", config.data.cache)


def require_state_folder(folder: Path = Path(".snakemake")) -> None:
    """Snakemake can write its state into the working directory.

    Raises:
        ConfigError: naming the folder, the reason and the remedy.
    """
    try:
        folder.mkdir(exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"Snakemake keeps its state in {folder.absolute()}, which cannot be written "
            f"({error.strerror}): give yourself access to it, or add `--directory FOLDER` to run "
            "in another folder, where relative paths of the configuration then begin"
        ) from None


def _require_folder(key: str, folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        if there.is_dir():
            TemporaryFile(dir=there).close()  # without a name, so that a kill leaves nothing
            return
        reason = (
            f": {there} is in the place of a folder: move it away, and run the same command again, "
            "or"
        )
    except OSError as error:
        reason = f" ({error.strerror}):"
    verb = "written" if there == folder else "made"
    raise ConfigError(
        f"{key}: {folder} cannot be {verb}{reason} set `{key}` to a folder where you may write"
    )
