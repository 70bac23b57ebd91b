"""The README quotes the committed results, and names files and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spat.data import series
from spat.data.registry import Borders
from spat.models.registry import Shape, build, setup
from spat.surgery import storage

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_main_table_is_the_one_of_the_committed_default_run() -> None:
    quoted = README.split("<!-- main table -->")[1].split("<!-- end of main table -->")[0]
    made = (ROOT / "results" / "reference" / "default" / "tables" / "main.md").read_text()
    assert quoted.strip() == made.strip()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_point_to_existing_files(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("workflow/experiments/*.yaml")))
def test_every_experiment_is_named(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)))
)
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def commands(lines: list[str]) -> dict[str, str]:
    """Commands of shell lines without comments, in their form for any experiment."""
    stripped = (re.sub(r"\s+# .*", "", line).strip() for line in lines)
    starts = (line for line in stripped if line.startswith(("snakemake ", "make ", "python -m ")))
    return {re.sub(r"experiments/\w+", "experiments/NAME", command): command for command in starts}


@pytest.mark.parametrize(
    "file",
    [
        "config.yaml",
        *(f"workflow/experiments/{path.name}" for path in ROOT.glob("workflow/experiments/*.yaml")),
        *(f"profiles/{name}/profile.yaml" for name in ("gpu", "slurm")),
    ],
)
def test_the_command_in_a_header_is_one_of_the_readme(file: str) -> None:
    blocks = [part.split("```")[0] for part in README.split("```sh\n")[1:]]
    shown = commands("\n".join(blocks).splitlines())
    header = re.findall(r"^#   (.+)$", (ROOT / file).read_text(), re.MULTILINE)
    (command,) = commands(header).items()
    assert command[0] in shown
    if file != "config.yaml":
        assert (file if "experiments" in file else str(Path(file).parent)) in command[1]


def snippets() -> list[str]:
    section = README.split("## Prune a model of your own")[1]
    return [part.split("```")[0] for part in section.split("```python\n")[1:]]


def test_the_snippet_for_any_model_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(snippets()[0], "README.md", "exec"), names)
    dense, small = (sum(p.numel() for p in names[n].parameters()) for n in ("model", "small"))
    assert small < dense
    shown = capsys.readouterr().out
    assert "encoder.layers.0.self_attn" in shown and "parameters" in shown
    assert (tmp_path / "small.safetensors").exists()


def test_the_snippet_prunes_fine_tunes_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The snippet as printed, on small stand-ins of the files of `make run`."""
    snippet = snippets()[1]
    data, dense = (tmp_path / path for path in re.findall(r'"(results/[^"]+)"', snippet)[::-1])
    values = np.random.default_rng(0).standard_normal((620, 3)).astype(np.float32)
    borders = Borders((0, 220), (220, 420), (420, 620))
    moments = np.zeros(3), np.ones(3)
    series.save(series.Prepared("ETTh2", values, *moments, borders, None, ""), data)
    settings = setup("iTransformer", "deep", "ETTh2", 96, {"d_model": 8, "d_ff": 8}).settings
    storage.save(build("iTransformer", settings, Shape(96, 96, 3)), dense)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"test MSE \d+\.\d{4} before, \d+\.\d{4} after", shown[-1])
    pruned, before = storage.load(tmp_path / "my-pruned-model"), storage.load(dense)
    assert [site.attention is None for site in pruned.sites()].count(True) == 2
    name, tuned = next(iter(pruned.named_parameters()))
    assert not tuned.equal(before.get_parameter(name)), "not fine-tuned"
