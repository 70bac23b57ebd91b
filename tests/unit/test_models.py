from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_models import SHAPE, inputs, sized
from torch import Tensor, nn

from spat.data.registry import DATASETS
from spat.models import registry
from spat.models.base import Forecaster
from spat.models.layers.blocks import RevIN, StepEmbedding, normalise, sinusoids
from spat.models.registry import FORECASTERS, VARIANTS, Setup, Shape, build, setup
from spat.models.settings import FITSSettings, Settings
from spat.models.tsmixer import StepChannelNorm
from spat.training.device.costs import parameters


def names_of(settings: type[Settings]) -> set[str]:
    return {field.name for field in fields(settings)}


ATTENTION = [name for name, row in FORECASTERS.items() if row.role == "attention"]
TRAINED = [name for name, row in FORECASTERS.items() if row.role != "naive"]
MARKED = [name for name, row in FORECASTERS.items() if "time_features" in names_of(row.settings)]
DROPPING = [name for name, row in FORECASTERS.items() if "dropout" in names_of(row.settings)]
PUBLISHED = list(
    csv.DictReader(
        resources.files("spat.study").joinpath("authors_parameters.csv").read_text().splitlines()
    )
)
# The number of sites of the variant `deep` of models that cannot have four.
DEEP_SITES = {"PAttn": 1, "SAMformer": 1, "Crossformer": 5}
DEEP_SITES |= {f"GPT4TS-{backbone}": 6 for backbone in ("gpt2", "smollm2", "random")}
DEEP_SITES |= {f"Time-LLM-{backbone}": 7 for backbone in ("gpt2", "smollm2", "random")}
# The sites of the small models; for a model that is not listed, only general properties are tested.
SITES = {
    "iTransformer": ["encoder.0.self", "encoder.1.self", "encoder.2.self"],
    "PatchTST": ["encoder.0.self", "encoder.1.self", "encoder.2.self"],
    "Transformer": [
        "encoder.0.self",
        "encoder.1.self",
        "encoder.2.self",
        "decoder.0.self",
        "decoder.0.cross",
        "decoder.1.self",
    ],
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


def small(name: str, shape: Shape = SHAPE, **changes: float | bool) -> Forecaster:
    return build(name, sized(name, **changes), shape)


# The table.


def flat(one: Setup) -> dict[str, object]:
    return {**vars(one.settings), **vars(one.recipe)}


def test_the_registry_needs_no_torch() -> None:
    code = "import sys, spat.models.registry as r; r.setup('DLinear', 'deep', 'ETTh1', 96)"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize(
    ("model", "variant", "dataset", "horizon", "expected"),
    [
        ("PatchTST", "published", "ETTh1", 96, {"n_heads": 2, "e_layers": 1, "d_model": 512}),
        ("PatchTST", "published", "ETTh1", 192, {"n_heads": 8}),
        ("PatchTST", "published", "Exchange", 336, {"epochs": 1, "batch_size": 32}),
        ("PatchTST", "published", "Solar", 96, {"batch_size": 16, "e_layers": 2}),
        ("PatchTST", "deep", "ETTm2", 720, {"d_model": 16, "d_ff": 128, "e_layers": 4}),
        ("iTransformer", "published", "ETTh1", 96, {"d_model": 256, "time_features": True}),
        ("iTransformer", "published", "ETTh1", 720, {"d_model": 512}),
        ("iTransformer", "published", "Electricity", 96, {"learning_rate": 5e-4, "e_layers": 3}),
        ("iTransformer", "published", "PEMS07", 48, {"instance_norm": False, "batch_size": 16}),
        ("iTransformer", "deep", "ETTh2", 96, {"d_model": 128, "time_features": False}),
        ("Transformer", "published", "ILI", 24, {"label_len": 18, "d_ff": 2048}),
        ("DLinear", "deep", "ETTh2", 96, {"learning_rate": 0.05, "moving_average": 25}),
        ("SeasonalNaive", "published", "Weather", 96, {"season": 144, "epochs": 0}),
    ],
)
def test_the_most_specific_row_wins(
    model: str, variant: str, dataset: str, horizon: int, expected: dict[str, object]
) -> None:
    chosen = flat(setup(model, variant, dataset, horizon))
    assert {name: chosen[name] for name in expected} == expected


@pytest.mark.parametrize("name", TRAINED)
def test_every_row_of_a_table_can_be_reached_and_says_where_it_is_from(name: str) -> None:
    text = resources.files("spat.models").joinpath(f"{name.lower()}.csv").read_text()
    for row in csv.DictReader(text.splitlines()):
        if row["dataset"] == "*":  # also for datasets that are added later
            continue
        variant = "deep" if row["variant"] == "*" else row["variant"]
        horizon = 1 if row["horizon"] == "*" else int(row["horizon"])
        chosen = setup(name, variant, row["dataset"], horizon)
        assert chosen.source == row["source"], row
        assert chosen.recipe.epochs == int(row["epochs"]), row


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("*,*,*,wide,0.1,32,1,3,me", "line 2: moving_average: 'wide' is not a valid int"),
        ("*,*,*,-1,0.1,32,1,3,me", "line 2: moving_average: '-1' is not a valid int"),
        ("*,*,*,25,,32,1,3,me", "line 2: no value for learning_rate"),
        ("*,*,*,25,0.1,32,1,3,", "line 2: no value for source"),
        ("*,*,*,25,0.1,32,1,3,me\n*,*,*,25,0.1,32,1,3,me", "line 3: second row for"),
        ("deep,*,*,25,0.1,32,1,3,me", "no row for variant published, ETTh1, horizon 96"),
    ],
)
def test_a_faulty_table_is_named_with_its_line(
    cells: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = "variant,dataset,horizon,moving_average,learning_rate,batch_size,epochs,patience"
    (tmp_path / "dlinear.csv").write_text(f"{columns},source\n{cells}\n")
    monkeypatch.setattr(registry.resources, "files", lambda _package: tmp_path)
    for cached in (registry._table, registry._row):
        monkeypatch.setattr(registry, cached.__name__, cached.__wrapped__)
    with pytest.raises(ValueError, match=rf"dlinear\.csv.*{message}"):
        setup("DLinear", "published", "ETTh1", 96)


@pytest.mark.parametrize("name", FORECASTERS)
def test_every_run_of_the_registries_can_be_built(name: str) -> None:
    built = set()
    for variant, dataset in itertools.product(VARIANTS, DATASETS.values()):
        for horizon in dataset.horizons:
            settings = setup(name, variant, dataset.name, horizon).settings
            shape = Shape(dataset.lookback, horizon, dataset.channels, 4 if dataset.mark else 0)
            key = (settings, shape)
            if key in built:
                continue
            built.add(key)
            with torch.device("meta"), torch.no_grad():
                model = build(name, settings, shape)
                y = model(*(inputs(shape, 2) if shape.marks else inputs(shape, 2)[:1]))
            assert y.shape == (2, horizon, dataset.channels)
            assert bool(model.sites()) == (FORECASTERS[name].role == "attention")
            assert bool(parameters(model)) == (FORECASTERS[name].role != "naive")
            if variant == "deep" and model.sites():
                assert len(model.sites()) == DEEP_SITES.get(name, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("LSTM", "deep", "ETTh1", 96), "model 'LSTM' is not one of iTransformer, PatchTST"),
        (("DLinear", "wide", "ETTh1", 96), "variant 'wide' is not one of published, deep"),
        (("DLinear", "deep", "ETTh9", 96), "dataset 'ETTh9' is not one of ETTh1"),
        (
            ("DLinear", "deep", "ETTh1", 96, {"d_model": 3}),
            r"'d_model' is not one of moving_average \(settings of DLinear\) or learning_rate, bat",
        ),
        (("DLinear", "deep", "ETTh1", 96, {"source": "x"}), "'source' is not one of"),
        (
            ("DLinear", "deep", "ETTh1", 96, {"schedule": "type2"}),
            "schedule 'type2' is not one of constant, type1",
        ),
        (
            ("DLinear", "deep", "ETTh1", 96, {"weight_decay": -1}),
            "weight_decay: -1.0 is negative",
        ),
        (("PatchTST", "deep", "ETTh1", 96, {"d_model": 3.5}), "d_model: 3.5 is not of type int"),
        (("PatchTST", "deep", "ETTh1", 96, {"d_model": True}), "d_model: True is not of type int"),
        (
            ("PatchTST", "deep", "ETTh1", 96, {"dropout": True}),
            "dropout: True is not of type float",
        ),
        (("PatchTST", "deep", "ETTh1", 96, {"dropout": "a"}), "dropout: 'a' is not of type float"),
        (
            ("iTransformer", "deep", "ETTh1", 96, {"time_features": 1}),
            "time_features: 1 is not of type bool",
        ),
        (("PatchTST", "deep", "ETTh1", 96, {"e_layers": 0}), "e_layers: 0 is not a positive"),
        (("PatchTST", "deep", "ETTh1", 96, {"dropout": 1.0}), r"dropout: 1.0 is not in \[0, 1\)"),
        (
            ("PatchTST", "deep", "ETTh1", 96, {"learning_rate": float("nan")}),
            "learning_rate: nan is not a positive, finite number",
        ),
    ],
)
def test_an_unknown_name_is_reported(arguments: tuple, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        setup(*arguments)


def test_overrides_change_a_row_and_its_source() -> None:
    row = setup("PatchTST", "deep", "ETTh1", 96)
    changes = {"dropout": 0, "e_layers": 3, "epochs": 2}
    changed = setup("PatchTST", "deep", "ETTh1", 96, changes)
    assert changed.settings == replace(row.settings, dropout=0.0, e_layers=3)
    assert changed.recipe == replace(row.recipe, epochs=2)
    assert changed.source == f"{row.source}; changed: dropout 0.0, e_layers 3, epochs 2"
    assert isinstance(changed.settings.dropout, float)
    assert setup("PatchTST", "deep", "ETTh1", 96, {}) == row


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda r: f"{r['model']}-{r['dataset']}")
def test_parameters_are_as_many_as_published(row: dict[str, str]) -> None:
    """The counts were taken from the published code (`source`); `why` explains a difference."""
    lookback, horizon, channels = (int(row[key]) for key in ("lookback", "horizon", "channels"))
    width = {"d_model": int(row["d_model"])} if row["d_model"] else {}
    settings = setup(row["model"], "published", row["dataset"], horizon, width).settings
    with torch.device("meta"):
        model = build(row["model"], settings, Shape(lookback, horizon, channels, 4))
    assert parameters(model) == int(row["parameters"]) + int(row["difference"])
    assert bool(row["why"]) == (row["difference"] != "0")


