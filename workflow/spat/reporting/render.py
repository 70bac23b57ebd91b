"""Tidy tables as Markdown, LaTeX (booktabs) and plain text.

A tidy table has key columns, one column whose values become the columns of the page, and `mean`,
`sd`, `n`, `missing`, `unit`. The best value of a comparison is bold and the second underlined, both
judged by the digits that are shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pandas as pd

Style = Literal["best", "second", ""]
GAP: Final = "–"
# Rows of a LaTeX table: what fits on a page.
ROWS_PER_PAGE: Final = 44

COUNTS: Final = ("parameters", "FLOPs")
CHANGES: Final = ("%", "pp", "tau")
SUFFIXES: Final = {"%": " %", "pp": " pp", "ms": " ms", "MB": " MB"}
_PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Layout:
    """How a tidy table becomes a page.

    `rows` are the key columns, `columns` the column spread over the page. Where `best` is set, the
    cells of a row that have no unit compete, but for those in the columns `unranked`; with `within`
    the rows of equal keys compete down each column instead.
    """

    rows: tuple[str, ...]
    columns: str
    best: bool = True
    unranked: tuple[str, ...] = ()
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A table ready to be written: header, body of (text, style), and the notes under it."""

    keys: list[str]
    columns: list[str]
    body: list[tuple[list[str], list[tuple[str, Style]]]]
    notes: list[str]


def number(value: float, unit: str, *, signed: bool = True) -> str:
    """Digits for a unit: errors three decimals, changes two and a sign, costs three digits."""
    if unit in COUNTS:
        size, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), (1.0, ""))
        return f"{value / size:.3g} {prefix}".rstrip()
    if unit == "":
        return f"{value:.3f}"
    if unit in CHANGES:
        return f"{value:{'+' if signed else ''}.2f}".replace("-", "−")
    return f"{value:.3g}"


def page(frame: pd.DataFrame, layout: Layout, notes: Sequence[str] = ()) -> Page:
    """The page of a tidy table. Keys that are the same in all rows move from columns to a note."""
    constant = [k for k in layout.rows if frame[k].nunique(dropna=False) == 1 and len(frame) > 1]
    keys = [key for key in layout.rows if key not in constant]
    columns = _columns(frame[layout.columns])
    cells = frame.assign(**{layout.columns: frame[layout.columns].astype(str)})
    cells = cells.assign(style=_styles(cells, layout))
    usual = int(cells["n"].max())
    body = []
    for key, row in cells.groupby(list(layout.rows), sort=False, dropna=False, observed=True):
        named = dict(zip(layout.rows, key, strict=True))
        found = {cell[layout.columns]: cell for cell in row.to_dict("records")}
        shown = [_cell(found.get(column), usual) for column in columns]
        body.append(([str(named[key]) for key in keys], shown))
    return Page(keys, columns, body, [*_notes(frame, layout, constant, usual), *notes])


def markdown(page: Page, title: str) -> str:
    """GitHub Markdown."""
    marks = {"best": "**{}**", "second": "<ins>{}</ins>", "": "{}"}
    rows = [
        "| " + " | ".join([*_pipes(keys), *(marks[s].format(t) for t, s in cells)]) + " |"
        for keys, cells in page.body
    ]
    rule = ["---"] * len(page.keys) + ["---:"] * len(page.columns)
    head = [_title(key) for key in page.keys] + page.columns
    lines = [f"**{title}**", "", _row(head), _row(rule), *rows, "", *_paragraphs(page.notes)]
    return "\n".join(lines).rstrip() + "\n"


def text(page: Page, title: str) -> str:
    """Plain text for a terminal; a star marks the best."""
    from tabulate import tabulate

    rows = [[*keys, *(f"{t}{'*' if s == 'best' else ''}" for t, s in c)] for keys, c in page.body]
    head = [*map(_title, page.keys), *page.columns]
    align = ["left"] * len(page.keys) + ["right"] * len(page.columns)
    table = tabulate(rows, head, tablefmt="simple", colalign=align, disable_numparse=True)
    notes = [note.replace("bold", "with a star").replace(", second underlined", "") for note in page.notes]
    return "\n".join([title, "", table, "", *notes]) + "\n"


def latex(page: Page, title: str, label: str) -> str:
    """One or more `table*` environments; a document needs `\\usepackage{booktabs}` and no more."""
    parts = [page.body[i : i + ROWS_PER_PAGE] for i in range(0, len(page.body), ROWS_PER_PAGE)]
    made = []
    for i, part in enumerate(parts):
        again = f" (part {i + 1} of {len(parts)})" if len(parts) > 1 else ""
        caption = escape(f"{title}{again}. " + " ".join(page.notes))
        tag = f"tab:{label}" + (f"-{i + 1}" if i else "")
        made.append(_environment(page, part, caption, tag))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(made)


