"""What the benchmark leaves: bench.json, the same as a table (CSV, Markdown), and a plot."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from figure import Figure, Part

from spat import records

COLUMNS = (
    *("figure", "measured", "value", "unit", "against", "its_value"),
    *("ratio", "ratio_min", "ratio_max", "target", "met", "floor", "detail"),
)


def write(part: Part, machine: dict[str, Any], folder: Path) -> None:
    """Write all files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "machine": machine,
        "figures": [figure.plain() for figure in part.figures],
        "skipped": part.skipped,
        "facts": part.facts,
    }
    records.write_json(folder / "bench.json", whole)
    records.write_text(folder / "bench.csv", _csv(part.figures))
    records.write_text(folder / "bench.md", markdown(part, machine))
    _plot(part.figures, folder / "bench")


def markdown(part: Part, machine: dict[str, Any]) -> str:
    """The main figures as a table, with the machine above it."""
    versions = machine["versions"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; "
        f"torch {versions['torch']}, Python {versions['python']}; commit {machine['commit']}; "
        f"load {machine['load']} before, {machine['load_after']} after; {machine['started']}.",
        "",
        f"One core: {_number(machine['mkl_gflops'])} GFLOP/s through MKL, "
        f"{_number(machine['onednn_gflops'])} through oneDNN, "
        f"{_number(machine['bandwidth_gb'])} GB/s of copying.",
        "",
        "| figure | measured | against | ratio (min to max) | target | met | floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for figure in part.figures:
        if figure.detail:
            continue
        plain = figure.plain()
        values = [_value(plain[side]) for side in ("measured", "against")]
        ratio = plain["ratio"]
        spread = f"{_number(ratio['min'])} to {_number(ratio['max'])}"
        cells = [
            figure.name,
            *values,
            f"**{_number(ratio['median'])}** ({spread})",
            plain["target"] or "",
            {True: "yes", False: "no", None: ""}[figure.met],
            "" if figure.floor is None else f"{_number(figure.floor)} {figure.measured.unit}",
        ]
        lines.append("| " + " | ".join(cell.strip() for cell in cells) + " |")
    lines += ["", *(f"- {name} skipped: {why}" for name, why in part.skipped.items())]
    return "\n".join(lines).rstrip() + "\n"


def _csv(figures: list[Figure]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for figure in figures:
        ratio = figure.ratio
        writer.writerow(
            [
                figure.name,
                figure.measured.label,
                figure.measured.median,
                figure.measured.unit,
                figure.against.label,
                figure.against.median,
                ratio.median,
                min(ratio.values),
                max(ratio.values),
                figure.plain()["target"],
                figure.met,
                figure.floor,
                figure.detail,
            ]
        )
    return text.getvalue()


def _plot(figures: list[Figure], stem: Path) -> None:
    """Each ratio with a target as a multiple of it; and the pruned networks against their FLOPs."""
    from spat.reporting.style import canvas, drawing, save

    judged = [figure for figure in figures if figure.target]
    pruned = [f for f in figures if f.name.startswith("pruned/") and f.detail and f.floor]
    with drawing():
        figure = canvas(7.0, 0.8 + 0.2 * max(len(judged), 12))
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _targets(left, judged)
        _speedups(right, pruned)
    save(figure, stem)


def _targets(axis: Any, figures: list[Figure]) -> None:
    for row, figure in enumerate(reversed(figures)):
        target = figure.target
        assert target is not None
        series = figure.ratio if target.of == "ratio" else figure.measured
        # To the right of 1 is better, whatever the target is.
        power = 1 if target.kind == "at least" else -1
        values = [max(value / target.value, 1e-3) ** power for value in series.values]
        middle = max(series.median / target.value, 1e-3) ** power
        marker = "o" if figure.met else "X"
        axis.plot([min(values), max(values)], [row, row], color="0.5", linewidth=1)
        axis.plot(middle, row, marker, color="#0072B2" if figure.met else "#D55E00")
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(figures)), [figure.name for figure in reversed(figures)])
    axis.set(xscale="log", xlabel="result as a multiple of its target (right is better)")


def _speedups(axis: Any, figures: list[Figure]) -> None:
    for phase, marker, colour in (("inference", "o", "#0072B2"), ("training", "^", "#E69F00")):
        chosen = [figure for figure in figures if f"/{phase}/" in figure.name]
        promised = [float(f.floor or 0) / f.against.median for f in chosen]
        reached = [f.ratio.median for f in chosen]
        axis.plot(promised, reached, marker, color=colour, label=phase, markersize=3)
    axis.axline((1.0, 1.0), slope=1.0, color="black", linewidth=0.8)
    axis.set(xlabel="speed-up promised by the FLOPs", ylabel="speed-up measured")
    axis.legend()


def _value(series: dict[str, Any]) -> str:
    return f"{series['label']}: {_number(series['median'])} {series['unit']}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
