"""Training that diverges is a result: recorded, shown, and no hindrance to the rest."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from project import SMOKE, Project

pytestmark = pytest.mark.slow

WILD = """
grid:
  - datasets: [synthetic]
    models: [iTransformer]
    variants: [tiny, wild]
    lookback: 48
    horizons: [24]
    seeds: [0]
variants:
  wild:
    base: deep
    model: { d_model: 16, d_ff: 16, n_heads: 2, e_layers: 2, learning_rate: 1.0e+30 }
robustness: { runs: ["*"] }
transfer: { pairs: [] }
# `test_tracking.py` shows how a run that diverged is logged.
tracking: { enabled: false }
"""


def test_a_baseline_that_diverges_stands_in_the_table(
    new_project: Callable[[str], Project],
) -> None:
    project = new_project("divergence")
    (project.folder / "wild.yaml").write_text(WILD)
    project.snakemake(*SMOKE, "wild.yaml", "--until", "tables")
    results = project.folder / "results/smoke"
    wild = results / "synthetic/iTransformer-wild/l48-h24/seed0"
    assert json.loads((wild / "pretrain/metrics.json").read_text())["status"] == "diverged"
    assert json.loads((wild / "prune/manifest.json").read_text())["masks"] == []
    rows = (results / "tables/main.md").read_text().splitlines()
    (shown,) = [row for row in rows if "wild" in row and "MSE" in row]
    assert "diverged" in shown
    (other,) = [row for row in rows if "tiny" in row and "MSE" in row]
    assert "diverged" not in other
