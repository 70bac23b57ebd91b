"""The documentation is built, and contains the public names."""

import re
import subprocess
import sys
from pathlib import Path

import spat

ROOT = Path(__file__).parents[2]


def test_the_page_is_built_and_has_all_public_names_and_the_three_uses(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "docs" / "build.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "./spat.html" in (tmp_path / "index.html").read_text(encoding="utf-8")
    page = (tmp_path / "spat.html").read_text(encoding="utf-8")
    for name in spat.__all__:
        text = " ".join((getattr(spat, name).__doc__ or "").split())[:30]
        section = page.split(f'<section id="{name}">')[1].split("</section>")[0]
        assert text.split("`")[0] in " ".join(section.split()), name
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert [title for title in titles if title.startswith(("My ", "The "))] == [
        "My model",
        "My data",
        "The paper",
    ]
    for module in re.findall(r"`(spat\.[a-z_.]+)`", spat.__doc__ or ""):
        assert (tmp_path / f"{module.replace('.', '/')}.html").exists(), module
