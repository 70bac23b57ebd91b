"""Write entries to an MLflow store, which several jobs may use at the same time."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from spat.data.registry import DATASETS, WITHOUT_TIME
from spat.pipeline import checks
from spat.pipeline.config import Config
from spat.pipeline.tracking.entries import Entry, Point, store_uri

# MLflow accepts at most 1000 items per call, of which at most 100 are parameters.
METRICS_PER_CALL = 900
PARAMS_PER_CALL = 100
DIGEST_LENGTH = 12  # fits into the runs table; the whole hash is a tag
DATABASE_ATTEMPTS = 3  # MLflow's default of ten takes 100 s
LOCK_TIMEOUT_S = 120
# Concurrent calls to a server: with a latency of one second, the runs of forty masks take nine
# seconds instead of two minutes. A database file has one writer at a time.
CALLS_AT_ONCE = 16
# Two jobs that add the same dataset to an experiment at the same time collide in the database. The
# second job finds the dataset when it tries again.
DATASET_ATTEMPTS = 3
DATASET_WAIT_S = 0.2

# The description of an MLflow experiment.
DESCRIPTION = """\
**Start with the run `report`**: it has the main numbers, the tables and the figures. Each other
top-level run is one dataset, model, setting and seed. Its child runs are its pre-training, scores,
masks, latencies and transfers.

