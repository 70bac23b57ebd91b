"""The task text: the file, its sequences, the loss and the errors, and the sites of GPT."""

import copy
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import assert_pruned_equals_silenced, perturbed

import spat
from spat.attention.mask import all_site_masks
from spat.data import texts
from spat.data.registry import TEXTS, Borders, DataError, File, Shares, Text
from spat.models.gpt import GPT
from spat.models.settings import GPTSettings, TextShape
from spat.pipeline import config as configuration
from spat.pipeline import runs
from spat.pipeline.config import Config, ConfigError
from spat.pipeline.stages.collect import collect
from spat.pipeline.stages.grid import grid
from spat.study.pages.reader import Frames
from spat.study.pages.registry import rendered
from spat.surgery import cut
from spat.tasks.setting import Context
from spat.tasks.task import case_losses
from spat.tasks.text import Batch
from spat.tasks.text import Text as Task
from spat.training.loop import Seeds, Settings, fit
from spat.training.metrics import evaluate

NAME = "PythonTopics"
TASK = Task()
SHAPE = TextShape(context=8)
SETTINGS = GPTSettings(d_model=16, d_ff=32, e_layers=3, n_heads=2, dropout=0.0)
TOPICS = {"b": "second \u2013 topic\n", "a": "first topic\n"}
BLOCK = {"datasets": [NAME], "models": ["GPT"], "seeds": [0]}
SPLITS = Borders((0, 400), (400, 500), (500, 600))


def dataset(content: bytes) -> Text:
    """A small text of that content."""
    digest = hashlib.sha256(content).hexdigest()
    file = File(NAME, "topics.py", (), (digest,))
    return Text(NAME, file, size=len(content), split=Shares(0.6, 0.2), lookback=8, station=NAME)


def source(topics: dict[str, str]) -> bytes:
    """A file like that of the standard library."""
    return f"# Topics\ntopics = {topics!r}\n".encode()


def gpt() -> GPT:
    return perturbed(lambda: GPT(SETTINGS, SHAPE))


def test_topics_are_sorted_by_name(tmp_path: Path) -> None:
    content = source(TOPICS)
    (tmp_path / "topics.py").write_bytes(content)
    text = texts.obtain(dataset(content), tmp_path / "cache", [tmp_path])
    assert bytes(text).decode() == "first topic\n\n\nsecond \u2013 topic\n"


@pytest.mark.parametrize(
    "content",
    [b"topics = {", b"topics = open('x')\n", b"import os\n", b"a = {}\nb = {}\n", source({"a": 1})],  # type: ignore[dict-item]
)
def test_another_file_is_refused_and_never_run(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "topics.py"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"topics.py: not a dictionary of topics"):
        texts.read(dataset(content), path)
    with pytest.raises(DataError, match=r"topics.py: SHA-256 .* is not the published"):
        texts.read(dataset(b"other"), path)


def test_the_published_text_is_that_of_python_3_11_7(tmp_path: Path) -> None:
    row = TEXTS[NAME]
    assert row.file.urls[0].endswith(f"/v3.11.7/Lib/pydoc_data/{row.file.file}")
    try:
        text = texts.obtain(replace(row, file=replace(row.file, urls=())), tmp_path)
    except texts.download.DownloadError:
        pytest.skip("this Python has the topics of another version")
    assert len(text) == row.size


def test_sequences_are_consecutive_and_predict_the_next_byte() -> None:
    content = np.arange(200, dtype=np.uint8)
    splits = texts.split(content, Borders((0, 100), (100, 150), (150, 200)), 8)
    assert [len(cases) for cases in splits] == [12, 6, 6]
    batch = splits.validation.batch(torch.tensor([1, 0]))
    assert batch.x.tolist() == [list(range(108, 116)), list(range(100, 108))]
    assert torch.equal(batch.y, batch.x + 1)
    with pytest.raises(DataError, match="test split: a text of 8 bytes holds no sequence of 8"):
        texts.split(content, Borders((0, 100), (100, 150), (150, 158)), 8)


def test_prepared_texts_are_checked(tmp_path: Path) -> None:
    content = source(TOPICS)
    text = np.frombuffer(content, np.uint8)
    texts.save(texts.prepare(dataset(content), text), tmp_path / "text.npz")
    kept = texts.load(tmp_path / "text.npz")
    np.testing.assert_array_equal(kept.content, text)
    assert kept.borders.train == (0, int(0.6 * len(text)))
    (tmp_path / "text.npz").write_bytes((tmp_path / "text.npz").read_bytes()[:-40])
    with pytest.raises(DataError, match="not a prepared text"):
        texts.load(tmp_path / "text.npz")


def test_losses_and_errors_are_those_of_the_definition() -> None:
    output = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]], requires_grad=True)
    batch = Batch(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[2, 1]]))
    each = [
        float(np.log(np.exp(row).sum()) - row[label])
        for row, label in zip(output.detach().double().numpy()[0], (2, 1), strict=True)
    ]
    losses = TASK.losses(output, batch)
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx([np.mean(each)])
    assert TASK.loss(output, batch).item() == pytest.approx(np.mean(each))
    assert TASK.errors(output, batch)[1].tolist() == [0.5]


