"""Tracking in MLflow: runs that are logged from the files of jobs, and can be rebuilt from them.

A pipeline experiment is an MLflow experiment. Each run of the grid is a parent run, with child runs
for pre-training, scoring, each trained mask, manipulated sites, the measurement and each transfer
target; a report run has the tables and figures of the experiment. `log` logs one job after its
files are written, and `rebuild` logs all jobs, with the same code.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from filelock import FileLock

from spat.pipeline import runs
from spat.pipeline.cache import DamagedError, stage_lock
from spat.pipeline.config import Config, variables, without_secrets
from spat.pipeline.runs import Run
from spat.pipeline.tracking import entries

if TYPE_CHECKING:
    from spat.pipeline.tracking.store import Store

REBUILD = "python -m spat track --config FILE"

# Without this variable at import, MLflow sends telemetry. Errors of MLflow are raised and reported
# in one line. If a server is down, a job waits for two attempts of four seconds. Variables that the
# user has set are not changed.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}

# The longest time that a job waits for a slow server: this, and one second for each run that the
# job logs.
SERVER_TIMEOUT_S = 60
SERVER_TIMEOUT_PER_RUN_S = 1

_logger = logging.getLogger(__name__)

T = TypeVar("T")


class TrackingError(RuntimeError):
    """An MLflow store cannot be written; the message names it and the command to rebuild it."""


def log(config: Config, run: Run, stage: str) -> None:
    """Log the files of a job to MLflow; MLflow runs of an earlier execution are replaced.

    `stage` is the job's folder below the run's: `pretrain`, `score`, `prune`, `robustness`,
    `measure` or `transfer/<target>`. If the store fails, a warning is written and the job is not
    logged.
    """
    if not config.tracking.enabled:
        return
    try:
        _import()
        shown = entries.children(config, run, stage)
        added = entries.amended(config, run, stage)
        count = len(shown) + len(added)
        _limited(config, count, lambda: _show(_open(config), config, run, stage, shown, added))
    except (
        Exception
    ) as error:  # the results are written, so an error of tracking must not fail the job
        _logger.warning("%s", _explain(config, error))


def log_report(config: Config) -> None:
    """Log the experiment's tables and figures as its report run, replacing the previous one."""
    if not config.tracking.enabled:
        return
    try:
        _import()
        report = entries.report(config)
        _limited(config, len(report.artifacts), lambda: _show_report(_open(config), config, report))
    except Exception as error:  # see `log`
        _logger.warning("%s", _explain(config, error))


def rebuild(config: Config) -> int:
    """Log all jobs that have files and remove other runs; returns the number of MLflow runs.

    It also works with `tracking.enabled: false`, to fill MLflow after jobs that did not use it. On
    a shared server each person needs a separate experiment name, since runs without local files are
    removed.

    Raises:
        TrackingError: if the store cannot be opened or written.
    """
    try:
        _import()
        store = _limited(config, 0, lambda: _open(config))
        old = _limited(config, 0, store.from_files)
        _limited(config, len(old), lambda: store.delete(old))
        for planned in runs.plan(config):
            for stage in entries.finished(config, planned.run):
                _rebuild(store, config, planned.run, stage)
        report = entries.report(config)
        _limited(config, len(report.artifacts), lambda: _show_report(store, config, report))
        return store.written
    except Exception as error:
        # The error of MLflow may contain the address with the password.
        cause = None if variables(config.tracking.uri or "") else error
        raise TrackingError(_explain(config, error)) from cause


def place(config: Config) -> str:
    """The address of the store or the path of its file, without secrets."""
    return without_secrets(config.tracking.uri or str(config.results / "mlflow.db"))


def _rebuild(store: Store, config: Config, run: Run, stage: str) -> None:
    shown = entries.children(config, run, stage)
    # The runs of other jobs are complete at once, since all their files exist.
    _limited(config, len(shown), lambda: _show(store, config, run, stage, shown, {}))


