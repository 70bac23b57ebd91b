"""Every criterion on every model, and the frame of scores."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scoring_cases import ATTENTIVE, MIXING, batches, score_frame, small, traces, windows
from small_models import LOSSES, sized

from spat.attention.views import Heads, Mixing, Output, Residual
from spat.models.registry import MODELS, Shape, build
from spat.pipeline.frames import RUN, checked
from spat.pipeline.scores_frame import aggregate, joined, send_train
from spat.scoring import criterion as registration
from spat.scoring.criterion import RULES
from spat.scoring.names import CRITERIA, HEAD_CRITERIA, PASS, STATISTICS, VIEWS, offered
from spat.scoring.probe import loss_drops

COMPUTED = tuple(name for name, row in CRITERIA.items() if row.origin != "draws")
VIEW = {"Output": Output, "Residual": Residual, "Heads": Heads, "Mixing": Mixing}
# Delays are chosen by their correlation, so rounding may change the choice.
CHOOSING = ("Autoformer",)


def places(name: str, view: str, heads: bool) -> list[tuple[int, str, int]]:
    """Index, name and head (-1 for the site) of each score of a criterion."""
    shown = [t.offers(VIEW[view]) for t in traces(small(name), windows().batch(torch.arange(2)))]
    sites = small(name).sites()
    assert all(shown) or view not in MODELS[name].views
    return [
        (index, site.name, head)
        for index, site in enumerate(sites)
        # Of one head there are scores where it is a head among channels or steps.
        for head in range(-1, site.heads if heads and site.kind in ("self", "cross") else 0)
        if shown[index]
    ]


@cache
def trajectory(name: str) -> pd.DataFrame:
    one = aggregate(score_frame(small(name), windows(), batches(32), ["send"], statistics=False))
    return pd.concat([one.assign(epoch=1), one.assign(epoch=2, value=3 * one["value"])])


@cache
def scored(name: str, size: int) -> pd.DataFrame:
    model = small(name)
    drops = loss_drops(model, windows(), [torch.arange(30)], LOSSES)
    scores = score_frame(model, windows(), batches(size), validation=drops)
    return joined([scores, send_train(trajectory(name))] if name in MIXING else [scores])


def by_place(frame: pd.DataFrame) -> pd.Series:
    return frame.set_index(["criterion", "site", "head"])["value"]


@pytest.mark.parametrize("name", ATTENTIVE)
@pytest.mark.parametrize("criterion", [*COMPUTED, *STATISTICS])
def test_every_criterion_scores_every_site_of_every_model(name: str, criterion: str) -> None:
    frame = aggregate(scored(name, 32))
    frame = frame[frame["criterion"] == criterion]
    row = CRITERIA.get(criterion) or STATISTICS[criterion]
    expected = places(name, row.needs, row.heads)
    if name not in MIXING and row.origin == "pretraining":
        expected = []
    scored_places = sorted(frame[["site", "name", "head"]].itertuples(index=False, name=None))
    assert scored_places == sorted(expected)
    assert np.isfinite(frame["value"]).all()
    several = len({site for site, *_ in expected}) > 1 or len(expected) > 2
    if several and row.finish != "complement" and not criterion.startswith("depth"):
        assert np.ptp(frame["value"]) > 0  # it tells sites apart


@pytest.mark.parametrize("name", ATTENTIVE)
def test_scores_of_the_same_batch_are_equal_twice(name: str) -> None:
    model, cases, cut = small(name), windows(), batches(8, 8)
    first, second = (score_frame(model, cases, cut) for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_frame_has_its_schema_and_a_value_per_batch(name: str) -> None:
    frame = scored(name, 32)
    of_run = ("e", "forecasting", "ETTh1", "ETT1", name, "v", None, "l96-h96", 0)
    keys = dict(zip(RUN, of_run, strict=True)) | {"epoch": 3}
    # `collect` writes no number for the whole site and for all batches.
    missing = {key: frame[key].mask(frame[key] == -1) for key in ("head", "batch")}
    assert len(checked("scores", frame.assign(**keys, **missing))) == len(frame)
    expected = {*COMPUTED} & {*offered(MODELS[name].views)}
    criteria = set(frame["criterion"])
    most = {*COMPUTED, *STATISTICS} - (set() if name in MIXING else {"send_train"})
    assert expected <= criteria <= most  # some sites of a model may offer more views than others
    assert criteria == most or "Residual" not in MODELS[name].views or name not in MIXING
    of = frame.groupby("criterion")["batch"].unique()
    for key, row in (CRITERIA | STATISTICS).items():
        if key not in of:
            assert key not in expected
        elif row.origin in (*PASS, "ablation"):
            assert sorted(of[key]) == [-1, 0, 1]
        elif row.origin != "draws":
            assert list(of[key]) == [-1]


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_scores_do_not_depend_on_the_batch_size(name: str, size: int) -> None:
    pd.testing.assert_frame_equal(
        aggregate(scored(name, size)), aggregate(scored(name, 32)), check_exact=True
    )


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_scores_do_not_depend_on_the_size_of_a_pass(name: str, size: int) -> None:
    model = small(name)
    scores = by_place(aggregate(score_frame(model, windows(), batches(32), batch_size=size)))
    # The windows of a training batch share a mask in `send`: its value depends on their number.
    batch = {name for name, row in CRITERIA.items() if row.origin == "batch"}
    scores = scores[~scores.index.get_level_values("criterion").isin(batch)]
    expected = by_place(aggregate(scored(name, 32)))[scores.index]
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-15)


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
    # A mean of absolute values, roots or variances differs from that of the whole.
    one_sign = name == "SAMformer"  # its only gate has the same sign in all windows
    assert (abs(mean["taylor"] / whole["taylor"] - 1) > 1e-3).any() or one_sign
    assert name not in MIXING or (abs(mean["flap"] / whole["flap"] - 1) > 1e-4).all()


@pytest.mark.parametrize("name", ATTENTIVE)
def test_float32_models_have_close_scores(name: str) -> None:
    single = score_frame(small(name, torch.float32), windows(torch.float32), batches(32))
    in_float32 = by_place(aggregate(single))
    expected = by_place(aggregate(scored(name, 32)))[in_float32.index]
    scale = expected.abs().groupby(level=0).transform("max")
    most = 0.05 if name in CHOOSING else 1e-4
    np.testing.assert_allclose(in_float32 / scale, expected / scale, atol=most)


def test_send_alone_is_the_send_of_the_pass() -> None:
    alone = score_frame(small("PatchTST"), windows(), batches(7), ["send"], statistics=False)
    alone = aggregate(alone)
    whole = aggregate(scored("PatchTST", 32))
    whole = whole[whole["criterion"] == "send"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, whole, check_exact=True)


def test_send_train_is_the_mean_over_epochs() -> None:
    frame = aggregate(scored("Transformer", 32))
    scores = by_place(frame)
    np.testing.assert_allclose(scores["send_train"], 2 * scores["send"])
    with pytest.raises(ValueError, match="has no `send`"):
        send_train(trajectory("Transformer").assign(criterion="michel"))


@pytest.mark.parametrize("name", [n for n, m in MODELS.items() if m.role != "attention"])
def test_a_model_without_attention_has_no_scores(name: str) -> None:
    model = build(name, sized(name), Shape(24, 12, 3))
    assert score_frame(model, windows(torch.float32), batches(32)).empty


def test_only_requested_criteria_are_computed() -> None:
    frame = score_frame(small("iTransformer"), windows(), batches(32), ["michel", "random"])
    assert set(frame["criterion"]) == {"michel", "uniformity"}


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("sned", "'sned' is not one of send, send_float32"),
        ("loss_drop_val", "'loss_drop_val': give `validation`"),
        ("send_train", "'send_train': it is the mean over the record of pre-training"),
    ],
)
def test_a_model_that_cannot_be_scored_is_an_error(criterion: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_frame(small("iTransformer"), windows(), batches(32), [criterion])
    with pytest.raises(ValueError, match="at least one batch"):
        score_frame(small("iTransformer"), windows(), [])


@pytest.mark.parametrize("criterion", ["send", "loss_drop"])
def test_the_error_names_the_method_that_a_plain_module_lacks(criterion: str) -> None:
    plain = torch.nn.Linear(3, 3)
    with pytest.raises(TypeError, match=r"Linear has no method `sites\(\)`: give the sites"):
        score_frame(plain, windows(), batches(8), [criterion])  # type: ignore[arg-type]


def test_aggregation_refuses_duplicates_and_gaps() -> None:
    frame = scored("iTransformer", 32)
    with pytest.raises(ValueError, match=r"more than one value .* for send, site 0"):
        aggregate(pd.concat([frame, frame]))
    lost = frame.drop(frame.index[(frame["batch"] == -1) & (frame["criterion"] == "flap")])
    with pytest.raises(ValueError, match=r"only values of single batches for flap"):
        aggregate(lost)


def test_names_and_functions_agree() -> None:
    computed = {n: r for n, r in (CRITERIA | STATISTICS).items() if r.origin in PASS}
    assert computed.keys() == RULES.keys()
    for name, row in computed.items():
        rule = RULES[name]
        assert (row.name, rule.name) == (name, name)
        assert (row.origin, row.needs) == (rule.over, rule.needs.__name__)
        assert (row.heads, row.source) == (rule.heads, rule.source)
        assert row.finish == rule.finish.__name__
        assert rule.function.__doc__ and rule.finish.__doc__
    assert all(row.source and row.description for row in CRITERIA.values())
    assert {"send", "random", "michel", "magnitude"} <= set(HEAD_CRITERIA) < set(CRITERIA)
    with pytest.raises(ValueError, match="'send' is registered twice"):
        registration.criterion("send", needs=Mixing, source="")


def test_more_views_allow_more_criteria() -> None:
    output, residual, heads, mixing = (set(offered([view])) for view in VIEWS)
    assert {"michel", "loss_drop", "random", "depth_last"} <= output
    assert residual == {"cosine", "block_influence"}
    assert heads == {"magnitude", "wanda", "flap"}
    assert "send" in mixing
    assert offered(VIEWS) == tuple(CRITERIA)
    assert offered(MODELS["iTransformer"].views) == tuple(CRITERIA)
    assert set(offered(MODELS["S-Mamba"].views)) == output | residual
    assert set(offered(MODELS["TimeMachine"].views)) == output
    assert MODELS["DLinear"].views == ()


@pytest.mark.parametrize("module", ["scoring.names", "pipeline.scores_frame"])
def test_names_and_frames_need_no_torch(module: str) -> None:
    code = f"import sys, spat.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ATTENTIVE)
def test_scores_on_a_gpu_are_those_on_the_cpu(name: str) -> None:
    model = small(name).cuda()
    there = windows(device="cuda")
    cut = [batch.cuda() for batch in batches(32)]
    on_gpu = by_place(aggregate(score_frame(model, there, cut)))
    expected = by_place(aggregate(scored(name, 32)))[on_gpu.index]
    np.testing.assert_allclose(on_gpu, expected, rtol=1e-6, atol=1e-12)
    assert loss_drops(model, there, cut, LOSSES).shape == (len(model.sites()), 40)
