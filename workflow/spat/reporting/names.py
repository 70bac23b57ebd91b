"""The names of all tables and figures, for those who only list files: nothing is imported."""

from __future__ import annotations

from typing import Final

TABLES: Final = (
    "main",
    "changes",
    "efficiency",
    "zeroshot",
    "heads",
    "criteria",
    "controls",
    "reproduction",
)

FIGURES: Final = ("pareto",)