def _import() -> None:
    """Import MLflow before time limits for the server start; it takes seconds."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import spat.pipeline.tracking.store  # noqa: F401


def _open(config: Config) -> Store:
    from spat.pipeline.tracking.store import Store

    return Store(config)


def _limited(config: Config, count: int, call: Callable[[], T]) -> T:
    """The result of a call that logs `count` runs, within a time limit.

    The timeouts of MLflow apply to each part of an answer, so a server that slowly sends parts
    would never reach them.

    Raises:
        TimeoutError: after `SERVER_TIMEOUT_S` and `SERVER_TIMEOUT_PER_RUN_S` for each run.
    """
    if not config.tracking.uri:
        return call()
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    limit = SERVER_TIMEOUT_S + count * SERVER_TIMEOUT_PER_RUN_S
    thread = Thread(target=work, daemon=True)  # the process does not wait for it at its end
    thread.start()
    thread.join(limit)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(
            f"the server did not accept {count or 'all'} runs within {limit} seconds"
        )
    return results[0]


def _show(
    store: Store,
    config: Config,
    run: Run,
    stage: str,
    shown: list[entries.Entry],
    added: Mapping[str, Sequence[entries.Point]],
) -> None:
    # Otherwise a job and the remaining job of a killed Snakemake would replace each other's runs.
    with stage_lock(config, run, "tracking"):
        parent = store.parent(entries.parent(config, run))
        store.replace({"run": run.path, "stage": stage}, shown, parent)
        if added:
            store.amend({"run": run.path}, added)


def _show_report(store: Store, config: Config, report: entries.Entry) -> None:
    path = config.folder / ".locks" / "report"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):  # otherwise two processes of one experiment would write two reports
        store.replace({"job": entries.REPORT}, [report])


def _explain(config: Config, error: Exception) -> str:
    if isinstance(error, DamagedError):  # a problem of the files, not of the store
        return str(error)
    reason = " ".join(_masked(config, str(error)).split())[:300]
    address = without_secrets(entries.store_uri(config))
    if _OTHER_VERSION.search(reason):
        return (
            f"MLflow at {address}: the store was written by another version of MLflow; the results "
            f"do not need it: {_adapted(config, reason)}"
        )
    return (
        f"MLflow at {address}: {type(error).__name__}: {reason}; "
        f"the results do not need it, and `{REBUILD}` rebuilds it from them"
    )


# The messages of MLflow and its migrations for a schema of another version.
_OTHER_VERSION = re.compile(r"out-of-date database schema|Can't locate revision", re.IGNORECASE)


def _adapted(config: Config, reason: str) -> str:
    """What to do with a store of another version of MLflow, by its address and MLflow's message."""
    uri = config.tracking.uri or "sqlite"
    kind = os.path.expandvars(uri).partition(":")[0].partition("+")[0]
    if kind == "sqlite":
        # The value of a variable may be a secret.
        file = uri.partition("///")[2].partition("?")[0] or f"the file of {uri}"
        file = file if config.tracking.uri else str(config.results / "mlflow.db")
        return f"move {file} away and run `{REBUILD}`, which writes it again from the results"
    if kind in ("http", "https"):
        return f"ask its administrator to run `mlflow db upgrade`, and then run `{REBUILD}`"
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    migrations = ScriptDirectory(str(Path(db_migrations.__file__).parent)).walk_revisions()
    version = re.search(r"found version (\w+)", reason)
    if version and version[1] in {migration.revision for migration in migrations}:
        # Passwords are variables, which the shell replaces.
        return f'make a backup, run `mlflow db upgrade "{uri}"`, and then run `{REBUILD}`'
    return (
        "it is newer than this version: install that version of MLflow, or set `tracking.uri` to "
        f"another database, and then run `{REBUILD}`"
    )


def _masked(config: Config, text: str) -> str:
    """The text without the secrets of the address, wherever they occur."""
    for name in variables(config.tracking.uri or ""):
        value = os.environ.get(name, "")
        for secret in filter(None, (value, unquote(value))):
            text = text.replace(secret, f"${name}")
    return without_secrets(text)
