"""MLflow: a view of the files that jobs write, which can be rebuilt from them at any time.

A pipeline experiment is an MLflow experiment. Each run of the grid is a parent, with a child for
pre-training, scoring, each trained mask, manipulated sites, the measurement and each transfer
target; a report run holds the tables and figures of the whole. `log` shows one job after its files
are written and `rebuild` shows all of them, by the same code.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

from spat.pipeline import runs
from spat.pipeline.cache import DamagedError, stage_lock
from spat.pipeline.config import Config
from spat.pipeline.runs import Run
from spat.pipeline.tracking import entries

if TYPE_CHECKING:
    from spat.pipeline.tracking.store import Store

REBUILD = "python -m spat track --config FILE"

# Without this variable at import, MLflow sends telemetry. Errors of MLflow are raised and reported
# in one line. A dead server costs a job two attempts of four seconds. Values set by the user are
# kept.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}

_logger = logging.getLogger(__name__)


class TrackingError(RuntimeError):
    """An MLflow store that cannot be written; the message names it and how to rebuild it."""


def log(config: Config, run: Run, stage: str) -> None:
    """Show what a job wrote; a job that ran before has its MLflow runs replaced.

    `stage` is the job's folder below the run's: `pretrain`, `score`, `prune`, `robustness`,
    `measure` or `transfer/<target>`. If the store fails, there is a warning and this job is not
    shown.
    """
    if not config.tracking.enabled:
        return
    try:
        shown = entries.children(config, run, stage)
        _show(_open(config), config, run, stage, shown)
    except Exception as error:  # the results are written: no failure of the view may fail the job
        _logger.warning("%s", _explain(config, error))


def log_report(config: Config) -> None:
    """Show the experiment's tables and figures on its report run, replacing the one before."""
    if not config.tracking.enabled:
        return
    try:
        _open(config).replace({"job": entries.REPORT}, [entries.report(config)])
    except Exception as error:  # as in `log`
        _logger.warning("%s", _explain(config, error))


def rebuild(config: Config) -> int:
    """Show all jobs that have files and remove the others; returns the number of runs.

    Also works with `tracking.enabled: false`: jobs then do not use MLflow, and it is filled at the
    end. On a shared server two people need two experiment names, as each shows its own files only.

    Raises:
        TrackingError: if the store cannot be opened or written.
    """
    try:
        store = _open(config)
        store.clear()
        for planned in runs.plan(config):
            for stage in entries.finished(config, planned.run):
                shown = entries.children(config, planned.run, stage)
                _show(store, config, planned.run, stage, shown)
        store.replace({"job": entries.REPORT}, [entries.report(config)])
        return store.written
    except Exception as error:
        raise TrackingError(_explain(config, error)) from error


def _open(config: Config) -> Store:
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from spat.pipeline.tracking.store import Store  # imports MLflow, which takes seconds

    return Store(config)


def _show(store: Store, config: Config, run: Run, stage: str, shown: list[entries.Entry]) -> None:
    # A job and the orphan of a killed Snakemake would each write the run that the other replaces.
    with stage_lock(config, run, "tracking"):
        parent = store.parent(entries.parent(config, run))
        store.replace({"run": run.path, "stage": stage}, shown, parent)


def _explain(config: Config, error: Exception) -> str:
    if isinstance(error, DamagedError):  # a fault of the files, not of the store
        return str(error)
    reason = " ".join(str(error).split())[:300]
    if _OTHER_VERSION.search(reason):
        path = config.results / "mlflow.db"
        remedy = (
            f"ask its administrator to run `mlflow db upgrade`, and then run `{REBUILD}`"
            if config.tracking.uri
            else f"move {path} away and run `{REBUILD}`, which writes it again from the results"
        )
        return (
            f"MLflow at {_hidden(entries.store_uri(config))}: the store was written by another "
            f"version of MLflow; the results are complete without it: {remedy}"
        )
    message = (
        f"MLflow at {entries.store_uri(config)}: {type(error).__name__}: {reason}; the results are "
        f"complete without it, and `{REBUILD}` rebuilds it from them"
    )
    return _hidden(message)


# What MLflow and its migrations report for a schema of another version.
_OTHER_VERSION = re.compile(r"out-of-date database schema|Can't locate revision", re.IGNORECASE)


def _hidden(text: str) -> str:
    """The text without user names and passwords of addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)
