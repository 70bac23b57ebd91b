"""The names of all tables and figures, for those who only list files: nothing is imported."""

from __future__ import annotations

from typing import Final

TABLES: Final = (
    "main",
    "changes",
    "sources",
    "efficiency",
    "zeroshot",
    "heads",
    "criteria",
    "quality",
    "quality_cells",
    "replicates",
    "stability",
    "validation",
    "precision",
    "adaptive",
    "robustness",
    "leave_one_out",
    "controls",
    "reproduction",
)

FIGURES: Final = (
    "pareto",
    "latency",
    "send_sites",
    "send_uniformity",
    "stability",
    "criteria_quality",
    "critical_difference",
    "head_module",
    "robustness",
    "transfer",
    "forecasts",
    "history",
)
