"""The README quotes what the committed results say, and names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_main_table_is_the_one_of_the_committed_default_run() -> None:
    quoted = README.split("<!-- main table -->")[1].split("<!-- end of main table -->")[0]
    made = (ROOT / "results" / "reference" / "default" / "tables" / "main.md").read_text()
    assert quoted.strip() == made.strip()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("workflow/experiments/*.yaml")))
def test_every_experiment_is_named(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)))
)
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
