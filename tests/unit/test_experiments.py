"""Every shipped experiment can be loaded and planned, and agrees with its comments."""

from pathlib import Path

import pytest

from spat.data.registry import DATASETS
from spat.models.registry import MODELS
from spat.pipeline import digests, runs
from spat.pipeline.config import Config, load_files
from spat.pipeline.runs import Planned
from spat.scoring.names import CRITERIA
from spat.tasks.setting import Window

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "workflow" / "experiments").glob("*.yaml"))


def experiment(name: str) -> tuple[Config, tuple[Planned, ...]]:
    files = [ROOT / "config.yaml"]
    if name != "default":
        files.append(ROOT / "workflow" / "experiments" / f"{name}.yaml")
    config = load_files(*files)
    return config, runs.plan(config)


def test_all_experiments_are_listed() -> None:
    generated = ["offline", "planted", "smoke", "unplanted"]
    real = [
        *(
            "ablation",
            "architectures",
            "comparison",
            "ili",
            "lookback",
            "paper",
            "quick",
            "reproduction",
            "rivals",
            "scratch",
            "zeroshot",
        ),
        "precision",
        "text",
        "vision",
    ]
    assert sorted([*generated, *real]) == NAMES


@pytest.mark.parametrize("name", ["default", *NAMES])
def test_it_has_its_own_folder_and_every_run_resolves(name: str) -> None:
    config, planned = experiment(name)
    assert config.experiment == name
    assert planned
    for p in planned:
        assert "recipe" in digests.settings(config, "pretrain", p.run)


def test_default_is_the_laptop_run() -> None:
    config, planned = experiment("default")
    assert {(p.run.setting, p.run.seed) for p in planned} == {("l96-h96", 0)}
    pruned = {(p.run.dataset, p.run.model) for p in planned if p.prune}
    assert pruned == {(d, m) for d in ("ETTh1", "ETTh2") for m in ("iTransformer", "PatchTST")}
    widths = {p.run.path: runs.setup_of(config, p.run).settings for p in planned if p.prune}
    assert [(h.d_model, h.e_layers) for h in widths.values()] == [
        (256, 4),
        (16, 4),
        (128, 4),
        (16, 4),
    ]
    assert config.transfer.pairs == (("ETTh1", "ETTh2"), ("ETTh2", "ETTh1"))


def test_quick_is_part_of_the_default_run_with_the_same_errors() -> None:
    (quick, part), (default, whole) = experiment("quick"), experiment("default")
    assert {p.run.model for p in part} == {"iTransformer", "DLinear"}
    assert set(part) < set(whole)
    for planned in part:
        for stage in ("pretrain", "finetune", "measure"):
            settings = [digests.settings(c, stage, planned.run) for c in (quick, default)]
            assert settings[0] == settings[1], (planned.run.path, stage)
    assert quick.pruning.site == default.pruning.site
    assert not any(runs.targets(quick, planned.run) for planned in part)


def test_offline_is_the_default_on_generated_data() -> None:
    default, offline = experiment("default")[0], experiment("offline")[0]
    renamed = {"ETTh1": "synthetic", "ETTh2": "synthetic2"}
    for own, real in zip(offline.grid, default.grid, strict=True):
        assert own.datasets == tuple(renamed[d] for d in real.datasets)
        assert own.model_copy(update={"datasets": real.datasets}) == real
    assert offline.transfer.pairs == tuple(
        (renamed[a], renamed[b]) for a, b in default.transfer.pairs
    )
    same = set(type(default).model_fields) - {"experiment", "grid", "transfer"}
    assert all(getattr(offline, key) == getattr(default, key) for key in same)


@pytest.mark.parametrize("name", ["smoke", "offline", "planted", "unplanted"])
def test_no_experiment_mixes_generated_and_real_data(name: str) -> None:
    config, planned = experiment(name)
    used = {p.run.dataset for p in planned} | {d for pair in config.transfer.pairs for d in pair}
    assert all(DATASETS[d].format == "synthetic" for d in used)


def test_unplanted_is_planted_without_its_coupling() -> None:
    planted, unplanted = experiment("planted")[0], experiment("unplanted")[0]
    assert (planted.data.synthetic.coupling, unplanted.data.synthetic.coupling) == (0.9, 0.0)
    apart = {"experiment", "data"}
    same = set(type(planted).model_fields) - apart
    assert all(getattr(planted, key) == getattr(unplanted, key) for key in same)
    synthetic = planted.data.synthetic.model_copy(update={"coupling": 0.0})
    assert planted.data.model_copy(update={"synthetic": synthetic}) == unplanted.data
    assert len(runs.studied(planted)) == 3


def test_reproduction_is_dense_and_published() -> None:
    config, planned = experiment("reproduction")
    assert not any(p.prune for p in planned)
    assert {p.run.variant for p in planned} == {"published"}
    assert {p.run.model for p in planned} == {"iTransformer", "PatchTST", "DLinear"}
    assert (
        runs.setup_of(
            config, runs.Run.parse("ETTh1/PatchTST-published/l96-h96/seed0")
        ).settings.d_model
        == 512
    )


def test_rivals_are_dense_on_one_cell_and_tuned_with_five_seeds() -> None:
    config, planned = experiment("rivals")
    assert not any(p.prune for p in planned)
    assert {(p.run.dataset, p.run.setting) for p in planned} == {("ETTh1", "l96-h96")}
    without_sites = {name for name, model in MODELS.items() if model.role != "attention"}
    assert without_sites <= {p.run.model for p in planned}
    seeds = {p.run.seed for p in planned if p.run.path.startswith("ETTh1/DLinear-tuned")}
    assert seeds == {0, 1, 2, 3, 4}
    recipe = runs.setup_of(config, runs.Run.parse("ETTh1/FITS-published/l96-h96/seed0")).recipe
    assert (recipe.epochs, recipe.patience) == (50, 20)


def test_paper_is_nine_datasets_four_horizons_two_variants_three_seeds() -> None:
    _, planned = experiment("paper")
    assert sum(p.prune for p in planned) == 9 * 4 * 2 * 2 * 3
    assert {p.run.seed for p in planned if p.prune} == {0, 1, 2}
    assert {Window.parse(p.run.setting).horizon for p in planned if p.run.dataset == "ILI"} == {
        *(24, 36, 48, 60)
    }


def test_ablation_asks_for_every_criterion_every_mask_and_ten_seeds() -> None:
    config, planned = experiment("ablation")
    assert set(config.pruning.site.criteria) == set(CRITERIA)
    assert config.pruning.head.criteria == ("send", "random", "michel", "magnitude")
    assert config.pruning.exhaustive
    assert config.pruning.draws >= 10
    for dataset in ("ETTh1", "ETTh2"):
        cell = [
            p for p in planned if p.run.path.startswith(f"{dataset}/iTransformer-deep128/l96-h96/")
        ]
        assert [p.run.seed for p in cell] == list(range(10))
        assert [p.orders for p in cell] == [3] + 9 * [1]
    assert config.pruning.scratch
    pruned = [p.run for p in planned if p.prune and p.run.model == "iTransformer"]
    assert {runs.setup_of(config, run).settings.d_model for run in pruned} == {128}
