"""Every table and figure of experiments with one site, head, channel, seed, mask, window, ..."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from frame_builder import frames_of

from spat.files import read_json
from spat.models import settings
from spat.pipeline.config import Config, load
from spat.pipeline.stages.collect import collect
from spat.pipeline.stages.grid import grid
from spat.scoring.names import CRITERIA
from spat.study.pages import registry, style
from spat.study.pages.reader import Frames

EVERY = {"site": {"criteria": list(CRITERIA), "ratios": [0.5, 1.0]}, "exhaustive": True}
HEADS = {"criteria": ["send", "random"], "ratios": [0.5]}


def small(
    results: Path,
    model: str = "PatchTST",
    layers: int = 1,
    heads: int = 1,
    channels: int = 2,
    rows: int = 400,
    seeds: tuple[int, ...] = (0,),
    **sections: Any,
) -> Config:
    """A small configuration of every part: width 8, one epoch, generated data."""
    site = {"criteria": ["send"], "ratios": [1.0]}
    changed = {"d_model": 8, "d_ff": 8, "n_heads": heads, "e_layers": layers}
    return load(
        {
            "experiment": "small",
            "results": str(results),
            "grid": [
                {
                    "datasets": ["synthetic"],
                    "models": [model],
                    "variants": list(sections.get("variants", ["small"])),
                    "lookback": 24,
                    "horizons": [12],
                    "seeds": seeds,
                }
            ],
            "variants": {"small": {"model": changed}},
            "data": {"synthetic": {"rows": rows, "channels": channels}},
            "training": {"device": "cpu", "epochs": 1},
            "scoring": {"batches": 2, "batch_size": 8},
            "pruning": {"site": site},
            "finetune": {"epochs": 1},
            "measure": {"batch_sizes": [1], "repeats": 2},
            "statistics": {"bootstrap": 100},
            "tracking": {"enabled": False},
            **sections,
        }
    )


CASES: dict[str, dict[str, Any]] = {
    "site": {},
    "site, every criterion": {"pruning": EVERY, "robustness": {"runs": ["*"]}},
    "site of two heads": {"heads": 2, "pruning": {**EVERY, "head": HEADS}},
    "site, five seeds": {"seeds": (0, 1, 2, 3, 4)},
    "head of two sites": {"layers": 2, "pruning": EVERY, "robustness": {"runs": ["*"]}},
    "channel": {"channels": 1, "layers": 2, "heads": 2},
    "channel of iTransformer": {"model": "iTransformer", "channels": 1, "layers": 2, "heads": 2},
    "validation window": {"rows": 120, "layers": 2},
    "batch of one window": {"scoring": {"batches": 1, "batch_size": 1}},
}


@pytest.fixture(autouse=True)
def png(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as PNG alone: all formats draw the same artists, and the reference has all three."""
    monkeypatch.setattr(style, "FORMATS", ("png",))


@pytest.mark.parametrize("case", CASES)
def test_an_experiment_with_one(case: str, tmp_path: Path) -> None:
    run_and_write_all(small(tmp_path, **CASES[case]))


def run_and_write_all(config: Config) -> None:
    grid(config, "*", minutes=9)
    collect(config)
    write_all(Frames.load(config.folder / "data", config.statistics), config.folder)


def test_a_baseline_that_diverges_stands_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A configuration cannot have a learning rate that diverges for certain.
    monkeypatch.setitem(settings.MOST, "learning_rate", 1e30)
    sizes = {"d_model": 8, "d_ff": 8, "n_heads": 1, "e_layers": 1}
    config = small(
        tmp_path,
        model="iTransformer",
        variants={
            "small": {"model": sizes},
            "wild": {"base": "deep", "model": {**sizes, "learning_rate": 1.0e30}},
        },
        robustness={"runs": ["*"]},
    )
    run_and_write_all(config)
    wild = config.folder / "synthetic/iTransformer-wild/l24-h12/seed0"
    assert read_json(wild / "pretrain/metrics.json")["status"] == "diverged"
    assert read_json(wild / "prune/manifest.json")["masks"] == []
    rows = (config.folder / "tables/main.md").read_text(encoding="utf-8").splitlines()
    (shown,) = [row for row in rows if "wild" in row and "MSE" in row]
    assert "diverged" in shown
    (other,) = [row for row in rows if "small" in row and "MSE" in row]
    assert "diverged" not in other


FRAMES: dict[str, dict[str, Any]] = {
    "seed": {"seeds": (0,)},
    "dataset, model and seed": {
        "datasets": ("ETTh1",),
        "models": ("iTransformer",),
        "seeds": (0,),
        "pairs": (),
        "exhaustive": False,
    },
}


@pytest.mark.parametrize("axis", FRAMES)
def test_frames_with_one(axis: str, tmp_path: Path) -> None:
    write_all(frames_of(**FRAMES[axis]), tmp_path)


def write_all(frames: Frames, folder: Path) -> None:
    registry.write_all("table", frames, folder / "tables")
    registry.write_all("figure", frames, folder / "figures")
    assert (folder / "tables" / "main.csv").exists()
    assert (folder / "figures" / "pareto.png").exists()
    # Every missing page has a reason.
    names = {"table": registry.TABLES, "figure": registry.FIGURES}
    listed = registry.not_made(frames, folder)
    for kind, every in names.items():
        for name in every:
            path = folder / f"{kind}s" / f"{name}.{registry.ENDINGS[kind][0]}"  # type: ignore[index]
            assert path.exists() != (f"| {kind} | `{name}` |" in listed), name
