"""The page of an experiment: whole without a network, and its tables sort in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from frame_builder import frames_of

from spat.pipeline import cli
from spat.study.hypotheses import better
from spat.study.pages import registry, webpage
from spat.study.pages.reader import Frames
from spat.study.pages.render import number, value

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "default"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=10000", "--dump-dom"),
)
# Clicks on the head of a column of the main table, and leaves what is seen in the page.
PROBE = """<script>
const errors = [];
window.addEventListener("error", event => errors.push(event.message));
window.addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
setTimeout(() => {
  const table = document.querySelector("#table-main table");
  const heads = [...table.querySelectorAll("thead th")];
  const column = heads.findIndex(head => head.textContent.trim() === "none left");
  const values = () => [...table.querySelectorAll("tbody tr")].map(
    row => Number(row.children[column].dataset.order));
  const before = values();
  heads[column].click();
  setTimeout(() => {
    const found = document.createElement("pre");
    found.id = "found";
    found.textContent = JSON.stringify({
      before, after: values(), errors, plots: document.querySelectorAll(".main-svg").length,
      wide: document.documentElement.scrollWidth, window: window.innerWidth,
    });
    document.body.append(found);
  }, 500);
}, 3000);
</script>"""


@cache
def committed() -> str:
    return webpage.index(Frames.load(REFERENCE / "data"), "default")


def test_the_page_has_every_table_and_figure_and_needs_no_network() -> None:
    text = committed()
    made = {p.stem for p in (REFERENCE / "tables").glob("*.csv")}
    assert set(re.findall(r'id="table-(\w+)"', text)) == made & set(registry.TABLES)
    made = {p.stem for p in (REFERENCE / "figures").glob("*.png")}
    assert set(re.findall(r'id="figure-(\w+)"', text)) == made & set(registry.FIGURES)
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', text)


def test_the_verdict_is_that_of_the_table_better() -> None:
    frames = Frames.load(REFERENCE / "data")
    table = better(frames)
    lines = webpage.verdict(frames)
    assert len(lines) == 4
    for model in ("iTransformer", "PatchTST"):
        rows = table[(table["model"] == model) & (table["method"] == "SPAT (val.)")]
        line = next(x for x in lines if f" {model} " in x and x.startswith("SPAT"))
        assert f"by {number(rows['mean'].mean(), '%')} % on average over 2 cells" in line
        assert f"below zero in {(rows['high'] < 0).sum()}, above" in line


def test_an_experiment_without_pruning_says_so() -> None:
    frames = frames_of(datasets=("ETTh1",))
    kept = frames.results[frames.results["phase"] == "dense"]
    (line,) = webpage.verdict(Frames.of(results=kept))
    assert "attention" in line or "fine-tuned" in line


@pytest.mark.parametrize(
    ("text", "sorted_by"),
    [("0.350", "0.35"), ("−2.79", "-2.79"), ("423 k", "423000.0"), ("diverged", "diverged")],
)
def test_texts_are_sorted_as_numbers(text: str, sorted_by: str) -> None:
    assert value(text) == sorted_by


def test_the_command_writes_the_page_beside_the_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webpage, "index", lambda frames, name: f"{name}: {len(frames.results)}")
    shutil.copytree(REFERENCE / "data", tmp_path / "mine" / "data")
    cli.main(["page", "--folder", str(tmp_path / "mine")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine" / "index.html")
    written = (tmp_path / "mine" / "index.html").read_text(encoding="utf-8")
    assert written == f"mine: {len(Frames.load(REFERENCE / 'data').results)}"


@pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1200, 500])
def test_tables_sort_and_nothing_fails_in_a_browser(tmp_path: Path, width: int) -> None:
    page = tmp_path / "index.html"
    page.write_text(committed().replace("<head>", "<head>" + PROBE), encoding="utf-8")
    place = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1000"]
    done = subprocess.run(
        [BROWSER, *FLAGS, *place, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True, encoding="utf-8",
    )  # fmt: skip
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout)[1])  # type: ignore[index]
    assert found["errors"] == []
    assert found["after"] == sorted(found["before"]) != found["before"]
    assert found["plots"] >= 2
    assert found["wide"] <= found["window"], "the page itself does not scroll sideways"
