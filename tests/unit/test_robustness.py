"""Manipulated sites: the manipulations, the measurements, and the criteria that notice them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scoring_cases
import torch
from frame_builder import wide
from small_models import LOSSES, TASK
from torch import Tensor

from spat.attention.manipulation import manipulated, obstacle
from spat.attention.mask import Mask
from spat.attention.site import Site
from spat.attention.views import Mixing
from spat.data.windows import Windows
from spat.files import read_json
from spat.models.base import Forecaster
from spat.models.layers.attention import AttentionCore
from spat.models.registry import MODELS, Shape, build, setup
from spat.pipeline import frames, runs, scores_frame
from spat.pipeline.config import Config, ConfigError, load
from spat.pipeline.stages import robustness as stage
from spat.scoring import probe
from spat.scoring.names import offered
from spat.scoring.scores import score
from spat.study import robustness as study
from spat.study.pages.page import Absent
from spat.study.pages.reader import Frames, empty
from spat.study.pages.registry import draw, rendered
from spat.study.statistics.averages import summarise
from spat.study.statistics.cells import RUN
from spat.surgery import cut
from spat.training.metrics import evaluate

LOOKBACK, HORIZON, CHANNELS = 24, 12, 5
ATTENTION = [*scoring_cases.ATTENTIVE]
ATTENTIONS = ("uniform", "identity", "pattern")
GATES = ("gate:0", "gate:0.25", "gate:0.5", "gate:1")
NOISES = ("noise:0.5", "noise:1", "noise:2")
EVERY = (*ATTENTIONS, *GATES, *NOISES)


def dense(name: str, dtype: torch.dtype = torch.float64) -> Forecaster:
    """A model with two heads a site, its attention far from uniform."""
    own = {"e_layers": 2, "d_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = scoring_cases.sizes(name, **own)
        chosen = setup(name, "deep", "synthetic", 96, sizes)
        model = build(name, chosen.settings, Shape(LOOKBACK, HORIZON, CHANNELS)).to(dtype)
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def windows(dtype: torch.dtype = torch.float64) -> Windows:
    walk = torch.randn(120, CHANNELS, generator=torch.Generator().manual_seed(1)).cumsum(0)
    standard = ((walk - walk.mean(0)) / walk.std(0, correction=0)).to(dtype)
    return Windows(standard, None, 0, 120, LOOKBACK, HORIZON)


def records_of(model: Forecaster) -> dict[str, Any]:
    """The traces of the probe; A is computed at its first use, so it is computed here."""
    traces = probe.observe(model, windows().batch(torch.arange(6)), LOSSES)
    return {trace.name: trace for trace in traces}


def forecast(model: Forecaster, dtype: torch.dtype = torch.float64) -> Tensor:
    with torch.no_grad():
        return model(windows(dtype).batch(torch.arange(6)).x)


def possible(model: Forecaster, names: tuple[str, ...] = EVERY) -> list[tuple[int, str]]:
    pairs = itertools.product(range(len(model.sites())), names)
    return [(i, name) for i, name in pairs if not obstacle(model.sites()[i], name)]


# Manipulations


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_the_probe_sees_the_manipulated_attention(name: str, kind: str) -> None:
    model = dense(name)
    for index, _ in possible(model, (kind,)):
        site = model.sites()[index]
        with manipulated(site, kind, seed=3):
            seen = records_of(model)[site.name]
        A = seen.mixing.A
        Q, K = A.shape[-2:]
        allowed = seen.mixing.allowed.double()
        if kind == "uniform":
            expected = (allowed / allowed.sum(-1, keepdim=True)).expand_as(A)
        elif kind == "identity":
            expected = torch.eye(Q, K).double().expand_as(A)
        else:
            expected = A[:1, :1].expand_as(A)  # the same in all windows and channels
            if A.shape[2] > 1:
                assert not torch.allclose(expected[0, 0, 0], expected[0, 0, 1]), "heads differ"
        torch.testing.assert_close(A, expected, rtol=0, atol=0)
        torch.testing.assert_close(A.sum(-1), torch.ones(A.shape[:-1]).double())
        assert (A * (1 - allowed) == 0).all()
        torch.testing.assert_close(seen.heads.O, A @ seen.source.v)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("manipulation", EVERY)
def test_forecasts_change_only_inside_the_block(name: str, manipulation: str) -> None:
    model = dense(name)
    before, plain = {k: v.clone() for k, v in model.state_dict().items()}, forecast(model)
    modules = [type(module) for module in model.modules()]
    for index, _ in possible(model, (manipulation,)):
        with manipulated(model.sites()[index], manipulation, seed=3):
            inside = forecast(model)
            again = forecast(model)
        assert torch.equal(inside, again)
        assert torch.equal(inside, plain) == (manipulation == "gate:1")
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert [type(module) for module in model.modules()] == modules
        assert torch.equal(forecast(model), plain)


def test_the_model_is_restored_when_the_block_fails() -> None:
    model = dense("iTransformer")
    plain = forecast(model)
    for manipulation in ("pattern", "gate:0", "noise:2"):
        with pytest.raises(KeyError), manipulated(model.sites()[0], manipulation, seed=0):
            raise KeyError
        assert torch.equal(forecast(model), plain)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_gate_scales_the_output_of_the_attention(name: str) -> None:
    model = dense(name)
    for index, _ in possible(model, ("gate:0.25",)):
        site = model.sites()[index]
        plain = records_of(model)[site.name]
        with manipulated(site, "gate:0.25", seed=0):
            gated = records_of(model)[site.name]
        torch.testing.assert_close(gated.output.y, 0.25 * plain.output.y)
        if plain.offers(Mixing):
            torch.testing.assert_close(gated.mixing.A, plain.mixing.A, rtol=0, atol=0)
        with manipulated(site, "gate:0", seed=0):
            closed = forecast(model)
        mask = Mask.full(cut.heads_of(model)).without_sites([index])
        # The hooks of a mask let the language model read whole sequences, with other rounding.
        close = 1e-12 if name.startswith("Time-LLM") else 0
        with cut.masked(model, mask):
            torch.testing.assert_close(closed, forecast(model), rtol=0, atol=close)


def test_every_manipulation_reaches_a_site_without_output_projection() -> None:
    model = dense("SAMformer")
    assert not hasattr(model.sites()[0].attention, "out")
    assert possible(model) == [(0, name) for name in EVERY]


@pytest.mark.parametrize("name", ATTENTION)
def test_noise_changes_only_q_and_k_and_grows_along_one_direction(name: str) -> None:
    model = dense(name)
    for index, _ in possible(model, ("noise:1",)):
        site = model.sites()[index]
        attention = site.attention
        assert attention is not None
        (q, (rows, *_)), (k, _) = (*attention.query_key_rows(), *attention.query_key_rows())[:2]
        inner = len(q.weight[rows])
        plain, seen = records_of(model)[site.name], {}
        trained = q.weight.detach().clone()
        for size in (0.5, 1.0):
            with manipulated(site, f"noise:{size:g}", seed=7):
                noisy = records_of(model)[site.name]
                seen[size] = (q.weight - trained).detach()
            # The probe computes A from the q and k that the forward pass had.
            if type(attention.core) is not AttentionCore:
                continue  # another formula computes A from q and k
            logits = noisy.source.q @ noisy.source.k.mT / noisy.source.q.shape[-1] ** 0.5
            hidden = ~noisy.mixing.allowed
            torch.testing.assert_close(
                noisy.mixing.A, logits.masked_fill(hidden, -torch.inf).softmax(-1)
            )
            torch.testing.assert_close(noisy.source.v, plain.source.v, rtol=0, atol=0)
            assert not torch.allclose(noisy.source.q, plain.source.q)
            assert not torch.allclose(noisy.source.k, plain.source.k)
        torch.testing.assert_close(seen[1.0], 2 * seen[0.5])
        # 8 x 8 draws of variance 1, in units of the weights' own deviation.
        ratio = seen[1.0][:inner].std() / trained[:inner].std(correction=0)
        assert 0.7 < ratio < 1.3
        assert k is q or not torch.equal(q.weight[:inner], k.weight[:inner])


def test_patterns_and_noise_follow_the_seed() -> None:
    model = dense("iTransformer")
    for manipulation in ("pattern", "noise:1"):
        forecasts = []
        for seed in (1, 1, 2):
            with manipulated(model.sites()[0], manipulation, seed):
                forecasts.append(forecast(model))
        assert torch.equal(forecasts[0], forecasts[1])
        assert not torch.equal(forecasts[0], forecasts[2])


def test_an_impossible_manipulation_is_refused_with_the_reason() -> None:
    model = dense("Transformer")
    (cross,) = (site for site in model.sites() if site.name == "decoder.0.cross")
    assert "no key is its own" in obstacle(cross, "identity")
    with pytest.raises(ValueError, match=r"identity at site decoder\.0\.cross: queries and keys"):
        manipulated(cross, "identity", 0).__enter__()
    with pytest.raises(ValueError, match="'shuffle': expected one of uniform, identity, pattern"):
        manipulated(cross, "shuffle", 0).__enter__()
    cross.remove()
    with pytest.raises(ValueError, match=r"decoder\.0\.cross was removed"):
        manipulated(cross, "uniform", 0).__enter__()


@pytest.mark.parametrize("name", ATTENTION)
def test_a_closed_gate_scores_zero_and_its_removal_changes_nothing(name: str) -> None:
    model, data = dense(name), windows()
    index = [torch.arange(40)]
    gradient = ["send_keys", "michel", "taylor", "fisher", "snip", "cosine", "magnitude", "wanda"]
    known = offered(MODELS[name].views)
    gradient = [c for c in gradient if c in known]
    for number, _ in possible(model, ("gate:0",)):
        site = model.sites()[number]
        with manipulated(site, "gate:0", seed=0):
            names = [c for c in ("send", *gradient, "loss_drop") if c in known]
            scores = score(model, data, index, LOSSES, names, batch_size=32)
            frame = scores_frame.frame(scores)
            with_it = evaluate(model, TASK, data).means["mse"]
        scores = frame[(frame["site"] == number) & (frame["batch"] == scores_frame.ALL)]
        assert set(scores["criterion"]) > set(gradient)
        scored = scores[scores["criterion"] != "uniformity"]
        np.testing.assert_allclose(scored["value"], 0.0, atol=1e-15)
        mask = Mask.full(cut.heads_of(model)).without_sites([number])
        with cut.masked(model, mask):
            assert evaluate(model, TASK, data).means["mse"] == with_it


@pytest.mark.parametrize("manipulation", ["pattern", "gate:0", "gate:0.5"])
def test_a_manipulation_stays_in_place_while_the_model_is_trained(manipulation: str) -> None:
    model = dense("iTransformer", torch.float32).train()
    site = model.sites()[0]
    attention = site.attention
    assert attention is not None
    batch = windows(torch.float32).batch(torch.arange(30))
    with manipulated(site, manipulation, seed=0):
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(3):
            optimiser.zero_grad()
            (model(batch.x) - batch.y).square().mean().backward()
            optimiser.step()
        weight = attention.out.weight.detach().clone()
        model.eval()
        A = probe.observe(model, batch, LOSSES)[0].mixing.A
    trained = attention.out.weight.detach()
    if manipulation == "pattern":
        assert torch.equal(A, A[:1].expand_as(A))
    else:
        torch.testing.assert_close(weight, float(manipulation[5:]) * trained)


def test_a_pattern_that_was_made_for_inference_can_be_trained() -> None:
    model = dense("iTransformer")
    # Of one window in double precision, without dropout, A itself is saved for backward.
    batch = windows().batch(torch.arange(1))
    model.sites()[0].attention.core.dropout = 0.0
    with manipulated(model.sites()[0], "pattern", seed=0):
        with torch.inference_mode():
            model(batch.x)
        model.train()(batch.x).square().mean().backward()
    assert all(p.grad is not None for p in model.layers[1].parameters())


def test_a_site_without_softmax_attention_is_not_manipulated() -> None:
    layer = torch.nn.Module()
    layer.inner = torch.nn.Linear(3, 3)
    site = Site("encoder.0.scan", layer, "inner", 1, "scan")
    for manipulation in ("uniform", "noise:1", "gate:0"):
        assert "a site of kind scan is not one softmax attention" in obstacle(site, manipulation)


# Configuration


def config_of(folder: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "experiment": "tiny",
        "results": str(folder),
        "grid": [
            {
                "datasets": ["synthetic"],
                "models": ["iTransformer"],
                "variants": ["tiny"],
                "lookback": LOOKBACK,
                "horizons": [HORIZON],
                "seeds": [0, 1],
            }
        ],
        "variants": {
            "tiny": {
                "model": {"d_model": 8, "d_ff": 8, "n_heads": 2, "e_layers": 2, "dropout": 0.1}
            }
        },
        "data": {"synthetic": {"rows": 500, "channels": 3}},
        "training": {"device": "cpu", "epochs": 1},
        "scoring": {"batches": 2, "batch_size": 16},
        "pruning": {
            "site": {"criteria": ["send", "random", "magnitude", "loss_drop_val"], "ratios": [0.5]},
            "exhaustive": True,
        },
        "finetune": {"epochs": 1},
        "robustness": {
            "runs": ["synthetic/*/seed0"],
            "manipulations": ["uniform", "gate:0", "gate:1"],
            "finetune": True,
        },
        "tracking": {"enabled": False},
    }
    return load({**values, **changes})


def test_runs_are_chosen_by_pattern(tmp_path: Path) -> None:
    assert [run.seed for run in runs.studied(config_of(tmp_path))] == [0]
    assert runs.studied(config_of(tmp_path, robustness={})) == ()
    both = config_of(tmp_path, robustness={"runs": ["*/seed0", "*"]})
    assert [run.seed for run in runs.studied(both)] == [0, 1]
    with pytest.raises(ConfigError, match="robustness.runs: 'ETTh1/.' matches no run"):
        runs.studied(config_of(tmp_path, robustness={"runs": ["*", "ETTh1/*"]}))


@pytest.mark.parametrize("wrong", ["shuffle", "gate", "gate:", "gate:1.0", "gate:.5", "noise:-1"])
def test_a_manipulation_has_one_name(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not one of uniform, identity, pattern, gate:FACTOR"):
        config_of(tmp_path, robustness={"manipulations": ["uniform", wrong]})


def test_finetuning_asks_for_the_masks_it_compares_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set pruning.exhaustive: true"):
        config_of(tmp_path, pruning={}, robustness={"runs": ["*"], "finetune": True})


# The stage


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A tiny run, taken through the stages that the study needs, and the study itself."""
    from spat.pipeline.stages.prepare import prepare
    from spat.pipeline.stages.pretrain import pretrain
    from spat.pipeline.stages.prune import prune
    from spat.pipeline.stages.score import score as score_stage
    from spat.pipeline.stages.select import select

    config = config_of(tmp_path_factory.mktemp("results"))
    (run,) = runs.studied(config)
    prepare(config, run.dataset)
    for step in (pretrain, score_stage, select, prune, stage.robustness):
        step(config, run)
    return config


