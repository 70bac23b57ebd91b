"""Measure, and write results/bench: `python benchmarks/run.py` (see benchmarks/README.md)."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import card
import engine
import growth
import machine
import memory
import mixed
import output
import parallel
import pipeline
import pruned
import scale
from cases import FULL, QUICK, Size
from figure import Part
from machine import Rates

from spat.pipeline import records, resources
from spat.training.loop import prepare_torch

Section = Callable[[Size, Rates], Part]

SECTIONS: dict[str, Section] = {
    "engine": engine.measure,
    "parallel": parallel.measure,
    "memory": lambda size, _: memory.measure(size),
    "pruned": lambda size, _: pruned.measure(size),
    "pipeline": lambda size, _: pipeline.measure(size),
    "bf16": lambda size, _: mixed.measure(size),
    "scale": lambda size, _: scale.measure(size),
    "growth": lambda size, _: growth.measure(size),
    "card": lambda size, _: card.measure(size),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested sections and write their results."""
    options = _parser().parse_args(arguments)
    size = QUICK if options.quick else FULL
    if options.rounds:
        size = replace(size, rounds=options.rounds, calls=options.rounds)
    if options.patience is not None:
        size = replace(size, patience=options.patience)
    resources.prepare_cuda()
    prepare_torch("float32")
    measured = {}
    for name in options.only or SECTIONS:
        print(f"{name}:", file=sys.stderr, flush=True)
        measured[name] = _measured(SECTIONS[name], size, seconds=0.02 if options.quick else 0.3)
    whole = output.write(machine.describe() | {"quick": options.quick}, measured, options.output)
    print(output.markdown(whole))
    return 0


def _measured(section: Section, size: Size, seconds: float) -> dict[str, Any]:
    """The results of a section, with the state of the machine; each rate takes `seconds`."""
    begun, load = time.perf_counter(), machine.load()
    header = {"commit": records.commit(), "started": records.now()}
    rates = machine.rates(seconds)
    part = section(size, rates)
    return {
        **header,
        "load": [load, machine.load()],
        "seconds": round(time.perf_counter() - begun),
        "rates": rates.plain(),
        **part.plain(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), metavar="SECTION",
        help=f"some of {', '.join(SECTIONS)} (default: all); results of the others are kept",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help="rounds of each measurement")
    parser.add_argument(
        "--patience", type=float, metavar="SECONDS",
        help="time to wait for a machine without other work (default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="a trial of seconds on a short generated series"
    )
    parser.add_argument("--output", type=Path, default=Path("results/bench"), metavar="FOLDER")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
