"""The declared pages: their names, their captions, and the modules that the workflow loads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from jinja2 import Template

from spat.study.pages import registry
from spat.study.pages.page import PAGES, WORDING, Absent, Layout, once, page
from spat.study.pages.reader import Frames

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"


def test_the_listed_names_are_those_of_the_declared_pages() -> None:
    listed = {("table", name) for name in registry.tables()}
    listed |= {("figure", name) for name in registry.figures()}
    assert listed == set(PAGES)
    for names in (registry.TABLES, registry.FIGURES):
        assert len(set(names)) == len(names)


def test_the_captions_of_the_report_are_those_above_the_functions() -> None:
    written = {
        str(path.relative_to(CAPTIONS)): path.read_text() for path in CAPTIONS.rglob("*s.rst")
    }
    assert written == registry.captions(), "run `python -m spat.study.pages.registry`"


@pytest.mark.parametrize("task", WORDING)
def test_the_report_names_the_metrics_of_the_task(task: str) -> None:
    for file, pages in (("tables.rst", registry.tables()), ("figures.rst", registry.figures())):
        template = Template((CAPTIONS / file).read_text(encoding="utf-8"))
        for name, declared in pages.items():
            snakemake = {"wildcards": {"name": name}, "params": {"task": task}}
            shown = " ".join(template.render(snakemake=snakemake).split())
            assert shown == " ".join(WORDING[task].page(declared).caption.split())
            assert task == "forecasting" or not re.search(r"\bM[SA]E\b", shown), name
    assert ("MSE" in captions_of(task)) == (task == "forecasting")


def captions_of(task: str) -> str:
    snakemake = {"wildcards": {"name": "pareto"}, "params": {"task": task}}
    return Template(registry.captions()["figures.rst"]).render(snakemake=snakemake)


def test_every_page_is_in_one_group_of_the_report() -> None:
    grouped = [name for pages in registry.GROUPS.values() for name in pages]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) == {*registry.TABLES, *registry.FIGURES}


def test_every_page_has_a_title_and_a_caption() -> None:
    titles = [declared.title for declared in PAGES.values()]
    assert len(set(titles)) == len(titles)
    for declared in PAGES.values():
        assert declared.title[0].isupper() and not declared.title.endswith(".")
        assert declared.caption.strip().endswith("."), declared.name


def test_the_names_are_known_without_pandas_or_torch() -> None:
    code = (
        "import json, sys, spat.study.pages.registry;"
        "print(json.dumps([m for m in ('numpy', 'pandas', 'torch', 'matplotlib', 'pydantic')"
        " if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_two_pages_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="'main' is declared twice"):
        page("table", "main", title="t", caption="c", layout=Layout(("a",), "b"))


def test_tables_have_a_layout_and_figures_have_none() -> None:
    with pytest.raises(ValueError, match="needs `layout`"):
        page("table", "new", title="t", caption="c")
    with pytest.raises(ValueError, match="needs `layout`"):
        page("figure", "new", title="t", caption="c", layout=Layout(("a",), "b"))


def test_a_shared_table_is_computed_once_and_never_changed() -> None:
    calls: list[object] = []

    @once
    def shared(frames: Frames, scale: float = 1.0) -> tuple[pd.DataFrame, dict[str, str]]:
        calls.append((frames, scale))
        if scale < 0:
            raise Absent("The scale is below zero.")
        return pd.DataFrame({"value": [scale, 2 * scale]}), {"a": "b"}

    frames, others = Frames.of(), Frames.of()
    table, names = shared(frames)
    table.loc[0, "value"] = 9.0
    table["more"] = 1
    names["c"] = "d"
    again, known = shared(frames)
    assert again.to_dict("list") == {"value": [1.0, 2.0]} and known == {"a": "b"}
    assert shared(frames, scale=3.0)[0]["value"].tolist() == [3.0, 6.0]
    shared(others)
    for _ in range(2):
        with pytest.raises(Absent, match="below zero"):
            shared(frames, -1.0)
    assert calls == [(frames, 1.0), (frames, 3.0), (others, 1.0), (frames, -1.0)]
