"""What each job records: code, settings, versions, device and time."""

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

from spat.pipeline.config import Config
from spat.pipeline.runs import Run

RECORDED_PACKAGES = ("torch", "numpy", "pandas", "snakemake", "mlflow")


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
    """The git commit of the code, `-dirty` if tracked files differ.

    It is `unknown` outside git, and where the repository around this file does not track it.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    tracked = [*git, "ls-files", "--error-unmatch", here.name]
    describe = [*git, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    try:
        for command in (tracked, describe):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            if done.returncode:
                return "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the packages that affect the results."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
