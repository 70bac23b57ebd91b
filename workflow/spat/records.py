"""What a job writes: atomic files, and a `metrics.json` that describes itself."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from spat.config import Config
from spat.data.files import replacing, sha256
from spat.runs import Run

__all__ = [
    "commit",
    "digest",
    "header",
    "now",
    "read_json",
    "replacing",
    "sha256",
    "versions",
    "write_json",
    "write_text",
]

RECORDED_PACKAGES = ("torch", "numpy", "pandas", "snakemake", "mlflow")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented; NaN and infinity become null."""
    write_text(path, json.dumps(_finite(value), indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileNotFoundError: naming the file.
        ValueError: naming the file, when it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it and run the job again") from None


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-serialisable parts, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def header(
    config: Config, stage: str, run: Run | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """The part of `metrics.json` that is the same for every job."""
    return {
        "stage": stage,
        "experiment": config.experiment,
        **(run.keys if run else {}),
        "config": digest(config.model_dump(mode="json")),
        "commit": commit(),
        "device": device,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "written": now(),
    }


@cache
def commit() -> str:
    """The git commit of the code, `-dirty` if tracked files differ; `unknown` outside git."""
    here = Path(__file__).parent
    describe = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--exclude=*"]
    try:
        name = subprocess.run([*describe, "--dirty"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return name.stdout.strip() or "unknown"


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the packages that shape the numbers."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
