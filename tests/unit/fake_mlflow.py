"""A tracking server in memory with the part of MLflow's REST interface that tracking uses."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = dict[str, Any] | tuple[int, dict[str, Any]]


class FakeServer(ThreadingHTTPServer):
    """A server that counts its calls; it sleeps for `delay` seconds before each answer.

    With `drip`, it sends one byte of an answer every `drip` seconds. The first call of a path in
    `failures` gets that message of an error.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, delay: float = 0.0, drip: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay, self.drip = delay, drip
        self.failures: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.most_at_once = 0
        self.runs: dict[str, dict[str, Any]] = {}
        self.waiting = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def answer(self, path: str, values: dict[str, Any]) -> Answer:
        name = "artifacts" if "mlflow-artifacts" in path else path.rpartition("mlflow/")[2]
        with self.lock:
            self.calls[name] += 1
            self.waiting += 1
            self.most_at_once = max(self.most_at_once, self.waiting)
            failure = self.failures.pop(name, None)
        time.sleep(self.delay)
        with self.lock:
            self.waiting -= 1
            if failure is not None:
                return 400, {"error_code": "BAD_REQUEST", "message": failure}
            method: Callable[[dict[str, Any]], Answer] | None = getattr(
                self, re.sub(r"\W", "_", name), None
            )
            return method(values) if method else {}

    def experiments_get_by_name(self, values: dict[str, Any]) -> Answer:
        return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}

    def experiments_create(self, values: dict[str, Any]) -> Answer:
        return {"experiment_id": "1"}

    def runs_create(self, values: dict[str, Any]) -> Answer:
        run_id = uuid.uuid4().hex
        info = {
            "run_id": run_id,
            "run_name": values["run_name"],
            "experiment_id": "1",
            "status": "RUNNING",
            "start_time": values["start_time"],
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/1/{run_id}/artifacts",
        }
        run = {"info": info, "data": {"tags": values["tags"], "metrics": []}, "inputs": {}}
        self.runs[run_id] = run
        return {"run": run}

    def runs_log_batch(self, values: dict[str, Any]) -> Answer:
        self.runs[values["run_id"]]["data"]["metrics"] += values.get("metrics", [])
        return {}

    def runs_log_inputs(self, values: dict[str, Any]) -> Answer:
        self.runs[values["run_id"]]["inputs"] = {"dataset_inputs": values["datasets"]}
        return {}

    def runs_update(self, values: dict[str, Any]) -> Answer:
        self.runs[values["run_id"]]["info"]["status"] = values["status"]
        return {"run_info": self.runs[values["run_id"]]["info"]}

    def runs_get(self, values: dict[str, Any]) -> Answer:
        return {"run": self.runs[values["run_id"]]}

    def runs_delete(self, values: dict[str, Any]) -> Answer:
        del self.runs[values["run_id"]]
        return {}

    def runs_search(self, values: dict[str, Any]) -> Answer:
        wanted = re.findall(r"tags\.`([^`]*)` = '([^']*)'", values.get("filter", ""))
        matching = [
            run
            for run in self.runs.values()
            if {tag["key"]: tag["value"] for tag in run["data"]["tags"]}.items() >= set(wanted)
        ]
        return {"runs": matching}


class Handler(BaseHTTPRequestHandler):
    """Passes each call to the server, and sends its answer."""

    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_GET(self) -> None:
        self._call(dict(parse_qsl(urlsplit(self.path).query)))

    def do_POST(self) -> None:
        self._call(json.loads(self._body()))

    def do_PUT(self) -> None:
        self._body()
        self._call({})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _call(self, values: dict[str, Any]) -> None:
        answer = self.server.answer(urlsplit(self.path).path, values)
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not self.server.drip:
            self.wfile.write(body)
            return
        try:
            for byte in body.ljust(1000):
                self.wfile.write(bytes([byte]))
                time.sleep(self.server.drip)
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""
