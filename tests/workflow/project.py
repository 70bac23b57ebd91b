"""A copy of the project in which tests run Snakemake, edit files and kill jobs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "config.yaml", "workflow", "profiles", "envs")
SMOKE = ("--configfile", "workflow/experiments/smoke.yaml")

# Every stage in half a minute, on generated data.
TINY: dict[str, Any] = {
    "experiment": "tiny",
    "grid": [
        {
            "datasets": ["synthetic"],
            "models": ["iTransformer"],
            "variants": ["tiny"],
            "lookback": 24,
            "horizons": [12],
        }
    ],
    "variants": {"tiny": {"model": {"d_model": 8, "d_ff": 8, "n_heads": 2, "e_layers": 2}}},
    "data": {"synthetic": {"rows": 400, "channels": 2}},
    "training": {"device": "cpu", "epochs": 1},
    "scoring": {"batches": 1, "batch_size": 8},
    "pruning": {"site": {"criteria": ["send"], "ratios": [1.0]}, "head": {"ratios": []}},
    "finetune": {"epochs": 1},
    "transfer": {"pairs": [["synthetic", "synthetic2"]]},
    "measure": {"batch_sizes": [1], "repeats": 2},
    "statistics": {"bootstrap": 100},
}


class Project:
    """A copy of the project in its own folder."""

    def __init__(self, folder: Path, origin: Path = ROOT, names: tuple[str, ...] = COPIED) -> None:
        self.folder = folder
        self.path = [str(folder / "workflow")]
        folder.mkdir(parents=True, exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in names:
            source = origin / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                shutil.copy2(source, folder / name)

    @property
    def environment(self) -> dict[str, str]:
        """The interpreter of the tests, and the package of this copy before an installed one."""
        # Without byte code, every process would compile the package of the copy again.
        others = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "SNAKEMAKE_PROFILE")
        kept = {k: v for k, v in os.environ.items() if k not in others}
        return {**kept, "PYTHONPATH": os.pathsep.join(self.path)}

    def start(self, *arguments: str, cores: int = 1) -> subprocess.Popen[str]:
        """Snakemake in this copy, in the background.

        On one core `prune` trains its masks one after the other. On two it starts two workers,
        which takes longer for networks as small as those of the tests.
        """
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def snakemake(
        self, *arguments: str, fails: bool = False, cores: int = 1, timeout: float = 900
    ) -> str:
        """Run Snakemake in this copy, and return its output."""
        process = self.start(*arguments, cores=cores)
        try:
            shown, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()  # a process that hangs may ignore other signals
            raise
        assert (process.returncode != 0) == fails, shown[-8000:]
        return shown

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs that a dry run would run, by rule."""
        shown = self.snakemake("--dry-run", *arguments)
        table = shown.rpartition("Job stats:")[2].partition("\n\n")[0]
        return {
            rule: int(count)
            for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)
            if rule not in ("all", "total")
        }

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in this copy; a failure fails the test."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-8000:]
        return done
