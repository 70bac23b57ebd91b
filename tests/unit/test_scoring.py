"""The contract of every criterion on every model, and the frame of scores."""

from __future__ import annotations

import importlib
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scoring_cases import ATTENTIVE, batches, small, windows
from small_models import sized

from spat.models.registry import MODELS, Shape, build
from spat.pipeline.frames import RUN, checked
from spat.pipeline.scores_frame import aggregate, send_train
from spat.scoring.names import CRITERIA, HEAD_CRITERIA, STATISTICS
from spat.scoring.probe import loss_drops
from spat.scoring.scores import score
from spat.scoring.send import score_send

COMPUTED = tuple(name for name, row in CRITERIA.items() if row.needs != "draws")


@cache
def trajectory(name: str) -> pd.DataFrame:
    one = score_send(small(name), windows(), batches(32))
    return pd.concat([one.assign(epoch=1), one.assign(epoch=2, value=3 * one["value"])])


@cache
def scored(name: str, size: int) -> pd.DataFrame:
    model = small(name)
    drops = loss_drops(model, windows(), [torch.arange(30)])
    return score(model, windows(), batches(size), validation=drops, trajectory=trajectory(name))


def by_place(frame: pd.DataFrame) -> pd.Series:
    return frame.set_index(["criterion", "site", "head"])["value"]


@pytest.mark.parametrize("name", ATTENTIVE)
@pytest.mark.parametrize("criterion", [*COMPUTED, *STATISTICS])
def test_every_criterion_scores_every_site_of_every_model(name: str, criterion: str) -> None:
    model = small(name)
    frame = aggregate(scored(name, 32))
    frame = frame[frame["criterion"] == criterion]
    row = CRITERIA.get(criterion) or STATISTICS[criterion]
    expected = [
        (index, site.name, head)
        for index, site in enumerate(model.sites())
        for head in range(-1, site.heads if row.heads else 0)
    ]
    found = sorted(frame[["site", "name", "head"]].itertuples(index=False, name=None))
    assert found == sorted(expected)
    assert np.isfinite(frame["value"]).all()
    if row.finish != "complement" and not criterion.startswith("depth"):
        assert np.ptp(frame["value"]) > 0  # it tells sites apart


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_frame_has_its_schema_and_a_value_per_batch(name: str) -> None:
    frame = scored(name, 32)
    keys = dict.fromkeys(RUN, 0) | {"epoch": 3}
    assert len(checked("scores", frame.assign(**keys))) == len(frame)
    assert set(frame["criterion"]) == {*COMPUTED, *STATISTICS}
    of = frame.groupby("criterion")["batch"].unique()
    for criterion, row in (CRITERIA | STATISTICS).items():
        if row.needs in ("probe", "group", "ablation"):
            assert sorted(of[criterion]) == [-1, 0, 1]
        elif row.needs != "draws":
            assert list(of[criterion]) == [-1]


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_scores_do_not_depend_on_the_batch_size(name: str, size: int) -> None:
    pd.testing.assert_frame_equal(
        aggregate(scored(name, size)), aggregate(scored(name, 32)), check_exact=True
    )


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_nor_on_the_size_of_a_pass(name: str, size: int) -> None:
    model = small(name)
    found = by_place(aggregate(score(model, windows(), batches(32), size=size)))
    expected = by_place(aggregate(scored(name, 32)))[found.index]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_scores_of_single_windows_average_to_the_whole(name: str) -> None:
    frame = scored(name, 1)
    single = by_place(frame[frame["batch"] >= 0])
    mean = single.groupby(level=[0, 1, 2]).mean()
    whole = by_place(aggregate(frame))[mean.index]
    linear = [
        name in STATISTICS or CRITERIA[name].finish in ("mean", "negative", "complement")
        for name in mean.index.get_level_values(0)
    ]
    np.testing.assert_allclose(mean[linear], whole[linear], rtol=1e-9, atol=1e-15)
    # A mean of absolute values, roots or variances is another thing.
    assert (abs(mean["taylor"] / whole["taylor"] - 1) > 1e-3).any()
    assert (abs(mean["flap"] / whole["flap"] - 1) > 1e-3).all()


