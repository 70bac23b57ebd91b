"""A figure of the benchmark: the ratio of two measurements, its target and its floor."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True)
class Series:
    """A measurement, with one value per round."""

    label: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value that is reported."""
        return median(self.values)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "label": self.label,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "rounds": list(self.values),
        }


@dataclass(frozen=True)
class Target:
    """The target of the ratio, or of the measured value itself."""

    kind: Literal["at least", "at most"]
    value: float
    of: Literal["ratio", "measured"] = "ratio"

    def met(self, measured: float) -> bool:
        """Whether a median reaches the target."""
        return measured >= self.value if self.kind == "at least" else measured <= self.value

    def plain(self, unit: str) -> dict[str, Any]:
        """As JSON; `unit` is that of the measured value."""
        sign = "≥" if self.kind == "at least" else "≤"
        text = f"{sign} {self.value:g}" + (f" {unit}" if self.of == "measured" else "")
        return {"text": text, "kind": self.kind, "value": self.value, "of": self.of}


@dataclass(frozen=True)
class Figure:
    """The ratio `measured` / `against` of each round.

    `floor` is the best value that the machine allows, in the unit of `measured`. Figures with
    `detail` are only in the CSV file and in the plot.
    """

    name: str
    measured: Series
    against: Series
    target: Target | None = None
    floor: float | None = None
    detail: bool = False

    @property
    def ratio(self) -> Series:
        """One value a round."""
        pairs = zip(self.measured.values, self.against.values, strict=True)
        return Series("ratio", "", tuple(a / b for a, b in pairs))

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        judged = self.ratio if self.target.of == "ratio" else self.measured
        return self.target.met(judged.median)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "measured": self.measured.plain(),
            "against": self.against.plain(),
            "ratio": self.ratio.plain(),
            "target": self.target.plain(self.measured.unit) if self.target else None,
            "met": self.met,
            "floor": self.floor,
            "detail": self.detail,
        }


@dataclass
class Part:
    """The results of a section of the benchmark.

    `remarks` give, by the name of a figure, the reason why it was left out or what disturbed it.
    """

    figures: list[Figure] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        figures = [figure.plain() for figure in self.figures]
        return {"figures": figures, "remarks": self.remarks, "facts": self.facts}
