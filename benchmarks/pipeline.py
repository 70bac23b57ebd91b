"""The overhead of the pipeline: start-up, the fixed cost of a job, planning, reports.

All times are CPU seconds (user and system) of a command and its children, so other work of the
machine does not count.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml
from alternation import Contestant, alternate, seconds
from cases import ROOT, Size
from figure import Figure, Part, Series, Target

COPIED = ("Snakefile", "config.yaml", "workflow", "profiles", "envs")
RUN = "synthetic/iTransformer-tiny/l48-h24/seed0"
# The smallest job that has every step: attention, scores, tracking.
JOB = """\
experiment: {name}
grid:
  - datasets: [synthetic]
    models: [iTransformer]
    variants: [tiny]
    lookback: 48
    horizons: [24]
variants:
  tiny: {{base: deep, model: {{d_model: 16, d_ff: 16, n_heads: 2, e_layers: 2}}}}
data: {{synthetic: {{rows: 500, channels: 3}}}}
training: {{device: cpu, epochs: 1}}
scoring: {{batches: 1, batch_size: 16}}
tracking: {{enabled: {enabled}}}
"""
# With these models, the experiment `paper` has twenty. SEND can rank all of their sites.
MORE_MODELS = (
    *("Transformer", "PAttn", "SAMformer", "TimeXer", "Nonstationary", "Informer", "Autoformer"),
    *("Crossformer", "NLinear", "RLinear", "SparseTSF", "SparseTSFMLP", "FITS", "TSMixer", "TiDE"),
)
LONG_JOB = 60.0  # seconds, of which tracking may take a share
UNIT = "CPU s"


class CommandError(RuntimeError):
    """A command failed; the message is its command line and the end of its output."""


def measure(size: Size) -> Part:
    """Measure all figures; a remark gives the reason for a figure that cannot be measured."""
    part = Part()
    measurements: dict[str, Callable[[Path, int], list[Figure]]] = {
        "help": _help,
        "jobs": _jobs,
        "dry runs": _dry_runs,
        "report": _report,
    }
    for name, measurement in measurements.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                part.figures += measurement(Path(folder), size.calls)
            except (CommandError, FileNotFoundError) as error:
                part.remarks[f"pipeline/{name}"] = f"skipped: {error}"
    return part


def _help(folder: Path, calls: int) -> list[Figure]:
    laps = alternate(
        {
            "help": _command(folder, "-m", "spat", "--help"),
            "bare": _command(folder, "-c", "pass"),
        },
        max(calls, 5),
    )
    return [
        Figure(
            "pipeline/help",
            Series("python -m spat --help", UNIT, seconds(laps["help"])),
            bare := Series("python -c pass", UNIT, seconds(laps["bare"])),
            Target("at most", 0.3, of="measured"),
            floor=bare.median,
        )
    ]


def _jobs(folder: Path, calls: int) -> list[Figure]:
    for name, enabled in (("untracked", "false"), ("tracked", "true")):
        (folder / f"{name}.yaml").write_text(JOB.format(name=name, enabled=enabled))
        _spat(folder, "prepare", "--config", f"{name}.yaml", "--dataset", "synthetic")()

    def job(name: str) -> Contestant:
        command = _spat(folder, "pretrain", "--config", f"{name}.yaml", "--run", RUN)

        def lap() -> float:
            shutil.rmtree(folder / "results" / name / RUN, ignore_errors=True)
            return command()

        return lap

    laps = alternate(
        {
            **{name: job(name) for name in ("untracked", "tracked")},  # the warm-up makes the store
            "torch": _command(folder, "-c", "import torch"),
            "torch and mlflow": _command(folder, "-c", "import torch, mlflow"),
        },
        calls,
    )
    times = {name: seconds(lapped) for name, lapped in laps.items()}
    untracked = Series("pre-training job, no tracking", UNIT, times["untracked"])
    tracked = Series("pre-training job, tracked", UNIT, times["tracked"])
    torch = Series("import torch", UNIT, times["torch"])
    both = Series("import torch, mlflow", UNIT, times["torch and mlflow"])
    extra = tuple(a - b for a, b in zip(tracked.values, untracked.values, strict=True))
    return [
        Figure(
            "pipeline/job",
            untracked,
            torch,
            Target("at most", 3.5, of="measured"),
            floor=torch.median,
        ),
        Figure(
            "pipeline/job-tracked",
            tracked,
            both,
            Target("at most", 6.0, of="measured"),
            floor=both.median,
        ),
        Figure(
            "pipeline/tracking",
            Series("tracked minus untracked", UNIT, extra),
            Series("a job of a minute", UNIT, (LONG_JOB,) * len(extra)),
            Target("at most", 0.05),
            floor=both.median - torch.median,
        ),
    ]


def _dry_runs(folder: Path, calls: int) -> list[Figure]:
    """Measure dry runs in a copy of the project that has no results."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    snakemake = ("-m", "snakemake")
    dry = (*snakemake, "--dry-run", "--quiet", "rules")
    paper = "workflow/experiments/paper.yaml"
    _with_more_models(folder / paper, folder / "twenty.yaml")
    planned = {
        "default": (),
        "paper": ("--configfile", paper),
        "paper-of-twenty-models": ("--configfile", "twenty.yaml"),
    }
    counts = {name: _jobs_of(_output(folder, *dry, *given)) for name, given in planned.items()}
    laps = alternate(
        {
            "version": _command(folder, *snakemake, "--version"),
            **{name: _command(folder, *dry, *given) for name, given in planned.items()},
        },
        max(1, calls - 1),
        warm_up=False,
    )
    bare = Series("snakemake --version", UNIT, seconds(laps["version"]))
    limits = {"default": 5.0, "paper": 30.0}
    return [
        Figure(
            f"pipeline/dry-run/{name}",
            Series(f"dry run of {name}, {jobs} jobs", UNIT, seconds(laps[name])),
            bare,
            Target("at most", limits[name], of="measured") if name in limits else None,
            floor=bare.median,
        )
        for name, jobs in counts.items()
    ]