@pytest.mark.parametrize("name", ATTENTIVE)
def test_float32_models_score_alike(name: str) -> None:
    single = score(small(name, torch.float32), windows(torch.float32), batches(32))
    found = by_place(aggregate(single))
    expected = by_place(aggregate(scored(name, 32)))[found.index]
    scale = expected.abs().groupby(level=0).transform("max")
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def test_send_alone_is_the_send_of_the_pass() -> None:
    alone = score_send(small("PatchTST"), windows(), batches(7))
    whole = aggregate(scored("PatchTST", 32))
    whole = whole[whole["criterion"] == "send"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, whole, check_exact=True)


def test_send_train_is_the_mean_over_epochs() -> None:
    frame = aggregate(scored("Transformer", 32))
    found = by_place(frame)
    np.testing.assert_allclose(found["send_train"], 2 * found["send"])
    with pytest.raises(ValueError, match="holds no `send`"):
        send_train(trajectory("Transformer").assign(criterion="michel"))


@pytest.mark.parametrize("name", [n for n, m in MODELS.items() if m.role != "attention"])
def test_a_model_without_attention_has_no_scores(name: str) -> None:
    model = build(name, sized(name), Shape(24, 12, 3))
    assert score(model, windows(torch.float32), batches(32)).empty
    assert score_send(model, windows(torch.float32), batches(32)).empty


def test_only_what_was_asked_for() -> None:
    frame = score(small("iTransformer"), windows(), batches(32), ["michel", "random"])
    assert set(frame["criterion"]) == {"michel", "uniformity"}


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("sned", "'sned' is not one of send, send_abs"),
        ("loss_drop_val", "'loss_drop_val' needs `validation`"),
        ("send_train", "'send_train' needs `trajectory`"),
    ],
)
def test_what_cannot_be_scored_is_an_error(criterion: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(small("iTransformer"), windows(), batches(32), [criterion])
    with pytest.raises(ValueError, match="at least one batch"):
        score(small("iTransformer"), windows(), [])


@pytest.mark.parametrize("criterion", ["send", "loss_drop"])
def test_a_plain_module_is_told_what_it_lacks(criterion: str) -> None:
    plain = torch.nn.Linear(3, 3)
    with pytest.raises(TypeError, match="Linear is not a Forecaster"):
        score(plain, windows(), batches(8), [criterion])  # type: ignore[arg-type]


def test_aggregation_refuses_duplicates_and_gaps() -> None:
    frame = scored("iTransformer", 32)
    with pytest.raises(ValueError, match=r"more than one value .* for send, site 0"):
        aggregate(pd.concat([frame, frame]))
    lost = frame.drop(frame.index[(frame["batch"] == -1) & (frame["criterion"] == "flap")])
    with pytest.raises(ValueError, match=r"only values of single batches for flap"):
        aggregate(lost)


def test_each_row_names_what_computes_it() -> None:
    for name, row in (CRITERIA | STATISTICS).items():
        assert row.name == name and row.source and row.description
        if row.needs == "draws":
            assert not row.function
            continue
        module, function = row.function.split(".")
        assert getattr(importlib.import_module(f"spat.scoring.{module}"), function).__doc__
        criteria = importlib.import_module("spat.scoring.criteria")
        assert getattr(criteria, row.finish).__doc__
    assert {"send", "random", "michel", "magnitude"} <= set(HEAD_CRITERIA) < set(CRITERIA)


@pytest.mark.parametrize("module", ["registry", "tidy"])
def test_names_and_frames_need_no_torch(module: str) -> None:
    code = f"import sys, spat.scoring.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ATTENTIVE)
def test_scores_on_a_gpu_are_those_on_the_cpu(name: str) -> None:
    model = small(name).cuda()
    there = windows(device="cuda")
    cut = [batch.cuda() for batch in batches(32)]
    found = by_place(aggregate(score(model, there, cut)))
    expected = by_place(aggregate(scored(name, 32)))[found.index]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert loss_drops(model, there, cut).shape == (len(model.sites()), 40)