To compare masks, sort by `test_mse_change_percent`: the change against the control, which is the
dense model with the same extra epochs. Below 0 is better. Useful columns are the metrics
`test_mse`, `test_mse_change_percent`, `flops_change_percent` and `latency_ms_change_percent` (the
largest batch), and the tags `method`, `ratio`, `level`, `removed` and `chosen_by`. Top-level runs
have the changes of the mask that validation chose for SPAT. Latencies of all batch sizes are
metrics of the runs `measure`, such as `latency_ms/batch 1/SPAT 50`.
"""
# The columns of the runs table at the address `.../runs?viewStateShareKey=spat`.
VIEW_TAG = "mlflow.sharedViewState.spat"
VIEW = json.dumps(
    {
        "orderByKey": "metrics.`test_mse_change_percent`",
        "orderByAsc": True,
        "selectedColumns": [
            *(f"tags.`{name}`" for name in ("method", "ratio", "level")),
            *(
                f"metrics.`{name}`"
                for name in (
                    "test_mse",
                    "test_mse_change_percent",
                    "flops_change_percent",
                    "latency_ms_change_percent",
                )
            ),
        ],
    }
)

T = TypeVar("T")


class Store:
    """The MLflow experiment of a configuration."""

    def __init__(self, config: Config) -> None:
        """Open the store; store and experiment are created if they do not exist.

        Raises:
            ValueError: if the artifacts of the store are not in the folder of the results, or an
                environment variable of the address is not set.
        """
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # one warning is enough
        config.results.mkdir(parents=True, exist_ok=True)
        self.written = 0
        self._uri = os.path.expandvars(store_uri(config))
        checks.require_variables(config)
        if self._is_server:
            self._client = MlflowClient(self._uri, self._uri)
            # An unreachable server fails here; under the lock, jobs would wait one after another.
            self._client.search_experiments(max_results=1)
        else:
            import mlflow.store.db.utils  # needs SQLAlchemy, which a client of a server does not

            mlflow.store.db.utils.MAX_RETRY_COUNT = DATABASE_ATTEMPTS
        with FileLock(config.results / "mlflow.lock", timeout=LOCK_TIMEOUT_S):
            # Two processes that create one database at the same time damage it.
            self._client = MlflowClient(self._uri, self._uri)
            self._experiment = self._get_or_create(config)

    def parent(self, entry: Entry) -> str:
        """The id of the active run of this entry; an older one is replaced, its children are kept.

        Only one process at a time may call this for an entry.
        """
        live = self._live({"job": entry.job})
        for old in live:
            # A run that is still active belongs to a job that was killed while it wrote.
            whole = old.info.status in ("FINISHED", "FAILED")
            if whole and old.data.tags["digest"] == entry.tags["digest"]:
                return str(old.info.run_id)
        new = self._create(entry)
        self.written += 1
        for old in live:
            children = self._live({"mlflow.parentRunId": old.info.run_id})
            self._at_once(
                partial(self._client.set_tag, child.info.run_id, "mlflow.parentRunId", new)
                for child in children
            )
            self._client.delete_run(old.info.run_id)
        return new

    def replace(
        self, tags: Mapping[str, str], entries: Sequence[Entry], parent: str | None = None
    ) -> None:
        """Delete the active runs with these tags and write the entries instead."""
        self.delete(old.info.run_id for old in self._live(tags))
        self._at_once(partial(self._create, entry, parent) for entry in entries)
        self.written += len(entries)

    def amend(self, tags: Mapping[str, str], added: Mapping[str, Sequence[Point]]) -> None:
        """Add metrics to the active runs with these tags, by their `job`."""
        self._at_once(
            partial(self._client.log_batch, run.info.run_id, metrics=_metrics(added[job]))
            for run in self._live(tags)
            if (job := run.data.tags["job"]) in added
        )

    def from_files(self) -> list[str]:
        """The ids of all active runs that were logged from files."""
        return [run.info.run_id for run in self._live({}) if "job" in run.data.tags]

    def delete(self, ids: Iterable[str]) -> None:
        """Delete runs."""
        self._at_once(partial(self._client.delete_run, run_id) for run_id in ids)

    def _at_once(self, calls: Iterable[Callable[[], object]]) -> None:
        """Make all calls, several at a time for a server; after an error no further call starts.

        Raises:
            Exception: the first error of a call.
        """
        waiting = list(calls)
        if not self._is_server or len(waiting) < 2:
            for call in waiting:
                call()
            return
        queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        for call in waiting:
            queue.put(call)
        errors: list[Exception] = []

        def work() -> None:
            while not errors:
                try:
                    call = queue.get_nowait()
                except Empty:
                    return
                try:
                    call()
                except Exception as error:
                    errors.append(error)

        # The process can end while a call waits for the server.
        threads = [
            Thread(target=work, daemon=True) for _ in range(min(CALLS_AT_ONCE, len(waiting)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    @property
    def _is_server(self) -> bool:
        return self._uri.startswith(("http://", "https://"))

    def _get_or_create(self, config: Config) -> str:
        name = f"spat/{config.experiment}"
        # A server has its own location of artifacts; otherwise MLflow stores this path.
        place = None if self._is_server else (config.results / "mlartifacts").resolve().as_uri()
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                made = str(self._client.create_experiment(name, place))
            except MlflowException:  # another machine created it in the meantime
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
            else:
                self._client.set_experiment_tag(made, "mlflow.note.content", DESCRIPTION)
                self._client.set_experiment_tag(made, VIEW_TAG, VIEW)
                return made
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        if place not in (None, experiment.artifact_location):
            raise ValueError(
                f"delete the store and rebuild it: experiment {name!r} keeps artifacts in "
                f"{experiment.artifact_location}, but the results are now next to {place}"
            )
        return str(experiment.experiment_id)

    def _live(self, tags: Mapping[str, str]) -> list[Any]:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], query, page_token=token)
            runs += page
            if not (token := page.token):
                return runs

    def _create(self, entry: Entry, parent: str | None = None) -> str:
        tags = {**entry.tags, **({"mlflow.parentRunId": parent} if parent else {})}
        run = self._client.create_run(self._experiment, entry.start, tags, entry.name)
        run_id = str(run.info.run_id)
        metrics = _metrics(entry.points)
        params = [Param(key, value) for key, value in entry.params.items()]
        parts = zip_longest(
            _parts(metrics, METRICS_PER_CALL), _parts(params, PARAMS_PER_CALL), fillvalue=()
        )
        for some_metrics, some_params in parts:
            self._client.log_batch(run_id, metrics=some_metrics, params=some_params)
        if entry.dataset:
            self._log_dataset(run_id, _dataset(*entry.dataset))
        self._at_once(
            [
                *(
                    partial(self._client.log_artifact, run_id, str(file), place)
                    for file, place in entry.artifacts.items()
                ),
                *(
                    partial(self._client.log_text, run_id, text, name)
                    for name, text in entry.texts.items()
                ),
            ]
        )
        self._client.set_terminated(run_id, "FINISHED" if entry.ok else "FAILED", entry.end)
        return run_id

    def _log_dataset(self, run_id: str, dataset: DatasetInput) -> None:
        for attempt in range(1, DATASET_ATTEMPTS + 1):
            try:
                self._client.log_inputs(run_id, [dataset])
                return
            except MlflowException:
                if attempt == DATASET_ATTEMPTS:
                    raise
                time.sleep(attempt * DATASET_WAIT_S)


def _dataset(name: str, sha256: str) -> DatasetInput:
    row = WITHOUT_TIME[name].files[0] if name in WITHOUT_TIME else DATASETS.get(name)
    kind, source = ("code", {"generator": name})
    if row is None:  # a dataset of `data.custom`
        kind, source = ("local", {"uri": name})
    elif row.file:
        kind, source = ("http", {"url": row.urls[0]}) if row.urls else ("local", {"uri": row.file})
    return DatasetInput(
        Dataset(name, sha256[:DIGEST_LENGTH], kind, json.dumps(source)),
        [InputTag("mlflow.data.context", "data")],
    )


def _metrics(points: Iterable[Point]) -> list[Metric]:
    return [Metric(point.key, point.value, point.time, point.step) for point in points]


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))
