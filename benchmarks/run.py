"""Measure, and write results/bench: `python benchmarks/run.py` (see benchmarks/README.md)."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import engine
import machine
import memory
import output
import parallel
import pipeline
import pruned
from cases import FULL, QUICK, Size
from figure import Part
from machine import Rates

from spat.training.loop import prepare_torch

SECTIONS: dict[str, Callable[[Size, Rates], Part]] = {
    "engine": engine.measure,
    "parallel": parallel.measure,
    "memory": lambda size, _: memory.measure(size),
    "pruned": lambda size, _: pruned.measure(size),
    "pipeline": lambda size, _: pipeline.measure(size),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that are asked for and write what they found."""
    options = _parser().parse_args(arguments)
    size = QUICK if options.quick else FULL
    if options.rounds:
        size = replace(size, rounds=options.rounds, calls=options.rounds)
    begun = time.perf_counter()
    prepare_torch("float32")
    facts = machine.describe()
    rates = machine.rates(0.02 if options.quick else 0.3)
    part = Part()
    for name in options.only or SECTIONS:
        print(f"{name}:", file=sys.stderr, flush=True)
        part.join(SECTIONS[name](size, rates))
    facts |= {
        "mkl_gflops": rates.mkl / 1e9,
        "onednn_gflops": rates.onednn / 1e9,
        "bandwidth_gb": rates.bandwidth / 1e9,
        "load_after": machine.load(),
        "seconds": round(time.perf_counter() - begun),
        "quick": options.quick,
    }
    output.write(part, facts, options.output)
    print(output.markdown(part, facts))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), metavar="SECTION",
        help=f"some of {', '.join(SECTIONS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help="rounds of each measurement")
    parser.add_argument(
        "--quick", action="store_true", help="seconds, on a short generated series: a trial"
    )
    parser.add_argument("--output", type=Path, default=Path("results/bench"), metavar="FOLDER")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
