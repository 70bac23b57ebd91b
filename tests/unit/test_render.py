"""The pages of the tables: bold values, notes, LaTeX, and written files."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from frame_builder import build, frames_of, long

from spat.study.methods import in_order
from spat.study.pages import render
from spat.study.pages.page import Absent, Layout, Note
from spat.study.pages.reader import Frames
from spat.study.pages.registry import (
    TABLES,
    not_made,
    plain,
    rendered,
    tables,
    write_all,
    write_table,
)


def page_of(values: dict[str, float], unit: str = "", **layout: object) -> render.Sheet:
    frame = pd.DataFrame({"row": "r", "method": list(values), "mean": list(values.values())})
    frame = frame.assign(sd=np.nan, n=1, missing=0, unit=unit)
    return render.sheet(frame, Layout(("row",), "method", **layout))  # type: ignore[arg-type]


def styles(page: render.Sheet) -> dict[str, str]:
    ((_, cells),) = page.body
    return {name: cell.style for name, cell in zip(page.columns, cells, strict=True)}


def test_best_is_bold_and_second_underlined_by_the_digits_shown() -> None:
    page = page_of({"a": 0.3004, "c": 0.301, "d": 0.4})
    assert styles(page) == {"a": "best", "c": "second", "d": ""}
    assert "**0.300**" in render.markdown(page, "t")
    assert r"\textbf{0.300}" in render.latex(page, "t", "t")
    assert r"\underline{0.301}" in render.latex(page, "t", "t")


def test_equal_best_values_are_underlined_and_none_is_bold() -> None:
    page = page_of({"a": 0.3004, "b": 0.2996, "c": 0.301, "d": 0.4})
    assert styles(page) == {"a": "second", "b": "second", "c": "", "d": ""}


def test_the_heads_of_latex_columns_do_not_break_words() -> None:
    page = page_of({"regret (hindsight)": 1.0, "improvement over": 2.0})
    tex = render.latex(page, "t", "t")
    assert r"(hindsight)" in tex and "improvement" in tex


@pytest.mark.parametrize(("models", "says"), [(["PatchTST"], False), (["FEDformer"], True)])
def test_a_table_says_which_models_have_no_send(models: list[str], says: bool) -> None:
    frame = pd.DataFrame({"model": [*models, "DLinear"], "method": "dense", "mean": 1.0})
    frame = frame.assign(sd=np.nan, n=1, missing=0, unit="")
    notes = render.sheet(frame, Layout(("model",), "method")).notes
    assert [note for note in notes if "no score by SEND" in note] == says * [
        "FEDformer: not all attention sites have weights over keys, so there is no score by SEND "
        "and no mask of SPAT."
    ]


def test_a_comparison_with_itself_is_zero_without_sign_or_interval() -> None:
    frame = pd.DataFrame({"row": ["random", "send", "some"], "method": "gain"})
    frame = frame.assign(mean=[-1e-16, -0.004, 0.0], low=[-2e-15, -0.1, -0.3], high=[1e-15, 0.1, 0])
    frame = frame.assign(sd=np.nan, n=1, missing=0, unit="%")
    page = render.sheet(frame, Layout(("row",), "method", best=False))
    plain = {"best": "%s", "second": "%s", "": "%s"}
    shown = {key: cell.line(plain) for (key,), (cell,) in page.body}
    assert shown == {
        "random": "0 %",
        "send": "−0.00 [−0.10, +0.10] %",
        "some": "+0.00 [−0.30, +0.00] %",
    }


def test_a_single_value_or_equal_values_are_not_marked_as_best() -> None:
    assert styles(page_of({"a": 0.3})) == {"a": ""}
    assert set(styles(page_of({"a": 0.3, "b": 0.30001})).values()) == {""}
    assert set(styles(page_of({"a": 1.0, "b": 2.0}, unit="%")).values()) == {""}
    assert styles(page_of({"a": 0.1, "b": 0.2, "c": 0.3}, unranked=("a",))) == {
        "a": "", "b": "best", "c": "second"
    }  # fmt: skip


def test_every_bold_number_of_the_main_table_is_the_smallest_of_its_row() -> None:
    lines = [x for x in rendered("main", frames_of())["md"].splitlines() if x.startswith("| ETT")]
    assert len(lines) == 8
    for line in lines:
        cells = line.strip("| ").split("|")[3:-1]  # without keys and the change
        numbers = [float(re.search(r"\d\.\d+", cell).group()) for cell in cells]  # type: ignore[union-attr]
        bold = [number for number, cell in zip(numbers, cells, strict=True) if "**" in cell]
        second = [number for number, cell in zip(numbers, cells, strict=True) if "<ins>" in cell]
        if numbers.count(min(numbers)) > 1:
            assert not bold and set(second) == {min(numbers)}
        else:
            assert bold == [min(numbers)] and set(second) == {sorted(set(numbers))[1]}


def test_a_page_states_n_and_its_constant_keys() -> None:
    text = rendered("main", frames_of())["md"]
    assert "n = 3 seeds" in text
    assert "Horizon: 96." in text
    assert "n = 1 seed." in rendered("main", frames_of(seeds=(0,)))["md"]


def test_notes_are_about_what_the_page_shows() -> None:
    made = build(pairs=())
    full = {name: rendered(name, Frames.of(**made))["md"] for name in ("main", "heads_vs_modules")}
    assert "SPAT (val.): " in full["main"] and "Random: " in full["heads_vs_modules"]
    chosen = made["selections"]
    made["selections"] = chosen.query("rule != 'validation' and criterion != 'random'")
    bare = {name: rendered(name, Frames.of(**made))["md"] for name in ("main", "heads_vs_modules")}
    assert "SPAT (val.)" not in bare["main"] and "andom" not in bare["heads_vs_modules"]


def test_a_spread_is_named_only_where_one_is_shown() -> None:
    frame = pd.DataFrame({"row": "r", "method": ["a", "b"], "mean": 1.0, "unit": "%", "missing": 0})
    layout = Layout(("row",), "method", best=False)
    note = Note(render.INTERVAL, "About intervals.")
    for spread, message in (
        ({"sd": np.nan}, "Values: mean over n = 2 seeds."),
        ({"sd": 0.1}, "Values: mean ± standard deviation over n = 2 seeds."),
        ({"sd": np.nan, "low": 0.9, "high": 1.1}, "Values: mean [95 % interval] over n = 2 seeds."),
    ):
        notes = render.sheet(frame.assign(n=2, **spread), layout, [note]).notes
        assert message in notes
        assert (note.text in notes) == ("low" in spread)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.38642, "", "0.386"),
        (-2.842, "%", "−2.84"),
        (0.5, "pp", "+0.50"),
        (224_192, "parameters", "224 k"),
        (-4_928, "parameters", "−4.93 k"),
        (40e6, "FLOPs", "40 M"),
        (6.123, "ms", "6.12"),
        (float("nan"), "", "–"),
    ],
)
def test_numbers_are_formatted(value: float, unit: str, shown: str) -> None:
    cell = page_of({"a": value}, unit=unit).body[0][1][0]
    assert cell.value == shown


def test_text_is_escaped_for_latex() -> None:
    assert render.escape("50 % of_a & b #1 ~ {x} \\ ± −") == (
        r"50 \% of\_a \& b \#1 \textasciitilde{} \{x\} \textbackslash{} $\pm$ $-$"
    )


def test_methods_have_one_order() -> None:
    given = ["DLinear", "SPAT 100 %", "SPAT 25 %", "none left", "control", "SPAT (val.)", "dense"]
    assert in_order(given) == [
        "dense", "control", "SPAT (val.)", "SPAT 25 %", "SPAT 100 %", "none left", "DLinear"
    ]  # fmt: skip


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "one": {"datasets": ("ETTh1",), "models": ("iTransformer",), "seeds": (0,), "pairs": ()},
    "scratch": {
        "exhaustive": False, "scratch": True, "orders": 2, "controls": {"narrow": 0, "sam0.1": 0}
    },
    "orders": {"orders": 3, "models": ("iTransformer",), "horizons": (96, 336), "pairs": ()},
    "light": {"models": ("DLinear",), "pairs": ()},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TABLES)
def test_latex_rows_have_as_many_columns_as_the_header(name: str, kind: str) -> None:
    try:
        tex = rendered(name, frames_of(**KINDS[kind]))["tex"]
    except Absent:
        return
    assert tex.count(r"\begin{table") == tex.count(r"\end{table") >= 1
    for part in tex.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"{@{}([lr]+)@{}}", part).group(1))  # type: ignore[union-attr]
        rows = [x for x in part.splitlines() if re.search(r"(?<!\\)&", x)]
        assert rows
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
    assert tex.isascii(), sorted({c for c in tex if not c.isascii()})


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_all_tables_compile_with_booktabs_alone(tmp_path: Path) -> None:
    names = []
    for kind in KINDS:
        write_all("table", frames_of(**KINDS[kind]), tmp_path / kind)
        for path in sorted((tmp_path / kind).glob("*.tex")):
            name, text = path.stem, path.read_text()
            text = text.replace("\\label{tab:", f"\\label{{{kind}:")
            (tmp_path / f"{kind}-{name}.tex").write_text(text)
            names.append(f"\\input{{{kind}-{name}}}\\clearpage")
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage[margin=2cm]{geometry}\\usepackage{booktabs}"
        "\\begin{document}" + "\n".join(names) + "\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if "booktabs.sty' not found" in result.stdout:
        pytest.skip("LaTeX is there, but booktabs is not (texlive-latex-recommended)")
    assert result.returncode == 0, result.stdout[-2000:]
    assert "Overfull" not in result.stdout, "a table is wider than the page"


# writing


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_input_is_not_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(Absent) as absent:
        write_table(name, Frames.of(), tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(str(absent.value)) > 20 and str(absent.value) in plain(name, Frames.of())


def test_files_of_pages_that_are_no_longer_made_are_removed(tmp_path: Path) -> None:
    tables_of, figures_of = tmp_path / "tables", tmp_path / "figures"
    for path in (tables_of / "zeroshot.md", tables_of / "former.csv", figures_of / "transfer.svg"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("of a former run")
    (tables_of / "notes.txt").write_text("of the reader")
    write_all("table", frames_of(**KINDS["light"]), tables_of)
    write_all("figure", frames_of(**KINDS["light"]), figures_of)
    names = {path.name for path in tables_of.iterdir()}
    assert "notes.txt" in names and "main.md" not in names
    assert not names & {"zeroshot.md", "former.csv"}
    made = {path.stem for path in figures_of.iterdir()}
    assert made == {"forecasts", "history", "reproduction"}
    listed = not_made(frames_of(**KINDS["light"]), tmp_path)
    (row,) = (x for x in listed.splitlines() if x.startswith("| table | `main` |"))
    assert "No model of this experiment has attention sites." in row
    assert "| figure | `history` |" not in listed


def test_csv_holds_plain_numbers(tmp_path: Path) -> None:
    paths = write_table("main", frames_of(), tmp_path)
    names = ["main.csv", "main.md", "main.tex", "main.html"]
    assert [path.name for path in paths] == names
    read = pd.read_csv(paths[0], keep_default_na=False, na_values={"sd": ""})
    table = tables()["main"].function(frames_of())
    assert read["mean"].dtype == "float64"
    np.testing.assert_allclose(read["mean"], table["mean"], rtol=1e-9)
    assert list(read["method"]) == list(table["method"])


def test_the_terminal_shows_the_main_table() -> None:
    text = plain("main", frames_of())
    assert text.startswith("Test errors")
    assert re.search(r"ETTh1 +iTransformer +MSE .*[*_]0\.", text)
    assert "<ins>" not in text


def test_frames_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    made = long({"results": build()["results"]})
    for name, frame in made.items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
    frames = Frames.load(tmp_path)
    assert len(frames.results) > 0
    with pytest.raises(FileNotFoundError, match=r"scores\.parquet.*snakemake"):
        _ = frames.scores


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_a_damaged_frame_is_named(damage: str, tmp_path: Path) -> None:
    for name, frame in long({"results": build()["results"]}).items():
        frame.to_parquet(tmp_path / f"{name}.parquet", write_page_checksum=True)
    path = tmp_path / "measurements.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1  # in a page of data
    path.write_bytes({"cut": content[:-9], "flipped": content, "empty": b"", "folder": b""}[damage])
    if damage == "folder":
        path.unlink()
        path.mkdir()
    with pytest.raises(ValueError, match=r"measurements\.parquet: damaged .*Delete it and run"):
        _ = Frames.load(tmp_path).results


def test_tables_are_unchanged_after_parquet(tmp_path: Path) -> None:
    for name, frame in long(build()).items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
    frames = Frames.load(tmp_path)
    for name in ("main", "changes", "criteria"):
        again = rendered(name, frames)
        assert again == rendered(name, frames_of())
        pd.read_csv(io.StringIO(again["csv"]))