def folder_of(config: Config, name: str) -> Path:
    return runs.folder(config, runs.studied(config)[0], name)


def values_of(config: Config, phase: str, split: str, quantity: str) -> pd.Series:
    frame = pd.read_parquet(folder_of(config, "robustness") / "robustness.parquet")
    rows = frame[(frame["phase"] == phase) & (frame["split"] == split)]
    return rows[rows["quantity"] == quantity].set_index(["manipulation", "site"])["value"]


def test_the_stage_writes_a_valid_frame_with_every_case(studied: Config) -> None:
    (run,) = runs.studied(studied)
    frame = pd.read_parquet(folder_of(studied, "robustness") / "robustness.parquet")
    frames.checked("robustness", frame.assign(**runs.columns(studied, run)))
    assert not frame["value"].isna().any()
    assert set(frame["manipulation"]) == {"intact", "uniform", "gate:0", "gate:1"}
    assert set(frame["quantity"]) == {
        *("send", "magnitude", "loss_drop_val"),
        *("mse", "leave_one_out"),
    }
    # Two sites of four networks: 2 criteria on `train`, one on validation; MSE and change on two
    # splits in two phases.
    assert len(frame) == 2 * 4 * (3 + 2 * 2 * 2)
    metrics = read_json(folder_of(studied, "robustness") / "metrics.json")
    assert metrics["cases"] == 1 + 2 * (1 + 3)
    assert metrics["skipped"] == []


