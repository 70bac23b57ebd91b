"""The grid: which runs, in which order, with which settings."""

from typing import Any

import pytest

from spat.models.registry import MODELS
from spat.pipeline import runs
from spat.pipeline.config import Config, ConfigError, load
from spat.pipeline.runs import Run

RUN = Run("ETTh1", "iTransformer", "deep", "l96-h192", 3)


def config(*blocks: dict[str, Any], **sections: Any) -> Config:
    return load({"experiment": "test", "grid": list(blocks), **sections})


def test_a_path_names_a_run_and_back() -> None:
    assert RUN.path == "ETTh1/iTransformer-deep/l96-h192/seed3"
    assert Run.parse(RUN.path) == RUN
    dashed = Run("ETTh1", "PatchTST", "narrow-2", "l96-h96", 0)
    assert Run.parse(dashed.path) == dashed
    for model in MODELS:
        for variant in ("deep", "narrow-2"):
            named = Run("ETTh1", model, variant, "l96-h96", 0)
            assert Run.parse(named.path) == named


@pytest.mark.parametrize(
    "path",
    [
        *("", "ETTh1", "ETTh1/PatchTST/l96-h96/seed0", "a/b-c/l1-h2/seedx"),
        *("../b-c/l1-h2/seed0", "a/../l1-h2/seed0", "/a/b-c/l1-h2/seed0", "a/b-../l1-h2/seed0"),
        *("a/S-Mamba/../l1-h2/seed0", "a/S-Mamba-/../seed0", "a/S-Mamba-deep/seed0"),
        *("a/b-c/l1-h2/seed0/", "a/b-c/l1-h2/seed0/../..", "a/b-c/l1-h2/seed0\n"),
        *("a/b-c/l01-h2/seed0", "a/b-c/l1_0-h2/seed0", "a/b-c/l+1-h2/seed0", "a/b-c/l1-h2/seed 0"),
        *(
            "a/b-c/l1-h2/seed\u0661",
            "a/b-c/l-1-h2/seed0",
            "a/b-c d/l1-h2/seed0",
            "a/b-/l1-h2/seed0",
        ),
    ],
)
def test_other_paths_are_refused_by_name(path: str) -> None:
    with pytest.raises(ValueError, match="expected DATASET/MODEL-VARIANT/lLOOKBACK-hHORIZON"):
        Run.parse(path)


def test_seeds_depend_only_on_run_and_purpose() -> None:
    assert RUN.seed_for("weights") == Run.parse(RUN.path).seed_for("weights")
    others = {RUN.seed_for("order", 0), RUN.seed_for("order", 1), RUN.seed_for("weights")}
    others.add(Run("ETTh1", "iTransformer", "deep", "l96-h192", 4).seed_for("weights"))
    assert len(others) == 4
    assert all(0 <= seed < 2**63 for seed in others)


def test_a_block_is_a_product_with_the_datasets_own_shapes() -> None:
    planned = runs.plan(config({"datasets": ["ETTh1", "ILI"], "models": ["PatchTST", "DLinear"]}))
    assert len(planned) == 2 * 2 * 4
    assert {(p.run.dataset, p.run.setting) for p in planned} == {
        *(("ETTh1", f"l96-h{horizon}") for horizon in (96, 192, 336, 720)),
        *(("ILI", f"l36-h{horizon}") for horizon in (24, 36, 48, 60)),
    }


def test_only_models_with_attention_are_pruned_and_only_on_request() -> None:
    block = {"datasets": ["ETTh1"], "models": ["PatchTST", "DLinear"], "horizons": [96]}
    assert [p.prune for p in runs.plan(config(block))] == [True, False]
    assert [p.prune for p in runs.plan(config({**block, "prune": False}))] == [False, False]


def test_blocks_may_repeat_a_run_but_not_contradict_each_other() -> None:
    block = {"datasets": ["ETTh1"], "models": ["PatchTST"], "horizons": [96]}
    assert len(runs.plan(config(block, block))) == 1
    with pytest.raises(ConfigError, match=r"grid\.1: ETTh1/PatchTST-deep/l96-h96/seed0"):
        runs.plan(config(block, {**block, "orders": 3}))


def test_a_window_that_no_split_holds_is_refused_before_the_first_job() -> None:
    block = {"datasets": ["ETTh1"], "models": ["PatchTST"], "horizons": [96, 2881]}
    with pytest.raises(ConfigError, match=r"grid\.0: .*h2881.*2880 rows for validation, fewer"):
        runs.plan(config(block))
    few = {"synthetic": {"rows": 900}}
    block = {"datasets": ["synthetic"], "models": ["DLinear"], "horizons": [96]}
    with pytest.raises(ConfigError, match="90 rows for validation, fewer than the 96"):
        runs.plan(config(block, data=few))
    assert runs.plan(config({**block, "horizons": [90]}, data=few))