def test_a_byte_does_not_depend_on_later_bytes() -> None:
    model, x = gpt(), TASK.example(SHAPE, 2).x
    with torch.no_grad():
        before = model(x)
        changed = x.clone()
        changed[:, 5] = (changed[:, 5] + 1) % SHAPE.vocabulary
        after = model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_discovery_finds_the_declared_sites() -> None:
    model, batch = gpt(), TASK.example(SHAPE, 4)
    places = [f"language.blocks.{i}.attention" for i in range(3)]
    assert [site.name for site in spat.find_sites(model, case_losses(TASK), batch)] == places
    assert [site.attention for site in model.sites()] == [model.get_submodule(p) for p in places]


def test_a_pruned_gpt_is_the_dense_one_without_those_branches() -> None:
    assert_pruned_equals_silenced(gpt(), TASK, TASK.example(SHAPE, 4))


def test_attention_predicts_repeated_pairs_that_a_byte_alone_does_not() -> None:
    """In a text of pairs that repeat after four bytes, only attention sees what comes next."""
    generator = np.random.default_rng(0)
    pieces = np.tile(generator.integers(97, 123, (75, 4)), (1, 2)).astype(np.uint8)
    splits = texts.split(pieces.ravel(), SPLITS, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT(SETTINGS, SHAPE)
    without = copy.deepcopy(model)
    (*_, empty) = all_site_masks(cut.heads_of(model))
    cut.prune(without, empty, lambda: TASK.forward(without, TASK.example(SHAPE)))
    settings = Settings(0.01, 10, 60, schedule="constant")
    errors = []
    for network in (model, without):
        assert fit(network, TASK, splits, settings, Seeds(0, 0)).status == "ok"
        errors.append(evaluate(network, TASK, splits.train).means["error_rate"])
    assert errors[0] < 0.6 * errors[1]


def config(folder: Path, **changes: Any) -> Config:
    """Two sites, each mask fine-tuned for an epoch."""
    tiny = {"d_model": 8, "d_ff": 8, "n_heads": 2, "e_layers": 2, "batch_size": 16}
    values = {
        "experiment": "tiny",
        "results": str(folder / "results"),
        "grid": [
            {
                "datasets": [NAME],
                "models": ["GPT"],
                "variants": ["tiny"],
                "lookback": 8,
                "seeds": [0],
            }
        ],
        "variants": {"tiny": {"base": "deep", "model": tiny}},
        "data": {"cache": str(folder / "cache"), "mirrors": [str(folder)]},
        "training": {"device": "cpu", "epochs": 1},
        "scoring": {"batches": 1, "batch_size": 8},
        "pruning": {"site": {"criteria": ["send", "michel"], "ratios": [0.5, 1.0]}},
        "finetune": {"epochs": 1},
        "measure": {"batch_sizes": [2], "repeats": 2},
        "tracking": {"enabled": False},
        "statistics": {"bootstrap": 100},
    }
    return configuration.load({**values, **changes})


def test_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = source({"a": "One line after the other. " * 60})
    (tmp_path / "topics.py").write_bytes(content)
    monkeypatch.setitem(TEXTS, NAME, dataset(content))
    own = config(tmp_path)
    (planned,) = runs.plan(own)
    assert planned.run.path == "PythonTopics/GPT-tiny/c8/seed0"
    assert grid(own, "*", minutes=10) == 1
    collect(own)
    measured = pd.read_parquet(own.folder / "data" / "measurements.parquet")
    assert set(measured["metric"]) == {"cross_entropy", "error_rate"}
    assert set(measured["task"]) == {"text"}
    assert np.isfinite(measured["value"]).all()
    main = rendered("main", Frames.load(own.folder / "data", own.statistics))["md"]
    assert "| Cross entropy |" in main
    assert not re.search(r"\b(MSE|MAE|windows?|horizons?|forecast\w*)\b", main)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"horizons": [96]}, "PythonTopics is a text, which has no `horizons`"),
        ({"lookback": 100_000}, "fewer than the 100001 of a sequence"),
        ({"models": ["PatchTST"]}, "an experiment has one task"),
    ],
)
def test_impossible_configurations_are_refused(
    block: dict[str, Any], message: str, tmp_path: Path
) -> None:
    whole = {**BLOCK, "variants": ["tiny"], **block}
    with pytest.raises(ConfigError, match=message):
        runs.plan(config(tmp_path, grid=[whole]))


def test_the_setting_is_the_number_of_bytes() -> None:
    assert Context.parse("c64") == (64,)
    with pytest.raises(ValueError, match="setting 'l96-h96': expected cBYTES, such as c64"):
        Context.parse("l96-h96")
