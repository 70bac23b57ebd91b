"""Any kept file may be deleted or damaged: it is named, and the same command mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spat.pipeline.cache import DamagedError
from spat.pipeline.config import Config, load_files
from spat.pipeline.frames import COLUMNS
from spat.pipeline.runs import Run
from spat.pipeline.stages.collect import collect
from spat.pipeline.stages.grid import grid

ROOT = Path(__file__).parents[2]
RUN = Run("synthetic", "iTransformer", "tiny", "l48-h24", 0)
VOLATILE = ["wall_s", "seconds", "latency_ms", "latency_spread_ms", "memory_mb"]
MASK = "prune/masks/0.0/order0"
FILES = (
    *(f"pretrain/{name}" for name in ("model.safetensors", "architecture.json", "history.csv")),
    *(f"pretrain/{name}" for name in ("scores.parquet", "losses.npy", "forecasts.npz")),
    *("pretrain/metrics.json", "pretrain/kept/metrics.json", "pretrain/kept/digest"),
    *("score/scores.parquet", "score/maps.npz", "score/metrics.json"),
    *("select/selections.csv", "select/metrics.json", "prune/manifest.json"),
    *(f"{MASK}/{name}" for name in ("model.safetensors", "architecture.json", "history.csv")),
    *(f"{MASK}/{name}" for name in ("losses.npy", "validation_losses.npy", "forecasts.npz")),
    *(f"{MASK}/{name}" for name in ("untuned_losses.npy", "metrics.json", "digest")),
    *("robustness/robustness.parquet", "robustness/metrics.json"),
    *(f"robustness/kept/site0/uniform/scores/{name}" for name in ("metrics.json", "digest")),
    *("decide/selections.csv", "decide/metrics.json", "measure/metrics.json"),
    "transfer/synthetic2/metrics.json",
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGE: tuple[Callable[[Path], None], ...] = (flip, Path.unlink, cut, zero, empty)


def configured(results: Path) -> Config:
    smoke = load_files(ROOT / "config.yaml", ROOT / "workflow/experiments/smoke.yaml")
    block = smoke.grid[0].model_copy(update={"models": (RUN.model,)})
    return smoke.model_copy(update={"results": results, "grid": (block,)})


def finish(config: Config) -> dict[str, pd.DataFrame]:
    """Everything, as the frames show it."""
    grid(config, "*", minutes=9)
    collect(config)
    found = {n: pd.read_parquet(config.folder / "data" / f"{n}.parquet") for n in COLUMNS}
    found["history"] = found["history"].query("quantity != 'seconds'")
    return {n: frame.drop(columns=VOLATILE, errors="ignore") for n, frame in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, pd.DataFrame]]:
    config = configured(tmp_path_factory.mktemp("whole"))
    return config, finish(config)


def trained_at(config: Config) -> dict[str, int]:
    folder = config.folder / RUN.path
    places = (*folder.glob("prune/masks/*/*"), folder / "pretrain/kept")
    return {p.name + p.parent.name: (p / "metrics.json").stat().st_mtime_ns for p in places}


def copied(whole: Config, results: Path) -> Config:
    config = configured(results)
    shutil.copytree(whole.folder, config.folder)  # hard links are not kept
    kept = config.folder / RUN.path / "pretrain/kept"
    for path in kept.iterdir():
        if path.name != "digest":
            path.unlink()
            os.link(kept.parent / path.name, path)
    return config


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, DAMAGE[i % len(DAMAGE)]) for i, name in enumerate(FILES)],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_the_same_command_mends_it(
    name: str,
    damage: Callable[[Path], None],
    whole: tuple[Config, dict[str, Any]],
    tmp_path: Path,
) -> None:
    pristine, expected = whole
    config = copied(pristine, tmp_path)
    before = trained_at(config)
    path = config.folder / RUN.path / name
    damage(path)
    for _ in range(3):
        try:
            found = finish(config)
            break
        except (DamagedError, RuntimeError) as error:
            assert path.name in str(error)
            assert "run the same command again" in str(error)
    for frame, rows in expected.items():
        pd.testing.assert_frame_equal(found[frame], rows)
    # Only the network of the damaged folder was trained again.
    changed = {place for place, at in trained_at(config).items() if before[place] != at}
    assert changed <= {"order00.0" if name.startswith(MASK) else "keptpretrain"}
    if not name.startswith((MASK, "pretrain")):
        assert not changed
