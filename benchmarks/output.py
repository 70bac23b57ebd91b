"""Write the results: bench.json, the same results as tables (CSV, Markdown), and a plot.

A measured section replaces its earlier results. The results of the other sections are kept if the
machine and the versions are the same. Each section has its own commit, load and rates.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import growth

from spat.files import read_json, write_json, write_text

Json = dict[str, Any]

COLUMNS = (
    *("section", "figure", "measured", "value", "unit", "against", "its_value"),
    *("ratio", "ratio_min", "ratio_max", "target", "met", "floor", "detail"),
)


def write(machine: Json, sections: Json, folder: Path) -> Json:
    """Write all files into `folder`; return the content of bench.json."""
    path = folder / "bench.json"
    folder.mkdir(parents=True, exist_ok=True)
    before = read_json(path) if path.exists() else {}
    kept = before["sections"] if before.get("machine") == machine else {}
    whole = {"machine": machine, "sections": kept | sections}
    write_json(path, whole)
    write_text(folder / "bench.csv", _csv(whole))
    write_text(folder / "bench.md", markdown(whole))
    _plot(whole, folder / "bench")
    if "growth" in whole["sections"]:
        growth.plot(whole["sections"]["growth"], folder / "growth")
    return whole


def markdown(whole: Json) -> str:
    """The main figures as tables, after a description of the machine."""
    machine = whole["machine"]
    versions = machine["versions"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}; torch {versions['torch']}, Python {versions['python']}.",
    ]
    for name, section in whole["sections"].items():
        rates = section["rates"]
        lines += [
            "",
            f"**{name}**: commit {section['commit']}, {section['started']}, load "
            f"{section['load'][0]} before and {section['load'][1]} after; one core: "
            f"{_number(rates['mkl_gflops'])} GFLOP/s through MKL, "
            f"{_number(rates['onednn_gflops'])} through oneDNN, "
            f"{_number(rates['copy_gb'])} GB/s of copying.",
            "",
            "| figure | measured | against | ratio (min to max) | target | met | floor |",
            "|---|---|---|---|---|---|---|",
            *(_row(figure) for figure in section["figures"] if not figure["detail"]),
            "",
            *(f"- {what}: {why}" for what, why in section["remarks"].items()),
        ]
    return "\n".join(lines).rstrip() + "\n"


def _row(figure: Json) -> str:
    ratio, floor, target = figure["ratio"], figure["floor"], figure["target"]
    cells = [
        figure["name"],
        _value(figure["measured"]),
        _value(figure["against"]),
        f"**{_number(ratio['median'])}** ({_number(ratio['min'])} to {_number(ratio['max'])})",
        target["text"] if target else "",
        {True: "yes", False: "no", None: ""}[figure["met"]],
        "" if floor is None else f"{_number(floor)} {figure['measured']['unit']}",
    ]
    return "| " + " | ".join(cell.strip() for cell in cells) + " |"


def _figures(whole: Json) -> Iterator[tuple[str, Json]]:
    for name, section in whole["sections"].items():
        for figure in section["figures"]:
            yield name, figure


def _csv(whole: Json) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for section, figure in _figures(whole):
        measured, against, ratio = (figure[key] for key in ("measured", "against", "ratio"))
        writer.writerow(
            [
                *(section, figure["name"], measured["label"], measured["median"], measured["unit"]),
                *(against["label"], against["median"]),
                *(ratio["median"], ratio["min"], ratio["max"]),
                figure["target"] and figure["target"]["text"],
                *(figure["met"], figure["floor"], figure["detail"]),
            ]
        )
    return text.getvalue()


def _plot(whole: Json, stem: Path) -> None:
    """Plot each figure as a multiple of its target, and pruned networks against their FLOPs."""
    from spat.study.pages.style import canvas, drawing, save

    figures = [figure for _, figure in _figures(whole)]
    judged = [figure for figure in figures if figure["target"]]
    masks = [figure for figure in figures if figure["name"].startswith("pruned/")]
    with drawing():
        drawn = canvas(7.0, 0.8 + 0.2 * max(len(judged), 12))
        left, right = drawn.subplots(1, 2, width_ratios=[3, 2])
        _targets(left, judged[::-1])
        _speedups(right, [figure for figure in masks if figure["detail"]])
    save(drawn, stem)


def _targets(axis: Any, figures: list[Json]) -> None:
    for row, figure in enumerate(figures):
        target, series = figure["target"], figure[figure["target"]["of"]]
        # Values above 1 are better, whatever the target is.
        power = 1 if target["kind"] == "at least" else -1
        low, middle, high = (
            max(series[key] / target["value"], 1e-3) ** power for key in ("min", "median", "max")
        )
        axis.plot([low, high], [row, row], color="0.5", linewidth=1)
        look = ("o", "#0072B2") if figure["met"] else ("X", "#D55E00")
        axis.plot(middle, row, look[0], color=look[1])
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(figures)), [figure["name"] for figure in figures])
    axis.set(xscale="log", xlabel="result as a multiple of its target (right is better)")


def _speedups(axis: Any, figures: list[Json]) -> None:
    for phase, marker, colour in (("inference", "o", "#0072B2"), ("training", "^", "#E69F00")):
        chosen = [figure for figure in figures if f"/{phase}/" in figure["name"]]
        promised = [figure["floor"] / figure["against"]["median"] for figure in chosen]
        reached = [figure["ratio"]["median"] for figure in chosen]
        axis.plot(promised, reached, marker, color=colour, label=phase, markersize=3)
    axis.axline((1.0, 1.0), slope=1.0, color="black", linewidth=0.8)
    axis.set(xlabel="speed-up promised by the FLOPs", ylabel="speed-up measured")
    axis.legend()


def _value(series: Json) -> str:
    return f"{series['label']}: {_number(series['median'])} {series['unit']}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
