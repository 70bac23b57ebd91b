"""The task imaging: files of the idx format, the loss and the errors, and the sites of a ViT."""

import copy
import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import idx
from small_models import assert_pruned_equals_silenced, perturbed

import spat
from spat.attention.mask import Mask
from spat.data.images import Labelled, obtain, read, split
from spat.data.registry import IMAGES, Borders, DataError, File, Images, Rows
from spat.models.settings import ImageShape, ViTSettings
from spat.models.vit import ViT
from spat.pipeline.scores_frame import aggregate, frame
from spat.scoring.scores import score
from spat.surgery import cut
from spat.tasks.imaging import Batch, Imaging
from spat.tasks.task import case_losses
from spat.training.loop import Seeds, Settings, fit
from spat.training.metrics import evaluate

TASK = Imaging()
SHAPE = ImageShape(height=4, width=6, channels=1, classes=3)
SETTINGS = ViTSettings(d_model=8, d_ff=8, e_layers=3, n_heads=2, dropout=0.0, patch_size=2)
FILES = ("train-images", "train-labels", "test-images", "test-labels")


def drawn(count: int, seed: int) -> Labelled:
    """Images of noise, which are brighter for later classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, SHAPE.classes, count)
    noise = generator.integers(0, 60, (count, SHAPE.height, SHAPE.width))
    return Labelled((noise + 70 * labels[:, None, None]).astype(np.uint8), labels)


TRAIN, TEST = drawn(90, 0), drawn(30, 1)
CONTENTS = tuple(idx(part) for of in (TRAIN, TEST) for part in (of.pixels, of.labels))


def dataset(contents: tuple[bytes, ...] = CONTENTS) -> Images:
    """A row of the registry for these four files."""
    first, second, third, fourth = (
        File("tiny", name, (), (hashlib.sha256(content).hexdigest(),))
        for name, content in zip(FILES, contents, strict=True)
    )
    return Images(
        "tiny",
        (first, second, third, fourth),
        SHAPE.height,
        SHAPE.width,
        SHAPE.classes,
        Rows(train=60, validation=30, test=30),
        "tiny",
    )


def written(folder: Path, contents: tuple[bytes, ...] = CONTENTS) -> Path:
    """A folder of gzipped copies."""
    folder.mkdir()
    for name, content in zip(FILES, contents, strict=True):
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


def vit() -> ViT:
    return perturbed(lambda: ViT(SETTINGS, SHAPE))


def test_gzipped_copies_are_read_as_they_were_written(tmp_path: Path) -> None:
    train, test = obtain(dataset(), tmp_path / "cache", [written(tmp_path / "copies")])
    for images, expected in ((train, TRAIN), (test, TEST)):
        np.testing.assert_array_equal(images.pixels, expected.pixels)
        np.testing.assert_array_equal(images.labels, expected.labels)
    assert sorted(path.name for path in (tmp_path / "cache").glob("t*")) == sorted(FILES)


@pytest.mark.parametrize(
    ("at", "content", "message"),
    [
        (0, b"\0\0\x08\x01" + CONTENTS[0][4:], "not an idx file .* 3 dimensions"),
        (0, CONTENTS[0][:-1], "2159 values, but its header says 90 x 4 x 6"),
        (0, idx(TRAIN.pixels[:, :, :5]), "images of 4 x 5 pixels, expected 4 x 6"),
        (1, idx(TRAIN.labels[:-1]), "89 labels, but .* holds 90 images"),
        (1, idx(TRAIN.labels + 1), "class 3, expected 0 to 2"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    at: int, content: bytes, message: str, tmp_path: Path
) -> None:
    contents = (*CONTENTS[:at], content, *CONTENTS[at + 1 :])
    folder = written(tmp_path / "copies", contents)
    paths = [folder / f"{name}.gz" for name in FILES[:2]]
    with pytest.raises(DataError, match=message) as error:
        read(dataset(contents), *paths)
    assert str(paths[at]) in str(error.value)


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "copies", (idx(TRAIN.pixels[::-1]), *CONTENTS[1:]))
    with pytest.raises(DataError, match="train-images.gz: SHA-256 .* is none of the published"):
        read(dataset(), *(folder / f"{name}.gz" for name in FILES[:2]))


def test_fashion_mnist_has_four_files_of_known_content() -> None:
    files = IMAGES["FashionMNIST"].files
    assert len({file.file for file in files}) == 4
    for file in files:
        assert file.urls and all(url.endswith(f"/{file.file}.gz") for url in file.urls)
        assert all(len(sha256) == 64 for sha256 in file.sha256)


def test_pixels_are_standardised_by_the_training_images_alone() -> None:
    splits = split(TRAIN, TEST, Borders((0, 60), (60, 90), (5, 30)))
    assert [len(cases) for cases in splits] == [60, 30, 25]
    known = TRAIN.pixels[:60].astype(np.float64)
    batch = splits.test.batch(torch.tensor([3, 0]))
    expected = (TEST.pixels[[8, 5]] - known.mean()) / known.std()
    np.testing.assert_allclose(batch.x[:, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(batch.y.numpy(), TEST.labels[[8, 5]])


@pytest.mark.parametrize("border", [(0, 0), (20, 31)])
def test_a_split_outside_the_images_is_refused(border: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="test split"):
        split(TRAIN, TEST, Borders((0, 60), (60, 90), border))


def test_losses_and_errors_are_those_of_the_definition() -> None:
    output = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]], requires_grad=True)
    batch = Batch(torch.zeros(2, 1, 4, 6), torch.tensor([2, 1]))
    expected = [
        float(np.log(np.exp(row).sum()) - row[label])
        for row, label in zip(output.detach().double().numpy(), (2, 1), strict=True)
    ]
    losses = TASK.losses(output, batch)
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(expected)
    assert TASK.loss(output, batch).item() == pytest.approx(np.mean(expected))
    errors = TASK.errors(output, batch)
    assert errors[0].tolist() == pytest.approx(expected)
    assert errors[1].tolist() == [1.0, 0.0]


def test_errors_do_not_depend_on_the_batch_size() -> None:
    cases = split(TRAIN, TEST, Borders((0, 60), (60, 90), (0, 30))).test
    errors = [evaluate(vit(), TASK, cases, size).means for size in (1, 7, 64)]
    assert errors[0] == pytest.approx(errors[1])
    assert errors[0] == pytest.approx(errors[2])
    assert list(errors[0]) == [metric.name for metric in TASK.metrics]


def test_a_token_is_a_patch_in_reading_order() -> None:
    model, seen = vit(), []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = TASK.example(SHAPE, 2).x
    model(x)
    for row in range(2):
        for column in range(3):
            patch = x[:, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(seen[0][:, 3 * row + column], patch.flatten(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"patch_size": 4}, "patch_size 4 does not divide"), ({"n_heads": 9}, "n_heads 9 exceeds")],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViT(ViTSettings(**{**vars(SETTINGS), **changes}), SHAPE)


def test_discovery_finds_the_declared_sites() -> None:
    model, batch = vit(), TASK.example(SHAPE, 4)
    sites = spat.find_sites(model, case_losses(TASK), batch)
    places = [f"layers.{i}.attention" for i in range(3)]
    assert [site.name for site in sites] == places
    assert [site.attention for site in model.sites()] == [model.get_submodule(p) for p in places]


def test_a_pruned_vit_is_the_dense_one_without_those_branches() -> None:
    assert_pruned_equals_silenced(vit(), TASK, TASK.example(SHAPE, 4))


def test_a_vit_is_trained_and_scored_like_a_forecaster() -> None:
    splits = split(TRAIN, TEST, Borders((0, 60), (60, 90), (0, 30)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViT(replace(SETTINGS, d_model=16, d_ff=32), SHAPE)
    settings = Settings(0.003, 10, 6, schedule="constant")
    fitted = fit(model, TASK, splits, settings, Seeds(0, 0))
    assert fitted.status == "ok"
    assert evaluate(model, TASK, splits.test).means["error_rate"] < 0.1
    batches = [torch.arange(16), torch.arange(16, 32)]
    criteria = ["send", "michel", "loss_drop"]
    scored = score(model, splits.train, batches, case_losses(TASK), criteria, batch_size=8)
    scores = aggregate(frame(scored)).query("head == -1").set_index(["criterion", "site"])["value"]
    assert len(scores[["send", "michel"]]) == 6
    assert (scores[["send", "michel"]] > 0).all()
    for site in range(3):
        cut_down = copy.deepcopy(model)
        mask = Mask.full(cut.heads_of(model)).without_sites([site])
        cut.prune(cut_down, mask, lambda net=cut_down: TASK.forward(net, TASK.example(SHAPE)))
        index = torch.cat(batches)
        with torch.no_grad():
            losses = [
                TASK.losses(TASK.forward(net.eval(), batch), batch).mean()
                for net in (cut_down, model)
                for batch in [splits.train.batch(index)]
            ]
        assert scores["loss_drop", site] == pytest.approx(float(losses[0] - losses[1]), abs=1e-6)