def _with_more_models(paper: Path, target: Path) -> None:
    """The experiment `paper` with the published variants of `MORE_MODELS` added."""
    content = yaml.safe_load(paper.read_text(encoding="utf-8"))
    known = {model for block in content["grid"] for model in block["models"]}
    datasets = content["grid"][0]["datasets"]
    more = {"datasets": datasets, "models": sorted(set(MORE_MODELS) - known)}
    content["grid"].append({**more, "variants": ["published"], "seeds": [0, 1, 2]})
    target.write_text(yaml.safe_dump(content), encoding="utf-8")


def _report(folder: Path, calls: int) -> list[Figure]:
    """Of the default run that is kept as the reference."""
    frames = ROOT / "results" / "reference" / "default" / "data"
    shutil.copytree(frames, folder / "results" / "default" / "data")
    shutil.copy2(ROOT / "config.yaml", folder)
    tables, figures = _spat(folder, "tables"), _spat(folder, "figures")
    imports = _command(folder, "-c", "import matplotlib.figure, pandas, scipy.stats")
    laps = alternate(
        {"report": lambda: tables() + figures(), "imports": lambda: imports() + imports()},
        max(1, calls - 1),
        warm_up=False,
    )
    return [
        Figure(
            "pipeline/report",
            Series("tables and figures of the reference run", UNIT, seconds(laps["report"])),
            bare := Series("their imports, twice", UNIT, seconds(laps["imports"])),
            Target("at most", 30.0, of="measured"),
            floor=bare.median,
        )
    ]


def _spat(folder: Path, *arguments: str) -> Contestant:
    return _command(folder, "-m", "spat", *arguments)


def _command(folder: Path, *arguments: str) -> Contestant:
    def lap() -> float:
        _output(folder, *arguments)
        return 1.0

    return lap


def _output(folder: Path, *arguments: str) -> str:
    """Run Python with one thread, as Snakemake does, and return its output.

    Raises:
        CommandError: if it fails.
    """
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **one, "PYTHONPATH": str(ROOT / "workflow")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise CommandError(f"python {' '.join(arguments)}: {done.stdout.strip()[-500:]}")
    return done.stdout


def _jobs_of(shown: str) -> str:
    match = re.search(r"^total\s+(\d+)", shown, flags=re.MULTILINE)
    return match.group(1) if match else "?"
