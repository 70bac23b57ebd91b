"""Growth of the time and memory of a run with channels, lookback, horizon, masks and seeds.

Each point is a whole run of `python -m spat grid` in its own process. A second call, which finds
all work done, measures the fixed cost, which is subtracted.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from cases import ROOT, Size
from figure import Figure, Part, Series
from memory import peak_of
from pipeline import CommandError

# Seconds between two readings of the memory of a run; the system records the peak.
PAUSE = 0.02

BASE: Mapping[str, int] = {"channels": 7, "lookback": 48, "horizon": 48, "masks": 2, "seeds": 1}


class Cost(NamedTuple):
    """The CPU seconds of a process, and its peak memory in MB."""

    seconds: float
    megabytes: float


def measure(size: Size) -> Part:
    """The cost at each multiple of the base, one axis at a time, and the exponents."""
    part = Part()
    base, fixed = _run(BASE, size)
    points: dict[str, list[Cost]] = {
        axis: [
            base,
            *(_run({**BASE, axis: value * factor}, size)[0] for factor in size.multiples[1:]),
        ]
        for axis, value in BASE.items()
    }
    last = size.multiples[-1]
    for axis, costs in points.items():
        for unit, name in (("CPU s", "seconds"), ("MB", "megabytes")):
            first, final = (getattr(cost, name) for cost in (costs[0], costs[-1]))
            part.figures.append(
                Figure(
                    f"growth/{axis}/{'time' if name == 'seconds' else 'memory'}",
                    Series(f"{axis} {last * BASE[axis]}", unit, (final,)),
                    Series(f"{axis} {BASE[axis]}", unit, (first,)),
                )
            )
    part.facts = {
        "base": dict(BASE),
        "fixed": fixed._asdict(),
        "multiples": list(size.multiples),
        "points": {axis: [cost._asdict() for cost in costs] for axis, costs in points.items()},
        "exponents": {
            axis: {
                name: exponent(size.multiples, [getattr(c, name) - least for c in costs])
                for name, least in fixed._asdict().items()
            }
            for axis, costs in points.items()
        },
    }
    return part


def exponent(multiples: Sequence[int], values: Sequence[float]) -> float | None:
    """The slope between the last two points on logarithmic scales; None if the cost is zero.

    The fixed parts of the cost weigh least in the last two points.
    """
    before, after = values[-2:]
    if min(before, after) <= 0:
        return None
    return math.log(after / before) / math.log(multiples[-1] / multiples[-2])


def plot(section: Mapping[str, Any], stem: Path) -> None:
    """Plot time and memory above the fixed cost against the multiple of the base, by axis."""
    from spat.study.pages.style import canvas, drawing, save

    facts = section["facts"]
    with drawing():
        drawn = canvas(7.0, 3.0)
        for panel, (key, label) in zip(
            drawn.subplots(1, 2),
            (("seconds", "CPU s above start-up"), ("megabytes", "MB above start-up")),
            strict=True,
        ):
            for marker, (axis, costs) in zip("osD^v", facts["points"].items(), strict=True):
                values = [cost[key] - facts["fixed"][key] for cost in costs]
                if max(values) <= 0:  # nothing to draw on a logarithmic scale
                    continue
                slope = facts["exponents"][axis][key]
                text = axis if slope is None else f"{axis}: exponent {slope:.2f}"
                panel.plot(facts["multiples"], values, marker=marker, label=text)
            panel.set(xscale="log", yscale="log", xlabel="multiple of the base", ylabel=label)
            panel.set_xticks(facts["multiples"], [str(m) for m in facts["multiples"]])
            panel.minorticks_off()
            panel.legend()
    save(drawn, stem)


def _run(at: Mapping[str, int], size: Size) -> tuple[Cost, Cost]:
    """The cost of a run, and of a second call that finds it complete."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "growth.yaml").write_text(yaml.safe_dump(_experiment(at, size)))
        first, second = (_spent(Path(folder)) for _ in range(2))
        print(f"  {dict(at)}: {first}", file=sys.stderr)
    return first, second


def _experiment(at: Mapping[str, int], size: Size) -> dict[str, Any]:
    network = {"d_model": 64, "d_ff": 64, "n_heads": 4, "e_layers": 6}
    return {
        "experiment": "growth",
        "grid": [
            {
                "datasets": ["synthetic"],
                "models": ["iTransformer"],
                "variants": ["small"],
                "lookback": at["lookback"],
                "horizons": [at["horizon"]],
                "seeds": list(range(at["seeds"])),
            }
        ],
        "variants": {"small": {"base": "deep", "model": network}},
        "data": {"synthetic": {"rows": size.generated, "channels": at["channels"]}},
        "training": {"device": "cpu", "epochs": 1, "patience": 1},
        "finetune": {"epochs": 1},
        "scoring": {"batches": 1},
        "measure": {"batch_sizes": [1], "repeats": 2},
        # There are 20 masks that keep three of six sites; the control is one more.
        "pruning": {
            "site": {"criteria": ["random"], "ratios": [0.5]},
            "draws": at["masks"] - 1,
        },
        "transfer": {"pairs": []},
        "tracking": {"enabled": False},
    }


def _spent(folder: Path) -> Cost:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "spat", "grid", "--config", "growth.yaml"]
    with (folder / "output.txt").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        peak, ended = 0.0, 0
        while not ended:
            # The memory of wait4 is not used, since it includes the peak of the parent process.
            peak = max(peak, peak_of(process.pid))
            time.sleep(PAUSE)
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise CommandError(f"{' '.join(command)}: {output.read()[-800:]}")
    return Cost(used.ru_utime + used.ru_stime, peak)