def nothing(title: str, reason: str) -> dict[str, str]:
    """What is written of a table without rows, by file ending: the reason, in each format."""
    return {
        "csv": 'note\n"' + reason.replace('"', '""') + '"\n',
        "md": f"**{title}**\n\n{reason}\n",
        "tex": (
            f"\\begin{{table}}\n  \\centering\n  \\caption{{{escape(title)}}}\n"
            f"  \\emph{{{escape(reason)}}}\n\\end{{table}}\n"
        ),
    }


_SPECIAL: Final = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": r"$-$", "→": r"$\to$", "–": "--", "≤": r"$\le$", "·": r"$\cdot$",
    "<": r"$<$", ">": r"$>$", "|": r"$|$",
}  # fmt: skip


def escape(value: str) -> str:
    """Plain text as LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in value)


def _environment(
    page: Page, body: list[tuple[list[str], list[tuple[str, Style]]]], caption: str, tag: str
) -> str:
    marks: dict[Style, str] = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    lines, previous = [], [""] * len(page.keys)
    for keys, cells in body:
        fresh = next((i for i, (a, b) in enumerate(zip(keys, previous, strict=True)) if a != b), 0)
        if lines and fresh == 0 and len(page.keys) > 1:
            lines.append(r"\addlinespace")
        # A key that repeats the one above, under equal leading keys, is left out.
        shown = ["" if i < fresh else escape(key) for i, key in enumerate(keys)]
        shown += [marks[style] % escape(text) for text, style in cells]
        lines.append(" & ".join(shown) + r" \\")
        previous = keys
    head = [escape(_title(key)) for key in page.keys] + [escape(c) for c in page.columns]
    columns = "l" * len(page.keys) + "r" * len(page.columns)
    inner = "\n".join(f"    {line}" for line in lines)
    return (
        "\\begin{table*}\n  \\centering\n  \\scriptsize\n  \\setlength{\\tabcolsep}{3pt}\n"
        f"  \\caption{{{caption}}}\n  \\label{{{tag}}}\n"
        f"  \\begin{{tabular}}{{@{{}}{columns}@{{}}}}\n    \\toprule\n"
        f"    {' & '.join(head)} \\\\\n    \\midrule\n{inner}\n    \\bottomrule\n"
        "  \\end{tabular}\n\\end{table*}\n"
    )


def _columns(values: pd.Series) -> list[str]:
    present = set(values.astype(str))
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [c for c in map(str, values.cat.categories) if c in present]
    return list(dict.fromkeys(values.astype(str)))


def _styles(cells: pd.DataFrame, layout: Layout) -> list[Style]:
    """Best and second of each comparison by the digits shown; ties share, a lone value has none."""
    styles: list[Style] = [""] * len(cells)
    if not layout.best:
        return styles
    rounded = cells["mean"].round(3)
    names = cells[layout.columns]
    competes = (cells["unit"] == "") & ~names.isin(layout.unranked) & rounded.notna()
    keys = [*layout.within, layout.columns] if layout.within else list(layout.rows)
    position = pd.Series(range(len(cells)), index=cells.index)
    for _, group in cells[competes].groupby(keys, dropna=False, observed=True):
        values = rounded[group.index]
        ranks = values.rank(method="dense")
        if ranks.max() > 1:
            for index, rank in ranks[ranks <= 2].items():
                styles[position[index]] = "best" if rank == 1 else "second"
    return styles


def _cell(cell: dict[str, Any] | None, usual: int) -> tuple[str, Style]:
    if cell is None:
        return GAP, ""
    if not math.isfinite(cell["mean"]):
        return ("diverged", "") if cell["missing"] else (GAP, "")
    unit = cell["unit"]
    shown = number(cell["mean"], unit)
    if math.isfinite(cell.get("low", math.nan)):
        shown += f" [{number(cell['low'], unit)}, {number(cell['high'], unit)}]"
    # Counts are the same for every seed, unless seeds chose different masks.
    elif math.isfinite(cell["sd"]) and not (cell["sd"] == 0 and unit in COUNTS):
        shown += f" ± {number(cell['sd'], unit, signed=False)}"
    shown += SUFFIXES.get(unit, "")
    if cell["missing"]:
        shown += f" ({cell['missing']} diverged)"
    elif cell["n"] not in (0, usual):
        shown += f" (n={cell['n']})"
    return shown, cell["style"]


def _notes(frame: pd.DataFrame, layout: Layout, constant: list[str], usual: int) -> list[str]:
    notes = [f"{_title(key)}: {frame[key].iloc[0]}." for key in constant]
    seeds = "one seed (n = 1)" if usual == 1 else f"mean ± standard deviation over n = {usual} seeds"
    other = ", unless a cell says otherwise" if (~frame["n"].isin([0, usual])).any() else ""
    notes.append(f"Values: {seeds}{other}.")
    if layout.best:
        group = "comparison down a column" if layout.within else "row"
        notes.append(f"Best of a {group} bold, second underlined, by the digits shown.")
    return notes


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize() if key.islower() else key


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pipes(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]


def _paragraphs(notes: Sequence[str]) -> list[str]:
    return [" ".join(notes)] if notes else []

