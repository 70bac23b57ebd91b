"""Variants that are controls: their names, the chosen values, and their sizes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from frame_builder import wide
from planted import FULL, runs
from planted import results as planted_results
from small_models import flops_of, prune

from spat.attention.mask import Mask
from spat.data.registry import DATASETS
from spat.models.registry import Shape, build
from spat.pipeline.config import load_files
from spat.pipeline.runs import Run, control_of, plan, setup_of
from spat.study import controls
from spat.study.pages.reader import Frames
from spat.surgery import cut
from spat.training.device import costs

ROOT = Path(__file__).parents[2]
CONFIG = load_files(ROOT / "config.yaml", ROOT / "workflow" / "experiments" / "ablation.yaml")
CONTROLS = sorted({p.run for p in plan(CONFIG) if control_of(p.run.variant)})


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("deep", None),
        ("deep128", None),
        ("deep128+narrow", "deep128"),
        ("a+b0.1", "a"),
        ("a+", None),
    ],
)
def test_a_plus_in_the_name_makes_a_variant_a_control(variant: str, expected: str | None) -> None:
    assert control_of(variant) == expected


def frame(validation: dict[str, float], test: dict[str, float], seeds: int = 1):  # type: ignore[no-untyped-def]
    """Dense rows of variants with these errors."""
    of = [
        {**keys, "variant": variant}
        for keys in runs(seeds=seeds)
        for variant in validation
    ]  # fmt: skip
    rows = planted_results(of, lambda k, m, o: test[k["variant"]], masks=[FULL], phase="dense")
    validated = rows["split"] == "validation"
    rows.loc[validated, "mse"] = rows.loc[validated, "variant"].map(validation)
    return rows


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    frames = Frames.of(results=wide("results", rows))
    return controls.tuned(frames.results, frames.controls)


def test_validation_chooses_the_value_and_not_test() -> None:
    names = ("deep", "deep+dropout0.2", "deep+dropout0.3", "deep+narrow")
    rows = frame(
        dict(zip(names, (0.6, 0.5, 0.4, 0.9), strict=True)),
        dict(zip(names, (1.0, 2.0, 3.0, 4.0), strict=True)),
    )
    chosen = tuned(rows).set_index("kind")
    assert chosen[["value", "mse"]].to_dict("index") == {
        "dropout": {"value": "0.3", "mse": 3.0},
        "narrow": {"value": "", "mse": 4.0},
    }
    assert set(chosen["variant"]) == {"deep"} and set(chosen["split"]) == {"test"}


def test_the_unchanged_variant_is_a_value_of_every_kind_with_values() -> None:
    names = ("deep", "deep+dropout0.2", "deep+sam0.1", "deep+narrow")
    rows = frame(
        dict(zip(names, (0.4, 0.5, 0.3, 0.9), strict=True)),
        dict(zip(names, (1.0, 2.0, 3.0, 4.0), strict=True)),
    )
    chosen = tuned(rows).set_index("kind")[["value", "mse"]].to_dict("index")
    assert chosen == {
        "dropout": {"value": "base", "mse": 1.0},
        "sam": {"value": "0.1", "mse": 3.0},
        "narrow": {"value": "", "mse": 4.0},
    }


def test_each_seed_and_each_variant_has_its_own_choice() -> None:
    names = ("deep+sam0.05", "deep+sam0.2", "wide+sam0.05")
    rows = frame(
        dict(zip(names, (0.5, 0.4, 0.1), strict=True)),
        dict.fromkeys(names, 1.0),
        seeds=2,
    )
    rows.loc[(rows["seed"] == 1) & (rows["variant"] == names[1]), "mse"] = 0.6
    chosen = tuned(rows).set_index(["variant", "seed"])["value"]
    assert chosen.to_dict() == {
        ("deep", 0): "0.2", ("deep", 1): "0.05", ("wide", 0): "0.05", ("wide", 1): "0.05",
    }  # fmt: skip


def test_a_value_that_diverged_is_not_chosen() -> None:
    names = ("deep+sam0.05", "deep+sam0.2")
    rows = frame({names[0]: np.nan, names[1]: 9.0}, {names[0]: np.nan, names[1]: 9.0})
    assert tuned(rows)["value"].tolist() == ["0.2"]
    only = rows[rows["variant"] == names[0]]
    assert tuned(only)["mse"].isna().all() and len(tuned(only)) == 1


def test_without_controls_the_table_is_empty() -> None:
    assert tuned(frame({"deep": 1.0}, {"deep": 1.0})).empty


# those of the ablation


def test_the_ablation_has_controls_on_both_files_and_three_seeds() -> None:
    cells = {(run.dataset, run.setting, run.seed) for run in CONTROLS}
    assert cells == {(d, "l96-h96", s) for d in ("ETTh1", "ETTh2") for s in range(3)}
    kinds = {run.variant.removeprefix("deep128+") for run in CONTROLS}
    assert kinds == {"narrow", "dropout0.2", "dropout0.3", "sam0.05", "sam0.2"}
    planned = {p.run: p.prune for p in plan(CONFIG)}
    assert not any(planned[run] for run in CONTROLS)


@pytest.mark.parametrize("run", CONTROLS, ids=lambda run: run.path)
def test_a_control_changes_the_setting_in_its_name(run: Run) -> None:
    base = Run(run.dataset, run.model, "deep128", run.setting, run.seed)
    assert base in {p.run for p in plan(CONFIG) if p.prune}
    setups = (setup_of(CONFIG, r) for r in (run, base))
    control, original = ({**asdict(f.settings), **asdict(f.recipe)} for f in setups)
    changed = {name for name in control if control[name] != original[name]}
    kind = run.variant.split("+")[1]
    if kind == "narrow":
        assert changed == {"d_model", "d_ff"}
    elif kind.startswith("dropout"):
        assert changed == {"dropout"} and control["dropout"] == float(kind.removeprefix("dropout"))
    else:
        assert changed == {"sam_rho"} and control["sam_rho"] == float(kind.removeprefix("sam"))


@pytest.mark.parametrize("dataset", ["ETTh1", "ETTh2"])
def test_the_narrow_model_costs_as_much_as_the_model_without_attention(dataset: str) -> None:
    runs_of = [Run(dataset, "iTransformer", v, "l96-h96", 0) for v in ("deep128", "deep128+narrow")]
    shape = Shape(96, 96, DATASETS[dataset].channels)
    emptied, narrow = (build(r.model, setup_of(CONFIG, r).settings, shape) for r in runs_of)
    prune(emptied, Mask.empty(cut.heads_of(emptied)))
    assert costs.parameters(narrow) == pytest.approx(costs.parameters(emptied), rel=0.025)
    assert flops_of(narrow) == pytest.approx(flops_of(emptied), rel=0.025)
    assert cut.heads_of(narrow) == (8, 8, 8, 8)