def test_the_intact_network_is_the_one_that_was_trained_and_scored(studied: Config) -> None:
    trained = read_json(folder_of(studied, "pretrain") / "metrics.json")
    for split in ("validation", "test"):
        intact = values_of(studied, "untuned", split, "mse")["intact"]
        assert intact.tolist() == 2 * [pytest.approx(trained["errors"][split]["mse"], rel=1e-12)]
    scored = scores_frame.aggregate(pd.read_parquet(folder_of(studied, "score") / "scores.parquet"))
    for criterion, split in (("send", "train"), ("loss_drop_val", "validation")):
        rows = scored[(scored["criterion"] == criterion) & (scored["head"] == scores_frame.SITE)]
        actual = values_of(studied, "untuned", split, criterion)["intact"]
        np.testing.assert_allclose(actual, rows["value"], rtol=1e-4, atol=1e-9)


def test_truths_are_the_errors_of_the_masks_that_were_trained(studied: Config) -> None:
    def mse(mask: str, phase: str) -> float:
        path = folder_of(studied, "prune") / "masks" / mask / "order0" / "metrics.json"
        return float(read_json(path)["errors"][phase]["test"]["mse"])

    for phase, name in (("untuned", "pruned"), ("finetuned", "finetuned")):
        changes = values_of(studied, phase, "test", "leave_one_out")["intact"]
        expected = [mse("0.1", name) - mse("1.1", name), mse("1.0", name) - mse("1.1", name)]
        np.testing.assert_allclose(changes, expected, rtol=1e-4, atol=1e-8)