# Properties of every model.


@pytest.mark.parametrize("name", FORECASTERS)
@pytest.mark.parametrize("shape", [SHAPE, Shape(9, 1, 1, 4), Shape(17, 30, 3, 4)], ids=str)
@pytest.mark.parametrize("time_features", [False, True])
def test_any_shape(name: str, shape: Shape, time_features: bool) -> None:
    model = small(name, shape, time_features=time_features, period=1)
    y = model(*inputs(shape))
    assert y.shape == (3, shape.horizon, shape.channels)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", TRAINED)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    model = small(name, dropout=0.1, time_features=name in MARKED)
    model(*inputs()).square().mean().backward()
    for parameter, tensor in model.named_parameters():
        assert (tensor.grad is not None) == tensor.requires_grad, parameter
        if parameter in model.frozen():
            continue
        # The bias of keys moves all logits of a row alike, which softmax does not see.
        assert tensor.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_falls(name: str) -> None:
    model = small(name)
    x, y = torch.randn(16, 24, 5), torch.randn(16, 12, 5)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", FORECASTERS)
def test_a_window_does_not_depend_on_its_batch(name: str) -> None:
    model = small(name, dropout=0.5, time_features=name in MARKED)
    batch = inputs(windows=8)
    model(*batch)  # changes the running statistics of batch normalisation
    model.eval()
    together = model(*batch)
    assert torch.equal(model(*batch), together)
    alone = torch.cat([model(*(t[i : i + 1] for t in batch)) for i in range(8)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_follows_the_seed(name: str) -> None:
    model, batch = small(name, dropout=0.3), inputs()
    torch.manual_seed(5)
    first, second = model(*batch), model(*batch)
    torch.manual_seed(5)
    assert torch.equal(model(*batch), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ATTENTION)
def test_sites_are_in_forward_order(name: str) -> None:
    model, order = small(name), []
    names = {site.attention: site.name for site in model.sites()}
    for attention in names:
        attention.register_forward_hook(lambda module, *_: order.append(names[module]))
    model(*inputs())
    assert order == [site.name for site in model.sites()] == SITES.get(name, order)
    for site in model.sites():
        whole = name == "SAMformer" or site.kind in ("router", "correlation", "fourier", "scan")
        assert site.heads == (1 if whole else 4)


@pytest.mark.parametrize("name", ATTENTION)
def test_the_output_of_every_site_depends_on_the_window(name: str) -> None:
    model, shown = small(name).eval(), {}
    for site in model.sites():
        site.modules[-1].register_forward_hook(
            lambda _module, _args, y, of=site.name: shown.update({of: y.view(3, -1)})
        )
    model(*inputs())
    assert shown.keys() == {site.name for site in model.sites()}
    for of, y in shown.items():
        assert (y[1:] - y[0]).abs().amax(1).min() > 1e-6, of


@pytest.mark.parametrize("name", ATTENTION)
def test_a_removed_site_is_still_listed(name: str) -> None:
    model = small(name)
    before, last = parameters(model), model.sites()[-1]
    of_site = sum(parameters(module) for module in last.modules)
    assert of_site == 4 * 16 * 16 + 4 * 16 or last.heads == 1
    last.remove()
    kept = [site.attention is not None for site in model.sites()]
    assert kept == [True] * (len(kept) - 1) + [False]
    assert before - parameters(model) == of_site > 0
    assert model(*inputs()).shape == (3, 12, 5)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_removed_site_equals_one_that_adds_nothing(name: str) -> None:
    for index in range(len(small(name).sites())):
        model, batch = small(name, time_features=name in MARKED).eval(), inputs()
        site = model.sites()[index]
        assert site.attention is not None
        last = site.attention.v if name == "SAMformer" else site.attention.out
        with torch.no_grad():
            last.weight.zero_()
            if last.bias is not None:
                last.bias.zero_()
        expected = model(*batch)
        site.remove()
        torch.testing.assert_close(model(*batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ATTENTION)
def test_without_any_site_the_forecast_still_depends_on_the_input(name: str) -> None:
    model = small(name).eval()
    for site in model.sites():
        site.remove()
    x, *_ = inputs()
    changed = x.clone()
    changed[:, 0] += 1  # outside the label steps of the Transformer's decoder
    assert (model(x) - model(changed)).abs().max() > 1e-4


@pytest.mark.parametrize("name", MARKED)
def test_missing_time_features_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="no time stamps"):
        small(name, Shape(24, 12, 5), time_features=True)
    model, (x, past, _) = small(name, time_features=True), inputs()
    with pytest.raises(ValueError, match="past_marks"):
        model(x)
    if name not in ("iTransformer", "TimeXer", "S-Mamba", "Mamba"):
        with pytest.raises(ValueError, match="future_marks"):
            model(x, past)


@pytest.mark.parametrize("name", ["iTransformer", "PatchTST"])
def test_the_forecast_follows_the_scale_of_the_window(name: str) -> None:
    model, (x, *_) = small(name).eval(), inputs()
    torch.testing.assert_close(model(4 * x - 3), 4 * model(x) - 3, atol=1e-3, rtol=1e-3)
    plain = small(name, instance_norm=False).eval()
    assert (plain(4 * x - 3) - (4 * plain(x) - 3)).abs().max() > 0.1


# Properties of single models.


def test_itransformer_commutes_with_the_order_of_channels() -> None:
    model, (x, past, _) = small("iTransformer", time_features=True).eval(), inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model(x[:, :, order], past), model(x, past)[:, :, order])


def test_tokens_of_marks_of_itransformer_are_dropped_after_the_last_attention() -> None:
    model, (x, past, _) = small("iTransformer", time_features=True).eval(), inputs()
    widths: list[int] = []
    for layer in model.layers:
        layer.feed_forward.register_forward_hook(lambda _, i, __: widths.append(i[0].shape[1]))
    normal, scale = normalise(x)
    for removed, expected in (([], [9, 9, 9]), ([2], [9, 9, 5]), ([0, 1], [5, 5, 5])):
        for index in removed:
            model.sites()[index].remove()
        # The reference keeps the tokens of time features to the end.
        tokens = model.embedding(torch.cat([normal, past], -1).transpose(1, 2))
        for layer in model.layers:
            tokens = layer(tokens)
        reference = scale.undo(model.head(model.norm(tokens)).transpose(1, 2)[:, :, :5])
        widths.clear()
        torch.testing.assert_close(model(x, past), reference)
        assert widths == expected
    torch.testing.assert_close(model(x, None), reference)


def test_patchtst_keeps_channels_apart() -> None:
    model, (x, *_) = small("PatchTST").eval(), inputs()
    queries: list[Tensor] = []
    attention = model.sites()[0].attention
    assert attention is not None
    attention.core.register_forward_hook(lambda _, i, __: queries.append(i[0]))
    changed = x.clone()
    changed[1, :12, 2] += 1
    before, after = model(x), model(changed)
    moved = torch.zeros(3, 5, dtype=torch.bool)
    moved[1, 2] = True
    assert torch.equal((before - after).abs().amax(1) > 0, moved)
    rows = (queries[0] - queries[1]).flatten(1).abs().amax(1) > 0
    assert torch.equal(rows, moved.flatten())  # row = window * channels + channel


@pytest.mark.parametrize(("lookback", "patches"), [(96, 12), (36, 4), (8, 1)])
def test_patches_cover_the_padded_window(lookback: int, patches: int) -> None:
    shape = Shape(lookback, 12, 2)
    model = small("PatchTST", shape, patch_len=16, stride=8).eval()
    assert model.head.in_features == patches * 16
    seen: list[Tensor] = []
    model.embedding.register_forward_hook(lambda _, i, __: seen.append(i[0]))
    x = torch.arange(lookback, dtype=torch.float32).reshape(1, lookback, 1).repeat(1, 1, 2)
    model(x)
    steps = normalise(x)[0][0, :, 0]
    padded = torch.cat([steps, steps[-1:].expand(8)])
    wanted = torch.stack([padded[8 * i : 8 * i + 16] for i in range(patches)])
    torch.testing.assert_close(seen[0], wanted.expand(2, patches, 16))


def test_a_lookback_shorter_than_a_patch_is_an_error() -> None:
    with pytest.raises(ValueError, match="lookback 7 with stride 8 holds no patch of 16"):
        small("PatchTST", Shape(7, 12, 2), patch_len=16, stride=8)


def test_the_decoder_sees_label_steps_then_zeros() -> None:
    model, (x, past, future) = small("Transformer", time_features=True).eval(), inputs()
    seen: list[tuple[Tensor, Tensor]] = []
    model.target.register_forward_hook(lambda _, i, __: seen.append(i))
    model(x, past, future)
    begun, marks = seen[0]
    assert torch.equal(begun[:, :12], x[:, 12:])
    assert torch.equal(begun[:, 12:], torch.zeros(3, 12, 5))
    assert torch.equal(marks, torch.cat([past[:, 12:], future], 1))


def test_the_forecast_is_the_end_of_the_decoder() -> None:
    model, (x, past, future) = small("Transformer", time_features=True).eval(), inputs()
    changed = future.clone()
    changed[:, -1] += 0.3  # the decoder is causal: only the last step can see it
    moved = (model(x, past, future) - model(x, past, changed)).abs().amax((0, 2)) > 1e-4
    assert moved.tolist() == [False] * 11 + [True]


def test_the_last_cross_attention_of_the_transformer_is_not_a_site() -> None:
    model = small("Transformer", e_layers=1, d_layers=1)
    assert [site.name for site in model.sites()] == ["encoder.0.self", "decoder.0.self"]


def test_step_embedding_is_a_circular_convolution() -> None:
    embedding = StepEmbedding(channels=3, width=8, length=10, marks=4, dropout=0.0)
    x, marks = torch.randn(2, 10, 3), torch.randn(2, 10, 4)
    kernel = embedding.value.weight.unflatten(1, (3, 3)).transpose(1, 2)  # [out, in, neighbour]
    wrapped = F.pad(x.transpose(1, 2), (1, 1), mode="circular")
    tokens = F.conv1d(wrapped, kernel).transpose(1, 2)
    expected = tokens + sinusoids(10, 8) + marks @ embedding.time.weight.T
    torch.testing.assert_close(embedding(x, marks), expected)


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids(width: int) -> None:
    table = sinusoids(20, width)
    assert table.shape == (20, width)
    for step, column in ((0, 0), (3, 2), (19, 5)):
        angle = torch.tensor(step / 10000 ** (2 * (column // 2) / width))
        wanted = angle.cos() if column % 2 else angle.sin()
        assert table[step, column].item() == pytest.approx(wanted.item(), abs=1e-5)


def test_normalise_can_be_undone_and_survives_a_constant_channel() -> None:
    x = torch.randn(4, 30, 3) * 5 + 2
    x[..., 1] = 7.0
    normal, scale = normalise(x)
    torch.testing.assert_close(scale.undo(normal), x)
    torch.testing.assert_close(normal.mean(1), torch.zeros(4, 3), atol=1e-5, rtol=0)
    variance = normal[..., [0, 2]].var(1, unbiased=False)
    torch.testing.assert_close(variance, torch.ones(4, 2), atol=1e-4, rtol=0)
    assert torch.equal(normal[..., 1], torch.zeros(4, 30))


def test_dlinear_starts_from_the_mean_and_splits_off_the_trend() -> None:
    model, (x, *_) = small("DLinear"), inputs()
    for linear in (model.trend, model.remainder):
        torch.nn.init.zeros_(linear.bias)
    torch.testing.assert_close(model(x), x.mean(1, keepdim=True).expand(3, 12, 5))
    # With trend weights that pick one step, the forecast is the moving average there.
    torch.nn.init.zeros_(model.remainder.weight)
    for step, window in ((10, x[:, 8:13]), (0, x[:, [0, 0, 0, 1, 2]])):
        torch.nn.init.zeros_(model.trend.weight)
        with torch.no_grad():
            model.trend.weight[:, step] = 1
        torch.testing.assert_close(model(x)[:, 0], window.mean(1))
    with pytest.raises(ValueError, match="moving_average 4"):
        small("DLinear", moving_average=4)


def test_revin_has_a_gain_and_a_bias_and_can_be_undone() -> None:
    norm, x = RevIN(3), torch.randn(4, 30, 3) * 5 + 2
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    normal, scale = norm(x)
    torch.testing.assert_close(normal, normalise(x)[0] * norm.weight + norm.bias)
    torch.testing.assert_close(norm.undo(normal, scale), x)


def test_nlinear_adds_its_map_to_the_last_step() -> None:
    model, (x, *_) = small("NLinear"), inputs()
    expected = torch.stack([model.head(x[..., c] - x[:, -1:, c]) for c in range(5)], -1)
    torch.testing.assert_close(model(x), expected + x[:, -1:])


def test_rlinear_is_a_linear_map_of_the_normalised_window() -> None:
    model, (x, *_) = small("RLinear"), inputs()
    torch.testing.assert_close(model(4 * x - 3), 4 * model(x) - 3, atol=1e-4, rtol=1e-4)
    normal, scale = normalise(x)
    expected = torch.stack([model.head(normal[..., c]) for c in range(5)], -1)
    torch.testing.assert_close(model(x), scale.undo(expected))


@pytest.mark.parametrize("name", ["SparseTSF", "SparseTSFMLP"])
def test_sparsetsf_forecasts_each_phase_by_itself(name: str) -> None:
    model, (x, *_) = small(name), inputs()
    mean = x.mean(1, keepdim=True)
    kernel = model.smooth.weight[0, 0]  # two steps on both sides of a period of four
    padded = F.pad((x - mean).transpose(1, 2), (2, 2))
    smoothed = sum(kernel[i] * padded[..., i : i + 24] for i in range(5))
    series = (x - mean).transpose(1, 2) + smoothed
    y = model(x) - mean
    for phase in range(4):
        torch.testing.assert_close(
            y[:, phase::4].transpose(1, 2), model.head(series[..., phase::4])
        )


def test_fits_is_the_published_complex_map() -> None:
    model, (x, *_) = small("FITS"), inputs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    kept, written = model.settings.frequencies(SHAPE)
    published = nn.Linear(kept, written, dtype=torch.cfloat)
    with torch.no_grad():
        published.weight.copy_(torch.complex(*model.spectrum.weight))
        published.bias.copy_(torch.complex(*model.spectrum.bias))
    mean, deviation = x.mean(1, keepdim=True), (x.var(1, keepdim=True) + 1e-5).sqrt()
    spectrum = torch.fft.rfft((x - mean) / deviation, dim=1)[:, :kept]
    whole = torch.zeros(3, 36 // 2 + 1, 5, dtype=torch.cfloat)
    whole[:, :written] = published(spectrum.transpose(1, 2)).transpose(1, 2)
    y = torch.fft.irfft(whole, dim=1) * (36 / 24) * deviation + mean
    torch.testing.assert_close(model(x), y[:, 24:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("base_period", "order", "kept"), [(24, 6, 40), (96, 14, 38), (144, 12, 22), (24, 8, 49)]
)
def test_fits_keeps_the_published_number_of_frequencies(
    base_period: int, order: int, kept: int
) -> None:
    settings = FITSSettings(base_period, order)
    assert settings.frequencies(Shape(96, 96, 7)) == (kept, 2 * kept)
    problem = settings.problem(Shape(96, 96, 7))
    assert problem is None or "98 of 97 with horizon 96: choose a smaller order" in problem
    assert (problem is None) == (kept < 49)


def test_tsmixer_has_the_parameters_of_its_formula() -> None:
    L, H, C, n, inner = 24, 12, 5, 3, 24
    block = 4 * L * C + L * (L + 1) + C * inner + inner + inner * C + C
    assert parameters(small("TSMixer")) == 2 * C + n * block + (L + 1) * H


def test_a_batch_of_one_window_is_normalised_by_the_running_statistics() -> None:
    norm, x = StepChannelNorm(SHAPE), torch.randn(8, 24, 5)
    torch.testing.assert_close(norm(x).mean(0), torch.zeros(24, 5), atol=1e-5, rtol=0)
    assert norm.running_mean.abs().max() > 0
    before = norm.running_mean.clone()
    alone = norm(x[:1])
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(norm.eval()(x)[:1], alone)


def test_tide_reads_the_marks_of_each_step_and_keeps_channels_apart() -> None:
    model, (x, past, future) = small("TiDE", time_features=True).eval(), inputs()
    y = model(x, past, future)
    for marks in (past, future):
        changed = marks + 0.3
        other = (changed, future) if marks is past else (past, changed)
        assert (model(x, *other) - y).abs().amax((0, 1)).min() > 1e-4
    changed = x.clone()
    changed[1, :12, 2] += 1
    moved = torch.zeros(3, 5, dtype=torch.bool)
    moved[1, 2] = True
    assert torch.equal((model(changed, past, future) - y).abs().amax(1) > 0, moved)


def test_repeat_last() -> None:
    x, *_ = inputs()
    assert torch.equal(small("RepeatLast")(x), x[:, -1:].expand(3, 12, 5))


def test_seasonal_naive_continues_a_season_and_falls_back_to_the_last_step() -> None:
    model = small("SeasonalNaive", Shape(24, 15, 2), season=7)
    series = torch.randn(7, 2).repeat(6, 1)
    assert torch.equal(model(series[None, :24]), series[None, 24:39])
    x, *_ = inputs()
    assert torch.equal(small("SeasonalNaive", season=25)(x), small("RepeatLast")(x))
    assert torch.equal(small("SeasonalNaive", season=24)(x), x[:, :12])
