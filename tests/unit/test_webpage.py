"""The page of an experiment: whole without a network, and its tables sort in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from committed import REFERENCE, read
from frame_builder import frames_of

from spat.pipeline import cli
from spat.study.accuracy import better
from spat.study.pages import registry, webpage
from spat.study.pages.reader import Frames
from spat.study.pages.render import number, value

DEFAULT = REFERENCE / "default"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=30000", "--dump-dom"),
)
# Opens all parts, clicks on the head of a column of the main table and of the provenance, and sends
# what is seen to the page around it.
PROBE = """<script>
const errors = [];
window.addEventListener("error", event => errors.push(event.message));
window.addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
const all = selector => [...document.querySelectorAll(selector)];
const until = async ready => {
  for (let i = 0; i < 200 && !ready(); i++) await new Promise(done => setTimeout(done, 100));
};
const sorted = async (selector, name) => {
  const table = document.querySelector(selector);
  const heads = [...table.querySelectorAll("thead th")];
  const column = heads.findIndex(head => head.textContent.trim() === name);
  const values = () => [...table.querySelectorAll("tbody tr")].map(
    row => row.children[column].dataset.order);
  const before = values();
  heads[column].click();
  await until(() => String(values()) !== String(before));
  return { before, after: values() };
};
const scrolling = part => part && (getComputedStyle(part).overflowX === "auto"
  && part.scrollWidth > part.clientWidth || scrolling(part.parentElement));
window.addEventListener("load", async () => {
  all("details").forEach(part => { part.open = true; });
  await until(() => all("table").every(table => table.classList.contains("dataTable")));
  window.parent.postMessage(JSON.stringify({
    main: await sorted("#table-main table", "none left"),
    provenance: await sorted("#provenance ~ .wide table", "rows"),
    errors,
    plots: all(".main-svg").length,
    page: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
    right: Math.max(...all("img, .plot, .wide, .main-svg, p, li, summary").map(
      part => part.getBoundingClientRect().right)),
    table: document.querySelector("#table-main table").offsetWidth,
    cut: all("table").filter(table => table.offsetWidth > document.body.clientWidth
      && !scrolling(table)).map(table => table.closest("details").id),
  }), "*");
});
</script>"""
# A browser window is at least 500 pixels wide, so the page is shown in a frame.
AROUND = """<body style="margin: 0">
<iframe src="index.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>window.addEventListener("message", event => {{
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = event.data;
  document.body.append(found);
}});</script>
"""


@cache
def committed() -> str:
    return webpage.index(read(DEFAULT), "default")


def test_the_page_has_every_table_and_figure_and_needs_no_network() -> None:
    text = committed()
    made = {p.stem for p in (DEFAULT / "tables").glob("*.csv")}
    assert set(re.findall(r'id="table-(\w+)"', text)) == made & set(registry.TABLES)
    made = {p.stem for p in (DEFAULT / "figures").glob("*.png")}
    assert set(re.findall(r'id="figure-(\w+)"', text)) == made & set(registry.FIGURES)
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', text)


def test_the_verdict_agrees_with_the_table_better() -> None:
    frames = read(DEFAULT)
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
    shutil.copytree(DEFAULT / "data", tmp_path / "mine" / "data")
    cli.main(["page", "--folder", str(tmp_path / "mine")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine" / "index.html")
    written = (tmp_path / "mine" / "index.html").read_text(encoding="utf-8")
    assert written == f"mine: {len(Frames.load(DEFAULT / 'data').results)}"


@pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_tables_sort_and_fit_in_a_browser(tmp_path: Path, width: int) -> None:
    text = committed().replace("<head>", "<head>" + PROBE)
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    page = tmp_path / "around.html"
    page.write_text(AROUND.format(width=width), encoding="utf-8")
    place = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,1000"]
    done = subprocess.run(
        [BROWSER, *FLAGS, *place, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True, encoding="utf-8",
    )  # fmt: skip
    report = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout)[1])  # type: ignore[index]
    assert report["errors"] == []
    for name, least in (("main", 8), ("provenance", 5)):
        before, after = ([*map(float, report[name][when])] for when in ("before", "after"))
        assert after == sorted(before) != before, name
        assert len(before) >= least
    assert report["plots"] >= 2
    # The page itself does not scroll sideways; wide tables do, in their own frame.
    assert report["page"] <= report["window"] <= width
    assert report["right"] <= report["window"]
    assert report["cut"] == []
    assert width > 390 or report["table"] > report["window"]


def test_the_forest_shows_the_line_of_no_change() -> None:
    frames = read(REFERENCE / "lookback")
    plot = webpage._forest(frames)
    assert plot is not None
    ranges = re.findall(r'"range":\[([^,]+),([^\]]+)\]', plot.html)
    assert [float(low) < 0 < float(high) for low, high in ranges] == [True]
