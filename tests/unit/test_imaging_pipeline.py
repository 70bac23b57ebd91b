"""Runs of the task imaging: their settings, and all stages on a few tiny images."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from image_files import idx

from spat.data.images import load
from spat.data.registry import IMAGES, DataError, File, Images, Rows
from spat.pipeline import config as configuration
from spat.pipeline import digests, expected, runs
from spat.pipeline.config import Config, ConfigError
from spat.pipeline.runs import Run
from spat.pipeline.stages import report
from spat.pipeline.stages.collect import collect
from spat.pipeline.stages.grid import grid
from spat.pipeline.tracking import entries
from spat.study.pages.reader import Frames
from spat.study.pages.registry import draw, figures, not_made, rendered
from spat.surgery import storage
from spat.tasks.setting import Size

NAME = "FashionMNIST"
SITES = 2
HEIGHT, WIDTH, CLASSES = 7, 14, 3
BLOCK = {"datasets": [NAME], "models": ["ViT"], "seeds": [0]}


def config(tmp_path: Path, **changes: Any) -> Config:
    """Two sites, each mask fine-tuned for an epoch."""
    tiny = {"d_model": 8, "d_ff": 8, "n_heads": 2, "e_layers": SITES, "batch_size": 16}
    values = {
        "experiment": "tiny",
        "results": str(tmp_path / "results"),
        "grid": [{**BLOCK, "variants": ["tiny"]}],
        "variants": {"tiny": {"model": tiny}},
        "data": {"cache": str(tmp_path / "cache"), "mirrors": [str(tmp_path / "copies")]},
        "training": {"device": "cpu", "epochs": 2, "patience": 2},
        "scoring": {"batches": 2, "batch_size": 8},
        "pruning": {
            "site": {
                "criteria": ["send", "random", "michel", "loss_drop_val"],
                "ratios": [0.5, 1.0, *(f"auto:{r}" for r in ("gap", "one_se", "validation"))],
            },
            "draws": 2,
            "exhaustive": True,
        },
        "finetune": {"epochs": 1},
        "robustness": {"runs": ["*"], "manipulations": ["uniform"], "finetune": True},
        "measure": {"batch_sizes": [2], "repeats": 2},
        "tracking": {"enabled": False},
        "statistics": {"bootstrap": 100},
    }
    return configuration.load({**values, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Run]:
    """A finished run on images that are brighter for later classes."""
    folder = tmp_path_factory.mktemp("imaging")
    generator = np.random.default_rng(0)
    files = []
    (folder / "copies").mkdir()
    for part, count in (("train", 72), ("test", 24)):
        labels = generator.integers(0, CLASSES, count)
        noise = generator.integers(0, 60, (count, HEIGHT, WIDTH))
        for kind, values in (("images", noise + 70 * labels[:, None, None]), ("labels", labels)):
            content = idx(values)
            (folder / "copies" / f"{part}-{kind}").write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            files.append(File(NAME, f"{part}-{kind}", (), (digest,)))
    row = Images(NAME, tuple(files), HEIGHT, WIDTH, CLASSES, Rows(48, 24, 24), NAME)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(IMAGES, NAME, row)
        own = config(folder)
        assert grid(own, "*", minutes=10) == 1
        collect(own)
        (planned,) = runs.plan(own)
        yield own, planned.run


def test_the_setting_is_the_size_of_the_images(tmp_path: Path) -> None:
    (planned,) = runs.plan(config(tmp_path))
    assert planned.run.path == "FashionMNIST/ViT-tiny/28x28/seed0"
    assert Run.parse(planned.run.path) == planned.run
    assert Size.parse("28x28") == (28, 28)
    with pytest.raises(ValueError, match="setting 'l96-h96': expected HEIGHTxWIDTH"):
        Size.parse("l96-h96")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": [{**BLOCK, "models": ["PatchTST"]}]}, "an experiment has one task"),
        ({"grid": [BLOCK, {"datasets": ["ETTh1"], "models": ["DLinear"]}]}, "one task"),
        ({"grid": [{**BLOCK, "horizons": [96]}]}, "grid.0: FashionMNIST has images, which have no"),
        ({"grid": [{**BLOCK, "lookback": 96}]}, "grid.0: FashionMNIST has images, which have no"),
        ({"grid": [{**BLOCK, "variants": ["published"]}]}, "no row for variant published, Fashion"),
        ({"transfer": {"pairs": [["ETTh1", NAME]]}}, "'FashionMNIST' is not one of ETTh1"),
        ({"variants": {"tiny": {"model": {"patch_size": 5}}}}, "patch_size 5 does not divide"),
    ],
)
def test_impossible_configurations_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        runs.plan(config(tmp_path, **changes))


def test_a_run_depends_on_the_code_of_its_own_task() -> None:
    of_images, of_windows = (set(digests.sources("pretrain", m)) for m in ("ViT", "PatchTST"))
    own = {"tasks/imaging.py", "stages/imaging.py", "data/images.py", "models/vit.py"}
    other = {"tasks/forecasting.py", "stages/forecasting.py", "data/windows.py"}

    def ends(paths: set[str]) -> set[str]:
        return {"/".join(Path(path).parts[-2:]) for path in paths}

    assert own <= ends(of_images) and not other & ends(of_images)
    assert other <= ends(of_windows) and not own & ends(of_windows)


def test_the_expected_time_grows_with_the_sites(tmp_path: Path) -> None:
    four, two = (
        expected.epoch_seconds(own, runs.plan(own)[0].run)
        for own in (
            config(tmp_path, grid=[{**BLOCK, "variants": ["deep"]}]),
            config(tmp_path, variants={"tiny": {"model": {"e_layers": 2}}}),
        )
    )
    assert four == pytest.approx(2 * two)


def test_all_stages(finished: tuple[Config, Run]) -> None:
    own, run = finished
    assert run.setting == "7x14"
    frames = {n: pd.read_parquet(own.folder / "data" / f"{n}.parquet") for n in ("measurements",)}
    measured = frames["measurements"]
    assert set(measured["metric"]) == {"cross_entropy", "error_rate"}
    assert set(measured["task"]) == {"imaging"} and set(measured["setting"]) == {"7x14"}
    assert set(measured["mask"]) == {"1.1", "0.1", "1.0", "0.0"}
    assert np.isfinite(measured["value"]).all()
    network = storage.load(runs.folder(own, run, "prune") / "masks" / "0.1" / "order0")
    assert [site.attention is None for site in network.sites()] == [True, False]
    # The robustness of the sites is measured in the task's metric.
    robustness = pd.read_parquet(own.folder / "data" / "robustness.parquet")
    assert {"cross_entropy", "leave_one_out", "send"} <= set(robustness["quantity"])


def test_prepared_images_are_checked(finished: tuple[Config, Run], tmp_path: Path) -> None:
    path = runs.prepared_file(finished[0], NAME)
    assert load(path).borders.validation == (48, 72)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="not prepared images"):
        load(damaged)


def test_pages_are_in_the_words_of_the_task(finished: tuple[Config, Run]) -> None:
    own, _ = finished
    frames = Frames.load(own.folder / "data", own.statistics)
    # Any number of the tables may have the digits of the number of the paper.
    foreign = re.compile(
        r"\b(MSE|MAE|windows?|horizons?|lookback|forecast\w*)\b|PatchTST|2505\.08768", re.IGNORECASE
    )
    for name in ("main", "better", "efficiency", "quality", "robustness", "criteria"):
        made = rendered(name, frames)
        assert not foreign.search(made["md"]), name
        assert not foreign.search(made["csv"]), name
    main = rendered("main", frames)["md"]
    assert "| Cross entropy |" in main and "| Error rate |" in main
    assert "send_window" in frames.words.text("send_window")
    for name in ("forest", "pareto", "history", "sites_removed"):
        assert not foreign.search(frames.words.page(figures()[name]).caption), name
    from matplotlib.text import Text

    shown = {text.get_text() for text in draw("sites_removed", frames).findobj(Text)}  # type: ignore[union-attr]
    assert "Cross entropy vs control (%)" in shown
    assert not any(foreign.search(text) for text in shown)
    assert "forecaster" in not_made(frames, own.folder)  # the table `precision` needs them


def test_loss_curves_and_tracking(finished: tuple[Config, Run]) -> None:
    own, run = finished
    assert report.loss_curves(own, run) is not None
    keys = {point.key for point in entries.parent(own, run).points}
    assert {"test_cross_entropy", "test/error_rate"} <= keys
    masks = entries.children(own, run, "prune")
    changes = {point.key for entry in masks for point in entry.points}
    assert "test_cross_entropy_change_percent" in changes