def test_an_open_gate_is_the_intact_network_and_a_closed_one_no_site(studied: Config) -> None:
    for phase, split in itertools.product(("untuned", "finetuned"), ("validation", "test")):
        for quantity in ("mse", "leave_one_out"):
            values = values_of(studied, phase, split, quantity)
            assert values["gate:1"].tolist() == values["intact"].tolist(), (phase, quantity)
    closed = values_of(studied, "untuned", "test", "leave_one_out")["gate:0"]
    assert closed.tolist() == [0.0, 0.0]
    assert values_of(studied, "untuned", "train", "send")["gate:0"].abs().max() < 1e-15
    assert values_of(studied, "untuned", "train", "magnitude")["gate:0"].tolist() == [0.0, 0.0]


def test_finished_work_is_kept_and_new_cases_are_added(
    studied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def fit(*args: Any, label: str, **kwargs: Any) -> Any:
        trained.append(label.split()[-1])
        return original(*args, label=label, **kwargs)

    original = stage.fit
    monkeypatch.setattr(stage, "fit", fit)
    (run,) = runs.studied(studied)
    path = folder_of(studied, "robustness") / "robustness.parquet"
    before = pd.read_parquet(path)
    path.unlink()
    stage.robustness(studied, run)
    pd.testing.assert_frame_equal(pd.read_parquet(path), before)
    assert trained == []
    section = studied.robustness
    wider = section.model_copy(update={"manipulations": (*section.manipulations, "noise:1")})
    stage.robustness(studied.model_copy(update={"robustness": wider}), run)
    assert trained == ["site0/noise1", "site1/noise1"]
    assert len(pd.read_parquet(path)) == len(before) * 5 // 4
    stage.robustness(studied, run)
    pd.testing.assert_frame_equal(pd.read_parquet(path), before)


def test_sites_that_cannot_be_manipulated_are_left_out_and_reported(tmp_path: Path) -> None:
    config = config_of(tmp_path, robustness={"manipulations": ["identity", "uniform"]})
    cases, skipped = stage._cases(dense("Transformer"), config.robustness.manipulations)
    (row,) = skipped
    assert (row["site"], row["manipulation"]) == ("decoder.0.cross", "identity")
    number = [site.name for site in dense("Transformer").sites()].index("decoder.0.cross")
    assert stage.Case("uniform", number) in cases
    assert stage.Case("identity", number) not in cases


# The evaluation, on planted frames

Value = Callable[[int, int, str], float]


def planted(values: dict[str, Value], seeds: int = 3, dataset: str = "ETTh1") -> pd.DataFrame:
    """Frame `robustness` of two sites: `values[quantity](seed, site, manipulation)`.

    `leave_one_out` may have a value of its own per phase: `leave_one_out/finetuned`.
    """
    rows = []
    for seed, site, kind in itertools.product(range(seeds), range(2), ("intact", "bad", "odd")):
        keys = {
            **{"experiment": "planted", "dataset": dataset, "model": "iTransformer"},
            **{"variant": "deep", "lookback": 96, "horizon": 96, "seed": seed},
        }
        for quantity, value in values.items():
            name, _, phase = quantity.partition("/")
            measured = name in study.NO_CRITERIA
            rows.append(
                {
                    **keys,
                    "site": site,
                    "name": f"encoder.{site}.self",
                    "manipulation": kind,
                    "quantity": name,
                    "phase": phase or "untuned",
                    "split": "test" if measured else "train",
                    "value": value(seed, site, kind),
                }
            )
    return wide("robustness", pd.DataFrame(rows)).drop(columns="control_of")


def lower(seed: int, site: int, kind: str) -> float:
    """Lower for the manipulation `bad` with any seed; higher for `odd`."""
    return 10.0 * site + 0.1 * seed + {"intact": 0.0, "bad": -1.0, "odd": 1.0}[kind]


def means(frame: pd.DataFrame, **options: Any) -> pd.Series:
    rows = study.auroc(frame, **options)
    return summarise(rows, "auroc", ["criterion", "manipulation"]).set_index(
        ["criterion", "manipulation"]
    )["auroc"]


def test_auroc_tells_good_blind_and_reversed_criteria_apart() -> None:
    frame = planted(
        {
            "sees": lower,
            "reverse": lambda *case: -lower(*case),
            "blind": lambda seed, site, kind: float(site),
        }
    )
    auroc = means(frame)
    assert auroc["sees", "bad"] == 1.0
    assert auroc["sees", "odd"] == 0.0
    assert auroc["reverse", "bad"] == 0.0
    assert auroc["blind", "bad"] == auroc["blind", "odd"] == 0.5


def test_auroc_is_the_share_of_all_pairs_of_checkpoints_at_one_position() -> None:
    rng = np.random.default_rng(5)
    drawn = rng.integers(0, 4, size=(6, 2, 3)).astype(float)  # with ties
    kinds = ("intact", "bad", "odd")
    frame = planted({"send": lambda i, s, kind: drawn[i, s, kinds.index(kind)]}, seeds=6)
    for number, kind in enumerate(kinds[1:], start=1):
        changed, intact = drawn[:, :, number], drawn[:, :, 0]
        pairs = [
            0.5 * (1 - np.sign(changed[i, s] - intact[j, s]))
            for i, j, s in itertools.product(range(6), range(6), range(2))
        ]
        assert means(frame)["send", kind] == pytest.approx(np.mean(pairs))


def test_one_checkpoint_gives_the_share_of_its_sites_and_no_interval() -> None:
    def half(seed: int, site: int, kind: str) -> float:
        return -1.0 if kind == "bad" and site == 0 else 1.0 if kind == "bad" else 0.0

    rows = study.auroc(planted({"send": half}, seeds=1))
    table = summarise(rows, "auroc", ["manipulation"]).set_index("manipulation")
    assert table.loc["bad", "auroc"] == 0.5
    assert np.isnan(table.loc["bad", "low"])


def test_scales_are_never_compared_across_cells() -> None:
    near = planted({"send": lower})
    far = planted({"send": lambda *case: 1000 + lower(*case)}, dataset="ETTh2")
    assert means(pd.concat([near, far]))["send", "bad"] == pytest.approx(1.0)


def test_the_interval_covers_the_value_and_shrinks_with_checkpoints() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((30, 2, 3))
    kinds = ("intact", "bad", "odd")

    def noisy(seed: int, site: int, kind: str) -> float:
        return lower(seed, site, kind) / 2 + noise[seed, site, kinds.index(kind)]

    widths = []
    for seeds in (5, 30):
        rows = study.auroc(planted({"send": noisy}, seeds=seeds))
        row = summarise(rows, "auroc", ["manipulation"]).set_index("manipulation").loc["bad"]
        assert row["low"] <= row["auroc"] <= row["high"]
        widths.append(row["high"] - row["low"])
    assert widths[1] < widths[0]


def test_the_measured_change_decides_the_right_direction() -> None:
    # With `bad`, a site is worth less before fine-tuning and worth more after it.
    frame = planted(
        {
            "send": lower,
            "mse": lambda seed, site, kind: 2.0,
            "leave_one_out": lower,
            "leave_one_out/finetuned": lambda *case: -lower(*case),
            "mse/finetuned": lambda seed, site, kind: 2.0,
        }
    )
    assert means(frame, phase="untuned")["send", "bad"] == 1.0
    assert means(frame, phase="untuned")["send", "odd"] == 1.0
    assert means(frame, phase="finetuned")["send", "bad"] == 0.0
    untuned = study.measured(frame, "untuned").set_index("manipulation")
    tuned = study.measured(frame, "finetuned").set_index("manipulation")
    assert set(untuned.loc["bad", "smaller"]) == set(tuned.loc["odd", "smaller"]) == {1.0}
    assert set(untuned.loc["odd", "smaller"]) == set(tuned.loc["bad", "smaller"]) == {0.0}
    assert set(untuned.loc["intact", "smaller"]) == {0.5}
    np.testing.assert_allclose(
        untuned.loc["bad", "change"].to_numpy() - untuned.loc["intact", "change"].to_numpy(), -1.0
    )
    np.testing.assert_allclose(untuned["relative"], untuned["change"] / 2.0)


def test_a_checkpoint_is_compared_with_itself() -> None:
    rng = np.random.default_rng(7)
    kinds = ("intact", "bad", "odd")
    drawn = rng.integers(0, 3, size=(2, 4, 2, 3)).astype(float)  # with ties
    score, change = (lambda seed, site, kind, x=x: x[seed, site, kinds.index(kind)] for x in drawn)
    frame = planted({"send": score, "leave_one_out": change}, seeds=4)
    agreements = study.agreement(frame, "untuned").set_index(["seed", "site", "manipulation"])
    assert len(agreements) == 4 * 2 * 2 and set(agreements["criterion"]) == {"send"}
    for seed, site, number in itertools.product(range(4), range(2), (1, 2)):
        signs = [np.sign(x[seed, site, number] - x[seed, site, 0]) for x in drawn]
        expected = 0.5 if 0 in signs else float(signs[0] == signs[1])
        assert agreements.loc[(seed, site, kinds[number]), "agrees"] == expected
    assert study.agreement(frame, "finetuned").empty


def test_without_a_measured_change_there_is_no_auroc() -> None:
    frame = planted({"send": lower})
    assert study.auroc(frame, phase="finetuned").empty
    assert study.measured(frame, "untuned").empty
    assert study.auroc(empty("robustness")).empty


def test_a_site_without_the_manipulation_is_left_out() -> None:
    """A cross-attention has no manipulation `identity`, so only the other sites are compared."""

    def second_higher(seed: int, site: int, kind: str) -> float:
        return lower(seed, site, kind) if site == 0 else -lower(seed, site, kind)

    frame = planted({"send": second_higher})
    assert means(frame)["send", "bad"] == pytest.approx(0.5)
    skipped = frame["manipulation"].eq("bad") & frame["site"].eq(1)
    assert means(frame[~skipped])["send", "bad"] == pytest.approx(1.0)


def test_runs_that_diverged_are_left_out() -> None:
    def sometimes(seed: int, site: int, kind: str) -> float:
        return float("nan") if seed == 1 and kind == "bad" else lower(seed, site, kind)

    rows = study.auroc(planted({"send": sometimes}))
    assert set(rows.loc[rows["manipulation"] == "bad", "seed"]) == {0, 2}
    assert set(rows.loc[rows["manipulation"] == "odd", "seed"]) == {0, 1, 2}
    assert not rows.duplicated([*RUN, "criterion", "manipulation"]).any()


# Tables and figures


@pytest.fixture(scope="module")
def shown() -> Frames:
    values: dict[str, Value] = {
        "send": lower,
        "blind": lambda seed, site, kind: float(site),
        "mse": lambda seed, site, kind: 2.0,
        "leave_one_out": lower,
    }
    return Frames.of(robustness=planted(values))


def test_the_table_shows_criteria_and_measured_changes(shown: Frames) -> None:
    table = study.robustness(shown)
    assert table["mean"].notna().all()
    measured = table.set_index(["measure", "criterion", "manipulation"])["mean"]
    assert measured["AUROC", "send", "bad"] == pytest.approx(1.0)
    assert measured["AUROC", "blind", "odd"] == pytest.approx(0.5)
    assert measured["measured: worth less", "before fine-tuning", "bad"] == pytest.approx(1.0)
    assert measured["measured: worth less", "before fine-tuning", "odd"] == pytest.approx(0.0)
    agrees = "agrees with measured, before fine-tuning"
    assert measured[agrees, "send", "odd"] == pytest.approx(1.0)
    assert "after fine-tuning" not in set(table["criterion"])
    assert list(table["manipulation"].cat.categories) == ["bad", "odd"]
    for ending, text in rendered("robustness", shown).items():
        assert "send" in text, ending


def test_the_measured_changes_are_shown_by_site(shown: Frames) -> None:
    table = study.leave_one_out(shown).set_index(["site", "manipulation"])
    # 10 site + 0.1 seed, of an MSE of 2, in percent.
    assert table.loc[("encoder.1.self", "intact"), "mean"] == pytest.approx(505.0)
    assert table.loc[("encoder.1.self", "bad"), "mean"] == pytest.approx(455.0)
    assert table.loc[("encoder.0.self", "intact"), "n"] == 3
    assert "encoder.1.self" in rendered("leave_one_out", shown)["md"]


def test_the_figure_shows_each_criterion_and_each_manipulation(shown: Frames) -> None:
    (axis,) = draw("robustness", shown).axes
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        *("measured before", "send"),  # `blind` is not one of the main criteria
    ]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["bad", "odd"]
    written = [text.get_text() for text in axis.texts]
    assert written == ["1.00", "0.00", "1.00", "0.00"]


@pytest.mark.parametrize("name", ["robustness", "leave_one_out"])
def test_without_the_study_the_tables_name_the_setting_that_runs_it(name: str) -> None:
    with pytest.raises(Absent, match=r"robustness\.runs"):
        rendered(name, Frames.of())


def test_without_the_study_the_figure_names_the_setting_that_runs_it() -> None:
    with pytest.raises(Absent, match=r"robustness\.runs"):
        draw("robustness", Frames.of())