def test_targets_need_the_shape_that_the_model_allows() -> None:
    both = config(
        {"datasets": ["ETTh1"], "models": ["PatchTST", "Transformer"], "horizons": [96]},
        transfer={"pairs": [["ETTh1", "ETTh2"], ["ETTh1", "Weather"], ["ETTh2", "ETTh1"]]},
    )
    targets = {p.run.model: runs.targets(both, p.run) for p in runs.plan(both)}
    assert targets == {"PatchTST": ("ETTh2", "Weather"), "Transformer": ("ETTh2",)}


def test_a_variant_changes_the_registrys_row() -> None:
    block = {"datasets": ["ETTh1"], "models": ["iTransformer"], "variants": ["deep", "narrow"]}
    narrow = {"narrow": {"base": "deep", "model": {"d_model": 32}}}
    mine = config({**block, "horizons": [96]}, variants=narrow)
    deep, changed = (runs.setup_of(mine, p.run).settings for p in runs.plan(mine))
    assert changed.d_model == 32
    assert (changed.e_layers, changed.n_heads) == (deep.e_layers, deep.n_heads)


@pytest.mark.parametrize(("own", "of_all", "epochs"), [(3, 7, 3), (None, 7, 7), (None, None, 10)])
def test_epochs_of_a_variant_come_before_those_of_all(
    own: int | None, of_all: int | None, epochs: int
) -> None:
    block = {
        "datasets": ["ETTh1"],
        "models": ["iTransformer"],
        "variants": ["short"],
        "horizons": [96],
    }
    mine = config(block, variants={"short": {"epochs": own}}, training={"epochs": of_all})
    assert [runs.setup_of(mine, p.run).recipe.epochs for p in runs.plan(mine)] == [epochs]


def test_a_variant_that_changes_nothing_known_is_named() -> None:
    block = {"datasets": ["ETTh1"], "models": ["iTransformer"], "variants": ["odd"]}
    mine = config({**block, "horizons": [96]}, variants={"odd": {"model": {"depth": 3}}})
    with pytest.raises(ConfigError, match=r"variants\.odd .*'depth' is not one of d_model"):
        runs.plan(mine)


@pytest.mark.parametrize(
    ("model", "lookback", "changes", "problem"),
    [
        ("PatchTST", 1, {}, "lookback 1 with stride 8 holds no patch of 16 steps"),
        ("PatchTST", 96, {"patch_len": 200}, "holds no patch of 200 steps"),
        ("iTransformer", 96, {"d_model": 4, "n_heads": 8}, "n_heads 8 exceeds d_model 4"),
        ("Transformer", 96, {"d_model": 4}, "n_heads 8 exceeds d_model 4"),
        ("iTransformer", 96, {"d_model": 10_000, "e_layers": 9}, "more than can be trained"),
        ("PatchTST", 96, {"d_ff": 10_000, "d_model": 9_000, "e_layers": 9}, "more than can be tr"),
        ("S-Mamba", 96, {"d_model": 10_000, "expand": 100}, "more than can be trained"),
        ("Nonstationary", 96, {"projector_width": 10_000, "projector_layers": 100}, "more than"),
        ("GPT4TS-random", 96, {"llm_width": 10_000, "llm_layers": 100}, "more than can be trained"),
        ("GPT4TS-random", 96, {"llm_heads": 800}, "llm_heads 800 exceeds llm_width 768"),
        ("GPT4TS-gpt2", 96, {"llm_layers": 13}, "gpt2 has 12; choose at most 12"),
        ("GPT4TS-smollm2", 96, {"llm_layers": 31}, "smollm2 has 30; choose at most 30"),
        ("DLinear", 96, {"moving_average": 24}, "moving_average 24: choose an odd width"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_job(
    model: str, lookback: int, changes: dict[str, int], problem: str
) -> None:
    block = {"datasets": ["ETTh1"], "models": [model], "variants": ["odd"], "horizons": [96]}
    block |= {"lookback": lookback, "prune": False}
    mine = config(block, variants={"odd": {"model": changes}})
    with pytest.raises(ConfigError, match=rf"grid\.0: ETTh1/{model}-odd/.*{problem}"):
        runs.plan(mine)


def test_time_features_need_time_stamps() -> None:
    block = {"datasets": ["Solar"], "models": ["Transformer"], "variants": ["marked"]}
    marked = {"marked": {"base": "published", "model": {"time_features": True}}}
    mine = config({**block, "horizons": [96]}, variants=marked)
    with pytest.raises(ConfigError, match="the dataset has no time stamps"):
        runs.plan(mine)
